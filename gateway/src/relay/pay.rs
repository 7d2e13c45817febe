//! A payment's first way: made durable, forwarded now, or left to wait.
//!
//! The row comes before the first byte: a crash at any later point leaves a payment that the next
//! start knows. A payment that may not wait and of which nothing was sent is withdrawn; what becomes of
//! one that may have been sent is [`policy`](super::policy)'s to say. It is never guessed.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use compliance::{EventType, Outcome as AuditOutcome, Reason};
use hsm_adapter::protocol::PinKey;
use hsm_adapter::vocabulary::KeyName;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::Relay;
use super::biller::{Biller, Sent, Settlement, Way};
use super::idempotency::{IdempotencyKey, Request};
use super::keys::{OpenError, SealingUnavailable};
use super::payment::{Intake, PaymentError, PaymentOrder, WaitingPin};
use super::policy::Remedy;
use super::unheard::Unheard;
use crate::guard::{GuardError, PinOrder};
use crate::links::Deadline;
use crate::links::backend::{BUSY, BackendError, NO_HSM, RESTING, TOO_LATE};
use crate::links::pool::Fault as _;
use crate::store::{
    Begun, Class, HoldReason, ItemFacts, KeyAfter, Lease, Marked, Outcome, Parked, Parking,
    Priority, Reversed, Settled, Status, StoreError, TakingBack, insist,
};
use crate::telemetry::metrics::IDEMPOTENCY;

/// A payment that its client may make, decoded and with its MAC verified.
pub struct Instruction {
    /// The client.
    pub client: String,
    /// What the client calls this request.
    pub key: IdempotencyKey,
    /// The exact body.
    pub body: Bytes,
    /// Whom to pay.
    pub biller: Arc<Biller>,
    /// Before others, or after.
    pub priority: Priority,
    /// What is paid.
    pub order: PaymentOrder,
    /// The client's PIN block, and the biller's key and format.
    pub pin: Option<(PinOrder, PinKey)>,
}

impl fmt::Debug for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instruction({} at {}, {} bytes)", self.client, self.biller.name, self.body.len())
    }
}

/// What the client is told.
#[derive(Debug)]
pub enum Receipt {
    /// The biller has answered, or the payment is taken back: this status and these bytes, now and at
    /// every repeat.
    Final {
        /// HTTP.
        status: u16,
        /// JSON.
        body: Bytes,
        /// The payment.
        id: Uuid,
        /// Whether the biller took it.
        paid: bool,
        /// Whether the answer is a stored one.
        replayed: bool,
    },
    /// It is durable and not yet paid.
    Accepted {
        /// The payment.
        id: Uuid,
        /// PENDING in most cases; PROCESSING when its outcome is not known in time.
        status: Status,
        /// Whether the key was known already.
        replayed: bool,
    },
}

#[derive(Serialize)]
struct FinalAnswer<'a> {
    id: Uuid,
    status: Status,
    response_code: &'a str,
    reference: &'a str,
}

impl Relay {
    /// Makes the payment durable and forwards it. Runs to its end whatever becomes of the client,
    /// who is answered at the deadline at the latest.
    ///
    /// # Errors
    /// See [`PayError`]: nothing was sent, unless it says otherwise.
    pub async fn pay(
        self: &Arc<Self>,
        instruction: Instruction,
        deadline: Deadline,
    ) -> Result<Receipt, PayError> {
        if self.rollback.waits() {
            return Err(PayError::RolledBack);
        }
        let (relay, begun) = (Arc::clone(self), Arc::new(Underway::default()));
        let (told, mut heard) = oneshot::channel();
        let asked = Unheard::of(&instruction);
        let durable = Arc::clone(&begun);
        self.tasks.spawn(async move {
            let receipt = relay.run(instruction, deadline.work_by, &begun).await;
            if let Err(outcome) = told.send(receipt) {
                relay.unheard(&asked, begun.id(), &outcome).await;
            }
        });
        if let Ok(receipt) = tokio::time::timeout_at(deadline.tell_by, &mut heard).await {
            return receipt.unwrap_or(Err(PayError::Unclear));
        }
        // It may have come in the moment of giving up: then it is heard.
        heard.close();
        heard.try_recv().unwrap_or_else(|_| durable.receipt())
    }

