//! From PKCS#11's forms of a signature and a public key to those that verifiers take.

/// An ASN.1 DER `Ecdsa-Sig-Value` (RFC 3279, section 2.2.3) of r ‖ s, as CKM_ECDSA gives it for P-256.
/// 8 to 72 bytes.
pub(super) fn ecdsa_der(raw: &[u8; 64]) -> Vec<u8> {
    let (r, s) = raw.split_at(32);
    let body = [integer(r), integer(s)].concat();
    // Two integers of 35 bytes at most: every length is one byte.
    [&[0x30, body.len() as u8], body.as_slice()].concat()
}

/// A DER INTEGER of an unsigned number: no leading zeros but the one that keeps it positive.
fn integer(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    // Zero itself keeps a byte.
    let digits = &number[zeros.min(number.len() - 1)..];
    let sign: &[u8] = if digits[0] >= 0x80 { &[0] } else { &[] };
    [&[0x02, (sign.len() + digits.len()) as u8], sign, digits].concat()
}

/// The DER SubjectPublicKeyInfo (RFC 5480) of a P-256 key, 91 bytes. `None` unless `point` is an
/// uncompressed point, bare or in a DER OCTET STRING.
pub(super) fn p256_key_info(point: &[u8]) -> Option<Vec<u8>> {
    let point = bare::<65>(point)?;
    (point[0] == 0x04).then(|| [P256_KEY_INFO.as_slice(), point].concat())
}

/// The 32 bytes of an Ed25519 key, from a bare point or one in a DER OCTET STRING.
pub(super) fn ed25519_key(point: &[u8]) -> Option<&[u8; 32]> {
    bare(point)
}

/// CKA_EC_POINT is a DER OCTET STRING; some tokens give what is in it. The lengths tell them apart.
fn bare<const BYTES: usize>(point: &[u8]) -> Option<&[u8; BYTES]> {
    let inside = match point {
        [0x04, length, inside @ ..] if inside.len() == BYTES => {
            (usize::from(*length) == BYTES).then_some(inside)?
        }
        _ => point,
    };
    inside.try_into().ok()
}

/// SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING of 65 bytes, up to those bytes.
const P256_KEY_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01, 0x06, 0x08, 0x2A,
    0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn number(hex_digits: &str) -> [u8; 32] {
        let mut bytes = [0; 32];
        let digits = hex::decode(hex_digits).unwrap();
        bytes[32 - digits.len()..].copy_from_slice(&digits);
        bytes
    }

    #[test]
    fn a_der_integer_is_the_shortest_that_is_positive() {
        let full = "7F".to_owned() + &"11".repeat(31);
        let high = "80".to_owned() + &"00".repeat(31);
        for (digits, der) in [
            ("00", "020100".to_owned()),
            ("01", "020101".into()),
            ("7F", "02017F".into()),
            ("80", "02020080".into()),
            ("0100", "02020100".into()),
            ("FF00", "020300FF00".into()),
            (&full, format!("0220{full}")),
            (&high, format!("022100{high}")),
        ] {
            assert_eq!(hex::encode_upper(integer(&number(digits))), der, "{digits}");
        }
    }

    #[test]
    fn a_signature_is_a_sequence_of_two_integers() {
        let high = "FF".repeat(32);
        for (r, s, der) in [
            ("01", "80", "300702010102020080".to_owned()),
            (&*high, &*high, format!("3046022100{high}022100{high}")),
            ("00", "00", "3006020100020100".into()),
        ] {
            let raw: [u8; 64] = [number(r), number(s)].concat().try_into().unwrap();
            assert_eq!(hex::encode_upper(ecdsa_der(&raw)), der);
        }
    }

    #[test]
    fn a_point_is_taken_bare_and_wrapped_and_in_no_other_form() {
        let point = [&[0x04], [0xAB; 64].as_slice()].concat();
        let wrapped = [&[0x04, 65], point.as_slice()].concat();
        let info = p256_key_info(&point).unwrap();
        assert_eq!((info.len(), &info[26..]), (91, point.as_slice()));
        assert_eq!(p256_key_info(&wrapped), Some(info));
        let key = [0x04; 32];
        let wrapped_key = [&[0x04, 32], key.as_slice()].concat();
        assert_eq!((ed25519_key(&key), ed25519_key(&wrapped_key)), (Some(&key), Some(&key)));

        let compressed = [&[0x02], [0xAB; 32].as_slice()].concat();
        let hybrid = [&[0x06], [0xAB; 64].as_slice()].concat();
        let lying = [&[0x04, 64], point.as_slice()].concat();
        let long = [wrapped.as_slice(), &[0]].concat();
        for bad in [&[][..], &compressed, &hybrid, &lying, &long, &point[..64], &key] {
            assert_eq!(p256_key_info(bad), None, "{bad:02X?}");
        }
        for bad in [&[][..], &key[..31], &wrapped_key[..33], &point, &compressed] {
            assert_eq!(ed25519_key(bad), None, "{bad:02X?}");
        }
    }
}
