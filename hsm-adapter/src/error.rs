//! What a token's return code means, and what to do about it.

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
            | Self::KeySubstitution(_) => false,
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

/// The table of design: one class for each code.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is not listed restarts the worker")]
fn class(rv: &RvError) -> CkrClass {
    use RvError as R;
    match rv {
        R::SessionHandleInvalid
        | R::SessionClosed
        | R::OperationActive
        | R::OperationNotInitialized
        | R::SessionCount
        | R::FunctionCanceled
        | R::HostMemory
        | R::DeviceMemory => CkrClass::Transient,
        R::ObjectHandleInvalid
        | R::KeyHandleInvalid
        | R::WrappingKeyHandleInvalid
        | R::UnwrappingKeyHandleInvalid => CkrClass::Refind,
        R::UserNotLoggedIn => CkrClass::Relogin,
        R::PinIncorrect
        | R::PinLocked
        | R::PinExpired
        | R::PinLenRange
        | R::UserPinNotInitialized => CkrClass::Permanent,
        R::MechanismInvalid
        | R::MechanismParamInvalid
        | R::KeyFunctionNotPermitted
        | R::KeyTypeInconsistent
        | R::KeyUnextractable
        | R::KeyNotWrappable
        | R::KeySizeRange
        | R::TemplateInconsistent
        | R::TemplateIncomplete
        | R::AttributeReadOnly
        | R::AttributeSensitive
        | R::AttributeTypeInvalid
        | R::AttributeValueInvalid
        | R::ActionProhibited
        | R::SessionReadOnly
        | R::WrappingKeyTypeInconsistent => CkrClass::Configuration,
        R::DataLenRange
        | R::DataInvalid
        | R::EncryptedDataInvalid
        | R::EncryptedDataLenRange
        | R::WrappedKeyInvalid
        | R::WrappedKeyLenRange
        | R::BufferTooSmall => CkrClass::Caller,
        R::SignatureInvalid | R::SignatureLenRange => CkrClass::Answer,
        R::UserAlreadyLoggedIn | R::CryptokiAlreadyInitialized => CkrClass::Benign,
        _ => CkrClass::Restart,
    }
}
