//! Cipher block chaining under TDES or AES, without padding. NIST SP 800-38A, 6.2.

use super::SoftError;
use super::cipher::{
    aes_decrypt_block, aes_encrypt_block, tdes_decrypt_block, tdes_encrypt_block, xor,
};

/// Enciphers whole blocks of 8 bytes.
///
/// # Errors
/// `Blocks`, or `KeySize` as [`tdes_encrypt_block`].
pub fn tdes_cbc_encrypt(key: &[u8], iv: [u8; 8], clear: &[u8]) -> Result<Vec<u8>, SoftError> {
    encrypt(iv, clear, |block| tdes_encrypt_block(key, block))
}

/// Deciphers whole blocks of 8 bytes.
///
/// # Errors
/// `Blocks`, or `KeySize` as [`tdes_encrypt_block`].
pub fn tdes_cbc_decrypt(key: &[u8], iv: [u8; 8], data: &[u8]) -> Result<Vec<u8>, SoftError> {
    decrypt(iv, data, |block| tdes_decrypt_block(key, block))
}

/// Enciphers whole blocks of 16 bytes.
///
/// # Errors
/// `Blocks`, or `KeySize` as [`aes_encrypt_block`].
pub fn aes_cbc_encrypt(key: &[u8], iv: [u8; 16], clear: &[u8]) -> Result<Vec<u8>, SoftError> {
    encrypt(iv, clear, |block| aes_encrypt_block(key, block))
}

/// Deciphers whole blocks of 16 bytes.
///
/// # Errors
/// `Blocks`, or `KeySize` as [`aes_encrypt_block`].
pub fn aes_cbc_decrypt(key: &[u8], iv: [u8; 16], data: &[u8]) -> Result<Vec<u8>, SoftError> {
    decrypt(iv, data, |block| aes_decrypt_block(key, block))
}

fn encrypt<const N: usize>(
    iv: [u8; N],
    clear: &[u8],
    cipher: impl Fn([u8; N]) -> Result<[u8; N], SoftError>,
) -> Result<Vec<u8>, SoftError> {
    let mut before = iv;
    let mut out = Vec::with_capacity(clear.len());
    for block in whole(clear)? {
        before = cipher(xor(*block, before))?;
        out.extend(before);
    }
    Ok(out)
}

fn decrypt<const N: usize>(
    iv: [u8; N],
    data: &[u8],
    cipher: impl Fn([u8; N]) -> Result<[u8; N], SoftError>,
) -> Result<Vec<u8>, SoftError> {
    let mut before = iv;
    let mut out = Vec::with_capacity(data.len());
    for block in whole(data)? {
        out.extend(xor(cipher(*block)?, before));
        before = *block;
    }
    Ok(out)
}

fn whole<const N: usize>(data: &[u8]) -> Result<&[[u8; N]], SoftError> {
    let (blocks, rest) = data.as_chunks();
    if rest.is_empty() { Ok(blocks) } else { Err(SoftError::Blocks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_chains_as_sp_800_38a_f_2_1_says_and_back() {
        let bytes = |text| hex::decode(text).unwrap();
        let key = bytes("2B7E151628AED2A6ABF7158809CF4F3C");
        let iv = std::array::from_fn(|place| u8::try_from(place).unwrap());
        let clear = bytes("6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E51");

        let data = aes_cbc_encrypt(&key, iv, &clear).unwrap();

        let answer = "7649ABAC8119B246CEE98E9B12E9197D5086CB9B507219EE95DB113A917678B2";
        assert_eq!(hex::encode_upper(&data), answer);
        assert_eq!(aes_cbc_decrypt(&key, iv, &data).unwrap(), clear);
    }

    #[test]
    fn tdes_chains_there_and_back() {
        let (key, iv, clear) = ([0x13; 16], [7; 8], [0x55; 24]);

        let data = tdes_cbc_encrypt(&key, iv, &clear).unwrap();

        assert_ne!(data[..8], data[8..16], "like blocks must not look alike");
        assert_eq!(tdes_cbc_decrypt(&key, iv, &data).unwrap(), clear);
    }

    #[test]
    fn a_part_of_a_block_is_refused() {
        assert_eq!(tdes_cbc_encrypt(&[0; 16], [0; 8], &[0; 9]), Err(SoftError::Blocks));
        assert_eq!(tdes_cbc_decrypt(&[0; 16], [0; 8], &[0; 7]), Err(SoftError::Blocks));
        assert_eq!(aes_cbc_encrypt(&[0; 16], [0; 16], &[0; 8]), Err(SoftError::Blocks));
        assert_eq!(aes_cbc_decrypt(&[0; 16], [0; 16], &[0; 17]), Err(SoftError::Blocks));
    }
}
