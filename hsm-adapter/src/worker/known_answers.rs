//! Known answers of DUKPT, PIN verification and CBC-MAC, for the self-test.
//!
//! Each case says which keys of a register can ask for it: a token that does not derive is no worse
//! for a register without base derivation keys. The values are those of tests/vectors; a PIN block
//! in format 0 under [`ZONE`] is that vector's PIN and PAN, enciphered with OpenSSL.

use crate::error::Failure;
use crate::operation::dukpt::working_key;
use crate::operation::side::{Purpose, Side};
use crate::operation::translate::translate;
use crate::operation::{mac, verify_pin};
use crate::protocol::PinReference;
use crate::register::{Ibm3624Profile, KeyAlgorithm, KeyProfile, MacProfile};
use crate::vocabulary::{
    KeyLabel, KeyName, KeyRole, Ksn, MacAlgorithm, MacPadding, Malformed, Mode, Pan, PinBlock,
    PinBlockFormat, PinOffset, Pvki, Pvv,
};
use crate::worker::passing::PassingKey;
use crate::worker::token::TokenSession;

/// What one case came to.
pub(crate) struct Proof {
    pub(crate) operation: &'static str,
    pub(crate) mode: Mode,
    pub(crate) calls: &'static str,
    /// False for wrong bytes.
    pub(crate) outcome: Result<bool, Failure>,
}

/// Runs the cases that some key in use can ask for. `modes` tells those of the keys of a kind.
pub(crate) fn run(
    session: &TokenSession,
    modes: impl Fn(KeyRole, KeyAlgorithm) -> Vec<Mode>,
) -> Vec<Proof> {
    let in_use = |role, algorithm| !modes(role, algorithm).is_empty();
    let mut proofs = Vec::new();
    for case in &DUKPT {
        for mode in modes(KeyRole::BaseDerivation, case.family) {
            let (operation, calls, outcome) = (case.name, case.calls, case.run(session, mode));
            proofs.push(Proof { operation, mode, calls, outcome });
        }
    }
    for case in VERIFICATIONS.iter().filter(|case| in_use(case.role, KeyAlgorithm::Tdes)) {
        let (operation, mode, calls) = (case.name, Mode::InWorker, "decrypt, encrypt DES3_ECB");
        proofs.push(Proof { operation, mode, calls, outcome: case.run(session) });
    }
    for case in CBC_MACS.iter().filter(|case| in_use(KeyRole::Mac, case.cipher)) {
        let (operation, mode) = (case.name, Mode::InToken);
        proofs.push(Proof { operation, mode, calls: case.calls, outcome: case.run(session) });
    }
    proofs
}

/// A device's PIN block in, the same PIN out and in again, a device's MAC.
struct Dukpt {
    name: &'static str,
    calls: &'static str,
    family: KeyAlgorithm,
    format: PinBlockFormat,
    bdk: &'static str,
    working_key_bits: Option<u16>,
    ksn: &'static str,
    pan: &'static str,
    block: &'static str,
    /// Format 0 under [`ZONE`].
    zone_block: &'static str,
    mac: (MacAlgorithm, Option<MacPadding>),
    message: &'static str,
    device_mac: &'static str,
}

const ZONE: &str = "1C31AB64FB573D459EF12CBC4CD95DA2";
const AES_DUKPT: Dukpt = Dukpt {
    name: "AES-128 DUKPT",
    calls: "derive AES_ECB_ENCRYPT_DATA",
    family: KeyAlgorithm::Aes,
    format: PinBlockFormat::Iso4,
    bdk: "19FFAC2C9FCF7F3EE657A1B2812176D9",
    working_key_bits: Some(128),
    ksn: "FEDCBA987654321000000003",
    pan: "47617395715373734",
    block: "3B5C3B66A14C5DA4D55CB2C4E3BA5CEA",
    zone_block: "D9F7731288849EEA",
    mac: (MacAlgorithm::Cmac, None),
    message: "313233343536373839",
    device_mac: "F67D6EA0214A5EC51162F3F6BA9441F2",
};

