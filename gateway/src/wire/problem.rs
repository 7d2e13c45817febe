//! Refusals as RFC 9457 `application/problem+json`: a slug of a closed list, the name of a field at
//! most, never a value and nothing of our inside.
//!
//! A handler returns a `Problem`; the audit layer around all routes gives it its body, because only
//! there the request id is known that header, body and audit record share.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use uuid::Uuid;

use crate::edge::{BodyRefused, Limited, NotAdmitted, RateLimit};

/// The closed list of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slug {
    /// Not JSON, unknown or missing field, bad hex, over a bound.
    MalformedRequest,
    /// Not granted, unknown, or blocked: one form for all.
    NotAllowed,
    /// No such payment of this client.
    UnknownPayment,
    /// The idempotency key is still running.
    RequestInProgress,
    /// The one form of every PIN failure.
    PinBlockRefused,
    /// A payment's MAC is missing or wrong.
    MacRefused,
    /// One idempotency key, two bodies.
    IdempotencyKeyReused,
    /// The payment's state, or a decision on it that is open, does not allow this.
    NotInThisState,
    /// A limit is used up.
    TooManyRequests,
    /// No HSM link answered in time.
    HsmUnavailable,
    /// The backend is away and the payment may not be stored.
    BackendUnavailable,
    /// The queue is at its bound.
    QueueFull,
    /// The audit log cannot be written, so no answer leaves.
    AuditUnavailable,
    /// More work than the process can take.
    Overloaded,
    /// No such path.
    NotFound,
    /// The path knows other methods.
    MethodNotAllowed,
    /// Not JSON by its header, or encoded.
    UnsupportedMediaType,
    /// A fault of ours; only the request id is told.
    Internal,
}

impl Slug {
    /// Every member.
    pub const ALL: [Self; 18] = [
        Self::MalformedRequest,
        Self::NotAllowed,
        Self::UnknownPayment,
        Self::RequestInProgress,
        Self::PinBlockRefused,
        Self::MacRefused,
        Self::IdempotencyKeyReused,
        Self::NotInThisState,
        Self::TooManyRequests,
        Self::HsmUnavailable,
        Self::BackendUnavailable,
        Self::QueueFull,
        Self::AuditUnavailable,
        Self::Overloaded,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::UnsupportedMediaType,
        Self::Internal,
    ];

    /// The last part of `type`.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// One short sentence, the same for every occurrence.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::MalformedRequest => {
                ("malformed-request", S::BAD_REQUEST, "The request is malformed")
            }
            Self::NotAllowed => ("not-allowed", S::FORBIDDEN, "This is not allowed"),
            Self::UnknownPayment => ("unknown-payment", S::NOT_FOUND, "No such payment"),
            Self::RequestInProgress => {
                ("request-in-progress", S::CONFLICT, "The first request is still running")
            }
            Self::PinBlockRefused => {
                ("pin-block-refused", S::UNPROCESSABLE_ENTITY, "The PIN block is refused")
            }
            Self::MacRefused => ("mac-refused", S::UNPROCESSABLE_ENTITY, "The MAC is refused"),
            Self::IdempotencyKeyReused => (
                "idempotency-key-reused",
                S::UNPROCESSABLE_ENTITY,
                "The idempotency key belongs to another request",
            ),
            Self::NotInThisState => {
                ("not-in-this-state", S::CONFLICT, "The state does not allow this")
            }
            Self::TooManyRequests => {
                ("too-many-requests", S::TOO_MANY_REQUESTS, "A limit is used up")
            }
            Self::HsmUnavailable => {
                ("hsm-unavailable", S::SERVICE_UNAVAILABLE, "The HSM did not answer in time")
            }
            Self::BackendUnavailable => {
                ("backend-unavailable", S::SERVICE_UNAVAILABLE, "The billing backend is away")
            }
            Self::QueueFull => ("queue-full", S::SERVICE_UNAVAILABLE, "The queue is full"),
            Self::AuditUnavailable => {
                ("audit-unavailable", S::SERVICE_UNAVAILABLE, "The audit log cannot be written")
            }
            Self::Overloaded => ("overloaded", S::SERVICE_UNAVAILABLE, "The gateway is overloaded"),
            Self::NotFound => ("not-found", S::NOT_FOUND, "No such path"),
            Self::MethodNotAllowed => {
                ("method-not-allowed", S::METHOD_NOT_ALLOWED, "The path knows other methods")
            }
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                S::UNSUPPORTED_MEDIA_TYPE,
                "Only application/json, not encoded, is understood",
            ),
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR, "Something failed inside"),
        }
    }

    /// Every refusal that passes by itself says when to come back.
    fn retry_after_s(self) -> Option<u32> {
        let passes = self.status() == StatusCode::SERVICE_UNAVAILABLE
            || matches!(self, Self::RequestInProgress | Self::TooManyRequests);
        passes.then_some(1)
    }
}

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    slug: Slug,
    detail: Option<Cow<'static, str>>,
    retry_after_s: Option<u32>,
    rate_limit: Option<RateLimit>,
}

