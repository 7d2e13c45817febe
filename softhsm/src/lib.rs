//! Disposable SoftHSM tokens, each in a directory of its own with its own `SOFTHSM2_CONF`.
//!
//! For demo and CI. Keys of known value are put on the token in the clear, which a production
//! token never allows: `tollgate-token` refuses nothing else, because it protects nothing.
#![forbid(unsafe_code)]

mod demo_keys;
mod directory;
mod plan;

pub use demo_keys::demo_plan;
pub use directory::{KeyReport, TokenDirectory, find_module};
pub use plan::{PlannedKey, PlannedValue};

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum TokenToolError {
    #[error("no SoftHSM module found; run softhsm/install.sh, or name one with --module")]
    NoModule,
    #[error("{path}: {why}")]
    File { path: String, why: String },
    #[error(
        "key {key}: check value {found} where {stated} was stated; the key is not what it says"
    )]
    CheckValue { key: String, found: String, stated: String },
    #[error("key {key}: {why}")]
    Key { key: String, why: String },
    #[error(transparent)]
    Register(#[from] hsm_adapter::register::RegisterError),
    #[error(transparent)]
    Ceremony(#[from] hsm_adapter::ceremony::CeremonyError),
    #[error("the plan of keys is refused: {0}")]
    Plan(String),
}
