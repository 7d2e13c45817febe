//! TR-31 / X9.143 key blocks: what a block says of its key, and the key in it.
//!
//! The header is read strictly, and what is not known is refused by name. The keys that open a block
//! are derived in the token from the protection key. SoftHSM can do no more than that, so the key
//! itself passes through this process's memory, zeroized. Versions B and D have their MAC over the
//! clear key: it is deciphered, the MAC is compared in constant time, and only then is a bit of it
//! looked at. Every error names what is wrong and never a value.

mod header;
mod protection;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub(crate) use self::header::{Block, Version};
use super::check_value::CheckValues;
use crate::error::Failure;
use crate::register::{KeyAlgorithm, KeyProfile, MacUse};
use crate::vocabulary::{KcvMethod, KeyRole, MacAlgorithm};
use crate::worker::keys::LoadedKey;
use crate::worker::token::TokenSession;

/// A key in the clear, on its way from a block to the token. Zeroized, and never printed.
pub(crate) struct ClearKey(Zeroizing<Vec<u8>>);

impl ClearKey {
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for ClearKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClearKey(redacted)")
    }
}

fn refused(why: impl Into<String>) -> Failure {
    Failure::KeyBlockRefused(why.into())
}

/// Whether the block's usage, algorithm and mode of use allow what the profile wants.
///
/// Errors: `KeyBlockRefused`.
pub(crate) fn fits(block: &Block<'_>, profile: &KeyProfile) -> Result<(), Failure> {
    if block.algorithm != profile.algorithm {
        return Err(refused("the profile names another algorithm than the block"));
    }
    let (role, usage, mode) = (profile.role, block.usage, block.mode);
    let wanted: &[char] = match (usage, role) {
        ("P0", KeyRole::ZonePinIn) => &['B', 'D'],
        ("P0", KeyRole::ZonePinOut | KeyRole::PinReference) => &['B', 'E'],
        ("M0" | "M1" | "M3" | "M6" | "M7", KeyRole::Mac) => {
            let algorithm = match usage {
                "M3" => MacAlgorithm::Retail,
                "M6" => MacAlgorithm::Cmac,
                "M7" => MacAlgorithm::HmacSha256,
                _ => MacAlgorithm::CbcMac,
            };
            if profile.mac.is_some_and(|mac| mac.algorithm != algorithm) {
                return Err(refused(format!("usage {usage} is for {algorithm} alone")));
            }
            match profile.mac_use {
                None => &['C'],
                Some(MacUse::Generate) => &['C', 'G'],
                Some(MacUse::Verify) => &['C', 'V'],
            }
        }
        ("B0", KeyRole::BaseDerivation) => &['X', 'N'],
        ("K1", KeyRole::KeyBlockProtection) => &['B', 'D', 'N'],
        ("V1", KeyRole::PinVerification3624) | ("V2", KeyRole::PinVerificationPvv) => {
            &['C', 'V', 'N']
        }
        _ => return Err(refused(format!("usage {usage} does not make a {role} key"))),
    };
    if wanted.contains(&mode) {
        return Ok(());
    }
    let remedy = if role == KeyRole::Mac && matches!(mode, 'G' | 'V') {
        "; a profile with `mac_use` may want one half"
    } else {
        ""
    };
    Err(refused(format!("its mode of use {mode} allows less than a {role} key does{remedy}")))
}

/// The key in the block. Nothing of it is used before the block's MAC has been found right.
///
/// Errors: `KeyBlockRefused`, `KeyNotForThis` for a protection key that does not open this version,
/// and the token's own.
pub(crate) fn open(
    session: &TokenSession,
    kbpk: &LoadedKey,
    block: &Block<'_>,
) -> Result<ClearKey, Failure> {
    let opened = match block.version {
        Version::D => protection::open_d(session, kbpk, block)?,
        Version::B => protection::open_b(session, kbpk, block)?,
        Version::A | Version::C => protection::open_variant(session, kbpk, block)?,
    };
    let mut key = clear_key(block.algorithm, &opened.payload)?;
    // Any AES key is stronger than TDES, and HMAC-SHA-256 is no stronger than its hash.
    let tdes_under_aes = block.algorithm == KeyAlgorithm::Tdes && block.version == Version::D;
    if opened.protection_bytes < key.0.len().min(32) && !tdes_under_aes {
        return Err(refused("the protection key is weaker than the key in the block"));
    }
    // FIPS 198-1 fills a short key with zeros anyway, and some tokens want 32 bytes.
    if block.algorithm == KeyAlgorithm::Hmac && key.0.len() < 32 {
        let mut filled = Zeroizing::new(vec![0; 32]);
        filled[..key.0.len()].copy_from_slice(&key.0);
        key = ClearKey(filled);
    }
    Ok(key)
}

