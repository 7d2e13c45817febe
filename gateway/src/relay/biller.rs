//! One biller: where its payments go, what may be stored for it, and the form of the exchange.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Message, PinKey};
use hsm_adapter::vocabulary::{KeyLabel, Pan, PinBlock};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::payment::{PaymentOrder, ReversalOrder};
use super::policy::Route;
use crate::links::Patience;
use crate::links::backend::{Answered, Backend, BackendError, NO_HSM, Resource};
use crate::links::breaker::Verdict;
use crate::links::classify::{Operation, Word, of_status};
use crate::links::pool::{Call, Called, Pool, Tried};
use crate::links::token::Hsm;
use crate::wire::Amount;

/// A biller as the configuration describes it.
#[derive(Debug)]
pub struct Biller {
    /// Its name in requests.
    pub name: String,
    /// Where its payments go.
    pub backends: Arc<Pool<Backend>>,
    /// The MAC key between us and it.
    pub mac_key: KeyLabel,
    /// The key and format in which it wants PIN blocks; `None` when it takes none.
    pub pin: Option<PinKey>,
    /// What it promises, and what is allowed for it.
    pub route: Route,
}

/// The biller's final word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Paid or declined.
    pub paid: bool,
    /// ISO 8583 DE 39.
    pub response_code: String,
}

impl Settlement {
    /// The biller refused our request as such: DE 39 = 96, system malfunction.
    #[must_use]
    pub fn refused() -> Self {
        Self { paid: false, response_code: "96".into() }
    }
}

/// What a biller says of a reversal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// It is taken back, or was before (DE 39 = 00, 94).
    Done,
    /// Not now: ask again (68, 91, 96).
    NotNow,
    /// Any other word: a person has to look.
    NotAccepted,
}

#[derive(Serialize)]
struct Request<'a> {
    reference: &'a str,
    biller: &'a str,
    bill_id: &'a str,
    customer_id: &'a str,
    amount: &'a Amount,
    #[serde(skip_serializing_if = "Option::is_none")]
    pan: Option<&'a Pan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pin_block: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pin_format: Option<&'static str>,
}

#[derive(Serialize)]
struct ReversalRequest<'a> {
    reference: &'a str,
    original: &'a str,
    biller: &'a str,
    bill_id: &'a str,
    customer_id: &'a str,
    amount: &'a Amount,
}

/// `enquiry` comes back in the answer: what was said of another enquiry says nothing of now.
#[derive(Serialize)]
struct Enquiry<'a> {
    enquiry: Uuid,
    reference: &'a str,
    biller: &'a str,
}

#[derive(Deserialize)]
struct Refusal {
    reference: String,
    status: u16,
}

#[derive(Deserialize)]
struct Answer {
    reference: String,
    status: String,
    response_code: String,
    enquiry: Option<Uuid>,
}

/// One request to a biller.
#[derive(Debug, Clone, Copy)]
struct Ask<'a> {
    resource: Resource,
    operation: Operation,
    reference: &'a str,
    enquiry: Option<Uuid>,
    body: &'a Bytes,
}

impl Biller {
    /// The exact bytes of one payment. The same payment gives the same bytes, however often it is
    /// sent: the biller tells a repeat by them.
    #[must_use]
    pub fn payment(&self, reference: &str, order: &PaymentOrder, pin: Option<&PinBlock>) -> Bytes {
        let format = self.pin.as_ref().map(|key| key.format.name());
        bytes(&Request {
            reference,
            biller: &self.name,
            bill_id: &order.bill_id,
            customer_id: &order.customer_id,
            amount: &order.amount,
            pan: order.pan.as_ref(),
            pin_block: pin.map(|block| hex::encode_upper(block.expose())),
            pin_format: format.filter(|_| pin.is_some()),
        })
    }

    /// Sends a payment as often as its table, its time and the budget allow, each time with a fresh
    /// MAC, and believes only an answer whose MAC is the biller's.
    pub async fn send(
        &self,
        hsm: &Hsm,
        reference: &str,
        body: &Bytes,
        way: Way,
    ) -> Sent<Settlement> {
        let operation = match self.route.deduplicates {
            true => Operation::Payment,
            false => Operation::PaymentOnce,
        };
        let ask = Ask { resource: Resource::Payments, operation, reference, enquiry: None, body };
        self.ask(hsm, ask, way, |answer| settlement(&answer)).await
    }

