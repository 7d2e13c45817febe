//! `/v1/breakers`: every breaker as it is, and an operator's hand on it.
//!
//! Every admin role may look. To force or to reset is an operator's, with a reason that the audit
//! record keeps.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use compliance::{EventType, ResourceType};
use hsm_adapter::worker::chain;

use super::{Admin, Admitted, Watching, access, one_of};
use crate::audit::AuditEntry;
use crate::breaker_desk::Reset;
use crate::edge::Client;
use crate::links::breaker::{Forced, Snapshot};
use crate::wire::body::JsonBody;
use crate::wire::problem::{Problem, Slug};
use crate::wire::reason::Reasoned;

/// The paths of this file.
pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/v1/breakers", get(list))
        .route("/v1/breakers/{name}", get(show))
        .route("/v1/breakers/{name}/{order}", post(order))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// A reason and what is around it.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// An operator, proved by the TLS handshake.
pub(super) struct Operator(pub(super) Arc<Client>);

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        one_of(parts, access::OPERATORS).map(Self)
    }
}

async fn list(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Watching,
    _: Admitted,
) -> Json<serde_json::Value> {
    entry.event(EventType::AdminRead);
    Json(serde_json::json!({ "breakers": admin.breakers.snapshots() }))
}

async fn show(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Watching,
    _: Admitted,
    Path(name): Path<String>,
) -> Result<Json<Snapshot>, Problem> {
    entry.event(EventType::AdminRead).resource(ResourceType::Breaker, &name);
    admin.breakers.snapshot(&name).map(Json).ok_or_else(|| Problem::new(Slug::NotFound))
}

/// POST `/v1/breakers/{name}/force-open`, `disable` or `reset`: 200 with the breaker as it is then; 204
/// when there was only an order, which the reset has ended.
async fn order(
    State(admin): State<Admin>,
    entry: AuditEntry,
    Operator(operator): Operator,
    _: Admitted,
    Path((name, order)): Path<(String, String)>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (kind, forced) = match order.as_str() {
        "force-open" => (EventType::BreakerForce, Some(Forced::Open)),
        "disable" => (EventType::BreakerForce, Some(Forced::Disabled)),
        "reset" => (EventType::LinkReset, None),
        _ => return Err(Problem::new(Slug::NotFound)),
    };
    entry.event(kind).resource(ResourceType::Breaker, &name);
    let Reasoned { reason } = Reasoned::parse(&body)?;
    entry.note(&reason);
    let (desk, actor) = (&admin.breakers, operator.id());
    let done = match forced {
        Some(to) => {
            let breaker = desk.force(&name, to, actor, &reason).await;
            breaker.map(|breaker| breaker.map(|breaker| Json(breaker).into_response()))
        }
        None => desk.reset(&name, actor, &reason).await.map(|reset| match reset {
            Reset::Closed(breaker) => Some(Json(*breaker).into_response()),
            Reset::OrderEnded => Some(StatusCode::NO_CONTENT.into_response()),
            Reset::Unknown => None,
        }),
    };
    let answer = done.map_err(|error| {
        tracing::error!(error = chain(&error), "orders for breakers");
        Problem::new(Slug::Overloaded)
    })?;
    answer.ok_or_else(|| Problem::new(Slug::NotFound))
}
