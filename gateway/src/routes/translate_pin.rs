//! POST /v1/pin/translate.

use axum::Json;
use axum::extract::State;
use compliance::{EventType, PanLastFour, ResourceType};
use hsm_adapter::vocabulary::{Pan, PinBlock};
use serde::Serialize;

use super::Gateway;
use super::asked::{Asking, JsonBody, Permitted, TRANSLATE, not_allowed, note_place};
use super::deadline::{REQUEST_TIMEOUT, keep};
use super::refusal::{block_refused, problem_of};
use crate::audit::AuditEntry;
use crate::guard::PinOrder;
use crate::links::Deadline;
use crate::wire::orders::{TranslateOrder, TranslateRequest};
use crate::wire::problem::{Problem, ProblemBody};

/// A translated PIN block.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Translated {
    /// Hex, under the outbound key.
    #[schema(example = "8930E12067D92AB9")]
    pin_block: String,
    /// Its format.
    #[schema(example = "iso0")]
    format: &'static str,
    /// The outbound key.
    #[schema(example = "zpk.billing")]
    key: String,
    /// The version of that key.
    #[schema(example = 1)]
    key_version: u32,
    /// The inbound KSN, whole, when one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "FFFF9876543210E00001")]
    ksn: Option<String>,
    /// The outbound KSN, whole, when one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_ksn: Option<String>,
}

/// Re-enciphers a PIN block from the client's zone to another.
///
/// The PAN is one and cannot change. Formats: iso0, iso3 and iso4 among themselves, iso1 to each of
/// them. Everything that is wrong with the block, and a KSN that was used before, gives the one
/// answer `pin-block-refused`.
#[utoipa::path(
    post,
    path = "/v1/pin/translate",
    params(("Request-Timeout" = Option<String>, Header, description = REQUEST_TIMEOUT)),
    request_body = TranslateRequest,
    responses(
        (status = 200, body = Translated),
        (status = 400, description = "malformed-request", body = ProblemBody),
        (status = 403, description = "not-allowed: keys, formats or pair are not granted", body = ProblemBody),
        (status = 422, description = "pin-block-refused", body = ProblemBody),
        (status = 429, description = "too-many-requests", body = ProblemBody),
        (status = 503, description = "hsm-unavailable, audit-unavailable, overloaded", body = ProblemBody),
    )
)]
pub(super) async fn translate_pin(
    State(gateway): State<Gateway>,
    entry: AuditEntry,
    Asking(client): Asking,
    permit: Permitted<TRANSLATE>,
    deadline: Deadline,
    JsonBody(body): JsonBody,
) -> Result<(Permitted<TRANSLATE>, Json<Translated>), Problem> {
    entry.event(EventType::PinTranslate);
    let TranslateOrder { pan, pin_block, from, to } = TranslateOrder::parse(&body)?;
    describe(&entry, &pan);
    entry.resource(ResourceType::Key, &format!("{}>{}", from.key, to.key));
    let grants = gateway.authority.grants(client.id());
    if !grants.may_translate(&from.key.label, from.format, &to.key.label, to.format) {
        return Err(not_allowed(&entry));
    }
    // A block of a size that no format has is refused as every other bad block.
    let block = PinBlock::new(pin_block).map_err(|_| block_refused(&entry))?;
    let (format, key) = (to.format.name(), to.key.label.to_string());
    let (ksn, to_ksn) = (from.ksn.map(|ksn| ksn.to_string()), to.ksn.map(|ksn| ksn.to_string()));
    let order = PinOrder { pan, block, from };
    let work = gateway.guard.translate_pin(client.id(), order, to, None, deadline.work_by);
    let (place, translated) = keep(deadline, work).await?;
    note_place(&entry, place);
    let translated = translated.map_err(|error| problem_of(&entry, &error))?;
    let pin_block = hex::encode_upper(translated.block.expose());
    let key_version = translated.key_version;
    Ok((permit, Json(Translated { pin_block, format, key, key_version, ksn, to_ksn })))
}

/// Says which card, as far as a record may.
pub(super) fn describe(entry: &AuditEntry, pan: &Pan) {
    if let Ok(last_four) = PanLastFour::parse(&pan.last_four()) {
        entry.pan_last4(last_four);
    }
}