    /// Asks what became of a payment: its final answer, or `None` when none has arrived.
    pub async fn enquire(&self, hsm: &Hsm, reference: &str, way: Way) -> Sent<Option<Settlement>> {
        let enquiry = Uuid::now_v7();
        let body = &bytes(&Enquiry { enquiry, reference, biller: &self.name });
        let (operation, enquiry) = (Operation::Pure, Some(enquiry));
        let ask = Ask { resource: Resource::Enquiries, operation, reference, enquiry, body };
        let read = |answer: Answer| match answer.status.as_str() {
            "UNKNOWN" => Some(None),
            _ => settlement(&answer).map(Some),
        };
        self.ask(hsm, ask, way, read).await
    }

    /// Takes a payment back, as often as need be.
    pub async fn reverse(
        &self,
        hsm: &Hsm,
        reference: &str,
        reversal: &ReversalOrder,
        way: Way,
    ) -> Sent<TakenBack> {
        let body = &bytes(&ReversalRequest {
            reference,
            original: &reversal.original,
            biller: &self.name,
            bill_id: &reversal.bill_id,
            customer_id: &reversal.customer_id,
            amount: &reversal.amount,
        });
        let operation = Operation::Payment;
        let ask = Ask { resource: Resource::Reversals, operation, reference, enquiry: None, body };
        let read = |answer: Answer| {
            settlement(&answer).map(|said| match said.response_code.as_str() {
                "00" | "94" => TakenBack::Done,
                "68" | "91" | "96" => TakenBack::NotNow,
                _ => TakenBack::NotAccepted,
            })
        };
        self.ask(hsm, ask, way, read).await
    }

    async fn ask<T>(
        &self,
        hsm: &Hsm,
        ask: Ask<'_>,
        way: Way,
        read: impl Fn(Answer) -> Option<T> + Copy,
    ) -> Sent<T> {
        let Way { patience, waits } = way;
        let call = Call { operation: ask.operation, patience, waits };
        let attempt = |backend: Arc<Backend>, limit| async move {
            let limit = Patience { until: limit, ..patience };
            let (took, answered) = self.exchange(hsm, &backend, ask, limit).await;
            let result = answered.and_then(|(answered, answer)| {
                read(answer)
                    .ok_or_else(|| answered.reject(&self.name, "answer to another question"))
            });
            let verdict = result.as_ref().err().map_or(Verdict::Healthy, |error| error.verdict());
            Tried { result, verdict, another: false, took: Some(took) }
        };
        let Called { result, may_have_arrived, .. } = self.backends.call(call, attempt).await;
        Sent { result: result.map_err(BackendError::from), may_have_arrived }
    }

    /// One attempt, and how long the biller took of it: the HSM's part is none of its time.
    async fn exchange(
        &self,
        hsm: &Hsm,
        backend: &Backend,
        ask: Ask<'_>,
        limit: Patience,
    ) -> (Duration, Result<(Answered, Answer), BackendError>) {
        let mac = match self.mac_of(hsm, ask.body, limit).await {
            Ok(mac) => mac,
            Err(error) => return (Duration::ZERO, Err(error)),
        };
        let begun = Instant::now();
        let answered = backend.exchange(ask.resource, ask.body.clone(), mac, limit.until).await;
        let took = begun.elapsed();
        match answered {
            Ok(answered) => {
                let answer = self.read(hsm, ask, &answered, limit).await;
                (took, answer.map(|answer| (answered, answer)))
            }
            Err(error) => (took, Err(error)),
        }
    }

    async fn mac_of(
        &self,
        hsm: &Hsm,
        request: &Bytes,
        limit: Patience,
    ) -> Result<String, BackendError> {
        let key = self.mac_key.clone();
        let made = hsm.generate_mac(key.into(), None, request.to_vec(), None, limit).await;
        let mac = made.map_err(|error| {
            if let Some(failure) = error.failure() {
                self.key_fails(failure, "the MAC of a payment");
            }
            BackendError::NotSent { why: NO_HSM }
        })?;
        Ok(format!("{}:{}", self.mac_key, hex::encode_upper(mac.mac)))
    }

