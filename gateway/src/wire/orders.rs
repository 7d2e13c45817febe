//! The data API's requests: bytes to orders, strictly, and their schemas.

use hsm_adapter::protocol::{PinKey, PinReference};
use hsm_adapter::vocabulary::{
    KeyLabel, KeyName, Ksn, Pan, PinBlock, PinBlockFormat, PinOffset, Pvki, Pvv,
};
use utoipa::ToSchema;

use super::amount::Amount;
use super::object::Object;
use super::problem::Problem;
use crate::store::Priority;

/// The longest message that has a MAC, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The longest PIN block text that is looked at; every other size is refused like a bad block.
const PIN_BLOCK_BYTES_MAX: usize = 64;
/// The longest MAC.
const MAC_BYTES_MAX: usize = 32;

/// PIN translation, parsed.
pub(crate) struct TranslateOrder {
    pub(crate) pan: Pan,
    pub(crate) pin_block: Vec<u8>,
    pub(crate) from: PinKey,
    pub(crate) to: PinKey,
}

impl TranslateOrder {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let pan = object.parsed("pan", Pan::parse)?;
        let pin_block = object.hex("pin_block", PIN_BLOCK_BYTES_MAX)?;
        let from = pin_key(object.object("from")?)?;
        let to = pin_key(object.object("to")?)?;
        object.end()?;
        Ok(Self { pan, pin_block, from, to })
    }
}

/// PIN verification, parsed.
pub(crate) struct VerifyPinOrder {
    pub(crate) pan: Pan,
    pub(crate) pin_block: Vec<u8>,
    pub(crate) from: PinKey,
    pub(crate) reference: PinReference,
}

impl VerifyPinOrder {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let pan = object.parsed("pan", Pan::parse)?;
        let pin_block = object.hex("pin_block", PIN_BLOCK_BYTES_MAX)?;
        let from = pin_key(object.object("from")?)?;
        let method = object.parsed("method", str::parse::<PinMethod>)?;
        let key = key_name(&mut object)?;
        // Each method takes its own fields: those of another one are unknown here.
        let reference = match method {
            PinMethod::Pvv => {
                let pvki = object.number("pvki")?;
                let pvki = u8::try_from(pvki).ok().and_then(|index| Pvki::try_from(index).ok());
                let pvki = pvki.ok_or_else(|| object.wrong("pvki", "must be 0 to 6"))?;
                PinReference::Pvv { key, pvki, pvv: object.parsed("pvv", Pvv::parse)? }
            }
            PinMethod::Ibm3624 => {
                PinReference::Ibm3624 { key, offset: object.parsed("offset", PinOffset::parse)? }
            }
            PinMethod::Reference => {
                let block = object.hex("reference", REFERENCE_BYTES)?;
                if block.len() != REFERENCE_BYTES {
                    return Err(object.wrong("reference", "must be 16 hex digits"));
                }
                let block = PinBlock::new(block)
                    .map_err(|rule| object.wrong("reference", &rule.to_string()))?;
                PinReference::Block { key, block }
            }
        };
        object.end()?;
        Ok(Self { pan, pin_block, from, reference })
    }
}

/// How a PIN is verified.
#[derive(Clone, Copy)]
enum PinMethod {
    Pvv,
    Ibm3624,
    Reference,
}

impl std::str::FromStr for PinMethod {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "pvv" => Ok(Self::Pvv),
            "ibm3624" => Ok(Self::Ibm3624),
            "reference" => Ok(Self::Reference),
            _ => Err("is pvv, ibm3624 or reference"),
        }
    }
}

/// A reference block is of format 0.
const REFERENCE_BYTES: usize = 8;

/// MAC generation, parsed.
pub(crate) struct GenerateMacOrder {
    pub(crate) key: KeyName,
    pub(crate) ksn: Option<Ksn>,
    pub(crate) message: Vec<u8>,
    pub(crate) length: Option<u8>,
}

impl GenerateMacOrder {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let key = key_name(&mut object)?;
        let ksn = ksn(&mut object)?;
        let message = object.hex("message", MESSAGE_BYTES_MAX)?;
        let length = match object.optional_number("length")? {
            None => None,
            Some(length @ 4..=32) => Some(length as u8),
            Some(_) => return Err(object.wrong("length", "must be 4 to 32 bytes")),
        };
        object.end()?;
        Ok(Self { key, ksn, message, length })
    }
}

/// MAC verification, parsed.
pub(crate) struct VerifyMacOrder {
    pub(crate) key: KeyName,
    pub(crate) ksn: Option<Ksn>,
    pub(crate) message: Vec<u8>,
    pub(crate) mac: Vec<u8>,
}

