//! Rows of sealed bytes in SQLite or PostgreSQL: payments, the lanes that order them, and their
//! keys.
//!
//! A payment is a row before a byte of it leaves. The writers commit what waits as one group; reads
//! go through a small pool beside them. Nothing here can open what it holds: sealing is `relay`'s.
//! Every rule is written once, over [`db`], where the two databases are one.
//!
//! The rule of the lanes: at most one payment of an ordering key is in flight, under a lease with
//! a token of its own; whoever has lost the lease changes nothing any more.

mod begin;
mod breaker_order;
mod claim;
mod clock;
mod control;
mod db;
mod decision;
mod dek;
mod depth;
mod dukpt;
mod epoch;
mod error;
mod key_change;
mod lane;
mod listing;
mod look;
mod memory;
mod operate;
mod order;
mod outcome;
mod pin_counters;
mod place;
mod postgres;
mod prune;
mod read;
mod row;
mod sqlite;
mod unknown;
mod upkeep;
mod writer;

#[cfg(test)]
mod model_test;
#[cfg(test)]
pub(crate) mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

pub use begin::Begun;
pub use breaker_order::{BreakerOrder, BreakerOrders, OrderedState, StandingOrder};
pub use claim::{Claim, Claimed};
pub(crate) use clock::Clock;
pub use control::{Control, StandingControl};
pub use decision::OpenDecision;
pub use dek::{DekClass, DekRow, NewDek};
pub use dukpt::{Advanced, DukptPurpose, DukptUse};
pub use epoch::Epoch;
pub use error::StoreError;
pub use key_change::{
    Decided, Decision, KeyChange, KeyChangeKind, KeyChangeState, KeyImport, NewKeyChange, Proposed,
};
pub use lane::Taker;
pub use listing::{Cell, LIST_MAX, ListFilter, Listed, QueueStats, Shown, Told};
pub use look::Seen;
pub use memory::Alarm;
pub use operate::{Action, Operated, Operation};
pub use outcome::{Ending, KeyAfter, Outcome, Parked, Parking, Settled};
pub use pin_counters::{Counted, GuardScope, Try, TryEnd, Window};
pub use postgres::ServerSeen;
pub use prune::{PruneRule, Pruned};
pub use read::{HistoryEntry, PaymentView};
pub use row::{
    Class, ENC_V, FINGERPRINT_BYTES, HoldReason, Idempotency, ItemFacts, Lease, NewPayment, OrdKey,
    PAYMENT, Priority, REVERSAL, Reversal, Sealed, Status, TakingBack,
};
pub use unknown::{Marked, Reversed};
pub use upkeep::{Expired, Rescued};

use crate::config::{PostgresConfig, QueueConfig, StoreConfig};
use db::Readers;
use writer::Writer;

/// How long a call waits for the database before it answers [`StoreError::Unavailable`].
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long the end of the store takes at most, when the database does not answer.
pub const CLOSED_WITHIN: Duration = Duration::from_secs(15);

/// The store: cheap to clone, closed when its last clone is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    writer: Writer,
    readers: Readers,
    clock: Clock,
    wake: Arc<Notify>,
    /// Held by an operator's look: they take turns.
    looks: Arc<Mutex<()>>,
}

impl Store {
    /// Opens or makes the file and takes its lock, or connects to the server; migrates; frees the
    /// leases of earlier boots.
    ///
    /// # Errors
    /// Names the file and the remedy: another gateway holds it, the directory is missing, the file
    /// system keeps no write-ahead log, the schema is not ours. Likewise for the server.
    pub async fn open(store: &StoreConfig, queue: &QueueConfig) -> Result<Self, StoreError> {
        let clock = if store.postgres.is_some() { Clock::of_server() } else { Clock::system() };
        Self::open_at(store, queue, clock).await
    }

    pub(crate) async fn open_at(
        store: &StoreConfig,
        queue: &QueueConfig,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let wake = Arc::new(Notify::new());
        let (writer, readers) = Writer::start(store, queue, &clock, &wake).await?;
        Ok(Self { writer, readers, clock, wake, looks: Arc::default() })
    }

    /// Looks at the file at `path` without changing anything: `None` when there is none yet.
    ///
    /// # Errors
    /// It is not readable, not a database, or not of this release.
    pub async fn look(path: &Path) -> Result<Option<Seen>, StoreError> {
        error::within(look::look(path)).await
    }

