//! One token behind its workers, as a member of the HSM link.
//!
//! Every order is a pure function of its input, but for numbered changes of keys, which are given once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hsm_adapter::client::{LinkError, TokenLink, WorkerStatus};
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::{Answer, KeyFacts, LintReport, Message, Order, Recipe};
use hsm_adapter::vocabulary::{KeyName, Mode, SignatureAlgorithm};
use tokio::time::Instant;

use super::breaker::Verdict;
use super::classify::{Outcome, of_order};
use super::health::Sick;
use super::pool::{CallError, Endpoint, Fault, Tried};

/// One HSM link.
#[derive(Debug)]
pub struct HsmLink {
    name: &'static str,
    link: TokenLink,
    distrusted: AtomicBool,
}

/// What a worker said, and where a clear PIN was while it ran.
#[derive(Debug)]
pub(super) struct Said<T> {
    pub(super) mode: Option<Mode>,
    pub(super) what: T,
}

/// A checkpoint's signature and what it is verified by.
#[derive(Debug)]
pub struct SignedCheckpoint {
    /// In the form of its algorithm: DER of ECDSA, 64 bytes of Ed25519.
    pub signature: Vec<u8>,
    /// In the form of its algorithm: a DER SubjectPublicKeyInfo for ECDSA, 32 bytes for Ed25519.
    pub public_key: Vec<u8>,
    /// The key's algorithm.
    pub algorithm: SignatureAlgorithm,
    /// The version that made it.
    pub key_version: u32,
}

impl HsmLink {
    /// `name` stands in metrics, records and for operators, as long as the process lives.
    #[must_use]
    pub fn new(name: &'static str, link: TokenLink) -> Self {
        Self { name, link, distrusted: AtomicBool::new(false) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Gives the order to a worker once.
    pub(super) async fn attempt(
        &self,
        order: &Order,
        limit: Instant,
    ) -> Tried<Said<Answer>, Said<LinkError>> {
        let (mode, outcome) = self.link.call(order, limit).await;
        let another_answers = self.link.is_answering();
        let verdict = verdict(&outcome, another_answers);
        let another = verdict == Verdict::Ignored && another_answers;
        let result = match outcome {
            Ok(what) => Ok(Said { mode, what }),
            Err(what) => Err(Said { mode, what }),
        };
        Tried { result, verdict, another, took: None }
    }

    /// The keys as each ready worker knows them, with its name; past breaker and retry.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn list_keys_each(
        &self,
        deadline: Instant,
    ) -> Result<Vec<(String, Vec<KeyFacts>)>, HsmError> {
        let mut views = Vec::new();
        for answer in self.link.call_each(&Order::ListKeys, deadline).await? {
            let Answer::Keys(keys) = answer else { return Err(wrong()) };
            views.push((format!("{} worker {}", self.name, views.len() + 1), keys));
        }
        Ok(views)
    }

    /// Gives one change of a key to one worker, past breaker and retry: the key as it is then.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn change_key(&self, order: &Order, deadline: Instant) -> Result<KeyFacts, HsmError> {
        let Answer::Key(key) = self.link.call(order, deadline).await.1? else {
            return Err(wrong());
        };
        Ok(*key)
    }

