//! The lock-down report: which module runs, every key as it was read back, every call that the token
//! must refuse, what is left behind.

use hsm_adapter::client::LinkOptions;
use hsm_adapter::protocol::{KeyRow, LintReport, ProbeOutcome, ProbeRow};
use serde::Serialize;
use tokio::time::Instant;

use super::{Row, row};
use crate::links::token::HsmLink;

/// Adds the report's rows. The workers hold one token: the first one's report, and of the others
/// what deviates.
pub(super) async fn look(
    options: &LinkOptions,
    link: &HsmLink,
    limit: Instant,
    rows: &mut Vec<Row>,
) {
    let LinkOptions { name, module, module_sha256, accepted_probes, .. } = options;
    let pinned = match module_sha256 {
        Some(_) => "as pinned",
        None => "not pinned: name it in this link's module_sha256",
    };
    let mut digests: Vec<_> =
        link.workers().into_iter().filter_map(|worker| worker.module_sha256).collect();
    digests.dedup();
    for digest in digests {
        let text = format!("{name}: {} sha256 {digest} ({pinned})", module.display());
        rows.push(row("hsm module", Ok(text)));
    }
    let reports = match link.lint(limit).await {
        Ok(reports) => reports,
        Err(error) => return rows.push(row("key lint", Err(error.to_string()))),
    };
    for (at, LintReport { keys, probes, session_objects }) in reports.into_iter().enumerate() {
        let told = |row: &KeyRow| at == 0 || !row.deviations.is_empty();
        rows.extend(keys.iter().filter(|row| told(row)).map(key));
        if at == 0 {
            rows.extend(probes.iter().map(|row| probe(row, accepted_probes)));
        }
        let text = format!("{session_objects} left in worker {at}");
        let outcome = if session_objects == 0 { Ok(text) } else { Err(text) };
        rows.push(row("session objects", outcome));
    }
}

fn key(found: &KeyRow) -> Row {
    let KeyRow { key, role, deviations, .. } = found;
    let outcome = match (role, deviations.as_slice()) {
        (Some(role), []) => Ok(format!("{key}  {role}  as it must be")),
        (None, []) => Ok(format!("{key}: unregistered; no order can use it")),
        (_, deviations) => Err(format!("{key}: {}", deviations.join("; "))),
    };
    with(row("key lint", outcome), found)
}

fn probe(found: &ProbeRow, accepted: &[String]) -> Row {
    let ProbeRow { probe, about, outcome, detail } = found;
    let outcome = match outcome {
        ProbeOutcome::Refused => Ok(format!("{probe}: refused: {detail}")),
        ProbeOutcome::NotTried => Ok(format!("{probe}: does not apply: {detail}")),
        ProbeOutcome::Done if accepted.contains(probe) => {
            Ok(format!("{probe}: {about}: {detail}; an accepted risk"))
        }
        ProbeOutcome::Done => Err(format!("{probe}: {about}: {detail}")),
    };
    with(row("probe", outcome), found)
}

fn with(row: Row, report: &impl Serialize) -> Row {
    // Texts, lists of texts and booleans: such a report always has a JSON form.
    Row { report: serde_json::to_value(report).ok(), ..row }
}
