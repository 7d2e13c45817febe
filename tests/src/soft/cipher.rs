//! One block under TDES or AES.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use des::TdesEde3;

use super::SoftError;

/// Enciphers one block under TDES.
///
/// The key has 16 bytes (K1, K2) or 24 (K1, K2, K3); 8 bytes are single DES, which only old check
/// values use.
///
/// # Errors
/// `KeySize` for any other key.
pub fn tdes_encrypt_block(key: &[u8], block: [u8; 8]) -> Result<[u8; 8], SoftError> {
    let mut block = block.into();
    tdes(key)?.encrypt_block(&mut block);
    Ok(block.into())
}

/// Deciphers one block under TDES, with the keys of [`tdes_encrypt_block`].
///
/// # Errors
/// `KeySize` for any other key.
pub fn tdes_decrypt_block(key: &[u8], block: [u8; 8]) -> Result<[u8; 8], SoftError> {
    let mut block = block.into();
    tdes(key)?.decrypt_block(&mut block);
    Ok(block.into())
}

/// Enciphers one block under AES with a key of 16, 24 or 32 bytes.
///
/// # Errors
/// `KeySize` for any other key.
pub fn aes_encrypt_block(key: &[u8], block: [u8; 16]) -> Result<[u8; 16], SoftError> {
    let mut block = block.into();
    match Aes::new(key)? {
        Aes::K128(cipher) => cipher.encrypt_block(&mut block),
        Aes::K192(cipher) => cipher.encrypt_block(&mut block),
        Aes::K256(cipher) => cipher.encrypt_block(&mut block),
    }
    Ok(block.into())
}

/// Deciphers one block under AES with a key of 16, 24 or 32 bytes.
///
/// # Errors
/// `KeySize` for any other key.
pub fn aes_decrypt_block(key: &[u8], block: [u8; 16]) -> Result<[u8; 16], SoftError> {
    let mut block = block.into();
    match Aes::new(key)? {
        Aes::K128(cipher) => cipher.decrypt_block(&mut block),
        Aes::K192(cipher) => cipher.decrypt_block(&mut block),
        Aes::K256(cipher) => cipher.decrypt_block(&mut block),
    }
    Ok(block.into())
}

/// The three key sizes of AES, which are three types in RustCrypto.
pub(super) enum Aes {
    K128(Aes128),
    K192(Aes192),
    K256(Aes256),
}

impl Aes {
    pub(super) fn new(key: &[u8]) -> Result<Self, SoftError> {
        let refused = SoftError::KeySize { bytes: key.len() };
        match key.len() {
            16 => Aes128::new_from_slice(key).map(Self::K128).map_err(|_| refused),
            24 => Aes192::new_from_slice(key).map(Self::K192).map_err(|_| refused),
            32 => Aes256::new_from_slice(key).map(Self::K256).map_err(|_| refused),
            _ => Err(refused),
        }
    }
}

/// TDES with the key brought to three parts: K1 K1 K1, K1 K2 K1 or K1 K2 K3.
pub(super) fn tdes(key: &[u8]) -> Result<TdesEde3, SoftError> {
    let whole = match key.len() {
        8 => key.repeat(3),
        16 => [key, &key[..8]].concat(),
        _ => key.to_vec(),
    };
    TdesEde3::new_from_slice(&whole).map_err(|_| SoftError::KeySize { bytes: key.len() })
}

pub(super) fn xor<const N: usize>(left: [u8; N], right: [u8; N]) -> [u8; N] {
    std::array::from_fn(|place| left[place] ^ right[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_gives_the_answers_of_fips_197_and_back() {
        let clear: [u8; 16] =
            hex::decode("00112233445566778899AABBCCDDEEFF").unwrap().try_into().unwrap();
        let key: Vec<u8> = (0..32).collect();
        let answers = [
            (16, "69C4E0D86A7B0430D8CDB78070B4C55A"),
            (24, "DDA97CA4864CDFE06EAF70A0EC0D7191"),
            (32, "8EA2B7CA516745BFEAFC49904B496089"),
        ];

        for (bytes, answer) in answers {
            let block = aes_encrypt_block(&key[..bytes], clear).unwrap();

            assert_eq!(hex::encode_upper(block), answer, "FIPS 197 appendix C, {bytes} bytes");
            assert_eq!(aes_decrypt_block(&key[..bytes], block).unwrap(), clear);
        }
    }

    #[test]
    fn tdes_deciphers_what_it_enciphered() {
        let key: Vec<u8> = (1..=24).collect();

        for bytes in [8, 16, 24] {
            let block = tdes_encrypt_block(&key[..bytes], *b"8 bytes.").unwrap();

            assert_ne!(block, *b"8 bytes.");
            assert_eq!(tdes_decrypt_block(&key[..bytes], block).unwrap(), *b"8 bytes.");
        }
    }

    #[test]
    fn a_key_of_another_size_is_refused() {
        for bytes in [0, 7, 15, 17, 23, 33] {
            let key = vec![0; bytes];

            assert_eq!(tdes_encrypt_block(&key, [0; 8]), Err(SoftError::KeySize { bytes }));
            assert_eq!(aes_encrypt_block(&key, [0; 16]), Err(SoftError::KeySize { bytes }));
        }
    }
}
