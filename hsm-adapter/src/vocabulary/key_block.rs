//! A key block as it travels: TR-31 / X9.143, printable ASCII. The key in it is enciphered.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Malformed;

/// The text of a key block. Only its size and alphabet are checked here; the worker opens it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBlockText(String);

impl KeyBlockText {
    /// # Errors
    /// [`Malformed::KeyBlock`] unless 16 to 9992 printable ASCII characters.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if (16..=9992).contains(&text.len())
            && text.bytes().all(|byte| (0x20..0x7F).contains(&byte))
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed::KeyBlock)
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyBlockText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyBlockText({} characters)", self.0.len())
    }
}
