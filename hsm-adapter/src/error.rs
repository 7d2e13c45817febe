//! What a token's return code means, and what to do about it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use cryptoki::context::Function;
use cryptoki::error::{Error as CryptokiError, RvError};
use serde::{Deserialize, Serialize};

/// Why a worker did not do what it was asked. Crosses the socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum Failure {
    #[error("the PIN block was refused")]
    PinBlockRefused,
    #[error("no key of that name")]
    UnknownKey,
    #[error("the key is not for this: {0}")]
    KeyNotForThis(String),
    #[error("the message is empty or longer than the key allows")]
    MessageLength,
    #[error("the key makes MACs of {shortest} to {longest} bytes")]
    MacLength { shortest: u8, longest: u8 },
    #[error("the deadline had passed before the order was opened")]
    Expired,
    #[error("the key block is refused: {0}")]
    KeyBlockRefused(String),
    #[error("the change of keys is refused: {0}")]
    KeyChangeRefused(String),
    #[error("a key was substituted: {0}")]
    KeySubstitution(String),
    #[error("the text is no checkpoint: {0}")]
    CheckpointRefused(String),
    #[error("{function} answered {code}")]
    Token { function: String, code: String, class: CkrClass },
}

/// What kind of trouble a CKR code is (the reactions are in ARCHITECTURE.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the table of ARCHITECTURE.md")]
pub enum CkrClass {
    Transient,
    Refind,
    Relogin,
    Restart,
    Permanent,
    Configuration,
    Caller,
    Answer,
    Benign,
}

impl CkrClass {
    const NAMED: [(&str, Self); 9] = [
        ("transient", Self::Transient),
        ("re-find", Self::Refind),
        ("re-login", Self::Relogin),
        ("restart", Self::Restart),
        ("permanent", Self::Permanent),
        ("configuration", Self::Configuration),
        ("caller", Self::Caller),
        ("answer", Self::Answer),
        ("benign", Self::Benign),
    ];
}

/// The class of one code of a token's vendor, as `0x80000001=transient`: the code is at least
/// 0x80000000, the class is named as in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VendorCode {
    /// The return code.
    pub code: u64,
    /// What kind of trouble it is.
    pub class: CkrClass,
}

impl FromStr for VendorCode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('=').and_then(|(code, class)| {
            let code = u64::from_str_radix(code.strip_prefix("0x")?, 16).ok()?;
            let (_, class) = CkrClass::NAMED.into_iter().find(|(name, _)| *name == class)?;
            (code >= 0x8000_0000).then_some(Self { code, class })
        });
        parts.ok_or_else(|| {
            let classes = CkrClass::NAMED.map(|(name, _)| name).join(", ");
            format!(
                "{text:?}: write a code from 0x80000000 on and its class as 0x80000001=transient; \
                     classes are {classes}"
            )
        })
    }
}

impl TryFrom<String> for VendorCode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VendorCode> for String {
    fn from(code: VendorCode) -> Self {
        code.to_string()
    }
}

impl fmt::Display for VendorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = CkrClass::NAMED.into_iter().find(|(_, class)| *class == self.class);
        write!(f, "{:#x}={}", self.code, named.map_or("restart", |(name, _)| name))
    }
}

/// The vendor's codes of the one token that this process has.
static VENDOR_CODES: OnceLock<Vec<VendorCode>> = OnceLock::new();

/// Says what a vendor's codes mean; what is not named means restart. The first call counts: a worker
/// makes it before it loads the module.
pub(crate) fn set_vendor_codes(codes: &[VendorCode]) {
    VENDOR_CODES.get_or_init(|| codes.to_vec());
}

impl Failure {
    /// Whether another worker may do what this one did not.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Token { class, .. } => match class {
                CkrClass::Transient | CkrClass::Refind | CkrClass::Relogin | CkrClass::Restart => {
                    true
                }
                CkrClass::Permanent
                | CkrClass::Configuration
                | CkrClass::Caller
                | CkrClass::Answer
                | CkrClass::Benign => false,
            },
            Self::PinBlockRefused
            | Self::UnknownKey
            | Self::KeyNotForThis(_)
            | Self::MessageLength
            | Self::MacLength { .. }
            | Self::Expired
            | Self::KeyBlockRefused(_)
            | Self::KeyChangeRefused(_)
            | Self::KeySubstitution(_)
            | Self::CheckpointRefused(_) => false,
        }
    }
}

/// A call into the module that did not end with CKR_OK.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum TokenError {
    #[error("{function} answered {rv:?}")]
    Refused { function: Function, rv: RvError },
    #[error("the PKCS#11 library: {0}")]
    Library(String),
}

impl From<CryptokiError> for TokenError {
    fn from(error: CryptokiError) -> Self {
        if let CryptokiError::Pkcs11(rv, function) = error {
            return Self::Refused { function, rv };
        }
        Self::Library(error.to_string())
    }
}