    /// Looks at a server's database without changing anything.
    ///
    /// # Errors
    /// It does not answer, is older than PostgreSQL 15, lacks a setting that durability rests on,
    /// or is not of this release.
    pub async fn look_at_server(config: &PostgresConfig) -> Result<ServerSeen, StoreError> {
        error::within(postgres::look(config)).await
    }

    /// Ends the writer after what it has accepted, folds the write-ahead log into the file and
    /// gives the instance lock back, within [`CLOSED_WITHIN`]. Later calls answer
    /// [`StoreError::Unavailable`].
    pub async fn close(&self) {
        let deadline = Instant::now() + CLOSED_WITHIN;
        // Its tasks go on by themselves: nobody waits for them any more.
        let _ = timeout_at(deadline, self.readers.close()).await;
        self.writer.close(deadline).await;
    }

    /// Epoch milliseconds now, for `created_at` and `expires_at`.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.clock.now()
    }

    /// Notified when a lane may have become claimable: each forwarder should
    /// [`claim`](Self::claim). It wakes all who wait, and leaves nothing for those who come later:
    /// take `notified()` before the claim whose emptiness it is to end.
    #[must_use]
    pub fn wake(&self) -> &Notify {
        &self.wake
    }

    /// Whether the database takes writes: one was made durable within the last seconds, if only to
    /// see whether it can.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.writer.is_healthy()
    }

    /// The database file, where it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.writer.path()
    }

    /// Makes a payment durable, or says what its idempotency key already stands for.
    ///
    /// With [`Begun::Forward`] the caller holds the lease and forwards the payment itself, now. Do
    /// so in a task that outlives the client's connection: a lease that is dropped counts as sent, unless
    /// the payment is marked before it is sent and was not.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when the writer has too much to do: nothing was stored.
    /// [`StoreError::Unavailable`] when the database does not answer: the payment may be stored,
    /// the same key tells.
    pub async fn begin(&self, payment: NewPayment) -> Result<Begun, StoreError> {
        self.writer.ask(begin::Begin(payment)).await
    }

    /// What an idempotency key stands for, when it was used before. Stores nothing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn known(&self, key: &Idempotency) -> Result<Option<Begun>, StoreError> {
        error::within(begin::known(&self.readers, key, self.clock.now())).await
    }

    /// Leases the heads of up to `claim.rows` lanes. Expired payments leave first.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, StoreError> {
        self.writer.ask(claim).await
    }

    /// Records the final answer, empties the sealed payload and the PIN block, keeps the sealed
    /// answer for replays and advances the lane: one transaction. May be repeated.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`]; then repeat until the lease is lost.
    pub async fn complete(&self, held: &Lease, ending: Ending) -> Result<Settled, StoreError> {
        let order = outcome::Complete { held: held.clone(), ending, next: None };
        Ok(self.writer.ask(order).await?.0)
    }

    /// The same, and leases the next of the lane at once, if one is due.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn complete_and_take(
        &self,
        held: &Lease,
        ending: Ending,
        taker: Taker,
    ) -> Result<(Settled, Option<Claimed>), StoreError> {
        self.writer.ask(outcome::Complete { held: held.clone(), ending, next: Some(taker) }).await
    }

    /// Marks a payment as possibly sent, before its first byte: for billers that may not be sent it
    /// twice. `is_absent`: the biller has said that no earlier attempt arrived. A report under this
    /// lease that nothing was sent takes the mark back.
    ///
    /// # Errors
    /// As [`complete`](Self::complete): send nothing.
    pub async fn begin_send(&self, held: &Lease, is_absent: bool) -> Result<Marked, StoreError> {
        self.writer.ask(unknown::BeginSend { held: held.clone(), is_absent }).await
    }

    /// Ends a leased payment as failed and queues what takes it back: one transaction. May be
    /// repeated.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn reverse(&self, held: &Lease, taking: TakingBack) -> Result<Reversed, StoreError> {
        self.writer.ask(unknown::Reverse { held: held.clone(), taking }).await
    }

    /// Takes back a payment of which nothing was sent and that may not wait: failed. A payment that
    /// may have been sent is held instead, and keeps its key.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn withdraw(
        &self,
        held: &Lease,
        code: &str,
        key: KeyAfter,
    ) -> Result<Settled, StoreError> {
        let (held, code) = (held.clone(), code.to_owned());
        self.writer.ask(outcome::Withdraw { held, code, key }).await
    }

    /// Lets a payment wait for its next attempt. From here on its client has been told "pending".
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn release(&self, held: &Lease, parking: Parking) -> Result<Parked, StoreError> {
        self.writer.ask(outcome::Release { held: held.clone(), parking }).await
    }

    /// Leaves a payment, and its lane behind it, to a person. Its PIN block is wiped.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn hold(&self, held: &Lease, reason: HoldReason) -> Result<Settled, StoreError> {
        self.writer.ask(outcome::Hold { held: held.clone(), reason }).await
    }

    /// Payments that were held since the last call because somebody else has written into the database.
    #[must_use]
    pub fn take_alarms(&self) -> Vec<Alarm> {
        self.writer.memory().take_alarms()
    }

    /// Frees the leases of earlier boots, before anything is leased. `in_doubt`: nothing in this database
    /// proves that nothing was sent.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn recover(&self, in_doubt: bool) -> Result<(), StoreError> {
        // In a file of our own the lock proves that earlier owners are dead; the leases of other
        // gateways run out by themselves.
        let all = self.path().is_some();
        while self.writer.ask(upkeep::Rescue { all, in_doubt }).await?.any() {}
        Ok(())
    }

    /// Frees leases that have run out. Call every 5 s.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn rescue(&self) -> Result<Rescued, StoreError> {
        self.writer.ask(upkeep::Rescue { all: false, in_doubt: false }).await
    }

    /// Ends payments that have waited too long. Call every 5 s.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn expire(&self) -> Result<Expired, StoreError> {
        self.writer.ask(upkeep::Expire).await
    }

    /// Deletes one small batch of what retention has released. Call until nothing is left, every
    /// few minutes.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn prune(&self, rule: PruneRule) -> Result<Pruned, StoreError> {
        self.writer.ask(rule).await
    }

    /// Counts an event, unless it is one too many. Counts outlive a kill, not always a power cut.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`]: refuse what was to be counted.
    pub async fn count(
        &self,
        window: Window,
        subject: &[u8],
        rows_max: u32,
    ) -> Result<Counted, StoreError> {
        self.writer.ask(pin_counters::Count { window, subject: subject.to_vec(), rows_max }).await
    }

    /// Takes back what [`count`](Self::count) counted: it did not happen.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn uncount(&self, rule: &'static str, subject: &[u8]) -> Result<(), StoreError> {
        self.writer.ask(pin_counters::Uncount { rule, subject: subject.to_vec() }).await
    }

    /// Takes the right to verify a PIN of this card for this client, and counts it as a failure
    /// until [`end_try`](Self::end_try) says otherwise. `failures` is how many in a row block the
    /// card, and for how long.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`]: verify nothing.
    pub async fn begin_try(
        &self,
        pan: [u8; 16],
        client: &str,
        of_client: Window,
        failures: (u32, Duration),
        rows_max: u32,
    ) -> Result<Try, StoreError> {
        let (failures_max, block) = failures;
        let client = client.as_bytes().to_vec();
        let begin =
            pin_counters::BeginTry { pan, client, of_client, failures_max, block, rows_max };
        self.writer.ask(begin).await
    }

    /// Says that a try was no failure.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`]: it stays one.
    pub async fn end_try(&self, pan: [u8; 16], number: i64, end: TryEnd) -> Result<(), StoreError> {
        self.writer.ask(pin_counters::EndTry { pan, number, end }).await
    }

    /// Takes a key out of use until `expires_at` (epoch milliseconds).
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn quarantine(
        &self,
        scope: GuardScope,
        key_label: &str,
        expires_at: i64,
    ) -> Result<(), StoreError> {
        let key_label = key_label.to_owned();
        self.writer.ask(pin_counters::Quarantine { scope, key_label, expires_at }).await
    }

    /// Keys out of use, each with its end.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn quarantined(&self) -> Result<Vec<(GuardScope, String, i64)>, StoreError> {
        error::within(pin_counters::quarantined(&self.readers, self.clock.now())).await
    }

    /// Whether a KSN was not used yet. Only [`advance`](Self::advance) decides.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn is_new(&self, used: &DukptUse) -> Result<bool, StoreError> {
        error::within(dukpt::is_new(&self.readers, used)).await
    }

    /// Records the use of a KSN that passed its check, if its counter grew.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`]: nothing may be answered for it.
    pub async fn advance(&self, used: DukptUse, devices_max: u32) -> Result<Advanced, StoreError> {
        self.writer.ask(dukpt::Advance { used, devices_max }).await
    }

    /// One payment of one client.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn payment(&self, id: Uuid, tenant: &str) -> Result<Option<PaymentView>, StoreError> {
        error::within(read::payment(&self.readers, id, tenant)).await
    }

    /// Where a payment stands, whoever's it is; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn status(&self, id: Uuid) -> Result<Option<Status>, StoreError> {
        error::within(read::status(&self.readers, id)).await
    }

    /// What is stored of a payment that has not ended: its facts and its sealed payload.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn payload(&self, id: Uuid) -> Result<Option<(ItemFacts, Sealed)>, StoreError> {
        error::within(read::payload(&self.readers, id)).await
    }

    /// Stores a wrapped data key; its number is what sealed rows refer to.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn insert_dek(&self, dek: NewDek) -> Result<i64, StoreError> {
        self.writer.ask(dek).await
    }

    /// One data key, unless it is unknown or destroyed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn dek(&self, dek_id: i64) -> Result<Option<DekRow>, StoreError> {
        error::within(dek::one(&self.readers, dek_id)).await
    }

    /// The data keys of a class that are not destroyed, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn deks(&self, class: DekClass) -> Result<Vec<DekRow>, StoreError> {
        error::within(dek::of_class(&self.readers, class)).await
    }

    /// Destroys the data keys of a class that sealed last before `before` and that no sealed row
    /// refers to any more. Gives their numbers.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn destroy_deks(&self, class: DekClass, before: i64) -> Result<Vec<i64>, StoreError> {
        self.writer.ask(dek::Destroy { class, before }).await
    }

    /// Records a change of a key: proposed, or approved already when it must not wait.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn propose_key_change(&self, change: NewKeyChange) -> Result<Proposed, StoreError> {
        self.writer.ask(change).await
    }

    /// Records an officer's decision on a proposal, if it is his to make.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn decide_key_change(
        &self,
        number: i64,
        decision: Decision,
        officer: &str,
        reason: &str,
    ) -> Result<Decided, StoreError> {
        let (officer, reason) = (officer.to_owned(), reason.to_owned());
        self.writer.ask(key_change::Decide { number, decision, officer, reason }).await
    }

    /// Gives an approved change that is made nowhere yet its number in the registers: one that is above
    /// `above` and above all numbers of others. One that it has already and that is so stays.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn number_key_change(&self, number: i64, above: u64) -> Result<u64, StoreError> {
        self.writer.ask(key_change::NumberKeyChange { number, above }).await
    }

    /// Says that an approved change is in force on a link and on record, while others lack it.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn note_key_change_made(&self, number: i64) -> Result<(), StoreError> {
        self.writer.ask(key_change::NoteKeyChangeMade { number }).await
    }

    /// Ends an approved change: applied, or refused in the worker's words. Wipes its key block.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn end_key_change(
        &self,
        number: i64,
        refused: Option<String>,
    ) -> Result<KeyChange, StoreError> {
        self.writer.ask(key_change::EndKeyChange { number, refused }).await
    }

    /// Ends the proposals that nobody decided on in time, and gives them.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn expire_key_changes(&self) -> Result<Vec<KeyChange>, StoreError> {
        self.writer.ask(key_change::ExpireKeyChanges).await
    }

    /// The approved changes in the order in which they are to be made, at most 1,000: what is in force
    /// somewhere by its number, then compromises, then the others as they were approved.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn approved_key_changes(&self) -> Result<Vec<KeyChange>, StoreError> {
        error::within(key_change::approved(&self.readers)).await
    }

    /// One change.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn key_change(&self, number: i64) -> Result<Option<KeyChange>, StoreError> {
        error::within(key_change::one(&self.readers, number)).await
    }

    /// The latest changes, the last first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn key_changes(&self, rows: u32) -> Result<Vec<KeyChange>, StoreError> {
        error::within(key_change::latest(&self.readers, rows)).await
    }

    /// What operators have ordered breakers to be.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn breaker_orders(&self) -> Result<BreakerOrders, StoreError> {
        error::within(breaker_order::all(&self.readers)).await
    }

    /// Records what an operator has ordered a breaker to be, in the place of an earlier order.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn order_breaker(&self, order: BreakerOrder) -> Result<(), StoreError> {
        self.writer.ask(breaker_order::SetOrder(order)).await
    }

    /// Ends a breaker's order. Whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn clear_breaker_order(&self, name: &str) -> Result<bool, StoreError> {
        self.writer.ask(breaker_order::ClearOrder { name: name.to_owned() }).await
    }
}

/// Tries a few times, where `again` lets an error be one of a moment.
pub(crate) async fn insist<T, E, F: Future<Output = Result<T, E>>>(
    act: impl Fn() -> F,
    again: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for wait_ms in [50, 100, 200] {
        match act().await {
            Err(error) if again(&error) => {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            }
            outcome => return outcome,
        }
    }
    act().await
}
