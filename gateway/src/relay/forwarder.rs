//! A payment's later ways: what waits is forwarded when its biller is back.
//!
//! One task a biller claims, by priority and then in the order of arrival, and sends some at once:
//! one after a failure, twice as many after each success, so that a long queue does not fell a biller
//! that has just come back. While the biller's breaker rests, nothing is claimed. What may have
//! arrived is sent again, asked about or taken back as [`policy`](super::policy) says.

use std::sync::Arc;
use std::time::Duration;

use compliance::{EventType, Outcome as AuditOutcome, Reason as AuditReason};
use hsm_adapter::worker::chain;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Relay;
use super::biller::{Biller, Sent, Settlement, TakenBack, Way};
use super::pay::{PayError, class, ended, final_answer, recorded};
use super::payment::{Doubt, Due, PaymentError, PaymentOrder, ReversalOrder, Waiting, WaitingPin};
use super::policy::Remedy;
use crate::links::backend::{BackendError, NO_HSM};
use crate::links::jitter;
use crate::links::pool::Fault as _;
use crate::store::{
    Class, Ending, HoldReason, ItemFacts, KeyAfter, Lease, Marked, Outcome, PAYMENT, Parked,
    Parking, Settled, Status,
};

impl Relay {
    /// Forwards what waits for one biller until `stop`.
    pub async fn forward(self: Arc<Self>, biller: Arc<Biller>, stop: CancellationToken) {
        let mut sending = JoinSet::new();
        let mut width = Width::new(self.queue.senders_max as usize);
        loop {
            // Before the look: a wake that comes while it runs is not lost.
            let woken = self.store.wake().notified();
            while let Some(sent) = sending.try_join_next() {
                width.learn(sent.unwrap_or(Went::Badly));
            }
            let rest = match stop.is_cancelled() {
                true => break,
                false => self.fill(&biller, &mut sending, &mut width, &stop).await,
            };
            tokio::select! {
                () = stop.cancelled() => {}
                Some(sent) = sending.join_next() => width.learn(sent.unwrap_or(Went::Badly)),
                () = sleep(jitter(rest, 0.1)) => {}
                () = woken, if width.room(sending.len()) > 0 => {}
            }
        }
        // What has been begun is brought to its end, also while the gateway stops.
        while sending.join_next().await.is_some() {}
    }

    /// Claims as much as may be sent now, and sends it. How long to rest when nothing else happens.
    async fn fill(
        self: &Arc<Self>,
        biller: &Arc<Biller>,
        sending: &mut JoinSet<Went>,
        width: &mut Width,
        stop: &CancellationToken,
    ) -> Duration {
        let rest = biller.backends.rests_for();
        if !rest.is_zero() {
            width.learn(Went::Badly);
            return rest.min(POLL);
        }
        if !self.hsm.is_usable() || !self.may_send() {
            return HSM_POLL;
        }
        let room = width.room(sending.len());
        if room == 0 {
            return POLL;
        }
        match self.payments.claim(biller.name.clone(), room).await {
            Ok(due) => {
                for due in due {
                    let (relay, biller) = (Arc::clone(self), Arc::clone(biller));
                    let stop = stop.clone();
                    sending.spawn(async move { relay.forward_lane(&biller, due, &stop).await });
                }
            }
            Err(error) => {
                let (error, biller) = (chain(&error), &biller.name);
                tracing::error!(error, biller, "claiming from the queue");
            }
        }
        POLL
    }

    /// Forwards one item, and after a final answer the next ones of its lane.
    async fn forward_lane(&self, biller: &Biller, first: Due, stop: &CancellationToken) -> Went {
        let mut due = first;
        for more in (0..IN_A_ROW_MAX).rev() {
            let id = due.facts.id;
            let takes_next = more > 0 && !stop.is_cancelled() && self.may_send();
            let done = match self.deliver(biller, due, takes_next).await {
                Ok(done) => done,
                Err(error) => {
                    // The lease runs out and the payment is found again.
                    let error = chain(&error);
                    tracing::error!(error, %id, "recording what became of a forwarded payment");
                    return Went::Badly;
                }
            };
            metrics::counter!("tollgate_queue_forwarded_total", "outcome" => done.outcome)
                .increment(1);
            match done.next {
                Some(next) => due = next,
                None => return done.went,
            }
        }
        Went::Well
    }

