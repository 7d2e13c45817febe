//! Orders on a real token, by every way out: none leaves a session object behind.

use cryptoki::object::Attribute;

use super::attributes::{Part, creation_template};
use super::keys::KeyTable;
use super::own_token::{self, with_own_token};
use super::perform::perform;
use super::self_test;
use super::token::TokenSession;
use crate::error::Failure;
use crate::protocol::{Answer, Message, Order, PinKey, PinReference};
use crate::register::{Ibm3624Profile, KeyAlgorithm, KeyProfile, KeyRegister, MacProfile};
use crate::vocabulary::{
    KeyLabel, KeyName, KeyRole, Ksn, MacAlgorithm, MacPadding, Pan, PinBlock, PinBlockFormat,
    PinOffset, Pvki, Pvv,
};

const TEST: &str = "worker::perform_tests::no_way_out_of_an_order_leaves_a_session_object";
const PAN: &str = "4761737909457820";

#[test]
fn no_way_out_of_an_order_leaves_a_session_object() {
    with_own_token(TEST, |_| on_a_token_of_its_own());
}

fn on_a_token_of_its_own() {
    let token = own_token::open();
    let session = token.session().unwrap();
    for (profile, value) in keys() {
        import(&session, &profile, &value);
    }
    let register = KeyRegister::new(keys().into_iter().map(|(profile, _)| profile).collect());
    let nowhere = std::path::Path::new("keys.toml");
    let table = KeyTable::load(nowhere, register.unwrap(), &session).unwrap();
    let objects = || session.session.find_objects(&[Attribute::Token(false)]).unwrap().len();
    assert_eq!(objects(), 0);

    for (order, wanted) in orders() {
        let outcome = perform(&session, &table, &order);

        assert!(wanted.is(&outcome), "{order:?}: {outcome:?}");
        assert_eq!(objects(), 0, "{order:?}");
    }

    self_test::run(&session, &table.needs()).unwrap();
    assert_eq!(objects(), 0, "the self-test");

    // Calls that the token refuses half-way, with a derived key in hand.
    for object in [find(&session, "pvk@1"), find(&session, "zone.out@1")] {
        session.session.destroy_object(object).unwrap();
    }
    let device = || dukpt("bdk.tdes", PinBlockFormat::Iso0, TDES_KSN);
    for order in [
        translate(TDES_BLOCK, device(), zone("zone.out", PinBlockFormat::Iso0)),
        verify(TDES_BLOCK, device(), pvv()),
    ] {
        let outcome = perform(&session, &table, &order);

        assert!(matches!(outcome, Err(Failure::Token { .. })), "{outcome:?}");
        assert_eq!(objects(), 0, "{order:?}");
    }
}

/// pin_translation.json, a008 and a010.
const TDES_KSN: &str = "FFFF9876543210E00001";
const TDES_BLOCK: &str = "6DA68CC4906AA6C3";
const AES_KSN: &str = "123456789012345600000002";
const AES_BLOCK: &str = "3B8671AFF12B6435695DD3A0144720D3";

