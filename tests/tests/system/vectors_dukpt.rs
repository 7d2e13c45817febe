//! Every DUKPT vector, asked of the token: PIN blocks in and out, MACs of devices and for them.

use harness::soft::dukpt_aes::{self, KeyType, Usage};
use harness::soft::mac::cmac_aes;
use harness::soft::pin::{PinFormat, open_pin, seal_pin};
use harness::vectors::{self, Vector};
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Message, Order, PinKey};
use hsm_adapter::register::{KeyAlgorithm, MacProfile};
use hsm_adapter::vocabulary::{
    KeyLabel, KeyName, KeyRole, Ksn, MacAlgorithm, MacPadding, Pan, PinBlock, PinBlockFormat,
};

use crate::vector_keys::VectorKeys;
use crate::vectors_token::{Token, flipped, without_text};

const ZONE: &str = "1C31AB64FB573D459EF12CBC4CD95DA2";

/// One transaction key and one kind of working key.
struct AesCase {
    vector: Vector,
    key_type: KeyType,
    bdk: String,
}

#[tokio::test]
async fn every_aes_vector_deciphers_enciphers_and_macs() {
    let mut keys = VectorKeys::default();
    let (zone_in, zone_out) = zones(&mut keys);
    let mac = MacProfile {
        algorithm: MacAlgorithm::Cmac,
        padding: None,
        length: 16,
        length_min: None,
        empty_message: true,
    };
    let mut cases = Vec::new();
    for vector in vectors::load("dukpt_aes") {
        for key_type in [KeyType::Aes128, KeyType::Aes192, KeyType::Aes256] {
            let value = vector.hex("bdk");
            if key_type.bytes() > value.len() {
                continue;
            }
            let bdk = keys.base_derivation(value, |profile| {
                profile.working_key_bits = Some(key_type.bytes() as u16 * 8);
                profile.mac = Some(mac);
            });
            cases.push(AesCase { vector: vector.clone(), key_type, bdk });
        }
    }
    let token = Token::with(keys).await;

    let mut worked = 0;
    for (at, AesCase { vector: v, key_type, bdk }) in cases.iter().enumerate() {
        let ksn = Ksn::parse(v.text("ksn")).unwrap();
        let device = PinKey { key: name(bdk), format: PinBlockFormat::Iso4, ksn: Some(ksn) };
        if v.has("update_key") {
            // Its counter is all ones, which no transaction has.
            let order = translate("4111111111111111", vec![at as u8; 16], device, zone(&zone_out));
            refused(v, token.ask(order).await);
            continue;
        }
        let key = |usage| working_key(v, usage, *key_type);
        let sample = sample_block(v, *key_type);
        let pan = sample.as_ref().map_or("4761739001010119", |block| block.text("pan"));
        let pin = sample.as_ref().map_or("83920", |block| block.text("pin"));
        let block = sample.as_ref().map_or_else(
            || seal_pin(PinFormat::Iso4, &key(Usage::PinEncryption), pan, pin).unwrap(),
            |block| block.hex("encrypted_block"),
        );

        let arrived = token.ask(translate(pan, block, device.clone(), zone(&zone_out))).await;
        let zone_key = hex::decode(ZONE).unwrap();
        let arrived_block = open(v, arrived, PinFormat::Iso0, &zone_key, pan);
        let sealed = seal_pin(PinFormat::Iso0, &zone_key, pan, pin).unwrap();
        let left = token.ask(translate(pan, sealed, zone(&zone_in), device)).await;
        let left_block = open(v, left, PinFormat::Iso4, &key(Usage::PinEncryption), pan);
        assert_eq!((arrived_block.as_str(), left_block.as_str()), (pin, pin), "{v}");

        let (message, sample) = match v.has("cmac").then(|| v.part("cmac")) {
            Some(sample) if sample.text("key_type") == name_of(*key_type) => {
                (sample.hex("message"), Some(sample.hex("mac")))
            }
            _ => (vec![at as u8; at], None),
        };
        let of_device = cmac_aes(&key(Usage::MacGeneration), &message).unwrap().to_vec();
        let for_device = cmac_aes(&key(Usage::MacVerification), &message).unwrap().to_vec();
        assert!(sample.is_none_or(|sample| sample == of_device), "{v}");
        assert!(verifies(&token, bdk, ksn, &message, of_device.clone()).await, "{v}");
        assert!(!verifies(&token, bdk, ksn, &message, flipped(&of_device, at)).await, "{v}");
        assert!(!verifies(&token, bdk, ksn, &message, for_device.clone()).await, "{v}: ours");
        assert_eq!(generate(&token, bdk, ksn, &message).await, for_device, "{v}");
        worked += 1;
    }
    assert_eq!((worked, cases.len()), (50, 54));
    token.stop_with_nothing_left().await;
}

