//! One table for people, one file for scripts.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Outcome, Store};

impl Store {
    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// A line a store.
#[must_use]
pub fn to_table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<9} {:>7} {:>13} {:>11} {:>5} {:>6} {:>9} {:>5} {:>10} {:>10} {:>7} {:>9} {:>8}\n",
        "store",
        "kills",
        "acknowledged",
        "unanswered",
        "lost",
        "twice",
        "inverted",
        "held",
        "repeats",
        "unrecorded",
        "broken",
        "ready",
        "took"
    );
    for outcome in outcomes {
        let judged = &outcome.judged;
        // A String takes everything.
        let _ = writeln!(
            text,
            "{:<9} {:>7} {:>13} {:>11} {:>5} {:>6} {:>9} {:>5} {:>10} {:>10} {:>7} {:>7.2} s {:>6.0} s",
            outcome.options.store.name(),
            outcome.options.rounds,
            judged.acknowledged,
            outcome.unanswered,
            judged.lost.len(),
            judged.doubled.len(),
            judged.inverted.len(),
            outcome.held,
            outcome.repeats,
            outcome.trail.unrecorded.len(),
            outcome.trail.broken,
            outcome.ready_max.as_secs_f64(),
            outcome.took.as_secs_f64(),
        );
    }
    text
}

/// `var/kills.json`.
#[must_use]
pub fn to_json(outcomes: &[Outcome]) -> Value {
    let runs = outcomes.iter().map(|outcome| {
        let judged = &outcome.judged;
        json!({
            "store": outcome.options.store.name(),
            "seed": outcome.options.seed,
            "kills": outcome.options.rounds,
            "moments": outcome.moments,
            "acknowledged": judged.acknowledged,
            "effects": outcome.effects,
            "unanswered": outcome.unanswered,
            "lost": judged.lost,
            "duplicated": judged.doubled,
            "inverted": judged.inverted,
            "held": outcome.held,
            "repeats_at_the_biller": outcome.repeats,
            "audit_records": outcome.trail.records,
            "answers": outcome.trail.answers,
            "unrecorded": outcome.trail.unrecorded,
            "broken_chains": outcome.trail.broken,
            "audit_verdict": outcome.trail.verdict,
            "ready_s_max": outcome.ready_max.as_secs_f64(),
            "answer_s_max": outcome.answer_max.as_secs_f64(),
            "seconds": outcome.took.as_secs_f64(),
        })
    });
    json!({"runs": runs.collect::<Vec<_>>()})
}
