//! What operators have ordered breakers to be. An order holds until it is cleared.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};

use super::StoreError;
use super::writer::{Batch, Order};

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

/// A state that holds whatever becomes of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderedState {
    /// No call passes.
    ForcedOpen,
    /// Every call passes.
    Disabled,
}

impl OrderedState {
    fn name(self) -> &'static str {
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

    async fn run(&self, db: &mut SqliteConnection, batch: &mut Batch) -> Result<(), StoreError> {
        let BreakerOrder { name, state, actor, reason } = &self.0;
        sqlx::query(SET)
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

/// Ends a breaker's order, if there is one.
pub(super) struct ClearOrder {
    pub(super) name: String,
}

impl Order for ClearOrder {
    type Answer = ();

    async fn run(&self, db: &mut SqliteConnection, _: &mut Batch) -> Result<(), StoreError> {
        sqlx::query(CLEAR).bind(&self.name).execute(db).await?;
        Ok(())
    }
}

/// Every order.
pub(super) async fn all(readers: &SqlitePool) -> Result<Vec<BreakerOrder>, StoreError> {
    let rows = sqlx::query(ALL).fetch_all(readers).await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<BreakerOrder, StoreError> {
    let state = match row.try_get::<&str, _>("state")? {
        "forced_open" => OrderedState::ForcedOpen,
        "disabled" => OrderedState::Disabled,
        _ => return Err(StoreError::Foreign("state")),
    };
    Ok(BreakerOrder {
        name: row.try_get("name")?,
        state,
        actor: row.try_get("actor")?,
        reason: row.try_get("reason")?,
    })
}

const SET: &str = "
INSERT INTO breaker_order (name, state, actor, reason, set_at) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (name) DO UPDATE SET
    state = excluded.state, actor = excluded.actor, reason = excluded.reason,
    set_at = excluded.set_at";

const CLEAR: &str = "DELETE FROM breaker_order WHERE name = ?1";

const ALL: &str = "SELECT name, state, actor, reason FROM breaker_order ORDER BY name";
