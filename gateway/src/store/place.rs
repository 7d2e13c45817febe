//! Where a new payment is put: its lane, its number, its row.
//!
//! A lane is locked before anything in it has a number: whoever comes later is behind. A lane that is
//! new is nobody else's, and gets its head's number with it.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::clock::ms;
use super::db::{Db, Row, Sql, Table, Value, query};
use super::writer::Batch;
use super::{ItemFacts, NewPayment, OrdKey, Sealed, StoreError};

/// The numbers of payments to come. In a file, which nobody else writes, they are known; a server gives
/// them out, that of a new lane's head with the lane.
pub(super) struct Numbers(Option<i64>);

impl Numbers {
    pub(super) fn at(&self, place: usize) -> Option<i64> {
        self.0.map(|last| last + 1 + place as i64)
    }
}

pub(super) async fn numbers(db: &mut Db<'_>) -> Result<Numbers, StoreError> {
    Ok(Numbers(match db {
        Db::Sqlite(_) => {
            let last = query(LAST_NUMBER).optional(db).await?;
            Some(last.as_ref().map_or(Ok(0), Row::value)?)
        }
        Db::Postgres(_) => None,
    }))
}

/// A lane as a round finds it and leaves it.
pub(super) struct Lane<'a> {
    /// To whom it is leased, when nothing is in it yet.
    pub(super) first: &'a NewPayment,
    /// The number of its first payment, when the lane is new.
    pub(super) head: Option<i64>,
    pub(super) token: i64,
    pub(super) is_free: bool,
    /// Whoever comes now is not the first.
    pub(super) behind: bool,
    /// The best that waits in it.
    pub(super) prio: i64,
}

impl Lane<'_> {
    /// The columns of [`ADD_LANES`].
    fn row(&self, ord_key: OrdKey, head: Option<i64>, batch: &Batch) -> [Value; 9] {
        let first = self.first;
        [
            ord_key.0.as_slice().into(),
            (&first.facts.target).into(),
            head.unwrap_or(FREE).into(),
            first.facts.prio.rank().into(),
            true.into(),
            (&first.owner).into(),
            self.token.into(),
            batch.now.into(),
            (batch.now + ms(first.lease)).into(),
        ]
    }
}

/// Locks the lanes, before anything in them has a place: whoever comes later is behind.
pub(super) async fn lock(
    lanes: &mut BTreeMap<OrdKey, Lane<'_>>,
    db: &mut Db<'_>,
    batch: &Batch,
) -> Result<(), StoreError> {
    let new = lanes.iter().flat_map(|(ord_key, lane)| lane.row(*ord_key, lane.head, batch));
    let new: Vec<Value> = new.collect();
    let add = match db {
        Db::Sqlite(_) => &ADD_LANES,
        Db::Postgres(_) => &ADD_NUMBERED_LANES,
    };
    for row in add.run(new, db).await? {
        if let Some(lane) = lanes.get_mut(&OrdKey(row.bytes("ord_key")?)) {
            (lane.is_free, lane.head) = (true, Some(row.get("head_seq")?));
        }
    }
    let others = lanes.iter().filter(|(_, lane)| !lane.is_free);
    let others: Vec<Value> =
        others.flat_map(|(ord_key, lane)| lane.row(*ord_key, None, batch)).collect();
    for row in LOCK_LANES.run(others, db).await? {
        if let Some(lane) = lanes.get_mut(&OrdKey(row.bytes("ord_key")?)) {
            // It may have gone in this moment: then it is new, and has no number yet.
            (lane.is_free, lane.head) = (row.get::<i64>("head_seq")? == FREE, None);
        }
    }
    Ok(())
}

/// What an item's row says beside its facts.
pub(super) struct Beside<'a> {
    pub(super) queued: bool,
    pub(super) needs_pin: bool,
    pub(super) payload: Option<&'a Sealed>,
    pub(super) pin: Option<&'a Sealed>,
    pub(super) send_mark: Option<i64>,
    /// The payment that it takes back.
    pub(super) reverses: Option<Uuid>,
    /// Its place, where it is known already.
    pub(super) seq: Option<i64>,
}

