//! `/v1/keys`: what keys there are, and their changes under dual control.
//!
//! A key officer proposes, another one approves: whoever asks is told apart by the client id of the
//! certificate. Every step is an event of its own with the officer and the reason in his words.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use compliance::{EventType, Outcome, Reason, ResourceType};
use hsm_adapter::client::LinkError;
use hsm_adapter::protocol::KeyFacts;
use hsm_adapter::register::{KeyAlgorithm, KeyState};
use hsm_adapter::vocabulary::{Kcv, KeyLabel, KeyRole, MacAlgorithm, Mode, PinBlockFormat};
use hsm_adapter::worker::chain;
use jiff::Timestamp;
use serde::Serialize;

use super::{Admin, Admitted, access, one_of};
use crate::audit::AuditEntry;
use crate::edge::Client;
use crate::links::token::HsmError;
use crate::officers::KeyOrder;
use crate::store::{
    Decided, Decision, KeyChange, KeyChangeKind, KeyChangeState, Proposed, StoreError,
};
use crate::wire::body::JsonBody;
use crate::wire::key_orders::{ImportOrder, StateOrder};
use crate::wire::problem::{Problem, Slug};
use crate::wire::reason::Reasoned;

/// The paths of this file.
pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/v1/keys", get(list))
        .route("/v1/keys/changes", get(changes))
        .route("/v1/keys/import", post(import))
        .route("/v1/keys/{label}/{change}", post(change_state))
        .route("/v1/keys/changes/{number}/{decision}", post(decide))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// The longest key block, 9992 characters, and what is around it.
const BODY_BYTES_MAX: usize = 32 * 1024;

/// A key officer, proved by the TLS handshake.
struct Officer(Arc<Client>);

impl<S: Sync> FromRequestParts<S> for Officer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        one_of(parts, access::OFFICERS).map(Self)
    }
}

/// Who may see the changes of keys: officers, and auditors, who change nothing.
struct Reviewer;

impl<S: Sync> FromRequestParts<S> for Reviewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        one_of(parts, access::REVIEWERS).map(|_| Self)
    }
}

/// One version of one key.
#[derive(Debug, Serialize)]
struct KeyView {
    label: KeyLabel,
    version: u32,
    state: KeyState,
    role: KeyRole,
    algorithm: KeyAlgorithm,
    mode: Mode,
    formats: Vec<PinBlockFormat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<MacAlgorithm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kcv: Option<Kcv>,
    /// Why the key lint took it out of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantined: Option<String>,
    /// Until when a retired version still verifies and deciphers.
    #[serde(skip_serializing_if = "Option::is_none")]
    usable_until: Option<Timestamp>,
}

impl From<KeyFacts> for KeyView {
    fn from(key: KeyFacts) -> Self {
        let until = key.usable_until_s;
        Self {
            label: key.label,
            version: key.version,
            state: key.state,
            role: key.role,
            algorithm: key.algorithm,
            mode: key.mode,
            formats: key.formats,
            mac: key.mac,
            kcv: key.kcv,
            quarantined: key.quarantined,
            usable_until: until.and_then(|seconds| Timestamp::from_second(seconds).ok()),
        }
    }
}

/// One change of a key, without its key block.
#[derive(Debug, Serialize)]
struct ChangeView {
    change: i64,
    kind: KeyChangeKind,
    label: String,
    version: u32,
    state: KeyChangeState,
    reason: String,
    proposer: String,
    proposed_at: Option<Timestamp>,
    /// While it is proposed: when it ends without a decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// Who approved, refused or withdrew it.
    #[serde(skip_serializing_if = "Option::is_none")]
    decider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
    /// Why the worker refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Of an import: what the key is to be for, as in keys.toml.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<serde_json::Value>,
    /// Of an import: the key that protects the block.
    #[serde(skip_serializing_if = "Option::is_none")]
    under: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap_s: Option<u32>,
    /// The key as it is, when the change was just made.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<KeyView>,
}

impl ChangeView {
    fn new(change: KeyChange, key: Option<KeyFacts>) -> Self {
        let time = |ms: i64| Timestamp::from_millisecond(ms).ok();
        let waits = change.state == KeyChangeState::Proposed;
        let import = change.import;
        Self {
            change: change.number,
            kind: change.kind,
            label: change.label,
            version: change.version,
            state: change.state,
            reason: change.reason,
            proposer: change.proposer,
            proposed_at: time(change.proposed_at),
            expires_at: time(change.expires_at).filter(|_| waits),
            decider: change.decider,
            decision_reason: change.decision_reason,
            decided_at: change.decided_at.and_then(time),
            ended_at: change.ended_at.and_then(time),
            error: change.error,
            profile: import.as_ref().and_then(|import| serde_json::from_str(&import.profile).ok()),
            under: import.map(|import| match import.kbpk_version {
                Some(version) => format!("{}@{version}", import.kbpk),
                None => import.kbpk,
            }),
            overlap_s: change.overlap_s,
            key: key.map(KeyView::from),
        }
    }
}

async fn list(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: super::Watching,
    _: Admitted,
) -> Result<Json<serde_json::Value>, Problem> {
    entry.event(EventType::AdminRead);
    let keys = admin.officers.keys().await.map_err(|error| hsm_problem(&error))?;
    let keys: Vec<KeyView> = keys.into_iter().map(KeyView::from).collect();
    Ok(Json(serde_json::json!({ "keys": keys })))
}

async fn changes(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Reviewer,
    _: Admitted,
) -> Result<Json<serde_json::Value>, Problem> {
    entry.event(EventType::AdminRead);
    let changes = admin.officers.changes().await.map_err(|error| store_problem(&error))?;
    let view = |change| ChangeView::new(change, None);
    let changes: Vec<ChangeView> = changes.into_iter().map(view).collect();
    Ok(Json(serde_json::json!({ "changes": changes })))
}

