//! The outermost layer of every HTTP listener: request id, event, panics, problems, headers.
//!
//! An answer leaves only when its record is durable; else 503 `audit-unavailable` leaves instead.
//! While the log is failing no work begins. A request whose client hung up is recorded as
//! abandoned by a guard that is dropped with it.

use std::{
    convert::Infallible,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::MatchedPath,
    http::{HeaderMap, HeaderName, HeaderValue, Request, header},
    response::{IntoResponse as _, Response},
};
use compliance::{
    Actor, CertificateId, Event, EventType, HttpStatus, Label, Listener, Origin, Outcome, Protocol,
    Reason, Resource, ResourceType, Role, Service as AskedService, SpkiSha256,
};
use jiff::Timestamp;
use tokio::time::Instant;
use tower::{Layer, Service};
use uuid::Uuid;

use super::{
    entry::{AuditEntry, Draft, RequestId},
    log::{AuditLog, Coming},
};
use crate::{
    config,
    edge::{CertificateFacts, Peer},
    telemetry::metrics as figures,
    wire::problem::{Problem, Slug},
};

/// Wraps a router: `router.layer(AuditLayer::new(log, Listener::Data, &[]))`, added last.
#[derive(Clone, Debug)]
pub struct AuditLayer {
    log: AuditLog,
    listener: Listener,
    unrecorded: &'static [&'static str],
}

/// See [`AuditLayer`].
#[derive(Clone, Debug)]
pub struct AuditService<S> {
    inner: S,
    layer: AuditLayer,
}

impl AuditLayer {
    /// `unrecorded` names the exact paths that only tell about the gateway itself (health, figures,
    /// the page of the dashboard): their answers leave unrecorded, also while the log is failing.
    /// A client that may not ask there is recorded all the same.
    pub fn new(log: AuditLog, listener: Listener, unrecorded: &'static [&'static str]) -> Self {
        Self { log, listener, unrecorded }
    }
}

impl<S> Layer<S> for AuditLayer {
    type Service = AuditService<S>;

    fn layer(&self, inner: S) -> AuditService<S> {
        AuditService { inner, layer: self.clone() }
    }
}

impl<S> Service<Request<Body>> for AuditService<S>
where
    S: Service<Request<Body>, Error = Infallible, Response = Response> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let is_recorded = !self.layer.unrecorded.contains(&request.uri().path());
        let record = Record::begin(&self.layer, &mut request, is_recorded);
        Box::pin(async move {
            // Who operates the gateway must be able to act while a sink blocks.
            let takes_work = match record.listener {
                Listener::Admin => record.log.is_writable(),
                Listener::Data | Listener::Iso8583 => record.log.is_healthy(),
            };
            let answer = if is_recorded && !takes_work {
                Problem::new(Slug::AuditUnavailable).into_response()
            } else {
                caught(async move { inner.call(request).await }).await
            };
            Ok(record.finish(answer, is_recorded).await)
        })
    }
}

/// Runs a request to its answer; a panic is answered 500. Its text stays inside, its place is
/// logged by the panic hook.
async fn caught(answer: impl Future<Output = Result<Response, Infallible>>) -> Response {
    let mut answer = Box::pin(answer);
    let polled = poll_fn(|cx| {
        // What a panicking handler shared is guarded by locks that outlive poisoning, or unusable.
        match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(answer))) => Poll::Ready(answer),
            Err(_) => Poll::Ready(Problem::new(Slug::Internal).into_response()),
        }
    });
    polled.await
}

/// The event of one request while it runs. Dropped before its end, it tells of an abandoned one.
struct Record {
    log: AuditLog,
    listener: Listener,
    id: Uuid,
    began: Instant,
    peer: Option<Arc<Peer>>,
    route: Route,
    entry: AuditEntry,
    coming: Option<Coming>,
    is_open: bool,
}

/// Method and template of the path, never the path as it was sent.
struct Route {
    method: axum::http::Method,
    template: Option<MatchedPath>,
}

impl Record {
    fn begin(layer: &AuditLayer, request: &mut Request<Body>, is_recorded: bool) -> Self {
        let (id, entry) = (Uuid::now_v7(), AuditEntry::default());
        let method = request.method().clone();
        let extensions = request.extensions_mut();
        extensions.insert(RequestId(id));
        extensions.insert(entry.clone());
        Self {
            log: layer.log.clone(),
            listener: layer.listener,
            id,
            began: Instant::now(),
            peer: extensions.get::<Arc<Peer>>().cloned(),
            route: Route { method, template: extensions.get::<MatchedPath>().cloned() },
            entry,
            coming: is_recorded.then(|| layer.log.coming()),
            is_open: true,
        }
    }

