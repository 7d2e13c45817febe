//! AES-256-GCM around what the queue stores, bound to the row that it belongs to.
//!
//! The row's immutable columns are the associated data, so that neither a payload nor an answer
//! nor a PIN block opens in another row, in another column, or after a column has changed. What
//! does not open is never sent.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hsm_adapter::protocol::ClearDataKey;
use zeroize::Zeroizing;

use crate::store::{ENC_V, ItemFacts, Sealed};

/// Which sealed column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Record,
    Answer,
    Pin,
}

impl Part {
    fn domain(self) -> &'static [u8] {
        match self {
            Self::Record => b"saf/1",
            Self::Answer => b"saf-res/1",
            Self::Pin => b"saf-pin/1",
        }
    }
}

/// The sealed bytes do not belong to this row, or either was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed row does not open: it was changed")]
pub struct Tampered;

/// A cipher made once for a data key. The key schedule is zeroized on drop.
pub(super) struct Cipher(Box<Aes256Gcm>);

impl Cipher {
    pub(super) fn new(key: &ClearDataKey) -> Self {
        Self(Box::new(Aes256Gcm::new(key.expose().into())))
    }

    /// `None` when the system gives no randomness, or the text is over AES-GCM's 64 GiB.
    pub(super) fn seal(
        &self,
        dek_id: i64,
        part: Part,
        facts: &ItemFacts,
        clear: &[u8],
    ) -> Option<Sealed> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).ok()?;
        let aad = associated(part, ENC_V, dek_id, facts);
        let payload = Payload { msg: clear, aad: &aad };
        let bytes = self.0.encrypt(&Nonce::from(nonce), payload).ok()?;
        Some(Sealed { enc_v: ENC_V, dek_id, nonce, bytes })
    }

    pub(super) fn open(
        &self,
        part: Part,
        facts: &ItemFacts,
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, Tampered> {
        if sealed.enc_v != ENC_V {
            return Err(Tampered);
        }
        let aad = associated(part, sealed.enc_v, sealed.dek_id, facts);
        let payload = Payload { msg: &sealed.bytes, aad: &aad };
        let clear = self.0.decrypt(&Nonce::from(sealed.nonce), payload).map_err(|_| Tampered)?;
        Ok(Zeroizing::new(clear))
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(redacted)")
    }
}

/// Fixed order, each part behind its length: no two rows give the same bytes.
fn associated(part: Part, enc_v: i64, dek_id: i64, facts: &ItemFacts) -> Vec<u8> {
    let mut aad = Vec::with_capacity(256);
    for piece in [
        part.domain(),
        &enc_v.to_be_bytes(),
        &dek_id.to_be_bytes(),
        facts.id.as_bytes(),
        facts.tenant.as_bytes(),
        facts.kind.as_bytes(),
        facts.target.as_bytes(),
        facts.reference.as_bytes(),
        &facts.ord_key.0,
        &facts.prio.rank().to_be_bytes(),
        &facts.created_at.to_be_bytes(),
        &facts.expires_at.to_be_bytes(),
    ] {
        append(&mut aad, piece);
    }
    aad
}

/// Appends a length and the bytes.
pub(super) fn append(buffer: &mut Vec<u8>, piece: &[u8]) {
    buffer.extend_from_slice(&(piece.len() as u64).to_be_bytes());
    buffer.extend_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::{OrdKey, Priority};

    fn facts() -> ItemFacts {
        let id = Uuid::now_v7();
        ItemFacts {
            id,
            tenant: "acquirer-a".into(),
            kind: "payment".into(),
            target: "pln".into(),
            reference: id.to_string(),
            ord_key: OrdKey([7; 16]),
            prio: Priority::Normal,
            created_at: 1,
            expires_at: 2,
        }
    }

    fn cipher(byte: u8) -> Cipher {
        Cipher::new(&ClearDataKey::from_slice(&[byte; 32]).unwrap())
    }

    /// One way to change a row, by column.
    type Change = (&'static str, fn(&mut ItemFacts));

    #[test]
    fn what_was_sealed_opens_in_its_own_row_and_in_no_changed_one() {
        let (cipher, facts) = (cipher(1), facts());
        let changes: [Change; 9] = [
            ("id", |row| row.id = Uuid::now_v7()),
            ("tenant", |row| row.tenant.push('x')),
            ("kind", |row| row.kind.push('x')),
            ("target", |row| row.target.push('x')),
            ("reference", |row| row.reference.push('x')),
            ("ord_key", |row| row.ord_key.0[15] ^= 1),
            ("prio", |row| row.prio = Priority::High),
            ("created_at", |row| row.created_at += 1),
            ("expires_at", |row| row.expires_at += 1),
        ];

        let sealed = cipher.seal(5, Part::Record, &facts, b"bill 1").unwrap();

        assert_eq!(*cipher.open(Part::Record, &facts, &sealed).unwrap(), b"bill 1");
        for (column, change) in changes {
            let mut changed = facts.clone();
            change(&mut changed);
            assert_eq!(cipher.open(Part::Record, &changed, &sealed), Err(Tampered), "{column}");
        }
    }

    #[test]
    fn parts_keys_versions_and_bytes_cannot_be_swapped() {
        let (cipher, facts) = (cipher(1), facts());
        let sealed = cipher.seal(5, Part::Record, &facts, b"bill 1").unwrap();

        let mut flipped = sealed.clone();
        flipped.bytes[0] ^= 1;
        let mut renonced = sealed.clone();
        renonced.nonce[0] ^= 1;
        let forms = [
            Sealed { dek_id: 6, ..sealed.clone() },
            Sealed { enc_v: 2, ..sealed.clone() },
            Sealed { bytes: vec![1, 2], ..sealed.clone() },
            flipped,
            renonced,
        ];

        for form in forms {
            assert_eq!(cipher.open(Part::Record, &facts, &form), Err(Tampered), "{form:?}");
        }
        assert_eq!(cipher.open(Part::Pin, &facts, &sealed), Err(Tampered));
        assert_eq!(cipher.open(Part::Answer, &facts, &sealed), Err(Tampered));
        assert_eq!(self::cipher(2).open(Part::Record, &facts, &sealed), Err(Tampered));
    }

    /// "ab" + "c" is not "a" + "bc".
    #[test]
    fn a_border_between_columns_cannot_be_moved() {
        let (cipher, mut facts) = (cipher(1), facts());
        (facts.tenant, facts.kind) = ("ab".into(), "c".into());
        let sealed = cipher.seal(5, Part::Record, &facts, b"bill 1").unwrap();

        (facts.tenant, facts.kind) = ("a".into(), "bc".into());

        assert_eq!(cipher.open(Part::Record, &facts, &sealed), Err(Tampered));
    }
}