/// The columns of [`insert`].
pub(super) fn item(facts: &ItemFacts, beside: Beside<'_>, now: i64) -> [Value; ITEM_COLUMNS] {
    let Beside { queued, needs_pin, payload, pin, send_mark, reverses, seq } = beside;
    [
        facts.id.into(),
        (&facts.tenant).into(),
        (&facts.kind).into(),
        (&facts.target).into(),
        (&facts.reference).into(),
        facts.ord_key.0.as_slice().into(),
        facts.prio.rank().into(),
        queued.into(),
        needs_pin.into(),
        facts.created_at.into(),
        facts.expires_at.into(),
        now.into(),
        super::ENC_V.into(),
        payload.map(|sealed| sealed.dek_id).into(),
        payload.map(|sealed| sealed.nonce.as_slice()).into(),
        payload.map(|sealed| sealed.bytes.as_slice()).into(),
        pin.map(|sealed| sealed.dek_id).into(),
        pin.map(|sealed| sealed.nonce.as_slice()).into(),
        pin.map(|sealed| sealed.bytes.as_slice()).into(),
        send_mark.into(),
        reverses.into(),
        seq.into(),
    ]
}

/// The same of a new payment, which waits `behind` others or goes at once.
pub(super) fn payment(
    payment: &NewPayment,
    behind: bool,
    seq: Option<i64>,
    now: i64,
) -> [Value; ITEM_COLUMNS] {
    let beside = Beside {
        queued: behind,
        needs_pin: payment.needs_pin,
        payload: payment.payload.as_ref(),
        // A PIN block that need not wait is not stored at all.
        pin: payment.pin.as_ref().filter(|_| behind),
        send_mark: payment.is_marked.then_some(UNSENT),
        reverses: None,
        seq,
    };
    item(&payment.facts, beside, now)
}

/// Stores items; one without a number gets the next.
pub(super) fn insert(db: &Db<'_>) -> &'static Table {
    match db {
        Db::Sqlite(_) => &INSERT,
        Db::Postgres(_) => &INSERT_NUMBERED,
    }
}

const ITEM_COLUMNS: usize = 22;

/// `send_mark` of what is marked before its first byte and was not sent yet.
pub(super) const UNSENT: i64 = 0;

/// `send_mark` of what an old copy of the database says is open.
pub(super) const BY_ROLLBACK: i64 = -1;

/// The head of a lane that has none yet.
const FREE: i64 = 0;

/// The last number that a file has given out.
const LAST_NUMBER: &str = "SELECT seq FROM sqlite_sequence WHERE name = 'saf_item'";

macro_rules! add_lanes {
    ($columns:literal, $conflict:literal) => {
        Table {
            before: concat!(
                "
INSERT INTO saf_lane (ord_key, target, head_seq, head_prio, leased, lease_owner, lease_token,
                      leased_at, lease_until)
SELECT ",
                $columns,
                " FROM"
            ),
            columns: 9,
            after: Sql::Both(concat!(
                "new WHERE column1 IS NOT NULL ON CONFLICT (ord_key) ",
                $conflict
            )),
        }
    };
}

static ADD_LANES: Table = add_lanes!("*", "DO NOTHING RETURNING ord_key, head_seq");

/// A new lane is nobody else's: its head may have its number before the lane is locked.
static ADD_NUMBERED_LANES: Table = add_lanes!(
    "column1, column2, nextval('saf_item_seq_seq'), column4, column5, column6, column7, column8,
       column9",
    "DO NOTHING RETURNING ord_key, head_seq"
);

const LOCK_LANES: Table =
    add_lanes!("*", "DO UPDATE SET target = saf_lane.target RETURNING ord_key, head_seq");

macro_rules! insert_items {
    ($overriding:literal) => {
        Table {
            before: concat!(
                "
INSERT INTO saf_item (id, tenant, kind, target, reference, ord_key, prio, queued, needs_pin,
                      created_at, expires_at, updated_at, enc_v, dek_id, nonce, ct,
                      pin_dek_id, pin_nonce, pin_ct, send_mark, reverses, seq)
",
                $overriding,
                " FROM"
            ),
            columns: ITEM_COLUMNS,
            after: Sql::Both(
                "new WHERE column1 IS NOT NULL
ON CONFLICT (tenant, target, reference) DO NOTHING RETURNING seq, id",
            ),
        }
    };
}

static INSERT: Table = insert_items!("SELECT *");

static INSERT_NUMBERED: Table = insert_items!(
    "OVERRIDING SYSTEM VALUE
SELECT column1, column2, column3, column4, column5, column6, column7, column8, column9, column10,
       column11, column12, column13, column14, column15, column16, column17, column18, column19,
       column20, column21, coalesce(column22, nextval('saf_item_seq_seq'))"
);