    async fn run(
        &self,
        instruction: Instruction,
        deadline: Instant,
        begun: &Underway,
    ) -> Result<Receipt, PayError> {
        let Instruction { client, key, body, biller, priority, order, pin } = instruction;
        let (method, path) = ("POST", "/v1/payments");
        let request = Request { scope: &client, key: &key, method, path, body: &body };
        let mut waiting_pin = None;
        if let Some(pin) = pin {
            // A repeat costs no PIN operation.
            if let Some(known) = self.payments.known(request).await? {
                return self.known(known, None).await;
            }
            let holder = self.payments.holder(request)?;
            waiting_pin = Some(self.translate(&client, pin, holder, deadline).await?);
        }
        let intake = Intake {
            tenant: &client,
            biller: &biller.name,
            order: &order,
            pin: waiting_pin.as_ref(),
            priority,
            route: biller.route,
            request,
        };
        // Before the row: its lease begins after it, and nothing is sent when it may have run out.
        let since = Instant::now();
        let (facts, begin) = self.payments.begin(intake).await?;
        metrics::counter!(IDEMPOTENCY, "outcome" => stood_for(&begin)).increment(1);
        let Begun::Forward(lease) = begin else {
            return self.known(begin, Some(facts.id)).await;
        };
        begun.is_durable(facts.id);
        let block = waiting_pin.as_ref().map(|pin| &pin.block);
        let bytes = biller.payment(&facts.reference, &order, block);
        if !biller.route.deduplicates {
            // Durable before the first byte: a kill between the two makes it one that may have been sent.
            match recorded(|| self.store.begin_send(&lease, false)).await {
                Ok(Marked::Marked) => {}
                Ok(Marked::Stale) => return begun.receipt(),
                Err(error) => {
                    tracing::error!(%error, id = %facts.id, "marking a payment before it is sent");
                    return begun.receipt();
                }
            }
        }
        // From here on the payment has its own time: a client in a hurry is told that it is underway.
        let limit = since + self.queue.sending_max();
        let Sent { result: sent, may_have_arrived } =
            biller.send(&self.hsm, &facts.reference, &bytes, Way::first(limit)).await;
        let (facts, lease, order) = (&facts, &lease, &order);
        let way = FirstWay { biller: &biller, facts, lease, order, begun, may_have_arrived };
        match self.after(way, sent, waiting_pin.as_ref()).await {
            // The row stands: its lease runs out, and the payment is found again.
            Err(error @ (PayError::Store(_) | PayError::Payment(_))) => {
                let error = hsm_adapter::worker::chain(&error);
                tracing::error!(error, id = %facts.id, "recording what became of a payment");
                begun.receipt()
            }
            receipt => receipt,
        }
    }

    /// Decides what becomes of a payment after its first way, and makes it durable.
    async fn after(
        &self,
        way: FirstWay<'_>,
        sent: Result<Settlement, BackendError>,
        pin: Option<&WaitingPin>,
    ) -> Result<Receipt, PayError> {
        let FirstWay { biller, facts, lease, begun, may_have_arrived, .. } = way;
        let id = facts.id;
        let may_wait = biller.route.may_wait(pin.is_some());
        match sent {
            Ok(settlement) => self.settle_now(way, &settlement).await,
            // Not a word of ours was acceptable to the biller, and no earlier send is in doubt.
            Err(BackendError::Refused { .. }) if !may_have_arrived => {
                self.settle_now(way, &Settlement::refused()).await
            }
            Err(error) if may_have_arrived => {
                let may_resend = may_wait && !matches!(error, BackendError::Refused { .. });
                let rest = match biller.route.remedy(may_resend) {
                    Remedy::Resend => first_rest(&error),
                    Remedy::Enquire => self.queue.enquiry_after(),
                    Remedy::Reverse => return self.reverse_now(way).await,
                    Remedy::Hold => {
                        recorded(|| self.store.hold(lease, HoldReason::Ambiguous)).await?;
                        self.count_payment(&biller.name, Status::Held);
                        return Ok(Receipt::Accepted { id, status: Status::Held, replayed: false });
                    }
                };
                self.let_wait(way, (Class::SentUnknown, rest), pin.filter(|_| may_wait)).await
            }
            Err(error) if may_wait => {
                self.let_wait(way, (class(&error), first_rest(&error)), pin).await
            }
            Err(error) => {
                // Whoever knows of the payment has asked for this one, and asks for its outcome under
                // its key: made anew, it would be paid after it was told as failed.
                let key = if begun.take_back() { KeyAfter::Freed } else { KeyAfter::Kept };
                let code = error.outcome().name();
                match recorded(|| self.store.withdraw(lease, code, key)).await? {
                    Settled::Recorded | Settled::Stale => Err(match error {
                        BackendError::NotSent { why: NO_HSM } => PayError::NoMac,
                        BackendError::NotSent { why: BUSY | TOO_LATE } => PayError::Overloaded,
                        BackendError::NotSent { .. }
                        | BackendError::SentUnknown { .. }
                        | BackendError::TryAgain { .. }
                        | BackendError::Refused { .. } => {
                            PayError::BackendAway { retry_after: biller.backends.rests_for() }
                        }
                    }),
                    Settled::Held => {
                        Ok(Receipt::Accepted { id, status: Status::Held, replayed: false })
                    }
                }
            }
        }
    }

