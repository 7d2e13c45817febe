//! `tollgate audit`: the auditor's commands, through the admin API of a running gateway.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::key_desk::table;
use crate::operator::{Access, AdminClient};

/// `tollgate audit ...`
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "flattened fields have no help of their own")]
pub enum AuditCommand {
    /// Where the log stands: stream, records, the last signed checkpoint, and the keys for `tollgate-audit
    /// verify --vkey`.
    Status {
        #[command(flatten)]
        access: Access,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Records that match, oldest first.
    Search(Search),
    /// The records of a time range. As jsonl it is one file that `tollgate-audit verify` takes.
    Export(Export),
}

/// What is looked for.
#[derive(Debug, Args)]
pub struct Search {
    /// Not before, as 2026-11-26T18:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// Not after.
    #[arg(long)]
    to: Option<String>,
    /// The actor's id.
    #[arg(long)]
    actor: Option<String>,
    /// A type of event, or a family as 'pin.*'.
    #[arg(long)]
    event: Option<String>,
    /// The event's own id.
    #[arg(long)]
    event_id: Option<String>,
    /// success, failure, denied, error or abandoned.
    #[arg(long)]
    outcome: Option<String>,
    /// The id of what was acted on.
    #[arg(long)]
    resource: Option<String>,
    /// The id that the answer carried in X-Request-Id.
    #[arg(long)]
    request_id: Option<String>,
    /// Records of a page, at most 1000.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Where the page before ended: its `next`.
    #[arg(long)]
    after: Option<String>,
    #[command(flatten)]
    access: Access,
    /// Print the records as JSON Lines instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is taken out.
#[derive(Debug, Args)]
pub struct Export {
    /// jsonl verifies by itself; the others are projections.
    #[arg(long, default_value = "jsonl", value_parser = ["jsonl", "syslog", "cef", "leef", "ocsf"])]
    format: String,
    /// Not before, as 2026-11-26T18:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// Not after.
    #[arg(long)]
    to: Option<String>,
    /// A file that is not there yet; standard output when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Runs one command and prints what came of it.
///
/// # Errors
/// See [`AdminClient`].
pub async fn run(command: &AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::Status { access, json } => {
            let status = AdminClient::open(access)?.get("/v1/audit").await?;
            match json {
                true => println!("{status:#}"),
                false => print!("{}", table(&status_rows(&status), &STATUS_COLUMNS)),
            }
        }
        AuditCommand::Search(search) => {
            let found = AdminClient::open(&search.access)?.get(&search.path()?).await?;
            let records = found["records"].as_array().map(Vec::as_slice).unwrap_or_default();
            match search.json {
                true => records.iter().for_each(|record| println!("{record}")),
                false => {
                    let rows: Vec<Value> = records.iter().map(record_row).collect();
                    print!("{}", table(&rows, &RECORD_COLUMNS));
                }
            }
            if let Some(next) = found["next"].as_str() {
                eprintln!("more: --after {next}");
            }
        }
        AuditCommand::Export(export) => export.run().await?,
    }
    Ok(())
}

impl Search {
    fn path(&self) -> anyhow::Result<String> {
        let limit = Some(self.limit.to_string());
        let pairs = [
            ("from", &self.from),
            ("to", &self.to),
            ("actor", &self.actor),
            ("event", &self.event),
            ("event_id", &self.event_id),
            ("outcome", &self.outcome),
            ("resource", &self.resource),
            ("request_id", &self.request_id),
            ("limit", &limit),
            ("after", &self.after),
        ];
        path("/v1/audit/events", &pairs)
    }
}

impl Export {
    async fn run(&self) -> anyhow::Result<()> {
        let format = Some(self.format.clone());
        let path = path(
            "/v1/audit/export",
            &[("format", &format), ("from", &self.from), ("to", &self.to)],
        )?;
        let gateway = AdminClient::open(&self.access)?;
        let mut out: Box<dyn Write> = match &self.out {
            Some(path) => {
                let file = File::create_new(path).with_context(|| path.display().to_string())?;
                Box::new(BufWriter::new(file))
            }
            None => Box::new(std::io::stdout().lock()),
        };
        let bytes = gateway.download(&path, EXPORT_MAX, |piece| out.write_all(piece)).await?;
        out.flush().context("writing what came")?;
        if let Some(path) = &self.out {
            eprintln!("{}: {bytes} bytes", path.display());
        }
        Ok(())
    }
}

fn path(path: &str, pairs: &[(&str, &Option<String>)]) -> anyhow::Result<String> {
    let mut url = reqwest::Url::parse("https://localhost")?;
    url.set_path(path);
    for (name, value) in pairs {
        if let Some(value) = value {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
    Ok(format!("{path}?{}", url.query().unwrap_or_default()))
}

fn status_rows(status: &Value) -> Vec<Value> {
    let row = |what: &str, value: &Value| json!({ "what": what, "value": value });
    let signed = &status["checkpoint"];
    let checkpoint = match signed["root"].as_str() {
        None => json!("none is signed yet"),
        Some(root) => json!(format!("{} records, root {root}", signed["size"])),
    };
    let mut rows = vec![
        row("stream", &status["stream"]),
        row("records", &status["records"]),
        row("durable", &status["durable"]),
        row("blocked by a sink", &status["blocked_by_sink"]),
        row("checkpoint", &checkpoint),
    ];
    for key in status["keys"].as_array().into_iter().flatten() {
        rows.push(row("vkey", &key["vkey"]));
        rows.push(row("its sha256", &key["sha256"]));
    }
    rows
}

fn record_row(record: &Value) -> Value {
    json!({
        "time": record["time"],
        "seq": record["seq"],
        "event": record["event"]["type"],
        "outcome": record["outcome"],
        "reason": record["reason"],
        "actor": record["actor"]["id"],
        "resource": record["resource"]["id"],
        "request": record["request_id"],
    })
}

const STATUS_COLUMNS: [(&str, &str); 2] = [("WHAT", "what"), ("VALUE", "value")];

const RECORD_COLUMNS: [(&str, &str); 8] = [
    ("TIME", "time"),
    ("SEQ", "seq"),
    ("EVENT", "event"),
    ("OUTCOME", "outcome"),
    ("REASON", "reason"),
    ("ACTOR", "actor"),
    ("RESOURCE", "resource"),
    ("REQUEST", "request"),
];

/// A long log over a slow line.
const EXPORT_MAX: Duration = Duration::from_secs(6 * 3_600);
