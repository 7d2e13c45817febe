//! The clear part of a key block, read strictly.

use super::{StatedValue, refused};
use crate::error::Failure;
use crate::register::{Exportability, KeyAlgorithm};
use crate::vocabulary::{KcvMethod, KeyBlockText};

/// How key and header are bound to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// TDES variants, MAC of 4 bytes.
    A,
    /// TDES, derived keys, CMAC of 8 bytes.
    B,
    /// As A.
    C,
    /// AES, derived keys, CMAC of 16 bytes.
    D,
}

impl Version {
    fn block_bytes(self) -> usize {
        match self {
            Self::A | Self::B | Self::C => 8,
            Self::D => 16,
        }
    }

    fn mac_bytes(self) -> usize {
        match self {
            Self::A | Self::C => 4,
            Self::B => 8,
            Self::D => 16,
        }
    }
}

/// A key block taken apart. Its usage, algorithm and mode of use go together; whether its MAC is
/// right is not known yet.
#[derive(Debug)]
pub(crate) struct Block<'t> {
    pub(crate) version: Version,
    /// One of the usages that a role here has: `P0`, `M3`, ...
    pub(crate) usage: &'t str,
    pub(crate) algorithm: KeyAlgorithm,
    pub(crate) mode: char,
    pub(crate) exportability: Exportability,
    /// Id and data. The header holds all of them, known or not, so that the MAC covers them.
    optional: Vec<(&'t str, &'t str)>,
    /// All that stands before the enciphered key.
    pub(crate) header: &'t str,
    pub(crate) sealed: Vec<u8>,
    pub(crate) mac: Vec<u8>,
}

/// Usages, with the algorithms and modes of use that X9.143 gives them.
const TAKEN: [(&str, &str, &str); 10] = [
    ("P0", "TA", "BDEN"),
    ("M0", "T", "CGVN"),
    ("M1", "TA", "CGVN"),
    ("M3", "T", "CGVN"),
    ("M6", "TA", "CGVN"),
    ("M7", "H", "CGVN"),
    ("B0", "TA", "XN"),
    ("K1", "TA", "BDEN"),
    ("V1", "T", "CGVN"),
    ("V2", "T", "CGVN"),
];

impl<'t> Block<'t> {
    /// Errors: `KeyBlockRefused`.
    pub(crate) fn parse(text: &'t KeyBlockText) -> Result<Self, Failure> {
        let text = text.as_str();
        let version = version(text)?;
        let stated = number(&text[1..5]).ok_or_else(|| refused("its length is not four digits"))?;
        if stated != text.len() {
            return Err(refused("its length field is not its length"));
        }
        let (usage, mode) = (&text[5..7], char::from(text.as_bytes()[8]));
        let (algorithms, modes) = usage_row(usage)?;
        let letter = char::from(text.as_bytes()[7]);
        let algorithm = algorithm(letter)?;
        if !algorithms.contains(letter) {
            return Err(refused(format!("usage {usage} does not go with algorithm {letter}")));
        }
        if version != Version::D && algorithm != KeyAlgorithm::Tdes {
            return Err(refused("its version protects under TDES, which is weaker than its key"));
        }
        if !modes.contains(mode) {
            return Err(refused(format!("usage {usage} does not go with this mode of use")));
        }
        key_version(&text[9..11])?;
        let exportability = match text.as_bytes()[11] {
            b'E' => Exportability::Trusted,
            b'S' => Exportability::Sensitive,
            b'N' => Exportability::Never,
            _ => return Err(refused("its exportability is none of E, S, N")),
        };
        if &text[14..16] != "00" {
            return Err(refused("its reserved field is not 00"));
        }
        let count = number(&text[12..14])
            .ok_or_else(|| refused("its number of optional blocks is not two digits"))?;
        let (optional, end) = optional_blocks(text, count, version)?;
        let (header, sealed) = text.split_at(end);
        let mut sealed =
            capital_hex(sealed).ok_or_else(|| refused("its enciphered part is not capital hex"))?;
        let key_bytes = sealed.len().checked_sub(version.mac_bytes());
        let Some(key_bytes) =
            key_bytes.filter(|bytes| *bytes > 0 && bytes.is_multiple_of(version.block_bytes()))
        else {
            return Err(refused("its enciphered part is not whole cipher blocks and a MAC"));
        };
        let mac = sealed.split_off(key_bytes);
        let block =
            Self { version, usage, algorithm, mode, exportability, optional, header, sealed, mac };
        block.check_optional()?;
        Ok(block)
    }

    fn optional(&self, id: &str) -> Option<&'t str> {
        self.optional.iter().find(|(other, _)| *other == id).map(|(_, data)| *data)
    }

    fn check_optional(&self) -> Result<(), Failure> {
        if self.optional("KS").is_some() && self.algorithm != KeyAlgorithm::Tdes {
            return Err(refused("a KS block belongs to TDES DUKPT; under AES it is IK"));
        }
        // Which hash an HMAC key is for is said there and nowhere else. 21 is SHA-256.
        match (self.optional("HM"), self.algorithm) {
            (Some("21"), KeyAlgorithm::Hmac) => {}
            (Some(_) | None, KeyAlgorithm::Hmac) => {
                return Err(refused("it has no HM block that says SHA-256"));
            }
            (Some(_), _) => return Err(refused("an HM block belongs to an HMAC key")),
            (None, _) => {}
        }
        for id in ["KC", "KP"] {
            self.check_value(id)?;
        }
        Ok(())
    }

    /// What a KC or KP block states, when there is one.
    pub(super) fn check_value(&self, id: &str) -> Result<Option<StatedValue>, Failure> {
        let Some(data) = self.optional(id) else { return Ok(None) };
        let malformed = || refused(format!("its {id} block is not a method and a check value"));
        let (method, value) = data.split_at_checked(2).ok_or_else(malformed)?;
        let method = match method {
            "00" => KcvMethod::Zeros,
            "01" => KcvMethod::Cmac,
            _ => return Err(malformed()),
        };
        let left = capital_hex(value).ok_or_else(malformed)?;
        if !(2..=5).contains(&left.len()) {
            return Err(malformed());
        }
        Ok(Some(StatedValue { method, left }))
    }
}

