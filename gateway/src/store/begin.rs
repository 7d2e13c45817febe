//! The first transaction of a payment: is its key known, is there room, is its lane free.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use uuid::Uuid;

use super::db::{Db, Readers, Row, Sql, Table, Value, query};
use super::lane;
use super::order::{self, Job, Order};
use super::outcome::{KeyAfter, Withdraw};
use super::place::{self, Lane, insert, lock, numbers};
use super::row::new_token;
use super::writer::Batch;
use super::{
    FINGERPRINT_BYTES, Idempotency, ItemFacts, Lease, NewPayment, OrdKey, Priority, Sealed, Status,
    StoreError,
};

/// What became of a new payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is durable and first in its lane: forward it now, under this lease.
    Forward(Lease),
    /// It is durable and waits behind others of its lane: answer "pending".
    Queued {
        /// Its place in the lane.
        seq: i64,
    },
    /// The key stands for this payment, which is finished or waits: answer again.
    Replay {
        /// The payment of that key.
        facts: Box<ItemFacts>,
        /// Its status now.
        status: Status,
        /// The final answer, once there is one. Bound to `facts`.
        answer: Option<Sealed>,
    },
    /// The first request with this key is still being answered.
    Running {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The key came with another request before. Nothing was done.
    KeyReused,
    /// As many payments to this target are open as may be. Nothing was stored.
    QueueFull,
    /// It would have to wait, behind others of its lane or because its target is paused, and it may
    /// not. Nothing was stored.
    Busy,
}

pub(super) struct Begin(pub(super) NewPayment);

impl Order for Begin {
    type Answer = Begun;
    const FOR_CALLER: bool = true;