/// dukpt_aes.json a023, a027 and a025, dukpt_tdes.json a014.
const DUKPT: [Dukpt; 4] = [
    AES_DUKPT,
    Dukpt {
        name: "AES-192 DUKPT",
        bdk: "6F569AD8E77C4BDD55C7BDC6D6D1B249509B4BAA78A87561",
        working_key_bits: Some(192),
        ksn: "CAFEBABE0000000200000007",
        pan: "47617305921490487",
        block: "D631564E0E92C92B65A38F33A0A306E1",
        zone_block: "259140AF837579A8",
        message: "37",
        device_mac: "8A1FE2D782DEB968D5591278FB466BE1",
        ..AES_DUKPT
    },
    Dukpt {
        name: "AES-256 DUKPT",
        bdk: "E6A7403A2D9AB3C7803CD34C76DC1014FEFB978AEED6031358A80E34FB375953",
        working_key_bits: Some(256),
        ksn: "CAFEBABE0000000100000005",
        pan: "47617303575864487",
        block: "AB2F446EA55118D095C1EDF73D3FEF48",
        zone_block: "0E9114ABBFB02EE8",
        message: "3430313233343536373839303944393837",
        device_mac: "4D0ED5587F96BE0B74370E17DFC30EA0",
        ..AES_DUKPT
    },
    Dukpt {
        name: "TDES DUKPT",
        calls: "encrypt DES3_ECB; register steps in worker memory",
        family: KeyAlgorithm::Tdes,
        format: PinBlockFormat::Iso0,
        bdk: "0123456789ABCDEFFEDCBA9876543210",
        working_key_bits: None,
        ksn: "FFFF9876543210EFF800",
        pan: "4012345678909",
        block: "33365F5CC6F23C35",
        zone_block: "B4368D6151A6A0C9",
        mac: (MacAlgorithm::Retail, Some(MacPadding::One)),
        message: "3430313233343536373839303944393837",
        device_mac: "23E3CB62",
    },
];

impl Dukpt {
    fn run(&self, session: &TokenSession, mode: Mode) -> Result<bool, Failure> {
        let device_mac = bytes(self.device_mac);
        let (algorithm, padding) = self.mac;
        let mut base = profile(KeyRole::BaseDerivation, self.family);
        base.formats = vec![self.format];
        base.mode = mode;
        base.working_key_bits = self.working_key_bits;
        base.mac = Some(mac_profile(algorithm, padding, device_mac.len()));
        let bdk = PassingKey::create(session, base, &bytes(self.bdk))?;
        let ksn = Ksn::parse(self.ksn).map_err(compiled_in)?;
        let derive = |purpose| working_key(session, &bdk.key, &ksn, purpose);
        let pan = Pan::parse(self.pan).map_err(compiled_in)?;
        let zone = |purpose| zone(session, purpose, mode);
        let (zone_in, zone_out) = (zone(Purpose::PinIn)?, zone(Purpose::PinOut)?);
        let pass = |block: &PinBlock, from: (&PassingKey<'_>, _), to: (&PassingKey<'_>, _)| {
            let from = Side { key: &from.0.key, format: from.1 };
            let to = Side { key: &to.0.key, format: to.1 };
            translate(session, &pan, block, &from, &to)
        };
        let (iso0, format) = (PinBlockFormat::Iso0, self.format);

        let device_in = derive(Purpose::PinIn)?;
        let arrived = pass(&block(self.block)?, (&device_in, format), (&zone_out, iso0))?;
        let device_out = derive(Purpose::PinOut)?;
        let left = pass(&arrived, (&zone_in, iso0), (&device_out, format))?;
        let again = pass(&left, (&device_in, format), (&zone_out, iso0))?;

        let message = bytes(self.message);
        let verifier = derive(Purpose::MacVerify)?;
        let mut wrong = device_mac.clone();
        wrong[0] ^= 1;
        Ok(arrived == block(self.zone_block)?
            && again == arrived
            && mac::verify(session, &verifier.key, &message, &device_mac)?
            && !mac::verify(session, &verifier.key, &message, &wrong)?)
    }
}

/// A PIN that verifies, and a reference that it does not match.
struct Verification {
    name: &'static str,
    role: KeyRole,
    key: &'static str,
    pan: &'static str,
    /// Format 0 under [`ZONE`].
    zone_block: &'static str,
    right: &'static str,
    wrong: &'static str,
}

/// pvv.json a012 (it takes the second scan), ibm3624.json a006, pin_translation.json a001.
const VERIFICATIONS: [Verification; 3] = [
    Verification {
        name: "verify a PIN by PVV",
        role: KeyRole::PinVerificationPvv,
        key: "E5CBEC1079E0F17A58B61061FEEA7FC2",
        pan: "4237676445849585",
        zone_block: "B6E3F5BDC33EB6C8",
        right: "2651",
        wrong: "2650",
    },
    Verification {
        name: "verify a PIN by IBM 3624 offset",
        role: KeyRole::PinVerification3624,
        key: "F2A4195D20D94CBFD09451EC347C166D",
        pan: "4761730651572961",
        zone_block: "C51B1C986A31B43B",
        right: "97238",
        wrong: "97239",
    },
    Verification {
        name: "verify a PIN by reference block",
        role: KeyRole::PinReference,
        key: "B013E5DA4C043457836180AEBFA1543276B00B3DBAD3BA7A",
        pan: "4761737909457820",
        zone_block: "46CF9D38F2FDD392",
        right: "8930E12067D92AB9",
        wrong: "8930E12067D92AB8",
    },
];

