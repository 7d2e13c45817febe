//! The routes. A payment request passes identity, fault, handler, in that order.
//!
//! Every answer of a payment handler carries `Tollgate-Mac` over its exact bytes, and so does the
//! biller's own "not now". What other faults answer carries none, as if a proxy had spoken.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::fault::{Fault, Faults, Mode};
use super::ledger::{Ledger, LedgerReport, Settled};
use super::order::{Enquiry, Keys, Order, PAID, ReversalOrder};

/// Who the client certificate says the client is.
#[derive(Debug, Clone)]
pub(crate) struct Identity(pub(crate) Arc<str>);

/// The connection a request came on; cancelling it drops the socket without a farewell.
#[derive(Debug, Clone)]
pub(crate) struct Connection(pub(crate) CancellationToken);

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct App {
    ledger: Arc<Ledger>,
    faults: Arc<Faults>,
    keys: Arc<Keys>,
}

impl App {
    pub(crate) fn open(journal: &FilePath) -> anyhow::Result<Self> {
        Ok(Self {
            ledger: Arc::new(Ledger::open(journal)?),
            faults: Arc::new(Faults::none()),
            keys: Arc::new(Keys::demo()),
        })
    }

    /// The whole API. Expects [`Identity`] and [`Connection`] among the request's extensions.
    pub(crate) fn router(self) -> Router {
        let payments = Router::new()
            .route("/v1/payments", post(pay))
            .route("/v1/enquiries", post(enquire))
            .route("/v1/reversals", post(reverse))
            .layer(from_fn_with_state(self.clone(), misbehave))
            .layer(from_fn(only_tollgate));
        Router::new()
            .route("/healthz", get(|| async { StatusCode::OK }))
            .route("/control", get(show_fault).post(set_fault))
            .route("/control/ledger", get(show_ledger))
            .merge(payments)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }

    /// An answer under the biller's MAC.
    fn answer(&self, status: StatusCode, content_type: &'static str, body: &Value) -> Response {
        let bytes = Bytes::from(body.to_string());
        let header = self.keys.mac_header(&bytes).ok();
        match header.and_then(|header| HeaderValue::try_from(header).ok()) {
            Some(code) => {
                let headers =
                    [(CONTENT_TYPE, HeaderValue::from_static(content_type)), (TOLLGATE_MAC, code)];
                (status, headers, bytes).into_response()
            }
            None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    /// A refusal says of which payment it speaks, as far as the request tells, so that no other one's
    /// can stand in for it.
    fn problem(
        &self,
        status: StatusCode,
        slug: &str,
        title: &str,
        reference: Option<Uuid>,
    ) -> Response {
        let body = json!({"type": format!("/problems/{slug}"), "title": title,
            "status": status.as_u16(), "reference": reference});
        self.answer(status, "application/problem+json", &body)
    }

    /// The biller's own word that it took nothing of this request.
    async fn not_now(&self, status: StatusCode, slug: &str, request: Request) -> Response {
        let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
        let reference = body.ok().and_then(|body| reference_of(&body));
        let mut answer = self.problem(status, slug, "Ask again", reference);
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        answer
    }

    /// 422 unless the MAC is right.
    fn unproved(&self, headers: &HeaderMap, body: &[u8]) -> Option<Response> {
        let code = headers.get(TOLLGATE_MAC).and_then(|value| value.to_str().ok());
        if code.is_some_and(|code| self.keys.proves(code, body)) {
            return None;
        }
        self.ledger.mac_refused.fetch_add(1, Relaxed);
        let title = "The MAC is missing or does not match";
        let (status, reference) = (StatusCode::UNPROCESSABLE_ENTITY, reference_of(body));
        Some(self.problem(status, "mac-refused", title, reference))
    }

    fn settled(
        &self,
        reference: Uuid,
        settled: Result<std::io::Result<Settled>, JoinError>,
    ) -> Response {
        match settled {
            Ok(Ok(Settled::Now { response_code })) => {
                self.result(&reference, &response_code, false)
            }
            Ok(Ok(Settled::Before { response_code })) => {
                self.result(&reference, &response_code, true)
            }
            Ok(Ok(Settled::Conflict)) => {
                let title = "The reference was used for another body";
                self.problem(StatusCode::CONFLICT, "reference-reused", title, Some(reference))
            }
            Ok(Err(error)) => journal_failed(&error),
            Err(error) => journal_failed(&error),
        }
    }

    fn result(&self, reference: &Uuid, response_code: &str, replayed: bool) -> Response {
        let status = if response_code == PAID { "SUCCESS" } else { "FAILED" };
        let body = json!({"reference": reference, "status": status, "response_code": response_code,
            "replayed": replayed});
        self.answer(StatusCode::OK, "application/json", &body)
    }
}

/// POST /v1/payments: pays a bill, once per reference.
///
/// 200 with the result, paid or not; 422 when the MAC is missing or wrong; 400 when the body is
/// no order; 409 when the reference was used for another body; 500 when the disk refuses.
async fn pay(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refusal) = app.unproved(&headers, &body) {
        return refusal;
    }
    let order = match Order::parse(&body) {
        Ok(order) => order,
        Err(defect) => {
            let reference = reference_of(&body);
            return app.problem(StatusCode::BAD_REQUEST, "malformed-request", defect, reference);
        }
    };
    let verdict = app.keys.judge(&order);
    let Ok(fingerprint) = app.keys.fingerprint(&body) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };

    // On a thread of its own, which finishes even when the client hangs up meanwhile.
    let reference = order.reference;
    let ledger = app.ledger.clone();
    let task = tokio::task::spawn_blocking(move || ledger.settle(&order, verdict, fingerprint));
    app.settled(reference, task.await)
}

