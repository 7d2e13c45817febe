//! Checkpoints: the size and root of a stream, signed, as a C2SP signed note (c2sp.org/tlog-checkpoint).
//!
//! ```text
//! tollgate/gateway-1/01890a5d-ac96-774b-bcce-b302099a8057
//! 4711
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//! key tollgate+1a2b3c4d+AjBZMBMGByqGSM49...
//! interval 5
//!
//! — tollgate Gis8TTBEAiB...
//! ```
//!
//! Extension lines: `key` gives a public key that signs this stream, `interval` how many seconds may pass
//! between two checkpoints. A new key is believed when a note that it has signed is signed by one that is
//! believed already. Ed25519 (type 1) and ECDSA P-256 over SHA-256 (type 2) are known.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::chain::Hash;

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignatureType {
    /// Type 1; the public key has 32 bytes, the signature 64.
    Ed25519,
    /// Type 2; the public key is a SubjectPublicKeyInfo, the signature ASN.1, both DER.
    EcdsaP256,
}

/// A public key that checkpoints are verified with: `<name>+<key id, hex>+<type and key, base64>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VerifierKey {
    name: String,
    kind: SignatureType,
    key: Vec<u8>,
}

impl VerifierKey {
    /// # Errors
    /// [`NotANote`] when the name or the key is none.
    pub fn new(name: &str, kind: SignatureType, key: Vec<u8>) -> Result<Self, NotANote> {
        if name.is_empty()
            || name.contains(|c: char| c.is_whitespace() || c == '+' || c.is_control())
        {
            return Err(NotANote("a key's name is empty or has a space or '+'"));
        }
        let is_key = match kind {
            SignatureType::Ed25519 => key.len() == 32,
            SignatureType::EcdsaP256 => key.len() == 91 && key.starts_with(&P256_SPKI),
        };
        if is_key {
            Ok(Self { name: name.into(), kind, key })
        } else {
            Err(NotANote("not an Ed25519 or P-256 key"))
        }
    }

    /// The first four bytes of a hash of the key, by which signatures name it.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        let hash = match self.kind {
            SignatureType::Ed25519 => {
                let mut hash = Sha256::new_with_prefix(self.name.as_bytes());
                hash.update([b'\n', 1]);
                hash.update(&self.key);
                hash.finalize()
            }
            SignatureType::EcdsaP256 => Sha256::digest(&self.key),
        };
        [hash[0], hash[1], hash[2], hash[3]]
    }

    /// SHA-256 of the key, for people who compare it.
    #[must_use]
    pub fn fingerprint(&self) -> Hash {
        Hash(Sha256::digest(&self.key).into())
    }

    fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        match self.kind {
            SignatureType::Ed25519 => {
                UnparsedPublicKey::new(&ED25519, &self.key).verify(text, signature)
            }
            SignatureType::EcdsaP256 => {
                let point = &self.key[P256_SPKI.len()..];
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(text, signature)
            }
        }
        .is_ok()
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SignatureType::Ed25519 => 1,
            SignatureType::EcdsaP256 => 2,
        };
        let key = BASE64_STANDARD.encode([&[kind], self.key.as_slice()].concat());
        write!(f, "{}+{}+{key}", self.name, hex::encode(self.id()))
    }
}

impl FromStr for VerifierKey {
    type Err = NotANote;

    fn from_str(text: &str) -> Result<Self, NotANote> {
        const SHAPE: NotANote = NotANote("a key is <name>+<8 hex digits>+<base64>");
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(SHAPE);
        };
        let key = BASE64_STANDARD.decode(key).map_err(|_| SHAPE)?;
        let this = match key.split_first() {
            Some((1, key)) => Self::new(name, SignatureType::Ed25519, key.into())?,
            Some((2, key)) => Self::new(name, SignatureType::EcdsaP256, key.into())?,
            _ => return Err(NotANote("a key of a type that is not known here")),
        };
        if hex::encode(this.id()) == id {
            Ok(this)
        } else {
            Err(NotANote("the key has another id"))
        }
    }
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The stream.
    pub origin: String,
    /// Records, from the first on.
    pub size: u64,
    /// Root of their tree.
    pub root: Hash,
    /// Keys that sign this stream.
    pub keys: Vec<VerifierKey>,
    /// Seconds that may pass until the next one.
    pub interval_s: u64,
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        let root = BASE64_STANDARD.encode(self.root.0);
        let keys: String = self.keys.iter().map(|key| format!("key {key}\n")).collect();
        format!("{}\n{}\n{root}\n{keys}interval {}\n", self.origin, self.size, self.interval_s)
    }

    fn parse(text: &str) -> Result<Self, NotANote> {
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(NotANote("a checkpoint has an origin, a size and a root"));
        };
        let size_read = size.parse::<u64>().map_err(|_| NotANote("the size is no number"))?;
        let root = BASE64_STANDARD.decode(root).ok().and_then(|root| root.try_into().ok());
        let root = Hash(root.ok_or(NotANote("the root is no SHA-256 in base64"))?);
        let (mut keys, mut interval_s) = (Vec::new(), 0);
        for line in lines {
            match line.split_once(' ') {
                Some(("key", key)) => keys.push(key.parse()?),
                Some(("interval", seconds)) => {
                    interval_s =
                        seconds.parse().map_err(|_| NotANote("the interval is no number"))?;
                }
                _ => return Err(NotANote("a line that is not known here")),
            }
        }
        let this = Self { origin: origin.into(), size: size_read, root, keys, interval_s };
        // One spelling for each: no second text says the same.
        if this.text() == text { Ok(this) } else { Err(NotANote("not spelled as checkpoints are")) }
    }
}

