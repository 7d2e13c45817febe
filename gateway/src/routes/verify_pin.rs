//! POST /v1/pin/verify.

use axum::Json;
use axum::extract::State;
use compliance::{EventType, Outcome, Reason, ResourceType};
use hsm_adapter::protocol::PinReference;
use hsm_adapter::vocabulary::{KeyName, PinBlock};
use serde::Serialize;

use super::Gateway;
use super::asked::{Asking, JsonBody, Permitted, VERIFY, not_allowed, note_place};
use super::deadline::{REQUEST_TIMEOUT, keep};
use super::refusal::{block_refused, problem_of};
use super::translate_pin::describe;
use crate::audit::AuditEntry;
use crate::guard::PinOrder;
use crate::links::Deadline;
use crate::wire::orders::{VerifyPinOrder, VerifyPinRequest};
use crate::wire::problem::{Problem, ProblemBody};

/// Whether it is the PIN.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct PinVerified {
    /// False for a wrong PIN in a good block; a bad block is `pin-block-refused`.
    verified: bool,
}

/// Compares the PIN of a block with what the issuer keeps: a PVV, an offset, or a block.
///
/// A wrong PIN and a refused block both count as a failed try of the card; after too many in a row
/// it is blocked for a day, and looks like a card that is not granted.
#[utoipa::path(
    post,
    path = "/v1/pin/verify",
    params(("Request-Timeout" = Option<String>, Header, description = REQUEST_TIMEOUT)),
    request_body = VerifyPinRequest,
    responses(
        (status = 200, body = PinVerified),
        (status = 400, description = "malformed-request", body = ProblemBody),
        (status = 403, description = "not-allowed: zone or key is not granted, or the card is blocked", body = ProblemBody),
        (status = 422, description = "pin-block-refused", body = ProblemBody),
        (status = 429, description = "too-many-requests", body = ProblemBody),
        (status = 503, description = "hsm-unavailable, audit-unavailable, overloaded", body = ProblemBody),
    )
)]
pub(super) async fn verify_pin(
    State(gateway): State<Gateway>,
    entry: AuditEntry,
    Asking(client): Asking,
    permit: Permitted<VERIFY>,
    deadline: Deadline,
    JsonBody(body): JsonBody,
) -> Result<(Permitted<VERIFY>, Json<PinVerified>), Problem> {
    entry.event(EventType::PinVerify);
    let VerifyPinOrder { pan, pin_block, from, reference } = VerifyPinOrder::parse(&body)?;
    let with = key_of(&reference);
    describe(&entry, &pan);
    entry.resource(ResourceType::Key, &format!("{}>{with}", from.key));
    let grants = gateway.authority.grants(client.id());
    if !grants.may_verify(&from.key.label, from.format, &with.label) {
        return Err(not_allowed(&entry));
    }
    let block = PinBlock::new(pin_block).map_err(|_| block_refused(&entry))?;
    let order = PinOrder { pan, block, from };
    let work = gateway.guard.verify_pin(client.id(), order, reference, deadline.work_by);
    let (place, verdict) = keep(deadline, work).await?;
    note_place(&entry, place);
    let verified = verdict.map_err(|error| problem_of(&entry, &error))?.verified;
    if !verified {
        entry.outcome(Outcome::Failure).reason(Reason::PinWrong);
    }
    Ok((permit, Json(PinVerified { verified })))
}

fn key_of(reference: &PinReference) -> &KeyName {
    match reference {
        PinReference::Pvv { key, .. }
        | PinReference::Ibm3624 { key, .. }
        | PinReference::Block { key, .. } => key,
    }
}