    /// Completes the answer, records it, and lets it out or withholds it.
    async fn finish(mut self, answer: Response, is_recorded: bool) -> Response {
        let status = answer.status().as_u16();
        // A probe that says "not ready" is an answer, and its body is the probe's own.
        if !is_recorded && (status < 400 || status == 503) {
            self.is_open = false;
            return self.dressed(answer);
        }
        let answer = Problem::complete(answer, self.id);
        let slug = answer.extensions().get::<Problem>().map(Problem::slug);
        let draft = self.entry.take();
        let kind = draft.kind.unwrap_or_else(|| self.kind_of(slug));
        let outcome = draft.outcome.unwrap_or_else(|| outcome_of(slug));
        let event = self.event(kind, outcome, draft, slug, answer.status().as_u16());
        self.is_open = false;
        let submitted = self.log.submit(event);
        self.coming = None;
        let durable = match submitted {
            Ok(receipt) => receipt.await.is_ok(),
            Err(_) => false,
        };
        let (answer, outcome) = if durable {
            (answer, outcome)
        } else {
            let refusal = Problem::new(Slug::AuditUnavailable).into_response();
            (Problem::complete(refusal, self.id), Outcome::Error)
        };
        figures::record_request(kind.as_str(), outcome.as_str(), self.began.elapsed());
        self.dressed(answer)
    }

    fn event(
        &self,
        kind: EventType,
        outcome: Outcome,
        draft: Draft,
        slug: Option<Slug>,
        status: u16,
    ) -> Event {
        let (actor, origin) = match &self.peer {
            Some(peer) => peer.audited.get_or_init(|| self.sender(peer)).clone(),
            // Only in tests is there a request without a connection.
            None => (Actor::unknown(), Origin::inside(self.log.host())),
        };
        let resource = draft.resource.unwrap_or_else(|| self.route.resource());
        let mut event = Event::new(actor, kind, Timestamp::now(), outcome, origin, resource)
            .request_id(Label::uuid(self.id))
            .protocol(Protocol::Https);
        if let Some(service) = service_of(kind) {
            event = event.service(service);
        }
        if let Some(reason) = draft.reason.or_else(|| reason_of(slug?)) {
            event = event.reason(reason);
        }
        if let Some(status) = HttpStatus::new(status) {
            event = event.status(status);
        }
        if let Some(pan_last4) = draft.pan_last4 {
            event = event.pan_last4(pan_last4);
        }
        if let Some(mode) = draft.mode {
            event = event.mode(mode);
        }
        if let Some(link) = draft.link {
            event = event.link(link);
        }
        if let Some(proposer) = draft.proposer {
            event = event.proposer(proposer);
        }
        if let Some(note) = draft.note {
            event = event.note(note);
        }
        event
    }

    fn sender(&self, peer: &Peer) -> (Actor, Origin) {
        let id = Label::new(peer.actor());
        let actor = match self.listener {
            Listener::Admin => {
                let roles = peer.client.iter().flat_map(|client| client.roles()).copied();
                Actor::admin(id, roles.filter_map(admin_role))
            }
            Listener::Data | Listener::Iso8583 => Actor::client(id),
        };
        let actor = match certificate_id(&peer.certificate) {
            Some(certificate) => actor.with_certificate(certificate),
            None => actor,
        };
        (actor, Origin::remote(self.log.host(), peer.address, self.listener))
    }

    /// What happened when the handler did not say: the refusal names it, or it was a reading.
    fn kind_of(&self, slug: Option<Slug>) -> EventType {
        match slug {
            Some(Slug::NotAllowed) => EventType::AuthzDeny,
            Some(Slug::TooManyRequests) => EventType::LimitExceeded,
            Some(Slug::MalformedRequest) => EventType::RequestMalformed,
            Some(Slug::NotFound | Slug::MethodNotAllowed | Slug::UnsupportedMediaType) => {
                EventType::HttpReject
            }
            None
            | Some(
                Slug::UnknownPayment
                | Slug::RequestInProgress
                | Slug::PinBlockRefused
                | Slug::MacRefused
                | Slug::IdempotencyKeyReused
                | Slug::NotInThisState
                | Slug::HsmUnavailable
                | Slug::BackendUnavailable
                | Slug::QueueFull
                | Slug::AuditUnavailable
                | Slug::Overloaded
                | Slug::Internal,
            ) => match self.listener {
                Listener::Admin => EventType::AdminRead,
                Listener::Data | Listener::Iso8583 => EventType::PaymentRead,
            },
        }
    }

    /// Puts the request id and the security headers on, where a handler has not set its own.
    fn dressed(&self, mut answer: Response) -> Response {
        let headers = answer.headers_mut();
        let id = HeaderValue::from_str(self.id.hyphenated().encode_lower(&mut [0; 36]));
        // A UUID is ASCII.
        headers.insert(REQUEST_ID, id.unwrap_or(HeaderValue::from_static("-")));
        secure(headers);
        answer
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_open {
            let draft = self.entry.take();
            let kind = draft.kind.unwrap_or_else(|| self.kind_of(None));
            let draft = Draft { reason: draft.reason.or(Some(Reason::ClientGone)), ..draft };
            // 499: the client closed the request; no answer left.
            let event = self.event(kind, Outcome::Abandoned, draft, None, 499);
            let outcome = Outcome::Abandoned.as_str();
            figures::record_request(kind.as_str(), outcome, self.began.elapsed());
            if self.log.note(event).is_err() {
                tracing::warn!(request_id = %self.id, "an abandoned request is not on record");
            }
        }
    }
}

