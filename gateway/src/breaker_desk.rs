//! The operator's hand on the breakers: an order is in the database before it is in force, so that
//! a restart and the other replicas keep it; and every transition is in the audit log.
//!
//! Rows are followed, not trusted: what another replica's operator ordered, or somebody who may write
//! the database, is on record here when it comes into force, and nothing of it is shown unmasked.

use std::sync::PoisonError;
use std::time::Duration;

use compliance::{Actor, Event, EventType, Label, Origin, Outcome, Resource, ResourceType, Role};
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::audit::{AuditLog, AuditUnavailable};
use crate::links::breaker::{Breaker, Forced, Snapshot, State, Transition};
use crate::store::{BreakerOrder, BreakerOrders, OrderedState, StandingOrder, Store, StoreError};

/// Every breaker of this gateway, and what operators ordered.
#[derive(Debug)]
pub struct BreakerDesk {
    breakers: Vec<Breaker>,
    store: Store,
    audit: AuditLog,
    /// Database and breaker change together: a look at the orders comes before or after.
    turn: Mutex<PassedOver>,
    /// Heard from the start on, until [`keep`](Self::keep) records them.
    heard: std::sync::Mutex<Vec<Receiver<Transition>>>,
}

/// The orders that the last look could not follow: each is told once, not at every look.
#[derive(Debug, Default)]
struct PassedOver {
    foreign: Vec<String>,
    more: bool,
}

/// What a reset came to.
#[derive(Debug)]
pub enum Reset {
    /// The breaker as it is then.
    Closed(Box<Snapshot>),
    /// No breaker has this name; an order had, and is ended.
    OrderEnded,
    /// Neither a breaker has it nor an order.
    Unknown,
}

