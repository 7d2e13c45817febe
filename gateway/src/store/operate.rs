//! An operator's hand on one payment: hold, release, retry, cancel, settle.
//!
//! Nobody touches what is being sent. What may have been made is taken back by a reversal alone, and moves only
//! when two operators say the same (`decision`). A lane keeps its order through all of it: what comes
//! back has its old place.

use uuid::Uuid;

use super::db::{Db, Row, Sql, locking, query};
use super::decision::{self, OpenDecision, Weighed};
use super::lane::{self, Settling};
use super::order::Order;
use super::unknown;
use super::writer::Batch;
use super::{Ending, HoldReason, OrdKey, REVERSAL, Status, Store, StoreError, TakingBack};

/// One operator's word on one payment.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The payment.
    pub id: Uuid,
    /// What is to become of it.
    pub action: Action,
    /// The operator.
    pub actor: String,
    /// In the operator's words.
    pub reason: String,
}

/// What an operator wants done.
#[derive(Debug, Clone)]
pub enum Action {
    /// Leaves a waiting payment, and its lane behind it, to a person. Its PIN block is wiped.
    Hold,
    /// Lets a held payment wait again.
    Release,
    /// Makes a payment due now. A held one has all its attempts before it again, and so has one that
    /// failed because they were used up.
    Retry,
    /// Ends a payment of which nothing was sent. One that may have been made is taken back, where its
    /// biller does so.
    Cancel(Option<Box<TakingBack>>),
    /// Ends a held payment that may have been made, as a person found out at the biller.
    Settle(Ending),
    /// Takes back what the same operator has proposed.
    Withdraw,
}

impl Action {
    /// `hold` and so on, as in the API and in the database.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Retry => "retry",
            Self::Cancel(_) => "cancel",
            Self::Settle(_) => "settle",
            Self::Withdraw => "withdraw",
        }
    }

    /// What a payment's history calls it, and with which code.
    fn noted(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Hold => ("held", Some(HoldReason::Operator.name())),
            Self::Release => ("released", None),
            Self::Retry => ("retried", None),
            Self::Cancel(_) => ("cancelled", None),
            Self::Settle(ending) => (ending.outcome.name(), Some(&ending.code)),
            Self::Withdraw => ("withdrawn", None),
        }
    }
}

/// What an operator's word has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operated {
    /// It is done, and durable.
    Done {
        /// How the payment is now.
        status: Status,
        /// Its biller.
        target: String,
        /// The operator who proposed it, where it took two.
        proposer: Option<String>,
    },
    /// It may have been made: this waits for a second operator.
    Proposed(OpenDecision),
    /// This operator has proposed it already, or would take back another one's proposal.
    NotBy(OpenDecision),
    /// Something else is proposed. That is made or taken back first.
    Taken(OpenDecision),
    /// It may have been made, and its biller takes nothing back, or what is stored does not tell what.
    NeedsReversal,
    /// It is being sent now.
    InFlight,
    /// It is not in a state for this. Says why, and what to do.
    Refused(&'static str),
    /// No such payment.
    Unknown,
}

impl Store {
    /// Does what an operator wants done with a payment, or says why not.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn operate(&self, operation: Operation) -> Result<Operated, StoreError> {
        self.writer.ask(operation).await
    }
}

impl Order for Operation {
    type Answer = Operated;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Operated, StoreError> {
        let Some(row) = query(FIND).bind(self.id).optional(db).await? else {
            return Ok(Operated::Unknown);
        };
        let ord_key = OrdKey(row.bytes("ord_key")?);
        if row.get("dead")? {
            // It may be the only one of its lane; an empty one goes when it is settled.
            query(OPEN_LANE).bind(row.get::<i64>("seq")?).execute(db).await?;
        }
        let lane = query(LOCK_LANE).bind(ord_key.0.as_slice()).optional(db).await?;
        let has_lane = lane.is_some();
        let operated = match Locked::read(self.id, lane, db).await? {
            Some(item) => self.decide(&item, db, batch).await?,
            None => Operated::Unknown,
        };
        // What is not locked is not touched: a lane may have been made since.
        if has_lane {
            lane::settle(db, batch, ord_key, Settling::KeepLease).await?;
        }
        Ok(operated)
    }
}