fn keys() -> Vec<(KeyProfile, Vec<u8>)> {
    use KeyAlgorithm::{Aes, Tdes};
    use PinBlockFormat::{Iso0, Iso3, Iso4};
    let key = |label: &str, role, algorithm, value: &str| {
        let profile = KeyProfile::new(KeyLabel::parse(label).unwrap(), role, algorithm);
        (profile, hex::decode(value).unwrap())
    };
    let double = "1C31AB64FB573D459EF12CBC4CD95DA2";
    let mac = |algorithm, padding| MacProfile {
        algorithm,
        padding,
        length: 8,
        length_min: Some(4),
        empty_message: false,
    };
    let mut keys = vec![
        key("zone.in", KeyRole::ZonePinIn, Tdes, double),
        key("zone.out", KeyRole::ZonePinOut, Tdes, double),
        key("zone.aes", KeyRole::ZonePinOut, Aes, double),
        key("bdk.tdes", KeyRole::BaseDerivation, Tdes, "0123456789ABCDEFFEDCBA9876543210"),
        key("bdk.aes", KeyRole::BaseDerivation, Aes, "FEDCBA9876543210F1F1F1F1F1F1F1F1"),
        key("bdk.short", KeyRole::BaseDerivation, Aes, "FEDCBA9876543210F1F1F1F1F1F1F1F1"),
        key("pvk", KeyRole::PinVerificationPvv, Tdes, double),
        key("ibm", KeyRole::PinVerification3624, Tdes, double),
        key("kept", KeyRole::PinReference, Tdes, double),
        key("mac", KeyRole::Mac, Tdes, double),
    ];
    for at in [0, 1] {
        keys[at].0.formats = vec![Iso0, Iso3];
    }
    keys[2].0.formats = vec![Iso4];
    keys[3].0.formats = vec![Iso0, Iso3];
    keys[3].0.mac = Some(mac(MacAlgorithm::Retail, Some(MacPadding::One)));
    keys[4].0.formats = vec![Iso4];
    keys[4].0.mac = Some(mac(MacAlgorithm::Cmac, None));
    keys[5].0.formats = vec![Iso4];
    keys[5].0.working_key_bits = Some(256);
    keys[6].0.pvki = vec![Pvki::try_from(1).unwrap()];
    keys[7].0.ibm3624 = Some(Ibm3624Profile {
        decimalisation_table: "0123456789012345".into(),
        pan_offset: 0,
        pan_digits: 16,
        pad: 'F',
    });
    keys[8].0.formats = vec![Iso0];
    keys[9].0.mac = Some(mac(MacAlgorithm::Retail, Some(MacPadding::Two)));
    keys
}

fn import(session: &TokenSession, profile: &KeyProfile, value: &[u8]) {
    let parts =
        [(Part::Whole, Some(profile.object_label())), (Part::Left, profile.left_object_label())];
    for (part, label) in parts {
        let Some(label) = label else { continue };
        let mut template = creation_template(profile, part, value, true);
        template.push(Attribute::Label(label.into()));
        session.session.create_object(&template).unwrap();
    }
}

fn find(session: &TokenSession, label: &str) -> cryptoki::object::ObjectHandle {
    session.session.find_objects(&[Attribute::Label(label.into())]).unwrap()[0]
}

/// How an order must end.
#[derive(Clone, Copy)]
enum Wanted {
    Done,
    Verified(bool),
    BlockRefused,
    NotForThis,
    LengthRefused,
}

impl Wanted {
    fn is(self, outcome: &Result<Answer, Failure>) -> bool {
        match self {
            Self::Done => matches!(outcome, Ok(Answer::Block { .. } | Answer::Mac { .. })),
            Self::Verified(wanted) => matches!(
                outcome,
                Ok(Answer::Verified(found) | Answer::PinVerified { verified: found, .. })
                    if *found == wanted
            ),
            Self::BlockRefused => matches!(outcome, Err(Failure::PinBlockRefused)),
            Self::NotForThis => matches!(outcome, Err(Failure::KeyNotForThis(_))),
            Self::LengthRefused => {
                matches!(outcome, Err(Failure::MacLength { .. } | Failure::MessageLength))
            }
        }
    }
}

