//! `/v1/queue`: what waits, and an operator's hand on it.
//!
//! Every admin role may look. To change something is an operator's, with a reason that the audit record
//! keeps. A payment that may have been made takes two: the first one's word is a proposal (202), the
//! second one's makes it.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use compliance::{EventType, Label, Reason, ResourceType};
use hsm_adapter::worker::chain;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{Admin, Admitted, Watching, access, one_of};
use crate::audit::AuditEntry;
use crate::edge::Client;
use crate::relay::biller::Settlement;
use crate::relay::operate::By;
use crate::relay::payment::PaymentError;
use crate::store::{
    Cell, Listed, OpenDecision, Operated, Priority, QueueStats, Shown, StandingControl, Status,
    StoreError, Told,
};
use crate::wire::body::JsonBody;
use crate::wire::problem::{Problem, Slug};
use crate::wire::queue_orders::{SettleOrder, list_filter};
use crate::wire::reason::Reasoned;

/// The paths of this file.
pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/v1/queue", get(list))
        .route("/v1/queue/stats", get(stats))
        .route("/v1/queue/targets", get(targets))
        .route("/v1/queue/targets/{biller}/{order}", post(control))
        .route("/v1/queue/{id}", get(show))
        .route("/v1/queue/{id}/{action}", post(act))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// A reason and what is around it.
const BODY_BYTES_MAX: usize = 4 * 1024;

/// An operator, proved by the TLS handshake.
struct Operator(Arc<Client>);

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        one_of(parts, access::OPERATORS).map(Self)
    }
}

/// One payment.
#[derive(Debug, Serialize)]
struct ListedView {
    seq: i64,
    id: Uuid,
    client: String,
    kind: String,
    biller: String,
    reference: String,
    priority: Priority,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold_reason: Option<String>,
    /// It may have been made.
    sent_unknown: bool,
    /// It failed because its attempts were used up, and may be tried again.
    dead_letter: bool,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_code: Option<String>,
    created_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
}

impl From<Listed> for ListedView {
    fn from(listed: Listed) -> Self {
        let facts = listed.facts;
        Self {
            seq: listed.seq,
            id: facts.id,
            client: facts.tenant,
            kind: facts.kind,
            biller: facts.target,
            reference: facts.reference,
            priority: facts.prio,
            status: listed.status,
            hold_reason: listed.hold_reason,
            sent_unknown: listed.sent_unknown,
            dead_letter: listed.dead_letter,
            attempts: listed.attempts,
            last_code: listed.last_code,
            created_at: time(facts.created_at),
            expires_at: time(facts.expires_at),
            updated_at: time(listed.updated_at),
        }
    }
}

/// One payment with all that happened to it.
#[derive(Debug, Serialize)]
struct ShownView {
    #[serde(flatten)]
    listed: ListedView,
    /// Payments of its bill that leave before it.
    before: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_owner: Option<String>,
    /// Senders that were lost with it.
    abandoned: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<DecisionView>,
    history: Vec<ToldView>,
}

impl From<Shown> for ShownView {
    fn from(shown: Shown) -> Self {
        Self {
            listed: shown.listed.into(),
            before: shown.before,
            lease_owner: shown.lease_owner,
            abandoned: shown.abandoned,
            decision: shown.decision.map(DecisionView::from),
            history: shown.history.into_iter().map(ToldView::from).collect(),
        }
    }
}

/// What waits for a second operator.
#[derive(Debug, Serialize)]
struct DecisionView {
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_code: Option<String>,
    proposer: String,
    reason: String,
    at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
}

impl From<OpenDecision> for DecisionView {
    fn from(open: OpenDecision) -> Self {
        let (outcome, response_code) = match open.found {
            Some((paid, code)) => (Some(if paid { "paid" } else { "failed" }), Some(code)),
            None => (None, None),
        };
        Self {
            action: open.action,
            outcome,
            response_code,
            proposer: open.actor,
            reason: open.reason,
            at: time(open.at),
            expires_at: time(open.expires_at),
        }
    }
}

