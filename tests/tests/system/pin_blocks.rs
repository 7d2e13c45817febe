//! A PIN block is good or is refused in one form: thousands of blocks, each judged by `soft` too.
//!
//! What is wrong with a block (key, control nibble, length, digit, filler, PAN, size) must not show
//! in any part of the answer, or the gateway could be asked for a PIN one guess at a time.

use std::collections::BTreeSet;

use harness::acquirer::{Answer, Client};
use harness::demo_keys::DemoKeys;
use harness::soft::pan::account_field;
use harness::soft::pin::{PinFormat, encipher, open_pin, seal_pin};
use harness::vectors;
use harness::world::{Wanted, World};
use reqwest::Method;
use serde_json::{Value, json};

use crate::wanted::{grant_translations, grants_of};

#[tokio::test]
async fn every_invalid_block_of_the_vectors_is_refused_in_one_form() {
    let (world, keys) = world().await;
    let client = world.client("acquirer-a").unwrap();

    let mut forms = BTreeSet::new();
    for v in vectors::load("pinblock_invalid") {
        let format: PinFormat = format!("iso{}", v.number("format")).parse().unwrap();
        let (pan, clear) = (v.find("pan").unwrap_or(PAN), v.hex("clear_block"));
        // A block of no size that a cipher takes goes as it is.
        let block = encipher(format, &keys.inbound(format), pan, &clear).unwrap_or(clear);

        let answer = ask(&client, format, pan, &block).await;

        assert_eq!(answer.slug().as_deref(), Some("pin-block-refused"), "{v}: {}", v.text("error"));
        forms.insert(form(&answer));
    }

    assert_eq!(forms.len(), 1, "{forms:#?}");
    assert_unharmed(&client, &keys).await;
}

#[tokio::test]
async fn no_block_is_accepted_that_soft_refuses_and_none_refused_that_soft_accepts() {
    let (world, keys) = world().await;
    let client = world.client("acquirer-a").unwrap();
    let cases = cases(&keys);
    assert!(cases.len() >= 2_000, "{}", cases.len());

    let shares: Vec<Vec<Case>> = cases.chunks(cases.len().div_ceil(8)).map(<[_]>::to_vec).collect();
    let asked = shares.into_iter().map(|share| {
        let (client, keys) = (client.clone(), keys.clone());
        tokio::spawn(async move { judge(&client, &keys, share).await })
    });
    let mut verdicts = Verdicts::default();
    for share in asked.collect::<Vec<_>>() {
        verdicts.add(share.await.unwrap());
    }

    assert_eq!(verdicts.wrong, [""; 0]);
    assert_eq!(verdicts.refusals.len(), 1, "{:#?}", verdicts.refusals);
    assert!(verdicts.accepted > 100 && verdicts.refused > 1_500, "{verdicts:?}");
    assert_unharmed(&client, &keys).await;
}

/// What became of some cases.
#[derive(Debug, Default)]
struct Verdicts {
    accepted: usize,
    refused: usize,
    /// Every form that a refusal had.
    refusals: BTreeSet<String>,
    /// Where gateway and `soft` differ.
    wrong: Vec<String>,
}

impl Verdicts {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.refusals.extend(other.refusals);
        self.wrong.extend(other.wrong);
    }
}

async fn judge(client: &Client, keys: &Keys, cases: Vec<Case>) -> Verdicts {
    let mut verdicts = Verdicts::default();
    for Case { what, format, pan, block } in cases {
        let answer = ask(client, format, &pan, &block).await;
        let expected = open_pin(format, &keys.inbound(format), &pan, &block);
        match (expected, answer.status.as_u16()) {
            (Ok(pin), 200) => {
                let block = hex::decode(answer.json()["pin_block"].as_str().unwrap()).unwrap();
                let found = open_pin(PinFormat::Iso0, &keys.outbound, &pan, &block);
                if found.as_deref() != Ok(&pin) {
                    verdicts.wrong.push(format!("{what}: another PIN came out"));
                }
                verdicts.accepted += 1;
            }
            (Err(_), 422) => {
                verdicts.refusals.insert(form(&answer));
                verdicts.refused += 1;
            }
            (expected, status) => {
                let expected = expected.map(|_| "good");
                verdicts.wrong.push(format!("{what}: {status}, and soft says {expected:?}"));
            }
        }
    }
    verdicts
}

/// One block to try, and how it was made.
#[derive(Debug, Clone)]
struct Case {
    what: String,
    format: PinFormat,
    pan: String,
    block: Vec<u8>,
}