impl Verification {
    fn run(&self, session: &TokenSession) -> Result<bool, Failure> {
        let one = Pvki::try_from(1).map_err(compiled_in)?;
        let mut own = profile(self.role, KeyAlgorithm::Tdes);
        own.pvki = vec![one];
        own.ibm3624 = Some(Ibm3624Profile {
            decimalisation_table: "0123456789012345".into(),
            pan_offset: 4,
            pan_digits: 11,
            pad: 'F',
        });
        let name = KeyName::from(own.label.clone());
        let key = PassingKey::create(session, own, &bytes(self.key))?;
        let zone = zone(session, Purpose::PinIn, Mode::InWorker)?;
        let from = Side { key: &zone.key, format: PinBlockFormat::Iso0 };
        let pan = Pan::parse(self.pan).map_err(compiled_in)?;
        let zone_block = block(self.zone_block)?;
        let verify = |value: &str| {
            let key_name = name.clone();
            let reference = if self.role == KeyRole::PinVerificationPvv {
                let pvv = Pvv::parse(value).map_err(compiled_in)?;
                PinReference::Pvv { key: key_name, pvki: one, pvv }
            } else if self.role == KeyRole::PinVerification3624 {
                let offset = PinOffset::parse(value).map_err(compiled_in)?;
                PinReference::Ibm3624 { key: key_name, offset }
            } else {
                PinReference::Block { key: key_name, block: block(value)? }
            };
            verify_pin::verify(session, &pan, &zone_block, &from, &key.key, &reference)
        };
        Ok(verify(self.right)? && !verify(self.wrong)?)
    }
}

/// A CBC-MAC with padding 2.
struct CbcMac {
    name: &'static str,
    calls: &'static str,
    cipher: KeyAlgorithm,
    key: &'static str,
    mac: &'static str,
}

/// mac_iso9797_alg1.json a011 and a017: one message.
const CBC_MESSAGE: &str = "3430313233343536373839303944393837";
const CBC_MACS: [CbcMac; 2] = [
    CbcMac {
        name: "TDES CBC-MAC",
        calls: "encrypt DES3_CBC",
        cipher: KeyAlgorithm::Tdes,
        key: "5E57C29D5DADD558BA7AB9F7347A3BD3B06BF245CD57CEE0",
        mac: "76FA38AB74F95905",
    },
    CbcMac {
        name: "AES CBC-MAC",
        calls: "encrypt AES_CBC",
        cipher: KeyAlgorithm::Aes,
        key: "BA9CCADA427B7962722D07B57BD3D18ACCBA7C3936736B954045B82E028FBDCD",
        mac: "13C4B7D6736543C6D76C9AB4EB2F9C83",
    },
];

impl CbcMac {
    fn run(&self, session: &TokenSession) -> Result<bool, Failure> {
        let wanted = bytes(self.mac);
        let mut own = profile(KeyRole::Mac, self.cipher);
        let padding = Some(MacPadding::Two);
        own.mac = Some(mac_profile(MacAlgorithm::CbcMac, padding, wanted.len()));
        let key = PassingKey::create(session, own, &bytes(self.key))?;
        Ok(mac::generate(session, &key.key, &bytes(CBC_MESSAGE), None)? == wanted)
    }
}

/// The zone key of all cases.
fn zone(session: &TokenSession, purpose: Purpose, mode: Mode) -> Result<PassingKey<'_>, Failure> {
    let mut own = profile(purpose.role(), KeyAlgorithm::Tdes);
    own.mode = mode;
    own.formats = vec![PinBlockFormat::Iso0];
    Ok(PassingKey::create(session, own, &bytes(ZONE))?)
}

fn profile(role: KeyRole, algorithm: KeyAlgorithm) -> KeyProfile {
    let label = KeyLabel::parse("known-answer").expect("twelve characters of the allowed set");
    KeyProfile::new(label, role, algorithm)
}

fn mac_profile(algorithm: MacAlgorithm, padding: Option<MacPadding>, length: usize) -> MacProfile {
    let (length, length_min, empty_message) = (length as u8, None, false);
    MacProfile { algorithm, padding, length, length_min, empty_message }
}

fn block(compiled: &str) -> Result<PinBlock, Failure> {
    PinBlock::new(bytes(compiled)).map_err(compiled_in)
}

fn bytes(compiled_in: &str) -> Vec<u8> {
    hex::decode(compiled_in).expect("constants of this file, which its test decodes")
}

fn compiled_in(_: Malformed) -> Failure {
    Failure::PinBlockRefused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_in_texts_are_hex() {
        for case in &DUKPT {
            for text in [case.bdk, case.block, case.zone_block, case.message, case.device_mac] {
                assert!(!bytes(text).is_empty(), "{}", case.name);
            }
        }
        for case in &VERIFICATIONS {
            assert!(!bytes(case.key).is_empty() && !bytes(case.zone_block).is_empty());
        }
        for case in &CBC_MACS {
            assert!(!bytes(case.key).is_empty() && !bytes(case.mac).is_empty());
        }
    }
}