/// A checkpoint with the signatures of its keys; with none while the HSM is away. Written in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    checkpoint: Checkpoint,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    name: String,
    id: [u8; 4],
    signature: Vec<u8>,
}

/// Who has signed a note, of those who are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// Nobody has signed at all.
    ByNobody,
    /// Only others.
    ByOthers,
    /// One of them; the signature is right.
    ByOne,
    /// A signature in the name of one of them is wrong.
    Wrong,
}

impl SignedNote {
    /// A checkpoint that nobody has signed.
    #[must_use]
    pub fn unsigned(checkpoint: Checkpoint) -> Self {
        Self { text: checkpoint.text(), checkpoint, signatures: Vec::new() }
    }

    /// Adds a signature over [`Checkpoint::text`].
    #[must_use]
    pub fn signed(mut self, key: &VerifierKey, signature: Vec<u8>) -> Self {
        self.signatures.push(Signature { name: key.name.clone(), id: key.id(), signature });
        self
    }

    /// What it says, whoever says it.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Whether it has a signature, whoever made it.
    #[must_use]
    pub const fn is_signed(&self) -> bool {
        !self.signatures.is_empty()
    }

    /// Whether one of `keys` has signed.
    #[must_use]
    pub fn signed_by<'k>(&self, keys: impl IntoIterator<Item = &'k VerifierKey>) -> Signed {
        if self.signatures.is_empty() {
            return Signed::ByNobody;
        }
        let mut found = Signed::ByOthers;
        for key in keys {
            let id = key.id();
            let mut own = self.signatures.iter().filter(|one| one.name == key.name && one.id == id);
            if let Some(one) = own.next() {
                // Two in one name are one too many.
                if own.next().is_some() || !key.verifies(self.text.as_bytes(), &one.signature) {
                    return Signed::Wrong;
                }
                found = Signed::ByOne;
            }
        }
        found
    }

    /// The note as it is published.
    #[must_use]
    pub fn note(&self) -> String {
        let lines = self.signatures.iter().map(|one| {
            let bytes = [one.id.as_slice(), &one.signature].concat();
            format!("\u{2014} {} {}\n", one.name, BASE64_STANDARD.encode(bytes))
        });
        format!("{}\n{}", self.text, lines.collect::<String>())
    }

    /// A published note.
    ///
    /// # Errors
    /// [`NotANote`]; also for a note that [`Self::note`] would write otherwise.
    pub fn parse(note: &str) -> Result<Self, NotANote> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NotANote("longer than 4 KiB"));
        }
        let (text, lines) =
            note.split_once("\n\n").ok_or(NotANote("no blank line before the signatures"))?;
        let text = format!("{text}\n");
        let mut signatures = Vec::new();
        for line in lines.lines() {
            let (name, bytes) = line
                .strip_prefix("\u{2014} ")
                .and_then(|line| line.split_once(' '))
                .ok_or(NotANote("a signature is <dash> <name> <base64>"))?;
            let bytes =
                BASE64_STANDARD.decode(bytes).map_err(|_| NotANote("a signature is no base64"))?;
            let Some((id, signature)) = bytes.split_first_chunk::<4>() else {
                return Err(NotANote("a signature without a key id"));
            };
            signatures.push(Signature { name: name.into(), id: *id, signature: signature.into() });
        }
        let this = Self { checkpoint: Checkpoint::parse(&text)?, text, signatures };
        if this.note() == note { Ok(this) } else { Err(NotANote("not spelled as notes are")) }
    }

    /// As records write it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64_STANDARD.encode(self.note())
    }

    /// As records write it.
    ///
    /// # Errors
    /// [`NotANote`].
    pub fn from_base64(text: &str) -> Result<Self, NotANote> {
        let note = BASE64_STANDARD.decode(text).map_err(|_| NotANote("no base64"))?;
        Self::parse(&String::from_utf8(note).map_err(|_| NotANote("no UTF-8"))?)
    }
}

impl Serialize for SignedNote {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

/// This is no key, no note, or no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotANote(&'static str);

/// What stands before the 65 bytes of the point (RFC 5480).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01, 0x06, 0x08, 0x2A,
    0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const NOTE_BYTES_MAX: usize = 4096;

#[cfg(test)]
#[path = "note_tests.rs"]
mod tests;