impl VerifyMacOrder {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let key = key_name(&mut object)?;
        let ksn = ksn(&mut object)?;
        let message = object.hex("message", MESSAGE_BYTES_MAX)?;
        let mac = object.hex("mac", MAC_BYTES_MAX)?;
        object.end()?;
        Ok(Self { key, ksn, message, mac })
    }
}

/// A payment, parsed.
pub(crate) struct PaymentRequest {
    pub(crate) biller: String,
    pub(crate) bill_id: String,
    pub(crate) customer_id: String,
    pub(crate) amount: Amount,
    pub(crate) priority: Priority,
    pub(crate) pan: Option<Pan>,
    pub(crate) pin: Option<PinPart>,
}

/// The PIN of a payment.
pub(crate) struct PinPart {
    pub(crate) block: Vec<u8>,
    pub(crate) from: PinKey,
}

impl PaymentRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let biller = object.parsed("biller", |text| identifier(text, 32))?;
        let bill_id = object.parsed("bill_id", |text| identifier(text, 64))?;
        let customer_id = object.parsed("customer_id", |text| identifier(text, 64))?;
        let mut amount = object.object("amount")?;
        let (value, currency) = (amount.text("value")?, amount.text("currency")?);
        let parsed =
            Amount::parse(&value, &currency).map_err(|rule| object.wrong("amount", rule))?;
        amount.end()?;
        let priority = match object.optional_text("priority")?.as_deref() {
            None => Priority::default(),
            Some(text) => Priority::ALL
                .into_iter()
                .find(|priority| priority.name() == text)
                .ok_or_else(|| object.wrong("priority", "is low, normal, high or critical"))?,
        };
        let pan = object.optional_text("pan")?;
        let pan = pan.map(zeroize::Zeroizing::new);
        let pan = pan.map(|text| Pan::parse(&text)).transpose();
        let pan = pan.map_err(|rule| object.wrong("pan", &rule.to_string()))?;
        let pin = match object.optional_object("pin")? {
            None => None,
            Some(key) => {
                let from = pin_key(key)?;
                Some(PinPart { block: object.hex("pin_block", PIN_BLOCK_BYTES_MAX)?, from })
            }
        };
        if pin.is_some() && pan.is_none() {
            return Err(object.wrong("pan", "is needed with a PIN block"));
        }
        object.end()?;
        Ok(Self { biller, bill_id, customer_id, amount: parsed, priority, pan, pin })
    }
}

fn pin_key(mut object: Object) -> Result<PinKey, Problem> {
    let key = key_name(&mut object)?;
    let format = object.parsed("format", str::parse::<PinBlockFormat>)?;
    let ksn = ksn(&mut object)?;
    object.end()?;
    Ok(PinKey { key, format, ksn })
}

/// For a base derivation key: whose device, which transaction.
fn ksn(object: &mut Object) -> Result<Option<Ksn>, Problem> {
    let text = object.optional_text("ksn")?;
    let ksn = text.map(|text| Ksn::parse(&text)).transpose();
    ksn.map_err(|rule| object.wrong("ksn", &rule.to_string()))
}

fn key_name(object: &mut Object) -> Result<KeyName, Problem> {
    let label = object.parsed("key", KeyLabel::parse)?;
    let version = match object.optional_number("version")? {
        None => None,
        Some(version) => Some(
            u32::try_from(version).map_err(|_| object.wrong("version", "must be a key version"))?,
        ),
    };
    Ok(KeyName { label, version })
}

/// What billers call bills and customers: printable ASCII without quotes and backslashes.
fn identifier(text: &str, length_max: usize) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    if (1..=length_max).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "has 1 to {length_max} printable ASCII characters, without blanks, '\"' and '\\'"
        ))
    }
}

/// A key and the format of the block under it.
#[derive(ToSchema)]
#[schema(as = PinKey)]
#[expect(dead_code, reason = "the schema of what `Object` reads")]
pub(crate) struct PinKeyRequest {
    /// The key's label.
    #[schema(example = "zpk.acquirer-a", max_length = 64)]
    key: String,
    /// The active version when absent.
    version: Option<u32>,
    /// iso0, iso1 (input only), iso3 or iso4.
    #[schema(example = "iso0")]
    format: String,
    /// For a base derivation key, and only there: 24 hex digits (AES DUKPT), or 16 to 20 (TDES
    /// DUKPT, stripped leading F are put back).
    #[schema(example = "FFFF9876543210E00001", min_length = 16, max_length = 24)]
    ksn: Option<String>,
}

