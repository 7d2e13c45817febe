//! Extractors, in the order in which a handler's arguments name them: who asks, within which
//! limits, with which body.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use compliance::Reason;

use crate::audit::AuditEntry;
use crate::edge::{Client, Operation, Peer, Permit, RateLimit};
use crate::links::token::{Place, audited};
pub(super) use crate::wire::body::JsonBody;
use crate::wire::problem::{Problem, Slug, rate_limit_headers};

/// The registered client that asks, proved by the TLS handshake.
pub(super) struct Asking(pub(super) Arc<Client>);

impl<S: Sync> FromRequestParts<S> for Asking {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let peer = peer(parts)?;
        let client = peer.client.clone().ok_or_else(|| Problem::new(Slug::NotAllowed))?;
        if client.has_role(crate::config::Role::Client) {
            Ok(Self(client))
        } else {
            Err(Problem::new(Slug::NotAllowed))
        }
    }
}

/// Leave to run one operation, held while it runs. The const is an [`Operation`] as a number.
pub(super) struct Permitted<const OPERATION: u8> {
    _permit: Permit,
    rate_limit: RateLimit,
}

/// PIN translation.
pub(super) const TRANSLATE: u8 = 0;
/// MAC generation and verification.
pub(super) const MAC: u8 = 1;
/// Payments.
pub(super) const PAYMENT: u8 = 2;
/// PIN verification.
pub(super) const VERIFY: u8 = 3;

impl<S: Sync, const OPERATION: u8> FromRequestParts<S> for Permitted<OPERATION> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let operation = match OPERATION {
            TRANSLATE => Operation::Translate,
            MAC => Operation::Mac,
            VERIFY => Operation::Verify,
            _ => Operation::Payment,
        };
        let permit = peer(parts)?.admit(operation)?;
        let rate_limit = permit.rate_limit;
        Ok(Self { _permit: permit, rate_limit })
    }
}

/// A permit as part of an answer shows what is left of the client's requests.
impl<const OPERATION: u8> IntoResponseParts for Permitted<OPERATION> {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        parts.headers_mut().extend(rate_limit_headers(&self.rate_limit));
        Ok(parts)
    }
}

fn peer(parts: &Parts) -> Result<&Arc<Peer>, Problem> {
    // The listener puts it into every request; without it nobody is known.
    parts.extensions.get::<Arc<Peer>>().ok_or_else(|| Problem::new(Slug::NotAllowed))
}

/// The text of a header that stands once.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let only = values.next().filter(|_| values.next().is_none())?;
    only.to_str().ok()
}

/// An answer of JSON bytes that exist already.
pub(super) fn json(status: axum::http::StatusCode, body: Bytes) -> Response {
    let mut response = (status, body).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Writes down which link ran an order, and where the clear PIN was, as far as that is known.
pub(super) fn note_place(entry: &AuditEntry, Place { link, mode }: Place) {
    if let Some(link) = link {
        entry.link(link);
    }
    if let Some(mode) = mode {
        entry.mode(audited(mode));
    }
}

/// Not granted: one form for a forbidden key, an unknown key and a forbidden operation.
pub(super) fn not_allowed(entry: &AuditEntry) -> Problem {
    entry.reason(Reason::NotAllowed);
    Problem::new(Slug::NotAllowed)
}