impl Route {
    fn resource(&self) -> Resource {
        let template = self.template.as_ref().map_or("(unknown)", MatchedPath::as_str);
        Resource::new(ResourceType::Route, Label::new(&format!("{} {template}", self.method)))
    }
}

/// A certificate as records write it.
pub(super) fn certificate_id(facts: &CertificateFacts) -> Option<CertificateId> {
    let mut digest = [0; 32];
    hex::decode_to_slice(&facts.spki_sha256, &mut digest).ok()?;
    let issuer = Label::new(&facts.issuer);
    CertificateId::new(&facts.serial, issuer, SpkiSha256::new(digest)).ok()
}

fn admin_role(role: config::Role) -> Option<Role> {
    match role {
        config::Role::Client => None,
        config::Role::Operator => Some(Role::Operator),
        config::Role::Auditor => Some(Role::Auditor),
        config::Role::Monitor => Some(Role::Monitor),
        config::Role::KeyOfficer => Some(Role::KeyOfficer),
    }
}

fn outcome_of(slug: Option<Slug>) -> Outcome {
    match slug {
        None => Outcome::Success,
        Some(Slug::NotAllowed | Slug::TooManyRequests) => Outcome::Denied,
        Some(
            Slug::HsmUnavailable
            | Slug::BackendUnavailable
            | Slug::QueueFull
            | Slug::AuditUnavailable
            | Slug::Overloaded
            | Slug::Internal,
        ) => Outcome::Error,
        Some(
            Slug::MalformedRequest
            | Slug::UnknownPayment
            | Slug::RequestInProgress
            | Slug::PinBlockRefused
            | Slug::MacRefused
            | Slug::IdempotencyKeyReused
            | Slug::NotInThisState
            | Slug::NotFound
            | Slug::MethodNotAllowed
            | Slug::UnsupportedMediaType,
        ) => Outcome::Failure,
    }
}

fn reason_of(slug: Slug) -> Option<Reason> {
    Some(match slug {
        Slug::MalformedRequest => Reason::MalformedRequest,
        Slug::NotAllowed => Reason::NotAllowed,
        Slug::UnknownPayment => Reason::UnknownPayment,
        Slug::RequestInProgress => Reason::RequestInProgress,
        // All that a record may tell of a PIN failure.
        Slug::PinBlockRefused => Reason::Refused,
        Slug::MacRefused => Reason::MacRefused,
        Slug::IdempotencyKeyReused => Reason::IdempotencyKeyReused,
        Slug::NotInThisState => Reason::NotInThisState,
        Slug::TooManyRequests => Reason::TooManyRequests,
        Slug::HsmUnavailable => Reason::HsmUnavailable,
        Slug::BackendUnavailable => Reason::BackendUnavailable,
        Slug::QueueFull => Reason::QueueFull,
        Slug::AuditUnavailable => Reason::AuditUnavailable,
        Slug::Overloaded => Reason::Overloaded,
        Slug::NotFound => Reason::UnknownRoute,
        Slug::MethodNotAllowed => Reason::MethodNotAllowed,
        Slug::UnsupportedMediaType => Reason::UnsupportedMediaType,
        // A panic: the outcome `error` with status 500 says it.
        Slug::Internal => return None,
    })
}

fn service_of(kind: EventType) -> Option<AskedService> {
    let service = match kind.as_str().split_once('.')?.0 {
        "pin" => AskedService::Pin,
        "mac" => AskedService::Mac,
        "payment" => AskedService::Payment,
        "queue" => AskedService::Queue,
        "admin" | "breaker" | "config" | "link" => AskedService::Admin,
        "audit" => AskedService::Audit,
        "key" => AskedService::Keys,
        _ => return None,
    };
    Some(service)
}

/// The API's security headers on every answer. A handler that set one keeps its own.
fn secure(headers: &mut HeaderMap) {
    for (name, value) in &SECURITY_HEADERS {
        headers.entry(name).or_insert_with(|| value.clone());
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

static SECURITY_HEADERS: [(HeaderName, HeaderValue); 9] = [
    (
        header::STRICT_TRANSPORT_SECURITY,
        HeaderValue::from_static("max-age=63072000; includeSubDomains"),
    ),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static(
            "accelerometer=(), autoplay=(), camera=(), display-capture=(), encrypted-media=(), \
             fullscreen=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), \
             midi=(), payment=(), picture-in-picture=(), publickey-credentials-get=(), \
             screen-wake-lock=(), usb=(), web-share=(), xr-spatial-tracking=()",
        ),
    ),
];

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