fn orders() -> Vec<(Order, Wanted)> {
    use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
    use Wanted::{BlockRefused, Done, LengthRefused, NotForThis, Verified};
    let tdes = || dukpt("bdk.tdes", Iso0, TDES_KSN);
    let aes = || dukpt("bdk.aes", Iso4, AES_KSN);
    let (out, out_aes) = (|| zone("zone.out", Iso0), || zone("zone.aes", Iso4));
    let (bad, bad_long) = ("00".repeat(8), "00".repeat(16));
    let mut orders = vec![
        (translate(TDES_BLOCK, tdes(), out()), Done),
        (translate(TDES_BLOCK, tdes(), out_aes()), Done),
        (translate(AES_BLOCK, aes(), out()), Done),
        (translate(AES_BLOCK, aes(), tdes()), Done),
        (translate(TDES_BLOCK, tdes(), aes()), Done),
        (translate(&bad, tdes(), out()), BlockRefused),
        (translate(&bad_long, aes(), tdes()), BlockRefused),
        (translate(&bad_long, tdes(), out()), BlockRefused),
        (translate(&bad, zone("zone.in", Iso3), aes()), BlockRefused),
        (translate(&bad, dukpt("bdk.tdes", Iso0, AES_KSN), out()), BlockRefused),
        (
            translate(TDES_BLOCK, dukpt("bdk.tdes", Iso0, "FFFF9876543210E00000"), out()),
            BlockRefused,
        ),
        (translate(AES_BLOCK, dukpt("bdk.short", Iso4, AES_KSN), out()), NotForThis),
        (translate(TDES_BLOCK, tdes(), dukpt("bdk.short", Iso4, AES_KSN)), NotForThis),
        (translate(TDES_BLOCK, tdes(), zone("zone.out", Iso1)), NotForThis),
        (translate(TDES_BLOCK, zone("bdk.tdes", Iso0), out()), NotForThis),
    ];
    let ibm =
        || PinReference::Ibm3624 { key: name("ibm"), offset: PinOffset::parse("1234").unwrap() };
    let kept = |block: &str| PinReference::Block { key: name("kept"), block: block_of(block) };
    for reference in [pvv(), ibm(), kept("46CF9D38F2FDD393")] {
        orders.extend([
            (verify(TDES_BLOCK, tdes(), reference.clone()), Verified(false)),
            (verify(AES_BLOCK, aes(), reference.clone()), Verified(false)),
            (verify(&bad, tdes(), reference.clone()), BlockRefused),
            (verify(&bad_long, aes(), reference), BlockRefused),
        ]);
    }
    orders.push((verify(TDES_BLOCK, tdes(), kept("46CF9D38F2FDD392")), Verified(true)));
    for (key, ksn, other) in [("bdk.tdes", TDES_KSN, AES_KSN), ("bdk.aes", AES_KSN, TDES_KSN)] {
        orders.extend([
            (generate(key, ksn, "message", None), Done),
            (generate(key, ksn, "message", Some(3)), LengthRefused),
            (generate(key, ksn, "", None), LengthRefused),
            (generate(key, other, "message", None), NotForThis),
            (generate("mac", ksn, "message", None), NotForThis),
            (generate("bdk.short", AES_KSN, "message", None), NotForThis),
            (verify_mac(key, ksn, "message"), Verified(false)),
            (verify_mac(key, other, "message"), Verified(false)),
            (verify_mac(key, ksn, ""), LengthRefused),
        ]);
    }
    orders
}

fn name(label: &str) -> KeyName {
    KeyLabel::parse(label).unwrap().into()
}

fn zone(label: &str, format: PinBlockFormat) -> PinKey {
    PinKey { key: name(label), format, ksn: None }
}

fn dukpt(label: &str, format: PinBlockFormat, ksn: &str) -> PinKey {
    PinKey { key: name(label), format, ksn: Some(Ksn::parse(ksn).unwrap()) }
}

fn block_of(block: &str) -> PinBlock {
    PinBlock::new(hex::decode(block).unwrap()).unwrap()
}

fn pvv() -> PinReference {
    let (pvki, pvv) = (Pvki::try_from(1).unwrap(), Pvv::parse("0000").unwrap());
    PinReference::Pvv { key: name("pvk"), pvki, pvv }
}

fn translate(block: &str, from: PinKey, to: PinKey) -> Order {
    Order::TranslatePin { pan: Pan::parse(PAN).unwrap(), block: block_of(block), from, to }
}

fn verify(block: &str, from: PinKey, reference: PinReference) -> Order {
    Order::VerifyPin { pan: Pan::parse(PAN).unwrap(), block: block_of(block), from, reference }
}

fn generate(key: &str, ksn: &str, message: &str, length: Option<u8>) -> Order {
    let (key, ksn) = (name(key), Some(Ksn::parse(ksn).unwrap()));
    Order::GenerateMac { key, ksn, message: Message(message.into()), length }
}

fn verify_mac(key: &str, ksn: &str, message: &str) -> Order {
    let (key, ksn) = (name(key), Some(Ksn::parse(ksn).unwrap()));
    Order::VerifyMac { key, ksn, message: Message(message.into()), mac: Message(vec![0; 8]) }
}
