//! The orders and answers that cross the socket between gateway and worker.
//!
//! A frame is a four-byte little-endian length and a postcard body of at most [`FRAME_BYTES_MAX`].
//! An order names labels and formats, never mechanisms, IVs, templates or handles. No message can
//! carry a clear PIN: there is no type for one here. The first frame from the worker is
//! [`Hello`]; a version that differs ends the conversation.

mod frame;

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

pub(crate) use frame::wipe;
pub use frame::{FrameBuffer, FrameError, append_frame};

use crate::error::Failure;
use crate::register::{KeyAlgorithm, KeyProfile, KeyState, now_s};
use crate::vocabulary::{
    Kcv, KeyBlockText, KeyLabel, KeyName, KeyRole, Ksn, MacAlgorithm, Mode, Pan, PinBlock,
    PinBlockFormat, PinOffset, Pvki, Pvv, SignatureAlgorithm,
};

/// Both sides speak this version or none.
pub const VERSION: u16 = 5;

/// A message of 64 KiB and its order fit with room to spare.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;

/// The worker's first frame: it has proved its operations and waits for orders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the worker.
    pub version: u16,
    /// Session threads.
    pub sessions: u16,
    /// Manufacturer, model, serial and firmware of the token, as it reports them.
    pub token: String,
    /// SHA-256 of the module's file as it was before it was loaded, lower-case hex.
    pub module_sha256: String,
    /// What was proved: each operation, its mode and the recipe that runs.
    pub recipes: Vec<Recipe>,
}

/// One operation as the start-up known-answer test proved it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// `translate iso0 to iso4`, `retail MAC`, ...
    pub operation: String,
    /// Where a clear PIN is while it runs; for an operation without PIN, where the key is.
    pub mode: Mode,
    /// The calls that gave the right bytes: `unwrap DES3_ECB, wrap DES3_ECB`.
    pub calls: String,
}

/// An order with its number and its deadline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Repeated in the reply.
    pub id: u64,
    /// CLOCK_MONOTONIC nanoseconds; both processes share that clock. An order whose deadline has
    /// passed is dropped unopened.
    pub deadline_ns: u64,
    /// What to do.
    pub order: Order,
}

/// [`Request`] as it is sent: the order stays with its caller, who may have to give it again.
#[derive(Debug, Serialize)]
pub(crate) struct RequestRef<'o> {
    pub(crate) id: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) order: &'o Order,
}

/// The answer to one request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The request's number.
    pub id: u64,
    /// Where a clear PIN was while it ran; `None` when the order names no PIN or no known key.
    pub mode: Option<Mode>,
    /// What came of it.
    pub outcome: Result<Answer, Failure>,
}

/// A key and the format of the block under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinKey {
    /// The zone PIN key, or the base derivation key.
    pub key: KeyName,
    /// The block's format.
    pub format: PinBlockFormat,
    /// For a base derivation key, and only there: whose device, which transaction.
    pub ksn: Option<Ksn>,
}

/// What a PIN is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PinReference {
    /// Visa PVV.
    Pvv {
        /// The PVV key.
        key: KeyName,
        /// Of those that the key's profile lists.
        pvki: Pvki,
        /// The card's value.
        pvv: Pvv,
    },
    /// IBM 3624 offset; table and validation data belong to the key.
    Ibm3624 {
        /// The PIN verification key.
        key: KeyName,
        /// The card's offset, as long as the PIN.
        offset: PinOffset,
    },
    /// A block that the caller keeps under a reference key, made with the same PAN.
    Block {
        /// The reference key.
        key: KeyName,
        /// Format 0.
        block: PinBlock,
    },
}

