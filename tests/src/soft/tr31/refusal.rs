//! Why a key block is refused. The order of the checks is the order of the variants.

use std::fmt;

use crate::soft::SoftError;

/// Why a key block was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The version is none of A, B, C, D.
    Version,
    /// The length field is not the block's length, or the length cannot be one.
    Length,
    /// A character or an optional block that the form does not know.
    Form,
    /// The protection key does not fit the version.
    Key(SoftError),
    /// Key or header are not what was sealed, or the protection key is another.
    Mac,
    /// What was sealed is no key.
    Payload,
}

impl From<SoftError> for Refusal {
    fn from(error: SoftError) -> Self {
        Self::Key(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "the key block's version is none of A, B, C, D",
            Self::Length => "the key block's length is not the one it states",
            Self::Form => "the key block's header has not its form",
            Self::Mac => "the key block's MAC does not hold",
            Self::Payload => "the key block holds no key",
            Self::Key(_) => "the protection key does not fit the key block's version",
        })
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Key(error) => Some(error),
            Self::Version | Self::Length | Self::Form | Self::Mac | Self::Payload => None,
        }
    }
}