/// Body of POST /v1/pin/translate.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of what `Object` reads")]
pub(crate) struct TranslateRequest {
    /// 8 to 19 digits.
    #[schema(example = "4761737909457820", min_length = 8, max_length = 19)]
    pan: String,
    /// Hex: 8 bytes for iso0, iso1, iso3; 16 for iso4.
    #[schema(example = "46CF9D38F2FDD392")]
    pin_block: String,
    /// Where the block comes from.
    from: PinKeyRequest,
    /// Where it goes.
    to: PinKeyRequest,
}

/// Body of POST /v1/pin/verify. Fields that are not of the method are refused.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of what `Object` reads")]
pub(crate) struct VerifyPinRequest {
    /// 8 to 19 digits.
    #[schema(example = "4761737909457820", min_length = 8, max_length = 19)]
    pan: String,
    /// Hex: 8 bytes for iso0, iso1, iso3; 16 for iso4.
    #[schema(example = "46CF9D38F2FDD392")]
    pin_block: String,
    /// Where the block comes from.
    from: PinKeyRequest,
    /// pvv, ibm3624 or reference.
    #[schema(example = "pvv")]
    method: String,
    /// The label of the verification key. Table and validation data of IBM 3624 belong to it.
    #[schema(example = "pvk.issuer", max_length = 64)]
    key: String,
    /// The active version when absent.
    version: Option<u32>,
    /// With method pvv: the index of the PVV key that the card names.
    #[schema(example = 1, maximum = 6)]
    pvki: Option<u8>,
    /// With method pvv: the card's value, four digits.
    #[schema(example = "4821", min_length = 4, max_length = 4)]
    pvv: Option<String>,
    /// With method ibm3624: the card's offset, as many digits as the PIN has.
    #[schema(min_length = 4, max_length = 12)]
    offset: Option<String>,
    /// With method reference: an iso0 block of the same PAN under the reference key, 16 hex digits.
    #[schema(min_length = 16, max_length = 16)]
    reference: Option<String>,
}

/// Body of POST /v1/mac/generate.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of what `Object` reads")]
pub(crate) struct GenerateMacRequest {
    /// The MAC key's label.
    #[schema(example = "zak.acquirer-a", max_length = 64)]
    key: String,
    /// The active version when absent.
    version: Option<u32>,
    /// For a base derivation key, and only there.
    #[schema(min_length = 16, max_length = 24)]
    ksn: Option<String>,
    /// Hex, at most 64 KiB.
    #[schema(example = "3430313233343536373839303944393837")]
    message: String,
    /// Bytes; the key's own length when absent, and no more than it.
    #[schema(minimum = 4, maximum = 32)]
    length: Option<u8>,
}

/// Body of POST /v1/mac/verify.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of what `Object` reads")]
pub(crate) struct VerifyMacRequest {
    /// The MAC key's label.
    #[schema(example = "zak.acquirer-a", max_length = 64)]
    key: String,
    /// The active version when absent.
    version: Option<u32>,
    /// For a base derivation key, and only there.
    #[schema(min_length = 16, max_length = 24)]
    ksn: Option<String>,
    /// Hex, at most 64 KiB.
    message: String,
    /// Hex, of the key's own length.
    mac: String,
}

/// An amount of money.
#[derive(ToSchema)]
#[schema(as = Amount)]
#[expect(dead_code, reason = "the schema of what `Object` reads")]
pub(crate) struct AmountText {
    /// A positive decimal with at most the currency's minor digits, 15 digits in all.
    #[schema(example = "127000.00")]
    value: String,
    /// ISO 4217.
    #[schema(example = "IDR")]
    currency: String,
}

