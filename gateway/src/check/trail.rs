//! Where the audit log stands, and the verdict of the offline verifier on its files. Reads them beside a
//! running gateway and changes nothing.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use compliance::{Options, Segment, SignedNote, segments};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::Config;

/// `audit.json`.
pub(super) async fn look(config: &Config) -> Value {
    let (dir, archive) = (config.audit.dir.clone(), config.audit.archive());
    let looked = tokio::task::spawn_blocking(move || {
        let mut told = json!({
            "directory": dir,
            "archive": { "directory": archive, "segments": segments(&archive).map_or(0, |it| it.len()) },
        });
        match heads(&dir) {
            Ok(heads) => told["streams"] = heads.into(),
            Err(error) => told["error"] = format!("{}: {error}", dir.display()).into(),
        }
        told["verified"] = match compliance::verify(&dir, Options::default()) {
            Ok(report) => json!(report),
            Err(error) => json!({ "error": hsm_adapter::worker::chain(&error) }),
        };
        told
    });
    looked.await.unwrap_or_else(|_| json!({ "error": "the reader of the log panicked" }))
}

/// The end of each stream, in the order of their boots.
fn heads(dir: &Path) -> std::io::Result<Vec<Value>> {
    let mut boots = BTreeMap::<Uuid, Vec<Segment>>::new();
    for segment in segments(dir)? {
        boots.entry(segment.name.boot).or_default().push(segment);
    }
    boots.into_iter().map(|(boot, segments)| head(boot, &segments)).collect()
}

fn head(boot: Uuid, segments: &[Segment]) -> std::io::Result<Value> {
    let (mut last, mut signed) = (None, None);
    for segment in segments.iter().rev() {
        let end = end_of(segment)?;
        last = last.or(end.last);
        signed = signed.or(end.signed);
        if last.is_some() && signed.is_some() {
            break;
        }
    }
    let last =
        last.and_then(|line| serde_json::from_slice::<Value>(&line).ok()).unwrap_or_default();
    Ok(json!({
        "boot": boot,
        "stream": last["stream"],
        "segments": segments.len(),
        "last_seq": last["seq"],
        "last_hash": last["hash"],
        "last_time": last["time"],
        "signed": signed.map(|note| json!({
            "size": note.checkpoint().size,
            "note": note.note(),
        })),
    }))
}

/// What stands last in a segment.
#[derive(Default)]
struct End {
    last: Option<Vec<u8>>,
    signed: Option<SignedNote>,
}

fn end_of(segment: &Segment) -> std::io::Result<End> {
    let (mut input, mut end, mut line) = (segment.read()?, End::default(), Vec::new());
    loop {
        line.clear();
        input.read_until(b'\n', &mut line)?;
        // What has no end is being written.
        if line.pop() != Some(b'\n') {
            return Ok(end);
        }
        // Room beyond the last record of a file that was made at its full size.
        if !line.starts_with(b"{") {
            continue;
        }
        if let Some(note) = note_of(&line).filter(SignedNote::is_signed) {
            end.signed = Some(note);
        }
        end.last = Some(line.clone());
    }
}

fn note_of(line: &[u8]) -> Option<SignedNote> {
    let text = std::str::from_utf8(line).ok()?;
    if !text.contains(CHECKPOINT) {
        return None;
    }
    let record: Value = serde_json::from_str(text).ok()?;
    SignedNote::from_base64(record["checkpoint"].as_str()?).ok()
}

/// Stands in each such record; more is asked of one in which it stands.
const CHECKPOINT: &str = "\"checkpoint\":";
