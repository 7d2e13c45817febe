//! What an acquirer sends, made in software from the demo keys.
//!
//! `a` is the older kind (TDES, ISO 0, retail MAC), `b` the newer (AES, ISO 4, CMAC). Nothing of
//! the product is used, so that what the gateway accepts is what a stranger would have sent.

mod client; // the same acquirer on the wire
mod terminal; // a PIN pad with a key a transaction

pub use client::{Answer, Client, Failure, Mac, PinSide, Translated};
pub use terminal::{SealedPin, Terminal};

use serde_json::{Map, Value, json};

use crate::demo_keys::DemoKeys;
use crate::soft::SoftError;
use crate::soft::mac::{Padding, cmac_aes, retail_mac, same};
use crate::soft::pin::{PinFormat, seal_pin};

/// An acquirer: its name and its two keys.
#[derive(Clone)]
pub struct Acquirer {
    name: &'static str,
    pin_key: Key,
    mac_key: Key,
    format: PinFormat,
    mac: MacMethod,
}

#[derive(Clone)]
struct Key {
    label: &'static str,
    value: Vec<u8>,
}

type MacMethod = fn(&[u8], &[u8]) -> Result<Vec<u8>, SoftError>;

/// A payment as the customer means it.
#[derive(Debug, Clone)]
pub struct Payment {
    /// `pln`, `pdam` or `telkom` in the demo.
    pub biller: String,
    /// Which bill.
    pub bill_id: String,
    /// Whose.
    pub customer_id: String,
    /// Decimal text, `127000.00`.
    pub value: String,
    /// ISO 4217 code.
    pub currency: String,
    /// `low`, `normal`, `high` or `critical`; the gateway's default when absent.
    pub priority: Option<String>,
    /// PAN and PIN, when the customer pays by card.
    pub card: Option<Card>,
}

/// A made-up card and its PIN.
#[derive(Debug, Clone)]
pub struct Card {
    /// 8 to 19 digits.
    pub pan: String,
    /// 4 to 12 digits.
    pub pin: String,
}

impl Acquirer {
    /// TDES: `zpk.acquirer-a` in ISO 0, `zak.acquirer-a` as retail MAC with padding method 1.
    pub fn a() -> Self {
        Self {
            name: "acquirer-a",
            pin_key: Key::demo("zpk.acquirer-a"),
            mac_key: Key::demo("zak.acquirer-a"),
            format: PinFormat::Iso0,
            mac: |key, message| retail_mac(key, Padding::Method1, message).map(Vec::from),
        }
    }

    /// AES: `zpk.acquirer-b` in ISO 4, `zak.acquirer-b` as CMAC.
    pub fn b() -> Self {
        Self {
            name: "acquirer-b",
            pin_key: Key::demo("zpk.acquirer-b"),
            mac_key: Key::demo("zak.acquirer-b"),
            format: PinFormat::Iso4,
            mac: |key, message| cmac_aes(key, message).map(|code| code[..8].to_vec()),
        }
    }

    /// Its name, which is that of its certificate files.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Label of its PIN key.
    pub fn pin_key(&self) -> &'static str {
        self.pin_key.label
    }

    /// Label of its MAC key.
    pub fn mac_key(&self) -> &'static str {
        self.mac_key.label
    }

    /// The format it uses in payments.
    pub fn format(&self) -> PinFormat {
        self.format
    }

    /// A PIN block under its PIN key with fresh filler, upper-case hex.
    ///
    /// # Errors
    /// A PIN or PAN that cannot be, or a format that its key does not serve.
    pub fn pin_block(&self, pin: &str, pan: &str, format: PinFormat) -> Result<String, SoftError> {
        // A 16 byte key fits both ciphers: only this line keeps format and key together.
        if (format == PinFormat::Iso4) != (self.format == PinFormat::Iso4) {
            return Err(SoftError::Format);
        }
        seal_pin(format, &self.pin_key.value, pan, pin).map(hex::encode_upper)
    }

    /// The MAC of these bytes under its MAC key: 8 bytes, upper-case hex.
    ///
    /// # Panics
    /// Never: the demo keys have the size of their algorithm.
    pub fn mac(&self, body: &[u8]) -> String {
        let code = (self.mac)(&self.mac_key.value, body);
        code.map(hex::encode_upper).unwrap_or_else(|refused| panic!("{}: {refused}", self.name))
    }

    /// The `Tollgate-Mac` header for these bytes.
    ///
    /// # Panics
    /// Never, as [`Acquirer::mac`].
    pub fn mac_header(&self, body: &[u8]) -> String {
        format!("{}:{}", self.mac_key.label, self.mac(body))
    }

    /// Whether an answer carries this acquirer's MAC over its exact bytes.
    ///
    /// # Panics
    /// Never, as [`Acquirer::mac`].
    pub fn proves(&self, answer: &Answer) -> bool {
        let header = answer.header("tollgate-mac").unwrap_or_default();
        same(header.as_bytes(), self.mac_header(&answer.body).as_bytes())
    }

    /// The bytes of a payment, with a fresh PIN block in its own format when there is a card.
    ///
    /// # Errors
    /// A PIN or PAN that cannot be.
    pub fn payment_body(&self, payment: &Payment) -> Result<Vec<u8>, SoftError> {
        let mut body = Map::new();
        body.insert("biller".into(), json!(payment.biller));
        body.insert("bill_id".into(), json!(payment.bill_id));
        body.insert("customer_id".into(), json!(payment.customer_id));
        body.insert("amount".into(), json!({"value": payment.value, "currency": payment.currency}));
        if let Some(priority) = &payment.priority {
            body.insert("priority".into(), json!(priority));
        }
        if let Some(Card { pan, pin }) = &payment.card {
            let block = self.pin_block(pin, pan, self.format)?;
            body.insert("pan".into(), json!(pan));
            body.insert("pin_block".into(), json!(block));
            let side = json!({"key": self.pin_key.label, "format": self.format.to_string()});
            body.insert("pin".into(), side);
        }
        Ok(Value::Object(body).to_string().into_bytes())
    }
}

