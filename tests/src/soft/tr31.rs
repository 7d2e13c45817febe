//! Key blocks of TR-31:2018 and ANSI X9.143, versions A to D: the header, and what it promises.
//!
//! A block is its header in ASCII, then the enciphered key and the MAC in hex. `binding` enciphers
//! and authenticates; here stands the form. The pieces, header and payload, can also be sealed
//! as they are, so that a test can have a block that is wrong in one place and right in its MAC.

mod binding; // what each version does with key and header
mod refusal;

use std::fmt;

use super::kcv::{KeyAlgorithm, kcv_cmac, kcv_zeros};

pub use refusal::Refusal;

/// How key and header are bound to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// TDES, key variants, 4 byte CBC-MAC. Legacy.
    A,
    /// TDES, derived keys, 8 byte CMAC.
    B,
    /// As A.
    C,
    /// AES, derived keys, 16 byte CMAC.
    D,
}

/// A key block's header: what the key may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBlock {
    /// Which binding.
    pub version: Version,
    /// Two characters: `P0`.
    pub usage: String,
    /// `T` for TDES, `A` for AES, `H` for HMAC.
    pub algorithm: char,
    /// `B`, `C`, `D`, `E`, `G`, `N`, `S`, `V`, `X` or `Y`.
    pub mode: char,
    /// Two characters.
    pub key_version: String,
    /// `E`, `N` or `S`.
    pub exportability: char,
    /// Optional blocks in their order: two characters of id, and the data.
    pub optional: Vec<(String, String)>,
}

impl KeyBlock {
    /// Key version `00`, exportable under a trusted key, no optional blocks.
    pub fn new(version: Version, usage: &str, algorithm: char, mode: char) -> Self {
        Self {
            version,
            usage: usage.to_owned(),
            algorithm,
            mode,
            key_version: "00".to_owned(),
            exportability: 'E',
            optional: Vec::new(),
        }
    }

    /// Seals a key under the protection key. The key is padded to whole blocks with random bytes.
    ///
    /// # Errors
    /// `Key` unless the protection key has 16 or 24 bytes (A, B, C), 16, 24 or 32 (D); `Length`
    /// for a block of more than 9999 characters; `Form` for text that is not ASCII.
    pub fn wrap(&self, kbpk: &[u8], key: &[u8]) -> Result<String, Refusal> {
        let payload = payload(key, self.version.block_bytes())?;
        seal(self.version, kbpk, &self.header(payload.len())?, &payload)
    }

    /// The header of a block whose payload (length, key, padding) has this many bytes.
    ///
    /// A PB block is added when the optional blocks are not whole cipher blocks.
    ///
    /// # Errors
    /// `Length` as [`KeyBlock::wrap`].
    pub fn header(&self, payload_bytes: usize) -> Result<String, Refusal> {
        let unit = self.version.block_bytes();
        let mut blocks = Vec::new();
        for (id, data) in &self.optional {
            blocks.push(optional_block(id, data)?);
        }
        let over = blocks.iter().map(String::len).sum::<usize>() % unit;
        if over > 0 {
            // PB itself needs four characters: a gap that is too small takes a whole unit more.
            let gap = unit - over;
            let data = if gap < 4 { gap + unit - 4 } else { gap - 4 };
            blocks.push(optional_block("PB", &"0".repeat(data))?);
        }
        let (count, optional) = (blocks.len(), blocks.concat());
        let length = 16 + optional.len() + 2 * (payload_bytes + self.version.mac_bytes());
        if length > 9999 || count > 99 {
            return Err(Refusal::Length);
        }
        let (usage, key_version) = (&self.usage, &self.key_version);
        Ok(format!(
            "{}{length:04}{usage}{}{}{key_version}{}{count:02}00{optional}",
            self.version, self.algorithm, self.mode, self.exportability
        ))
    }

    /// Checks form and MAC, and gives the header and the key.
    ///
    /// Whether usage, algorithm and mode may stand together is not asked.
    ///
    /// # Errors
    /// The first check that fails, in the order of [`Refusal`]'s variants.
    pub fn unwrap(kbpk: &[u8], text: &str) -> Result<(Self, Vec<u8>), Refusal> {
        let (block, payload) = Self::open(kbpk, text)?;
        let bits = payload.first_chunk().copied().map(u16::from_be_bytes);
        let bits = usize::from(bits.ok_or(Refusal::Payload)?);
        let key =
            payload.get(2..2 + bits / 8).filter(|key| bits.is_multiple_of(8) && !key.is_empty());
        Ok((block, key.ok_or(Refusal::Payload)?.to_vec()))
    }