fn version(text: &str) -> Result<Version, Failure> {
    match text.as_bytes()[0] {
        b'A' => Ok(Version::A),
        b'B' => Ok(Version::B),
        b'C' => Ok(Version::C),
        b'D' => Ok(Version::D),
        b'E' => Err(refused("version E (ISO 20038) is not taken: ask for version D")),
        _ => Err(refused("its version is none of A, B, C, D")),
    }
}

/// The algorithms and modes that go with a usage that some role has.
fn usage_row(usage: &str) -> Result<(&'static str, &'static str), Failure> {
    let row = TAKEN.iter().find(|(taken, _, _)| *taken == usage);
    if let Some((_, algorithms, modes)) = row {
        return Ok((algorithms, modes));
    }
    let what = match usage {
        "B1" => "DUKPT initial key",
        "B2" => "key variant base",
        "B3" => "key derivation",
        "C0" => "card verification",
        "D0" | "D1" | "D2" | "D3" => "data encryption",
        "E0" | "E1" | "E2" | "E3" | "E4" | "E5" | "E6" | "E7" => "EMV",
        "I0" => "initialisation vector",
        "K0" => "key encryption; a key block protection key is K1",
        "K2" | "K3" | "K4" => "asymmetric key exchange and ISO 20038 protection",
        "M2" | "M4" | "M5" | "M8" => "MAC by ISO 9797-1 algorithm 2, 4, 5 or 6",
        "P1" => "PIN generation",
        "S0" | "S1" | "S2" => "asymmetric",
        "V0" => "generic PIN verification; say V1 (IBM 3624) or V2 (PVV)",
        "V3" | "V4" | "V5" => "PIN verification by other methods",
        _ => return Err(refused("its usage is not known")),
    };
    Err(refused(format!("no role here has usage {usage} ({what})")))
}

fn algorithm(letter: char) -> Result<KeyAlgorithm, Failure> {
    match letter {
        'T' => Ok(KeyAlgorithm::Tdes),
        'A' => Ok(KeyAlgorithm::Aes),
        'H' => Ok(KeyAlgorithm::Hmac),
        'D' => Err(refused("algorithm D (single DES) is not taken")),
        'E' | 'R' | 'S' => Err(refused("asymmetric keys are not taken")),
        _ => Err(refused("its algorithm is not known")),
    }
}

/// Two characters that only say which version the sender has; a component of a key is none.
fn key_version(text: &str) -> Result<(), Failure> {
    if text.starts_with('c') {
        return Err(refused("it holds a component of a key, not a key"));
    }
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(refused("its key version is not two letters or digits"))
    }
}

/// Id and data of each.
type OptionalBlocks<'t> = Vec<(&'t str, &'t str)>;

/// That many blocks, and where the header ends.
fn optional_blocks(
    text: &str,
    count: usize,
    version: Version,
) -> Result<(OptionalBlocks<'_>, usize), Failure> {
    let malformed = || refused("its optional blocks are not id, length and data");
    let mut blocks = OptionalBlocks::new();
    let mut at = 16;
    for _ in 0..count {
        let (id, length, data_at) = optional_head(text, at).ok_or_else(malformed)?;
        let end = at.checked_add(length).ok_or_else(malformed)?;
        let data = text.get(data_at..end).ok_or_else(malformed)?;
        if blocks.iter().any(|(other, _)| *other == id) {
            return Err(refused("an optional block stands twice"));
        }
        if blocks.last().is_some_and(|(last, _)| *last == "PB") {
            return Err(refused("its padding block is not the last one"));
        }
        blocks.push((id, data));
        at = end;
    }
    if !(at - 16).is_multiple_of(version.block_bytes()) {
        return Err(refused("its optional blocks are not whole cipher blocks"));
    }
    Ok((blocks, at))
}

/// The id, the length of the whole, and where the data begins. A length of 00 has the length of the
/// length behind it, and then the length.
fn optional_head(text: &str, at: usize) -> Option<(&str, usize, usize)> {
    let hex = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        let capitals = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        usize::from_str_radix(digits, 16).ok().filter(|_| capitals)
    };
    let id = text.get(at..at + 2)?;
    if !id.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()) {
        return None;
    }
    let (length, head) = match hex(at + 2, at + 4)? {
        0 => {
            let digits = 2 * hex(at + 4, at + 6)?;
            if !(2..=4).contains(&digits) {
                return None;
            }
            (hex(at + 6, at + 6 + digits)?, 6 + digits)
        }
        length => (length, 4),
    };
    (length >= head).then_some((id, length, at + head))
}

fn number(digits: &str) -> Option<usize> {
    digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn capital_hex(text: &str) -> Option<Vec<u8>> {
    let capitals = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    if capitals { hex::decode(text).ok() } else { None }
}
