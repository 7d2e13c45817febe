//! The operator's hand on the breakers: an order is in the database before it is in force, so that
//! a restart and the other replicas keep it; and every transition is in the audit log.

use std::sync::PoisonError;
use std::time::Duration;

use compliance::{Event, EventType, Label, Outcome, Resource, ResourceType};
use tokio::sync::Mutex;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::audit::{AuditLog, AuditUnavailable};
use crate::links::breaker::{Breaker, Forced, Snapshot, State, Transition};
use crate::store::{BreakerOrder, OrderedState, Store, StoreError};

/// Every breaker of this gateway, and what operators ordered.
#[derive(Debug)]
pub struct BreakerDesk {
    breakers: Vec<Breaker>,
    store: Store,
    audit: AuditLog,
    /// Database and breaker change together: a look at the orders comes before or after.
    turn: Mutex<()>,
    /// Heard from the start on, until [`keep`](Self::keep) records them.
    heard: std::sync::Mutex<Vec<Receiver<Transition>>>,
}

impl BreakerDesk {
    /// Puts the orders of earlier runs in force.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn start(
        breakers: Vec<Breaker>,
        store: Store,
        audit: AuditLog,
    ) -> Result<Self, StoreError> {
        let heard = std::sync::Mutex::new(breakers.iter().map(Breaker::transitions).collect());
        let desk = Self { breakers, store, audit, turn: Mutex::new(()), heard };
        desk.look().await?;
        Ok(desk)
    }

    /// Every breaker as it is now.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.breakers.iter().map(Breaker::snapshot).collect()
    }

    /// One breaker as it is now.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> Option<Snapshot> {
        self.find(name).map(Breaker::snapshot)
    }

    /// Forces a breaker, until a reset. How it is then; `None` when there is no such breaker.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`]: the breaker is as it was, unless another
    /// look finds the order in the database.
    pub async fn force(
        &self,
        name: &str,
        to: Forced,
        actor: &str,
        reason: &str,
    ) -> Result<Option<Snapshot>, StoreError> {
        let Some(breaker) = self.find(name) else { return Ok(None) };
        let _turn = self.turn.lock().await;
        let state = match to {
            Forced::Open => OrderedState::ForcedOpen,
            Forced::Disabled => OrderedState::Disabled,
        };
        let (name, actor, reason) = (name.to_owned(), actor.to_owned(), reason.to_owned());
        let order = BreakerOrder { name, state, actor, reason };
        self.store.order_breaker(order.clone()).await?;
        breaker.force(to, &order.actor, &order.reason);
        tracing::warn!(breaker = order.name, state = to.state().name(), by = order.actor, "forced");
        Ok(Some(breaker.snapshot()))
    }

    /// Ends an order, of all replicas, and closes the breaker of this one. How it is then; `None` when there is no such breaker.
    ///
    /// # Errors
    /// As [`force`](Self::force).
    pub async fn reset(
        &self,
        name: &str,
        actor: &str,
        reason: &str,
    ) -> Result<Option<Snapshot>, StoreError> {
        let Some(breaker) = self.find(name) else { return Ok(None) };
        let _turn = self.turn.lock().await;
        self.store.clear_breaker_order(name).await?;
        breaker.reset();
        tracing::warn!(breaker = name, by = actor, reason, "reset");
        Ok(Some(breaker.snapshot()))
    }

    /// Follows the orders of other replicas and records every transition, until `stop`.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut listeners = JoinSet::new();
        let heard = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        for transitions in heard {
            listeners.spawn(record(transitions, self.audit.clone()));
        }
        let mut ticks = interval(LOOK_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.look().await {
                tracing::error!(%error, "reading the orders for breakers");
            }
        }
    }

    /// Makes every breaker what the database orders it to be.
    async fn look(&self) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let orders = self.store.breaker_orders().await?;
        for breaker in &self.breakers {
            match orders.iter().find(|order| order.name == breaker.name()) {
                Some(BreakerOrder { state, actor, reason, .. }) => {
                    let to = match state {
                        OrderedState::ForcedOpen => Forced::Open,
                        OrderedState::Disabled => Forced::Disabled,
                    };
                    breaker.force(to, actor, reason);
                }
                None => match breaker.state() {
                    State::ForcedOpen | State::Disabled => breaker.reset(),
                    State::Closed | State::Open | State::HalfOpen => {}
                },
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&Breaker> {
        self.breakers.iter().find(|breaker| breaker.name() == name)
    }
}

/// Records each transition that is heard. Ends with the breaker.
async fn record(mut transitions: Receiver<Transition>, audit: AuditLog) {
    loop {
        match transitions.recv().await {
            Ok(transition) => {
                if let Err(AuditUnavailable) = audit.append(event(&transition, &audit)).await {
                    tracing::error!(?transition, "not in the audit log");
                }
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::error!(missed, "transitions of a breaker are not in the audit log");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn event(transition: &Transition, audit: &AuditLog) -> Event {
    let Transition { name, from, to, reason } = transition;
    let on = Resource::new(ResourceType::Breaker, Label::new(name));
    let note = format!("{} to {}: {}", from.name(), to.name(), reason.name());
    let event = audit.own_event(EventType::BreakerTransition, Outcome::Success, on);
    event.note(Label::new(&note))
}

/// How late an order of another replica may be in force here.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
