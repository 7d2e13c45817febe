//! Now, later or never: forwarding, the queue, idempotency, sealing.
//!
//! A payment is durable before a byte of it leaves, and leaves again only as the same bytes under
//! the same reference.

pub mod biller; // one biller and the form of the exchange
mod forwarder; // a payment's later ways
pub mod idempotency; // what a client's key stands for
pub mod keys; // the queue's data keys
pub mod operate; // the operators' hand on the queue
pub mod pay; // a payment's first way
pub mod payment; // order -> sealed row -> order
mod ring; // the data keys at hand
pub mod rollback; // an old copy of the database
pub mod sealing; // bytes bound to their row
pub mod policy; // what may wait, be repeated or be taken back
mod unheard; // what nobody waits for any more
mod upkeep; // lost leases, ends of lives, figures

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use compliance::{Event, EventType, Label, Outcome, Reason, Resource, ResourceType, Service};
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::ClearDataKey;
use hsm_adapter::worker::chain;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::keys::{DataKey, DataKeySource, KeySourceError, Keys};
use self::payment::Payments;
use self::rollback::{Rollback, RollbackError};
use crate::audit::AuditLog;
use crate::config::QueueConfig;
use crate::guard::Guard;
use crate::links::token::{Hsm, HsmError};
use crate::store::{Alarm, HoldReason, PaymentView, Status, Store, StoreError};

/// What makes, stores and forwards payments.
#[derive(Debug)]
pub struct Relay {
    hsm: Arc<Hsm>,
    guard: Arc<Guard>,
    store: Store,
    keys: Keys,
    payments: Payments,
    rollback: Rollback,
    queue: QueueConfig,
    audit: AuditLog,
    tasks: TaskTracker,
}

impl Relay {
    /// Compares the database with what this gateway has last seen of it. `owner` names this process in
    /// leases.
    ///
    /// # Errors
    /// [`RollbackError`].
    pub async fn start(
        hsm: Arc<Hsm>,
        guard: Arc<Guard>,
        store: Store,
        keys: Keys,
        queue: QueueConfig,
        audit: AuditLog,
        owner: String,
    ) -> Result<Self, RollbackError> {
        let payments = Payments::new(store.clone(), keys.clone(), queue.clone(), owner);
        let remembered = i64::try_from(queue.retention().as_millis()).unwrap_or(i64::MAX);
        let rollback = Rollback::start(store.clone(), audit.clone(), remembered).await?;
        store.recover(rollback.waits()).await?;
        let tasks = TaskTracker::new();
        Ok(Self { hsm, guard, store, keys, payments, rollback, queue, audit, tasks })
    }

