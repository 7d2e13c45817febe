//! POST /v1/mac/generate.

use axum::Json;
use axum::extract::State;
use compliance::{EventType, ResourceType};
use serde::Serialize;

use super::Gateway;
use super::asked::{Asking, JsonBody, MAC, Permitted, not_allowed};
use super::deadline::{REQUEST_TIMEOUT, keep};
use super::refusal::{problem_of, problem_of_hsm};
use crate::audit::AuditEntry;
use crate::links::Deadline;
use crate::wire::orders::{GenerateMacOrder, GenerateMacRequest};
use crate::wire::problem::{Problem, ProblemBody};

/// A MAC.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct MadeMac {
    /// Hex, the left-most bytes.
    #[schema(example = "459D91B050EFF81D")]
    mac: String,
    /// The key's algorithm.
    #[schema(example = "retail")]
    algorithm: &'static str,
    /// The version that made it.
    #[schema(example = 1)]
    key_version: u32,
}

/// Makes a MAC. Algorithm and padding belong to the key, and so do the lengths that it allows.
#[utoipa::path(
    post,
    path = "/v1/mac/generate",
    params(("Request-Timeout" = Option<String>, Header, description = REQUEST_TIMEOUT)),
    request_body = GenerateMacRequest,
    responses(
        (status = 200, body = MadeMac),
        (status = 400, description = "malformed-request", body = ProblemBody),
        (status = 403, description = "not-allowed: the key is not granted for generation", body = ProblemBody),
        (status = 429, description = "too-many-requests", body = ProblemBody),
        (status = 503, description = "hsm-unavailable, audit-unavailable, overloaded", body = ProblemBody),
    )
)]
pub(super) async fn generate_mac(
    State(gateway): State<Gateway>,
    entry: AuditEntry,
    Asking(client): Asking,
    permit: Permitted<MAC>,
    deadline: Deadline,
    JsonBody(body): JsonBody,
) -> Result<(Permitted<MAC>, Json<MadeMac>), Problem> {
    entry.event(EventType::MacGenerate);
    let GenerateMacOrder { key, ksn, message, length } = GenerateMacOrder::parse(&body)?;
    entry.resource(ResourceType::Key, &key.to_string());
    if !gateway.authority.grants(client.id()).mac_generate.contains(&key.label) {
        return Err(not_allowed(&entry));
    }
    gateway.guard.may_mac(&key.label).map_err(|error| problem_of(&entry, &error))?;
    let work = gateway.hsm.generate_mac(key, ksn, message, length, deadline.work_by);
    let made = keep(deadline, work).await?.map_err(|error| problem_of_hsm(&entry, &error))?;
    let mac = hex::encode_upper(made.mac);
    let (algorithm, key_version) = (made.algorithm.name(), made.key_version);
    Ok((permit, Json(MadeMac { mac, algorithm, key_version })))
}
