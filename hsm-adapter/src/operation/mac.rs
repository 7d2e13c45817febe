//! MACs: CBC-MAC and retail MAC (ISO 9797-1 algorithms 1 and 3), CMAC (SP 800-38B), HMAC-SHA-256
//! (FIPS 198-1), under a key of the token or one that DUKPT derived.
//!
//! Algorithm, padding and length come from the key's profile. Verification computes the MAC,
//! truncates it and compares in constant time here: `C_Verify` wants full-length MACs.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki_sys::CKM_DES3_CMAC;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::{CkrClass, Failure};
use crate::operation::vendor;
use crate::register::{KeyAlgorithm, MacProfile};
use crate::vocabulary::{MacAlgorithm, MacPadding};
use crate::worker::keys::LoadedKey;
use crate::worker::raw::mechanism_type;
use crate::worker::token::TokenSession;

/// The longest message that has a MAC.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The left-most bytes of the MAC: the key's own length, or `length` where the key allows it.
pub(crate) fn generate(
    session: &TokenSession,
    key: &LoadedKey,
    message: &[u8],
    length: Option<u8>,
) -> Result<Vec<u8>, Failure> {
    let profile = profile(key, message)?;
    let length = length.unwrap_or(profile.length);
    let shortest = profile.length_min.unwrap_or(profile.length);
    if !(shortest..=profile.length).contains(&length) {
        return Err(Failure::MacLength { shortest, longest: profile.length });
    }
    let mut mac = full(session, key, profile, message)?;
    mac.truncate(usize::from(length));
    Ok(std::mem::take(&mut *mac))
}

/// Whether `mac` is the MAC of the key's own length.
pub(crate) fn verify(
    session: &TokenSession,
    key: &LoadedKey,
    message: &[u8],
    mac: &[u8],
) -> Result<bool, Failure> {
    let profile = profile(key, message)?;
    if mac.is_empty() {
        return Ok(false);
    }
    let computed = full(session, key, profile, message)?;
    Ok(computed[..usize::from(profile.length)].ct_eq(mac).into())
}

fn profile(key: &LoadedKey, message: &[u8]) -> Result<MacProfile, Failure> {
    let Some(profile) = key.profile.mac else {
        return Err(Failure::KeyNotForThis(format!("{} makes no MACs", key.profile.label)));
    };
    if message.len() > MESSAGE_BYTES_MAX || message.is_empty() && !profile.empty_message {
        return Err(Failure::MessageLength);
    }
    Ok(profile)
}

/// At least as many bytes as the profile's length.
fn full(
    session: &TokenSession,
    key: &LoadedKey,
    profile: MacProfile,
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mac = match profile.algorithm {
        MacAlgorithm::CbcMac => cbc_mac(session, key, profile.padding, message)?,
        MacAlgorithm::Retail => match &key.profile.vendor {
            Some(vendor) => {
                vendor::retail_mac(session, vendor, key.object, profile.padding, message)?
            }
            None => retail(session, key, profile.padding, message)?,
        },
        MacAlgorithm::Cmac if key.profile.algorithm == KeyAlgorithm::Aes => {
            Zeroizing::new(session.sign(&Mechanism::AesCMac, key.object, message)?)
        }
        MacAlgorithm::Cmac => {
            let number = mechanism_type(CKM_DES3_CMAC);
            let cmac = Mechanism::VendorDefined(VendorDefinedMechanism::new::<()>(number, None));
            Zeroizing::new(session.sign(&cmac, key.object, message)?)
        }
        MacAlgorithm::HmacSha256 => {
            Zeroizing::new(session.sign(&Mechanism::Sha256Hmac, key.object, message)?)
        }
    };
    at_least(usize::from(profile.length), mac)
}

/// A token that answers fewer bytes than a MAC has is not well: against what it answered, a MAC
/// of as few bytes would verify.
fn at_least(length: usize, answer: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if answer.len() >= length {
        return Ok(answer);
    }
    Err(Failure::Token {
        function: "MAC".into(),
        code: format!("{} bytes where {length} are the least", answer.len()),
        class: CkrClass::Restart,
    })
}

/// The last block of CBC from a zero IV over the padded message. Safe only for messages that carry
/// their length, as ISO 8583 does.
fn cbc_mac(
    session: &TokenSession,
    key: &LoadedKey,
    padding: Option<MacPadding>,
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let (mechanism, block) = match key.profile.algorithm {
        KeyAlgorithm::Aes => (Mechanism::AesCbc([0; 16]), 16),
        KeyAlgorithm::Tdes | KeyAlgorithm::Hmac | KeyAlgorithm::Ec | KeyAlgorithm::Ed25519 => {
            (Mechanism::Des3Cbc([0; 8]), 8)
        }
    };
    let padded = pad(message, padding.unwrap_or(MacPadding::Two), block);
    let enciphered = at_least(block, session.encrypt(&mechanism, key.object, &padded)?)?;
    Ok(Zeroizing::new(enciphered[enciphered.len() - block..].to_vec()))
}

/// Two calls: CBC under K_L over all blocks but the last, then one TDES encipherment of the last
/// block xor the chain. A message of one block needs the second call only.
fn retail(
    session: &TokenSession,
    key: &LoadedKey,
    padding: Option<MacPadding>,
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let Some(left) = key.left else {
        return Err(Failure::KeyNotForThis(format!("{} has no left half", key.profile.label)));
    };
    let padded = pad(message, padding.unwrap_or(MacPadding::Two), 8);
    let (chained, last) = padded.split_at(padded.len() - 8);
    let mut block = Zeroizing::new(last.to_vec());
    if !chained.is_empty() {
        let chain = session.encrypt(&Mechanism::Des3Cbc([0; 8]), left, chained)?;
        let chain = at_least(8, chain)?;
        for (byte, state) in block.iter_mut().zip(&chain[chain.len() - 8..]) {
            *byte ^= state;
        }
    }
    Ok(session.encrypt(&Mechanism::Des3Ecb, key.object, &block)?)
}

/// To whole blocks, at least one. ISO 9797-1, section 6.3.
fn pad(message: &[u8], padding: MacPadding, block: usize) -> Vec<u8> {
    let mut padded = Vec::with_capacity(message.len() + block);
    padded.extend_from_slice(message);
    if padding == MacPadding::Two {
        padded.push(0x80);
    }
    let whole = padded.len().next_multiple_of(block).max(block);
    padded.resize(whole, 0);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_the_standards() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/mac_iso9797_alg3.json"))
                .unwrap();
        for vector in vectors["vectors"].as_array().unwrap() {
            let message = hex::decode(vector["message"].as_str().unwrap()).unwrap();
            let method = vector["padding"].as_u64().unwrap() as u8;

            let padded = pad(&message, method.try_into().unwrap(), 8);

            assert_eq!(hex::encode_upper(padded), vector["padded"].as_str().unwrap());
        }
    }

    #[test]
    fn a_token_that_answers_less_than_a_mac_is_not_believed() {
        for bytes in [0, 7] {
            let refused = at_least(8, Zeroizing::new(vec![1; bytes])).unwrap_err();
            let Failure::Token { class, .. } = refused else { panic!("{refused:?}") };
            assert_eq!(class, CkrClass::Restart);
        }
        assert_eq!(at_least(8, Zeroizing::new(vec![1; 16])).unwrap().len(), 16);
    }
}
