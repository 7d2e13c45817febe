//! What operators have ordered breakers to be. An order holds until it is cleared.

use super::StoreError;
use super::db::{Db, Readers, Row, query};
use super::order::Order;
use super::writer::Batch;

/// One breaker's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerOrder {
    /// The breaker.
    pub name: String,
    /// What it is to be.
    pub state: OrderedState,
    /// The operator.
    pub actor: String,
    /// In the operator's words.
    pub reason: String,
}

/// What the table has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BreakerOrders {
    /// What may be followed, by name.
    pub standing: Vec<StandingOrder>,
    /// Breakers whose order names a state that is not one of ours.
    pub foreign: Vec<String>,
    /// Whether there are more than were read.
    pub more: bool,
}

/// An order that nobody has cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingOrder {
    /// What was ordered.
    pub order: BreakerOrder,
    /// When. Milliseconds since 1970.
    pub set_at: i64,
}

/// A state that holds whatever becomes of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderedState {
    /// No call passes.
    ForcedOpen,
    /// Every call passes.
    Disabled,
}

impl OrderedState {
    /// `forced_open` or `disabled`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
        }
    }
}

/// Records an order; it takes the place of an earlier one.
pub(super) struct SetOrder(pub(super) BreakerOrder);

impl Order for SetOrder {
    type Answer = ();

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<(), StoreError> {
        let BreakerOrder { name, state, actor, reason } = &self.0;
        query(SET)
            .bind(name)
            .bind(state.name())
            .bind(actor)
            .bind(reason)
            .bind(batch.now)
            .execute(db)
            .await?;
        Ok(())
    }
}

/// Ends a breaker's order. Whether there was one.
pub(super) struct ClearOrder {
    pub(super) name: String,
}

impl Order for ClearOrder {
    type Answer = bool;

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<bool, StoreError> {
        Ok(query(CLEAR).bind(&self.name).execute(db).await? > 0)
    }
}

/// The orders, by name.
pub(super) async fn all(readers: &Readers) -> Result<BreakerOrders, StoreError> {
    let mut reader = readers.acquire().await?;
    let rows = query(ALL).bind(ORDERS_MAX + 1).all(&mut reader.db()).await?;
    let most = usize::try_from(ORDERS_MAX).unwrap_or(usize::MAX);
    let mut orders = BreakerOrders { more: rows.len() > most, ..BreakerOrders::default() };
    for row in rows.iter().take(most) {
        let name: String = row.get("name")?;
        match read(name, row)? {
            Ok(order) => orders.standing.push(order),
            Err(name) => orders.foreign.push(name),
        }
    }
    Ok(orders)
}

/// The order; the name alone when its state is foreign.
fn read(name: String, row: &Row) -> Result<Result<StandingOrder, String>, StoreError> {
    let state = match row.get::<String>("state")?.as_str() {
        "forced_open" => OrderedState::ForcedOpen,
        "disabled" => OrderedState::Disabled,
        _ => return Ok(Err(name)),
    };
    let (actor, reason) = (row.get("actor")?, row.get("reason")?);
    let order = BreakerOrder { name, state, actor, reason };
    Ok(Ok(StandingOrder { order, set_at: row.get("set_at")? }))
}

/// Orders that are read: more than a configuration has breakers.
const ORDERS_MAX: i64 = 1_024;

const SET: &str = "
INSERT INTO breaker_order (name, state, actor, reason, set_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (name) DO UPDATE SET
    state = excluded.state, actor = excluded.actor, reason = excluded.reason,
    set_at = excluded.set_at";

const CLEAR: &str = "DELETE FROM breaker_order WHERE name = $1";

const ALL: &str = "
SELECT name, state, actor, reason, set_at FROM breaker_order ORDER BY name LIMIT $1";