/// What a worker can be asked. Each is a pure function of its input, so that it may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Re-enciphers a PIN block from one zone to another.
    TranslatePin {
        /// One PAN: changing it is not possible.
        pan: Pan,
        /// The block.
        block: PinBlock,
        /// Its key and format.
        from: PinKey,
        /// The key and format wanted.
        to: PinKey,
    },
    /// Compares the PIN of a block with what the issuer keeps.
    VerifyPin {
        /// The PAN.
        pan: Pan,
        /// The block.
        block: PinBlock,
        /// Its key and format.
        from: PinKey,
        /// What to compare with.
        reference: PinReference,
    },
    /// Makes a MAC.
    GenerateMac {
        /// The MAC key, or the base derivation key.
        key: KeyName,
        /// For a base derivation key, and only there.
        ksn: Option<Ksn>,
        /// The message, as it is.
        message: Message,
        /// Bytes, within what the key allows; the key's own length when absent.
        length: Option<u8>,
    },
    /// Compares a MAC in constant time.
    VerifyMac {
        /// The MAC key, or the base derivation key.
        key: KeyName,
        /// For a base derivation key, and only there.
        ksn: Option<Ksn>,
        /// The message, as it is.
        message: Message,
        /// The MAC to compare, of the key's own length.
        mac: Message,
    },
    /// Draws a data key in the token and wraps it under the KEK.
    MakeDataKey {
        /// The KEK.
        kek: KeyName,
    },
    /// Unwraps a data key.
    OpenDataKey {
        /// The KEK.
        kek: KeyName,
        /// RFC 5649 form.
        wrapped: Vec<u8>,
    },
    /// Wraps a data key anew, under the active version of the KEK. Its clear form does not leave the
    /// worker.
    RewrapDataKey {
        /// The KEK, with the version under which the key is wrapped.
        kek: KeyName,
        /// RFC 5649 form.
        wrapped: Vec<u8>,
    },
    /// Signs an audit checkpoint, and no other text.
    SignCheckpoint {
        /// A key of role `audit-signing`. A version that is named may be retired while it is usable:
        /// when keys change, the old one and the new one sign one checkpoint.
        key: KeyName,
        /// In the form of C2SP tlog-checkpoint: origin, size, root hash in base64, and what lines
        /// more there are; at most 2 048 bytes.
        text: Message,
    },
    /// Random bytes from the token's generator. 1 to 1024.
    Random {
        /// How many.
        bytes: u16,
    },
    /// Every key of the register with its check value.
    ListKeys,
    /// One known MAC with a key of its own, and a look for a key of the register: session keys go on
    /// working on a token that has vanished.
    Heartbeat,
    /// Runs the known-answer tests again.
    SelfTest,
    /// Reads every key back, compares check values, tries what must fail; quarantines what deviates.
    Lint,
    /// Opens a key block, puts the key on the token and into the register, staged. Repeating it is
    /// safe: a key that is there with the same check value is kept.
    ImportKey {
        /// The number of this change, which grows. A change that the register holds is not made
        /// again.
        change: u64,
        /// The key block protection key.
        kbpk: KeyName,
        /// The block.
        block: KeyBlockText,
        /// What the key is to be for. Its check value is what the officer expects, when he says so.
        #[serde(with = "profile_form")]
        profile: Box<KeyProfile>,
    },
    /// Moves a key version to another state: staged to active (the one that was active retires),
    /// active to retired, any to compromised.
    SetKeyState {
        /// As in `ImportKey`.
        change: u64,
        /// With its version.
        key: KeyName,
        /// The new state.
        state: KeyState,
        /// When retiring: until when it still verifies and deciphers, epoch seconds.
        usable_until_s: Option<i64>,
    },
    /// Reads the register anew, after another worker has changed it.
    ReloadKeys,
}

