//! PIN verification, asked of the token: every PVV and 3624 vector, reference blocks, and what must
//! not verify.

use harness::soft::pin::{PinFormat, seal_pin};
use harness::vectors;
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Order, PinKey, PinReference};
use hsm_adapter::register::{Ibm3624Profile, KeyAlgorithm, KeyProfile};
use hsm_adapter::vocabulary::{
    KeyLabel, KeyName, KeyRole, Ksn, Pan, PinBlock, PinBlockFormat, PinOffset, Pvki, Pvv,
};

use crate::vector_keys::VectorKeys;
use crate::vectors_token::{Token, flipped, without_text};

const ZONE: &str = "1C31AB64FB573D459EF12CBC4CD95DA2";
const ZONE_AES: &str = "6CC1288ED5E7494CD11F0A8C1A54265A";

#[tokio::test]
async fn every_pvv_verifies_its_pin_and_no_other() {
    let mut keys = VectorKeys::default();
    let zone = zone(&mut keys, KeyAlgorithm::Tdes, ZONE);
    let mut cases = Vec::new();
    for v in vectors::load("pvv") {
        let pvki = Pvki::try_from(v.text("pvki").parse::<u8>().unwrap()).unwrap();
        let with = |profile: &mut KeyProfile| profile.pvki = vec![pvki];
        let role = KeyRole::PinVerificationPvv;
        let key = keys.plan(role, KeyAlgorithm::Tdes, v.hex("pvk"), with);
        cases.push((v, pvki, key));
    }
    let token = Token::with(keys).await;

    for (at, (v, pvki, key)) in cases.iter().enumerate() {
        let (pan, pin, pvv) = (v.text("pan"), v.text("pin"), v.text("pvv"));
        let with = |pvki: Pvki, pvv: &str| PinReference::Pvv {
            key: name(key),
            pvki,
            pvv: Pvv::parse(pvv).unwrap(),
        };
        let ask = async |pin: &str, reference| {
            let block = sealed(PinFormat::Iso0, ZONE, pan, pin);
            verify(&token, pan, block, side(&zone, PinBlockFormat::Iso0), reference).await
        };
        let place = at % 4;

        assert_eq!(ask(pin, with(*pvki, pvv)).await, Ok(true), "{v}");
        assert_eq!(ask(&format!("{pin}99"), with(*pvki, pvv)).await, Ok(true), "{v}: four count");
        assert_eq!(ask(pin, with(*pvki, &one_up(pvv, place))).await, Ok(false), "{v}: its PVV");
        assert_eq!(ask(&one_up(pin, place), with(*pvki, pvv)).await, Ok(false), "{v}: its PIN");
        let other = Pvki::try_from((u8::from(*pvki) + 1) % 7).unwrap();
        assert_eq!(ask(pin, with(other, pvv)).await, not_for_this(), "{v}: an index not listed");
    }
    assert_eq!(cases.len(), 12);
    token.stop_with_nothing_left().await;
}

#[tokio::test]
async fn every_3624_offset_verifies_its_pin_and_no_other() {
    let mut keys = VectorKeys::default();
    let zone = zone(&mut keys, KeyAlgorithm::Tdes, ZONE);
    let mut cases = Vec::new();
    for v in vectors::load("ibm3624") {
        let rule = Ibm3624Profile {
            decimalisation_table: v.text("decimalization_table").into(),
            pan_offset: v.number("pan_verify_offset") as u8,
            pan_digits: v.number("pan_verify_length") as u8,
            pad: v.text("pan_pad").parse().unwrap(),
        };
        let with = |profile: &mut KeyProfile| profile.ibm3624 = Some(rule);
        let role = KeyRole::PinVerification3624;
        let key = keys.plan(role, KeyAlgorithm::Tdes, v.hex("pvk"), with);
        cases.push((v, key));
    }
    let token = Token::with(keys).await;

    for (at, (v, key)) in cases.iter().enumerate() {
        let (pan, pin, offset) = (v.text("pan"), v.text("pin"), v.text("offset"));
        let ask = async |pin: &str, offset: &str| {
            let block = sealed(PinFormat::Iso0, ZONE, pan, pin);
            let offset = PinOffset::parse(offset).unwrap();
            let reference = PinReference::Ibm3624 { key: name(key), offset };
            verify(&token, pan, block, side(&zone, PinBlockFormat::Iso0), reference).await
        };
        let place = at % pin.len();

        assert_eq!(ask(pin, offset).await, Ok(true), "{v}");
        assert_eq!(ask(pin, &one_up(offset, place)).await, Ok(false), "{v}: its offset");
        assert_eq!(ask(&one_up(pin, place), offset).await, Ok(false), "{v}: its PIN");
        assert_eq!(ask(pin, &format!("{offset}0")).await, Ok(false), "{v}: a longer offset");
        assert_eq!(ask(&format!("{pin}0"), offset).await, Ok(false), "{v}: a longer PIN");
    }
    assert_eq!(cases.len(), 11);
    token.stop_with_nothing_left().await;
}

