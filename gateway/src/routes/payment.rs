//! POST /v1/payments and GET /v1/payments/{id}.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use compliance::{EventType, Outcome, PanLastFour, Reason, ResourceType};
use hsm_adapter::protocol::{Message, PinKey};
use hsm_adapter::vocabulary::{KeyLabel, PinBlock};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::Gateway;
use super::asked::{
    Asking, JsonBody, PAYMENT, Permitted, header as header_text, json, not_allowed,
};
use super::deadline::{REQUEST_TIMEOUT, keep};
use super::refusal::{block_refused, problem_of, problem_of_hsm, seconds};
use crate::audit::AuditEntry;
use crate::config::Grants;
use crate::guard::{MacOrder, PinOrder};
use crate::links::{Deadline, Patience};
use crate::relay::biller::Biller;
use crate::relay::idempotency::IdempotencyKey;
use crate::relay::pay::{Instruction, PayError, Receipt};
use crate::relay::payment::{PaymentError, PaymentOrder};
use crate::store::Status;
use crate::wire::orders::{PaymentRequest, PaymentText};
use crate::wire::problem::{Problem, ProblemBody, Slug};

const MAC_HEADER: HeaderName = HeaderName::from_static("tollgate-mac");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The final answer to a payment.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Paid {
    /// The payment.
    id: Uuid,
    /// SUCCESS or FAILED.
    #[schema(example = "SUCCESS")]
    status: String,
    /// DE 39 of ISO 8583.
    #[schema(example = "00")]
    response_code: String,
    /// What the biller knows the payment by.
    reference: Uuid,
}

/// A payment that is durable and not yet paid.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Accepted {
    /// The payment.
    id: Uuid,
    /// PENDING; PROCESSING when its outcome was not known in time; HELD when it may have been made
    /// and a person has to find out.
    #[schema(value_type = String, example = "PENDING")]
    status: Status,
}

/// A payment as its client may see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct PaymentState {
    /// The payment.
    id: Uuid,
    /// PENDING PROCESSING SUCCESS FAILED EXPIRED CANCELLED HELD.
    #[schema(value_type = String, example = "SUCCESS")]
    status: Status,
    /// What the biller knows the payment by.
    reference: String,
    /// Once the biller has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_code: Option<String>,
    /// Attempts at the biller.
    attempts: u32,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
    /// What happened, in order.
    history: Vec<Happened>,
}

/// One thing that happened to a payment.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Happened {
    /// RFC 3339.
    at: String,
    /// What.
    what: String,
    /// The biller's code or the cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
}

/// Makes a payment, once for each idempotency key.
///
/// The MAC covers the exact bytes of the body; a client without a MAC key sends none. 200 is the biller's final answer; 202 says that the
/// payment is durable and will be forwarded: it must be treated as not yet paid.
#[utoipa::path(
    post,
    path = "/v1/payments",
    params(
        ("Idempotency-Key" = String, Header, description = "A quoted string of 1 to 255 printable ASCII characters"),
        ("Request-Timeout" = Option<String>, Header, description = REQUEST_TIMEOUT),
        ("Tollgate-Mac" = Option<String>, Header, description = "<key label>:<hex MAC of the exact body>; needed unless the client has no MAC key"),
    ),
    request_body = PaymentText,
    responses(
        (status = 200, body = Paid),
        (status = 202, body = Accepted),
        (status = 400, description = "malformed-request", body = ProblemBody),
        (status = 403, description = "not-allowed", body = ProblemBody),
        (status = 409, description = "request-in-progress", body = ProblemBody),
        (status = 422, description = "mac-refused, pin-block-refused, idempotency-key-reused", body = ProblemBody),
        (status = 429, description = "too-many-requests", body = ProblemBody),
        (status = 503, description = "backend-unavailable, hsm-unavailable, queue-full, overloaded, audit-unavailable", body = ProblemBody),
    )
)]
pub(super) async fn make_payment(
    State(gateway): State<Gateway>,
    entry: AuditEntry,
    Asking(client): Asking,
    permit: Permitted<PAYMENT>,
    deadline: Deadline,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    entry.event(EventType::PaymentAccept);
    let key = idempotency_key(&headers)?;
    let grants = gateway.authority.grants(client.id());
    let Some(granted) = &grants.payments else { return Err(not_allowed(&entry)) };
    let mac_key = granted.mac_key.as_ref();
    verify_mac(&gateway, &entry, client.id(), mac_key, &headers, &body, deadline).await?;
    let request = PaymentRequest::parse(&body)?;
    let Some(biller) = gateway.authority.biller(&grants, &request.biller) else {
        return Err(not_allowed(&entry));
    };
    if let Some(pan) = &request.pan
        && let Ok(last_four) = PanLastFour::parse(&pan.last_four())
    {
        entry.pan_last4(last_four);
    }
    let pin = pin_order(&entry, &grants, &biller, &request)?;
    let instruction = Instruction {
        client: client.id().to_owned(),
        key,
        body,
        biller,
        priority: request.priority,
        order: PaymentOrder {
            bill_id: request.bill_id,
            customer_id: request.customer_id,
            amount: request.amount,
            pan: request.pan,
        },
        pin,
    };
    let receipt =
        gateway.relay.pay(instruction, deadline).await.map_err(|error| problem(&entry, &error))?;
    entry.resource(ResourceType::Payment, &receipt.id().to_string());
    let answer = answer(&entry, receipt);
    let answer = match mac_key.filter(|_| granted.answer_mac) {
        Some(mac_key) => with_mac(&gateway, &entry, mac_key, answer, deadline).await?,
        None => answer.into_response(),
    };
    Ok((permit, answer).into_response())
}

