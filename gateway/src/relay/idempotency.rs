//! What a client's key stands for: one request of one client, once.

use std::fmt;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::keys::{Keys, SealingUnavailable};
use crate::store::{FINGERPRINT_BYTES, Idempotency};

/// The value of an `Idempotency-Key` header: 1 to 255 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

/// The header is not a quoted string of 1 to 255 printable ASCII characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Idempotency-Key must be a quoted string of 1 to 255 printable ASCII characters")]
pub struct BadKey;

impl IdempotencyKey {
    /// Parses a structured-field string (RFC 9651, 3.3.3), without parameters.
    ///
    /// # Errors
    /// [`BadKey`].
    pub fn parse(header: &str) -> Result<Self, BadKey> {
        let quoted = header.trim_matches(' ').strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        let mut rest = quoted.ok_or(BadKey)?.chars();
        let mut key = String::new();
        while let Some(next) = rest.next() {
            key.push(match next {
                '\\' => rest.next().filter(|it| matches!(it, '"' | '\\')).ok_or(BadKey)?,
                ' ' | '!' | '#'..='~' => next,
                _ => return Err(BadKey),
            });
        }
        if key.is_empty() || key.len() > 255 { Err(BadKey) } else { Ok(Self(key)) }
    }
}

/// A request as its fingerprint sees it: the exact body.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The client.
    pub scope: &'a str,
    /// Its key.
    pub key: &'a IdempotencyKey,
    /// `POST`.
    pub method: &'a str,
    /// `/v1/payments`.
    pub path: &'a str,
    /// Before any decoding.
    pub body: &'a [u8],
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} {}, {} bytes)", self.method, self.path, self.body.len())
    }
}

impl Request<'_> {
    /// What the biller knows the payment by. The same request gives the same one, also when its key was
    /// forgotten: neither the store nor the biller takes it twice.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn reference(&self, keys: &Keys) -> Result<Uuid, SealingUnavailable> {
        let Self { scope, key, method, path, body } = self;
        let (scope, key) = (scope.as_bytes(), key.0.as_bytes());
        keys.reference(&[b"payment", scope, key, method.as_bytes(), path.as_bytes(), body])
    }

    /// What the store compares, remembered until `expires_at` (epoch milliseconds).
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn identify(
        &self,
        keys: &Keys,
        expires_at: i64,
    ) -> Result<Idempotency, SealingUnavailable> {
        let mut hash = Sha256::new();
        for part in [self.scope.as_bytes(), self.key.0.as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let key_hash: [u8; FINGERPRINT_BYTES] = hash.finalize().into();
        let fp = keys.fingerprint(&[self.method.as_bytes(), self.path.as_bytes(), self.body])?;
        Ok(Idempotency { scope: self.scope.to_owned(), key_hash, fp, expires_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_string_is_a_key() {
        let longest = format!("\"{}\"", "k".repeat(255));

        assert_eq!(IdempotencyKey::parse("\"a key\""), Ok(IdempotencyKey("a key".into())));
        assert_eq!(IdempotencyKey::parse(r#""a\"b\\c""#), Ok(IdempotencyKey(r#"a"b\c"#.into())));
        assert_eq!(IdempotencyKey::parse(&longest).map(|key| key.0.len()), Ok(255));
    }

    #[test]
    fn anything_else_is_refused() {
        let too_long = format!("\"{}\"", "k".repeat(256));
        let bad = [
            "",
            "\"\"",
            "a",
            "\"a",
            "a\"",
            "\"",
            "\"a\"b\"",
            "\"\\x\"",
            "\"\\\"",
            "\"é\"",
            "\"\u{7f}\"",
            "\"\t\"",
            "\"a\";p=1",
            &too_long,
        ];

        for header in bad {
            assert_eq!(IdempotencyKey::parse(header), Err(BadKey), "{header}");
        }
    }
}