async fn import(
    State(admin): State<Admin>,
    entry: AuditEntry,
    Officer(officer): Officer,
    _: Admitted,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    entry.event(EventType::KeyChange);
    let ImportOrder { profile, under, block, reason } = ImportOrder::parse(&body)?;
    entry.resource(ResourceType::Key, &profile.name());
    let order = KeyOrder::Import { profile: Box::new(profile), under, block };
    propose(&admin, &entry, &officer, order, &reason).await
}

/// POST `/v1/keys/{label}/activate`, `retire` or `compromise`.
async fn change_state(
    State(admin): State<Admin>,
    entry: AuditEntry,
    Officer(officer): Officer,
    _: Admitted,
    Path((label, change)): Path<(String, String)>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let kind = match change.as_str() {
        "activate" => KeyChangeKind::Activate,
        "retire" => KeyChangeKind::Retire,
        "compromise" => KeyChangeKind::Compromise,
        _ => return Err(Problem::new(Slug::NotFound)),
    };
    entry.event(EventType::KeyChange);
    let label =
        KeyLabel::parse(&label).map_err(|rule| Problem::malformed(format!("label: {rule}")))?;
    let overlaps = kind != KeyChangeKind::Compromise;
    let StateOrder { version, overlap_s, reason } = StateOrder::parse(&body, overlaps)?;
    entry.resource(ResourceType::Key, &format!("{label}@{version}"));
    let order = KeyOrder::State { kind, label, version, overlap_s };
    propose(&admin, &entry, &officer, order, &reason).await
}

/// 202 with the proposal; what needs no second officer is made at once.
async fn propose(
    admin: &Admin,
    entry: &AuditEntry,
    officer: &Client,
    order: KeyOrder,
    reason: &str,
) -> Result<Response, Problem> {
    entry.note(reason);
    let proposed = admin.officers.propose(order, officer.id(), reason).await;
    let change = match proposed.map_err(|error| store_problem(&error))? {
        Proposed::Made(change) => *change,
        Proposed::Full => return Err(Problem::new(Slug::QueueFull)),
    };
    entry.reason(Reason::Proposed);
    if change.state == KeyChangeState::Approved {
        return make(admin, entry, change.number).await;
    }
    Ok((StatusCode::ACCEPTED, Json(ChangeView::new(change, None))).into_response())
}

/// POST `/v1/keys/changes/{number}/approve`, `refuse` or `withdraw`.
async fn decide(
    State(admin): State<Admin>,
    entry: AuditEntry,
    Officer(officer): Officer,
    _: Admitted,
    Path((number, decision)): Path<(i64, String)>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let decision = match decision.as_str() {
        "approve" => Decision::Approve,
        "refuse" => Decision::Refuse,
        "withdraw" => Decision::Withdraw,
        _ => return Err(Problem::new(Slug::NotFound)),
    };
    entry.event(EventType::KeyChange);
    let Reasoned { reason } = Reasoned::parse(&body)?;
    entry.note(&reason);
    let decided = admin.officers.decide(number, decision, officer.id(), &reason).await;
    let about = |change: &KeyChange| {
        let key = format!("{}@{}", change.label, change.version);
        entry.resource(ResourceType::Key, &key).proposer(&change.proposer);
    };
    match decided.map_err(|error| store_problem(&error))? {
        Decided::Done(change) => {
            about(&change);
            entry.reason(match decision {
                Decision::Approve => Reason::Approved,
                Decision::Refuse => Reason::Refused,
                Decision::Withdraw => Reason::Withdrawn,
            });
            if decision == Decision::Approve {
                return make(&admin, &entry, change.number).await;
            }
            Ok(Json(ChangeView::new(*change, None)).into_response())
        }
        Decided::NotBy(change) => {
            about(&change);
            Err(Problem::new(Slug::NotAllowed))
        }
        Decided::NotOpen(change) => {
            about(&change);
            let state = change.state.name();
            Err(Problem::malformed(format!("change: waits for no decision, it is {state}")))
        }
        Decided::Unknown => Err(Problem::new(Slug::NotFound)),
    }
}

/// 200 when the change has ended, well or refused by the worker; 202 while it waits for the token.
async fn make(admin: &Admin, entry: &AuditEntry, number: i64) -> Result<Response, Problem> {
    let made = admin.officers.make(number).await.map_err(|error| store_problem(&error))?;
    let (change, key) = made.ok_or_else(|| Problem::new(Slug::NotFound))?;
    let status = match change.state {
        KeyChangeState::Approved => StatusCode::ACCEPTED,
        KeyChangeState::Refused => {
            entry.outcome(Outcome::Failure);
            StatusCode::OK
        }
        KeyChangeState::Proposed
        | KeyChangeState::Applied
        | KeyChangeState::Withdrawn
        | KeyChangeState::Expired => StatusCode::OK,
    };
    Ok((status, Json(ChangeView::new(change, key))).into_response())
}

fn store_problem(error: &StoreError) -> Problem {
    tracing::error!(error = chain(error), "key changes");
    Problem::new(Slug::Overloaded)
}

fn hsm_problem(error: &HsmError) -> Problem {
    tracing::warn!(%error, "the HSM link");
    match error {
        HsmError::Overloaded | HsmError::Link(LinkError::Busy) => Problem::new(Slug::Overloaded),
        HsmError::NoneReady { .. }
        | HsmError::Distrusted
        | HsmError::TooLate
        | HsmError::Link(_) => Problem::new(Slug::HsmUnavailable),
    }
}