impl Payment {
    /// 127000.00 IDR to `biller` for `bill_id`, without a card.
    pub fn of(biller: &str, bill_id: &str) -> Self {
        Self {
            biller: biller.to_owned(),
            bill_id: bill_id.to_owned(),
            customer_id: "customer-1234".to_owned(),
            value: "127000.00".to_owned(),
            currency: "IDR".to_owned(),
            priority: None,
            card: None,
        }
    }

    /// The same, paid by a card whose PIN the billing simulator expects of `customer-1234`.
    #[must_use]
    pub fn by_card(self) -> Self {
        let card = Card { pan: "4761737909457820".to_owned(), pin: "1234".to_owned() };
        Self { card: Some(card), ..self }
    }
}

impl Key {
    fn demo(label: &'static str) -> Self {
        Self { label, value: DemoKeys::load().value(label) }
    }
}

impl std::fmt::Debug for Acquirer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Acquirer({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::pin::open_pin;

    #[test]
    fn a_payment_by_card_carries_a_block_that_its_zone_key_opens() {
        for acquirer in [Acquirer::a(), Acquirer::b()] {
            let bytes = acquirer.payment_body(&Payment::of("pln", "bill-1").by_card()).unwrap();

            let body: Value = serde_json::from_slice(&bytes).unwrap();
            let block = hex::decode(body["pin_block"].as_str().unwrap()).unwrap();
            let key = DemoKeys::load().value(body["pin"]["key"].as_str().unwrap());
            let format: PinFormat = body["pin"]["format"].as_str().unwrap().parse().unwrap();
            let pin = open_pin(format, &key, body["pan"].as_str().unwrap(), &block);
            assert_eq!(pin.as_deref(), Ok("1234"), "{acquirer:?}");
        }
    }

    #[test]
    fn a_payment_without_a_card_names_neither_pan_nor_pin() {
        let bytes = Acquirer::a().payment_body(&Payment::of("pdam", "bill-1")).unwrap();

        let body: Value = serde_json::from_slice(&bytes).unwrap();
        let fields: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["amount", "bill_id", "biller", "customer_id"]);
    }

    #[test]
    fn each_acquirer_uses_its_own_mac_key_and_method() {
        let (a, b) = (Acquirer::a().mac_header(b"body"), Acquirer::b().mac_header(b"body"));

        assert!(a.starts_with("zak.acquirer-a:") && a.len() == 15 + 16);
        assert!(b.starts_with("zak.acquirer-b:") && b.len() == 15 + 16);
        assert_ne!(a[15..], b[15..]);
    }

    #[test]
    fn a_format_that_the_zone_key_does_not_serve_is_refused() {
        let pan = "4761737909457820";

        for format in [PinFormat::Iso0, PinFormat::Iso1, PinFormat::Iso3] {
            assert!(Acquirer::a().pin_block("1234", pan, format).is_ok());
            assert_eq!(Acquirer::b().pin_block("1234", pan, format), Err(SoftError::Format));
        }
        assert_eq!(Acquirer::a().pin_block("1234", pan, PinFormat::Iso4), Err(SoftError::Format));
    }
}