/// The key of a payload: two bytes of length in bits, the key, padding up to the longest key of its
/// kind at most.
fn clear_key(algorithm: KeyAlgorithm, payload: &[u8]) -> Result<ClearKey, Failure> {
    let bits = payload.first_chunk().copied().map(u16::from_be_bytes).unwrap_or_default();
    let (bits, bytes) = (usize::from(bits), usize::from(bits) / 8);
    if bits == 64 && algorithm == KeyAlgorithm::Tdes {
        return Err(refused("its key is single DES"));
    }
    let (fits, longest) = match algorithm {
        KeyAlgorithm::Tdes => (matches!(bytes, 16 | 24), 24),
        KeyAlgorithm::Aes => (matches!(bytes, 16 | 24 | 32), 32),
        KeyAlgorithm::Hmac => (matches!(bytes, 16..=64), 64),
        KeyAlgorithm::Ec | KeyAlgorithm::Ed25519 => (false, 0),
    };
    if !bits.is_multiple_of(8) || !fits {
        return Err(refused("its key has a length that its algorithm does not have"));
    }
    if payload.len() > (2_usize + longest).next_multiple_of(16) {
        return Err(refused("its padding is longer than any key of its algorithm"));
    }
    let key = payload.get(2..2 + bytes).ok_or_else(|| refused("its key is cut short"))?;
    let mut key = Zeroizing::new(key.to_vec());
    if algorithm == KeyAlgorithm::Tdes {
        adjust_parity(&mut key);
        let parts: Vec<&[u8]> = key.chunks(8).collect();
        if parts.windows(2).any(|pair| pair[0].ct_eq(pair[1]).into()) {
            return Err(refused("two parts of its key are equal: that is single DES"));
        }
    }
    Ok(ClearKey(key))
}

/// Odd parity in each byte, as DES has it: some tokens refuse anything else.
fn adjust_parity(key: &mut [u8]) {
    for byte in key {
        *byte ^= u8::from((*byte).count_ones().is_multiple_of(2));
    }
}

/// Compares the KC block, when there is one, with the check values of the key that came out.
///
/// Errors: `KeyBlockRefused`.
pub(crate) fn check_kc(block: &Block<'_>, values: &CheckValues) -> Result<(), Failure> {
    let Some(stated) = block.check_value("KC")? else { return Ok(()) };
    let found = values.by(stated.method);
    same_left(found, &stated.left, "KC")
}

/// A check value as KC and KP carry it: two hex digits of method, then 2 to 5 bytes in hex.
pub(crate) struct StatedValue {
    method: KcvMethod,
    left: Vec<u8>,
}

