//! Who was paid, once: answers by reference, effects in their order, and the counters.
//!
//! A reference has one answer for ever. The journal holds every answer, the refusals too, because
//! a refused order that is sent again must stay refused; an effect is an answer with code `00`.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::journal::Journal;
use super::order::{Amount, Order, PAID, ReversalOrder, Verdict};

/// A payment that took place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the order, without PAN and PIN block")]
pub struct Effect {
    /// Place in the order of effects, from 1.
    pub sequence: u64,
    pub reference: Uuid,
    pub bill_id: String,
    pub biller: String,
    pub amount: Amount,
    /// When, RFC 3339.
    pub at: String,
    /// Whether a PIN came with it and was right.
    pub pin_seen: bool,
}

/// A payment that was taken back, or may not take place any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reversal {
    /// Its own reference.
    pub reference: Uuid,
    /// The payment's.
    pub original: Uuid,
    /// Whether the payment had taken place.
    pub was_paid: bool,
}

/// What `GET /control/ledger` answers. The counters start anew with the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// In order of effect.
    pub effects: Vec<Effect>,
    /// In the order of their arrival; the effect that one takes back stays listed.
    pub reversals: Vec<Reversal>,
    /// Payment orders that arrived, spoiled ones too.
    pub requests: u64,
    /// Reversal orders that arrived, repeats and spoiled ones too.
    pub reversal_requests: u64,
    /// Enquiries that arrived.
    pub enquiries: u64,
    /// Orders answered from the record.
    pub duplicates_suppressed: u64,
    /// Orders that reused a reference with another body.
    pub conflicts: u64,
    /// Orders whose MAC was missing or wrong.
    pub mac_refused: u64,
    /// Orders whose PIN was wrong or did not decode.
    pub pin_refused: u64,
    /// Orders refused with any code, those with a wrong PIN too.
    pub declined: u64,
}

/// What became of an order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Now { response_code: String },
    Before { response_code: String },
    Conflict,
}

/// One line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    reference: Uuid,
    bill_id: String,
    biller: String,
    amount: Amount,
    at: String,
    pin_seen: bool,
    response_code: String,
    fingerprint: String,
    /// Of a reversal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    original: Option<Uuid>,
}

struct Record {
    fingerprint: String,
    response_code: String,
    end: u64,
}

#[derive(Default)]
struct Book {
    records: HashMap<Uuid, Record>,
    effects: Vec<Effect>,
    reversals: Vec<Reversal>,
}

/// The book, its journal and its counters.
pub(crate) struct Ledger {
    book: Mutex<Book>,
    journal: Journal,
    pub(crate) requests: AtomicU64,
    pub(crate) reversal_requests: AtomicU64,
    pub(crate) enquiries: AtomicU64,
    pub(crate) mac_refused: AtomicU64,
    duplicates: AtomicU64,
    conflicts: AtomicU64,
    pin_refused: AtomicU64,
    declined: AtomicU64,
}