    /// Has every ready worker read the key register again, past breaker and retry. Gives the number
    /// of the last change that it holds.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn reload_keys(&self, deadline: Instant) -> Result<u64, HsmError> {
        let mut last = 0;
        for answer in self.link.call_each(&Order::ReloadKeys, deadline).await? {
            let Answer::Reloaded(change) = answer else { return Err(wrong()) };
            last = last.max(change);
        }
        Ok(last)
    }

    /// Signs an audit checkpoint, past breaker and retry; a named version of the key may be retired while it
    /// is usable. Nobody waits for it: the next checkpoint covers all that this one would have.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn sign_checkpoint(
        &self,
        key: KeyName,
        text: Vec<u8>,
        deadline: Instant,
    ) -> Result<SignedCheckpoint, HsmError> {
        let order = Order::SignCheckpoint { key, text: Message(text) };
        let Answer::CheckpointSigned { signature, public_key, algorithm, key_version } =
            self.link.call(&order, deadline).await.1?
        else {
            return Err(wrong());
        };
        Ok(SignedCheckpoint { signature, public_key, algorithm, key_version })
    }

    /// Closes the link while its keys cannot be trusted, or opens it again. Whether that is new.
    pub fn set_distrusted(&self, distrusted: bool) -> bool {
        let is_new = self.distrusted.swap(distrusted, Ordering::AcqRel) != distrusted;
        if is_new && !distrusted {
            tracing::info!(link = self.name, "its keys are trusted now: it may be used");
        }
        is_new
    }

    /// Whether its keys cannot be trusted.
    #[must_use]
    pub fn is_distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Acquire)
    }

    /// Has every ready worker read its keys back and try what must fail, past breaker and retry: one
    /// report a worker.
    ///
    /// # Errors
    /// See [`HsmError`]; a key that deviates is no error.
    pub async fn lint(&self, deadline: Instant) -> Result<Vec<LintReport>, HsmError> {
        let answers = self.link.call_each(&Order::Lint, deadline).await?;
        let report = |answer| {
            let Answer::Lint(report) = answer else { return Err(wrong()) };
            Ok(report)
        };
        answers.into_iter().map(report).collect()
    }

    /// What a ready worker proved at its start; empty while none is ready.
    #[must_use]
    pub fn recipes(&self) -> Vec<Recipe> {
        self.link.recipes().unwrap_or_default()
    }

    /// Waits for the first worker to be ready or to say why it is not, five seconds at most: a token
    /// that is away keeps nobody from starting. `Some` when the key register asks for what the token
    /// cannot or may not do; no later start of a worker would help.
    pub async fn refused_at_start(&self) -> Option<String> {
        let limit = Instant::now() + FIRST_OUTCOME_MAX;
        loop {
            let mut workers = self.workers();
            if let Some(at) = workers.iter().position(|worker| worker.refused) {
                return workers.swap_remove(at).trouble;
            }
            let known = workers.iter().any(|worker| worker.ready || worker.trouble.is_some());
            if known || Instant::now() >= limit {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The workers.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.link.status()
    }

    /// Token sessions of one worker.
    #[must_use]
    pub fn sessions(&self) -> u16 {
        self.link.sessions()
    }

    /// Whether a worker is ready.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Where clear PINs may be: the weakest mode that a ready worker runs.
    #[must_use]
    pub fn weakest_mode(&self) -> Option<Mode> {
        self.recipes().into_iter().map(|recipe| recipe.mode).max()
    }

    /// The name of [`weakest_mode`](Self::weakest_mode); `unknown` while no worker is ready.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        self.weakest_mode().map_or("unknown", Mode::name)
    }

    /// Ends the workers.
    pub async fn stop(&self) {
        self.link.stop().await;
    }
}

impl Endpoint for HsmLink {
    fn name(&self) -> &str {
        self.name
    }

    fn is_ready(&self) -> bool {
        self.link.is_up() && !self.is_distrusted()
    }

    /// A known MAC on each worker. One that has it is enough: the others are their supervisor's, which
    /// ends those that answer wrongly.
    async fn heartbeat(&self, limit: Instant) -> Result<(), Sick> {
        self.link.heartbeat(limit).await.map_err(|error| match error {
            LinkError::WrongAnswer => {
                Sick { wrong: true, why: "a known message got another MAC".into() }
            }
            LinkError::NoWorker
            | LinkError::Busy
            | LinkError::TimedOut
            | LinkError::WorkerDied
            | LinkError::OrderTooLong
            | LinkError::Answered(_) => Sick { wrong: false, why: error.to_string() },
        })
    }
}