/// Control nibbles × lengths × fills in all formats under PANs of 8 to 19 digits, a letter in each
/// place of a PIN, other keys, other PANs, random bytes, other sizes.
fn cases(keys: &Keys) -> Vec<Case> {
    let mut dice = Dice(20_260_301);
    let mut cases = Vec::new();
    for format in FORMATS {
        let mut add = |what: String, pan: &str, key: &[u8], field: &str| {
            let block = encipher(format, key, pan, &clear_of(format, pan, field)).unwrap();
            let what = format!("{format}, {what}, PAN of {}", pan.len());
            cases.push(Case { what, format, pan: pan.to_owned(), block });
        };
        let key = keys.inbound(format);
        for control in 0..16 {
            for length in 0..16_usize {
                for fill in if control == u32::from(format.number()) { "FAB0" } else { "F" }.chars()
                {
                    let pan = dice.pan();
                    let digits = dice.digits(length.min(14));
                    let what = format!("control {control:X}, length {length:X}, fill {fill}");
                    add(what, &pan, &key, &field(control, length, &digits, fill));
                }
            }
        }
        for digits in 4..=12 {
            for place in 0..digits {
                let pan = dice.pan();
                let mut pin = dice.digits(digits).into_bytes();
                pin[place] = b"ABCDEF"[dice.below(6)];
                let pin = String::from_utf8(pin).unwrap();
                let what = format!("letter in place {place} of {digits}");
                add(
                    what,
                    &pan,
                    &key,
                    &field(format.number().into(), digits, &pin, fill_of(format)),
                );
            }
        }
        for _ in 0..40 {
            let pan = dice.pan();
            let pin = dice.pin();
            let field = field(format.number().into(), pin.len(), &pin, fill_of(format));
            add("good".into(), &pan, &key, &field);
            let other: Vec<u8> = key.iter().rev().copied().collect();
            add("another key".into(), &pan, &other, &field);
        }
        for _ in 0..60 {
            let (pan, other) = (dice.digits(16), dice.digits(16));
            let pin = dice.pin();
            let block = seal_pin(format, &key, &other, &pin).unwrap();
            cases.push(Case { what: format!("{format}, another PAN"), format, pan, block });
        }
        for _ in 0..60 {
            let (pan, size) = (dice.digits(16), if format == PinFormat::Iso4 { 16 } else { 8 });
            let block = dice.bytes(size);
            cases.push(Case { what: format!("{format}, random"), format, pan, block });
        }
        for size in [0, 1, 7, 8, 9, 15, 16, 17, 24, 32, 64] {
            let (pan, block) = (dice.digits(16), dice.bytes(size));
            cases.push(Case { what: format!("{format}, {size} bytes"), format, pan, block });
        }
    }
    cases
}

/// 14 nibbles behind control and length: the digits, then the fill.
fn field(control: u32, length: usize, digits: &str, fill: char) -> String {
    let rest = fill.to_string().repeat(14 - digits.len());
    format!("{control:X}{length:X}{digits}{rest}")
}

fn fill_of(format: PinFormat) -> char {
    if format == PinFormat::Iso4 { 'A' } else { 'F' }
}

/// A field of 16 nibbles as the clear block of its format, right or wrong.
fn clear_of(format: PinFormat, pan: &str, field: &str) -> Vec<u8> {
    let mut clear = hex::decode(field).unwrap();
    match format {
        PinFormat::Iso0 | PinFormat::Iso3 => {
            let account = account_field(pan).unwrap();
            clear.iter_mut().zip(account).for_each(|(byte, account)| *byte ^= account);
        }
        PinFormat::Iso1 => {}
        PinFormat::Iso4 => clear.extend([0xC3; 8]),
    }
    clear
}

async fn ask(client: &Client, format: PinFormat, pan: &str, block: &[u8]) -> Answer {
    let from = if format == PinFormat::Iso4 { "zpk.acquirer-b" } else { "zpk.acquirer-a" };
    let body = json!({"pan": pan, "pin_block": hex::encode(block),
        "from": {"key": from, "format": format.to_string()},
        "to": {"key": "zpk.billing", "format": "iso0"}});
    let bytes = body.to_string().into_bytes();
    client.send(Method::POST, "/v1/pin/translate", &[], bytes).await.unwrap()
}

/// Everything of an answer but the request's id and the time of day.
fn form(answer: &Answer) -> String {
    let mut body = answer.json();
    let id = body["request_id"].take();
    assert_eq!(id.as_str(), answer.header("x-request-id"));
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| *name != "x-request-id" && *name != "date")
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    headers.sort();
    assert!(answer.headers.contains_key("date") && body["request_id"] == Value::Null);
    format!("{} {body} {headers:?}", answer.status)
}

async fn assert_unharmed(client: &Client, keys: &Keys) {
    for format in FORMATS {
        let block = seal_pin(format, &keys.inbound(format), PAN, "4711").unwrap();

        let answer = ask(client, format, PAN, &block).await;

        assert_eq!(answer.status, 200, "{format}: {answer:?}");
    }
}

/// A world in which `acquirer-a` may use every inbound format.
async fn world() -> (World, Keys) {
    let edit = |table: &mut toml::Table| {
        let from = [("zpk.acquirer-b", ["iso4"].as_slice())];
        let to = [("zpk.billing", ["iso0"].as_slice())];
        grant_translations(grants_of(table, "acquirer-a"), &from, &to);
    };
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    (World::start_as(wanted).await.unwrap(), Keys::demo())
}

#[derive(Clone)]
struct Keys {
    tdes: Vec<u8>,
    aes: Vec<u8>,
    outbound: Vec<u8>,
}

impl Keys {
    fn demo() -> Self {
        let keys = DemoKeys::load();
        let (tdes, aes) = (keys.value("zpk.acquirer-a"), keys.value("zpk.acquirer-b"));
        Self { tdes, aes, outbound: keys.value("zpk.billing") }
    }

    fn inbound(&self, format: PinFormat) -> Vec<u8> {
        if format == PinFormat::Iso4 { self.aes.clone() } else { self.tdes.clone() }
    }
}

/// Splitmix64: the same cases in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn digits(&mut self, count: usize) -> String {
        (0..count).map(|_| char::from(b'0' + self.below(10) as u8)).collect()
    }

    /// 8 to 19 digits.
    fn pan(&mut self) -> String {
        let count = 8 + self.below(12);
        self.digits(count)
    }

    /// 4 to 12 digits.
    fn pin(&mut self) -> String {
        let count = 4 + self.below(9);
        self.digits(count)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

const FORMATS: [PinFormat; 4] =
    [PinFormat::Iso0, PinFormat::Iso1, PinFormat::Iso3, PinFormat::Iso4];
const PAN: &str = "4761737909457820";
