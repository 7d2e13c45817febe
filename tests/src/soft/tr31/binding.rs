//! What each version does with key and header: variants for A and C, derived keys for B and D.

use super::{Refusal, Version};
use crate::soft::SoftError;
use crate::soft::chain::{aes_cbc_decrypt, aes_cbc_encrypt, tdes_cbc_decrypt, tdes_cbc_encrypt};
use crate::soft::mac::{Padding, cbc_mac_tdes, cmac_aes, cmac_tdes, same};

/// Enciphers the payload and makes the MAC over it and the header.
pub(super) fn seal(
    version: Version,
    kbpk: &[u8],
    header: &[u8],
    payload: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
    let keys = Keys::of(version, kbpk)?;
    if !payload.len().is_multiple_of(version.block_bytes()) {
        return Err(Refusal::Length);
    }
    match version {
        Version::A | Version::C => {
            let data = tdes_cbc_encrypt(&keys.encryption, iv(header)?, payload)?;
            let mac = cbc_mac_tdes(&keys.mac, Padding::Method1, &[header, &data].concat())?;
            Ok((data, mac[..4].to_vec()))
        }
        Version::B => {
            let mac = cmac_tdes(&keys.mac, &[header, payload].concat())?;
            Ok((tdes_cbc_encrypt(&keys.encryption, mac, payload)?, mac.to_vec()))
        }
        Version::D => {
            let mac = cmac_aes(&keys.mac, &[header, payload].concat())?;
            Ok((aes_cbc_encrypt(&keys.encryption, mac, payload)?, mac.to_vec()))
        }
    }
}

/// Checks the MAC and gives the payload.
pub(super) fn open(
    version: Version,
    kbpk: &[u8],
    header: &[u8],
    data: &[u8],
    mac: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let keys = Keys::of(version, kbpk)?;
    let (payload, right) = match version {
        Version::A | Version::C => {
            let right = cbc_mac_tdes(&keys.mac, Padding::Method1, &[header, data].concat())?;
            (tdes_cbc_decrypt(&keys.encryption, iv(header)?, data)?, right[..4].to_vec())
        }
        Version::B => {
            let payload = tdes_cbc_decrypt(&keys.encryption, iv(mac)?, data)?;
            let right = cmac_tdes(&keys.mac, &[header, &payload].concat())?;
            (payload, right.to_vec())
        }
        Version::D => {
            let payload = aes_cbc_decrypt(&keys.encryption, iv(mac)?, data)?;
            let right = cmac_aes(&keys.mac, &[header, &payload].concat())?;
            (payload, right.to_vec())
        }
    };
    if same(&right, mac) { Ok(payload) } else { Err(Refusal::Mac) }
}

struct Keys {
    encryption: Vec<u8>,
    mac: Vec<u8>,
}

impl Keys {
    fn of(version: Version, kbpk: &[u8]) -> Result<Self, Refusal> {
        match (version, kbpk.len()) {
            (Version::A | Version::C, 16 | 24) => {
                let variant = |mask: u8| kbpk.iter().map(|byte| byte ^ mask).collect();
                Ok(Self { encryption: variant(b'E'), mac: variant(b'M') })
            }
            (Version::B, 16 | 24) | (Version::D, 16 | 24 | 32) => {
                Ok(Self { encryption: derived(version, kbpk, 0)?, mac: derived(version, kbpk, 1)? })
            }
            (Version::A | Version::B | Version::C | Version::D, bytes) => {
                Err(Refusal::Key(SoftError::KeySize { bytes }))
            }
        }
    }
}

/// CMAC over counter, purpose (0 encipherment, 1 MAC), a zero, algorithm and length in bits, as
/// often as the key is long. TR-31:2018, 5.3.2.
fn derived(version: Version, kbpk: &[u8], purpose: u8) -> Result<Vec<u8>, SoftError> {
    let (algorithm, bits): (u8, u16) = match (version, kbpk.len()) {
        (Version::B, 16) => (0, 128),
        (Version::B, 24) => (1, 192),
        (Version::D, 16) => (2, 128),
        (Version::D, 24) => (3, 192),
        (Version::D, 32) => (4, 256),
        (Version::A | Version::B | Version::C | Version::D, bytes) => {
            return Err(SoftError::KeySize { bytes });
        }
    };
    let [high, low] = bits.to_be_bytes();
    let mut out = Vec::new();
    for counter in 1.. {
        if out.len() >= kbpk.len() {
            break;
        }
        let input = [counter, 0, purpose, 0, 0, algorithm, high, low];
        match version {
            Version::D => out.extend(cmac_aes(kbpk, &input)?),
            Version::A | Version::B | Version::C => out.extend(cmac_tdes(kbpk, &input)?),
        }
    }
    out.truncate(kbpk.len());
    Ok(out)
}

fn iv<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Refusal> {
    bytes.first_chunk().copied().ok_or(Refusal::Form)
}