/// One thing that happened.
#[derive(Debug, Serialize)]
struct ToldView {
    at: Option<Timestamp>,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    late: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proposer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<Told> for ToldView {
    fn from(told: Told) -> Self {
        let Told { at, what, code, late, actor, proposer, reason } = told;
        Self { at: time(at), what, code, late, actor, proposer, reason }
    }
}

/// A biller as operators left it.
#[derive(Debug, Serialize)]
struct TargetView {
    biller: String,
    paused: bool,
    /// Who last paused or resumed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    pending: u64,
    processing: u64,
    held: u64,
}

/// GET `/v1/queue?...`: a page, newest first; `next` goes into `after` of the next page.
async fn list(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Watching,
    _: Admitted,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Json<serde_json::Value>, Problem> {
    entry.event(EventType::AdminRead);
    let filter = list_filter(&query, admin.relay.now())?;
    let page = admin.relay.list(&filter).await.map_err(|error| store_problem(&error))?;
    let is_full = u32::try_from(page.len()).is_ok_and(|rows| rows == filter.limit);
    let next = page.last().filter(|_| is_full).map(|last| last.seq);
    let payments: Vec<ListedView> = page.into_iter().map(ListedView::from).collect();
    Ok(Json(json!({ "payments": payments, "next": next })))
}

async fn show(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Watching,
    _: Admitted,
    Path(id): Path<String>,
) -> Result<Json<ShownView>, Problem> {
    entry.event(EventType::AdminRead);
    let id = parse(&id)?;
    entry.resource(ResourceType::Payment, &id.to_string());
    let shown = admin.relay.show(id).await.map_err(|error| store_problem(&error))?;
    let shown = shown.ok_or_else(|| Problem::new(Slug::UnknownPayment))?;
    Ok(Json(shown.into()))
}

/// GET `/v1/queue/stats`: what is open, by status, priority, biller and reason; how old the oldest is;
/// what expires within the hour; who is paused.
async fn stats(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Watching,
    _: Admitted,
) -> Result<Json<serde_json::Value>, Problem> {
    entry.event(EventType::AdminRead);
    let stats = admin.relay.queue_stats().await.map_err(|error| store_problem(&error))?;
    let controls = admin.relay.controls().await.map_err(|error| store_problem(&error))?;
    let cell = |cell: &Cell| {
        let mut view = json!({
            "status": cell.status,
            "priority": cell.priority,
            "biller": cell.target,
            "rows": cell.rows,
        });
        if let Some(reason) = &cell.hold_reason {
            view["hold_reason"] = reason.as_str().into();
        }
        view
    };
    let depth: Vec<serde_json::Value> = stats.cells.iter().map(cell).collect();
    let paused = controls.iter().filter(|said| said.control.paused);
    let paused: Vec<&str> = paused.map(|said| said.control.target.as_str()).collect();
    let oldest_s = stats.oldest_ms.map(|oldest| oldest / 1_000);
    Ok(Json(json!({
        "depth": depth,
        "oldest_s": oldest_s,
        "expiring_within_the_hour": stats.expiring,
        "paused": paused,
        "rolled_back": admin.relay.rollback().waits(),
    })))
}

async fn targets(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Watching,
    _: Admitted,
) -> Result<Json<serde_json::Value>, Problem> {
    entry.event(EventType::AdminRead);
    let views = target_views(&admin).await.map_err(|error| store_problem(&error))?;
    Ok(Json(json!({ "targets": views })))
}

/// The configured billers, then those that are paused and configured no more.
async fn target_views(admin: &Admin) -> Result<Vec<TargetView>, StoreError> {
    let stats = admin.relay.queue_stats().await?;
    let controls = admin.relay.controls().await?;
    let said = |name: &str| controls.iter().find(|said| said.control.target == name);
    let configured = admin.billers.iter().map(|biller| (&*biller.name, said(&biller.name)));
    let others = controls.iter().filter(|said| said.control.paused && !is_known(admin, said));
    let others = others.map(|said| (&*said.control.target, Some(said)));
    Ok(configured.chain(others).map(|(name, said)| target_view(name, said, &stats)).collect())
}

fn is_known(admin: &Admin, said: &StandingControl) -> bool {
    admin.billers.iter().any(|biller| biller.name == said.control.target)
}

fn target_view(name: &str, said: Option<&StandingControl>, stats: &QueueStats) -> TargetView {
    let rows = |status| {
        let cells = stats.cells.iter().filter(|it| it.target == name && it.status == status);
        cells.map(|cell| cell.rows).sum()
    };
    TargetView {
        biller: name.to_owned(),
        paused: said.is_some_and(|said| said.control.paused),
        actor: said.map(|said| said.control.actor.clone()),
        reason: said.map(|said| said.control.reason.clone()),
        at: said.and_then(|said| time(said.at)),
        pending: rows(Status::Pending),
        processing: rows(Status::Processing),
        held: rows(Status::Held),
    }
}

/// POST `/v1/queue/targets/{biller}/pause` or `resume`: 200 with the biller as it is then.
async fn control(
    State(admin): State<Admin>,
    entry: AuditEntry,
    Operator(operator): Operator,
    _: Admitted,
    Path((biller, order)): Path<(String, String)>,
    JsonBody(body): JsonBody,
) -> Result<Json<TargetView>, Problem> {
    let (kind, paused) = match order.as_str() {
        "pause" => (EventType::QueuePause, true),
        "resume" => (EventType::QueueResume, false),
        _ => return Err(Problem::new(Slug::NotFound)),
    };
    entry.event(kind).resource(ResourceType::Queue, &biller);
    let Reasoned { reason } = Reasoned::parse(&body)?;
    entry.note(&reason);
    let known = |views: Vec<TargetView>| views.into_iter().find(|view| view.biller == biller);
    let before = target_views(&admin).await.map_err(|error| store_problem(&error))?;
    if known(before).is_none() {
        return Err(Problem::new(Slug::NotFound));
    }
    let by = By { actor: operator.id().to_owned(), reason };
    let done = admin.relay.control(&biller, paused, by).await;
    done.map_err(|error| late_act(&error))?;
    tracing::warn!(biller, paused, by = operator.id(), "an operator's word on a biller");
    let stats = admin.relay.queue_stats().await.map_err(|error| store_problem(&error))?;
    let controls = admin.relay.controls().await.map_err(|error| store_problem(&error))?;
    let said = controls.iter().find(|said| said.control.target == biller);
    Ok(Json(target_view(&biller, said, &stats)))
}

/// POST `/v1/queue/{id}/hold`, `release`, `retry`, `cancel`, `settle` or `withdraw`: 200 when it is
/// done, 202 when a second operator has to say the same.
async fn act(
    State(admin): State<Admin>,
    entry: AuditEntry,
    Operator(operator): Operator,
    _: Admitted,
    Path((id, action)): Path<(String, String)>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let kind = match action.as_str() {
        "hold" => EventType::QueueHold,
        "release" => EventType::QueueRelease,
        "retry" => EventType::QueueRetry,
        "cancel" => EventType::QueueCancel,
        "settle" => EventType::QueueSettle,
        "withdraw" => EventType::QueueWithdraw,
        _ => return Err(Problem::new(Slug::NotFound)),
    };
    entry.event(kind);
    let id = parse(&id)?;
    entry.resource(ResourceType::Payment, &id.to_string());
    let relay = &admin.relay;
    let by = |reason: String| {
        entry.note(&reason);
        By { actor: operator.id().to_owned(), reason }
    };
    let operated = if action == "settle" {
        let SettleOrder { paid, response_code, reason } = SettleOrder::parse(&body)?;
        let found = Settlement { paid, response_code };
        relay.settle_by_hand(id, &found, by(reason)).await
    } else {
        let by = by(Reasoned::parse(&body)?.reason);
        match action.as_str() {
            "hold" => relay.hold(id, by).await.map_err(PaymentError::from),
            "release" => relay.release(id, by).await.map_err(PaymentError::from),
            "retry" => relay.retry(id, by).await.map_err(PaymentError::from),
            "cancel" => relay.cancel(id, &admin.billers, by).await,
            _ => relay.withdraw(id, by).await.map_err(PaymentError::from),
        }
    };
    let operated = operated.map_err(|error| match error {
        PaymentError::Store(error) => late_act(&error),
        PaymentError::Sealing(_) => Problem::new(Slug::HsmUnavailable),
    });
    answer(&entry, &action, id, operated?)
}

fn answer(
    entry: &AuditEntry,
    action: &str,
    id: Uuid,
    operated: Operated,
) -> Result<Response, Problem> {
    match operated {
        Operated::Done { status, proposer, .. } => {
            let decision = if action == "withdraw" { "withdrawn" } else { "made" };
            let mut body =
                json!({ "decision": decision, "action": action, "id": id, "status": status });
            if let Some(proposer) = proposer {
                let withdrawn = action == "withdraw";
                entry.reason(if withdrawn { Reason::Withdrawn } else { Reason::Approved });
                entry.proposer(&proposer);
                body["proposer"] = proposer.into();
            }
            Ok(Json(body).into_response())
        }
        Operated::Proposed(open) => {
            entry.reason(Reason::Proposed);
            let until = time(open.expires_at);
            let body = json!({
                "decision": "proposed",
                "action": action,
                "id": id,
                "proposer": open.actor,
                "expires_at": until,
            });
            Ok((StatusCode::ACCEPTED, Json(body)).into_response())
        }
        Operated::NotBy(open) => {
            entry.proposer(&open.actor);
            let what = Label::new(&open.action);
            Err(Problem::new(Slug::NotAllowed).with_detail(match action {
                "withdraw" => format!("{what} is proposed by another operator, who may withdraw it"),
                _ => format!("you have proposed this {what}: another operator must confirm it"),
            }))
        }
        Operated::Taken(open) => {
            entry.proposer(&open.actor);
            let (what, actor) = (Label::new(&open.action), Label::new(&open.actor));
            let found = open.found.map(|(paid, code)| {
                format!(" ({}, {})", if paid { "paid" } else { "failed" }, Label::new(&code))
            });
            Err(Problem::new(Slug::NotInThisState).with_detail(format!(
                "{what}{} is proposed by {actor}: that is confirmed or withdrawn first",
                found.unwrap_or_default()
            )))
        }
        Operated::NeedsReversal => Err(Problem::new(Slug::NotInThisState).with_detail(
            "it may have been paid, so that it cannot be cancelled: find out at the biller and settle it \
             (one that waits is held first)",
        )),
        Operated::InFlight => Err(Problem::new(Slug::RequestInProgress)
            .with_detail("it is being sent now: look again in a moment")),
        Operated::Refused(why) => Err(Problem::new(Slug::NotInThisState).with_detail(why)),
        Operated::Unknown => Err(Problem::new(Slug::UnknownPayment)),
    }
}

fn parse(id: &str) -> Result<Uuid, Problem> {
    Uuid::parse_str(id).map_err(|_| Problem::new(Slug::UnknownPayment))
}

fn time(ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms).ok()
}

/// What was asked for waits for its turn, also when nobody waits for the answer.
fn late_act(error: &StoreError) -> Problem {
    let problem = store_problem(error);
    match error.changed_nothing() || !error.is_transient() {
        true => problem,
        false => problem.with_detail("it may have been done: look at it before you repeat it"),
    }
}

fn store_problem(error: &StoreError) -> Problem {
    tracing::error!(error = chain(error), "an operator's look at the queue, or hand on it");
    match error.is_transient() {
        true if error.is_late() => Problem::new(Slug::Overloaded)
            .with_detail("it took too long: narrow a list by status or age, or look again later"),
        true => Problem::new(Slug::Overloaded),
        false => Problem::new(Slug::Internal),
    }
}