/// Marks an answer of 400 and above that keeps its own body: readiness tells which part is missing.
#[derive(Clone, Copy, Debug)]
pub struct OwnBody;

/// The body on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ProblemBody {
    /// `/problems/<slug>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One short sentence, the same for every occurrence.
    pub title: &'static str,
    /// The HTTP status again.
    pub status: u16,
    /// The id that `X-Request-Id` and the audit record carry.
    pub request_id: Uuid,
    /// Names the field that is wrong, never its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Problem {
    /// The refusal with a sentence that says what to do.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// A refusal without detail.
    pub fn new(slug: Slug) -> Self {
        Self { slug, detail: None, retry_after_s: slug.retry_after_s(), rate_limit: None }
    }

    /// A malformed request; `what` names the field and the rule, never the value.
    pub fn malformed(what: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: Some(what.into()), ..Self::new(Slug::MalformedRequest) }
    }

    /// Says when to come back, in whole seconds.
    #[must_use]
    pub fn retry_after_s(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// Which refusal it is.
    pub fn slug(&self) -> Slug {
        self.slug
    }

    /// The field and the rule, when one is named.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The body, for a listener that has no audit layer around it.
    pub fn body(&self, request_id: Uuid) -> ProblemBody {
        ProblemBody {
            kind: format!("/problems/{}", self.slug.as_str()),
            title: self.slug.title(),
            status: self.slug.status().as_u16(),
            request_id,
            detail: self.detail.as_deref().map(str::to_owned),
        }
    }

    /// Gives a refusal its body and the request id; an answer below 400 passes as it is. What the
    /// router or an extractor refused in its own words becomes a problem here too, so that clients
    /// meet one form. The problem stays in the answer's extensions.
    pub fn complete(answer: Response, request_id: Uuid) -> Response {
        if answer.status().as_u16() < 400 || answer.extensions().get::<OwnBody>().is_some() {
            return answer;
        }
        let (mut parts, _) = answer.into_parts();
        let problem = match parts.extensions.remove::<Self>() {
            Some(problem) => problem,
            None => {
                let problem = Self::new(slug_of(parts.status));
                parts.headers.remove(header::CONTENT_LENGTH);
                problem.put_headers(&mut parts.headers);
                problem
            }
        };
        parts.status = problem.slug.status();
        // The body holds text, a number and an id: all have a JSON form.
        let body = serde_json::to_vec(&problem.body(request_id)).unwrap_or_default();
        parts.extensions.insert(problem);
        Response::from_parts(parts, Body::from(body))
    }

    fn put_headers(&self, headers: &mut axum::http::HeaderMap) {
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(rate_limit) = &self.rate_limit {
            headers.extend(rate_limit_headers(rate_limit));
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = self.slug.status();
        self.put_headers(answer.headers_mut());
        answer.extensions_mut().insert(self);
        answer
    }
}

impl From<Limited> for Problem {
    fn from(limited: Limited) -> Self {
        Self {
            rate_limit: Some(limited.rate_limit),
            ..Self::new(Slug::TooManyRequests).retry_after_s(limited.retry_after_s)
        }
    }
}

impl From<NotAdmitted> for Problem {
    fn from(refusal: NotAdmitted) -> Self {
        match refusal {
            NotAdmitted::Unknown => Self::new(Slug::NotAllowed),
            NotAdmitted::Limited(limited) => limited.into(),
        }
    }
}

impl From<&BodyRefused> for Problem {
    fn from(refusal: &BodyRefused) -> Self {
        Self::malformed(match refusal {
            BodyRefused::TooLong { .. } => "the body is too long",
            BodyRefused::TooSlow => "the body did not arrive in time",
            BodyRefused::Broken(_) => "the body is not complete",
        })
    }
}

/// `RateLimit-Policy` and `RateLimit` (IETF draft on rate limit headers), for refusals and for
/// answers of a limited operation alike.
pub fn rate_limit_headers(limit: &RateLimit) -> [(HeaderName, HeaderValue); 2] {
    let RateLimit { policy, quota, window_s, remaining, reset_s } = limit;
    // Names and numbers make a header value that is always valid; an empty one says nothing.
    let value =
        |text: String| HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    [
        (RATE_LIMIT_POLICY, value(format!("\"{policy}\";q={quota};w={window_s}"))),
        (RATE_LIMIT, value(format!("\"{policy}\";r={remaining};t={reset_s}"))),
    ]
}

/// The refusal that a bare status stands for.
fn slug_of(status: StatusCode) -> Slug {
    match status.as_u16() {
        401 | 403 => Slug::NotAllowed,
        404 => Slug::NotFound,
        405 => Slug::MethodNotAllowed,
        415 => Slug::UnsupportedMediaType,
        429 => Slug::TooManyRequests,
        503 => Slug::Overloaded,
        500.. => Slug::Internal,
        // Too long, too deep, not JSON, a bad query: all are "malformed" in the contract.
        _ => Slug::MalformedRequest,
    }
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn parts(answer: Response) -> (axum::http::response::Parts, serde_json::Value) {
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_problem_has_the_contracts_form() {
        let id = Uuid::now_v7();
        let problem = Problem::malformed("pin_block: must be 16 or 32 hex digits");

        let (parts, body) = parts(Problem::complete(problem.into_response(), id)).await;

        assert_eq!(parts.status, 400);
        assert_eq!(parts.headers["content-type"], "application/problem+json");
        let expected = serde_json::json!({
            "type": "/problems/malformed-request",
            "title": "The request is malformed",
            "status": 400,
            "request_id": id.to_string(),
            "detail": "pin_block: must be 16 or 32 hex digits",
        });
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn a_used_up_limit_says_when_to_return_and_what_is_left() {
        let rate_limit =
            RateLimit { policy: "mac", quota: 6_000, window_s: 60, remaining: 0, reset_s: 7 };
        let problem = Problem::from(Limited { retry_after_s: 3, rate_limit });

        let (parts, body) = parts(Problem::complete(problem.into_response(), Uuid::nil())).await;

        assert_eq!(parts.status, 429);
        assert_eq!(parts.headers["retry-after"], "3");
        assert_eq!(parts.headers["ratelimit-policy"], "\"mac\";q=6000;w=60");
        assert_eq!(parts.headers["ratelimit"], "\"mac\";r=0;t=7");
        assert_eq!(body["type"], "/problems/too-many-requests");
    }

    #[tokio::test]
    async fn what_others_refused_in_their_own_words_becomes_a_problem() {
        let plain = |status: u16, allow: &'static str| {
            let mut answer = "stack trace".into_response();
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer.headers_mut().insert("allow", HeaderValue::from_static(allow));
            answer
        };

        let (not_allowed, body) = parts(Problem::complete(plain(405, "GET"), Uuid::nil())).await;
        let (too_long, _) = parts(Problem::complete(plain(413, ""), Uuid::nil())).await;

        assert_eq!(body["type"], "/problems/method-not-allowed");
        assert_eq!(not_allowed.headers["allow"], "GET");
        assert_eq!(too_long.status, 400);
        assert!(!body.to_string().contains("stack"));
    }

    #[test]
    fn every_slug_stands_once_and_503_says_when_to_return() {
        let mut slugs = Slug::ALL.map(Slug::as_str).to_vec();
        slugs.sort_unstable();
        slugs.dedup();

        assert_eq!(slugs.len(), Slug::ALL.len());
        for slug in Slug::ALL {
            let answer = Problem::new(slug).into_response();
            let says = answer.headers().contains_key("retry-after");
            assert!(says || answer.status() != 503, "{slug:?}");
        }
    }
}