impl BreakerDesk {
    /// Puts the orders of earlier runs in force, and tells of each.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn start(
        breakers: Vec<Breaker>,
        store: Store,
        audit: AuditLog,
    ) -> Result<Self, StoreError> {
        let heard = std::sync::Mutex::new(breakers.iter().map(Breaker::transitions).collect());
        let desk = Self { breakers, store, audit, turn: Mutex::default(), heard };
        let standing = desk.look().await?;
        standing.iter().for_each(|order| desk.tell(order));
        Ok(desk)
    }

    /// An order that nobody remembers keeps a link shut, or keeps what is shut open.
    fn tell(&self, StandingOrder { order, set_at }: &StandingOrder) {
        let BreakerOrder { name, state, actor, reason } = order;
        let (breaker, state, by) = (Label::new(name), state.name(), actor);
        let since = Timestamp::from_millisecond(*set_at).unwrap_or_default();
        match self.find(name) {
            Some(_) => tracing::warn!(
                %breaker, state, by, reason, %since,
                "an operator's order stands; `tollgate links reset` ends it"
            ),
            None => tracing::warn!(
                %breaker, state, by, reason, %since,
                "an operator's order stands for a breaker that does not exist (was a URL or a link \
                 taken away?); `tollgate links reset` with this name ends it"
            ),
        }
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

    /// Ends an order, of all replicas, and closes the breaker of this one, if there is one.
    ///
    /// # Errors
    /// As [`force`](Self::force).
    pub async fn reset(&self, name: &str, actor: &str, reason: &str) -> Result<Reset, StoreError> {
        let _turn = self.turn.lock().await;
        let ended = self.store.clear_breaker_order(name).await?;
        let reset = match self.find(name) {
            Some(breaker) => {
                breaker.reset();
                Reset::Closed(Box::new(breaker.snapshot()))
            }
            None if ended => Reset::OrderEnded,
            None => return Ok(Reset::Unknown),
        };
        tracing::warn!(breaker = %Label::new(name), by = actor, reason, "reset");
        Ok(reset)
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

    /// Makes every breaker what the database orders it to be, and gives the orders.
    async fn look(&self) -> Result<Vec<StandingOrder>, StoreError> {
        let mut passed_over = self.turn.lock().await;
        let BreakerOrders { standing, foreign, more } = self.store.breaker_orders().await?;
        let standing: Vec<_> = standing.into_iter().map(masked).collect();
        let mut new = Vec::new();
        for breaker in &self.breakers {
            match standing.iter().find(|it| it.order.name == breaker.name()) {
                Some(StandingOrder { order, .. }) => {
                    let to = match order.state {
                        OrderedState::ForcedOpen => Forced::Open,
                        OrderedState::Disabled => Forced::Disabled,
                    };
                    // What was asked for here is in force already, and on record.
                    if breaker.state() != to.state() {
                        new.push(order);
                    }
                    breaker.force(to, &order.actor, &order.reason);
                }
                // Nobody has said that it may be closed.
                None if more || foreign.iter().any(|name| name == breaker.name()) => {}
                None => match breaker.state() {
                    State::ForcedOpen | State::Disabled => breaker.reset(),
                    State::Closed | State::Open | State::HalfOpen => {}
                },
            }
        }
        for name in foreign.iter().filter(|name| !passed_over.foreign.contains(name)) {
            tracing::error!(
                breaker = %Label::new(name),
                "its order names a state that this release does not know: passed over; \
                 `tollgate links reset` ends it"
            );
        }
        if more && !passed_over.more {
            tracing::error!("more orders for breakers than any gateway has: some are passed over");
        }
        *passed_over = PassedOver { foreign, more };
        drop(passed_over);
        for order in new {
            if let Err(AuditUnavailable) = self.audit.append(forced(order, &self.audit)).await {
                tracing::error!(breaker = order.name, "its order is not in the audit log");
            }
        }
        Ok(standing)
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

/// The order without what no log and no terminal may get, whoever wrote the row.
fn masked(mut standing: StandingOrder) -> StandingOrder {
    let BreakerOrder { actor, reason, .. } = &mut standing.order;
    for text in [actor, reason] {
        *text = Label::new(text).to_string();
    }
    standing
}

/// An order that was found in the database, as the operator's own: its origin tells them apart.
fn forced(order: &BreakerOrder, audit: &AuditLog) -> Event {
    let by = Actor::admin(Label::new(&order.actor), [Role::Operator]);
    let on = Resource::new(ResourceType::Breaker, Label::new(&order.name));
    let (now, origin) = (Timestamp::now(), Origin::inside(audit.host()));
    let event = Event::new(by, EventType::BreakerForce, now, Outcome::Success, origin, on);
    event.note(Label::new(&order.reason))
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::AuditConfig;
    use crate::links::breaker::{BreakerConfig, Pace};
    use crate::store::tests::breaker_orders::put_order;
    use crate::store::tests::{On, World};

    const NAMES: [&str; 2] = ["biller.pln", "biller.pdam"];

    async fn desk(world: &World) -> BreakerDesk {
        let config = AuditConfig::at(world.directory.path().join("audit"));
        let audit = AuditLog::open(&config, "gateway-1", uuid::Uuid::now_v7(), None).unwrap();
        let pace = Pace::of_attempt(Duration::from_secs(2));
        let breakers = NAMES.map(|name| Breaker::new(name, BreakerConfig::default(), pace));
        BreakerDesk::start(breakers.into(), world.store.clone(), audit).await.unwrap()
    }

    /// The events of orders: breaker, actor and note.
    async fn on_record(desk: BreakerDesk, world: &World) -> Vec<[String; 3]> {
        desk.audit.close().await;
        let mut events = Vec::new();
        for file in std::fs::read_dir(world.directory.path().join("audit")).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap_or_default();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let forced = lines.filter(|event| event["event"]["type"] == "breaker.force");
            let word = |value: &Value| value.as_str().unwrap().to_owned();
            events.extend(forced.map(|event| {
                [&event["resource"]["id"], &event["actor"]["id"], &event["note"]].map(word)
            }));
        }
        events
    }

    #[tokio::test]
    async fn an_order_in_the_database_is_masked_and_on_record_when_it_comes_into_force() {
        let world = World::new(On::Sqlite).await;
        put_order(&world, NAMES[0], "forced_open").await;

        let desk = desk(&world).await;
        desk.look().await.unwrap();

        let by = desk.snapshot(NAMES[0]).unwrap().forced.unwrap();
        assert_eq!((by.by.as_str(), by.reason.as_str()), ("mallory", "card [pan removed]"));
        let told = on_record(desk, &world).await;
        assert_eq!(told, [[NAMES[0], "mallory", "card [pan removed]"].map(str::to_owned)]);
    }

    #[tokio::test]
    async fn what_was_asked_for_here_is_on_record_by_its_request_alone() {
        let world = World::new(On::Sqlite).await;
        let desk = desk(&world).await;

        desk.force(NAMES[0], Forced::Open, "operator", "maintenance").await.unwrap();
        desk.look().await.unwrap();

        assert_eq!(desk.snapshot(NAMES[0]).unwrap().state, State::ForcedOpen);
        assert!(on_record(desk, &world).await.is_empty());
    }

    #[tokio::test]
    async fn an_order_that_cannot_be_read_stops_no_other_and_opens_nothing() {
        let world = World::new(On::Sqlite).await;
        let desk = desk(&world).await;
        desk.force(NAMES[1], Forced::Open, "operator", "maintenance").await.unwrap();
        world.store.clear_breaker_order(NAMES[1]).await.unwrap();
        put_order(&world, NAMES[1], "half_open").await;
        put_order(&world, NAMES[0], "disabled").await;

        let looked = desk.look().await;

        assert!(looked.is_ok(), "{looked:?}");
        let states = NAMES.map(|name| desk.snapshot(name).unwrap().state);
        assert_eq!(states, [State::Disabled, State::ForcedOpen]);
    }

    #[tokio::test]
    async fn a_reset_ends_an_order_whose_breaker_is_gone() {
        let world = World::new(On::Sqlite).await;
        put_order(&world, "biller.pln.2", "forced_open").await;
        let desk = desk(&world).await;

        let ended = desk.reset("biller.pln.2", "operator", "its URL is gone").await.unwrap();
        let again = desk.reset("biller.pln.2", "operator", "its URL is gone").await.unwrap();

        assert!(matches!(ended, Reset::OrderEnded), "{ended:?}");
        assert!(matches!(again, Reset::Unknown), "{again:?}");
        assert!(desk.look().await.unwrap().is_empty());
    }
}
