//! What every token holds and has proved: keys, recipes, the lint with its probes.

use hsm_adapter::client::{LinkOptions, WorkerStatus};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config::{Config, NamedLink};
use crate::links::token::{Hsm, HsmLink};

/// One value a link, for each file.
#[derive(Default)]
pub(super) struct Links {
    pub(super) keys: Vec<Value>,
    pub(super) self_test: Vec<Value>,
    pub(super) lint: Vec<Value>,
}

/// Asks every link that is up. Of one that is not, the files say why.
pub(super) async fn look(config: &Config, hsm: Option<&Hsm>) -> Links {
    let mut found = Links::default();
    let named = config.hsm.links().unwrap_or_default();
    let links = hsm.into_iter().flat_map(Hsm::links).zip(&named);
    for (link, NamedLink { role, options }) in links {
        let workers: Vec<Value> = link.workers().iter().map(worker).collect();
        let mut keys = json!({
            "link": link.name(),
            "role": role.name(),
            "token": options.token_label,
            "module": options.module,
            "module_sha256": module(link),
            "module_sha256_pinned": options.module_sha256,
        });
        match keys_of(link, options).await {
            Ok(listed) => keys["keys"] = listed,
            Err(why) => keys["error"] = why.into(),
        }
        found.keys.push(keys);
        found.self_test.push(json!({
            "link": link.name(),
            "mode": link.mode(),
            "workers": workers,
            // A worker is ready only when each of these is proved.
            "recipes": link.recipes(),
        }));
        let mut lint = json!({
            "link": link.name(),
            "accepted_probes": options.accepted_probes,
        });
        match link.lint(Instant::now() + options.start_limit).await {
            Ok(reports) => lint["workers"] = json!(reports),
            Err(error) => lint["error"] = hsm_adapter::worker::chain(&error).into(),
        }
        found.lint.push(lint);
    }
    found
}

/// The keys as the first worker knows them; another that knows them otherwise is in `check.json`.
async fn keys_of(link: &HsmLink, options: &LinkOptions) -> Result<Value, String> {
    let views = link.list_keys_each(Instant::now() + options.start_limit).await;
    let views = views.map_err(|error| hsm_adapter::worker::chain(&error))?;
    let keys = views.into_iter().next().map(|(_, keys)| keys).unwrap_or_default();
    serde_json::to_value(keys).map_err(|error| error.to_string())
}

fn module(link: &HsmLink) -> Vec<String> {
    let mut digests: Vec<String> =
        link.workers().into_iter().filter_map(|worker| worker.module_sha256).collect();
    digests.sort();
    digests.dedup();
    digests
}

fn worker(worker: &WorkerStatus) -> Value {
    json!({
        "ready": worker.ready,
        "token": worker.token,
        "module_sha256": worker.module_sha256,
        "trouble": worker.trouble,
    })
}
