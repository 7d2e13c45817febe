//! The admin listener: health, readiness, figures, the API document, links, breakers, keys and the
//! queue. Every path needs a role.

mod access;
mod audit;
mod breakers;
mod keys;
mod links;
mod queue;
mod rollback;

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use compliance::EventType;
use serde::Serialize;

use crate::audit::{AuditDesk, AuditEntry, AuditLog};
use crate::breaker_desk::BreakerDesk;
use crate::config::Role;
use crate::edge::{Client, Operation, Peer, Permit};
use crate::links::token::Hsm;
use crate::officers::Officers;
use crate::relay::Relay;
use crate::relay::biller::Biller;
use crate::telemetry::metrics::Metrics;
use crate::wire::problem::{OwnBody, Problem, Slug};

pub use access::{ACCESS, Access};

/// Paths that only tell about the gateway itself. They leave no record.
pub const UNRECORDED: &[&str] = &["/healthz", "/readyz", "/metrics"];

/// What the admin handlers share.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The token.
    pub hsm: Arc<Hsm>,
    /// Payments.
    pub relay: Arc<Relay>,
    /// Where they go.
    pub billers: Arc<[Arc<Biller>]>,
    /// Changes of keys.
    pub officers: Arc<Officers>,
    /// The breakers, and what operators ordered.
    pub breakers: Arc<BreakerDesk>,
    /// The audit log.
    pub audit: AuditLog,
    /// Its reading side.
    pub audit_desk: AuditDesk,
    /// The figures.
    pub metrics: Metrics,
}

/// Every path of the admin listener.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .merge(keys::router())
        .merge(breakers::router())
        .merge(queue::router())
        .merge(rollback::router())
        .merge(audit::router())
        .route("/v1/links", get(links::list_links))
        .with_state(admin)
}

/// Whether the gateway can do its work, part by part.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// All of the following.
    pub ready: bool,
    /// A worker answers and the breaker lets calls pass.
    pub hsm: bool,
    /// Where clear PINs are.
    pub hsm_mode: &'static str,
    /// Payments can be sealed.
    pub queue: bool,
    /// The database takes writes.
    pub store: bool,
    /// Audit records become durable.
    pub audit: bool,
    /// No audit sink has fallen so far behind that new work is refused.
    pub audit_sinks: bool,
}

impl Admin {
    fn readiness(&self) -> Readiness {
        let (hsm, queue) = (self.hsm.is_usable(), self.relay.is_ready());
        let (store, audit) = (self.relay.is_store_healthy(), self.audit.is_writable());
        let audit_sinks = !self.audit.is_blocked();
        let hsm_mode = self.hsm.mode();
        let ready = hsm && queue && store && audit && audit_sinks;
        Readiness { ready, hsm, hsm_mode, queue, store, audit, audit_sinks }
    }
}

/// Somebody with one of the admin roles.
struct Watching;

impl<S: Sync> FromRequestParts<S> for Watching {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        one_of(parts, access::WATCHERS).map(|_| Self)
    }
}

/// The client that the TLS handshake proved, if it has one of the roles.
fn one_of(parts: &Parts, roles: &[Role]) -> Result<Arc<Client>, Problem> {
    let client = parts.extensions.get::<Arc<Peer>>().and_then(|peer| peer.client.clone());
    client
        .filter(|client| roles.iter().any(|role| client.has_role(*role)))
        .ok_or_else(|| Problem::new(Slug::NotAllowed))
}

/// Leave for one admin call that counts, held while it runs.
struct Admitted {
    _permit: Permit,
}

impl<S: Sync> FromRequestParts<S> for Admitted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<Arc<Peer>>();
        let peer = peer.ok_or_else(|| Problem::new(Slug::NotAllowed))?;
        Ok(Self { _permit: peer.admit(Operation::Admin)? })
    }
}

async fn healthz(_: Watching) -> &'static str {
    "ok\n"
}

async fn readyz(State(admin): State<Admin>, _: Watching) -> Response {
    let readiness = admin.readiness();
    let status = match readiness.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    // Not a problem: who may look here may see which part is missing.
    (status, axum::Extension(OwnBody), axum::Json(readiness)).into_response()
}

async fn metrics(State(admin): State<Admin>, _: Watching) -> impl IntoResponse {
    links::show_figures(&admin);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render())
}

async fn openapi(entry: AuditEntry, _: Watching, _: Admitted) -> impl IntoResponse {
    entry.event(EventType::AdminRead);
    axum::Json(crate::routes::openapi())
}