impl TokenError {
    /// The class of this error.
    #[must_use]
    pub fn class(&self) -> CkrClass {
        match self {
            Self::Refused { rv, .. } => class(rv),
            Self::Library(_) => CkrClass::Restart,
        }
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        let class = error.class();
        match error {
            TokenError::Refused { function, rv } => {
                Self::Token { function: format!("{function:?}"), code: format!("{rv:?}"), class }
            }
            TokenError::Library(text) => {
                Self::Token { function: "library".into(), code: text, class }
            }
        }
    }
}

/// The class of each code that PKCS#11 names. ARCHITECTURE.md says what is done about a class.
fn class(rv: &RvError) -> CkrClass {
    use RvError as R;
    match rv {
        R::Cancel
        | R::FunctionCanceled
        | R::SessionHandleInvalid
        | R::SessionClosed
        | R::SessionCount
        | R::OperationActive
        | R::OperationNotInitialized
        | R::HostMemory
        | R::DeviceMemory => CkrClass::Transient,
        R::ObjectHandleInvalid
        | R::KeyHandleInvalid
        | R::WrappingKeyHandleInvalid
        | R::UnwrappingKeyHandleInvalid => CkrClass::Refind,
        R::UserNotLoggedIn => CkrClass::Relogin,
        R::GeneralError
        | R::FunctionFailed
        | R::FunctionRejected
        | R::DeviceError
        | R::DeviceRemoved
        | R::TokenNotPresent
        | R::TokenNotRecognized
        | R::SlotIdInvalid
        | R::CryptokiNotInitialized
        | R::NoEvent
        | R::NeedToCreateThreads
        | R::CantLock
        | R::MutexBad
        | R::MutexNotLocked
        | R::RandomNoRng
        // Somebody else has the officer's login, or more logins than the token bears.
        | R::UserAnotherAlreadyLoggedIn
        | R::UserTooManyTypes
        | R::SessionReadWriteSoExists
        | R::UnknownErrorCode(_) => CkrClass::Restart,
        R::PinIncorrect
        | R::PinInvalid
        | R::PinLocked
        | R::PinExpired
        | R::PinLenRange
        | R::PinTooWeak
        | R::NewPinMode
        | R::NextOtp
        | R::UserPinNotInitialized
        | R::LibraryLoadFailed
        | R::FipsSelfTestFailed => CkrClass::Permanent,
        R::ActionProhibited
        | R::ArgumentsBad
        | R::AttributeReadOnly
        | R::AttributeSensitive
        | R::AttributeTypeInvalid
        | R::AttributeValueInvalid
        | R::CurveNotSupported
        | R::DomainParamsInvalid
        | R::ExceededMaxIterations
        | R::FunctionNotParallel
        | R::FunctionNotSupported
        | R::InformationSensitive
        | R::KeyChanged
        | R::KeyFunctionNotPermitted
        | R::KeyIndigestible
        | R::KeyNeeded
        | R::KeyNotNeeded
        | R::KeyNotWrappable
        | R::KeySizeRange
        | R::KeyTypeInconsistent
        | R::KeyUnextractable
        | R::MechanismInvalid
        | R::MechanismParamInvalid
        | R::PublicKeyInvalid
        | R::RandomSeedNotSupported
        | R::SavedStateInvalid
        | R::SessionExists
        | R::SessionParallelNotSupported
        | R::SessionReadOnly
        | R::SessionReadOnlyExists
        | R::StateUnsaveable
        | R::TemplateIncomplete
        | R::TemplateInconsistent
        | R::TokenWriteProtected
        | R::UnwrappingKeySizeRange
        | R::UnwrappingKeyTypeInconsistent
        | R::UserTypeInvalid
        | R::WrappingKeySizeRange
        | R::WrappingKeyTypeInconsistent => CkrClass::Configuration,
        R::BufferTooSmall
        | R::DataInvalid
        | R::DataLenRange
        | R::EncryptedDataInvalid
        | R::EncryptedDataLenRange
        | R::WrappedKeyInvalid
        | R::WrappedKeyLenRange => CkrClass::Caller,
        R::SignatureInvalid | R::SignatureLenRange => CkrClass::Answer,
        R::UserAlreadyLoggedIn | R::CryptokiAlreadyInitialized => CkrClass::Benign,
        R::VendorDefined(code) => {
            let known = VENDOR_CODES.get().into_iter().flatten().find(|known| known.code == *code);
            known.map_or(CkrClass::Restart, |known| known.class)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vendors_code_is_written_as_it_is_read() {
        for (text, code, class) in [
            ("0x80000001=transient", 0x8000_0001, CkrClass::Transient),
            ("0x80000fff=re-login", 0x8000_0FFF, CkrClass::Relogin),
        ] {
            let read: VendorCode = text.parse().unwrap();
            assert_eq!((read, read.to_string()), (VendorCode { code, class }, text.to_owned()));
        }
        for text in ["0x30=restart", "0x80000001", "80000001=restart", "0x80000001=odd", ""] {
            let why = text.parse::<VendorCode>().unwrap_err();
            assert!(why.contains("0x80000001=transient"), "{why}");
        }
    }
}