    /// Lets a payment wait after its first way: its client is told "pending".
    async fn let_wait(
        &self,
        way: FirstWay<'_>,
        (class, retry_in): (Class, Duration),
        pin: Option<&WaitingPin>,
    ) -> Result<Receipt, PayError> {
        let FirstWay { biller, facts, lease, .. } = way;
        let counts = class == Class::SentUnknown;
        let parking = Parking { retry_in, class, code: None, counts, pin: None };
        let parked = recorded(|| self.payments.wait(lease, facts, parking.clone(), pin)).await?;
        let status = match parked {
            Parked::Waiting | Parked::Stale => Status::Pending,
            Parked::Failed => Status::Failed,
            Parked::Held => Status::Held,
        };
        metrics::counter!("tollgate_queue_enqueued_total").increment(1);
        self.count_payment(&biller.name, status);
        Ok(Receipt::Accepted { id: facts.id, status, replayed: false })
    }

    /// Tells the client that the payment failed, and queues what takes it back.
    async fn reverse_now(&self, way: FirstWay<'_>) -> Result<Receipt, PayError> {
        let FirstWay { facts, lease, order, begun, .. } = way;
        match self.reverse(facts, lease, order).await? {
            Some(body) => {
                Ok(Receipt::Final { status: 200, body, id: facts.id, paid: false, replayed: false })
            }
            None => begun.receipt(),
        }
    }

    /// Ends a payment as failed and queues its reversal, in one transaction. The answer that its client
    /// gets; `None` when the lease was lost.
    pub(super) async fn reverse(
        &self,
        facts: &ItemFacts,
        lease: &Lease,
        order: &PaymentOrder,
    ) -> Result<Option<Bytes>, PayError> {
        let (taking, body) = self.taking_back(facts, order).map_err(PaymentError::from)?;
        match recorded(|| self.store.reverse(lease, taking.clone())).await? {
            Reversed::Queued => {}
            Reversed::Stale => return Ok(None),
        }
        self.count_payment(&facts.target, Status::Failed);
        self.is_taken_back(facts.id, &facts.target).await;
        Ok(Some(body))
    }

    /// The end of a payment that is taken back, its reversal, and the answer that its client gets.
    pub(super) fn taking_back(
        &self,
        facts: &ItemFacts,
        order: &PaymentOrder,
    ) -> Result<(TakingBack, Bytes), SealingUnavailable> {
        let reversal = self.payments.reversal(facts, order)?;
        let body = final_answer(facts, Status::Failed, RESPONSE_TOO_LATE);
        let (outcome, answer) = (Outcome::Failed, (200, &*body));
        let ending = self.payments.ending(facts, outcome, RESPONSE_TOO_LATE, answer)?;
        Ok((TakingBack { ending, reversal }, body))
    }

    /// A reversal is in the queue.
    pub(super) async fn is_taken_back(&self, id: Uuid, biller: &str) {
        metrics::counter!("tollgate_queue_enqueued_total").increment(1);
        let queued = (EventType::QueueReverse, AuditOutcome::Success, Some(Reason::OutcomeUnknown));
        self.payment_event(id, biller, queued).await;
    }