impl Operation {
    async fn decide(
        &self,
        item: &Locked,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<Operated, StoreError> {
        if let Action::Withdraw = self.action {
            return self.withdraw(item, db, batch).await;
        }
        if item.in_flight || item.has_just_moved {
            return Ok(Operated::InFlight);
        }
        if let Some(why) = item.refuses(&self.action, batch.now) {
            return Ok(Operated::Refused(why));
        }
        let mut proposer = None;
        if item.in_doubt {
            match self.action {
                Action::Cancel(None) => return Ok(Operated::NeedsReversal),
                // Its row holds nothing that a reversal could stand behind.
                Action::Cancel(Some(_)) if item.state == FAILED => {
                    return Ok(Operated::NeedsReversal);
                }
                // It is sent again anyhow.
                Action::Retry if item.is_reversal && item.state == OPEN => {}
                Action::Cancel(Some(_)) if !unknown::has_room(&item.target, batch) => {
                    return Ok(Operated::Refused("the queue has no room for its reversal: wait"));
                }
                Action::Hold | Action::Withdraw => {}
                Action::Cancel(Some(_)) | Action::Release | Action::Retry | Action::Settle(_) => {
                    match decision::weigh(db, batch, item.seq, self).await? {
                        Weighed::Second { proposer: first } => proposer = Some(first),
                        Weighed::First(open) => return Ok(Operated::Proposed(open)),
                        Weighed::Own(open) => return Ok(Operated::NotBy(open)),
                        Weighed::Other(open) => return Ok(Operated::Taken(open)),
                    }
                }
            }
        }
        let status = self.act(item, db, batch).await?;
        self.note(item, proposer.as_deref(), db, batch).await?;
        decision::end(db, item.seq).await?;
        Ok(Operated::Done { status, target: item.target.clone(), proposer })
    }

    async fn act(
        &self,
        item: &Locked,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<Status, StoreError> {
        match &self.action {
            Action::Hold => {
                lane::hold(db, batch, item.seq, HoldReason::Operator).await?;
                Ok(Status::Held)
            }
            Action::Release => {
                item.reopen(false, db, batch).await?;
                Ok(Status::Pending)
            }
            Action::Retry => {
                if item.state != OPEN {
                    item.reopen(true, db, batch).await?;
                }
                query(DUE_NOW).bind(item.seq).execute(db).await?;
                batch.wake = true;
                Ok(Status::Pending)
            }
            Action::Cancel(Some(taking)) if item.in_doubt => {
                unknown::take_back(item.seq, self.id, taking, db, batch).await?;
                if item.state != OPEN {
                    batch.depth.add(&item.target, 1);
                }
                Ok(Status::Failed)
            }
            Action::Cancel(_) => {
                item.end(CANCELLED, "cancelled", None, db, batch).await?;
                Ok(Status::Cancelled)
            }
            Action::Settle(ending) => {
                let state = ending.outcome.state();
                item.end(state, &ending.code, Some(ending), db, batch).await?;
                Status::of(state, false)
            }
            Action::Withdraw => Status::of(item.state, item.in_flight),
        }
    }

    /// A proposal is its proposer's to take back.
    async fn withdraw(
        &self,
        item: &Locked,
        db: &mut Db<'_>,
        batch: &Batch,
    ) -> Result<Operated, StoreError> {
        let open = decision::locked(db, item.seq).await?;
        let Some(open) = open.filter(|open| open.expires_at > batch.now) else {
            return Ok(Operated::Refused("nothing is proposed for it"));
        };
        if open.actor != self.actor {
            return Ok(Operated::NotBy(open));
        }
        decision::end(db, item.seq).await?;
        let status = Status::of(item.state, item.in_flight)?;
        Ok(Operated::Done { status, target: item.target.clone(), proposer: Some(open.actor) })
    }

    /// Who, whose proposal, and why stand in the payment's history.
    async fn note(
        &self,
        item: &Locked,
        proposer: Option<&str>,
        db: &mut Db<'_>,
        batch: &Batch,
    ) -> Result<(), StoreError> {
        let (what, code) = self.action.noted();
        query(NOTE)
            .bind(item.seq)
            .bind(batch.now)
            .bind(what)
            .bind(code)
            .bind(&self.actor)
            .bind(proposer)
            .bind(&self.reason)
            .execute(db)
            .await?;
        Ok(())
    }
}

/// A payment whose lane and row are locked.
struct Locked {
    seq: i64,
    target: String,
    state: i64,
    hold_reason: Option<String>,
    /// It is leased.
    in_flight: bool,
    /// It failed with its attempts used up, and another of its lane is leased: it has no place there
    /// now.
    lane_in_flight: bool,
    /// It was given up or taken back in this moment: its lane was not there to be locked.
    has_just_moved: bool,
    /// It may have been made; of a reversal: the payment that it takes back.
    in_doubt: bool,
    is_reversal: bool,
    /// Whether what is stored is enough to go on with it.
    workable: bool,
    /// It failed because its attempts were used up, and what it takes to try again is kept.
    dead: bool,
    expires_at: i64,
}

impl Locked {
    async fn read(
        id: Uuid,
        lane: Option<Row>,
        db: &mut Db<'_>,
    ) -> Result<Option<Self>, StoreError> {
        let Some(row) = query(LOCK_ITEM).bind(id).optional(db).await? else { return Ok(None) };
        let (seq, dead, state) = (row.get("seq")?, row.get("dead")?, row.get("state")?);
        let has_just_moved = lane.is_none() && (dead || state == OPEN || state == HELD);
        let leased_seq = match lane {
            Some(lane) if lane.get("leased")? => Some(lane.get::<i64>("head_seq")?),
            Some(_) | None => None,
        };
        let hold_reason: Option<String> = row.get("hold_reason")?;
        let is_reversal = row.get::<String>("kind")? == REVERSAL;
        let is_ambiguous = hold_reason.as_deref() == Some(HoldReason::Ambiguous.name());
        Ok(Some(Self {
            seq,
            target: row.get("target")?,
            state,
            in_flight: leased_seq == Some(seq),
            lane_in_flight: leased_seq.is_some(),
            has_just_moved,
            in_doubt: is_ambiguous || is_reversal || row.get("sent_unknown")?,
            is_reversal,
            hold_reason,
            workable: row.get("workable")?,
            dead,
            expires_at: row.get("expires_at")?,
        }))
    }

    /// Why this may not be done, and what to do.
    fn refuses(&self, action: &Action, now: i64) -> Option<&'static str> {
        match (action, self.state) {
            (Action::Hold, OPEN) | (Action::Cancel(_), OPEN | HELD) => None,
            (Action::Retry, OPEN) => None,
            (Action::Hold, HELD) => Some("it is held already"),
            (Action::Release | Action::Retry, HELD) => self.keeps_back(now),
            (Action::Release, OPEN) => Some("it is not held: it waits"),
            (Action::Settle(_), HELD) if self.in_doubt => None,
            (Action::Settle(_), FAILED) if self.dead && self.in_doubt => None,
            (Action::Settle(_), HELD) => Some("nothing of it was sent: release it or cancel it"),
            (Action::Settle(_), OPEN) => Some("it still waits: hold it first"),
            (Action::Retry, FAILED) if self.dead => self.keeps_dead(now),
            (Action::Cancel(_), FAILED) if self.dead => None,
            (Action::Retry, FAILED) => Some(
                "it failed for good: only one whose attempts are used up, and of which nothing was \
                 sent, is tried again",
            ),
            (
                Action::Hold
                | Action::Release
                | Action::Retry
                | Action::Cancel(_)
                | Action::Settle(_)
                | Action::Withdraw,
                _,
            ) => Some("it has ended"),
        }
    }

    /// Why a held payment may not wait again.
    fn keeps_back(&self, now: i64) -> Option<&'static str> {
        let changed = matches!(self.hold_reason.as_deref(), Some("tampered" | "rollback"));
        match (changed, self.workable, self.expires_at > now, self.in_doubt) {
            (true, .., false) => Some("its row was changed from outside: cancel it"),
            (true, .., true) => Some("its row was changed from outside: settle it"),
            (_, false, _, false) => {
                Some("it cannot be sent again (its PIN block or its payload is gone): cancel it")
            }
            (_, false, _, true) => Some(
                "it cannot be sent again (its PIN block or its payload is gone): find out at the \
                 biller and settle it",
            ),
            (_, _, false, false) => Some("its time is over: cancel it"),
            (_, _, false, true) => Some("its time is over: find out at the biller and settle it"),
            (false, true, true, _) => None,
        }
    }

