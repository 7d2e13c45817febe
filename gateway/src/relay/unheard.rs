//! What came of a payment whose client had gone or was answered already: an event of its own.

use compliance::{
    Actor, Event, EventType, Label, Origin, Outcome, Reason, Resource, ResourceType, Service,
};
use uuid::Uuid;

use super::Relay;
use super::pay::{Instruction, PayError, Receipt};
use crate::guard::{GuardError, is_block_refused};
use crate::store::Status;

/// Whose request it was, and of what.
#[derive(Debug)]
pub(super) struct Unheard {
    client: String,
    biller: String,
    /// Those of its PIN block.
    keys: Option<String>,
}

impl Unheard {
    pub(super) fn of(asked: &Instruction) -> Self {
        let keys = asked.pin.as_ref().map(|(pin, to)| format!("{}>{}", pin.from.key, to.key));
        Self { client: asked.client.clone(), biller: asked.biller.name.clone(), keys }
    }
}

impl Relay {
    /// Records an outcome; `durable` is the payment that was begun.
    pub(super) async fn unheard(
        &self,
        asked: &Unheard,
        durable: Option<Uuid>,
        outcome: &Result<Receipt, PayError>,
    ) {
        match (outcome, durable) {
            // It could not be recorded what became of it: its lease runs out.
            (Err(PayError::Running { .. }), Some(id)) => {
                self.queue_event(id, &asked.biller, Status::Processing).await;
            }
            (Ok(receipt), _) => self.unheard_receipt(asked, receipt).await,
            (Err(error), Some(id)) => self.unheard_withdrawal(asked, id, error).await,
            (Err(PayError::Pin(error)), None) => self.unheard_refusal(asked, error).await,
            // Nothing happened, and nothing was guessed at.
            (Err(_), None) => {}
        }
    }

    async fn unheard_receipt(&self, asked: &Unheard, receipt: &Receipt) {
        let status = match receipt {
            Receipt::Final { replayed: true, .. } | Receipt::Accepted { replayed: true, .. } => {
                return;
            }
            Receipt::Final { paid: true, .. } => Status::Success,
            Receipt::Final { .. } => Status::Failed,
            Receipt::Accepted { status, .. } => *status,
        };
        self.queue_event(receipt.id(), &asked.biller, status).await;
    }

    /// It was durable, nothing was sent, and it may not wait.
    async fn unheard_withdrawal(&self, asked: &Unheard, id: Uuid, error: &PayError) {
        self.count_payment(&asked.biller, Status::Failed);
        let reason = match error {
            PayError::Overloaded => Reason::Overloaded,
            PayError::NoMac => Reason::HsmUnavailable,
            PayError::BackendAway { .. }
            | PayError::Running { .. }
            | PayError::KeyReused
            | PayError::QueueFull
            | PayError::RolledBack
            | PayError::Pin(_)
            | PayError::Payment(_)
            | PayError::AnswerClosed(_)
            | PayError::Store(_)
            | PayError::Unclear => Reason::BackendUnavailable,
        };
        let ended = (EventType::QueueDeliver, Outcome::Failure, Some(reason));
        self.payment_event(id, &asked.biller, ended).await;
    }

    /// Its PIN block was refused before it was begun.
    async fn unheard_refusal(&self, asked: &Unheard, error: &GuardError) {
        let Some(keys) = &asked.keys else { return };
        let (outcome, reason) = match error {
            GuardError::Blocked => (Outcome::Denied, Reason::Blocked),
            GuardError::Quarantined => (Outcome::Denied, Reason::Quarantined),
            GuardError::Replayed => (Outcome::Failure, Reason::Refused),
            GuardError::Hsm(error) if is_block_refused(error) => {
                (Outcome::Failure, Reason::Refused)
            }
            GuardError::Hsm(_)
            | GuardError::Throttled { .. }
            | GuardError::NoRoom(_)
            | GuardError::Store(_)
            | GuardError::NoReference(_)
            | GuardError::Unclear => return,
        };
        let actor = Actor::client(Label::new(&asked.client));
        let (now, origin) = (jiff::Timestamp::now(), Origin::inside(self.audit.host()));
        let on = Resource::new(ResourceType::Key, Label::new(keys));
        let event = Event::new(actor, EventType::PinTranslate, now, outcome, origin, on);
        self.record(event.service(Service::Pin).reason(reason), keys).await;
    }
}