/// Whatever format the PIN comes in, and whoever's key it is under.
#[tokio::test]
async fn a_reference_block_verifies_its_pin_and_no_other() {
    let mut keys = VectorKeys::default();
    let zone_tdes = zone(&mut keys, KeyAlgorithm::Tdes, ZONE);
    let zone_aes = zone(&mut keys, KeyAlgorithm::Aes, ZONE_AES);
    let terminal = vectors::load("dukpt_tdes").remove(0);
    let bdk = keys.base_derivation(terminal.hex("bdk"), |_| {});
    let value = "B013E5DA4C043457836180AEBFA1543276B00B3DBAD3BA7A";
    let reference = keys.plan(
        KeyRole::PinReference,
        KeyAlgorithm::Tdes,
        hex::decode(value).unwrap(),
        |profile| profile.formats = vec![PinBlockFormat::Iso0],
    );
    let token = Token::with(keys).await;
    let (pan, pin) = (terminal.text("pan"), terminal.text("pin"));
    let kept = |pin: &str, pan: &str| PinReference::Block {
        key: name(&reference),
        block: sealed(PinFormat::Iso0, value, pan, pin),
    };
    let dukpt = PinKey {
        key: name(&bdk),
        format: PinBlockFormat::Iso0,
        ksn: Some(Ksn::parse(terminal.text("ksn")).unwrap()),
    };
    use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
    let ways = [
        (sealed(PinFormat::Iso0, ZONE, pan, pin), side(&zone_tdes, Iso0)),
        (sealed(PinFormat::Iso1, ZONE, pan, pin), side(&zone_tdes, Iso1)),
        (sealed(PinFormat::Iso3, ZONE, pan, pin), side(&zone_tdes, Iso3)),
        (sealed(PinFormat::Iso4, ZONE_AES, pan, pin), side(&zone_aes, Iso4)),
        (PinBlock::new(terminal.hex("encrypted_pin_block")).unwrap(), dukpt),
    ];

    for (block, from) in ways {
        let ask =
            async |reference| verify(&token, pan, block.clone(), from.clone(), reference).await;
        assert_eq!(ask(kept(pin, pan)).await, Ok(true), "{from:?}");
        assert_eq!(ask(kept(&one_up(pin, 3), pan)).await, Ok(false), "{from:?}");
        assert_eq!(ask(kept(pin, "4012345678917")).await, Ok(false), "{from:?}: another PAN");
        let long = PinReference::Block {
            key: name(&reference),
            block: PinBlock::new(vec![1; 16]).unwrap(),
        };
        assert_eq!(ask(long).await, Ok(false), "{from:?}: a block of another size");
    }
    token.stop_with_nothing_left().await;
}

