//! `tollgate check`: looks at everything that `serve` needs, before it is needed. Changes nothing; with
//! `--evidence` it writes what it has seen into a directory, for an assessor.

mod certificates;
mod comparison;
pub mod evidence;
mod files;
mod inventory;
mod keys;
mod lock_down;
mod settings;
mod sinks;
mod trail;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use hsm_adapter::client::{LinkOptions, WorkerStatus};
use hsm_adapter::protocol::Recipe;
use rustix::fs::Access;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::config::{Config, NamedLink, Place, PostgresConfig};
use crate::edge::TlsSource;
use crate::links::token::{Hsm, HsmLink};
use crate::store::{Seen, ServerSeen, Store};

use self::comparison::View;
pub(crate) use files::end_of;

/// One row of the table.
#[derive(Debug, Serialize)]
struct Row {
    check: &'static str,
    ok: bool,
    detail: String,
    /// What the key lint found, whole. In JSON only.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<serde_json::Value>,
}

/// Free bytes below which the disk is red.
const DISK_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// A certificate or CRL that ends sooner than this is red.
const EXPIRY_S_MIN: i64 = 24 * 3600;

/// Prints the table, and collects evidence in a new directory when one is named. Exit 0 when every row is
/// good and the evidence is signed.
pub async fn run(path: &Path, json: bool, evidence: Option<&Path>) -> ExitCode {
    let rows = match evidence.map_or(Ok(()), evidence::prepare) {
        Err(why) => vec![row("evidence", Err(why))],
        Ok(()) => match Config::load(path) {
            Err(error) => vec![row("configuration", Err(hsm_adapter::worker::chain(&error)))],
            Ok(config) => look(path, &config, evidence).await,
        },
    };
    print(&rows, json)
}

async fn look(path: &Path, config: &Config, evidence: Option<&Path>) -> Vec<Row> {
    let mut rows = vec![row("configuration", Ok(path.display().to_string()))];
    tls(config, &mut rows);
    files::look(config, &mut rows);
    sinks::look(config, &mut rows).await;
    rows.push(row("database", database(config).await));
    let hsm = hsm(config, &mut rows).await;
    rows.push(row("disk", disk(config)));
    rows.push(row("clock", clock()));
    if let Some(dir) = evidence {
        let subject = evidence::Subject { path, config, hsm: hsm.as_ref(), rows: &rows };
        let written = evidence::write(dir, &subject).await;
        rows.push(row("evidence", written));
    }
    if let Some(hsm) = hsm {
        hsm.stop().await;
    }
    rows
}

