//! `/v1/audit`: what an auditor may read, and nobody else. Each reading is itself on record.

use std::io;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Query, State};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use compliance::{EventType, ResourceType};
use hsm_adapter::worker::chain;
use http_body_util::channel::Channel;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Admin, Admitted, access, one_of};
use crate::audit::{AuditEntry, AuditStatus, DeskError};
use crate::wire::audit_orders::{ExportOrder, SearchOrder};
use crate::wire::problem::{Problem, Slug};

/// The paths of this file.
pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/v1/audit", get(status))
        .route("/v1/audit/events", get(events))
        .route("/v1/audit/export", get(export))
}

/// An auditor, proved by the TLS handshake.
struct Auditor;

impl<S: Sync> FromRequestParts<S> for Auditor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        one_of(parts, access::AUDITORS).map(|_| Self)
    }
}

/// GET `/v1/audit`: the stream, its last record, the last signed checkpoint and the keys to verify it with.
async fn status(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Auditor,
    _: Admitted,
) -> Json<Value> {
    entry.event(EventType::AuditRead);
    Json(view(&admin.audit_desk.status()))
}

fn view(status: &AuditStatus) -> Value {
    let keys: Vec<Value> = status
        .keys()
        .map(|(key, hash)| json!({ "vkey": key.to_string(), "sha256": hash.to_string() }))
        .collect();
    let checkpoint = status.note.as_ref().map(|note| {
        let checkpoint = note.checkpoint();
        let (size, root) = (checkpoint.size, checkpoint.root.to_string());
        json!({ "size": size, "root": root, "note": note.note() })
    });
    json!({
        "stream": status.stream,
        "records": status.seq,
        "durable": status.is_writable,
        "blocked_by_sink": status.is_blocked,
        "checkpoint": checkpoint,
        "keys": keys,
    })
}

/// GET `/v1/audit/events?...`: a page of records as they are stored, oldest first; `next` goes into `after` of
/// the next page.
async fn events(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Auditor,
    _: Admitted,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    entry.event(EventType::AuditRead).note(&written(&query));
    let SearchOrder { filter, after, limit } = SearchOrder::parse(&query)?;
    let found =
        admin.audit_desk.search(filter, after, limit).await.map_err(|error| problem(&error))?;
    let next = found.next.map(|next| next.to_string());
    // Each record is JSON already, and stays the bytes that were hashed.
    let body = format!("{{\"records\":[{}],\"next\":{}}}", found.records.join(","), json!(next));
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

/// GET `/v1/audit/export?format=&from=&to=`: the records of a time range. As JSON Lines it is an export that
/// `tollgate-audit verify` takes.
async fn export(
    State(admin): State<Admin>,
    entry: AuditEntry,
    _: Auditor,
    _: Admitted,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    entry.event(EventType::AuditExport).note(&written(&query));
    let ExportOrder { format, from, to } = ExportOrder::parse(&query)?;
    entry.resource(ResourceType::AuditStream, &admin.audit_desk.status().stream);
    let pieces =
        admin.audit_desk.export(format, from, to).await.map_err(|error| problem(&error))?;
    let name = format!("attachment; filename=\"audit.{format}\"");
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(format.media_type())),
        // A format's name is a word.
        (
            CONTENT_DISPOSITION,
            HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("attachment")),
        ),
    ];
    Ok((headers, body(pieces)).into_response())
}

/// The query as the record of the reading keeps it.
fn written(query: &[(String, String)]) -> String {
    let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(" ")
}

fn problem(error: &DeskError) -> Problem {
    match error {
        DeskError::Busy => Problem::new(Slug::Overloaded),
        DeskError::Read(_) => {
            tracing::error!(error = chain(error), "an auditor was not served");
            Problem::new(Slug::Internal)
        }
    }
}

/// What the reader of the files hands over, as a body. An error breaks the connection: the end is missed.
fn body(mut pieces: mpsc::Receiver<io::Result<Vec<u8>>>) -> Body {
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            match piece {
                Ok(piece) => {
                    // Who asked has gone; the reader learns of it.
                    if sender.send_data(piece.into()).await.is_err() {
                        return;
                    }
                }
                Err(error) => return sender.abort(error),
            }
        }
    });
    Body::new(body)
}