fn same_left(found: Option<&[u8]>, stated: &[u8], id: &str) -> Result<(), Failure> {
    let found = found.and_then(|found| found.get(..stated.len()));
    match found {
        Some(found) if bool::from(found.ct_eq(stated)) => Ok(()),
        Some(_) => Err(refused(format!("its {id} block states the check value of another key"))),
        None => {
            Err(refused(format!("its {id} block states a check value that cannot be compared")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::MacProfile;
    use crate::vocabulary::{KeyBlockText, KeyLabel};

    /// A block of the right form: its MAC is nobody's.
    fn text(version: char, usage: &str, algorithm: char, mode: char) -> KeyBlockText {
        let (key, mac) = if version == 'D' { (64, 32) } else { (48, 16) };
        let length = 16 + key + mac;
        let sealed = "0".repeat(key + mac);
        let text = format!("{version}{length:04}{usage}{algorithm}{mode}00E0000{sealed}");
        KeyBlockText::parse(&text).unwrap()
    }

    fn profile(role: KeyRole, algorithm: KeyAlgorithm, mac: Option<MacAlgorithm>) -> KeyProfile {
        let label = KeyLabel::parse("key.a").unwrap();
        let mac = mac.map(|algorithm| MacProfile {
            algorithm,
            padding: None,
            length: 8,
            length_min: None,
            empty_message: false,
        });
        KeyProfile { mac, ..KeyProfile::new(label, role, algorithm) }
    }

    fn why(outcome: Result<(), Failure>) -> String {
        match outcome {
            Err(Failure::KeyBlockRefused(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Every usage with every mode of use, as every role: what is not in this list is refused.
    #[test]
    fn usage_and_mode_of_use_allow_one_role() {
        let allowed = [
            ("P0", KeyRole::ZonePinIn, None, None, "BD"),
            ("P0", KeyRole::ZonePinOut, None, None, "BE"),
            ("P0", KeyRole::PinReference, None, None, "BE"),
            ("M0", KeyRole::Mac, Some(MacAlgorithm::CbcMac), None, "C"),
            ("M1", KeyRole::Mac, Some(MacAlgorithm::CbcMac), None, "C"),
            ("M3", KeyRole::Mac, Some(MacAlgorithm::Retail), None, "C"),
            ("M3", KeyRole::Mac, Some(MacAlgorithm::Retail), Some(MacUse::Generate), "CG"),
            ("M3", KeyRole::Mac, Some(MacAlgorithm::Retail), Some(MacUse::Verify), "CV"),
            ("M6", KeyRole::Mac, Some(MacAlgorithm::Cmac), None, "C"),
            ("M6", KeyRole::Mac, Some(MacAlgorithm::Cmac), Some(MacUse::Verify), "CV"),
            ("B0", KeyRole::BaseDerivation, None, None, "XN"),
            ("K1", KeyRole::KeyBlockProtection, None, None, "BDN"),
            ("V1", KeyRole::PinVerification3624, None, None, "CVN"),
            ("V2", KeyRole::PinVerificationPvv, None, None, "CVN"),
        ];
        let roles = [
            KeyRole::ZonePinIn,
            KeyRole::ZonePinOut,
            KeyRole::PinReference,
            KeyRole::Mac,
            KeyRole::BaseDerivation,
            KeyRole::KeyBlockProtection,
            KeyRole::PinVerification3624,
            KeyRole::PinVerificationPvv,
            KeyRole::QueueKek,
            KeyRole::AuditSigning,
        ];
        let macs = [MacAlgorithm::CbcMac, MacAlgorithm::Retail, MacAlgorithm::Cmac];
        let halves = [None, Some(MacUse::Generate), Some(MacUse::Verify)];
        let usages = ["P0", "M0", "M1", "M3", "M6", "B0", "K1", "V1", "V2"];
        let mut taken = 0;
        for (usage, mode) in usages.iter().flat_map(|u| "BCDEGNSVXY".chars().map(move |m| (*u, m)))
        {
            let text = text('B', usage, 'T', mode);
            let block = Block::parse(&text);
            for role in roles {
                let macs: Vec<_> = if role == KeyRole::Mac {
                    macs.iter().copied().map(Some).collect()
                } else {
                    vec![None]
                };
                for (mac, half) in macs.into_iter().flat_map(|mac| halves.map(|half| (mac, half))) {
                    if half.is_some() && role != KeyRole::Mac {
                        continue;
                    }
                    let mut wanted = profile(role, KeyAlgorithm::Tdes, mac);
                    wanted.mac_use = half;
                    let is_allowed = |row: &(&str, KeyRole, _, _, &str)| {
                        (row.0, row.1, row.2, row.3) == (usage, role, mac, half)
                            && row.4.contains(mode)
                    };
                    // The halves of M0, M1 and M6 are as those of M3.
                    let listed = allowed.iter().any(is_allowed)
                        || half.is_some()
                            && matches!(
                                (usage, mac),
                                ("M0" | "M1", Some(MacAlgorithm::CbcMac))
                                    | ("M6", Some(MacAlgorithm::Cmac))
                            )
                            && (mode == 'C'
                                || half == Some(MacUse::Generate) && mode == 'G'
                                || half == Some(MacUse::Verify) && mode == 'V');

                    let fitting = block.as_ref().is_ok_and(|block| fits(block, &wanted).is_ok());

                    assert_eq!(fitting, listed, "{usage} {mode} as {role} {mac:?} {half:?}");
                    taken += usize::from(fitting);
                }
            }
        }
        assert_eq!(taken, 37);
    }

    #[test]
    fn what_no_role_has_is_refused_by_its_name() {
        for (version, usage, algorithm, mode, named) in [
            ('E', "P0", 'A', 'B', "version E"),
            ('F', "P0", 'A', 'B', "none of A, B, C, D"),
            ('D', "D0", 'A', 'B', "usage D0 (data encryption)"),
            ('D', "K0", 'A', 'B', "usage K0 (key encryption"),
            ('D', "C0", 'T', 'C', "usage C0 (card verification)"),
            ('D', "E0", 'T', 'X', "usage E0 (EMV)"),
            ('D', "B1", 'A', 'X', "usage B1 (DUKPT initial key)"),
            ('D', "M2", 'T', 'C', "usage M2 (MAC by"),
            ('D', "M4", 'T', 'C', "usage M4 (MAC by"),
            ('D', "M5", 'T', 'C', "usage M5 (MAC by"),
            ('D', "V0", 'T', 'C', "usage V0 (generic"),
            ('D', "ZZ", 'T', 'C', "usage is not known"),
            ('D', "P0", 'D', 'B', "single DES"),
            ('D', "P0", 'R', 'B', "asymmetric"),
            ('D', "P0", 'H', 'B', "does not go with algorithm H"),
            ('D', "M7", 'A', 'C', "does not go with algorithm A"),
            ('D', "P0", 'A', 'X', "does not go with this mode"),
            ('B', "P0", 'A', 'B', "weaker than its key"),
            ('D', "M7", 'H', 'C', "no HM block"),
        ] {
            let text = text(version, usage, algorithm, mode);

            let why = why(Block::parse(&text).map(drop));

            assert!(why.contains(named), "{named}: {why}");
        }
    }

    #[test]
    fn a_header_has_its_form_to_the_letter() {
        let good = text('D', "P0", 'A', 'B');
        assert!(Block::parse(&good).is_ok());
        let good = good.as_str();
        let changed = |at: usize, to: &str| {
            let mut text = good.to_owned();
            text.replace_range(at..at + to.len(), to);
            text
        };
        let with = |count: &str, blocks: &str| {
            let length = good.len() + blocks.len();
            format!("D{length:04}P0AB00E{count}00{blocks}{}", &good[16..])
        };
        for (text, named) in [
            (changed(1, "0113"), "length field"),
            (changed(1, "+112"), "four digits"),
            (changed(9, "c1"), "component"),
            (changed(9, "-1"), "key version"),
            (changed(11, "X"), "exportability"),
            (changed(12, "+0"), "two digits"),
            (changed(12, "01"), "optional blocks are not id"),
            (changed(14, "01"), "reserved"),
            (changed(20, "a"), "capital hex"),
            (changed(20, "G"), "capital hex"),
            (good[..16].replace("0112", "0016"), "whole cipher blocks"),
            (format!("{}{}", good[..16].replace("0112", "0048"), "0".repeat(32)), "whole cipher"),
            (with("01", "KS1012345678"), "not whole cipher blocks"),
            (with("01", "IK0C12345678"), "not whole cipher blocks"),
            (with("01", "IK0312345678ABCD"), "not id, length and data"),
            (with("01", "ik1012345678ABCD"), "not id, length and data"),
            (with("01", "IK000012345678AB"), "not id, length and data"),
            (with("02", "IK08AAAAIK08AAAA"), "stands twice"),
            (with("02", "PB08AAAAIK08AAAA"), "not the last"),
            (with("01", "KS1012345678ABCD"), "KS block belongs to TDES"),
            (with("01", "HM1012345678ABCD"), "HM block belongs"),
            (with("02", "KC0A020000PB0600"), "KC block is not"),
            (with("02", "KP0A01000GPB0600"), "KP block is not"),
        ] {
            let text = KeyBlockText::parse(&text).unwrap();

            let why = why(Block::parse(&text).map(drop));

            assert!(why.contains(named), "{named}: {why}");
        }
        for blocks in ["XY1012345678ABCD", "TS1012345678ABCD", "XY0002001012ABCD"] {
            let text = KeyBlockText::parse(&with("01", blocks)).unwrap();
            assert!(Block::parse(&text).is_ok(), "{blocks} is kept, known or not");
        }
    }

    #[test]
    fn a_payload_is_length_key_and_padding() {
        let payload = |bits: u16, bytes: usize| {
            let mut payload = bits.to_be_bytes().to_vec();
            payload.extend((1..=bytes as u8).cycle().take(bytes));
            payload
        };
        let key = clear_key(KeyAlgorithm::Aes, &payload(128, 46)).unwrap();
        assert_eq!(key.expose(), &payload(128, 46)[2..18]);
        let key = clear_key(KeyAlgorithm::Tdes, &payload(128, 30)).unwrap();
        assert!(key.expose().iter().all(|byte| byte.count_ones() % 2 == 1));
        let mut halves = payload(128, 30);
        halves.copy_within(2..10, 10);
        halves[10] ^= 1; // a parity bit makes no other key
        for (algorithm, payload, named) in [
            (KeyAlgorithm::Tdes, payload(64, 14), "single DES"),
            (KeyAlgorithm::Tdes, halves, "single DES"),
            (KeyAlgorithm::Tdes, payload(256, 46), "a length"),
            (KeyAlgorithm::Aes, payload(127, 30), "a length"),
            (KeyAlgorithm::Aes, payload(0, 30), "a length"),
            (KeyAlgorithm::Hmac, payload(120, 30), "a length"),
            (KeyAlgorithm::Hmac, payload(520, 78), "a length"),
            (KeyAlgorithm::Aes, payload(256, 30), "cut short"),
            (KeyAlgorithm::Aes, payload(128, 62), "padding"),
        ] {
            let why = why(clear_key(algorithm, &payload).map(drop));

            assert!(why.contains(named), "{named}: {why}");
        }
    }
}
