//! What clients were told, by act; and what the biller did, in the end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::table::{Row, Table};
use crate::billing::{Control, LedgerReport};

/// The books of one battery.
#[derive(Debug)]
pub(super) struct Books {
    act: AtomicUsize,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    rows: Vec<Row>,
    bills: HashMap<String, (usize, Told)>,
    wrong: Vec<String>,
    odd: BTreeMap<String, u64>,
    late: Vec<String>,
}

/// What a client knows of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Paid, under the gateway's MAC.
    Paid,
    /// It will be.
    Waits,
    /// A person has to find out.
    Held,
    /// It was not and will not be made.
    Refused,
    /// Nothing that can be relied on.
    Nothing,
}

/// How one request ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The right answer.
    Right,
    /// Not now: 503 or 429, with the slug.
    Refused,
    /// An answer that is not true, in words.
    Wrong(String),
    /// An answer that nobody should get and that says nothing false: a kind of it.
    Odd(String),
    /// None, and why.
    Unanswered(String),
}

impl Books {
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let rows = names.map(|name| Row { name: name.to_owned(), ..Row::default() }).collect();
        let pages = Pages { rows, ..Pages::default() };
        Self { act: AtomicUsize::new(0), pages: Mutex::new(pages) }
    }

    /// From now on requests belong to this row.
    pub(super) fn turn_to(&self, row: usize) {
        self.act.store(row, Relaxed);
    }

    /// The row to which a request belongs that begins now.
    pub(super) fn row(&self) -> usize {
        self.act.load(Relaxed)
    }

    pub(super) fn injected(&self, row: usize, injected: u64, recovery: Duration) {
        let row = &mut self.pages().rows[row];
        row.injected = injected;
        row.recovery_s = recovery.as_secs_f64();
    }

    pub(super) fn enter(&self, row: usize, ended: Ended, took: Duration) {
        let mut pages = self.pages();
        let name = pages.rows[row].name.clone();
        let line = &mut pages.rows[row];
        line.requests += 1;
        let is_late = took > LATE_AFTER || matches!(ended, Ended::Unanswered(_));
        line.late += u64::from(is_late);
        if is_late {
            pages.late.push(format!("{name}: after {took:.2?}: {ended}"));
        }
        let line = &mut pages.rows[row];
        match ended {
            Ended::Right | Ended::Unanswered(_) => {}
            Ended::Refused => line.refused += 1,
            Ended::Wrong(what) => {
                line.wrong_answers += 1;
                pages.wrong.push(format!("{name}: {what}"));
            }
            Ended::Odd(kind) => *pages.odd.entry(format!("{name}: {kind}")).or_default() += 1,
        }
    }

    pub(super) fn enter_bill(&self, row: usize, bill: String, told: Told) {
        self.pages().bills.insert(bill, (row, told));
    }

    /// The bills that were refused and are paid.
    pub(super) fn refused_and_paid(&self, ledger: &LedgerReport) -> Vec<String> {
        let paid = times_paid(ledger);
        let pages = self.pages();
        let refused = pages.bills.iter().filter(|(_, (_, told))| *told == Told::Refused);
        refused
            .map(|(bill, _)| bill)
            .filter(|bill| paid.contains_key(bill.as_str()))
            .cloned()
            .collect()
    }

    /// Waits until all that was acknowledged is paid, and reads the ledger.
    ///
    /// # Errors
    /// A biller that is away.
    pub(super) async fn settle(
        &self,
        control: &Control,
        patience: Duration,
    ) -> anyhow::Result<LedgerReport> {
        let limit = Instant::now() + patience;
        loop {
            let ledger = control.ledger().await?;
            let paid = times_paid(&ledger);
            let is_settled =
                self.pages().bills.iter().all(|(bill, (_, told))| {
                    *told != Told::Waits || paid.contains_key(bill.as_str())
                });
            if is_settled || Instant::now() > limit {
                return Ok(ledger);
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Compares with the ledger and makes the table.
    pub(super) fn close(
        &self,
        seed: u64,
        took: Duration,
        ledger: &LedgerReport,
        again: &HashMap<String, String>,
    ) -> Table {
        let paid = times_paid(ledger);
        let mut pages = self.pages();
        let Pages { rows, bills, wrong, odd, late } = std::mem::take(&mut *pages);
        drop(pages);
        let mut table = Table { seed, rows, wrong, odd, late, ..Table::default() };
        for (bill, (row, told)) in &bills {
            let times = paid.get(bill.as_str()).copied().unwrap_or_default();
            let row = &mut table.rows[*row];
            if times > 1 {
                row.duplicated += times - 1;
                table.wrong.push(format!("{}: {bill} was paid {times} times", row.name));
            }
            match told {
                Told::Paid | Told::Waits if times == 0 => {
                    row.lost += 1;
                    table.wrong.push(format!("{}: {bill} is lost: {told:?}", row.name));
                }
                Told::Refused if times > 0 => {
                    row.wrong_answers += 1;
                    let again = again.get(bill).map(String::as_str).unwrap_or_default();
                    let why = format!("{}: {bill} was refused and is paid: {again}", row.name);
                    table.wrong.push(why);
                }
                Told::Paid | Told::Waits | Told::Refused | Told::Held | Told::Nothing => {}
            }
            row.held += u64::from(*told == Told::Held);
        }
        for (count, what) in [
            (ledger.conflicts, "a reference was sent again with other bytes"),
            (ledger.mac_refused, "a MAC of the gateway was wrong at the biller"),
            (ledger.pin_refused, "a PIN was wrong at the biller"),
        ] {
            if count > 0 {
                table.wrong.push(format!("{count} times: {what}"));
            }
        }
        table.payments = bills.len() as u64;
        table.effects = ledger.effects.len() as u64;
        table.seconds = took.as_secs_f64();
        table
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The deadline of every request, and the grace that a loaded machine needs.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
const LATE_AFTER: Duration = Duration::from_millis(5_050);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("the right answer"),
            Self::Refused => f.write_str("not now"),
            Self::Wrong(what) => write!(f, "wrong: {what}"),
            Self::Odd(what) => f.write_str(what),
            Self::Unanswered(why) => write!(f, "no answer: {why}"),
        }
    }
}

fn times_paid(ledger: &LedgerReport) -> HashMap<&str, u64> {
    let mut times = HashMap::new();
    for effect in &ledger.effects {
        *times.entry(effect.bill_id.as_str()).or_default() += 1;
    }
    times
}
