//! A payment between its order and its sealed row.
//!
//! [`PaymentOrder`] is all that is ever stored of a payment in one piece, and it has no field for
//! PIN data. A PIN block waits only where the biller's route says so, sealed on its own, for
//! minutes; everywhere else a payment with a PIN is forwarded now or refused.

use std::time::Duration;

use hsm_adapter::protocol::PinKey;
use hsm_adapter::vocabulary::{Pan, PinBlock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::idempotency::Request;
use super::keys::{Keys, OpenError, SealPinError, SealingUnavailable};
use super::policy::Route;
use super::ring::millis;
use super::sealing::Tampered;
use crate::config::QueueConfig;
use crate::store::{
    Begun, Claim, Claimed, Ending, HoldReason, ItemFacts, Lease, NewPayment, Outcome, PAYMENT,
    Parked, Parking, Priority, REVERSAL, Reversal, Sealed, Settled, Store, StoreError, Taker,
};
use crate::telemetry::metrics::QUEUE_CLAIM;
use crate::wire::Amount;

/// What is stored of a payment. There is no PIN field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaymentOrder {
    /// The bill.
    pub bill_id: String,
    /// Whose bill. Payments of one bill leave in order, one at a time.
    pub customer_id: String,
    /// How much.
    pub amount: Amount,
    /// The card, where one pays.
    pub pan: Option<Pan>,
}

/// What is stored of a reversal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReversalOrder {
    /// The reference of the payment that it takes back.
    pub original: String,
    /// Its bill.
    pub bill_id: String,
    /// Whose bill.
    pub customer_id: String,
    /// How much.
    pub amount: Amount,
}

/// A PIN block under the biller's key, as it may wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitingPin {
    /// The outbound key, with its version, and the format.
    pub key: PinKey,
    /// The block.
    pub block: PinBlock,
}

/// A payment as it arrives.
#[derive(Debug, Clone, Copy)]
pub struct Intake<'a> {
    /// Its client.
    pub tenant: &'a str,
    /// Where it goes.
    pub biller: &'a str,
    /// What it orders.
    pub order: &'a PaymentOrder,
    /// Its translated PIN block, when it has one.
    pub pin: Option<&'a WaitingPin>,
    /// Its urgency.
    pub priority: Priority,
    /// What the biller promises, and what is allowed for it.
    pub route: Route,
    /// The request around it.
    pub request: Request<'a>,
}

/// What waits, opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A payment, its PIN block, and whether it cannot be sent without one.
    Payment(PaymentOrder, Option<WaitingPin>, bool),
    /// A reversal.
    Reversal(ReversalOrder),
}

/// Something whose turn has come.
#[derive(Debug)]
pub struct Due {
    /// The right to send it.
    pub lease: Lease,
    /// What its answer is sealed to.
    pub facts: ItemFacts,
    /// What to send.
    pub what: Waiting,
    /// What is known of its earlier ways.
    pub doubt: Doubt,
    /// Attempts that counted.
    pub attempts: u32,
    /// When the last byte of it may leave: well before the lease runs out.
    pub until: Instant,
}

/// What is known of a payment's earlier ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// It may have reached the biller before.
    pub sent_unknown: bool,
    /// Epoch milliseconds: nothing was sent of it since.
    pub changed_at: i64,
    /// It is marked before its first byte, whatever its biller promises now.
    pub is_marked: bool,
    /// An old copy of the database was restored: it may have been made, and told.
    pub by_rollback: bool,
}

/// Why a payment could not be taken or reported.
#[derive(Debug, thiserror::Error)]
pub enum PaymentError {
    /// Answer `hsm-unavailable`.
    #[error(transparent)]
    Sealing(#[from] SealingUnavailable),
    /// Answer `overloaded` when transient.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SealPinError> for PaymentError {
    fn from(error: SealPinError) -> Self {
        match error {
            SealPinError::NoKey(error) => Self::Sealing(error),
            SealPinError::Store(error) => Self::Store(error),
        }
    }
}

/// Takes payments in, and gives them back when their turn comes.
#[derive(Debug, Clone)]
pub struct Payments {
    store: Store,
    keys: Keys,
    queue: QueueConfig,
    owner: String,
}

impl Payments {
    /// `owner` names this gateway in the rows that it leases.
    #[must_use]
    pub fn new(store: Store, keys: Keys, queue: QueueConfig, owner: String) -> Self {
        Self { store, keys, queue, owner }
    }

    /// Makes a payment durable. With [`Begun::Forward`] the caller sends it now.
    ///
    /// # Errors
    /// [`PaymentError`]; nothing was sent.
    pub async fn begin(&self, intake: Intake<'_>) -> Result<(ItemFacts, Begun), PaymentError> {
        let new = self.seal(intake).await?;
        let facts = new.facts.clone();
        Ok((facts, self.store.begin(new).await?))
    }

