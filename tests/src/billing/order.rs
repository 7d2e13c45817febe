//! A payment order: its bytes under a MAC, its form, and what the biller thinks of it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::demo_keys::DemoKeys;
use crate::soft::pin::{PinFormat, open_pin};
use crate::soft::{SoftError, mac};

/// Money as it travels: a positive decimal and an ISO 4217 code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    /// Decimal text, `127000.00`.
    pub value: String,
    /// Three letters, `IDR`.
    pub currency: String,
}

/// Customers whose PIN the biller knows. Any PIN that decodes is right for anybody else.
pub const CUSTOMER_PINS: [(&str, &str); 3] =
    [("customer-1234", "1234"), ("customer-4321", "4321"), ("customer-271828", "271828")];

/// What `POST /v1/payments` carries.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    pub(crate) reference: Uuid,
    pub(crate) biller: String,
    pub(crate) bill_id: String,
    customer_id: String,
    pub(crate) amount: Amount,
    pan: Option<String>,
    pin_block: Option<String>,
    pin_format: Option<String>,
}

/// What `POST /v1/reversals` carries.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReversalOrder {
    pub(crate) reference: Uuid,
    pub(crate) original: Uuid,
    pub(crate) biller: String,
    pub(crate) bill_id: String,
    #[serde(rename = "customer_id")]
    _customer_id: String,
    pub(crate) amount: Amount,
}

/// What `POST /v1/enquiries` carries.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Enquiry {
    pub(crate) enquiry: Uuid,
    pub(crate) reference: Uuid,
    #[serde(rename = "biller")]
    _biller: String,
}

impl Order {
    /// Reads an order. The error names what is wrong, never a value.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, &'static str> {
        let order: Self = serde_json::from_slice(body).map_err(|_| "body is no payment order")?;
        let texts = [&order.biller, &order.bill_id, &order.customer_id];
        if texts.iter().any(|text| text.is_empty() || text.len() > 128) {
            return Err("biller, bill_id and customer_id have 1 to 128 bytes");
        }
        if !order.amount.is_money() {
            return Err("amount is no positive decimal with a currency");
        }
        match (&order.pin_block, &order.pan, &order.pin_format) {
            (Some(_), Some(_), Some(_)) | (None, _, None) => Ok(order),
            _ => Err("pin_block, pan and pin_format come together"),
        }
    }

    pub(crate) fn has_pin(&self) -> bool {
        self.pin_block.is_some()
    }
}

impl Amount {
    fn is_money(&self) -> bool {
        let (whole, cents) = self.value.split_once('.').unwrap_or((&self.value, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let positive = self.value.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
        let bounded = self.value.len() <= 16;
        let letters = self.currency.bytes().all(|byte| byte.is_ascii_uppercase());
        digits(whole) && digits(cents) && positive && bounded && letters && self.currency.len() == 3
    }
}

/// An ISO 8583 response code and what it means for the PIN counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) response_code: &'static str,
    pub(crate) pin_refused: bool,
}

/// The keys that the gateway and the biller share.
pub(crate) struct Keys {
    mac: Vec<u8>,
    pin_tdes: Vec<u8>,
    pin_aes: Vec<u8>,
}

impl Keys {
    pub(crate) fn demo() -> Self {
        let keys = DemoKeys::load();
        Self {
            mac: keys.value(MAC_KEY),
            pin_tdes: keys.value("zpk.billing"),
            pin_aes: keys.value("zpk.billing-aes"),
        }
    }

    /// The `Tollgate-Mac` header for these bytes.
    pub(crate) fn mac_header(&self, body: &[u8]) -> Result<String, SoftError> {
        let code = mac::cmac_aes(&self.mac, body)?;
        Ok(format!("{MAC_KEY}:{}", hex::encode_upper(&code[..8])))
    }

    /// Whether the header proves these bytes.
    pub(crate) fn proves(&self, header: &str, body: &[u8]) -> bool {
        self.mac_header(body).is_ok_and(|wanted| mac::same(wanted.as_bytes(), header.as_bytes()))
    }

    /// What tells one body from another without keeping it. Keyed, because a PAN could be guessed
    /// from a bare hash.
    pub(crate) fn fingerprint(&self, body: &[u8]) -> Result<String, SoftError> {
        mac::hmac_sha256(&self.mac, body).map(hex::encode)
    }

    /// What becomes of an order: paid unless the PIN or the bill says otherwise.
    pub(crate) fn judge(&self, order: &Order) -> Verdict {
        if order.has_pin() && !self.accepts_pin(order) {
            return Verdict { response_code: "55", pin_refused: true };
        }
        let response_code = match () {
            () if order.bill_id.starts_with("declined-") => "51",
            () if order.bill_id.starts_with("unknown-") => "14",
            () => PAID,
        };
        Verdict { response_code, pin_refused: false }
    }

    fn accepts_pin(&self, order: &Order) -> bool {
        let Some(pin) = self.pin(order) else { return false };
        let known = CUSTOMER_PINS.iter().find(|(customer, _)| *customer == order.customer_id);
        known.is_none_or(|(_, expected)| *expected == pin)
    }

    fn pin(&self, order: &Order) -> Option<String> {
        let format: PinFormat = order.pin_format.as_deref()?.parse().ok()?;
        let key = match format {
            PinFormat::Iso0 | PinFormat::Iso3 => &self.pin_tdes,
            PinFormat::Iso4 => &self.pin_aes,
            // Format 1 binds no PAN: a biller never takes it.
            PinFormat::Iso1 => return None,
        };
        let block = hex::decode(order.pin_block.as_deref()?).ok()?;
        open_pin(format, key, order.pan.as_deref()?, &block).ok()
    }
}

/// The response code of an order that took effect.
pub(crate) const PAID: &str = "00";

const MAC_KEY: &str = "zak.billing";
