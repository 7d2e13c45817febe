//! GET /v1/links: both links as an operator sees them, and their figures for a scrape.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use compliance::EventType;
use hsm_adapter::client::WorkerStatus;
use hsm_adapter::protocol::Recipe;
use hsm_adapter::vocabulary::Mode;
use serde::Serialize;

use super::{Admin, Admitted, Watching};
use crate::audit::AuditEntry;
use crate::links::Role;
use crate::links::limit::Occupancy;
use crate::links::pool::MemberView;
use crate::links::token::HsmLink;
use crate::telemetry::metrics;

/// Every link.
#[derive(Debug, Serialize)]
pub(super) struct Links {
    /// The HSM links, in their order.
    links: Vec<Link>,
    /// The billers' URLs.
    backends: Vec<Backend>,
}

/// One token, and the workers that hold sessions on it.
#[derive(Debug, Serialize)]
struct Link {
    name: &'static str,
    #[serde(flatten)]
    member: MemberState,
    /// Its keys were not compared yet, are behind those of another link, or one was substituted.
    distrusted: bool,
    /// Where clear PINs may be: the weakest mode that runs; `unknown` while no worker is ready.
    mode: &'static str,
    workers: Vec<Worker>,
    /// What a ready worker proved at its start.
    recipes: Vec<Proved>,
}

/// One URL of a biller.
#[derive(Debug, Serialize)]
struct Backend {
    name: String,
    biller: String,
    url: String,
    #[serde(flatten)]
    member: MemberState,
}

