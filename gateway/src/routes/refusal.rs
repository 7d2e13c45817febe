//! What the HSM link's errors are to a client.

use std::time::Duration;

use compliance::Reason;
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;

use super::asked::not_allowed;
use crate::audit::AuditEntry;
use crate::guard::GuardError;
use crate::links::token::HsmError;
use crate::wire::problem::{Problem, Slug};

/// The one mapping of what the guard refused to the contract. What exactly is told to the audit log
/// alone: a blocked card looks like a key that is not granted, a replayed KSN like a bad block.
pub(super) fn problem_of(entry: &AuditEntry, error: &GuardError) -> Problem {
    match error {
        GuardError::Hsm(error) => problem_of_hsm(entry, error),
        GuardError::Blocked => {
            entry.reason(Reason::Blocked);
            Problem::new(Slug::NotAllowed)
        }
        GuardError::Quarantined => {
            entry.reason(Reason::Quarantined);
            Problem::new(Slug::NotAllowed)
        }
        GuardError::Throttled { retry_after } => {
            Problem::new(Slug::TooManyRequests).retry_after_s(seconds(*retry_after))
        }
        GuardError::Replayed => block_refused(entry),
        GuardError::NoRoom(_) | GuardError::Store(_) => {
            tracing::error!(%error, "the guard");
            entry.reason(Reason::LimiterUnavailable);
            Problem::new(Slug::Overloaded)
        }
        // The index key comes from the token.
        // A fault of our own: its place is logged.
        GuardError::Unclear => Problem::new(Slug::Internal),
        GuardError::NoReference(_) => {
            entry.reason(Reason::LimiterUnavailable);
            Problem::new(Slug::HsmUnavailable)
        }
    }
}

/// The one form of every PIN failure.
pub(super) fn block_refused(entry: &AuditEntry) -> Problem {
    entry.reason(Reason::Refused);
    Problem::new(Slug::PinBlockRefused)
}

/// Whole seconds to wait, an hour at most.
pub(super) fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).clamp(1, 3_600)
}

/// The one mapping of HSM errors to the contract. The error itself goes to the log.
pub(super) fn problem_of_hsm(entry: &AuditEntry, error: &HsmError) -> Problem {
    let slug = match error {
        HsmError::Link(LinkError::Answered(failure)) => match failure {
            Failure::PinBlockRefused => return block_refused(entry),
            // Not on the token, of another role, retired: all look like "not granted".
            // The last four are answers to orders that no client gives.
            Failure::UnknownKey
            | Failure::KeyNotForThis(_)
            | Failure::KeyBlockRefused(_)
            | Failure::KeyChangeRefused(_)
            | Failure::KeySubstitution(_)
            | Failure::CheckpointRefused(_) => {
                tracing::warn!(%error, "the HSM link");
                return not_allowed(entry);
            }
            Failure::MessageLength => {
                return Problem::malformed("message: is empty or longer than the key allows");
            }
            Failure::MacLength { shortest, longest } => {
                return Problem::malformed(format!("length: must be {shortest} to {longest}"));
            }
            Failure::Expired | Failure::Token { .. } => Slug::HsmUnavailable,
        },
        HsmError::Overloaded | HsmError::Link(LinkError::Busy) => Slug::Overloaded,
        HsmError::Link(LinkError::OrderTooLong) => {
            return Problem::malformed("message: is too long");
        }
        HsmError::NoneReady { retry_after } => {
            tracing::warn!(%error, "the HSM link");
            return Problem::new(Slug::HsmUnavailable)
                .retry_after_s(seconds(*retry_after).min(300));
        }
        HsmError::Distrusted
        | HsmError::TooLate
        | HsmError::Link(
            LinkError::NoWorker
            | LinkError::TimedOut
            | LinkError::WorkerDied
            | LinkError::WrongAnswer,
        ) => Slug::HsmUnavailable,
    };
    tracing::warn!(%error, slug = slug.as_str(), "the HSM link");
    Problem::new(slug)
}
