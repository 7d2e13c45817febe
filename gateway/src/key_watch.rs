//! The watch over the token: every worker reads its keys back again and again, and whatever is not
//! as it must be is told once in the audit log, and shown in the figures as long as it lasts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use compliance::{Event, EventType, Label, Outcome, Resource, ResourceType};
use hsm_adapter::client::LinkError;
use hsm_adapter::protocol::{LintReport, ProbeOutcome};
use metrics::{counter, gauge};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::audit::{AuditLog, AuditUnavailable};
use crate::links::token::{HsmError, HsmLink};
use crate::telemetry::metrics::{KEY_LINTS, KEYS_QUARANTINED, PROBES_FAILED};

/// One link's watch.
#[derive(Debug)]
pub struct KeyWatch {
    hsm: Arc<HsmLink>,
    audit: AuditLog,
    every: Duration,
    accepted: Vec<String>,
    /// The subjects of what stands in the audit log and lasts. Bounded by the keys and the probes that there are.
    told: BTreeSet<String>,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Finding {
    /// A key out of use, by `label@version`; another has taken its place.
    Substituted(String),
    /// A key out of use.
    Quarantined(String),
    /// A probe that did not fail, and is no accepted risk.
    Probe(String),
}

impl Finding {
    /// The key, told once whatever is wrong with it later, or the probe.
    fn subject(&self) -> &str {
        match self {
            Self::Substituted(subject) | Self::Quarantined(subject) | Self::Probe(subject) => {
                subject
            }
        }
    }
}

/// One round over all workers. A worker that does not answer within it is lost to its supervisor.
const ROUND_MAX: Duration = Duration::from_secs(10);

impl KeyWatch {
    /// `every` is the time from one round to the next; `accepted` names probes that may fail.
    #[must_use]
    pub fn new(hsm: Arc<HsmLink>, audit: AuditLog, every: Duration, accepted: Vec<String>) -> Self {
        Self { hsm, audit, every, accepted, told: BTreeSet::new() }
    }

    /// Round after round until `stop`.
    pub async fn watch(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let outcome = match self.hsm.lint(Instant::now() + ROUND_MAX).await {
                // Whoever needs a worker says so; there is nothing to read back.
                Err(HsmError::Link(LinkError::NoWorker)) => continue,
                Err(error) => {
                    tracing::warn!(link = self.hsm.name(), %error, "the key lint has no answer");
                    "error"
                }
                Ok(reports) => match self.take(&reports).await {
                    0 => "clean",
                    _ => "deviating",
                },
            };
            counter!(KEY_LINTS, "link" => self.hsm.name(), "outcome" => outcome).increment(1);
        }
    }

    /// Tells what is new; how much there is in all.
    async fn take(&mut self, reports: &[LintReport]) -> usize {
        let found = findings(reports, &self.accepted);
        let is_probe = |finding: &&Finding| matches!(finding, Finding::Probe(_));
        let probes = found.iter().filter(is_probe).count();
        let link = self.hsm.name();
        gauge!(KEYS_QUARANTINED, "link" => link).set((found.len() - probes) as f64);
        gauge!(PROBES_FAILED, "link" => link).set(probes as f64);
        // What has gone with a new worker is told again when it comes back.
        self.told.retain(|told| found.iter().any(|finding| finding.subject() == told));
        for finding in &found {
            if self.told.contains(finding.subject()) {
                continue;
            }
            tracing::error!(link, ?finding, "the token is not locked down");
            match self.audit.append(self.event(finding)).await {
                Ok(_) => drop(self.told.insert(finding.subject().to_owned())),
                Err(AuditUnavailable) => tracing::error!("the finding is not in the audit log"),
            }
        }
        found.len()
    }

    fn event(&self, finding: &Finding) -> Event {
        let link = self.hsm.name();
        let (kind, on) = match finding {
            Finding::Substituted(key) => (EventType::KeySubstitution, key_resource(key)),
            Finding::Quarantined(key) => (EventType::KeyQuarantine, key_resource(key)),
            Finding::Probe(probe) => {
                let id = Label::new(&format!("{link} {probe}"));
                (EventType::HsmProbe, Resource::new(ResourceType::HsmLink, id))
            }
        };
        self.audit.own_event(kind, Outcome::Failure, on).link(Label::new(link))
    }
}

fn key_resource(key: &str) -> Resource {
    Resource::new(ResourceType::Key, Label::new(key))
}

/// What the reports of all workers hold, each finding once. An object that no key of the register
/// names is a finding only when it may both wrap and decipher.
fn findings(reports: &[LintReport], accepted: &[String]) -> BTreeSet<Finding> {
    let mut found = BTreeSet::new();
    for report in reports {
        let bad = report.keys.iter().filter(|row| row.role.is_some() && !row.deviations.is_empty());
        found.extend(bad.map(|row| match row.substituted {
            true => Finding::Substituted(row.key.clone()),
            false => Finding::Quarantined(row.key.clone()),
        }));
        // No order can use it, but whoever holds the login can: it reads keys out.
        let strange = report.keys.iter().filter(|row| row.role.is_none());
        let strange = strange.filter(|row| !row.deviations.is_empty());
        found.extend(strange.map(|row| Finding::Probe(format!("object {}", row.key))));
        let failed = report.probes.iter().filter(|row| row.outcome == ProbeOutcome::Done);
        let failed = failed.filter(|row| !accepted.contains(&row.probe));
        found.extend(failed.map(|row| Finding::Probe(row.probe.clone())));
    }
    found
}

#[cfg(test)]
mod tests {
    use hsm_adapter::protocol::{KeyRow, ProbeRow};
    use hsm_adapter::vocabulary::KeyRole;

    use super::*;

    #[test]
    fn what_any_worker_finds_is_found_once_and_accepted_risks_and_strangers_are_not() {
        let key = |key: &str, role, bad: bool, substituted| KeyRow {
            key: key.into(),
            role,
            deviations: if bad { vec!["why".into()] } else { Vec::new() },
            substituted,
        };
        let probe = |probe: &str, outcome| ProbeRow {
            probe: probe.into(),
            about: String::new(),
            outcome,
            detail: String::new(),
        };
        let role = Some(KeyRole::Mac);
        let first = LintReport {
            keys: vec![key("a@1", role, true, true), key("b@1", role, false, false)],
            probes: vec![probe("copy", ProbeOutcome::Done), probe("read", ProbeOutcome::Refused)],
            session_objects: 0,
        };
        let second = LintReport {
            keys: vec![key("b@1", role, true, false), key("stranger", None, true, false)],
            probes: vec![probe("copy", ProbeOutcome::Done), probe("digest", ProbeOutcome::Done)],
            session_objects: 0,
        };

        let found = findings(&[first, second], &["digest".into()]);

        let expected = [
            Finding::Substituted("a@1".into()),
            Finding::Quarantined("b@1".into()),
            Finding::Probe("copy".into()),
            Finding::Probe("object stranger".into()),
        ];
        assert_eq!(found, expected.into());
    }
}
