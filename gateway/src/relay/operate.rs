//! The operators' hand on the queue: what the store decides, with the answers that only this room can
//! seal.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Relay;
use super::biller::{Biller, Settlement};
use super::pay::{ended, final_answer};
use super::payment::PaymentError;
use crate::store::{
    Action, Control, ListFilter, Listed, Operated, Operation, PAYMENT, QueueStats, Shown,
    StandingControl, Status, StoreError, TakingBack,
};
use crate::telemetry::metrics::show_paused;

/// Who acts, and why.
#[derive(Debug, Clone)]
pub struct By {
    /// The operator.
    pub actor: String,
    /// In the operator's words.
    pub reason: String,
}

impl By {
    fn does(self, id: Uuid, action: Action) -> Operation {
        let Self { actor, reason } = self;
        Operation { id, action, actor, reason }
    }
}

impl Relay {
    /// A page of the queue.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Listed>, StoreError> {
        self.store.list(filter).await
    }

    /// One payment with all that happened to it, whoever's it is.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn show(&self, id: Uuid) -> Result<Option<Shown>, StoreError> {
        self.store.show(id).await
    }

    /// What waits, by biller.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        self.store.queue_stats().await
    }

    /// Epoch milliseconds now, as the store counts them.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.store.now()
    }

    /// Leaves a waiting payment to a person.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn hold(&self, id: Uuid, by: By) -> Result<Operated, StoreError> {
        self.store.operate(by.does(id, Action::Hold)).await
    }

    /// Lets a held payment wait again.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn release(&self, id: Uuid, by: By) -> Result<Operated, StoreError> {
        self.store.operate(by.does(id, Action::Release)).await
    }

    /// Makes a payment due now.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn retry(&self, id: Uuid, by: By) -> Result<Operated, StoreError> {
        self.store.operate(by.does(id, Action::Retry)).await
    }

    /// Takes a payment back: one of which nothing was sent ends here; for one that may have been made a
    /// reversal is queued, where one of these billers takes it.
    ///
    /// # Errors
    /// [`PaymentError`].
    pub async fn cancel(
        &self,
        id: Uuid,
        billers: &[Arc<Biller>],
        by: By,
    ) -> Result<Operated, PaymentError> {
        let taking = self.reversal_of(id, billers).await?;
        let reverses = taking.is_some();
        let operated = self.store.operate(by.does(id, Action::Cancel(taking))).await?;
        self.count(&operated);
        if let Operated::Done { status: Status::Failed, target, .. } = &operated
            && reverses
        {
            self.is_taken_back(id, target).await;
        }
        Ok(operated)
    }

    /// What takes back a payment that may have been made; `None` when its biller does not, or when
    /// what is stored of it does not tell.
    async fn reversal_of(
        &self,
        id: Uuid,
        billers: &[Arc<Biller>],
    ) -> Result<Option<Box<TakingBack>>, PaymentError> {
        let Some((facts, payload)) = self.store.payload(id).await? else { return Ok(None) };
        let biller = billers.iter().find(|biller| biller.name == facts.target);
        if facts.kind != PAYMENT || !biller.is_some_and(|biller| biller.route.reversal) {
            return Ok(None);
        }
        match self.payments.order(&facts, &payload).await {
            Ok(order) => Ok(Some(Box::new(self.taking_back(&facts, &order)?.0))),
            Err(error) => {
                tracing::warn!(payment = %id, %error, "its reversal cannot be made");
                Ok(None)
            }
        }
    }

    /// Takes back what the same operator has proposed.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn withdraw(&self, id: Uuid, by: By) -> Result<Operated, StoreError> {
        self.store.operate(by.does(id, Action::Withdraw)).await
    }

    /// Ends a held payment that may have been made, as a person found out at the biller. Its client's
    /// repeats are answered so from then on.
    ///
    /// # Errors
    /// [`PaymentError`].
    pub async fn settle_by_hand(
        &self,
        id: Uuid,
        found: &Settlement,
        by: By,
    ) -> Result<Operated, PaymentError> {
        let Some(shown) = self.store.show(id).await? else { return Ok(Operated::Unknown) };
        let (facts, (outcome, status)) = (&shown.listed.facts, ended(found));
        let body = final_answer(facts, status, &found.response_code);
        let ending = self.payments.ending(facts, outcome, &found.response_code, (200, &body))?;
        let operated = self.store.operate(by.does(id, Action::Settle(ending))).await?;
        self.count(&operated);
        Ok(operated)
    }

    /// What operators last said of each biller.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn controls(&self) -> Result<Vec<StandingControl>, StoreError> {
        self.store.controls().await
    }

    /// Pauses or resumes a biller, for every replica.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn control(&self, target: &str, paused: bool, by: By) -> Result<(), StoreError> {
        let By { actor, reason } = by;
        let control = Control { target: target.to_owned(), paused, actor, reason };
        self.store.control(control).await
    }

    /// Shows which of these billers are paused, by whichever replica, until `stop`.
    pub async fn tell_paused(self: Arc<Self>, billers: Vec<String>, stop: CancellationToken) {
        let mut ticks = interval(LOOK_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let controls = match self.store.controls().await {
                Ok(controls) => controls,
                Err(error) => {
                    tracing::warn!(%error, "reading which billers are paused");
                    continue;
                }
            };
            for biller in &billers {
                let said = controls.iter().find(|said| said.control.target == *biller);
                show_paused(biller, said.is_some_and(|said| said.control.paused));
            }
        }
    }

    /// An end that no biller's answer made.
    fn count(&self, operated: &Operated) {
        if let Operated::Done { status, target, .. } = operated {
            self.count_payment(target, *status);
        }
    }
}

/// How late a pause shows in the figures.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