    async fn deliver(&self, biller: &Biller, due: Due, takes_next: bool) -> Result<Done, PayError> {
        let Due { lease, facts, what, doubt, attempts, until: limit } = due;
        let sending = Sending { biller, facts, lease, attempts, limit, takes_next };
        match what {
            Waiting::Reversal(order) => self.deliver_reversal(&sending, &order).await,
            Waiting::Payment(order, pin, needs_pin) => {
                let payment = Payment { order, pin, needs_pin, doubt };
                self.deliver_payment(&sending, &payment).await
            }
        }
    }

    async fn deliver_payment(
        &self,
        sending: &Sending<'_>,
        payment: &Payment,
    ) -> Result<Done, PayError> {
        let Sending { biller, facts, lease, limit, .. } = sending;
        let route = biller.route;
        let has_pin = !payment.needs_pin || payment.pin.is_some();
        let may_send = has_pin && route.may_wait(payment.needs_pin);
        let doubt = payment.doubt;
        let mut in_doubt = doubt.sent_unknown;
        if in_doubt {
            match route.remedy(may_send) {
                Remedy::Resend => {}
                Remedy::Enquire if self.is_too_early(payment) => {
                    return self.enquire_later(sending).await;
                }
                Remedy::Enquire => {
                    let way = Way::later(*limit);
                    match biller.enquire(&self.hsm, &facts.reference, way).await.result {
                        Ok(Some(settlement)) => {
                            return self.settle_later(sending, &settlement).await;
                        }
                        Ok(None) => in_doubt = false,
                        Err(error) => return self.park(sending, &error, false).await,
                    }
                }
                Remedy::Reverse => return self.reverse_later(sending, payment).await,
                Remedy::Hold => return self.hold_later(sending, HoldReason::Ambiguous).await,
            }
        }
        if !route.deduplicates || doubt.is_marked || !may_send {
            let is_absent = doubt.sent_unknown && !in_doubt;
            match self.store.begin_send(lease, is_absent).await? {
                Marked::Marked => {}
                Marked::Stale => return Ok(Done::of(STALE, Went::Well)),
            }
        }
        if !may_send {
            return self.fail_unsent(sending).await;
        }
        let block = payment.pin.as_ref().map(|pin| &pin.block);
        let request = biller.payment(&facts.reference, &payment.order, block);
        let Sent { result, may_have_arrived } =
            biller.send(&self.hsm, &facts.reference, &request, Way::later(*limit)).await;
        let in_doubt = in_doubt || may_have_arrived;
        match result {
            Ok(settlement) => self.settle_later(sending, &settlement).await,
            Err(BackendError::Refused { .. }) if !in_doubt => {
                self.settle_later(sending, &Settlement::refused()).await
            }
            Err(error) if !in_doubt => self.park(sending, &error, false).await,
            Err(error) => {
                let may_resend = !matches!(error, BackendError::Refused { .. });
                match route.remedy(may_resend) {
                    Remedy::Resend | Remedy::Enquire => {
                        self.park(sending, &error, may_have_arrived).await
                    }
                    Remedy::Reverse => self.reverse_later(sending, payment).await,
                    Remedy::Hold => self.hold_later(sending, HoldReason::Ambiguous).await,
                }
            }
        }
    }

    /// Whether a request may still be on its way or in the biller's hands: "unknown" would prove nothing.
    fn is_too_early(&self, payment: &Payment) -> bool {
        let since = self.store.now().saturating_sub(payment.doubt.changed_at);
        let since = Duration::from_millis(u64::try_from(since).unwrap_or(0));
        since + CLOCK_SLACK < self.queue.enquiry_after()
    }

    async fn enquire_later(&self, sending: &Sending<'_>) -> Result<Done, PayError> {
        let (retry_in, class) = (self.queue.enquiry_after(), Class::NotSent);
        let parking = Parking { retry_in, class, code: None, counts: false, pin: None };
        self.store.release(&sending.lease, parking).await?;
        Ok(Done::of("not_yet", Went::Well))
    }