    /// One payment of one client.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn payment(&self, id: Uuid, client: &str) -> Result<Option<PaymentView>, StoreError> {
        self.store.payment(id, client).await
    }

    /// Whether payments can be made durable now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.keys.ready() && !self.rollback.waits()
    }

    /// Whether the database is the one that this gateway knows.
    #[must_use]
    pub fn rollback(&self) -> &Rollback {
        &self.rollback
    }

    /// Whether the database takes writes now.
    #[must_use]
    pub fn is_store_healthy(&self) -> bool {
        self.store.is_healthy()
    }

    /// Waits for payments whose clients have gone and whose outcome is still to be recorded.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        // What was done since the last look must not be undone by a copy from between.
        self.look_at_epoch().await;
    }

    /// Records the payments that somebody else's hand in the database had to be held for.
    async fn tell_alarms(&self) {
        if !self.audit.is_writable() {
            return;
        }
        for Alarm { id, target, reason } in self.store.take_alarms() {
            let reason = match reason == HoldReason::RolledBack {
                true => Reason::RolledBack,
                false => Reason::Tampered,
            };
            let held = (EventType::QueueHold, Outcome::Error, Some(reason));
            self.payment_event(id, &target, held).await;
        }
    }

    /// One more look at the database's epoch: whether it was compared.
    async fn look_at_epoch(&self) -> bool {
        let looked = self.rollback.look().await;
        if let Err(error) = &looked {
            tracing::error!(
                error = chain(error),
                "comparing the database with what was seen of it"
            );
        }
        looked.is_ok()
    }

    /// A payment of the queue reached a status that no client's request tells of.
    async fn queue_event(&self, id: Uuid, biller: &str, status: Status) {
        let (kind, outcome, reason) = match status {
            Status::Success => (EventType::QueueDeliver, Outcome::Success, None),
            Status::Failed => {
                (EventType::QueueDeliver, Outcome::Failure, Some(Reason::BackendRefused))
            }
            Status::Expired => (EventType::QueueExpire, Outcome::Failure, Some(Reason::Expired)),
            Status::Held | Status::Pending | Status::Processing | Status::Cancelled => {
                (EventType::QueueHold, Outcome::Error, Some(Reason::OutcomeUnknown))
            }
        };
        self.payment_event(id, biller, (kind, outcome, reason)).await;
    }

    async fn payment_event(
        &self,
        id: Uuid,
        biller: &str,
        (kind, outcome, reason): (EventType, Outcome, Option<Reason>),
    ) {
        let on = Resource::new(ResourceType::Payment, Label::new(&id.to_string()));
        let event = self.audit.own_event(kind, outcome, on);
        let event = event.service(Service::Payment).link(Label::new(biller));
        let event = reason.into_iter().fold(event, Event::reason);
        self.record(event, &id.to_string()).await;
    }

    /// Records what no request's answer waits for.
    async fn record(&self, event: Event, of: &str) {
        let kind = event.kind().as_str();
        // What happened is durable already; nothing new is sent while the log is failing.
        let limit = Instant::now() + RECORD_MAX;
        while self.audit.append(event.clone()).await.is_err() {
            if Instant::now() > limit {
                tracing::error!(event = kind, of, "an outcome is not on record");
                return;
            }
            sleep(RECORD_REST).await;
        }
    }

    /// Whether payments may leave: what becomes of them can be recorded.
    fn may_send(&self) -> bool {
        self.is_ready() && self.audit.is_writable()
    }
}

/// How long an outcome waits for the log to work again.
const RECORD_MAX: Duration = Duration::from_secs(30);
const RECORD_REST: Duration = Duration::from_millis(250);

/// The queue's data keys come from the token.
#[derive(Debug)]
pub struct TokenKeys(pub Arc<Hsm>);

impl DataKeySource for TokenKeys {
    async fn make(&self) -> Result<DataKey, KeySourceError> {
        let made = self.0.make_data_key(patience()).await.map_err(source_error)?;
        Ok(DataKey { clear: made.clear, wrapped: made.wrapped, kek_version: made.kek_version })
    }

    async fn open(&self, wrapped: &[u8], kek_version: u32) -> Result<ClearDataKey, KeySourceError> {
        let opened = self.0.open_data_key(wrapped.to_vec(), kek_version, patience()).await;
        opened.map_err(source_error)
    }

    async fn rewrap(
        &self,
        wrapped: &[u8],
        kek_version: u32,
    ) -> Result<(Vec<u8>, u32), KeySourceError> {
        let made = self.0.rewrap_data_key(wrapped.to_vec(), kek_version, patience()).await;
        made.map_err(source_error)
    }
}

/// Only a token that is well and does not unwrap this key speaks of the key; every other answer
/// may be another one tomorrow.
fn source_error(error: HsmError) -> KeySourceError {
    match error.failure() {
        Some(Failure::Token { class: CkrClass::Caller, .. }) => {
            KeySourceError::Refused(Box::new(error))
        }
        Some(_) | None => KeySourceError::Unavailable(Box::new(error)),
    }
}

fn patience() -> Instant {
    Instant::now() + std::time::Duration::from_secs(5)
}
