//! What the HSM link's errors are to a client.

use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;

use crate::links::token::HsmError;
use crate::wire::problem::{Problem, Slug};

/// The one mapping of HSM errors to the contract. The error itself goes to the log.
pub(super) fn problem_of(error: &HsmError) -> Problem {
    let slug = match error {
        HsmError::Link(LinkError::Answered(failure)) => match failure {
            Failure::PinBlockRefused => Slug::PinBlockRefused,
            // Not on the token, of another role, retired: all look like "not granted".
            Failure::UnknownKey | Failure::KeyNotForThis(_) => Slug::NotAllowed,
            // Answers to key officers' orders, which no client gives.
            Failure::KeyBlockRefused(_)
            | Failure::KeyChangeRefused(_)
            | Failure::KeySubstitution(_) => Slug::NotAllowed,
            Failure::MessageLength => {
                return Problem::malformed("message: is empty or longer than the key allows");
            }
            Failure::MacLength { shortest, longest } => {
                return Problem::malformed(format!("length: must be {shortest} to {longest}"));
            }
            Failure::Expired | Failure::Token { .. } => Slug::HsmUnavailable,
        },
        HsmError::Link(LinkError::Busy) => Slug::Overloaded,
        HsmError::Link(LinkError::OrderTooLong) => {
            return Problem::malformed("message: is too long");
        }
        HsmError::Resting
        | HsmError::Distrusted
        | HsmError::Link(
            LinkError::NoWorker
            | LinkError::TimedOut
            | LinkError::WorkerDied
            | LinkError::WrongAnswer,
        ) => Slug::HsmUnavailable,
    };
    if slug != Slug::PinBlockRefused {
        tracing::warn!(%error, slug = slug.as_str(), "the HSM link");
    }
    Problem::new(slug)
}
