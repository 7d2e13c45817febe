//! How a battery came out: one table for people, one file for scripts.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// One kind of fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Faults that struck something.
    pub injected: u64,
    /// Requests that began while it lasted, up to recovery.
    pub requests: u64,
    /// Answers that were not true.
    pub wrong_answers: u64,
    /// Payments that were acknowledged and never made.
    pub lost: u64,
    /// Payments made once too often.
    pub duplicated: u64,
    /// Answers after their deadline, or none at all.
    pub late: u64,
    /// From the end of a fault until both links served again: the longest of all.
    pub recovery_s: f64,
    /// Requests that were told "not now".
    #[serde(skip)]
    pub refused: u64,
    /// Payments left to a person.
    #[serde(skip)]
    pub held: u64,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub(super) seed: u64,
    pub(super) rows: Vec<Row>,
    /// What was wrong or lost, one sentence each.
    pub(super) wrong: Vec<String>,
    /// Answers that say nothing false and that nobody should get, and how often.
    pub(super) odd: BTreeMap<String, u64>,
    /// Late answers, one sentence each.
    pub(super) late: Vec<String>,
    pub(super) payments: u64,
    pub(super) effects: u64,
    pub(super) seconds: f64,
}

impl Table {
    /// Whether nothing was wrong, lost or made twice.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let sum = self.sum();
        let bad = sum.wrong_answers + sum.lost + sum.duplicated;
        bad == 0 && self.wrong.is_empty()
    }

    /// One sentence for each thing that was wrong, lost or made twice.
    #[must_use]
    pub fn findings(&self) -> &[String] {
        &self.wrong
    }

    /// `var/chaos.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let sum = self.sum();
        json!({
            "seed": self.seed,
            "faults": self.rows,
            "totals": {
                "injected": sum.injected,
                "requests": sum.requests,
                "wrong_answers": sum.wrong_answers,
                "lost": sum.lost,
                "duplicated": sum.duplicated,
                "late": sum.late,
                "recovery_s": sum.recovery_s,
                "answered_in_time_percent": in_time(&sum),
                "payments": self.payments,
                "effects": self.effects,
                "seconds": self.seconds,
            },
        })
    }

    fn sum(&self) -> Row {
        let mut sum = Row { name: "all".to_owned(), ..Row::default() };
        for row in &self.rows {
            sum.injected += row.injected;
            sum.requests += row.requests;
            sum.wrong_answers += row.wrong_answers;
            sum.lost += row.lost;
            sum.duplicated += row.duplicated;
            sum.late += row.late;
            sum.refused += row.refused;
            sum.held += row.held;
            sum.recovery_s = sum.recovery_s.max(row.recovery_s);
        }
        sum
    }
}

const LATE_SHOWN: usize = 20;

fn in_time(row: &Row) -> f64 {
    let in_time = row.requests.saturating_sub(row.late);
    100.0 * in_time as f64 / row.requests.max(1) as f64
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<22} {:>8} {:>8} {:>6} {:>5} {:>6} {:>6} {:>8} {:>8} {:>6} {:>10}",
            "fault",
            "injected",
            "requests",
            "wrong",
            "lost",
            "twice",
            "late",
            "in time",
            "refused",
            "held",
            "recovery"
        )?;
        for row in self.rows.iter().chain([&self.sum()]) {
            writeln!(
                f,
                "{:<22} {:>8} {:>8} {:>6} {:>5} {:>6} {:>6} {:>6.2} % {:>8} {:>6} {:>8.2} s",
                row.name,
                row.injected,
                row.requests,
                row.wrong_answers,
                row.lost,
                row.duplicated,
                row.late,
                in_time(row),
                row.refused,
                row.held,
                row.recovery_s
            )?;
        }
        writeln!(
            f,
            "\nseed {}, {} payments, {} made, {:.0} s",
            self.seed, self.payments, self.effects, self.seconds
        )?;
        for (what, count) in &self.odd {
            writeln!(f, "  odd, {count} times: {what}")?;
        }
        for what in self.late.iter().take(LATE_SHOWN) {
            writeln!(f, "  late: {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(row: Row) -> Table {
        Table {
            rows: vec![Row { name: "none".to_owned(), ..Row::default() }, row],
            ..Table::default()
        }
    }

    #[test]
    fn one_wrong_lost_or_second_payment_spoils_a_battery_and_a_late_answer_does_not() {
        assert!(table(Row { late: 1, refused: 1, held: 1, ..Row::default() }).is_clean());
        for row in [
            Row { wrong_answers: 1, ..Row::default() },
            Row { lost: 1, ..Row::default() },
            Row { duplicated: 1, ..Row::default() },
        ] {
            assert!(!table(row).is_clean());
        }
    }

    #[test]
    fn the_file_has_the_fields_of_the_contract_for_each_fault() {
        let json = table(Row { requests: 4, late: 1, ..Row::default() }).to_json();

        let fields: Vec<_> = json["faults"][1].as_object().unwrap().keys().cloned().collect();
        let mut wanted = [
            "name",
            "injected",
            "requests",
            "wrong_answers",
            "lost",
            "duplicated",
            "late",
            "recovery_s",
        ];
        wanted.sort_unstable();
        assert_eq!(fields, wanted);
        assert_eq!(json["totals"]["answered_in_time_percent"], 75.0);
    }
}