impl Order {
    /// The operation's name in metrics and logs.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::TranslatePin { .. } => "pin_translate",
            Self::VerifyPin { .. } => "pin_verify",
            Self::GenerateMac { .. } => "mac_generate",
            Self::VerifyMac { .. } => "mac_verify",
            Self::MakeDataKey { .. } => "data_key_make",
            Self::OpenDataKey { .. } => "data_key_open",
            Self::RewrapDataKey { .. } => "data_key_rewrap",
            Self::SignCheckpoint { .. } => "checkpoint_sign",
            Self::Random { .. } => "random",
            Self::ListKeys => "key_list",
            Self::Heartbeat => "heartbeat",
            Self::SelfTest => "self_test",
            Self::Lint => "key_lint",
            Self::ImportKey { .. } => "key_import",
            Self::SetKeyState { .. } => "key_state",
            Self::ReloadKeys => "key_reload",
        }
    }

    /// Whether the answer is of the kind that this order asks for, whatever it says.
    #[must_use]
    pub fn is_answered_by(&self, answer: &Answer) -> bool {
        match self {
            Self::TranslatePin { .. } => matches!(answer, Answer::Block { .. }),
            Self::VerifyPin { .. } => matches!(answer, Answer::PinVerified { .. }),
            Self::GenerateMac { .. } => matches!(answer, Answer::Mac { .. }),
            Self::VerifyMac { .. } => matches!(answer, Answer::Verified(_)),
            Self::MakeDataKey { .. } => matches!(answer, Answer::DataKey { .. }),
            Self::OpenDataKey { .. } => matches!(answer, Answer::OpenedDataKey(_)),
            Self::RewrapDataKey { .. } => matches!(answer, Answer::RewrappedDataKey { .. }),
            Self::SignCheckpoint { .. } => matches!(answer, Answer::CheckpointSigned { .. }),
            Self::Random { .. } => matches!(answer, Answer::Random(_)),
            Self::ListKeys => matches!(answer, Answer::Keys(_)),
            Self::Heartbeat => matches!(answer, Answer::Beat { .. }),
            Self::SelfTest => matches!(answer, Answer::Proved(_)),
            Self::Lint => matches!(answer, Answer::Lint(_)),
            Self::ImportKey { .. } | Self::SetKeyState { .. } => matches!(answer, Answer::Key(_)),
            Self::ReloadKeys => matches!(answer, Answer::Reloaded(_)),
        }
    }
}

/// Bytes that are not to be printed. Zeroized.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct Message(#[serde(with = "bytes_form")] pub Vec<u8>);

mod profile_form {
    //! A profile as it stands in keys.toml: it leaves out what a key has not, which postcard cannot.
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    use crate::register::KeyProfile;