/// Body of POST /v1/payments.
#[derive(ToSchema)]
#[schema(as = PaymentRequest)]
#[expect(dead_code, reason = "the schema of what `Object` reads")]
pub(crate) struct PaymentText {
    /// Whom to pay.
    #[schema(example = "pln", max_length = 32)]
    biller: String,
    /// Which bill.
    #[schema(example = "532110001234", max_length = 64)]
    bill_id: String,
    /// Whose bill.
    #[schema(example = "customer-1", max_length = 64)]
    customer_id: String,
    /// How much.
    amount: AmountText,
    /// low, normal, high or critical; normal when absent.
    priority: Option<String>,
    /// Needed with a PIN block.
    #[schema(min_length = 8, max_length = 19)]
    pan: Option<String>,
    /// Hex. Needed with `pin`.
    pin_block: Option<String>,
    /// Key and format of the PIN block.
    pin: Option<PinKeyRequest>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYMENT: &str = r#"{"biller":"pln","bill_id":"532","customer_id":"c-1",
        "amount":{"value":"127000.00","currency":"IDR"},"priority":"high",
        "pan":"4761737909457820","pin_block":"46CF9D38F2FDD392",
        "pin":{"key":"zpk.acquirer-a","format":"iso0"}}"#;

    #[test]
    fn a_payment_is_parsed_whole() {
        let payment = PaymentRequest::parse(PAYMENT.as_bytes()).unwrap();

        assert_eq!((payment.biller.as_str(), payment.priority), ("pln", Priority::High));
        assert_eq!(payment.pin.unwrap().from.key.to_string(), "zpk.acquirer-a");
    }

    const VERIFY: &str = r#"{"pan":"4761737909457820","pin_block":"46CF9D38F2FDD392",
        "from":{"key":"bdk.t","version":2,"format":"iso0","ksn":"9876543210E00001"},
        "key":"pvk.i","version":3,"#;

    #[test]
    fn each_method_of_verification_has_its_own_fields() {
        let parse = |rest: &str| VerifyPinOrder::parse(format!("{VERIFY}{rest}}}").as_bytes());
        for (method, fields) in [
            ("pvv", [r#""pvki":1,"pvv":"4821""#, r#""pvki":1,"pvv":"4821","offset":"1234""#]),
            ("ibm3624", [r#""offset":"1234""#, r#""offset":"1234","pvki":1"#]),
            (
                "reference",
                [
                    r#""reference":"46CF9D38F2FDD392""#,
                    r#""reference":"46CF9D38F2FDD392","table":"0""#,
                ],
            ),
        ] {
            let [own, foreign] =
                fields.map(|fields| parse(&format!(r#""method":"{method}",{fields}"#)));

            let order = own.unwrap_or_else(|problem| panic!("{method}: {problem:?}"));
            assert_eq!(order.from.ksn.unwrap().to_string(), "FFFF9876543210E00001");
            assert_eq!(order.from.key.version, Some(2));
            let Err(problem) = foreign else { panic!("{method}: a foreign field is taken") };
            assert!(problem.detail().unwrap().starts_with("unknown field"), "{problem:?}");
        }
        for (rest, named) in [
            (r#""method":"pvv","pvki":7,"pvv":"4821""#, "pvki"),
            (r#""method":"pvv","pvki":1,"pvv":"482""#, "pvv"),
            (r#""method":"pvv","pvv":"4821""#, "missing field pvki"),
            (r#""method":"ibm3624","offset":"123""#, "offset"),
            (r#""method":"reference","reference":"46CF""#, "reference"),
            (r#""method":"cvv""#, "method"),
        ] {
            let Err(problem) = parse(rest) else { panic!("accepted: {rest}") };
            assert!(problem.detail().unwrap().contains(named), "{rest}: {problem:?}");
        }
    }

    #[test]
    fn a_ksn_of_another_length_is_refused_by_name() {
        for ksn in ["987654321000001", "FFFF9876543210E000011", "12345678901234560000000G"] {
            let body = PAYMENT.replacen(r#""iso0""#, &format!(r#""iso0","ksn":"{ksn}""#), 1);
            let Err(problem) = PaymentRequest::parse(body.as_bytes()) else { panic!("{ksn}") };
            let mac = format!(r#"{{"key":"bdk.t","ksn":"{ksn}","message":"00","mac":"00000000"}}"#);
            let Err(of_mac) = VerifyMacOrder::parse(mac.as_bytes()) else { panic!("{ksn}") };

            assert!(problem.detail().unwrap().starts_with("pin.ksn: "), "{problem:?}");
            assert!(of_mac.detail().unwrap().starts_with("ksn: "), "{of_mac:?}");
        }
    }

    /// Each edit breaks one rule, and the answer names the field that it is about.
    #[test]
    fn each_broken_rule_names_its_field() {
        for (from, to, named) in [
            (r#""biller":"pln","#, "", "biller"),
            ("127000.00", "127000.001", "amount"),
            ("IDR", "IDX", "amount"),
            (r#""high""#, r#""urgent""#, "priority"),
            ("4761737909457820", "4761", "pan"),
            ("46CF9D38F2FDD392", "46CF9D38F2FDD39", "pin_block"),
            (r#""pin_block":"46CF9D38F2FDD392","#, "", "pin_block"),
            (r#""pan":"4761737909457820","#, "", "pan"),
            ("iso0", "iso2", "pin.format"),
            ("zpk.acquirer-a", "ZPK A", "pin.key"),
            (r#""bill_id":"532""#, r#""bill_id":"5 32""#, "bill_id"),
            (r#""c-1","#, r#""c-1","extra":"1","#, "extra"),
        ] {
            let body = PAYMENT.replacen(from, to, 1);
            let Err(problem) = PaymentRequest::parse(body.as_bytes()) else {
                panic!("accepted: {from} -> {to}")
            };
            let detail = problem.detail().unwrap_or_default().to_owned();
            assert!(detail.contains(named), "{from} -> {to}: {detail}");
        }
    }
}