    async fn deliver_reversal(
        &self,
        sending: &Sending<'_>,
        order: &ReversalOrder,
    ) -> Result<Done, PayError> {
        let Sending { biller, facts, limit, .. } = sending;
        let way = Way::later(*limit);
        let Sent { result, may_have_arrived } =
            biller.reverse(&self.hsm, &facts.reference, order, way).await;
        match result {
            Ok(TakenBack::Done) => {
                let (outcome, code, answer) = (Outcome::Done, "00".to_owned(), None);
                self.end(sending, Ending { outcome, code, answer }, Status::Success).await
            }
            Ok(TakenBack::NotAccepted) | Err(BackendError::Refused { .. }) => {
                self.hold_later(sending, HoldReason::NotAccepted).await
            }
            Ok(TakenBack::NotNow) => {
                let error = BackendError::TryAgain { status: 200, after: None };
                self.park(sending, &error, may_have_arrived).await
            }
            Err(error) => self.park(sending, &error, may_have_arrived).await,
        }
    }

    /// Records the biller's final word, with the answer that its client gets.
    async fn settle_later(
        &self,
        sending: &Sending<'_>,
        settlement: &Settlement,
    ) -> Result<Done, PayError> {
        let (facts, code) = (&sending.facts, &settlement.response_code);
        let (outcome, status) = ended(settlement);
        let body = final_answer(facts, status, code);
        let ending = self.payments.ending(facts, outcome, code, (200, &body));
        let done = self.end(sending, ending.map_err(PaymentError::from)?, status).await?;
        if done.outcome != STALE {
            self.count_payment(&facts.target, status);
        }
        Ok(done)
    }

    async fn end(
        &self,
        sending: &Sending<'_>,
        ending: Ending,
        status: Status,
    ) -> Result<Done, PayError> {
        let Sending { facts, lease, takes_next, .. } = sending;
        let mut done =
            Done::of(if status == Status::Success { "success" } else { "declined" }, Went::Well);
        let settled;
        if *takes_next {
            let finish = || self.payments.finish_and_take(lease, ending.clone());
            (settled, done.next) = recorded(finish).await?;
        } else {
            settled = recorded(|| self.store.complete(lease, ending.clone())).await?;
        }
        if settled == Settled::Stale {
            // It is evidence in its history; what became of it is another sender's to say.
            return Ok(Done { outcome: STALE, ..done });
        }
        self.queue_event(facts.id, &facts.target, status).await;
        Ok(done)
    }

    /// Nothing of it arrived, and it may not be sent any more.
    async fn fail_unsent(&self, sending: &Sending<'_>) -> Result<Done, PayError> {
        let Sending { facts, lease, .. } = sending;
        let withdraw = || self.store.withdraw(lease, "not-received", KeyAfter::Kept);
        let status = match recorded(withdraw).await? {
            Settled::Recorded => Status::Failed,
            Settled::Held => Status::Held,
            Settled::Stale => return Ok(Done::of(STALE, Went::Well)),
        };
        self.count_payment(&facts.target, status);
        self.unsent_event(facts, status).await;
        Ok(Done::of("not_received", Went::Well))
    }

    /// What ended without a word of the biller.
    async fn unsent_event(&self, facts: &ItemFacts, status: Status) {
        if status != Status::Failed {
            return self.queue_event(facts.id, &facts.target, status).await;
        }
        let reason = Some(AuditReason::BackendUnavailable);
        let ended = (EventType::QueueDeliver, AuditOutcome::Failure, reason);
        self.payment_event(facts.id, &facts.target, ended).await;
    }

    async fn reverse_later(
        &self,
        sending: &Sending<'_>,
        payment: &Payment,
    ) -> Result<Done, PayError> {
        if payment.doubt.by_rollback || self.rollback.waits() {
            // Its client may have been told that it was paid.
            return self.hold_later(sending, HoldReason::Ambiguous).await;
        }
        let reversed = self.reverse(&sending.facts, &sending.lease, &payment.order).await?;
        Ok(Done::of(if reversed.is_some() { "reversed" } else { STALE }, Went::Badly))
    }

    async fn hold_later(
        &self,
        sending: &Sending<'_>,
        reason: HoldReason,
    ) -> Result<Done, PayError> {
        let Sending { facts, lease, .. } = sending;
        if recorded(|| self.store.hold(lease, reason)).await? == Settled::Stale {
            return Ok(Done::of(STALE, Went::Badly));
        }
        self.queue_event(facts.id, &facts.target, Status::Held).await;
        Ok(Done::of("held", Went::Badly))
    }