#[tokio::test]
async fn every_tdes_vector_deciphers_enciphers_and_macs() {
    let mut keys = VectorKeys::default();
    let (zone_in, zone_out) = zones(&mut keys);
    let retail = MacProfile {
        algorithm: MacAlgorithm::Retail,
        padding: Some(MacPadding::One),
        length: 4,
        length_min: None,
        empty_message: false,
    };
    let cmac = MacProfile { algorithm: MacAlgorithm::Cmac, padding: None, length: 8, ..retail };
    let mut cases = Vec::new();
    for vector in vectors::load("dukpt_tdes") {
        let [retail, cmac] = [retail, cmac]
            .map(|mac| keys.base_derivation(vector.hex("bdk"), |profile| profile.mac = Some(mac)));
        cases.push((vector, retail, cmac));
    }
    let token = Token::with(keys).await;

    for (at, (v, retail, cmac)) in cases.iter().enumerate() {
        let ksn = Ksn::parse(v.text("ksn")).unwrap();
        let (pin, pan) = (v.text("pin"), v.text("pan"));
        let device = PinKey { key: name(retail), format: PinBlockFormat::Iso0, ksn: Some(ksn) };
        let zone_key = hex::decode(ZONE).unwrap();
        let sealed = seal_pin(PinFormat::Iso0, &zone_key, pan, pin).unwrap();

        let block = v.hex("encrypted_pin_block");
        let arrived =
            token.ask(translate(pan, block.clone(), device.clone(), zone(&zone_out))).await;
        let left = token.ask(translate(pan, sealed.clone(), zone(&zone_in), device)).await;
        assert_eq!(bytes(v, arrived), sealed, "{v}");
        assert_eq!(bytes(v, left), block, "{v}");

        let message = v.hex("message");
        for (bdk, request, response) in [
            (retail, "mac_request", "mac_response"),
            (cmac, "mac_request_cmac", "mac_response_cmac"),
        ] {
            let mac = v.hex(request);
            assert!(verifies(&token, bdk, ksn, &message, mac.clone()).await, "{v} {request}");
            assert!(
                !verifies(&token, bdk, ksn, &message, flipped(&mac, at)).await,
                "{v} {request}"
            );
            assert_eq!(
                generate(&token, bdk, ksn, &message).await,
                v.hex(response),
                "{v} {response}"
            );
        }
    }
    assert_eq!(cases.len(), 24);
    token.stop_with_nothing_left().await;
}

/// A KSN that no device of the key has, and every wrong pairing of key and KSN.
#[tokio::test]
async fn a_ksn_that_does_not_fit_is_the_blocks_fault_and_a_wrong_pairing_the_keys() {
    let mut keys = VectorKeys::default();
    let (_, zone_out) = zones(&mut keys);
    let zone_aes = keys.zone_key(KeyRole::ZonePinIn, KeyAlgorithm::Aes, (0..16).collect());
    let mac = |algorithm, length| MacProfile {
        algorithm,
        padding: None,
        length,
        length_min: None,
        empty_message: false,
    };
    let aes = keys.base_derivation(vectors::load("dukpt_aes")[0].hex("bdk"), |profile| {
        profile.mac = Some(mac(MacAlgorithm::Cmac, 8));
    });
    let short = keys.base_derivation(vectors::load("dukpt_aes")[1].hex("bdk"), |profile| {
        profile.working_key_bits = Some(256);
    });
    let tdes = keys.base_derivation(vectors::load("dukpt_tdes")[0].hex("bdk"), |profile| {
        profile.mac = Some(mac(MacAlgorithm::Cmac, 8));
    });
    let token = Token::with(keys).await;
    let side = |key: &str, format, ksn: Option<&str>| PinKey {
        key: name(key),
        format,
        ksn: ksn.map(|ksn| Ksn::parse(ksn).unwrap()),
    };
    use PinBlockFormat::{Iso0, Iso4};
    let (tdes_ksn, aes_ksn) = ("FFFF9876543210E00001", "123456789012345600000001");
    let not_for_this = || Err(LinkError::Answered(Failure::KeyNotForThis(String::new())));
    let block_refused = || Err(LinkError::Answered(Failure::PinBlockRefused));

    let cases = [
        ("counter zero", side(&tdes, Iso0, Some("FFFF9876543210E00000")), block_refused()),
        ("eleven ones", side(&tdes, Iso0, Some("FFFF9876543210E007FF")), block_refused()),
        ("counter zero", side(&aes, Iso4, Some("123456789012345600000000")), block_refused()),
        ("17 ones", side(&aes, Iso4, Some("12345678901234560001FFFF")), block_refused()),
        ("an AES KSN", side(&tdes, Iso0, Some(aes_ksn)), block_refused()),
        ("a TDES KSN", side(&aes, Iso4, Some(tdes_ksn)), block_refused()),
        ("a good KSN and no PIN", side(&tdes, Iso0, Some(tdes_ksn)), block_refused()),
        ("a good KSN and no PIN", side(&aes, Iso4, Some(aes_ksn)), block_refused()),
        ("no KSN", side(&tdes, Iso0, None), not_for_this()),
        ("no KSN", side(&aes, Iso4, None), not_for_this()),
        ("a zone key with KSN", side(&zone_aes, Iso4, Some(aes_ksn)), not_for_this()),
        ("a format of the other cipher", side(&tdes, Iso4, Some(tdes_ksn)), not_for_this()),
        ("a working key longer than the BDK", side(&short, Iso4, Some(aes_ksn)), not_for_this()),
    ];
    for (why, from, wanted) in cases {
        let block = vec![7; from.format.block_bytes()];
        let answer = token.ask(translate("4111111111111111", block, from, zone(&zone_out))).await;
        assert_eq!(without_text(answer), wanted, "{why}");
    }

    let message = || Message(b"message".to_vec());
    for (bdk, ksn) in [(&tdes, aes_ksn), (&aes, tdes_ksn), (&aes, "123456789012345600000000")] {
        let ksn = Ksn::parse(ksn).unwrap();
        assert!(!verifies(&token, bdk, ksn, &message().0, vec![1; 8]).await, "{ksn}");
        let order =
            Order::GenerateMac { key: name(bdk), ksn: Some(ksn), message: message(), length: None };
        assert_eq!(without_text(token.ask(order).await), not_for_this(), "{ksn}");
    }
    let bare = Order::VerifyMac {
        key: name(&aes),
        ksn: None,
        message: message(),
        mac: Message(vec![1; 8]),
    };
    let silent = Order::GenerateMac {
        key: name(&short),
        ksn: Some(Ksn::parse(aes_ksn).unwrap()),
        message: message(),
        length: None,
    };
    for order in [bare, silent] {
        assert_eq!(without_text(token.ask(order).await), not_for_this());
    }
    token.stop_with_nothing_left().await;
}