/// Tells what became of a payment of this client.
#[utoipa::path(
    get,
    path = "/v1/payments/{id}",
    params(("id" = Uuid, Path, description = "The payment")),
    responses(
        (status = 200, body = PaymentState),
        (status = 403, description = "not-allowed", body = ProblemBody),
        (status = 404, description = "unknown-payment: no such payment of this client", body = ProblemBody),
        (status = 429, description = "too-many-requests", body = ProblemBody),
        (status = 503, description = "overloaded, audit-unavailable", body = ProblemBody),
    )
)]
pub(super) async fn read_payment(
    State(gateway): State<Gateway>,
    entry: AuditEntry,
    Asking(client): Asking,
    permit: Permitted<PAYMENT>,
    Path(id): Path<String>,
) -> Result<(Permitted<PAYMENT>, Json<PaymentState>), Problem> {
    entry.event(EventType::PaymentRead);
    let unknown = || Problem::new(Slug::UnknownPayment);
    let id = Uuid::parse_str(&id).map_err(|_| unknown())?;
    entry.resource(ResourceType::Payment, &id.to_string());
    let found = gateway.relay.payment(id, client.id()).await;
    let view = found.map_err(|_| Problem::new(Slug::Overloaded))?.ok_or_else(unknown)?;
    let history = view.history.into_iter().map(|entry| {
        let what = if entry.late { format!("{} (late)", entry.what) } else { entry.what };
        Happened { at: timestamp(entry.at), what, code: entry.code }
    });
    Ok((
        permit,
        Json(PaymentState {
            id: view.id,
            status: view.status,
            reference: view.reference,
            response_code: view.response_code,
            attempts: view.attempts,
            created_at: timestamp(view.created_at),
            updated_at: timestamp(view.updated_at),
            history: history.collect(),
        }),
    ))
}

fn idempotency_key(headers: &HeaderMap) -> Result<IdempotencyKey, Problem> {
    let refused = || {
        Problem::malformed(
            "Idempotency-Key: one quoted string of 1 to 255 printable ASCII characters",
        )
    };
    let text = header_text(headers, "idempotency-key").ok_or_else(refused)?;
    IdempotencyKey::parse(text).map_err(|_| refused())
}

/// The MAC of the exact body under the client's own key. Missing, malformed, under another key and
/// wrong look the same; so does one where the client has no MAC key.
async fn verify_mac(
    gateway: &Gateway,
    entry: &AuditEntry,
    client: &str,
    key: Option<&KeyLabel>,
    headers: &HeaderMap,
    body: &Bytes,
    deadline: Deadline,
) -> Result<(), Problem> {
    let refused = || {
        entry.reason(Reason::MacWrong);
        Problem::new(Slug::MacRefused)
    };
    let Some(key) = key else {
        return if headers.contains_key(MAC_HEADER) { Err(refused()) } else { Ok(()) };
    };
    let text = header_text(headers, MAC_HEADER.as_str()).ok_or_else(refused)?;
    let (label, mac) = text.split_once(':').ok_or_else(refused)?;
    let mac = hex::decode(mac).map_err(|_| refused())?;
    // No call for what cannot be right, and no body for one that has no MAC.
    if label != key.as_str() || mac.is_empty() || body.is_empty() {
        return Err(refused());
    }
    let (message, mac) = (Message(body.to_vec()), Message(mac));
    let order = MacOrder { key: key.clone().into(), ksn: None, message, mac };
    let work = gateway.guard.verify_mac(client, order, deadline.work_by);
    match keep(deadline, work).await? {
        Ok(true) => Ok(()),
        Ok(false) => Err(refused()),
        Err(error) => Err(problem_of(entry, &error)),
    }
}

fn pin_order(
    entry: &AuditEntry,
    grants: &Grants,
    biller: &Biller,
    request: &PaymentRequest,
) -> Result<Option<(PinOrder, PinKey)>, Problem> {
    let (Some(pan), Some(pin)) = (&request.pan, &request.pin) else { return Ok(None) };
    let to: &PinKey = match &biller.pin {
        Some(to) => to,
        None => return Err(Problem::malformed("pin_block: this biller takes none")),
    };
    let (from, to_label) = (&pin.from, &to.key.label);
    if !grants.may_translate(&from.key.label, from.format, to_label, to.format) {
        return Err(not_allowed(entry));
    }
    let block = PinBlock::new(pin.block.clone()).map_err(|_| block_refused(entry))?;
    Ok(Some((PinOrder { pan: pan.clone(), block, from: from.clone() }, to.clone())))
}

