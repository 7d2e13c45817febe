//! One biller: where its payments go, what may be stored for it, and the form of the exchange.

use std::time::Duration;

use bytes::Bytes;
use hsm_adapter::protocol::{Message, PinKey};
use hsm_adapter::vocabulary::{KeyLabel, Pan, PinBlock};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::payment::PaymentOrder;
use crate::links::backend::{BackendError, BackendLink};
use crate::links::token::HsmLink;
use crate::wire::Amount;

/// A biller as the configuration describes it.
#[derive(Debug)]
pub struct Biller {
    /// Its name in requests.
    pub name: String,
    /// Where its payments go.
    pub backend: BackendLink,
    /// The MAC key between us and it.
    pub mac_key: KeyLabel,
    /// The key and format in which it wants PIN blocks; `None` when it takes none.
    pub pin: Option<PinKey>,
    /// Whether a payment may wait for it.
    pub store: bool,
    /// Whether a PIN block may wait with its payment.
    pub store_pin: bool,
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

#[derive(Serialize)]
struct Request<'a> {
    reference: String,
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

#[derive(Deserialize)]
struct Answer {
    reference: String,
    status: String,
    response_code: String,
}

impl Biller {
    /// The exact bytes of one payment. The same payment gives the same bytes, however often it is
    /// sent: the biller tells a repeat by them.
    #[must_use]
    pub fn request(&self, id: Uuid, order: &PaymentOrder, pin: Option<&PinBlock>) -> Bytes {
        let format = self.pin.as_ref().map(|key| key.format.name());
        let request = Request {
            reference: id.to_string(),
            biller: &self.name,
            bill_id: &order.bill_id,
            customer_id: &order.customer_id,
            amount: &order.amount,
            pan: order.pan.as_ref(),
            pin_block: pin.map(|block| hex::encode_upper(block.expose())),
            pin_format: format.filter(|_| pin.is_some()),
        };
        // Texts and numbers only: every such value has a JSON form.
        serde_json::to_vec(&request).unwrap_or_default().into()
    }

    /// Sends once: with a fresh MAC, and believes only an answer whose MAC is the biller's.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub async fn send(
        &self,
        hsm: &HsmLink,
        id: Uuid,
        request: &Bytes,
        limit: Instant,
    ) -> Result<Settlement, BackendError> {
        let permit = self.backend.admit()?;
        let key = self.mac_key.clone();
        let made = hsm.generate_mac(key.into(), None, request.to_vec(), None, limit).await;
        let mac = made.map_err(|error| {
            if let Some(failure) = error.failure() {
                tracing::error!(%failure, biller = self.name, key = %self.mac_key, "its MAC key");
            }
            BackendError::NotSent { why: NO_HSM }
        })?;
        let mac = format!("{}:{}", self.mac_key, hex::encode_upper(mac.mac));
        let answered = self.backend.exchange(permit, request.clone(), mac, limit).await?;
        let mac = answered.mac.as_deref().and_then(|value| value.split_once(':'));
        let mac = mac.filter(|(label, _)| *label == self.mac_key.as_str());
        let Some(mac) = mac.and_then(|(_, mac)| hex::decode(mac).ok()) else {
            return Err(answered.reject(&self.name, "no MAC"));
        };
        let (body, mac) = (Message(answered.body.to_vec()), Message(mac));
        // The answer is here: reading it is worth a moment more than the attempt had.
        let limit = limit.max(Instant::now() + VERIFY_MIN);
        match hsm.verify_mac(self.mac_key.clone().into(), None, body, mac, limit).await {
            Ok(true) => {}
            Ok(false) => return Err(answered.reject(&self.name, "wrong MAC")),
            // The payment may be made: without the HSM, the answer is not known to be true.
            Err(_) => return Err(BackendError::SentUnknown { why: NO_HSM }),
        }
        match answered.status {
            200 => {}
            429 | 503 => return Err(answered.try_again()),
            400..=499 => return Err(answered.refuse()),
            _ => return Err(answered.reject(&self.name, "unclear status")),
        }
        let answer: Option<Answer> = serde_json::from_slice(&answered.body).ok();
        let answer = answer.filter(|answer| answer.reference == id.to_string());
        let paid = answer.as_ref().and_then(|answer| match answer.status.as_str() {
            "SUCCESS" => Some(true),
            "FAILED" => Some(false),
            _ => None,
        });
        let (Some(answer), Some(paid)) = (answer, paid) else {
            return Err(answered.reject(&self.name, "answer to another question"));
        };
        answered.accept();
        let mut response_code = answer.response_code;
        response_code.retain(|c| c.is_ascii_alphanumeric());
        response_code.truncate(4);
        Ok(Settlement { paid, response_code })
    }
}

/// The least time for the MAC of an answer that has arrived.
const VERIFY_MIN: Duration = Duration::from_secs(1);

/// The reason of an attempt that had no HSM.
pub const NO_HSM: &str = "no HSM";
