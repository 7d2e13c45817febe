//! POST /v1/mac/verify.

use axum::Json;
use axum::extract::State;
use compliance::{EventType, Outcome, Reason, ResourceType};
use hsm_adapter::protocol::Message;
use serde::Serialize;

use super::Gateway;
use super::asked::{Asking, JsonBody, MAC, Permitted, not_allowed};
use super::deadline::{REQUEST_TIMEOUT, keep};
use super::refusal::problem_of;
use crate::audit::AuditEntry;
use crate::guard::MacOrder;
use crate::links::Deadline;
use crate::wire::orders::{VerifyMacOrder, VerifyMacRequest};
use crate::wire::problem::{Problem, ProblemBody};

/// Whether the MAC is right.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Verified {
    /// False for a wrong MAC, one of another length than the key's, and a KSN that was used before.
    verified: bool,
}

/// Verifies a MAC of the key's own length, in constant time.
#[utoipa::path(
    post,
    path = "/v1/mac/verify",
    params(("Request-Timeout" = Option<String>, Header, description = REQUEST_TIMEOUT)),
    request_body = VerifyMacRequest,
    responses(
        (status = 200, body = Verified),
        (status = 400, description = "malformed-request", body = ProblemBody),
        (status = 403, description = "not-allowed: the key is not granted for verification", body = ProblemBody),
        (status = 429, description = "too-many-requests", body = ProblemBody),
        (status = 503, description = "hsm-unavailable, audit-unavailable, overloaded", body = ProblemBody),
    )
)]
pub(super) async fn verify_mac(
    State(gateway): State<Gateway>,
    entry: AuditEntry,
    Asking(client): Asking,
    permit: Permitted<MAC>,
    deadline: Deadline,
    JsonBody(body): JsonBody,
) -> Result<(Permitted<MAC>, Json<Verified>), Problem> {
    entry.event(EventType::MacVerify);
    let VerifyMacOrder { key, ksn, message, mac } = VerifyMacOrder::parse(&body)?;
    entry.resource(ResourceType::Key, &key.to_string());
    if !gateway.authority.grants(client.id()).mac_verify.contains(&key.label) {
        return Err(not_allowed(&entry));
    }
    let order = MacOrder { key, ksn, message: Message(message), mac: Message(mac) };
    let work = gateway.guard.verify_mac(client.id(), order, deadline.work_by);
    let verified = keep(deadline, work).await?.map_err(|error| problem_of(&entry, &error))?;
    if !verified {
        entry.outcome(Outcome::Failure).reason(Reason::MacWrong);
    }
    Ok((permit, Json(Verified { verified })))
}
