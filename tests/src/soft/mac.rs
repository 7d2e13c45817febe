//! Message authentication codes. Every function gives the whole code; a shorter one is its left.

use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use cmac::digest::InnerInit;
use cmac::{Cmac, KeyInit, Mac};
use des::{Des, TdesEde3};
use hmac::Hmac;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::SoftError;
use super::chain::{aes_cbc_encrypt, tdes_cbc_encrypt};
use super::cipher::{Aes, tdes, tdes_decrypt_block, tdes_encrypt_block};

/// How ISO 9797-1 brings a message to whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Zeros up to the block: nothing for a full block, one block for an empty message.
    Method1,
    /// 80 and zeros, always.
    Method2,
}

/// Retail MAC: ISO 9797-1 algorithm 3 with DES, 8 bytes. The key is K1 and K2.
///
/// # Errors
/// `KeySize` unless the key has 16 bytes.
pub fn retail_mac(key: &[u8], padding: Padding, message: &[u8]) -> Result<[u8; 8], SoftError> {
    if key.len() != 16 {
        return Err(SoftError::KeySize { bytes: key.len() });
    }
    let (k1, k2) = key.split_at(8);
    let mut chain = [0; 8];
    let mut cipher = cbc::Encryptor::<Des>::new_from_slices(k1, &chain)
        .map_err(|_| SoftError::KeySize { bytes: key.len() })?;
    for block in padded::<8>(padding, message).as_chunks::<8>().0 {
        let mut block = (*block).into();
        cipher.encrypt_block(&mut block);
        chain = block.into();
    }
    tdes_encrypt_block(k1, tdes_decrypt_block(k2, chain)?)
}

/// CBC-MAC: ISO 9797-1 algorithm 1 under TDES, 8 bytes. The key has 8 (single DES), 16 or 24.
///
/// # Errors
/// `KeySize` for any other key.
pub fn cbc_mac_tdes(key: &[u8], padding: Padding, message: &[u8]) -> Result<[u8; 8], SoftError> {
    last(&tdes_cbc_encrypt(key, [0; 8], &padded::<8>(padding, message))?)
}

/// CBC-MAC: ISO 9797-1 algorithm 1 under AES, 16 bytes. The key has 16, 24 or 32.
///
/// # Errors
/// `KeySize` for any other key.
pub fn cbc_mac_aes(key: &[u8], padding: Padding, message: &[u8]) -> Result<[u8; 16], SoftError> {
    last(&aes_cbc_encrypt(key, [0; 16], &padded::<16>(padding, message))?)
}

/// CMAC under AES, 16 bytes. SP 800-38B.
///
/// # Errors
/// `KeySize` unless the key has 16, 24 or 32 bytes.
pub fn cmac_aes(key: &[u8], message: &[u8]) -> Result<[u8; 16], SoftError> {
    // Asked first, so that the three constructors below cannot meet another size.
    let refused = |_| SoftError::KeySize { bytes: key.len() };
    Ok(match Aes::new(key)? {
        Aes::K128(_) => tag(Cmac::<Aes128>::new_from_slice(key).map_err(refused)?, message),
        Aes::K192(_) => tag(Cmac::<Aes192>::new_from_slice(key).map_err(refused)?, message),
        Aes::K256(_) => tag(Cmac::<Aes256>::new_from_slice(key).map_err(refused)?, message),
    })
}

/// CMAC under TDES with a key of 16 or 24 bytes, 8 bytes. SP 800-38B.
///
/// # Errors
/// `KeySize` for any other key.
pub fn cmac_tdes(key: &[u8], message: &[u8]) -> Result<[u8; 8], SoftError> {
    Ok(tag(Cmac::<TdesEde3>::inner_init(tdes(key)?), message))
}

/// HMAC-SHA-256, 32 bytes. FIPS 198-1.
///
/// # Errors
/// None in practice: HMAC takes a key of any size.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> Result<[u8; 32], SoftError> {
    let refused = |_| SoftError::KeySize { bytes: key.len() };
    Ok(tag(Hmac::<Sha256>::new_from_slice(key).map_err(refused)?, message))
}

/// Whether two codes are the same, in time that depends on their length only.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

fn tag<M: Mac, const N: usize>(mut mac: M, message: &[u8]) -> [u8; N]
where
    cmac::digest::Output<M>: Into<[u8; N]>,
{
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn last<const N: usize>(chain: &[u8]) -> Result<[u8; N], SoftError> {
    chain.last_chunk().copied().ok_or(SoftError::Blocks)
}

fn padded<const N: usize>(padding: Padding, message: &[u8]) -> Vec<u8> {
    let mut bytes = message.to_vec();
    if padding == Padding::Method2 {
        bytes.push(0x80);
    }
    bytes.resize(bytes.len().next_multiple_of(N).max(N), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::{self, Vector};

    #[test]
    fn every_retail_mac_vector_holds() {
        for v in vectors::load("mac_iso9797_alg3") {
            let (padding, message) = (padding_of(&v), v.hex("message"));

            let mac = retail_mac(&v.hex("key"), padding, &message).unwrap();

            assert_eq!(padded::<8>(padding, &message), v.hex("padded"), "{v}");
            assert_mac(&mac, &v);
        }
    }

    #[test]
    fn every_cbc_mac_vector_holds() {
        for v in vectors::load("mac_iso9797_alg1") {
            let (key, padding, message) = (v.hex("key"), padding_of(&v), v.hex("message"));

            let (whole, mac) = match v.text("cipher") {
                "AES" => {
                    let mac = cbc_mac_aes(&key, padding, &message).unwrap();
                    (padded::<16>(padding, &message), mac.to_vec())
                }
                _ => {
                    let mac = cbc_mac_tdes(&key, padding, &message).unwrap();
                    (padded::<8>(padding, &message), mac.to_vec())
                }
            };

            assert_eq!(whole, v.hex("padded"), "{v}");
            assert_mac(&mac, &v);
        }
    }

    #[test]
    fn every_cmac_and_hmac_vector_holds() {
        for v in vectors::load("mac_cmac_aes") {
            assert_mac(&cmac_aes(&v.hex("key"), &v.hex("message")).unwrap(), &v);
        }
        for v in vectors::load("mac_cmac_tdes") {
            assert_mac(&cmac_tdes(&v.hex("key"), &v.hex("message")).unwrap(), &v);
        }
        for v in vectors::load("mac_hmac_sha256") {
            assert_mac(&hmac_sha256(&v.hex("key"), &v.hex("message")).unwrap(), &v);
        }
    }

    #[test]
    fn a_mac_key_of_another_size_is_refused() {
        assert!(retail_mac(&[0; 24], Padding::Method1, b"x").is_err());
        assert!(cbc_mac_tdes(&[0; 32], Padding::Method1, b"x").is_err());
        assert!(cbc_mac_aes(&[0; 8], Padding::Method2, b"x").is_err());
        assert!(cmac_aes(&[0; 15], b"x").is_err());
        assert!(cmac_tdes(&[0; 12], b"x").is_err());
    }

    fn padding_of(v: &Vector) -> Padding {
        if v.number("padding") == 1 { Padding::Method1 } else { Padding::Method2 }
    }

    fn assert_mac(mac: &[u8], v: &Vector) {
        assert_eq!(mac, v.hex("mac_full"), "{v}");
        assert_eq!(mac[..v.number("mac_length")], v.hex("mac"), "{v}");
    }
}