fn print(rows: &[Row], json: bool) -> ExitCode {
    let good = rows.iter().all(|row| row.ok);
    if json {
        // Texts and booleans only: such rows always have a JSON form.
        println!("{}", serde_json::to_string_pretty(rows).unwrap_or_default());
    } else {
        for Row { check, ok, detail, .. } in rows {
            println!("{}  {check:<18} {detail}", if *ok { "ok " } else { "RED" });
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn row(check: &'static str, outcome: Result<String, String>) -> Row {
    let ok = outcome.is_ok();
    let (Ok(detail) | Err(detail)) = outcome;
    Row { check, ok, detail, report: None }
}

fn tls(config: &Config, rows: &mut Vec<Row>) {
    for (name, files) in [("data", &config.tls.data), ("admin", &config.tls.admin)] {
        let check = if name == "data" { "tls data" } else { "tls admin" };
        match TlsSource::load(name, files, true) {
            Err(error) => rows.push(row(check, Err(hsm_adapter::worker::chain(&error)))),
            Ok(source) => {
                for fact in source.facts() {
                    let left = fact.expires_s - jiff::Timestamp::now().as_second();
                    let text = format!("{}: {} days left", fact.name, left / 86_400);
                    rows.push(row(check, if left > EXPIRY_S_MIN { Ok(text) } else { Err(text) }));
                }
            }
        }
    }
}

async fn database(config: &Config) -> Result<String, String> {
    match config.store.place()? {
        Place::Sqlite(path) => file(path).await,
        Place::Postgres(postgres) => server(postgres).await,
    }
}

async fn server(config: &PostgresConfig) -> Result<String, String> {
    let seen = Store::look_at_server(config).await;
    let ServerSeen { name, version, schema, pending } =
        seen.map_err(|error| hsm_adapter::worker::chain(&error))?;
    let mut text = format!("{name}: PostgreSQL {version}, schema {schema}");
    if pending > 0 {
        text += &format!(", {pending} pending: serve will apply them");
    }
    Ok(text)
}

async fn file(path: &Path) -> Result<String, String> {
    let told = |what: String| format!("{}: {what}", path.display());
    let seen = Store::look(path).await.map_err(|error| hsm_adapter::worker::chain(&error))?;
    let written = if seen.is_some() { path } else { parent(path) };
    rustix::fs::access(written, Access::WRITE_OK)
        .map_err(|error| format!("{}: is not ours to write: {error}", written.display()))?;
    let Some(Seen { schema, pending, write_ahead, check }) = seen else {
        return Ok(told("will be made".into()));
    };
    let mut text = format!("schema {schema}");
    if pending > 0 {
        text += &format!(", {pending} pending: serve will apply them");
    }
    text +=
        if write_ahead { ", write-ahead log" } else { ", serve will give it a write-ahead log" };
    match check.as_deref() {
        Some("ok") => Ok(told(text + ", sound")),
        Some(complaint) => Err(told(format!("is damaged, restore a backup: {complaint}"))),
        None => Ok(told(text + ", not looked through")),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The links, still running; none when they could not even be started.
async fn hsm(config: &Config, rows: &mut Vec<Row>) -> Option<Hsm> {
    let links = config.hsm.links().map_err(anyhow::Error::msg);
    let started = links.and_then(|links| Ok((crate::app::hsm(&config.hsm)?, links)));
    let (hsm, links) = match started {
        Ok(started) => started,
        Err(error) => {
            rows.push(row("hsm", Err(format!("{error:#}"))));
            return None;
        }
    };
    let mut seen = Vec::new();
    // In one order: `app::hsm` starts what the configuration names.
    for (link, NamedLink { options, .. }) in hsm.links().zip(&links) {
        started_all(link, options.start_limit).await;
        seen.push((link.name(), look_at(config, options, link, rows).await));
    }
    rows.extend(comparison::compare(&seen).into_iter().map(|told| row("keys", told)));
    Some(hsm)
}

/// Waits for each worker's first outcome. They start one after another: each has the time of a start.
async fn started_all(link: &HsmLink, start_limit: Duration) {
    let (mut left, mut limit) = (usize::MAX, Instant::now());
    loop {
        let waiting = link.workers().iter().filter(|worker| waits(worker)).count();
        if waiting < left {
            (left, limit) = (waiting, Instant::now() + start_limit);
        }
        if waiting == 0 || Instant::now() >= limit {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The keys as each worker knows them.
async fn look_at(
    config: &Config,
    options: &LinkOptions,
    link: &HsmLink,
    rows: &mut Vec<Row>,
) -> Vec<View> {
    // Each question has a time of its own.
    let limit = || Instant::now() + options.start_limit;
    let name = link.name();
    for worker in link.workers() {
        // A worker is ready only when its keys are locked down and every operation is proved.
        let token = worker.token.unwrap_or_default();
        let outcome = match (worker.ready, worker.trouble) {
            (true, _) => Ok(format!("{name}: {token}: keys locked down, self-test passed")),
            (false, trouble) => {
                let trouble = trouble.unwrap_or_else(|| "not ready in time".into());
                Err(format!("{name}: {trouble}"))
            }
        };
        rows.push(row("hsm worker", outcome));
    }
    if link.is_up() {
        rows.push(row("hsm mode", Ok(format!("{}: clear PINs are there only", link.mode()))));
        for Recipe { operation, mode, calls } in link.recipes() {
            rows.push(row("hsm recipe", Ok(format!("{operation}  {mode}  {calls}"))));
        }
        let views = list_keys(config, link, limit(), rows).await;
        lock_down::look(options, link, limit(), rows).await;
        return views;
    }
    Vec::new()
}

async fn list_keys(
    config: &Config,
    link: &HsmLink,
    limit: Instant,
    rows: &mut Vec<Row>,
) -> Vec<View> {
    let views = match link.list_keys_each(limit).await {
        Ok(views) => views,
        Err(error) => {
            rows.push(row("keys", Err(error.to_string())));
            return Vec::new();
        }
    };
    let keys = views.first().map_or(&[][..], |(_, keys)| keys);
    let missing = keys::missing(config, keys);
    rows.extend(missing.into_iter().map(|text| row("key", Err(text))));
    let pairs = keys::pairs(config, keys, &link.recipes());
    rows.extend(pairs.into_iter().map(|outcome| row("hsm mode", outcome)));
    for key in keys {
        let kcv = key.kcv.map_or_else(|| "-".into(), |kcv| kcv.to_string());
        let source = if key.kcv_from_token { "token" } else { "register" };
        let (label, version, role) = (&key.label, key.version, key.role);
        let text = format!("{label}@{version}  {role}  kcv {kcv} ({source})");
        rows.push(row("key", Ok(text)));
    }
    views
}

fn waits(worker: &WorkerStatus) -> bool {
    !worker.ready && !worker.latched && worker.trouble.is_none()
}

fn disk(config: &Config) -> Result<String, String> {
    let mut text = Vec::new();
    // A server's disk is its own operator's.
    let store = config.store.path.as_deref().map(|path| ("store", parent(path)));
    for (name, dir) in store.into_iter().chain([("audit", config.audit.dir.as_path())]) {
        let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statvfs(existing).map_err(|error| format!("{name}: {error}"))?;
        let free = stat.f_bavail * stat.f_frsize;
        let line = format!("{name}: {} MiB free", free / (1024 * 1024));
        if free < DISK_BYTES_MIN {
            return Err(line);
        }
        text.push(line);
    }
    Ok(text.join(", "))
}

/// A clock before this release was made is wrong whatever it says.
fn clock() -> Result<String, String> {
    let now = jiff::Timestamp::now();
    let text = format!("{now:.0}");
    if now.as_second() > RELEASED_S { Ok(text) } else { Err(format!("{text}: is in the past")) }
}

/// 2026-11-01.
const RELEASED_S: i64 = 1_793_491_200;