/// What both kinds have.
#[derive(Debug, Serialize)]
struct MemberState {
    role: &'static str,
    /// A call would be given to it.
    usable: bool,
    /// Its breaker, as `/v1/breakers` and the figures name it, and that one's state.
    breaker_name: String,
    breaker: &'static str,
    /// The last heartbeat.
    heartbeat: Heartbeat,
    /// How long an answer takes, as a rule.
    typical_ms: f64,
    /// Of the calls in the breaker's window; `null` while they are too few.
    failure_percent: Option<u8>,
    /// Calls that run, that wait for room, that may run at once, and that found none since the start.
    running: u32,
    waiting: usize,
    limit: u32,
    refused: u64,
    /// How long ago the last call began; `null` when there was none.
    last_used_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Heartbeat {
    /// `null` before the first.
    ok: Option<bool>,
    /// How long ago.
    ago_s: Option<f64>,
    took_ms: Option<f64>,
    /// Since when it is good, or is not.
    since_s: Option<f64>,
    /// Why it was not good.
    trouble: Option<String>,
}

#[derive(Debug, Serialize)]
struct Worker {
    pid: Option<u32>,
    ready: bool,
    in_flight: usize,
    /// Starts after the first.
    restarts: u64,
    /// What the token calls itself.
    token: Option<String>,
    /// The digest of the PKCS#11 module that it loaded, hex.
    module_sha256: Option<String>,
    /// Why it is not ready, or was not before.
    trouble: Option<String>,
    /// A person must act: no further start is tried.
    latched: bool,
    /// What the person must act on is the configuration.
    refused: bool,
}

#[derive(Debug, Serialize)]
struct Proved {
    operation: String,
    mode: Mode,
    calls: String,
}

/// 200 for every admin role.
pub(super) async fn list_links(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Watching,
    _: Admitted,
) -> Json<Links> {
    entry.event(EventType::AdminRead);
    let links = admin.hsm.links().zip(admin.hsm.pool().views());
    let links = links.map(|(link, view)| Link {
        name: link.name(),
        member: view.into(),
        distrusted: link.is_distrusted(),
        mode: link.mode(),
        workers: link.workers().into_iter().map(Worker::from).collect(),
        recipes: link.recipes().into_iter().map(Proved::from).collect(),
    });
    let mut backends = Vec::new();
    for biller in admin.billers.iter() {
        let members = biller.backends.members().iter().zip(biller.backends.views());
        backends.extend(members.map(|(member, view)| Backend {
            name: view.name.clone(),
            biller: biller.name.clone(),
            url: member.endpoint().url().to_string(),
            member: view.into(),
        }));
    }
    Json(Links { links: links.collect(), backends })
}

/// Shows the figures of every member as they are now.
pub(super) fn show_figures(admin: &Admin) {
    for (link, view) in admin.hsm.links().zip(admin.hsm.pool().views()) {
        show_member(&view);
        show_link(link, &view);
    }
    for biller in admin.billers.iter() {
        let views = biller.backends.views();
        views.iter().for_each(show_member);
        for role in [Role::Primary, Role::Backup] {
            let of_role = views.iter().filter(|view| view.role == role);
            let (mut busy, mut free) = (0, 0);
            for Occupancy { running, limit, .. } in of_role.map(|view| view.occupancy) {
                busy += running;
                free += limit.saturating_sub(running);
            }
            metrics::show_connections(&biller.name, role.name(), "busy", busy);
            metrics::show_connections(&biller.name, role.name(), "free", free);
        }
    }
}

fn show_member(view: &MemberView) {
    let Occupancy { running, waiting, limit, refused } = view.occupancy;
    metrics::show_member(view.breaker.name(), limit, running, waiting, refused);
    view.breaker.show_rates();
}

fn show_link(link: &Arc<HsmLink>, view: &MemberView) {
    let (name, each) = (link.name(), u32::from(link.sessions()));
    let workers = link.workers();
    let (mut busy, mut lost, mut restarts) = (0, 0, 0);
    for worker in &workers {
        let running = u32::try_from(worker.in_flight).unwrap_or(u32::MAX).min(each);
        busy += if worker.ready { running } else { 0 };
        lost += if worker.ready { 0 } else { each };
        restarts += worker.restarts;
    }
    let all = u32::try_from(workers.len()).unwrap_or(u32::MAX).saturating_mul(each);
    let free = all.saturating_sub(busy + lost);
    metrics::show_hsm_link(name, view.role.name(), view.usable);
    for (state, count) in [("free", free), ("busy", busy), ("lost", lost)] {
        metrics::show_sessions(name, state, count);
    }
    let latched = workers.iter().any(|worker| worker.latched);
    metrics::show_workers(name, restarts, latched);
}

impl From<MemberView> for MemberState {
    fn from(view: MemberView) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let ago = |at: tokio::time::Instant| at.elapsed().as_secs_f64();
        let snapshot = view.breaker.snapshot();
        let last = view.health.last;
        Self {
            role: view.role.name(),
            usable: view.usable,
            breaker: snapshot.state.name(),
            breaker_name: snapshot.name,
            heartbeat: Heartbeat {
                ok: last.map(|_| view.health.trouble.is_none()),
                ago_s: last.map(|(at, _)| ago(at)),
                took_ms: last.map(|(_, took)| ms(took)),
                since_s: view.health.since.map(ago),
                trouble: view.health.trouble,
            },
            typical_ms: ms(view.typical),
            failure_percent: snapshot.window.failure_percent,
            running: view.occupancy.running,
            waiting: view.occupancy.waiting,
            limit: view.occupancy.limit,
            refused: view.occupancy.refused,
            last_used_s: view.last_used.map(|ago| ago.as_secs_f64()),
        }
    }
}

impl From<WorkerStatus> for Worker {
    fn from(status: WorkerStatus) -> Self {
        let WorkerStatus {
            pid,
            ready,
            in_flight,
            restarts,
            token,
            module_sha256,
            trouble,
            latched,
            refused,
        } = status;
        Self { pid, ready, in_flight, restarts, token, module_sha256, trouble, latched, refused }
    }
}

impl From<Recipe> for Proved {
    fn from(Recipe { operation, mode, calls }: Recipe) -> Self {
        Self { operation, mode, calls }
    }
}
