//! `/v1/queue/rollback/acknowledge`: an operator has seen that the database is an old copy.

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use compliance::{EventType, ResourceType};
use hsm_adapter::worker::chain;

use super::breakers::Operator;
use super::{Admin, Admitted};
use crate::audit::AuditEntry;
use crate::wire::body::JsonBody;
use crate::wire::problem::{Problem, Slug};
use crate::wire::reason::Reasoned;

/// The paths of this file.
pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/v1/queue/rollback/acknowledge", post(acknowledge))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// A reason and what is around it.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// 200 with `rolled_back`, whether there was a rollback to acknowledge, and `payments`, how many open
/// ones count as possibly sent.
async fn acknowledge(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Operator,
    _: Admitted,
    JsonBody(body): JsonBody,
) -> Result<Json<serde_json::Value>, Problem> {
    entry.event(EventType::QueueAcknowledge).resource(ResourceType::Queue, "rollback");
    let Reasoned { reason } = Reasoned::parse(&body)?;
    entry.note(&reason);
    let open = admin.relay.rollback().acknowledge().await.map_err(|error| {
        tracing::error!(error = chain(&error), "the acknowledgement of a rollback");
        Problem::new(Slug::Overloaded)
            .with_detail("not all of it is done, and what is done stays: repeat it")
    })?;
    let payments = open.unwrap_or(0);
    Ok(Json(serde_json::json!({ "rolled_back": open.is_some(), "payments": payments })))
}