    /// Records the biller's final word together with the answer that every repeat gets. Once the lease is
    /// lost, what became of the payment is another sender's to say.
    async fn settle_now(
        &self,
        way: FirstWay<'_>,
        settlement: &Settlement,
    ) -> Result<Receipt, PayError> {
        let FirstWay { facts, lease, begun, .. } = way;
        let (outcome, status) = ended(settlement);
        let body = final_answer(facts, status, &settlement.response_code);
        let (code, answer) = (&settlement.response_code, (200, &*body));
        let finish = || self.payments.finish(lease, facts, outcome, code, answer);
        if recorded(finish).await? == Settled::Stale {
            return begun.receipt();
        }
        self.count_payment(&facts.target, status);
        let paid = settlement.paid;
        Ok(Receipt::Final { status: 200, body, id: facts.id, paid, replayed: false })
    }

    async fn translate(
        &self,
        client: &str,
        (pin, to): (PinOrder, PinKey),
        holder: [u8; 32],
        deadline: Instant,
    ) -> Result<WaitingPin, PayError> {
        let translated =
            self.guard.translate_pin(client, pin, to.clone(), Some(holder), deadline).await.1;
        let done = translated.map_err(PayError::Pin)?;
        // The version that made the block belongs to it: another one cannot open it.
        let key = KeyName { label: to.key.label, version: Some(done.key_version) };
        Ok(WaitingPin { key: PinKey { key, format: to.format, ksn: None }, block: done.block })
    }

    /// What a request gets whose payment is not forwarded by it. `new` names a payment that was
    /// made durable just now.
    async fn known(&self, begun: Begun, new: Option<Uuid>) -> Result<Receipt, PayError> {
        match begun {
            Begun::Replay { facts, status: is, answer: Some(answer) } => {
                let opened = self.payments.replay(&facts, &answer).await;
                let (status, body) = opened.map_err(PayError::AnswerClosed)?;
                let (id, paid) = (facts.id, is == Status::Success);
                Ok(Receipt::Final { status, body: body.into(), id, paid, replayed: true })
            }
            Begun::Replay { facts, status, answer: None } => {
                Ok(Receipt::Accepted { id: facts.id, status, replayed: true })
            }
            Begun::Queued { .. } | Begun::Forward(_) => {
                metrics::counter!("tollgate_queue_enqueued_total").increment(1);
                let id = new.ok_or(PayError::Unclear)?;
                Ok(Receipt::Accepted { id, status: Status::Pending, replayed: false })
            }
            Begun::Running { retry_after } => Err(PayError::Running { retry_after }),
            Begun::KeyReused => Err(PayError::KeyReused),
            Begun::QueueFull => Err(PayError::QueueFull),
            Begun::Busy => Err(PayError::BackendAway { retry_after: Duration::from_secs(1) }),
        }
    }

    pub(super) fn count_payment(&self, biller: &str, status: Status) {
        let labels = [("biller", biller.to_owned()), ("status", status.name().to_owned())];
        metrics::counter!("tollgate_payments_total", &labels).increment(1);
    }
}

/// What a request's key stood for, in the figures.
fn stood_for(begun: &Begun) -> &'static str {
    match begun {
        Begun::Forward(_) | Begun::Queued { .. } => "new",
        Begun::Replay { .. } => "replayed",
        Begun::Running { .. } => "in_progress",
        Begun::KeyReused => "reused",
        Begun::QueueFull | Begun::Busy => "refused",
    }
}

impl Receipt {
    /// The payment.
    #[must_use]
    pub fn id(&self) -> Uuid {
        match self {
            Self::Final { id, .. } | Self::Accepted { id, .. } => *id,
        }
    }
}

/// Recording twice is safe, and unrecorded, the payment would be sent once more.
pub(super) async fn recorded<T, E, F: Future<Output = Result<T, E>>>(
    record: impl Fn() -> F,
) -> Result<T, E> {
    insist(record, |_| true).await
}

pub(super) fn ended(settlement: &Settlement) -> (Outcome, Status) {
    match settlement.paid {
        true => (Outcome::Done, Status::Success),
        false => (Outcome::Failed, Status::Failed),
    }
}