    /// The token answers and does not do this with the key between us: a person has to look.
    fn key_fails(&self, failure: &Failure, what: &'static str) {
        tracing::error!(%failure, biller = self.name, key = %self.mac_key, what, "its MAC key");
    }

    /// Believes the biller's own answer to this request, and no other.
    async fn read(
        &self,
        hsm: &Hsm,
        ask: Ask<'_>,
        answered: &Answered,
        limit: Patience,
    ) -> Result<Answer, BackendError> {
        let mac = answered.mac.as_deref().and_then(|value| value.split_once(':'));
        let mac = mac.filter(|(label, _)| *label == self.mac_key.as_str());
        let Some(mac) = mac.and_then(|(_, mac)| hex::decode(mac).ok()) else {
            return Err(answered.reject(&self.name, "no MAC"));
        };
        let (body, mac) = (Message(answered.body.to_vec()), Message(mac));
        // The answer is here: reading it is worth a moment more than the attempt had.
        let until = Patience::vital(limit.until.max(Instant::now() + VERIFY_MIN));
        match hsm.verify_mac(self.mac_key.clone().into(), None, body, mac, until).await {
            Ok(true) => {}
            Ok(false) => return Err(answered.reject(&self.name, "wrong MAC")),
            Err(error) => match error.failure() {
                Some(Failure::MessageLength | Failure::MacLength { .. }) => {
                    return Err(answered.reject(&self.name, "a MAC over nothing"));
                }
                // The payment may be made: without the HSM, the answer is not known to be true.
                failure => {
                    if let Some(failure) = failure {
                        self.key_fails(failure, "the MAC of its answer");
                    }
                    return Err(BackendError::SentUnknown { why: NO_HSM });
                }
            },
        }
        // The MAC does not cover the status: a refusal counts when its own words say it, of this payment.
        let refusal = || {
            let said: Option<Refusal> = serde_json::from_slice(&answered.body).ok();
            let own =
                |said: &Refusal| said.reference == ask.reference && said.status == answered.status;
            said.as_ref().is_some_and(own)
        };
        match of_status(answered.status) {
            Some(Word::Settled) => {}
            Some(Word::TryAgain) if refusal() => return Err(answered.try_again()),
            Some(Word::Refused) if refusal() => return Err(answered.refuse()),
            Some(Word::TryAgain | Word::Refused) => {
                return Err(answered.reject(&self.name, "refusal of another request"));
            }
            None => return Err(answered.reject(&self.name, "unclear status")),
        }
        let answer: Option<Answer> = serde_json::from_slice(&answered.body).ok();
        let is_own =
            |answer: &Answer| answer.reference == ask.reference && answer.enquiry == ask.enquiry;
        answer
            .filter(is_own)
            .ok_or_else(|| answered.reject(&self.name, "answer to another question"))
    }
}

/// The final word on a payment or a reversal.
fn settlement(answer: &Answer) -> Option<Settlement> {
    let paid = match answer.status.as_str() {
        "SUCCESS" => true,
        "FAILED" => false,
        _ => return None,
    };
    let mut response_code = answer.response_code.clone();
    response_code.retain(|c| c.is_ascii_alphanumeric());
    response_code.truncate(4);
    Some(Settlement { paid, response_code })
}

fn bytes(request: &impl Serialize) -> Bytes {
    // Texts and numbers only: every such value has a JSON form.
    serde_json::to_vec(request).unwrap_or_default().into()
}

/// How one payment is sent.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Until when, and what it is shed after.
    pub patience: Patience,
    /// Whether it may sleep between attempts.
    pub waits: bool,
}

impl Way {
    /// A client waits for it.
    #[must_use]
    pub fn first(deadline: Instant) -> Self {
        Self { patience: deadline.into(), waits: true }
    }

    /// From the queue: its waits are in the database.
    #[must_use]
    pub fn later(deadline: Instant) -> Self {
        Self { patience: Patience::vital(deadline), waits: false }
    }
}

/// What came of sending.
#[derive(Debug)]
pub struct Sent<T> {
    /// The biller's word, or why there is none.
    pub result: Result<T, BackendError>,
    /// Whether an attempt of which nothing is known left before.
    pub may_have_arrived: bool,
}

/// The least time for the MAC of an answer that has arrived.
const VERIFY_MIN: Duration = Duration::from_secs(1);
