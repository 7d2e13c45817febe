//! A payment's later ways: what waits is forwarded when its biller is back.
//!
//! One task a biller, one payment at a time: by priority, then in the order of arrival. While the
//! biller's breaker rests, nothing is claimed. A send that cannot be told from "never arrived"
//! repeats the same bytes under the same reference.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Relay;
use super::biller::{Biller, Sent, Settlement, Way};
use super::pay::{PayError, class};
use super::payment::Due;
use crate::links::backend::{BackendError, NO_HSM};
use crate::links::jitter;
use crate::links::pool::Fault as _;
use crate::store::{HoldReason, Parked, Parking, PruneRule, Status, StoreError};

impl Relay {
    /// Forwards what waits for one biller until `stop`.
    pub async fn forward(self: Arc<Self>, biller: Arc<Biller>, stop: CancellationToken) {
        loop {
            // Before the look: a wake that comes while it runs is not lost.
            let woken = self.store.wake().notified();
            // A payment that has been begun is brought to its end, also while the gateway stops.
            let rest = self.forward_next(&biller).await;
            if stop.is_cancelled() {
                return;
            }
            let Some(rest) = rest else { continue };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(jitter(rest, 0.1)) => {}
                () = woken => {}
            }
        }
    }

    /// Forwards one payment. How long to rest when there is none to forward now.
    async fn forward_next(&self, biller: &Biller) -> Option<Duration> {
        let rest = biller.backends.rests_for();
        if !rest.is_zero() {
            return Some(rest.min(POLL));
        }
        if !self.hsm.is_usable() || !self.is_ready() {
            return Some(HSM_POLL);
        }
        let due = match self.payments.claim(vec![biller.name.clone()], 1).await {
            Ok(mut due) => due.pop(),
            Err(error) => {
                tracing::error!(%error, biller = biller.name, "claiming from the queue");
                return Some(POLL);
            }
        };
        let due = match due {
            Some(due) => due,
            None => return Some(POLL),
        };
        let id = due.facts.id;
        match self.deliver(biller, due).await {
            Ok(outcome) => {
                metrics::counter!("tollgate_queue_forwarded_total", "outcome" => outcome)
                    .increment(1);
                None
            }
            Err(error) => {
                // The lease runs out and the payment is found again.
                tracing::error!(%error, %id, "recording what became of a forwarded payment");
                Some(POLL)
            }
        }
    }

    async fn deliver(&self, biller: &Biller, due: Due) -> Result<&'static str, PayError> {
        let Due { lease, facts, order, pin, sent_unknown, attempts } = due;
        let request = biller.request(facts.id, &order, pin.as_ref().map(|pin| &pin.block));
        let limit = Instant::now() + self.queue.sending_max();
        let Sent { result, may_have_arrived } =
            biller.send(&self.hsm, facts.id, &request, Way::later(limit)).await;
        match result {
            Ok(settlement) => {
                self.settle(&facts, &lease, &settlement).await?;
                let status = if settlement.paid { Status::Success } else { Status::Failed };
                self.queue_event(facts.id, &facts.target, status).await;
                Ok(if settlement.paid { "success" } else { "declined" })
            }
            Err(BackendError::Refused { .. }) if !sent_unknown && !may_have_arrived => {
                self.settle(&facts, &lease, &Settlement::refused()).await?;
                self.queue_event(facts.id, &facts.target, Status::Failed).await;
                Ok("refused")
            }
            Err(BackendError::Refused { .. }) => {
                self.store.hold(&lease, HoldReason::Ambiguous).await?;
                self.queue_event(facts.id, &facts.target, Status::Held).await;
                Ok("ambiguous")
            }
            Err(error) => {
                // An earlier attempt at another URL may have arrived, whatever the last one says.
                let unknown = BackendError::SentUnknown { why: "an earlier attempt" };
                let decisive = if may_have_arrived { &unknown } else { &error };
                let (retry_in, counts) = self.rest_after(decisive, attempts, facts.created_at);
                let class = class(decisive);
                let parking = Parking { retry_in, class, code: None, counts, pin: None };
                match self.store.release(&lease, parking).await? {
                    Parked::Failed => {
                        self.queue_event(facts.id, &facts.target, Status::Failed).await
                    }
                    Parked::Held => self.queue_event(facts.id, &facts.target, Status::Held).await,
                    Parked::Waiting | Parked::Stale => {}
                }
                Ok(error.outcome().name())
            }
        }
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
                let age = jiff::Timestamp::now().as_millisecond().saturating_sub(since);
                let grown = self.queue.wait_at_age(u64::try_from(age).unwrap_or(0));
                (rest.max(jitter(grown, 0.2)).max(after.unwrap_or_default()), false)
            }
            BackendError::SentUnknown { .. } | BackendError::Refused { .. } => (rest, true),
        }
    }

    /// Keeps the queue in order until `stop`: lost leases, expired payments, old rows, figures.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = 0u64;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(jitter(Duration::from_secs(5), 0.1)) => {}
            }
            rounds += 1;
            self.tell_alarms().await;
            self.look_at_epoch().await;
            if self.rollback.waits() {
                continue;
            }
            if let Err(error) = self.keep_once(rounds.is_multiple_of(60)).await {
                tracing::error!(%error, "keeping the queue");
            }
        }
    }

    async fn keep_once(&self, prune: bool) -> Result<(), StoreError> {
        let rescued = self.store.rescue().await?;
        if rescued.any() {
            tracing::warn!(freed = rescued.freed, held = rescued.held, "leases had run out");
        }
        self.store.expire().await?;
        if prune {
            let retention = i64::try_from(self.queue.retention().as_millis()).unwrap_or(i64::MAX);
            let rule = PruneRule { ended_before: self.store.now().saturating_sub(retention) };
            while self.store.prune(rule).await?.any() {}
        }
        let stats = self.store.stats().await?;
        for depth in &stats.depth {
            let labels = [
                ("status", depth.status.name().to_owned()),
                ("priority", depth.priority.name().to_owned()),
            ];
            metrics::gauge!("tollgate_queue_depth", &labels).set(depth.rows as f64);
        }
        let oldest = stats.oldest_ms.unwrap_or(0) as f64 / 1000.0;
        metrics::gauge!("tollgate_queue_oldest_seconds").set(oldest);
        Ok(())
    }
}

/// How often to look when nobody wakes us.
const POLL: Duration = Duration::from_secs(1);
const HSM_POLL: Duration = Duration::from_millis(200);