/// An answer before its MAC.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = json(self.status, self.body);
        response.headers_mut().extend(self.headers);
        response
    }
}

fn answer(entry: &AuditEntry, receipt: Receipt) -> Answer {
    let mut headers = HeaderMap::new();
    let mut replayed_header = |replayed: bool| {
        if replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
    };
    match receipt {
        Receipt::Final { status, body, replayed, .. } => {
            replayed_header(replayed);
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            Answer { status, headers, body }
        }
        Receipt::Accepted { id, status, replayed } => {
            replayed_header(replayed);
            if status == Status::Held {
                entry.outcome(Outcome::Error).reason(Reason::OutcomeUnknown);
            }
            if let Ok(location) = HeaderValue::try_from(format!("/v1/payments/{id}")) {
                headers.insert(header::LOCATION, location);
            }
            // An id and a word: such a value always has a JSON form.
            let body = serde_json::to_vec(&Accepted { id, status }).unwrap_or_default();
            let code = match status {
                Status::Pending | Status::Processing | Status::Held => StatusCode::ACCEPTED,
                // Ended without a word of the biller's: nothing more will happen.
                Status::Success | Status::Failed | Status::Expired | Status::Cancelled => {
                    StatusCode::OK
                }
            };
            Answer { status: code, headers, body: body.into() }
        }
    }
}

/// Adds the MAC of the exact answer under the client's key.
async fn with_mac(
    gateway: &Gateway,
    entry: &AuditEntry,
    key: &KeyLabel,
    mut answer: Answer,
    deadline: Deadline,
) -> Result<Response, Problem> {
    // The payment is made or durable: its answer is worth waiting for workers that are being
    // replaced. Without the MAC the client asks again with the same key, and gets the same answer.
    let patience = Patience::vital(deadline.answer_by);
    let is_late = || Instant::now() + ANSWER_MAC_REST >= deadline.answer_by;
    let mac = loop {
        let body = answer.body.to_vec();
        match gateway.hsm.generate_mac(key.clone().into(), None, body, None, patience).await {
            Ok(made) => break made.mac,
            // A token that fails in passing may do better; an answer that nobody can prove is none.
            Err(error) if is_late() || error.failure().is_some_and(|it| !it.is_transient()) => {
                return Err(problem_of_hsm(entry, &error).with_detail(KEPT));
            }
            Err(_) => tokio::time::sleep(ANSWER_MAC_REST).await,
        }
    };
    if let Ok(value) = HeaderValue::try_from(format!("{key}:{}", hex::encode_upper(mac))) {
        answer.headers.insert(MAC_HEADER, value);
    }
    Ok(answer.into_response())
}

/// The payment is made or durable, and cannot be told of under a MAC.
const KEPT: &str = "the payment is kept: ask again with the same Idempotency-Key for its answer";

/// Nothing was stored or sent.
const ROLLED_BACK: &str =
    "payments wait for an operator of the gateway: nothing was stored or sent";

/// Between two tries at the MAC of an answer.
const ANSWER_MAC_REST: std::time::Duration = std::time::Duration::from_millis(100);

fn problem(entry: &AuditEntry, error: &PayError) -> Problem {
    let wait = |duration| seconds(duration).min(300);
    match error {
        PayError::BackendAway { retry_after } => {
            Problem::new(Slug::BackendUnavailable).retry_after_s(wait(*retry_after))
        }
        PayError::Overloaded => Problem::new(Slug::Overloaded),
        PayError::Running { retry_after } => {
            Problem::new(Slug::RequestInProgress).retry_after_s(wait(*retry_after))
        }
        PayError::KeyReused => Problem::new(Slug::IdempotencyKeyReused),
        PayError::QueueFull => Problem::new(Slug::QueueFull).retry_after_s(5),
        // The payment may not be stored, and the biller is not asked: of the contract's words, this one.
        PayError::RolledBack => {
            Problem::new(Slug::BackendUnavailable).with_detail(ROLLED_BACK).retry_after_s(60)
        }
        PayError::Pin(error) => problem_of(entry, error),
        PayError::NoMac | PayError::Payment(PaymentError::Sealing(_)) => {
            Problem::new(Slug::HsmUnavailable)
        }
        PayError::Store(error) | PayError::Payment(PaymentError::Store(error)) => {
            tracing::error!(%error, "the store");
            Problem::new(Slug::Overloaded)
        }
        PayError::AnswerClosed(error) => {
            tracing::error!(%error, "a stored answer");
            Problem::new(Slug::Internal)
        }
        PayError::Unclear => Problem::new(Slug::Internal),
    }
}

/// RFC 3339 in UTC with milliseconds, from epoch milliseconds.
fn timestamp(epoch_ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(epoch_ms).unwrap_or_default();
    format!("{time:.3}")
}