/// A block that holds no PIN is refused in one way, whatever it is compared with; a key of another
/// role is the key's fault.
#[tokio::test]
async fn a_block_without_a_pin_and_a_key_of_another_role_are_refused() {
    let mut keys = VectorKeys::default();
    let zone = zone(&mut keys, KeyAlgorithm::Tdes, ZONE);
    let one = Pvki::try_from(1).unwrap();
    let plan = |keys: &mut VectorKeys, role, with: fn(&mut KeyProfile)| {
        keys.plan(role, KeyAlgorithm::Tdes, hex::decode(ZONE).unwrap(), with)
    };
    let pvv = plan(&mut keys, KeyRole::PinVerificationPvv, |profile| {
        profile.pvki = vec![Pvki::try_from(1).unwrap()];
    });
    let ibm = plan(&mut keys, KeyRole::PinVerification3624, |profile| {
        profile.ibm3624 = Some(Ibm3624Profile {
            decimalisation_table: "0123456789012345".into(),
            pan_offset: 0,
            pan_digits: 16,
            pad: 'F',
        });
    });
    let kept = plan(&mut keys, KeyRole::PinReference, |profile| {
        profile.formats = vec![PinBlockFormat::Iso0];
    });
    let token = Token::with(keys).await;
    let pan = "4761737909457820";
    let good = || sealed(PinFormat::Iso0, ZONE, pan, "1234");
    let block_of = |label: &str| PinReference::Block { key: name(label), block: good() };
    let pvv_of = |label: &str| PinReference::Pvv {
        key: name(label),
        pvki: one,
        pvv: Pvv::parse("1234").unwrap(),
    };
    let ibm_of = |label: &str| PinReference::Ibm3624 {
        key: name(label),
        offset: PinOffset::parse("1234").unwrap(),
    };
    let from = || side(&zone, PinBlockFormat::Iso0);

    for reference in [pvv_of(&pvv), ibm_of(&ibm), block_of(&kept)] {
        let ask = async |block, from| verify(&token, pan, block, from, reference.clone()).await;
        assert!(ask(good(), from()).await.is_ok());
        for at in 0..24 {
            let bad = PinBlock::new(flipped(good().expose(), at)).unwrap();
            assert_eq!(ask(bad, from()).await, block_refused(), "{reference:?} {at}");
        }
        let long = PinBlock::new(vec![1; 16]).unwrap();
        assert_eq!(ask(long, from()).await, block_refused(), "{reference:?}");
        assert_eq!(ask(good(), side(&zone, PinBlockFormat::Iso4)).await, not_for_this());
        assert_eq!(ask(good(), side(&kept, PinBlockFormat::Iso0)).await, not_for_this());
        let unknown = Err(LinkError::Answered(Failure::UnknownKey));
        assert_eq!(ask(good(), side("no.such", PinBlockFormat::Iso0)).await, unknown);
    }
    for reference in
        [pvv_of(&ibm), pvv_of(&zone), ibm_of(&pvv), ibm_of(&kept), block_of(&pvv), block_of(&zone)]
    {
        let answer = verify(&token, pan, good(), from(), reference.clone()).await;
        assert_eq!(answer, not_for_this(), "{reference:?}");
    }
    token.stop_with_nothing_left().await;
}

fn zone(keys: &mut VectorKeys, algorithm: KeyAlgorithm, value: &str) -> String {
    keys.zone_key(KeyRole::ZonePinIn, algorithm, hex::decode(value).unwrap())
}

fn name(label: &str) -> KeyName {
    KeyLabel::parse(label).unwrap().into()
}

fn side(label: &str, format: PinBlockFormat) -> PinKey {
    PinKey { key: name(label), format, ksn: None }
}

fn sealed(format: PinFormat, key: &str, pan: &str, pin: &str) -> PinBlock {
    PinBlock::new(seal_pin(format, &hex::decode(key).unwrap(), pan, pin).unwrap()).unwrap()
}

/// The digits with the one at `place` one higher.
fn one_up(digits: &str, place: usize) -> String {
    let up = |(at, digit): (usize, u8)| {
        let digit = if at == place { (digit - b'0' + 1) % 10 + b'0' } else { digit };
        char::from(digit)
    };
    digits.bytes().enumerate().map(up).collect()
}

fn not_for_this() -> Result<bool, LinkError> {
    Err(LinkError::Answered(Failure::KeyNotForThis(String::new())))
}

fn block_refused() -> Result<bool, LinkError> {
    Err(LinkError::Answered(Failure::PinBlockRefused))
}

async fn verify(
    token: &Token,
    pan: &str,
    block: PinBlock,
    from: PinKey,
    reference: PinReference,
) -> Result<bool, LinkError> {
    let pan = Pan::parse(pan).unwrap();
    let answer = token.ask(Order::VerifyPin { pan, block, from, reference }).await;
    match answer {
        Ok(Answer::PinVerified { verified, key_version: 1 }) => Ok(verified),
        Ok(other) => panic!("{other:?}"),
        refused => without_text(refused).map(|()| true),
    }
}