    /// What the request's key stands for, when it was used before. Costs a read and stores nothing.
    ///
    /// # Errors
    /// [`PaymentError`].
    pub async fn known(&self, request: Request<'_>) -> Result<Option<Begun>, PaymentError> {
        let idempotency = request.identify(&self.keys, 0)?;
        Ok(self.store.known(&idempotency).await?)
    }

    /// Who may use one KSN again: a repeat of this very request.
    ///
    /// # Errors
    /// [`PaymentError`].
    pub fn holder(&self, request: Request<'_>) -> Result<[u8; 32], PaymentError> {
        Ok(self.keys.holder(&request.identify(&self.keys, 0)?)?)
    }

    /// Records the final answer, sealed for replays.
    ///
    /// # Errors
    /// [`PaymentError`]; repeat until the lease is lost.
    pub async fn finish(
        &self,
        lease: &Lease,
        facts: &ItemFacts,
        outcome: Outcome,
        code: &str,
        answer: (u16, &[u8]),
    ) -> Result<Settled, PaymentError> {
        let ending = self.ending(facts, outcome, code, answer)?;
        Ok(self.store.complete(lease, ending).await?)
    }

    /// The same, and takes the next of the lane, when it is due.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub async fn finish_and_take(
        &self,
        lease: &Lease,
        ending: Ending,
    ) -> Result<(Settled, Option<Due>), PaymentError> {
        let since = Instant::now();
        let taker = Taker { owner: self.owner.clone(), lease: self.queue.lease() };
        let (settled, next) = self.store.complete_and_take(lease, ending, taker).await?;
        let next = match next {
            Some(next) => self.opened(next, since).await,
            None => None,
        };
        Ok((settled, next))
    }