impl Ledger {
    /// Reads the journal back, or starts one.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let (journal, lines) = Journal::open::<Line>(path)?;
        let mut book = Book::default();
        for line in lines {
            book.enter(line, 0);
        }
        Ok(Self {
            book: Mutex::new(book),
            journal,
            requests: AtomicU64::new(0),
            reversal_requests: AtomicU64::new(0),
            enquiries: AtomicU64::new(0),
            mac_refused: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            pin_refused: AtomicU64::new(0),
            declined: AtomicU64::new(0),
        })
    }

    /// Records the verdict on an order, or finds the earlier one; returns when it is on the disk.
    ///
    /// Blocks for a disk write: not for a runtime thread.
    pub(crate) fn settle(
        &self,
        order: &Order,
        verdict: Verdict,
        fingerprint: String,
    ) -> io::Result<Settled> {
        let (settled, end) = self.enter(|book| Line {
            reference: order.reference,
            bill_id: order.bill_id.clone(),
            biller: order.biller.clone(),
            amount: order.amount.clone(),
            at: jiff::Timestamp::now().to_string(),
            pin_seen: order.has_pin(),
            response_code: match book.is_reversed(&order.reference) {
                true => TOO_LATE.to_owned(),
                false => verdict.response_code.to_owned(),
            },
            fingerprint,
            original: None,
        })?;
        if matches!(settled, Settled::Now { .. }) {
            self.pin_refused.fetch_add(u64::from(verdict.pin_refused), Relaxed);
        }
        // Also for a duplicate: its first sending may be waiting for the disk this moment.
        self.journal.sync(end)?;
        Ok(settled)
    }

    /// Takes a payment back, whether it has arrived or not; returns when it is on the disk.
    ///
    /// Blocks for a disk write: not for a runtime thread.
    pub(crate) fn reverse(
        &self,
        order: &ReversalOrder,
        fingerprint: String,
    ) -> io::Result<Settled> {
        let (settled, end) = self.enter(|_| Line {
            reference: order.reference,
            bill_id: order.bill_id.clone(),
            biller: order.biller.clone(),
            amount: order.amount.clone(),
            at: jiff::Timestamp::now().to_string(),
            pin_seen: false,
            response_code: PAID.to_owned(),
            fingerprint,
            original: Some(order.original),
        })?;
        self.journal.sync(end)?;
        Ok(settled)
    }

    /// The response code recorded for a reference; returns when it is on the disk.
    pub(crate) fn find(&self, reference: &Uuid) -> io::Result<Option<String>> {
        let found = {
            let book = self.book();
            book.records.get(reference).map(|record| (record.response_code.clone(), record.end))
        };
        let Some((response_code, end)) = found else { return Ok(None) };
        self.journal.sync(end)?;
        Ok(Some(response_code))
    }

    pub(crate) fn report(&self) -> LedgerReport {
        let book = self.book();
        LedgerReport {
            effects: book.effects.clone(),
            reversals: book.reversals.clone(),
            reversal_requests: self.reversal_requests.load(Relaxed),
            requests: self.requests.load(Relaxed),
            enquiries: self.enquiries.load(Relaxed),
            duplicates_suppressed: self.duplicates.load(Relaxed),
            conflicts: self.conflicts.load(Relaxed),
            mac_refused: self.mac_refused.load(Relaxed),
            pin_refused: self.pin_refused.load(Relaxed),
            declined: self.declined.load(Relaxed),
        }
    }

    fn enter(&self, line: impl FnOnce(&Book) -> Line) -> io::Result<(Settled, u64)> {
        let mut book = self.book();
        let line = line(&book);
        if let Some(record) = book.records.get(&line.reference) {
            if record.fingerprint != line.fingerprint {
                self.conflicts.fetch_add(1, Relaxed);
                return Ok((Settled::Conflict, 0));
            }
            self.duplicates.fetch_add(1, Relaxed);
            let response_code = record.response_code.clone();
            return Ok((Settled::Before { response_code }, record.end));
        }
        if book.records.len() >= RECORDS_MAX {
            return Err(io::Error::other("the ledger is full: start with a new journal"));
        }
        let response_code = line.response_code.clone();
        let end = self.journal.append(&line)?;
        book.enter(line, end);
        self.declined.fetch_add(u64::from(response_code != PAID), Relaxed);
        Ok((Settled::Now { response_code }, end))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn is_reversed(&self, reference: &Uuid) -> bool {
        self.reversals.iter().any(|reversal| reversal.original == *reference)
    }

    fn enter(&mut self, line: Line, end: u64) {
        if let Some(original) = line.original {
            let paid = self.records.get(&original).is_some_and(|it| it.response_code == PAID);
            let reference = line.reference;
            self.reversals.push(Reversal { reference, original, was_paid: paid });
        } else if line.response_code == PAID {
            self.effects.push(Effect {
                sequence: self.effects.len() as u64 + 1,
                reference: line.reference,
                bill_id: line.bill_id,
                biller: line.biller,
                amount: line.amount,
                at: line.at,
                pin_seen: line.pin_seen,
            });
        }
        let Line { fingerprint, response_code, .. } = line;
        self.records.insert(line.reference, Record { fingerprint, response_code, end });
    }
}

/// A payment that comes after its reversal (DE 39: invalid transaction).
const TOO_LATE: &str = "12";

/// A million answers are some 400 MB; a run that needs more starts a new journal.
const RECORDS_MAX: usize = 1_000_000;
