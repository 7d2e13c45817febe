//! AES DUKPT: one key a transaction, from a base key and a serial number. ANSI X9.24-3:2017.
//!
//! Every key is the encipherment of a block that says what the key is for, under the key it comes
//! from: two such blocks, numbered, when it is longer than one.

use super::SoftError;
use super::cipher::aes_encrypt_block;

/// A key serial number: BDK id, derivation id and transaction counter, four bytes each.
pub type Ksn = [u8; 12];

/// What a working key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the standard's names")]
pub enum Usage {
    PinEncryption,
    MacGeneration,
    MacVerification,
    MacBoth,
    DataEncryption,
    DataDecryption,
    DataBoth,
}

/// Kind of a derived key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the standard's names")]
pub enum KeyType {
    Aes128,
    Aes192,
    Aes256,
}

/// A key serial number from its 24 hex digits.
///
/// # Errors
/// `Ksn`.
pub fn ksn(text: &str) -> Result<Ksn, SoftError> {
    let mut bytes = Ksn::default();
    hex::decode_to_slice(text, &mut bytes).map_err(|_| SoftError::Ksn)?;
    Ok(bytes)
}

/// The key that is injected into the device of this serial number, as long as the BDK.
///
/// # Errors
/// `KeySize` unless the BDK has 16, 24 or 32 bytes.
pub fn initial_key(bdk: &[u8], ksn: &Ksn) -> Result<Vec<u8>, SoftError> {
    let context = std::array::from_fn(|place| ksn[place]);
    derive(bdk, INITIAL_KEY, KeyType::of(bdk)?, context)
}

/// The key of the transaction that the counter names, as long as the initial key.
///
/// One derivation for each one-bit of the counter, highest first.
///
/// # Errors
/// `Counter` unless it has 1 to 16 one-bits; `KeySize` as [`initial_key`].
pub fn transaction_key(initial_key: &[u8], ksn: &Ksn) -> Result<Vec<u8>, SoftError> {
    let counter = counter(ksn);
    if !(1..=16).contains(&counter.count_ones()) {
        return Err(SoftError::Counter);
    }
    walk(initial_key, ksn, counter)
}

/// A working key of the transaction.
///
/// # Errors
/// `KeyType` when it would be longer than the transaction key; `KeySize` as [`initial_key`].
pub fn working_key(
    transaction_key: &[u8],
    ksn: &Ksn,
    usage: Usage,
    key_type: KeyType,
) -> Result<Vec<u8>, SoftError> {
    derive(transaction_key, usage.indicator(), key_type, context(ksn, counter(ksn)))
}

/// All three steps from the BDK.
///
/// # Errors
/// Those of each.
pub fn working_key_of_bdk(
    bdk: &[u8],
    ksn: &Ksn,
    usage: Usage,
    key_type: KeyType,
) -> Result<Vec<u8>, SoftError> {
    working_key(&transaction_key(&initial_key(bdk, ksn)?, ksn)?, ksn, usage, key_type)
}

/// The key that carries a new initial key to the device: derived at the counter of all ones, which
/// no transaction uses.
///
/// # Errors
/// `KeyType` when it would be longer than the initial key; `KeySize` as [`initial_key`].
pub fn update_key(initial_key: &[u8], ksn: &Ksn, key_type: KeyType) -> Result<Vec<u8>, SoftError> {
    let key = walk(initial_key, ksn, u32::MAX)?;
    derive(&key, KEY_ENCRYPTION, key_type, context(ksn, u32::MAX))
}

/// The keys on the way to a counter, one for each one-bit, highest first: the last of them.
fn walk(initial_key: &[u8], ksn: &Ksn, counter: u32) -> Result<Vec<u8>, SoftError> {
    let mut key = initial_key.to_vec();
    let mut reached = 0;
    for bit in (0..32).rev().map(|place| 1 << place).filter(|bit| counter & bit != 0) {
        reached |= bit;
        key = derive(&key, KEY_DERIVATION, KeyType::of(&key)?, context(ksn, reached))?;
    }
    Ok(key)
}

/// 6.3.2: the derivation data, enciphered block by block.
fn derive(
    key: &[u8],
    usage: u16,
    key_type: KeyType,
    context: [u8; 8],
) -> Result<Vec<u8>, SoftError> {
    if key_type.bytes() > key.len() {
        return Err(SoftError::KeyType);
    }
    let bits = u16::try_from(key_type.bytes() * 8).map_err(|_| SoftError::KeyType)?;
    let mut out = Vec::new();
    for number in 1..=key_type.bytes().div_ceil(16) {
        let number = u8::try_from(number).map_err(|_| SoftError::KeyType)?;
        let mut data = vec![1, number];
        data.extend(usage.to_be_bytes());
        data.extend(key_type.indicator().to_be_bytes());
        data.extend(bits.to_be_bytes());
        data.extend(context);
        let data = data.try_into().map_err(|_| SoftError::BlockSize)?;
        out.extend(aes_encrypt_block(key, data)?);
    }
    out.truncate(key_type.bytes());
    Ok(out)
}

fn counter(ksn: &Ksn) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|place| ksn[place + 8]))
}

/// Derivation id and counter.
fn context(ksn: &Ksn, counter: u32) -> [u8; 8] {
    let counter = counter.to_be_bytes();
    std::array::from_fn(|place| if place < 4 { ksn[place + 4] } else { counter[place - 4] })
}

impl Usage {
    /// Table 4: the key usage indicator.
    fn indicator(self) -> u16 {
        match self {
            Self::PinEncryption => 0x1000,
            Self::MacGeneration => 0x2000,
            Self::MacVerification => 0x2001,
            Self::MacBoth => 0x2002,
            Self::DataEncryption => 0x3000,
            Self::DataDecryption => 0x3001,
            Self::DataBoth => 0x3002,
        }
    }
}

impl KeyType {
    /// The type of a key of this size.
    ///
    /// # Errors
    /// `KeySize` unless it has 16, 24 or 32 bytes.
    pub fn of(key: &[u8]) -> Result<Self, SoftError> {
        match key.len() {
            16 => Ok(Self::Aes128),
            24 => Ok(Self::Aes192),
            32 => Ok(Self::Aes256),
            bytes => Err(SoftError::KeySize { bytes }),
        }
    }

    /// Size of such a key.
    pub fn bytes(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::Aes192 => 24,
            Self::Aes256 => 32,
        }
    }

    /// The algorithm indicator.
    fn indicator(self) -> u16 {
        match self {
            Self::Aes128 => 2,
            Self::Aes192 => 3,
            Self::Aes256 => 4,
        }
    }
}

const KEY_ENCRYPTION: u16 = 0x0002;
const KEY_DERIVATION: u16 = 0x8000;
const INITIAL_KEY: u16 = 0x8001;

#[cfg(test)]
mod tests;