    pub(super) fn serialize<S: Serializer>(
        profile: &KeyProfile,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        toml::to_string(profile).map_err(ser::Error::custom)?.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Box<KeyProfile>, D::Error> {
        toml::from_str(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

mod bytes_form {
    //! Byte strings in one piece: serde would take a `Vec<u8>` element by element.
    use serde::{Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.0.len())
    }
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To `TranslatePin`.
    Block {
        /// Under the outbound key.
        block: PinBlock,
        /// The version of that key.
        key_version: u32,
    },
    /// To `GenerateMac`.
    Mac {
        /// Left-most bytes.
        mac: Message,
        /// The key's.
        algorithm: MacAlgorithm,
        /// The version that made it.
        key_version: u32,
    },
    /// To `VerifyMac`.
    Verified(bool),
    /// To `VerifyPin`.
    PinVerified {
        /// Whether it is the PIN.
        verified: bool,
        /// The version of the key that it was verified with.
        key_version: u32,
    },
    /// To `MakeDataKey`.
    DataKey {
        /// For use in the gateway.
        clear: ClearDataKey,
        /// For the database.
        wrapped: Vec<u8>,
        /// The KEK's version.
        kek_version: u32,
    },
    /// To `OpenDataKey`.
    OpenedDataKey(ClearDataKey),
    /// To `RewrapDataKey`.
    RewrappedDataKey {
        /// For the database.
        wrapped: Vec<u8>,
        /// The active version of the KEK.
        kek_version: u32,
    },
    /// To `SignCheckpoint`.
    CheckpointSigned {
        /// In the form of its algorithm.
        signature: Vec<u8>,
        /// In the form of its algorithm.
        public_key: Vec<u8>,
        /// The key's.
        algorithm: SignatureAlgorithm,
        /// The version that made it.
        key_version: u32,
    },
    /// To `Random`.
    Random(Message),
    /// To `ListKeys`.
    Keys(Vec<KeyFacts>),
    /// To `Heartbeat`.
    Beat {
        /// Whether the MAC was the known one.
        right: bool,
    },
    /// To `SelfTest`: the operations proved.
    Proved(Vec<Recipe>),
    /// To `Lint`.
    Lint(LintReport),
    /// To `ImportKey` and `SetKeyState`: the key as it is now.
    Key(Box<KeyFacts>),
    /// To `ReloadKeys`: the last change that the register holds.
    Reloaded(u64),
}

/// What the key lint found: every key of the register, every other object, every negative probe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LintReport {
    /// One row a key of the register, then one a token object that no key of the register names; of
    /// those at most 64.
    pub keys: Vec<KeyRow>,
    /// One row a probe: a call that must fail, on throw-away keys with the production templates.
    pub probes: Vec<ProbeRow>,
    /// Session objects of this worker that the token holds; 0 when no order runs.
    pub session_objects: u64,
}

/// One key as it was read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// `label@version`, or the CKA_LABEL of an object that no key of the register names.
    pub key: String,
    /// Its role; `None` for an object that no key of the register names.
    pub role: Option<KeyRole>,
    /// What is not as it must be; empty is good. A key of the register is then quarantined, until
    /// its worker starts again.
    pub deviations: Vec<String>,
    /// Whether the check value is another than the register's.
    pub substituted: bool,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Its name, as configuration accepts it: `copy`, `digest-key`, ...
    pub probe: String,
    /// What must fail.
    pub about: String,
    /// What came of it.
    pub outcome: ProbeOutcome,
    /// The token's answer, or why it was not tried.
    pub detail: String,
}

/// What came of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeOutcome {
    /// The token refused, as it must.
    Refused,
    /// The token did what it must not.
    Done,
    /// The token cannot make what the probe needs.
    NotTried,
}

impl ProbeOutcome {
    /// `refused`, `done` or `not-tried`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Done => "done",
            Self::NotTried => "not-tried",
        }
    }
}

/// What anyone may know of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// The label.
    pub label: KeyLabel,
    /// The version.
    pub version: u32,
    /// Whether this version is in use.
    pub state: KeyState,
    /// Until when a retired version still verifies and deciphers. Epoch seconds.
    pub usable_until_s: Option<i64>,
    /// The one thing that it does.
    pub role: KeyRole,
    /// The cipher family.
    pub algorithm: KeyAlgorithm,
    /// Where a clear PIN may be while it is used.
    pub mode: Mode,
    /// Why the key lint took it out of use, when it did.
    pub quarantined: Option<String>,
    /// PIN block formats.
    pub formats: Vec<PinBlockFormat>,
    /// For a MAC key.
    pub mac: Option<MacAlgorithm>,
    /// The check value, where the register has one or the role allows to compute it.
    pub kcv: Option<Kcv>,
    /// Whether the check value was computed on the token just now; otherwise the register says it.
    pub kcv_from_token: bool,
}

impl KeyFacts {
    /// Whether this version verifies and deciphers: active, or retired before its end.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        match self.state {
            KeyState::Active => true,
            KeyState::Retired => self.usable_until_s.is_none_or(|until| now_s() < until),
            KeyState::Staged | KeyState::Compromised => false,
        }
    }
}

/// A clear AES-256 data key for sealing queue records. Zeroized; never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct ClearDataKey(Box<[u8; 32]>);

impl ClearDataKey {
    /// `None` unless there are 32 bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = Box::new([0; 32]);
        (bytes.len() == 32).then(|| {
            key.copy_from_slice(bytes);
            Self(key)
        })
    }

    /// The 32 bytes, for the cipher.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ClearDataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClearDataKey(redacted)")
    }
}