    /// As [`KeyBlock::unwrap`], but gives the payload: length, key, padding.
    ///
    /// # Errors
    /// As [`KeyBlock::unwrap`], without `Payload`.
    pub fn open(kbpk: &[u8], text: &str) -> Result<(Self, Vec<u8>), Refusal> {
        let version = Version::of(text)?;
        let stated = text.get(1..5).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        if stated.and_then(|digits| digits.parse().ok()) != Some(text.len()) || text.len() < 16 {
            return Err(Refusal::Length);
        }
        if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(Refusal::Form);
        }
        let (optional, header_end) = optional_blocks(version, text)?;
        let character = |place: usize| char::from(text.as_bytes()[place]);
        let block = Self {
            version,
            usage: text[5..7].to_owned(),
            algorithm: character(7),
            mode: character(8),
            key_version: text[9..11].to_owned(),
            exportability: character(11),
            optional,
        };
        let (header, sealed) = text.split_at(header_end);
        let sealed =
            Some(sealed).filter(|text| is_hex(text)).and_then(|text| hex::decode(text).ok());
        let sealed = sealed.ok_or(Refusal::Form)?;
        let data_bytes = sealed.len().checked_sub(version.mac_bytes()).ok_or(Refusal::Length)?;
        if data_bytes == 0 || !data_bytes.is_multiple_of(version.block_bytes()) {
            return Err(Refusal::Length);
        }
        let (data, mac) = sealed.split_at(data_bytes);
        Ok((block, binding::open(version, kbpk, header.as_bytes(), data, mac)?))
    }

    /// The check value of a key of this algorithm: zeros for TDES, CMAC for AES, 3 bytes.
    ///
    /// # Errors
    /// `Form` for another algorithm, `Key` for a key of another size.
    pub fn kcv(&self, key: &[u8]) -> Result<[u8; 3], Refusal> {
        match self.algorithm {
            'T' => kcv_zeros(KeyAlgorithm::Tdes, key).map_err(Refusal::Key),
            'A' => kcv_cmac(KeyAlgorithm::Aes, key).map_err(Refusal::Key),
            _ => Err(Refusal::Form),
        }
    }
}

/// The payload of a key: its length in bits, the key, random bytes up to whole blocks.
///
/// # Errors
/// `Length` for a key of more than 8191 bytes.
///
/// # Panics
/// When the operating system has no randomness to give.
pub fn payload(key: &[u8], block_bytes: usize) -> Result<Vec<u8>, Refusal> {
    let bits = u16::try_from(key.len() * 8).map_err(|_| Refusal::Length)?;
    let mut payload = [&bits.to_be_bytes()[..], key].concat();
    let filled = payload.len();
    payload.resize(filled.next_multiple_of(block_bytes), 0);
    getrandom::fill(&mut payload[filled..])
        .unwrap_or_else(|error| panic!("no randomness: {error}"));
    Ok(payload)
}

/// Seals any header and any payload with a right MAC: what malformed blocks are made with.
///
/// # Errors
/// `Key` as [`KeyBlock::wrap`]; `Length` for a payload that is not whole blocks; `Form` for a
/// header that is not printable ASCII or, in a version that enciphers under it, shorter than 8.
pub fn seal(
    version: Version,
    kbpk: &[u8],
    header: &str,
    payload: &[u8],
) -> Result<String, Refusal> {
    if !header.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(Refusal::Form);
    }
    let (data, mac) = binding::seal(version, kbpk, header.as_bytes(), payload)?;
    Ok(format!("{header}{}{}", hex::encode_upper(data), hex::encode_upper(mac)))
}

/// Id, length of the whole in two hex digits, data; a long block's length takes six more.
fn optional_block(id: &str, data: &str) -> Result<String, Refusal> {
    match 4 + data.len() {
        length @ 0..=0xFF => Ok(format!("{id}{length:02X}{data}")),
        length @ 0x100..=0x1FFF => Ok(format!("{id}0002{:04X}{data}", length + 6)),
        _ => Err(Refusal::Length),
    }
}

/// The optional blocks of a whole text, and where the header ends.
fn optional_blocks(
    version: Version,
    text: &str,
) -> Result<(Vec<(String, String)>, usize), Refusal> {
    let count = &text[12..14];
    let count = count.bytes().all(|b| b.is_ascii_digit()).then(|| count.parse::<usize>().ok());
    let hex = |from: usize, to: usize| {
        let digits = text.get(from..to).filter(|digits| is_hex(digits))?;
        usize::from_str_radix(digits, 16).ok()
    };
    let mut blocks = Vec::new();
    let mut at = 16;
    for _ in 0..count.flatten().ok_or(Refusal::Form)? {
        let (length, head) = match hex(at + 2, at + 4).ok_or(Refusal::Form)? {
            0 => {
                let digits = 2 * hex(at + 4, at + 6).ok_or(Refusal::Form)?;
                (hex(at + 6, at + 6 + digits).ok_or(Refusal::Form)?, 6 + digits)
            }
            length => (length, 4),
        };
        let data = at.checked_add(length).and_then(|end| text.get(at + head..end));
        blocks.push((text[at..at + 2].to_owned(), data.ok_or(Refusal::Form)?.to_owned()));
        at += length;
    }
    if (at - 16).is_multiple_of(version.block_bytes()) {
        Ok((blocks, at))
    } else {
        Err(Refusal::Form)
    }
}

/// The standard's hex has capitals only.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

impl Version {
    fn of(text: &str) -> Result<Self, Refusal> {
        match text.bytes().next() {
            Some(b'A') => Ok(Self::A),
            Some(b'B') => Ok(Self::B),
            Some(b'C') => Ok(Self::C),
            Some(b'D') => Ok(Self::D),
            // E, the newer one of ISO 20038, included.
            Some(_) | None => Err(Refusal::Version),
        }
    }

    /// Size of its cipher's block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::A | Self::B | Self::C => 8,
            Self::D => 16,
        }
    }

    /// Size of its MAC.
    pub fn mac_bytes(self) -> usize {
        match self {
            Self::A | Self::C => 4,
            Self::B => 8,
            Self::D => 16,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::D => "D",
        })
    }
}

#[cfg(test)]
mod tests;