fn zones(keys: &mut VectorKeys) -> (String, String) {
    let value = hex::decode(ZONE).unwrap();
    let inbound = keys.zone_key(KeyRole::ZonePinIn, KeyAlgorithm::Tdes, value.clone());
    (inbound, keys.zone_key(KeyRole::ZonePinOut, KeyAlgorithm::Tdes, value))
}

fn name(label: &str) -> KeyName {
    KeyLabel::parse(label).unwrap().into()
}

fn zone(label: &str) -> PinKey {
    PinKey { key: name(label), format: PinBlockFormat::Iso0, ksn: None }
}

fn translate(pan: &str, block: Vec<u8>, from: PinKey, to: PinKey) -> Order {
    Order::TranslatePin {
        pan: Pan::parse(pan).unwrap(),
        block: PinBlock::new(block).unwrap(),
        from,
        to,
    }
}

fn name_of(key_type: KeyType) -> String {
    format!("AES{}", key_type.bytes() * 8)
}

/// The vector's working key where it has one; else from its transaction key, in software.
fn working_key(v: &Vector, usage: Usage, key_type: KeyType) -> Vec<u8> {
    let ksn = dukpt_aes::ksn(v.text("ksn")).unwrap();
    dukpt_aes::working_key(&v.hex("transaction_key"), &ksn, usage, key_type).unwrap()
}

/// The vector's PIN block, where it is under a key of this type.
fn sample_block(v: &Vector, key_type: KeyType) -> Option<Vector> {
    let block = v.has("pin_block").then(|| v.part("pin_block"))?;
    (block.text("key_type") == name_of(key_type)).then_some(block)
}

fn bytes(v: &Vector, answer: Result<Answer, LinkError>) -> Vec<u8> {
    let Ok(Answer::Block { block, .. }) = answer else { panic!("{v}: {answer:?}") };
    block.expose().to_vec()
}

fn open(
    v: &Vector,
    answer: Result<Answer, LinkError>,
    format: PinFormat,
    key: &[u8],
    pan: &str,
) -> String {
    open_pin(format, key, pan, &bytes(v, answer)).unwrap()
}

fn refused(v: &Vector, answer: Result<Answer, LinkError>) {
    let wanted = Err(LinkError::Answered(Failure::PinBlockRefused));
    assert_eq!(without_text(answer), wanted, "{v}");
}

async fn verifies(token: &Token, key: &str, ksn: Ksn, message: &[u8], mac: Vec<u8>) -> bool {
    let (message, mac) = (Message(message.to_vec()), Message(mac));
    match token.ask(Order::VerifyMac { key: name(key), ksn: Some(ksn), message, mac }).await {
        Ok(Answer::Verified(verified)) => verified,
        other => panic!("{ksn}: {other:?}"),
    }
}

async fn generate(token: &Token, key: &str, ksn: Ksn, message: &[u8]) -> Vec<u8> {
    let message = Message(message.to_vec());
    let order = Order::GenerateMac { key: name(key), ksn: Some(ksn), message, length: None };
    match token.ask(order).await {
        Ok(Answer::Mac { mut mac, .. }) => std::mem::take(&mut mac.0),
        other => panic!("{ksn}: {other:?}"),
    }
}