    /// The end of a payment with the answer that every repeat gets: HTTP status and body.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn ending(
        &self,
        facts: &ItemFacts,
        outcome: Outcome,
        code: &str,
        (status, body): (u16, &[u8]),
    ) -> Result<Ending, SealingUnavailable> {
        let answer = Some(self.keys.seal_answer(facts, status, body)?);
        Ok(Ending { outcome, code: code.to_owned(), answer })
    }

    /// What takes a payment back.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn reversal(
        &self,
        of: &ItemFacts,
        order: &PaymentOrder,
    ) -> Result<Reversal, SealingUnavailable> {
        let now = self.store.now();
        let facts = ItemFacts {
            id: Uuid::now_v7(),
            tenant: of.tenant.clone(),
            kind: REVERSAL.to_owned(),
            target: of.target.clone(),
            reference: self.keys.reference(&[b"reversal", of.reference.as_bytes()])?.to_string(),
            ord_key: of.ord_key,
            prio: Priority::Critical,
            created_at: now,
            expires_at: now + millis(self.queue.reversal_life()),
        };
        let order = ReversalOrder {
            original: of.reference.clone(),
            bill_id: order.bill_id.clone(),
            customer_id: order.customer_id.clone(),
            amount: order.amount.clone(),
        };
        let payload = self.keys.seal_record(&facts, &text(&order))?;
        Ok(Reversal { facts, payload })
    }

    /// Lets a payment wait. `pin` only where the route stores one, and at its first pause.
    ///
    /// # Errors
    /// [`PaymentError`]; repeat until the lease is lost.
    pub async fn wait(
        &self,
        lease: &Lease,
        facts: &ItemFacts,
        parking: Parking,
        pin: Option<&WaitingPin>,
    ) -> Result<Parked, PaymentError> {
        let pin = match pin {
            Some(pin) => Some(self.keys.seal_pin(facts, &text(pin)).await?),
            None => None,
        };
        Ok(self.store.release(lease, Parking { pin, ..parking }).await?)
    }

    /// What a stored payment orders, without its PIN block.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn order(
        &self,
        facts: &ItemFacts,
        payload: &Sealed,
    ) -> Result<PaymentOrder, OpenError> {
        Ok(parse(&self.keys.open_record(facts, payload).await?)?)
    }

    /// The stored answer of a replay: status and body, byte for byte.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn replay(
        &self,
        facts: &ItemFacts,
        answer: &Sealed,
    ) -> Result<(u16, Vec<u8>), OpenError> {
        self.keys.open_answer(facts, answer).await
    }

    /// Up to `rows` payments whose turn has come, opened. One that does not open is held for a
    /// person; one whose key cannot be had now waits a little longer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim(&self, target: String, rows: u32) -> Result<Vec<Due>, StoreError> {
        let (owner, lease) = (self.owner.clone(), self.queue.lease());
        let mut due = Vec::new();
        // Before the claim: the lease begins after it.
        let begun = Instant::now();
        let claimed = self.store.claim(Claim { target, rows, owner, lease }).await?;
        metrics::histogram!(QUEUE_CLAIM).record(begun.elapsed());
        for claimed in claimed {
            due.extend(self.opened(claimed, begun).await);
        }
        Ok(due)
    }

    /// `None` when it did not open; then it is held, or waits a little longer.
    async fn opened(&self, claimed: Claimed, since: Instant) -> Option<Due> {
        match self.open(&claimed).await {
            Ok(what) => {
                let until = since + self.queue.sending_max();
                let Claimed { lease, facts, sent_unknown, attempts, .. } = claimed;
                let Claimed { changed_at, is_marked, by_rollback, .. } = claimed;
                let doubt = Doubt { sent_unknown, changed_at, is_marked, by_rollback };
                Some(Due { lease, facts, what, doubt, attempts, until })
            }
            Err(error) => {
                self.put_back(&claimed, &error).await;
                None
            }
        }
    }

    /// A claimed payment that did not open. If this is not taken, the lease runs out by itself.
    async fn put_back(&self, claimed: &Claimed, error: &OpenError) {
        let payment = claimed.facts.id;
        let outcome = match error {
            OpenError::Tampered(_) => {
                tracing::error!(%payment, %error, "held");
                self.store.hold(&claimed.lease, HoldReason::Tampered).await.map(drop)
            }
            OpenError::Token(_) | OpenError::Store(_) => {
                tracing::warn!(%payment, %error, "waits for its key");
                self.store.release(&claimed.lease, no_key()).await.map(drop)
            }
        };
        if let Err(error) = outcome {
            tracing::warn!(%payment, %error, "not put back");
        }
    }

    async fn seal(&self, intake: Intake<'_>) -> Result<NewPayment, PaymentError> {
        let Intake { tenant, biller, order, pin, priority, route, request } = intake;
        let now = self.store.now();
        let has_pin = pin.is_some();
        let may_wait = route.may_wait(has_pin);
        let life = if has_pin { self.queue.pin_life() } else { self.queue.payment_life() };
        let facts = ItemFacts {
            id: Uuid::now_v7(),
            tenant: tenant.to_owned(),
            kind: PAYMENT.to_owned(),
            target: biller.to_owned(),
            reference: request.reference(&self.keys)?.to_string(),
            ord_key: self.keys.ord_key(&[
                biller.as_bytes(),
                order.customer_id.as_bytes(),
                order.bill_id.as_bytes(),
            ])?,
            prio: priority,
            created_at: now,
            expires_at: now + millis(life),
        };
        let payload = match route.keeps_order(has_pin) {
            true => Some(self.keys.seal_record(&facts, &text(order))?),
            false => None,
        };
        let sealed_pin = match pin {
            Some(pin) if may_wait => Some(self.keys.seal_pin(&facts, &text(pin)).await?),
            Some(_) | None => None,
        };
        // A key pruned before a delayed repeat would be a second charge: the life of the payment
        // and the settlement day after it come first.
        let from = if payload.is_some() { facts.expires_at + millis(2 * DAY) } else { now };
        let idempotency = request.identify(&self.keys, from + millis(self.queue.idempotency()))?;
        Ok(NewPayment {
            facts,
            payload,
            needs_pin: has_pin,
            pin: sealed_pin,
            may_wait,
            is_marked: !route.deduplicates,
            idempotency,
            owner: self.owner.clone(),
            lease: self.queue.lease(),
        })
    }

    async fn open(&self, row: &Claimed) -> Result<Waiting, OpenError> {
        let payload = self.keys.open_record(&row.facts, &row.payload).await?;
        if row.facts.kind == REVERSAL {
            return Ok(Waiting::Reversal(parse(&payload)?));
        }
        let pin = match &row.pin {
            Some(pin) => Some(parse(&self.keys.open_pin(&row.facts, pin).await?)?),
            None => None,
        };
        Ok(Waiting::Payment(parse(&payload)?, pin, row.needs_pin))
    }
}

fn no_key() -> Parking {
    Parking {
        retry_in: Duration::from_secs(5),
        class: crate::store::Class::NotSent,
        code: Some("hsm-unavailable".to_owned()),
        counts: false,
        pin: None,
    }
}

/// JSON in memory that is wiped; roomy, because a buffer that grows leaves copies behind.
fn text(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(2_048));
    serde_json::to_writer(&mut *text, value).expect("strings and numbers have a JSON form");
    text
}

/// What we sealed ourselves and cannot read is as good as tampered with.
fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Tampered> {
    serde_json::from_slice(text).map_err(|_| Tampered)
}

const DAY: Duration = Duration::from_secs(86_400);