    /// Why a dead letter may not wait again now.
    fn keeps_dead(&self, now: i64) -> Option<&'static str> {
        if self.expires_at <= now {
            return Some("its time is over: the client has to pay anew");
        }
        self.lane_in_flight.then_some("another payment of its bill is being sent: try again then")
    }

    /// Lets it wait again in its old place. `anew`: with all its attempts before it.
    async fn reopen(
        &self,
        anew: bool,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        query(REOPEN)
            .bind(self.seq)
            .bind(batch.now)
            .bind(self.in_doubt)
            .bind(anew)
            .execute(db)
            .await?;
        if self.dead {
            query(TAKE_BACK).bind(self.seq).execute(db).await?;
            query(FORGET).bind(self.seq).execute(db).await?;
        }
        batch.depth.add(&self.target, 1);
        Ok(())
    }

    /// Makes it terminal: nothing of its payload is left.
    async fn end(
        &self,
        state: i64,
        code: &str,
        ending: Option<&Ending>,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        let answer = ending.and_then(|ending| ending.answer.as_ref());
        query(END)
            .bind(self.seq)
            .bind(state)
            .bind(code)
            .bind(batch.now)
            .bind(answer.map(|sealed| sealed.dek_id))
            .bind(answer.map(|sealed| sealed.nonce.as_slice()))
            .bind(answer.map(|sealed| sealed.bytes.as_slice()))
            .execute(db)
            .await?;
        query(FORGET).bind(self.seq).execute(db).await?;
        if self.state == OPEN {
            batch.depth.add(&self.target, -1);
        }
        Ok(())
    }
}

