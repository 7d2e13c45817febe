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
    /// PIN and MAC operations, data keys, lists: a function of its input, whoever computes it. Enquiries
    /// likewise.
    Pure,
    /// A payment to a biller that recognises our reference; a reversal.
    Payment,
    /// A payment to a biller that would make it twice.
    PaymentOnce,
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

impl Outcome {
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

/// The table.
#[must_use]
pub fn decide(operation: Operation, outcome: Outcome) -> Decision {
    match (operation, outcome) {
        (Operation::Pure, Outcome::NotSent)
        | (Operation::Pure, Outcome::SentUnknown)
        | (Operation::Pure, Outcome::AnsweredRetryable)
        | (Operation::Payment, Outcome::NotSent)
        | (Operation::PaymentOnce, Outcome::NotSent) => Decision::Repeat,
        (Operation::Payment, Outcome::SentUnknown)
        | (Operation::Payment, Outcome::AnsweredRetryable)
        | (Operation::PaymentOnce, Outcome::AnsweredRetryable) => Decision::RepeatSameReference,
        (Operation::Pure, Outcome::AnsweredFinal)
        | (Operation::Payment, Outcome::AnsweredFinal)
        | (Operation::PaymentOnce, Outcome::SentUnknown)
        | (Operation::PaymentOnce, Outcome::AnsweredFinal) => Decision::GiveUp,
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

    const OUTCOMES: [Outcome; 4] = [
        Outcome::NotSent,
        Outcome::SentUnknown,
        Outcome::AnsweredRetryable,
        Outcome::AnsweredFinal,
    ];

    /// The document is the code: each row of the table stands in ARCHITECTURE.md.
    #[test]
    fn architecture_md_shows_this_table() {
        let document = include_str!("../../../ARCHITECTURE.md");
        let word = |decision| match decision {
            Decision::Repeat => "repeat",
            Decision::RepeatSameReference => "same reference again",
            Decision::GiveUp => "give up",
        };
        let heads = OUTCOMES.map(Outcome::name).join(" | ");
        let mut rows = vec![format!("| operation | {heads} |")];

        for (operation, name) in [
            (Operation::Pure, "PIN and MAC operations, data keys, key list, enquiries"),
            (Operation::Payment, "payment, biller deduplicates on our reference; reversal"),
            (Operation::PaymentOnce, "payment, biller does not deduplicate"),
        ] {
            let cells = OUTCOMES.map(|outcome| word(decide(operation, outcome))).join(" | ");
            rows.push(format!("| {name} | {cells} |"));
        }

        for row in rows {
            assert!(document.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_last_word_ends_it_and_a_payment_repeats_under_its_reference_alone() {
        for operation in [Operation::Pure, Operation::Payment] {
            assert_eq!(decide(operation, Outcome::NotSent), Decision::Repeat);
            assert_eq!(decide(operation, Outcome::AnsweredFinal), Decision::GiveUp);
        }
        assert_eq!(decide(Operation::Pure, Outcome::SentUnknown), Decision::Repeat);
        let unknown = decide(Operation::Payment, Outcome::SentUnknown);
        assert_eq!(unknown, Decision::RepeatSameReference);
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
    fn a_status_is_a_word_only_where_nothing_else_could_have_said_it() {
        for (status, expected) in [
            (200, Some(Word::Settled)),
            (429, Some(Word::TryAgain)),
            (503, Some(Word::TryAgain)),
            (400, Some(Word::Refused)),
            (404, Some(Word::Refused)),
            (409, Some(Word::Refused)),
            (422, Some(Word::Refused)),
            (499, Some(Word::Refused)),
            (100, None),
            (201, None),
            (204, None),
            (302, None),
            (500, None),
            (502, None),
            (504, None),
        ] {
            assert_eq!(of_status(status), expected, "{status}");
        }
    }
}
