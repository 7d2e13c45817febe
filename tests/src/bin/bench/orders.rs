//! One right order of each operation, as a worker gets it.

use harness::acquirer::{Acquirer, Terminal};
use harness::demo_keys::DemoKeys;
use harness::soft::ibm3624::Rule;
use harness::soft::pin::{PinFormat, seal_pin};
use harness::soft::pvv::pvv;
use hsm_adapter::protocol::{Message, Order, PinKey, PinReference};
use hsm_adapter::register::{KeyAlgorithm, KeyProfile, MacProfile};
use hsm_adapter::vocabulary::{
    KeyLabel, KeyName, KeyRole, Ksn, MacAlgorithm, MacPadding, Pan, PinBlock, PinBlockFormat,
    PinOffset, Pvki, Pvv,
};
use softhsm::{PlannedKey, PlannedValue};

/// One operation, and the name of its raw calls in `pkcs11_floor`.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) floor: &'static str,
    pub(crate) order: Order,
}

pub(crate) const PAN: &str = "4761737909457820";
pub(crate) const PIN: &str = "1234";

/// Made up, as the demo's keys are.
const REFERENCE: [u8; 16] = *b"\x1c1\xabd\xfbW=E\x9e\xf1,\xbcL\xd9]\xa2";
const CBC: [u8; 16] = *b"\xb0\x13\xe5\xdaL\x04CF\x83a\x80\xae\xbf\xa1T2";

/// Keys that the demo has no use for.
pub(crate) fn more_keys() -> anyhow::Result<Vec<PlannedKey>> {
    let key = |label: &str, role, value: [u8; 16]| -> anyhow::Result<PlannedKey> {
        let profile = KeyProfile::new(KeyLabel::parse(label)?, role, KeyAlgorithm::Tdes);
        Ok(PlannedKey { profile, value: Some(PlannedValue(value.to_vec().into())) })
    };
    let mut reference = key("pin.reference", KeyRole::PinReference, REFERENCE)?;
    reference.profile.formats = vec![PinBlockFormat::Iso0];
    let mut cbc = key("zak.cbc", KeyRole::Mac, CBC)?;
    cbc.profile.mac = Some(MacProfile {
        algorithm: MacAlgorithm::CbcMac,
        padding: Some(MacPadding::One),
        length: 8,
        length_min: None,
        empty_message: false,
    });
    Ok(vec![reference, cbc])
}

/// Every operation that has a floor.
pub(crate) fn subjects() -> anyhow::Result<Vec<Subject>> {
    use PinBlockFormat::{Iso0, Iso4};
    let refused = |error| anyhow::anyhow!("{error:?}");
    let subject = |name, floor, order| Subject { name, floor, order };
    let a = Acquirer::a().pin_block(PIN, PAN, PinFormat::Iso0).map_err(refused)?;
    let b = Acquirer::b().pin_block(PIN, PAN, PinFormat::Iso4).map_err(refused)?;
    let (a, b) = (hex::decode(a)?, hex::decode(b)?);
    let zone_a = || side("zpk.acquirer-a", Iso0, None);
    let (billing, billing_aes) =
        (side("zpk.billing", Iso0, None)?, side("zpk.billing-aes", Iso4, None)?);
    let mut subjects = vec![
        subject("translate", "translate", translate(a.clone(), zone_a()?, billing.clone())?),
        subject(
            "translate_iso4",
            "translate_iso4",
            translate(b, side("zpk.acquirer-b", Iso4, None)?, billing_aes.clone())?,
        ),
    ];
    // Counters with three one-bits: so many steps has the floor.
    for (name, mut terminal, to) in [
        ("translate_dukpt_aes", Terminal::aes(7).after(41), billing_aes),
        ("translate_dukpt_tdes", Terminal::tdes(7).after(41), billing),
    ] {
        let sealed = terminal.seal(PIN, PAN)?;
        let from = side(sealed.key, to.format, Some(&sealed.ksn))?;
        subjects.push(subject(name, name, translate(hex::decode(&sealed.pin_block)?, from, to)?));
    }
    for (name, reference) in [
        ("pin_verify_pvv", pvv_of(PIN)?),
        ("pin_verify_3624", offset_of(PIN)?),
        ("pin_verify_reference", block_of(PIN)?),
    ] {
        subjects.push(subject(name, name, verify(a.clone(), zone_a()?, reference)?));
    }
    for (name, floor, key) in [
        ("mac_cbc", "cbc_mac", "zak.cbc"),
        ("mac_retail", "retail_mac", "zak.acquirer-a"),
        ("mac_cmac_tdes", "cmac_tdes", "zak.acquirer-c"),
        ("mac_cmac_aes", "cmac_aes", "zak.acquirer-b"),
        ("mac_hmac", "hmac", "zak.acquirer-d"),
    ] {
        subjects.push(subject(name, floor, mac(key, vec![0x5A; 64])?));
    }
    Ok(subjects)
}

pub(crate) fn side(key: &str, format: PinBlockFormat, ksn: Option<&str>) -> anyhow::Result<PinKey> {
    Ok(PinKey { key: name(key)?, format, ksn: ksn.map(Ksn::parse).transpose()? })
}

pub(crate) fn translate(block: Vec<u8>, from: PinKey, to: PinKey) -> anyhow::Result<Order> {
    Ok(Order::TranslatePin { pan: Pan::parse(PAN)?, block: PinBlock::new(block)?, from, to })
}

pub(crate) fn verify(
    block: Vec<u8>,
    from: PinKey,
    reference: PinReference,
) -> anyhow::Result<Order> {
    Ok(Order::VerifyPin { pan: Pan::parse(PAN)?, block: PinBlock::new(block)?, from, reference })
}

pub(crate) fn mac(key: &str, message: Vec<u8>) -> anyhow::Result<Order> {
    let message = Message(message);
    Ok(Order::GenerateMac { key: name(key)?, ksn: None, message, length: None })
}

/// The PVV that a card with this PIN has.
pub(crate) fn pvv_of(pin: &str) -> anyhow::Result<PinReference> {
    let pvv = pvv(&DemoKeys::load().value("pvk.issuer"), PAN, 1, pin)?;
    let (key, pvki) = (name("pvk.issuer")?, Pvki::try_from(1)?);
    Ok(PinReference::Pvv { key, pvki, pvv: Pvv::parse(&pvv)? })
}

/// The 3624 offset that a card with this PIN has.
pub(crate) fn offset_of(pin: &str) -> anyhow::Result<PinReference> {
    let rule = Rule { table: "0123456789012345".into(), from: 0, digits: 16, pad: 'F' };
    let offset = rule.offset(&DemoKeys::load().value("pvk.issuer-3624"), PAN, pin)?;
    Ok(PinReference::Ibm3624 { key: name("pvk.issuer-3624")?, offset: PinOffset::parse(&offset)? })
}

/// The block that an issuer keeps of this PIN.
fn block_of(pin: &str) -> anyhow::Result<PinReference> {
    let block = seal_pin(PinFormat::Iso0, &REFERENCE, PAN, pin)?;
    Ok(PinReference::Block { key: name("pin.reference")?, block: PinBlock::new(block)? })
}

fn name(label: &str) -> anyhow::Result<KeyName> {
    Ok(KeyLabel::parse(label)?.into())
}
