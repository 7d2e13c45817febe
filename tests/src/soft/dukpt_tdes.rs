//! TDES DUKPT: one key a transaction, from a base key and a serial number. ANSI X9.24-1:2009.
//!
//! The terminal holds registers, the host starts from the initial key and takes the same steps:
//! one for each one-bit of the counter, highest bit first.

use super::SoftError;
use super::cipher::{tdes_encrypt_block, xor};

/// A key serial number: key set and device (59 bits), counter (21 bits).
pub type Ksn = [u8; 10];

/// A double length key.
pub type Key = [u8; 16];

/// A key serial number from 16 to 20 hex digits, an even number of them; missing ones are F.
///
/// # Errors
/// `Ksn`.
pub fn ksn(text: &str) -> Result<Ksn, SoftError> {
    if !(16..=20).contains(&text.len()) {
        return Err(SoftError::Ksn);
    }
    let mut bytes = Ksn::default();
    hex::decode_to_slice(format!("{text:F>20}"), &mut bytes).map_err(|_| SoftError::Ksn)?;
    Ok(bytes)
}

/// The key that is injected into the device of this serial number. Annex A.6.
///
/// # Errors
/// None in practice: a key of 16 bytes fits.
pub fn initial_key(bdk: &Key, ksn: &Ksn) -> Result<Key, SoftError> {
    let mut device: [u8; 8] = std::array::from_fn(|place| ksn[place]);
    device[7] &= 0xE0;
    let left = tdes_encrypt_block(bdk, device)?;
    let right = tdes_encrypt_block(&xor(*bdk, REGISTER), device)?;
    Ok(joined(left, right))
}

/// The key of the transaction that the counter names. Working keys are variants of it.
///
/// # Errors
/// `Counter` unless it has 1 to 10 one-bits.
pub fn transaction_key(initial_key: &Key, ksn: &Ksn) -> Result<Key, SoftError> {
    let serial = u64::from_be_bytes(std::array::from_fn(|place| ksn[place + 2]));
    let counter = serial & COUNTER;
    if !(1..=10).contains(&counter.count_ones()) {
        return Err(SoftError::Counter);
    }
    let mut key = *initial_key;
    let mut register = serial & !COUNTER;
    for bit in (0..21).rev().map(|place| 1 << place).filter(|bit| counter & bit != 0) {
        register |= bit;
        let data = register.to_be_bytes();
        key = joined(step(&xor(key, REGISTER), data)?, step(&key, data)?);
    }
    Ok(key)
}

/// The PIN encryption key.
pub fn pin_key(transaction_key: &Key) -> Key {
    variant(transaction_key, 0xFF)
}

/// The key of MACs from the terminal, or of MACs in both directions.
pub fn mac_request_key(transaction_key: &Key) -> Key {
    variant(transaction_key, 0xFF00)
}

/// The key of MACs to the terminal.
pub fn mac_response_key(transaction_key: &Key) -> Key {
    variant(transaction_key, 0xFF00_0000)
}

/// The key of data from the terminal, or in both directions: its variant under itself.
///
/// # Errors
/// None in practice: a key of 16 bytes fits.
pub fn data_request_key(transaction_key: &Key) -> Result<Key, SoftError> {
    under_itself(&variant(transaction_key, 0xFF_0000))
}

/// The key of data to the terminal: its variant under itself.
///
/// # Errors
/// None in practice: a key of 16 bytes fits.
pub fn data_response_key(transaction_key: &Key) -> Result<Key, SoftError> {
    under_itself(&variant(transaction_key, 0xFF_0000_0000))
}

/// One half of the non-reversible key generation process: single DES between two xors.
fn step(key: &Key, data: [u8; 8]) -> Result<[u8; 8], SoftError> {
    let (left, right) = halves(key);
    Ok(xor(tdes_encrypt_block(&left, xor(data, right))?, right))
}

fn variant(key: &Key, mask: u64) -> Key {
    xor(*key, joined(mask.to_be_bytes(), mask.to_be_bytes()))
}

fn under_itself(key: &Key) -> Result<Key, SoftError> {
    let (left, right) = halves(key);
    Ok(joined(tdes_encrypt_block(key, left)?, tdes_encrypt_block(key, right)?))
}

fn halves(key: &Key) -> ([u8; 8], [u8; 8]) {
    (std::array::from_fn(|place| key[place]), std::array::from_fn(|place| key[place + 8]))
}