impl Fault for Said<LinkError> {
    fn outcome(&self) -> Outcome {
        // No word of the token: who said it is ended, and orders are functions of their input.
        if self.what == LinkError::WrongAnswer {
            return Outcome::AnsweredRetryable;
        }
        of_order(&self.what)
    }

    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// How long a start waits for the first worker.
const FIRST_OUTCOME_MAX: Duration = Duration::from_secs(5);

/// Only what speaks of the token's health counts: a refused PIN block is an answer of the token, a bad
/// length or an unknown key one of its worker alone, and our own bound on orders in flight is
/// nobody's. A worker that is lost beside one that answers takes all its orders with it at once; its
/// supervisor replaces it, and the token is well.
fn verdict(outcome: &Result<Answer, LinkError>, another_answers: bool) -> Verdict {
    match outcome {
        Ok(_) => Verdict::Healthy,
        Err(LinkError::Answered(failure)) => match failure {
            Failure::PinBlockRefused => Verdict::Healthy,
            Failure::UnknownKey
            | Failure::KeyNotForThis(_)
            | Failure::MessageLength
            | Failure::MacLength { .. }
            | Failure::Expired
            | Failure::KeyBlockRefused(_)
            | Failure::KeyChangeRefused(_)
            | Failure::KeySubstitution(_)
            | Failure::CheckpointRefused(_) => Verdict::Ignored,
            Failure::Token { class, .. } => match class {
                CkrClass::Caller | CkrClass::Answer | CkrClass::Benign => Verdict::Healthy,
                // The last two: nobody's order can succeed until a person acts.
                CkrClass::Transient
                | CkrClass::Refind
                | CkrClass::Relogin
                | CkrClass::Restart
                | CkrClass::Permanent
                | CkrClass::Configuration => Verdict::Failing,
            },
        },
        Err(LinkError::Busy | LinkError::OrderTooLong) => Verdict::Ignored,
        Err(LinkError::NoWorker | LinkError::TimedOut | LinkError::WorkerDied)
            if another_answers =>
        {
            Verdict::Ignored
        }
        Err(LinkError::TimedOut) => Verdict::TimedOut,
        Err(LinkError::NoWorker | LinkError::WorkerDied | LinkError::WrongAnswer) => {
            Verdict::Failing
        }
    }
}

pub(super) fn wrong() -> HsmError {
    HsmError::Link(LinkError::WrongAnswer)
}

/// Why the HSM link has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum HsmError {
    #[error("no HSM link takes orders now")]
    NoneReady { retry_after: Duration },
    #[error(
        "no HSM link may be used: its keys were not compared yet, it missed a change of a key, or a \
         label stands for two keys; see `tollgate links list`"
    )]
    Distrusted,
    #[error("the HSM links have all the orders that they may have")]
    Overloaded,
    #[error("no time was left for the HSM")]
    TooLate,
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl HsmError {
    /// What the token itself refused, when it answered.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Link(LinkError::Answered(failure)) => Some(failure),
            Self::NoneReady { .. }
            | Self::Distrusted
            | Self::Overloaded
            | Self::TooLate
            | Self::Link(_) => None,
        }
    }
}

impl CallError<Said<LinkError>> {
    /// Where a clear PIN was in the attempt that failed.
    pub(super) fn mode(&self) -> Option<Mode> {
        match self {
            Self::Failed(said) => said.mode,
            Self::NoneReady { .. } | Self::Overloaded | Self::TooLate => None,
        }
    }
}

impl From<CallError<Said<LinkError>>> for HsmError {
    fn from(error: CallError<Said<LinkError>>) -> Self {
        match error {
            CallError::NoneReady { retry_after } => Self::NoneReady { retry_after },
            CallError::Overloaded => Self::Overloaded,
            CallError::TooLate => Self::TooLate,
            CallError::Failed(said) => Self::Link(said.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::classify::{Decision, Operation, decide};

    #[test]
    fn a_worker_that_is_lost_beside_one_that_answers_says_nothing_of_the_token() {
        for lost in [LinkError::NoWorker, LinkError::TimedOut, LinkError::WorkerDied] {
            assert_eq!(verdict(&Err(lost.clone()), true), Verdict::Ignored);
            let alone = verdict(&Err(lost), false);
            assert!(matches!(alone, Verdict::Failing | Verdict::TimedOut), "{alone:?}");
        }
    }

    /// At a start, after a change that a link missed, and for a substituted key alike.
    #[test]
    fn a_link_that_is_not_trusted_blames_no_key_that_may_be_right() {
        let told = HsmError::Distrusted.to_string();

        for part in ["not compared yet", "missed a change", "two keys", "`tollgate links list`"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn what_one_worker_said_wrongly_another_one_is_asked() {
        let wrong = Said { mode: None, what: LinkError::WrongAnswer };

        assert_eq!(verdict(&Err(LinkError::WrongAnswer), true), Verdict::Failing);
        assert_eq!(decide(Operation::Pure, wrong.outcome()), Decision::Repeat);
    }

    #[test]
    fn what_the_token_says_counts_whoever_else_answers() {
        let refused = Failure::PinBlockRefused;

        for another in [true, false] {
            let answered = verdict(&Err(LinkError::Answered(refused.clone())), another);
            assert_eq!(answered, Verdict::Healthy);
            let wrong = verdict(&Err(LinkError::WrongAnswer), another);
            assert_eq!(wrong, Verdict::Failing);
        }
    }

    #[test]
    fn a_token_that_a_person_must_cure_is_failing_and_a_bad_order_is_not() {
        for (class, expected) in [
            (CkrClass::Permanent, Verdict::Failing),
            (CkrClass::Configuration, Verdict::Failing),
            (CkrClass::Restart, Verdict::Failing),
            (CkrClass::Caller, Verdict::Healthy),
        ] {
            let failure = Failure::Token { function: "Login".into(), code: "x".into(), class };
            let outcome = Err(LinkError::Answered(failure));

            assert_eq!(verdict(&outcome, true), expected, "{class:?}");
        }
    }
}