    /// Of a payment that nobody forwards nothing was sent: its lease must not run out as if it was.
    fn orphans(begun: Begun) -> Vec<Box<dyn Job>> {
        match begun {
            Begun::Forward(held) => {
                let (code, key) = ("not-forwarded".into(), KeyAfter::Freed);
                vec![order::unasked(Withdraw { held, code, key })]
            }
            Begun::Queued { .. }
            | Begun::Replay { .. }
            | Begun::Running { .. }
            | Begun::KeyReused
            | Begun::QueueFull
            | Begun::Busy => Vec::new(),
        }
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Begun, StoreError> {
        let mut begun = Self::run_all(std::slice::from_ref(self), db, batch).await?;
        begun.pop().ok_or_else(|| StoreError::unavailable("it was not answered"))
    }

    async fn run_all(
        orders: &[Self],
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<Vec<Begun>, StoreError> {
        let mut begun: Vec<Option<Begun>> = orders.iter().map(|_| None).collect();
        while begun.iter().any(Option::is_none) {
            // The first with each key; the next with it finds what became of that one.
            let mut keys = HashSet::new();
            let round: Vec<(usize, &NewPayment)> = orders
                .iter()
                .enumerate()
                .filter(|(at, _)| begun[*at].is_none())
                .map(|(at, order)| (at, &order.0))
                .filter(|(_, payment)| keys.insert(key(&payment.idempotency)))
                .collect();
            for (at, answer) in Round(&round).run(db, batch).await? {
                begun[at] = Some(answer);
            }
        }
        Ok(begun.into_iter().flatten().collect())
    }
}

/// Whose key, and its hash.
type Key<'a> = (&'a str, &'a [u8]);

fn key(idempotency: &Idempotency) -> Key<'_> {
    (&idempotency.scope, &idempotency.key_hash)
}

/// Payments of different keys, each with its place in the answers.
struct Round<'a>(&'a [(usize, &'a NewPayment)]);

impl Round<'_> {
    /// An answer for each. Locks are taken in one order: keys, then lanes, then payments.
    async fn run(
        &self,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<Vec<(usize, Begun)>, StoreError> {
        let mut answers = Vec::with_capacity(self.0.len());
        let (mut open, full): (Vec<_>, Vec<_>) =
            self.0.iter().copied().partition(|(_, payment)| {
                let has_room = batch.depth.of(&payment.facts.target) < batch.depth_max;
                if has_room {
                    batch.depth.add(&payment.facts.target, 1);
                }
                has_room
            });
        for (at, _) in self.without_standing(full, &mut answers, db, batch).await? {
            answers.push((at, Begun::QueueFull));
        }
        open.sort_by_key(|(_, payment)| key(&payment.idempotency));
        if !remember(&open, db).await? {
            let ours = ours(&open, db).await?;
            let (mine, known): (Vec<_>, Vec<_>) =
                open.into_iter().partition(|(_, payment)| ours.contains(&payment.facts.id));
            open = mine;
            for (_, payment) in &known {
                batch.depth.add(&payment.facts.target, -1);
            }
            // A key that is neither free nor stands for anything was pruned in this moment.
            for (at, _) in self.without_standing(known, &mut answers, db, batch).await? {
                answers.push((at, Begun::Running { retry_after: Duration::from_secs(1) }));
            }
        }
        self.queue(open, &mut answers, db, batch).await?;
        Ok(answers)
    }

    /// Answers those whose key stands for something.
    async fn without_standing<'p>(
        &self,
        open: Vec<(usize, &'p NewPayment)>,
        answers: &mut Vec<(usize, Begun)>,
        db: &mut Db<'_>,
        batch: &Batch,
    ) -> Result<Vec<(usize, &'p NewPayment)>, StoreError> {
        let known = find(open.iter().map(|(_, payment)| &payment.idempotency), db).await?;
        let mut left = Vec::with_capacity(open.len());
        for (at, payment) in open {
            match known.get(&owned(payment)) {
                Some(row) => {
                    answers.push((at, standing(&payment.idempotency, row, batch.now)?));
                }
                None => left.push((at, payment)),
            }
        }
        Ok(left)
    }

    /// Puts each in its lane: the first of a free lane is leased to its caller.
    async fn queue(
        &self,
        open: Vec<(usize, &NewPayment)>,
        answers: &mut Vec<(usize, Begun)>,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        let numbers = numbers(db).await?;
        let mut lanes: BTreeMap<OrdKey, Lane> = BTreeMap::new();
        for (place, (_, payment)) in open.iter().enumerate() {
            if let Entry::Vacant(lane) = lanes.entry(payment.facts.ord_key) {
                lane.insert(Lane {
                    first: payment,
                    head: numbers.at(place),
                    token: new_token()?,
                    is_free: false,
                    behind: false,
                    prio: Priority::Low.rank(),
                });
            }
        }
        lock(&mut lanes, db, batch).await?;
        let mut placed = Vec::with_capacity(open.len());
        for (place, (at, payment)) in open.into_iter().enumerate() {
            // Every lane was put in above.
            let Some(lane) = lanes.get_mut(&payment.facts.ord_key) else { continue };
            // Nothing leaves for a target that is paused: even the first has to wait.
            let is_paused = batch.depth.is_paused(&payment.facts.target);
            let behind = !lane.is_free || lane.behind || is_paused;
            if behind && !payment.may_wait {
                query(FORGET)
                    .bind(&payment.idempotency.scope)
                    .bind(payment.idempotency.key_hash.as_slice())
                    .execute(db)
                    .await?;
                batch.depth.add(&payment.facts.target, -1);
                answers.push((at, Begun::Busy));
                continue;
            }
            lane.behind = true;
            lane.prio = lane.prio.min(payment.facts.prio.rank());
            let is_first = lane.is_free && lane.first.facts.id == payment.facts.id;
            let seq = numbers.at(place).or(lane.head.filter(|_| is_first));
            placed.push((at, payment, behind, seq));
        }
        let values = placed.iter().flat_map(|(_, payment, behind, seq)| {
            place::payment(payment, *behind, *seq, batch.now)
        });
        let mut seqs = HashMap::with_capacity(placed.len());
        for row in insert(db).run(values.collect(), db).await? {
            seqs.insert(row.get::<Uuid>("id")?, row.get::<i64>("seq")?);
        }
        if seqs.len() < placed.len() {
            let repeated = |placed: &Placed<'_>| !seqs.contains_key(&placed.1.facts.id);
            let (repeats, rest) = placed.into_iter().partition(repeated);
            placed = rest;
            self.repeats(repeats, answers, db, batch).await?;
        }
        let (mut opened, mut raised) = (Vec::new(), Vec::new());
        let mut leases = HashMap::new();
        for (ord_key, lane) in &lanes {
            if !lane.is_free {
                raised.extend([Value::from(ord_key.0.as_slice()), lane.prio.into()]);
                continue;
            }
            let mut mine =
                placed.iter().filter(|(_, payment, ..)| payment.facts.ord_key == *ord_key);
            let Some((_, head, behind, _)) = mine.next() else {
                // Only repeats came for it.
                query(DROP_LANE).bind(ord_key.0.as_slice()).execute(db).await?;
                continue;
            };
            let seq = seq_of(&seqs, head)?;
            if lane.head != Some(seq) {
                opened.extend([ord_key.0.as_slice().into(), seq.into(), lane.prio.into()]);
            } else if lane.prio < lane.first.facts.prio.rank() {
                raised.extend([Value::from(ord_key.0.as_slice()), lane.prio.into()]);
            }
            if *behind {
                // The one that was first is a repeat.
                lane::park(db, batch, *ord_key, 0).await?;
            } else {
                let (ord_key, token) = (*ord_key, lane.token);
                leases.insert(seq, Lease { seq, ord_key, token, leased_at: batch.now });
            }
        }
        OPEN_LANES.execute(opened, db).await?;
        RAISE.execute(raised, db).await?;
        for (at, payment, ..) in placed {
            let seq = seq_of(&seqs, payment)?;
            let begun = match leases.remove(&seq) {
                Some(lease) => Begun::Forward(lease),
                None => Begun::Queued { seq },
            };
            answers.push((at, begun));
        }
        Ok(())
    }

    /// The second guard: requests whose key was forgotten, but not their payment.
    async fn repeats(
        &self,
        repeats: Vec<Placed<'_>>,
        answers: &mut Vec<(usize, Begun)>,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        for (at, payment, ..) in repeats {
            let (facts, key) = (&payment.facts, &payment.idempotency);
            let row = query(REPEATED)
                .bind(&facts.tenant)
                .bind(&facts.target)
                .bind(&facts.reference)
                .one(db)
                .await?;
            query(POINT_AT)
                .bind(&key.scope)
                .bind(key.key_hash.as_slice())
                .bind(row.get::<Uuid>("id")?)
                .execute(db)
                .await?;
            batch.depth.add(&facts.target, -1);
            answers.push((at, replay(&row)?));
        }
        Ok(())
    }
}

/// A payment with its place in the answers, whether others are before it, and its number, where that is
/// known before it is stored.
type Placed<'a> = (usize, &'a NewPayment, bool, Option<i64>);

/// Takes the keys that nobody has. Whether all of them are ours now.
async fn remember(open: &[(usize, &NewPayment)], db: &mut Db<'_>) -> Result<bool, StoreError> {
    let values = open.iter().flat_map(|(_, payment)| {
        let idempotency = &payment.idempotency;
        [
            (&idempotency.scope).into(),
            idempotency.key_hash.as_slice().into(),
            idempotency.fp.as_slice().into(),
            payment.facts.id.into(),
            idempotency.expires_at.into(),
        ]
    });
    Ok(REMEMBER.execute(values.collect(), db).await? == open.len() as u64)
}

/// Those that are ours.
async fn ours(open: &[(usize, &NewPayment)], db: &mut Db<'_>) -> Result<HashSet<Uuid>, StoreError> {
    let values = open.iter().flat_map(|(_, payment)| {
        let idempotency = &payment.idempotency;
        [
            (&idempotency.scope).into(),
            idempotency.key_hash.as_slice().into(),
            payment.facts.id.into(),
        ]
    });
    let rows = OURS.run(values.collect(), db).await?;
    rows.iter().map(|row| row.get("item_id")).collect()
}

fn owned(payment: &NewPayment) -> (String, Vec<u8>) {
    (payment.idempotency.scope.clone(), payment.idempotency.key_hash.to_vec())
}

fn seq_of(seqs: &HashMap<Uuid, i64>, payment: &NewPayment) -> Result<i64, StoreError> {
    seqs.get(&payment.facts.id).copied().ok_or(StoreError::Foreign("seq"))
}

/// What keys stand for that were used before.
async fn find(
    keys: impl Iterator<Item = &Idempotency>,
    db: &mut Db<'_>,
) -> Result<HashMap<(String, Vec<u8>), Row>, StoreError> {
    let values = keys.flat_map(|idempotency| {
        [(&idempotency.scope).into(), idempotency.key_hash.as_slice().into()]
    });
    let rows = FIND.run(values.collect(), db).await?;
    rows.into_iter().map(|row| Ok(((row.get("scope")?, row.get("key_hash")?), row))).collect()
}

/// What a key stands for, without storing anything.
pub(super) async fn known(
    readers: &Readers,
    idempotency: &Idempotency,
    now: i64,
) -> Result<Option<Begun>, StoreError> {
    let mut reader = readers.acquire().await?;
    let found = find(std::iter::once(idempotency), &mut reader.db()).await?;
    found.into_values().next().map(|row| standing(idempotency, &row, now)).transpose()
}

/// The answer of a key that was used before.
fn standing(idempotency: &Idempotency, row: &Row, now: i64) -> Result<Begun, StoreError> {
    if row.bytes::<FINGERPRINT_BYTES>("fp")? != idempotency.fp {
        return Ok(Begun::KeyReused);
    }
    let lease_until: Option<i64> = row.get("lease_until")?;
    let queued: bool = row.get("queued")?;
    if let Some(until) = lease_until
        && !queued
    {
        let left = u64::try_from(until - now).unwrap_or(0).max(1_000);
        return Ok(Begun::Running { retry_after: Duration::from_millis(left) });
    }
    replay(row)
}

fn replay(row: &Row) -> Result<Begun, StoreError> {
    let enc_v = row.get("enc_v")?;
    let is_leased = row.get::<Option<i64>>("lease_until")?.is_some();
    Ok(Begun::Replay {
        facts: Box::new(ItemFacts::read(row)?),
        status: Status::of(row.get("state")?, is_leased)?,
        answer: Sealed::read(row, enc_v, ["res_dek_id", "res_nonce", "res_ct"])?,
    })
}

const FIND: Table = Table {
    before: "
SELECT k.scope, k.key_hash, k.fp, i.id, i.tenant, i.kind, i.target, i.reference, i.ord_key, i.prio,
       i.created_at, i.expires_at, i.enc_v, i.res_dek_id, i.res_nonce, i.res_ct, i.state, i.queued,
       l.lease_until
FROM",
    columns: 2,
    after: Sql::Both(
        "asked
JOIN idem_key k ON k.scope = asked.column1 AND k.key_hash = asked.column2
JOIN saf_item i ON i.id = k.item_id
LEFT JOIN saf_lane l ON l.ord_key = i.ord_key AND l.head_seq = i.seq AND l.leased",
    ),
};

const REMEMBER: Table = Table {
    before: "INSERT INTO idem_key (scope, key_hash, fp, item_id, expires_at) SELECT * FROM",
    columns: 5,
    after: Sql::Both("new WHERE column1 IS NOT NULL ON CONFLICT (scope, key_hash) DO NOTHING"),
};

const OURS: Table = Table {
    before: "SELECT k.item_id FROM",
    columns: 3,
    after: Sql::Both(
        "asked JOIN idem_key k ON k.scope = asked.column1 AND k.key_hash = asked.column2
    AND k.item_id = asked.column3",
    ),
};

const FORGET: &str = "DELETE FROM idem_key WHERE scope = $1 AND key_hash = $2";

const REPEATED: &str = "
SELECT i.id, i.tenant, i.kind, i.target, i.reference, i.ord_key, i.prio, i.created_at,
       i.expires_at, i.enc_v, i.res_dek_id, i.res_nonce, i.res_ct, i.state, l.lease_until
FROM saf_item i
LEFT JOIN saf_lane l ON l.ord_key = i.ord_key AND l.head_seq = i.seq AND l.leased
WHERE i.tenant = $1 AND i.target = $2 AND i.reference = $3";

const POINT_AT: &str = "UPDATE idem_key SET item_id = $3 WHERE scope = $1 AND key_hash = $2";

const OPEN_LANES: Table = Table {
    before: "UPDATE saf_lane SET head_seq = head.column2, head_prio = head.column3 FROM",
    columns: 3,
    after: Sql::Both("head WHERE saf_lane.ord_key = head.column1"),
};

const RAISE: Table = Table {
    before: "UPDATE saf_lane SET head_prio = best.column2 FROM",
    columns: 2,
    after: Sql::Both(
        "best WHERE saf_lane.ord_key = best.column1 AND saf_lane.head_prio > best.column2",
    ),
};

const DROP_LANE: &str = "DELETE FROM saf_lane WHERE ord_key = $1";
