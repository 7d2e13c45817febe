//! The hash chain of one stream: nothing can be changed, dropped or put in another order unseen.
//!
//! A stream is what one boot of one replica writes. The hash of a record is
//! SHA-256("tollgate-audit/1", 0x00, hash of the record before, record without its `hash`), over the bytes
//! as they are stored. The first record of a stream follows 32 zero bytes, and names the last record of the
//! replica's stream before. The hashes are the leaves of a Merkle tree, whose root checkpoints sign.

use std::fmt;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::event::Place;
use crate::merkle::Frontier;
use crate::{Event, EventType};

/// A SHA-256 digest. Written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Before the first record.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of the record that follows this one: `parts` together are its bytes without `hash`.
    #[must_use]
    pub(crate) fn next(self, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new_with_prefix(b"tollgate-audit/1\0");
        hash.update(self.0);
        parts.iter().for_each(|part| hash.update(part));
        Self(hash.finalize().into())
    }

    /// As the member of a record, with the comma before it.
    pub(crate) fn member(self) -> [u8; HASH_MEMBER_BYTES] {
        let mut member =
            *b",\"hash\":\"0000000000000000000000000000000000000000000000000000000000000000\"";
        // 64 digits for 32 bytes.
        let _ = hex::encode_to_slice(self.0, &mut member[9..73]);
        member
    }

    /// Of all that a file holds, with how many bytes that is.
    ///
    /// # Errors
    /// What the system says.
    pub fn of_file(path: &Path) -> io::Result<(Self, u64)> {
        struct Into(Sha256);
        impl io::Write for Into {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut hash = Into(Sha256::new());
        let bytes = io::copy(&mut File::open(path)?, &mut hash)?;
        Ok((Self(hash.0.finalize().into()), bytes))
    }

    /// `None` unless the text is 64 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut hash = [0; 32];
        let is_lower = !text.iter().any(u8::is_ascii_uppercase);
        (is_lower && hex::decode_to_slice(text, &mut hash).is_ok()).then_some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; 64];
        // 64 digits for 32 bytes.
        let _ = hex::encode_to_slice(self.0, &mut text);
        serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// Which stream: `<deployment>/<replica>/<boot>`. It is the origin of the stream's checkpoints.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    text: String,
    boot: Uuid,
}

impl StreamId {
    /// # Errors
    /// [`NotAStream`] unless both names are 1 to 64 letters, digits, `.`, `_` and `-`.
    pub fn new(deployment: &str, replica: &str, boot: Uuid) -> Result<Self, NotAStream> {
        for name in [deployment, replica] {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
                return Err(NotAStream(name.into()));
            }
        }
        Ok(Self { text: format!("{deployment}/{replica}/{boot}"), boot })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The boot.
    #[must_use]
    pub const fn boot(&self) -> Uuid {
        self.boot
    }

    /// The deployment.
    #[must_use]
    pub fn deployment(&self) -> &str {
        self.text.split('/').next().unwrap_or_default()
    }
}

impl FromStr for StreamId {
    type Err = NotAStream;

    fn from_str(text: &str) -> Result<Self, NotAStream> {
        let refused = || NotAStream(text.into());
        let mut names = text.split('/');
        let (Some(deployment), Some(replica), Some(boot), None) =
            (names.next(), names.next(), names.next(), names.next())
        else {
            return Err(refused());
        };
        let stream = Self::new(deployment, replica, boot.parse().map_err(|_| refused())?)?;
        // A boot has several spellings, a stream one.
        if stream.text == text { Ok(stream) } else { Err(refused()) }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for StreamId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// This names no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: names in a stream are 1 to 64 letters, digits, '.', '_' and '-'")]
pub struct NotAStream(String);

/// The last record of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Its hash.
    pub hash: Hash,
    /// Its number, from 1; 0 before the first record.
    pub seq: u64,
    /// The stream.
    pub stream: StreamId,
}

/// A stream as far as it is written.
#[derive(Debug, Clone)]
pub struct Chain {
    head: Head,
    tree: Frontier,
    previous: Option<Head>,
}

impl Chain {
    /// A stream without a record, after another one of this replica.
    #[must_use]
    pub fn new(stream: StreamId, previous: Option<Head>) -> Self {
        let head = Head { hash: Hash::ZERO, seq: 0, stream };
        Self { head, tree: Frontier::default(), previous }
    }

    /// Appends the event's record, one line, to `lines`. The first one names the stream before; one of type
    /// `audit.rotate` carries the tree, for who has only what comes now.
    pub fn append(&mut self, mut event: Event, lines: &mut Vec<u8>) {
        if let Some(previous) = self.previous.take() {
            event.set_previous(previous);
        }
        if event.kind() == EventType::AuditRotate {
            event.set_frontier(self.tree.to_text());
        }
        let seq = NonZeroU64::MIN.saturating_add(self.head.seq);
        let place = Place { stream: &self.head.stream, seq, prev_hash: self.head.hash };
        self.head.hash = event.write(place, lines);
        self.head.seq = seq.get();
        self.tree.push(self.head.hash);
    }

    /// The last record.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The root of the tree of all records so far.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.tree.root()
    }
}

const HASH_MEMBER_BYTES: usize = 74;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_one_spelling() {
        let text = "tollgate/gateway-1/01890a5d-ac96-774b-bcce-b302099a8057";
        let stream: StreamId = text.parse().unwrap();

        assert_eq!((stream.as_str(), stream.deployment()), (text, "tollgate"));
        for other in [
            "tollgate/gateway 1/01890a5d-ac96-774b-bcce-b302099a8057",
            "tollgate//01890a5d-ac96-774b-bcce-b302099a8057",
            "tollgate/gateway-1/01890A5D-AC96-774B-BCCE-B302099A8057",
            "tollgate/gateway-1/01890a5dac96774bbcceb302099a8057",
            "tollgate/gateway-1",
            "tollgate/gateway+1/01890a5d-ac96-774b-bcce-b302099a8057",
            "a/b/01890a5d-ac96-774b-bcce-b302099a8057/c",
        ] {
            assert!(other.parse::<StreamId>().is_err(), "{other}");
        }
    }

    #[test]
    fn a_hash_is_written_in_lower_case_and_read_in_no_other() {
        let hash = Hash([0xAB; 32]);

        assert_eq!(Hash::parse(hash.to_string().as_bytes()), Some(hash));
        assert_eq!(serde_json::to_string(&hash).unwrap(), format!("\"{hash}\""));
        assert_eq!(hash.member(), format!(",\"hash\":\"{hash}\"").as_bytes());
        assert_eq!(Hash::parse("AB".repeat(32).as_bytes()), None);
        assert_eq!(Hash::parse(&b"ab".repeat(31)), None);
    }
}
