//! Key check values: they tell keys apart and authenticate nothing.

use super::SoftError;
use super::cipher::{aes_encrypt_block, tdes_encrypt_block};
use super::mac::{cmac_aes, cmac_tdes, hmac_sha256};

/// The cipher a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the algorithms' names")]
pub enum KeyAlgorithm {
    Tdes,
    Aes,
}

/// A zero block enciphered under the key, left three bytes. ANSI X9.24-1.
///
/// # Errors
/// `KeySize`.
pub fn kcv_zeros(algorithm: KeyAlgorithm, key: &[u8]) -> Result<[u8; 3], SoftError> {
    Ok(match algorithm {
        KeyAlgorithm::Tdes => left(tdes_encrypt_block(key, [0; 8])?),
        KeyAlgorithm::Aes => left(aes_encrypt_block(key, [0; 16])?),
    })
}

/// CMAC over one zero block, left `N` bytes: three as a rule, five in an X9.143 KC block.
///
/// # Errors
/// `KeySize`.
pub fn kcv_cmac<const N: usize>(algorithm: KeyAlgorithm, key: &[u8]) -> Result<[u8; N], SoftError> {
    Ok(match algorithm {
        KeyAlgorithm::Tdes => left(cmac_tdes(key, &[0; 8])?),
        KeyAlgorithm::Aes => left(cmac_aes(key, &[0; 16])?),
    })
}

/// HMAC over nothing, left three bytes: this project's own convention.
///
/// # Errors
/// `KeySize`.
pub fn kcv_hmac(key: &[u8]) -> Result<[u8; 3], SoftError> {
    Ok(left(hmac_sha256(key, b"")?))
}

fn left<const N: usize, const M: usize>(bytes: [u8; M]) -> [u8; N] {
    const { assert!(N <= M, "a check value is the left part of a block") };
    std::array::from_fn(|place| bytes[place])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;

    #[test]
    fn every_kcv_vector_holds() {
        for v in vectors::load("kcv") {
            let (key, kcv) = (v.hex("key"), v.hex("kcv"));
            let algorithm = match v.text("key_algorithm") {
                "AES" => KeyAlgorithm::Aes,
                _ => KeyAlgorithm::Tdes,
            };

            let value = match v.text("method") {
                "zeros" => kcv_zeros(algorithm, &key).unwrap().to_vec(),
                "cmac" if kcv.len() == 5 => kcv_cmac::<5>(algorithm, &key).unwrap().to_vec(),
                "cmac" => kcv_cmac::<3>(algorithm, &key).unwrap().to_vec(),
                "hmac-sha256" => kcv_hmac(&key).unwrap().to_vec(),
                other => panic!("{v}: unknown method {other}"),
            };

            assert_eq!(value, kcv, "{v}");
        }
    }

    #[test]
    fn a_key_of_another_size_has_no_check_value() {
        assert!(kcv_zeros(KeyAlgorithm::Aes, &[0; 8]).is_err());
        assert!(kcv_cmac::<3>(KeyAlgorithm::Tdes, &[0; 10]).is_err());
    }
}