    /// Lets it wait for its next attempt.
    async fn park(
        &self,
        sending: &Sending<'_>,
        error: &BackendError,
        may_have_arrived: bool,
    ) -> Result<Done, PayError> {
        let Sending { biller, facts, lease, attempts, .. } = sending;
        // An earlier attempt at another URL may have arrived, whatever the last one says.
        let unknown = BackendError::SentUnknown { why: "an earlier attempt" };
        let decisive = if may_have_arrived { &unknown } else { error };
        let (mut retry_in, counts) = self.rest_after(decisive, *attempts, facts.created_at);
        if may_have_arrived && !biller.route.deduplicates && facts.kind == PAYMENT {
            retry_in = retry_in.max(self.queue.enquiry_after());
        }
        let class = class(decisive);
        let parking = Parking { retry_in, class, code: None, counts, pin: None };
        match recorded(|| self.store.release(lease, parking.clone())).await? {
            Parked::Failed => self.unsent_event(facts, Status::Failed).await,
            Parked::Held => self.queue_event(facts.id, &facts.target, Status::Held).await,
            Parked::Waiting | Parked::Stale => {}
        }
        Ok(Done::of(error.outcome().name(), Went::Badly))
    }

    /// When to try again, and whether the attempt counts towards the payment's own limit: what failed
    /// before a byte was sent, or with a plain "come back", says nothing about this payment.
    /// Yet its rest grows with its age (epoch milliseconds), or those that come back for ever would keep
    /// the forwarder from all others.
    fn rest_after(&self, error: &BackendError, attempts: u32, since: i64) -> (Duration, bool) {
        let rest = jitter(self.queue.wait_after(attempts), 0.2);
        match error {
            BackendError::NotSent { why: NO_HSM } => (Duration::from_secs(1), false),
            BackendError::NotSent { .. } => (Duration::from_millis(200), false),
            BackendError::TryAgain { after, .. } => {
                let age = self.store.now().saturating_sub(since);
                let grown = self.queue.wait_at_age(u64::try_from(age).unwrap_or(0));
                (rest.max(jitter(grown, 0.2)).max(after.unwrap_or_default()), false)
            }
            BackendError::SentUnknown { .. } | BackendError::Refused { .. } => (rest, true),
        }
    }
}

/// One item that is being sent.
struct Sending<'a> {
    biller: &'a Biller,
    facts: ItemFacts,
    lease: Lease,
    attempts: u32,
    limit: Instant,
    /// Whether the next of its lane is taken with its end.
    takes_next: bool,
}

/// What is known of a payment that waits.
struct Payment {
    order: PaymentOrder,
    pin: Option<WaitingPin>,
    needs_pin: bool,
    doubt: Doubt,
}

/// What came of one item.
struct Done {
    /// For the figures.
    outcome: &'static str,
    went: Went,
    next: Option<Due>,
}

impl Done {
    fn of(outcome: &'static str, went: Went) -> Self {
        Self { outcome, went, next: None }
    }
}

/// What a sending says of its biller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Went {
    Well,
    Badly,
}

/// How many are sent at once.
#[derive(Debug)]
struct Width {
    now: usize,
    max: usize,
}

impl Width {
    fn new(max: usize) -> Self {
        Self { now: 1, max }
    }

    fn learn(&mut self, went: Went) {
        self.now = match went {
            Went::Well => (self.now * 2).min(self.max),
            Went::Badly => 1,
        };
    }

    /// How many to claim: none until a quarter is free, since a claim costs a commit.
    fn room(&self, sending: usize) -> u32 {
        let free = self.now.saturating_sub(sending);
        u32::try_from(if free * 4 < self.now { 0 } else { free }).unwrap_or(u32::MAX)
    }
}

/// Its lease was lost: the report is evidence, and no more.
const STALE: &str = "stale";

/// Replicas do not read the server's clock in the same instant.
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// Items of one lane that one sender takes in a row: then the others have their turn by priority.
const IN_A_ROW_MAX: u32 = 32;

/// How often to look when nobody wakes us.
const POLL: Duration = Duration::from_secs(1);
const HSM_POLL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_biller_that_has_come_back_is_not_met_by_the_whole_queue() {
        let mut width = Width::new(16);

        let widths: Vec<_> = (0..6)
            .map(|_| {
                let now = width.now;
                width.learn(Went::Well);
                now
            })
            .collect();
        assert_eq!(widths, [1, 2, 4, 8, 16, 16]);
        assert_eq!((width.room(10), width.room(13)), (6, 0));

        width.learn(Went::Badly);
        assert_eq!(width.room(0), 1);
        assert_eq!(width.room(5), 0);
    }
}
