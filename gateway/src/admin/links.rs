//! GET /v1/links: the HSM links as an operator sees them.

use axum::Json;
use axum::extract::State;
use compliance::EventType;
use hsm_adapter::client::WorkerStatus;
use hsm_adapter::protocol::Recipe;
use hsm_adapter::vocabulary::Mode;
use serde::Serialize;

use super::{Admin, Admitted, Watching};
use crate::audit::AuditEntry;

/// Every link.
#[derive(Debug, Serialize)]
pub(super) struct Links {
    links: Vec<Link>,
}

/// One token, and the workers that hold sessions on it.
#[derive(Debug, Serialize)]
struct Link {
    name: &'static str,
    /// A worker is ready and the breaker lets calls pass.
    usable: bool,
    /// Where clear PINs may be: the weakest mode that runs; `unknown` while no worker is ready.
    mode: &'static str,
    /// `closed`, `open`, `half_open`, `forced_open` or `disabled`.
    breaker: &'static str,
    workers: Vec<Worker>,
    /// What a ready worker proved at its start.
    recipes: Vec<Proved>,
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
    let hsm = &admin.hsm;
    let link = Link {
        name: hsm.name(),
        usable: hsm.is_usable(),
        mode: hsm.mode(),
        breaker: hsm.breaker().state().name(),
        workers: hsm.workers().into_iter().map(Worker::from).collect(),
        recipes: hsm.recipes().into_iter().map(Proved::from).collect(),
    };
    Json(Links { links: vec![link] })
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
