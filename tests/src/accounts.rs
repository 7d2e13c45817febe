//! Clients that pay an account's bill again and again, each payment until it is acknowledged; and
//! the judgement of the biller's ledger by what they were told.
//!
//! The amount is the payment's number, so that the ledger shows which it was. A payer never sends
//! a payment before the one ahead of it is acknowledged: their order in the ledger is that of
//! their numbers, or the gateway has changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use crate::acquirer::{Acquirer, Answer, Client, Payment};
use crate::billing::LedgerReport;

/// Who pays one account.
#[derive(Debug, Clone)]
pub struct Payer {
    /// The bill of all its payments.
    pub account: String,
    /// Payments that were acknowledged: numbers 1 to this.
    pub acknowledged: u32,
    /// Answers that acknowledged nothing, by slug; `unreached` without a connection, `unanswered`
    /// where it ended.
    pub refused: BTreeMap<String, u32>,
    /// The longest that an answer took.
    pub slowest: Duration,
    /// The request ids of all answers that came and must be in the audit log; shared by clones.
    pub answers: Arc<Mutex<Vec<String>>>,
    acquirer: Acquirer,
    biller: String,
}

impl Payer {
    /// Acquirer A, at a biller that stores and deduplicates.
    #[must_use]
    pub fn new(biller: &str, account: &str) -> Self {
        Self {
            account: account.to_owned(),
            acknowledged: 0,
            refused: BTreeMap::new(),
            slowest: Duration::ZERO,
            answers: Arc::default(),
            acquirer: Acquirer::a(),
            biller: biller.to_owned(),
        }
    }

    /// Makes the next payment: at the first gateway, and where that does not acknowledge it at the
    /// next, round and round. The acknowledgement: 200 or 202.
    ///
    /// # Errors
    /// An answer that no payer should see, or none that acknowledges within `patience`.
    pub async fn pay(&mut self, at: &[Client], patience: Duration) -> anyhow::Result<Answer> {
        let limit = Instant::now() + patience;
        for client in at.iter().cycle() {
            if let Some(answer) = self.try_once(client).await? {
                self.acknowledged += 1;
                return Ok(answer);
            }
            if Instant::now() > limit {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!("{}: not acknowledged within {patience:?}: {:?}", self.account, self.refused)
    }

    /// Asks for the next payment once: the answer if it acknowledges.
    async fn try_once(&mut self, client: &Client) -> anyhow::Result<Option<Answer>> {
        let number = self.acknowledged + 1;
        let value = format!("{number}.00");
        let payment = Payment { value, ..Payment::of(&self.biller, &self.account) };
        let (key, body) =
            (format!("{}-{number}", self.account), self.acquirer.payment_body(&payment)?);
        let begun = Instant::now();
        let answer = client.pay(&self.acquirer, &key, body).await;
        self.slowest = self.slowest.max(begun.elapsed());
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let why = if error.is_connect() { "unreached" } else { "unanswered" };
                *self.refused.entry(why.into()).or_default() += 1;
                return Ok(None);
            }
        };
        // The one answer that says that it has no record.
        if answer.slug().as_deref() != Some("audit-unavailable") {
            let id = answer.header("x-request-id").unwrap_or_default().to_owned();
            self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
        let status = answer.json()["status"].as_str().unwrap_or_default().to_owned();
        match (answer.status.as_u16(), &*status) {
            (200, "SUCCESS") | (202, "PENDING" | "PROCESSING") => Ok(Some(answer)),
            (409 | 503, _) => {
                let slug = answer.slug().unwrap_or_default();
                *self.refused.entry(slug).or_default() += 1;
                Ok(None)
            }
            _ => bail!("{key}: {answer:?}"),
        }
    }
}

/// What the ledger says against the payers. A payment by account and number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Payments that were acknowledged.
    pub acknowledged: usize,
    /// Acknowledged, and not paid.
    pub lost: Vec<(String, u32)>,
    /// Paid more than once.
    pub doubled: Vec<(String, u32)>,
    /// Paid after a later one of its account.
    pub inverted: Vec<(String, u32)>,
}

impl Judgement {
    /// Holds the ledger against what the payers were told.
    #[must_use]
    pub fn of<'p>(payers: impl IntoIterator<Item = &'p Payer>, ledger: &LedgerReport) -> Self {
        let mut paid: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for effect in &ledger.effects {
            let whole = effect.amount.value.split('.').next();
            let number = whole.and_then(|whole| whole.parse().ok()).unwrap_or(0);
            paid.entry(&effect.bill_id).or_default().push(number);
        }
        let mut judged = Self::default();
        for payer in payers {
            let numbers = paid.remove(&*payer.account).unwrap_or_default();
            let named = |number: u32| (payer.account.clone(), number);
            let (mut seen, mut latest) = (BTreeSet::new(), 0);
            for number in numbers {
                if !seen.insert(number) {
                    judged.doubled.push(named(number));
                } else if number < latest {
                    judged.inverted.push(named(number));
                }
                latest = latest.max(number);
            }
            let unpaid = (1..=payer.acknowledged).filter(|number| !seen.contains(number));
            judged.lost.extend(unpaid.map(named));
            judged.acknowledged += payer.acknowledged as usize;
        }
        judged
    }

    /// Whether nothing was lost, doubled or inverted.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty() && self.inverted.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::{Amount, Effect};

    fn ledger(paid: &[(&str, u32)]) -> LedgerReport {
        let effects = paid.iter().enumerate().map(|(at, (account, number))| Effect {
            sequence: at as u64 + 1,
            reference: uuid::Uuid::nil(),
            bill_id: (*account).to_owned(),
            biller: "pln".to_owned(),
            amount: Amount { value: format!("{number}.00"), currency: "IDR".to_owned() },
            at: String::new(),
            pin_seen: false,
        });
        LedgerReport {
            effects: effects.collect(),
            reversals: Vec::new(),
            reversal_requests: 0,
            requests: 0,
            enquiries: 0,
            duplicates_suppressed: 0,
            conflicts: 0,
            mac_refused: 0,
            pin_refused: 0,
            declined: 0,
        }
    }

    fn payer(account: &str, acknowledged: u32) -> Payer {
        Payer { acknowledged, ..Payer::new("pln", account) }
    }

    #[test]
    fn a_ledger_in_order_is_clean_also_with_one_that_nobody_was_told_of() {
        let paid = ledger(&[("a", 1), ("b", 1), ("a", 2), ("a", 3)]);

        let judged = Judgement::of(&[payer("a", 2), payer("b", 1)], &paid);

        assert!(judged.is_clean(), "{judged:?}");
        assert_eq!(judged.acknowledged, 3);
    }

    #[test]
    fn what_is_lost_doubled_or_inverted_is_named() {
        let paid = ledger(&[("a", 2), ("a", 1), ("b", 1), ("b", 1)]);

        let judged = Judgement::of(&[payer("a", 3), payer("b", 1)], &paid);

        assert_eq!(judged.lost, [("a".to_owned(), 3)]);
        assert_eq!(judged.doubled, [("b".to_owned(), 1)]);
        assert_eq!(judged.inverted, [("a".to_owned(), 1)]);
        assert!(!judged.is_clean());
    }
}