fn joined(left: [u8; 8], right: [u8; 8]) -> Key {
    std::array::from_fn(|place| if place < 8 { left[place] } else { right[place - 8] })
}

/// The low 21 bits of a serial number.
const COUNTER: u64 = 0x1F_FFFF;

/// What the standard mixes into a key for its second half.
const REGISTER: Key = [0xC0, 0xC0, 0xC0, 0xC0, 0, 0, 0, 0, 0xC0, 0xC0, 0xC0, 0xC0, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::chain::tdes_cbc_encrypt;
    use crate::soft::mac::{Padding, cmac_tdes, retail_mac};
    use crate::soft::pin::{PinFormat, clear_block, encipher};
    use crate::vectors::{self, Vector};

    #[test]
    fn every_published_key_is_derived() {
        for v in vectors::load("dukpt_tdes") {
            let (initial, key) = keys(&v);

            assert_eq!(initial[..], v.hex("initial_key"), "{v}");
            assert_eq!(key[..], v.hex("transaction_key"), "{v}");
            assert_eq!(pin_key(&key)[..], v.hex("pin_key"), "{v}");
            assert_eq!(mac_request_key(&key)[..], v.hex("mac_request_key"), "{v}");
            assert_eq!(mac_response_key(&key)[..], v.hex("mac_response_key"), "{v}");
            assert_eq!(data_request_key(&key).unwrap()[..], v.hex("data_request_key"), "{v}");
            assert_eq!(data_response_key(&key).unwrap()[..], v.hex("data_response_key"), "{v}");
        }
    }

    #[test]
    fn every_published_block_mac_and_cryptogram_is_made_with_them() {
        for v in vectors::load("dukpt_tdes") {
            let (_, key) = keys(&v);
            let (request, response) = (mac_request_key(&key), mac_response_key(&key));
            let (pan, message) = (v.text("pan"), v.hex("message"));
            let retail = |key| retail_mac(key, Padding::Method1, &message).unwrap()[..4].to_vec();

            let clear = clear_block(PinFormat::Iso0, v.text("pin"), pan, "").unwrap();
            let block = encipher(PinFormat::Iso0, &pin_key(&key), pan, &clear).unwrap();
            let mut data = message.clone();
            data.resize(message.len().next_multiple_of(8), 0);
            let data = tdes_cbc_encrypt(&data_request_key(&key).unwrap(), [0; 8], &data).unwrap();

            assert_eq!(clear, v.hex("clear_block"), "{v}");
            assert_eq!(block, v.hex("encrypted_pin_block"), "{v}");
            assert_eq!(retail(&request), v.hex("mac_request"), "{v}");
            assert_eq!(retail(&response), v.hex("mac_response"), "{v}");
            assert_eq!(
                cmac_tdes(&request, &message).unwrap()[..],
                v.hex("mac_request_cmac"),
                "{v}"
            );
            let cmac = cmac_tdes(&response, &message).unwrap();
            assert_eq!(cmac[..], v.hex("mac_response_cmac"), "{v}");
            assert_eq!(data, v.hex("encrypted_data_request"), "{v}");
        }
    }

    #[test]
    fn leading_fs_that_a_peer_stripped_come_back() {
        let whole = ksn("FFFF9876543210E00001").unwrap();

        assert_eq!(ksn("9876543210E00001"), Ok(whole));
        assert_eq!(ksn("ff9876543210e00001"), Ok(whole));
        for text in ["", "876543210E00001", "F9876543210E00001G", "FFFFF9876543210E00001"] {
            assert_eq!(ksn(text), Err(SoftError::Ksn), "{text:?}");
        }
    }

    #[test]
    fn a_counter_of_no_or_of_eleven_one_bits_is_refused() {
        let derive = |text| transaction_key(&[7; 16], &ksn(text).unwrap());

        assert_eq!(derive("FFFF9876543210E00000"), Err(SoftError::Counter));
        assert_eq!(derive("FFFF9876543210E007FF"), Err(SoftError::Counter));
        assert!(derive("FFFF9876543210E003FF").is_ok());
    }

    fn keys(v: &Vector) -> (Key, Key) {
        let (bdk, ksn) = (v.hex("bdk").try_into().unwrap(), ksn(v.text("ksn")).unwrap());
        let initial = initial_key(&bdk, &ksn).unwrap();
        (initial, transaction_key(&initial, &ksn).unwrap())
    }
}