/// What the client of a payment is told at its end, and at every repeat.
pub(super) fn final_answer(facts: &ItemFacts, status: Status, response_code: &str) -> Bytes {
    let answer = FinalAnswer { id: facts.id, status, response_code, reference: &facts.reference };
    // Texts only: such a value always has a JSON form.
    serde_json::to_vec(&answer).unwrap_or_default().into()
}

pub(super) fn class(error: &BackendError) -> Class {
    match error {
        BackendError::NotSent { .. } => Class::NotSent,
        BackendError::SentUnknown { .. } => Class::SentUnknown,
        BackendError::TryAgain { .. } | BackendError::Refused { .. } => Class::AnsweredRetryable,
    }
}

/// DE 39 of a payment whose answer did not come: 68, response received too late.
const RESPONSE_TOO_LATE: &str = "68";

/// When a payment that waits is first tried again.
fn first_rest(error: &BackendError) -> Duration {
    match error {
        BackendError::NotSent { why: RESTING | BUSY } => Duration::ZERO,
        BackendError::TryAgain { after: Some(after), .. } => *after,
        BackendError::NotSent { .. }
        | BackendError::SentUnknown { .. }
        | BackendError::TryAgain { .. }
        | BackendError::Refused { .. } => Duration::from_secs(1),
    }
}

/// A durable payment whose client waits: it is told as underway, or its key is freed; never both.
#[derive(Debug, Default)]
struct Underway {
    id: OnceLock<Uuid>,
    decided: AtomicBool,
}

impl Underway {
    /// From now on it may be told.
    fn is_durable(&self, id: Uuid) {
        // Set once: a task begins one payment.
        let _ = self.id.set(id);
    }

    /// The payment, once it is durable.
    fn id(&self) -> Option<Uuid> {
        self.id.get().copied()
    }

    /// What its client is told while its outcome is not known.
    fn receipt(&self) -> Result<Receipt, PayError> {
        match self.id().filter(|_| self.take_back()) {
            Some(id) => Ok(Receipt::Accepted { id, status: Status::Processing, replayed: false }),
            None => Err(PayError::Running { retry_after: Duration::from_secs(1) }),
        }
    }

    /// Whether its client was not told of it, and now never is.
    fn take_back(&self) -> bool {
        !self.decided.swap(true, Ordering::AcqRel)
    }
}

/// One payment on its first way.
struct FirstWay<'a> {
    biller: &'a Biller,
    facts: &'a ItemFacts,
    lease: &'a Lease,
    order: &'a PaymentOrder,
    begun: &'a Underway,
    /// A byte of it left and was not answered for.
    may_have_arrived: bool,
}

/// Why a payment has no receipt.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum PayError {
    #[error("the backend is away, and the payment may not wait")]
    BackendAway { retry_after: Duration },
    #[error("as many payments are being sent as may")]
    Overloaded,
    #[error("the first request with this key is still running")]
    Running { retry_after: Duration },
    #[error("the idempotency key belongs to another request")]
    KeyReused,
    #[error("the queue is full")]
    QueueFull,
    #[error("the database was rolled back, and no operator has acknowledged it")]
    RolledBack,
    #[error("the PIN block was not translated")]
    Pin(#[source] GuardError),
    #[error("the HSM is away, and the payment may not wait for its MAC")]
    NoMac,
    #[error(transparent)]
    Payment(#[from] PaymentError),
    #[error("the stored answer does not open")]
    AnswerClosed(#[source] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the payment's task ended before its outcome was known")]
    Unclear,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_is_told_as_underway_or_its_key_is_freed_and_never_both() {
        let (told, freed, unborn) = (Underway::default(), Underway::default(), Underway::default());
        let id = Uuid::now_v7();
        told.is_durable(id);
        freed.is_durable(id);

        assert!(matches!(told.receipt(), Ok(Receipt::Accepted { status: Status::Processing, .. })));
        assert!(!told.take_back());
        assert!(freed.take_back());
        assert!(matches!(freed.receipt(), Err(PayError::Running { .. })));
        // Not durable, it is not told, and what becomes durable later may still be taken back.
        assert!(matches!(unborn.receipt(), Err(PayError::Running { .. })));
        assert!(unborn.take_back());
    }
}