/// Keeps what it takes to send a payment again whose attempts are used up. Call before it ends. A
/// payment that needs its PIN block is not kept: the block is gone.
pub(super) async fn keep_dead_letter(db: &mut Db<'_>, seq: i64) -> Result<(), StoreError> {
    query(KEEP).bind(seq).execute(db).await?;
    Ok(())
}

const OPEN: i64 = Status::Pending.state();
const HELD: i64 = Status::Held.state();
const FAILED: i64 = Status::Failed.state();
const CANCELLED: i64 = Status::Cancelled.state();

const FIND: &str = "
SELECT i.seq, i.ord_key,
       EXISTS (SELECT 1 FROM saf_dead_letter d WHERE d.item_seq = i.seq) AS dead
FROM saf_item i WHERE i.id = $1";

/// It is given its head when it is settled. One that is there is locked.
const OPEN_LANE: &str = "
INSERT INTO saf_lane (ord_key, target, head_seq, head_prio)
SELECT ord_key, target, seq, prio FROM saf_item WHERE seq = $1
ON CONFLICT (ord_key) DO UPDATE SET target = saf_lane.target";

const LOCK_LANE: Sql = locking!("SELECT leased, head_seq FROM saf_lane WHERE ord_key = $1");

const LOCK_ITEM: Sql = locking!(
    concat!(
        "
SELECT i.seq, i.kind, i.target, i.state, i.hold_reason, i.sent_unknown, i.expires_at,",
        lane::workable!(),
        ",
       EXISTS (SELECT 1 FROM saf_dead_letter d WHERE d.item_seq = i.seq) AS dead
FROM saf_item i WHERE i.id = $1"
    ),
    "FOR UPDATE OF i"
);

const REOPEN: &str = "
UPDATE saf_item
SET state = 0, hold_reason = NULL, terminal_at = NULL, updated_at = $2, sent_unknown = $3,
    attempts = CASE WHEN $4 THEN 0 ELSE attempts END,
    abandoned = CASE WHEN $4 THEN 0 ELSE abandoned END
WHERE seq = $1";

const DUE_NOW: &str = "UPDATE saf_lane SET next_at = 0 WHERE head_seq = $1 AND NOT leased
  AND ord_key = (SELECT ord_key FROM saf_item WHERE seq = $1)";

const END: &str = "
UPDATE saf_item
SET state = $2, hold_reason = NULL, last_code = $3, updated_at = $4, terminal_at = $4,
    dek_id = NULL, nonce = NULL, ct = NULL, pin_dek_id = NULL, pin_nonce = NULL, pin_ct = NULL,
    res_dek_id = $5, res_nonce = $6, res_ct = $7
WHERE seq = $1";

const KEEP: &str = "
INSERT INTO saf_dead_letter (item_seq, dek_id, nonce, ct)
SELECT seq, dek_id, nonce, ct FROM saf_item WHERE seq = $1 AND ct IS NOT NULL AND NOT needs_pin
ON CONFLICT (item_seq) DO NOTHING";

const TAKE_BACK: &str = "
UPDATE saf_item SET dek_id = d.dek_id, nonce = d.nonce, ct = d.ct
FROM saf_dead_letter d WHERE saf_item.seq = $1 AND d.item_seq = saf_item.seq";

const FORGET: &str = "DELETE FROM saf_dead_letter WHERE item_seq = $1";

/// Twice the bound of what the gateway notes itself: a person's doing finds room.
const NOTE: &str = "
INSERT INTO saf_attempt (item_seq, n, ended_at, what, code, actor, proposer, reason)
SELECT i.seq, 1 + coalesce((SELECT max(n) FROM saf_attempt WHERE item_seq = i.seq), 0),
       $2, $3, $4, $5, $6, $7
FROM saf_item i
WHERE i.seq = $1
  AND coalesce((SELECT max(n) FROM saf_attempt WHERE item_seq = i.seq), 0) < 500";