/// POST /v1/enquiries: 200 with the recorded result, or `UNKNOWN`; never what was said before.
async fn enquire(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refusal) = app.unproved(&headers, &body) {
        return refusal;
    }
    let Ok(Enquiry { enquiry, reference, .. }) = serde_json::from_slice(&body) else {
        let (status, title) = (StatusCode::BAD_REQUEST, "body is no enquiry");
        return app.problem(status, "malformed-request", title, reference_of(&body));
    };
    let ledger = app.ledger.clone();
    let task = tokio::task::spawn_blocking(move || ledger.find(&reference));
    match task.await {
        Ok(Ok(found)) => {
            let status = match found.as_deref() {
                Some(PAID) => "SUCCESS",
                Some(_) => "FAILED",
                None => "UNKNOWN",
            };
            let response_code = found.unwrap_or_default();
            let body = json!({"enquiry": enquiry, "reference": reference, "status": status,
                "response_code": response_code});
            app.answer(StatusCode::OK, "application/json", &body)
        }
        Ok(Err(error)) => journal_failed(&error),
        Err(error) => journal_failed(&error),
    }
}

/// POST /v1/reversals: 200, also when the payment never arrived; 409 when the reference was used for
/// another body.
async fn reverse(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refusal) = app.unproved(&headers, &body) {
        return refusal;
    }
    let Ok(order) = serde_json::from_slice::<ReversalOrder>(&body) else {
        let (status, title) = (StatusCode::BAD_REQUEST, "body is no reversal");
        return app.problem(status, "malformed-request", title, reference_of(&body));
    };
    if order.bill_id.starts_with("irreversible-") {
        return app.result(&order.reference, "57", false);
    }
    let Ok(fingerprint) = app.keys.fingerprint(&body) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let (reference, ledger) = (order.reference, app.ledger.clone());
    let task = tokio::task::spawn_blocking(move || ledger.reverse(&order, fingerprint));
    app.settled(reference, task.await)
}

/// POST /control: 204, and the fault is in force; 400 when it makes no sense.
async fn set_fault(State(app): State<App>, body: Bytes) -> Response {
    let fault: Fault = match serde_json::from_slice(&body) {
        Ok(fault) => fault,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    if let Some(defect) = fault.defect() {
        return (StatusCode::BAD_REQUEST, defect).into_response();
    }
    app.faults.set(fault);
    StatusCode::NO_CONTENT.into_response()
}

/// GET /control: the fault in force.
async fn show_fault(State(app): State<App>) -> Json<Fault> {
    Json(app.faults.now())
}

/// GET /control/ledger: all effects and counters, without PAN and PIN.
async fn show_ledger(State(app): State<App>) -> Json<LedgerReport> {
    Json(app.ledger.report())
}

/// 403 unless the gateway itself asks.
async fn only_tollgate(
    Extension(identity): Extension<Identity>,
    request: Request,
    next: Next,
) -> Response {
    if &*identity.0 == TOLLGATE {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "payments are for the gateway's certificate").into_response()
    }
}

/// The fault in force, before and after the handler.
async fn misbehave(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let counter = match request.uri().path() {
        "/v1/enquiries" => &app.ledger.enquiries,
        "/v1/reversals" => &app.ledger.reversal_requests,
        _ => &app.ledger.requests,
    };
    counter.fetch_add(1, Relaxed);
    let fault = app.faults.take();
    match fault.mode {
        Mode::Normal => next.run(request).await,
        Mode::Slow => {
            tokio::time::sleep(fault.delay()).await;
            next.run(request).await
        }
        Mode::Stubborn => {
            let delay = fault.delay();
            let working = tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                next.run(request).await
            });
            working.await.unwrap_or_else(|error| journal_failed(&error))
        }
        Mode::Fail => app.not_now(StatusCode::SERVICE_UNAVAILABLE, "unavailable", request).await,
        Mode::TooMany => {
            app.not_now(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", request).await
        }
        Mode::StaleRefusal => {
            next.run(request).await;
            let other = Some(Uuid::nil());
            app.problem(StatusCode::BAD_REQUEST, "malformed-request", "not an order", other)
        }
        Mode::Proxy503 => {
            next.run(request).await;
            (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response()
        }
        Mode::Error500 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Mode::Hang => std::future::pending().await,
        Mode::HangAfter => {
            next.run(request).await;
            std::future::pending().await
        }
        Mode::CutBefore => cut(&connection).await,
        Mode::CutAfter => {
            next.run(request).await;
            cut(&connection).await
        }
        Mode::Garbage => {
            next.run(request).await;
            (StatusCode::OK, Body::from("<html>It works!</html>")).into_response()
        }
        Mode::WrongMac => with_wrong_mac(next.run(request).await),
    }
}

/// The reference of a request that may be no order.
fn reference_of(body: &[u8]) -> Option<Uuid> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Uuid::try_parse(body["reference"].as_str()?).ok()
}

async fn cut(connection: &Connection) -> Response {
    connection.0.cancel();
    std::future::pending().await
}

/// Changes the last digit of the code, so that the form stays right.
fn with_wrong_mac(mut response: Response) -> Response {
    if let Some(value) = response.headers_mut().get_mut(TOLLGATE_MAC) {
        let mut bytes = value.as_bytes().to_vec();
        if let Some(last) = bytes.last_mut() {
            *last = if *last == b'0' { b'1' } else { b'0' };
        }
        if let Ok(wrong) = HeaderValue::from_bytes(&bytes) {
            *value = wrong;
        }
    }
    response
}

fn journal_failed(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "the journal failed");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

const TOLLGATE: &str = "spiffe://tollgate.test/tollgate";
const TOLLGATE_MAC: HeaderName = HeaderName::from_static("tollgate-mac");
const BODY_BYTES_MAX: usize = 64 * 1024;
