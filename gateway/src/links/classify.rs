//! What may be done after an attempt, as one table: operation x outcome. ARCHITECTURE.md shows it.
//!
//! Two answers make a decision: how far the attempt came (it belongs to the error) and whether the
//! thing may be done twice (it belongs to the operation). Changes of keys are not here: an officer's
//! change has a number, is given to a worker once, and taken up again by its number.

use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;

/// What is asked of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// PIN and MAC operations, data keys, lists: a function of its input, whoever computes it.
    Pure,
    /// A payment to a biller that recognises our reference.
    Payment,
}

/// How far an attempt came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not one byte of the request left.
    NotSent,
    /// A byte left, and no final answer came.
    SentUnknown,
    /// The other side says that it did nothing, and may be asked again.
    AnsweredRetryable,
    /// Its last word.
    AnsweredFinal,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Ask again, another member of the link first.
    Repeat,
    /// Send the same bytes again under the same reference, to any member.
    RepeatSameReference,
    /// No further attempt here; the caller decides (store, hold, refuse).
    GiveUp,
}

impl Operation {
    /// Every operation, in the order of the table.
    pub const ALL: [Self; 2] = [Self::Pure, Self::Payment];

    /// As the table calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pure => "PIN and MAC operations, data keys, key list",
            Self::Payment => "payment, biller deduplicates on our reference",
        }
    }
}

impl Outcome {
    /// Every outcome, in the order of the table.
    pub const ALL: [Self; 4] =
        [Self::NotSent, Self::SentUnknown, Self::AnsweredRetryable, Self::AnsweredFinal];

    /// As metrics and the queue's history name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::SentUnknown => "sent_unknown",
            Self::AnsweredRetryable => "answered_retryable",
            Self::AnsweredFinal => "answered_final",
        }
    }
}

impl Decision {
    /// As the table calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Repeat => "repeat",
            Self::RepeatSameReference => "same reference again",
            Self::GiveUp => "give up",
        }
    }
}

/// The table.
#[must_use]
pub fn decide(operation: Operation, outcome: Outcome) -> Decision {
    match (operation, outcome) {
        (Operation::Pure, Outcome::NotSent)
        | (Operation::Pure, Outcome::SentUnknown)
        | (Operation::Pure, Outcome::AnsweredRetryable)
        | (Operation::Payment, Outcome::NotSent) => Decision::Repeat,
        (Operation::Payment, Outcome::SentUnknown)
        | (Operation::Payment, Outcome::AnsweredRetryable) => Decision::RepeatSameReference,
        (Operation::Pure, Outcome::AnsweredFinal)
        | (Operation::Payment, Outcome::AnsweredFinal) => Decision::GiveUp,
    }
}

/// How far an order to an HSM worker came.
#[must_use]
pub fn of_order(error: &LinkError) -> Outcome {
    match error {
        LinkError::NoWorker | LinkError::Busy => Outcome::NotSent,
        LinkError::TimedOut | LinkError::WorkerDied => Outcome::SentUnknown,
        // It was dropped unopened, since the attempt's time was over.
        LinkError::Answered(Failure::Expired) => Outcome::NotSent,
        LinkError::Answered(failure) if failure.is_transient() => Outcome::AnsweredRetryable,
        LinkError::Answered(_) | LinkError::WrongAnswer | LinkError::OrderTooLong => {
            Outcome::AnsweredFinal
        }
    }
}

/// What the biller's own HTTP status says of a payment; `None` when it says nothing certain.
#[must_use]
pub fn of_status(status: u16) -> Option<Word> {
    match status {
        200 => Some(Word::Settled),
        429 | 503 => Some(Word::TryAgain),
        400..=499 => Some(Word::Refused),
        _ => None,
    }
}

/// A biller's word, when its MAC is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Paid or declined: the body says which.
    Settled,
    /// It took nothing and wants to be asked again.
    TryAgain,
    /// The request as such is not acceptable.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use hsm_adapter::error::CkrClass;

    /// The document is the code: each row of the table stands in ARCHITECTURE.md.
    #[test]
    fn architecture_md_shows_this_table() {
        let document = include_str!("../../../ARCHITECTURE.md");

        for operation in Operation::ALL {
            let cells = Outcome::ALL.map(|outcome| decide(operation, outcome).name());
            let row = format!("| {} | {} |", operation.name(), cells.join(" | "));

            assert!(document.contains(&row), "{row}");
        }
    }

    #[test]
    fn only_what_was_never_sent_or_may_be_done_twice_is_repeated() {
        for operation in Operation::ALL {
            let [not_sent, unknown, _, last] =
                Outcome::ALL.map(|outcome| decide(operation, outcome));

            assert_eq!(not_sent, Decision::Repeat);
            assert_eq!(last, Decision::GiveUp);
            let twice = match operation {
                Operation::Pure => Decision::Repeat,
                Operation::Payment => Decision::RepeatSameReference,
            };
            assert_eq!(unknown, twice);
        }
    }

    #[test]
    fn every_class_of_a_return_code_has_its_cell() {
        let class = |class| {
            let failure = Failure::Token { function: "f".into(), code: "c".into(), class };
            of_order(&LinkError::Answered(failure))
        };
        for (of, expected) in [
            (CkrClass::Transient, Outcome::AnsweredRetryable),
            (CkrClass::Refind, Outcome::AnsweredRetryable),
            (CkrClass::Relogin, Outcome::AnsweredRetryable),
            (CkrClass::Restart, Outcome::AnsweredRetryable),
            (CkrClass::Permanent, Outcome::AnsweredFinal),
            (CkrClass::Configuration, Outcome::AnsweredFinal),
            (CkrClass::Caller, Outcome::AnsweredFinal),
            (CkrClass::Answer, Outcome::AnsweredFinal),
            (CkrClass::Benign, Outcome::AnsweredFinal),
        ] {
            assert_eq!(class(of), expected, "{of:?}");
        }
        for (error, expected) in [
            (LinkError::NoWorker, Outcome::NotSent),
            (LinkError::Busy, Outcome::NotSent),
            (LinkError::TimedOut, Outcome::SentUnknown),
            (LinkError::WorkerDied, Outcome::SentUnknown),
            (LinkError::WrongAnswer, Outcome::AnsweredFinal),
            (LinkError::OrderTooLong, Outcome::AnsweredFinal),
            (LinkError::Answered(Failure::Expired), Outcome::NotSent),
            (LinkError::Answered(Failure::PinBlockRefused), Outcome::AnsweredFinal),
        ] {
            assert_eq!(of_order(&error), expected, "{error}");
        }
    }

    #[test]
    fn every_http_status_has_its_word_or_none() {
        for status in 100..=599 {
            let expected = match status {
                200 => Some(Word::Settled),
                429 | 503 => Some(Word::TryAgain),
                400..=499 => Some(Word::Refused),
                _ => None,
            };
            assert_eq!(of_status(status), expected, "{status}");
        }
    }
}
