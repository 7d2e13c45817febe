//! The HSM link: typed questions to the token, with retry and breaker around each.
//!
//! Every order is a pure function, so that asking again is always safe; the second attempt goes to
//! another worker when the first is stuck in a hung one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hsm_adapter::client::{LinkError, TokenLink, WorkerStatus};
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::{
    Answer, ClearDataKey, KeyFacts, LintReport, Message, Order, PinKey, PinReference, Recipe,
};
use hsm_adapter::vocabulary::{KeyLabel, KeyName, Ksn, MacAlgorithm, Mode, Pan, PinBlock};
use tokio::time::Instant;

use super::breaker::{Breaker, Verdict};
use super::retry::{RetryConfig, Retryable};

/// One HSM link as the gateway uses it.
#[derive(Debug)]
pub struct HsmLink {
    name: &'static str,
    link: TokenLink,
    breaker: Breaker,
    retry: RetryConfig,
    attempt_max: Duration,
    kek: KeyLabel,
    distrusted: AtomicBool,
}

/// A translated block.
#[derive(Debug)]
pub struct Translated {
    /// Under the outbound key.
    pub block: PinBlock,
    /// The version of that key.
    pub key_version: u32,
}

/// The outcome of a PIN verification.
#[derive(Debug, Clone, Copy)]
pub struct PinVerdict {
    /// Whether it is the PIN.
    pub verified: bool,
    /// The version of the key that it was verified with.
    pub key_version: u32,
}

/// A MAC that was made.
#[derive(Debug)]
pub struct Made {
    /// Left-most bytes.
    pub mac: Vec<u8>,
    /// The key's algorithm.
    pub algorithm: MacAlgorithm,
    /// The version that made it.
    pub key_version: u32,
}

/// A data key in both forms.
#[derive(Debug)]
pub struct MadeDataKey {
    /// For sealing, here.
    pub clear: ClearDataKey,
    /// For the database.
    pub wrapped: Vec<u8>,
    /// The version of the KEK.
    pub kek_version: u32,
}

impl HsmLink {
    /// `attempt_max` bounds one attempt at one worker.
    #[must_use]
    pub fn new(
        link: TokenLink,
        breaker: Breaker,
        retry: RetryConfig,
        attempt_max: Duration,
        kek: KeyLabel,
    ) -> Self {
        let distrusted = AtomicBool::new(false);
        Self { name: "primary", link, breaker, retry, attempt_max, kek, distrusted }
    }

    /// Re-enciphers a PIN block. Beside the outcome: where the clear PIN was.
    pub async fn translate_pin(
        &self,
        pan: Pan,
        block: PinBlock,
        from: PinKey,
        to: PinKey,
        deadline: Instant,
    ) -> (Option<Mode>, Result<Translated, HsmError>) {
        let order = Order::TranslatePin { pan, block, from, to };
        let (mode, outcome) = self.ask_with_mode(order, deadline).await;
        let translated = outcome.and_then(|answer| {
            let Answer::Block { block, key_version } = answer else { return Err(wrong()) };
            Ok(Translated { block, key_version })
        });
        (mode, translated)
    }

    /// Compares the PIN of a block with what the issuer keeps. Beside the outcome: where the clear
    /// PIN was.
    pub async fn verify_pin(
        &self,
        pan: Pan,
        block: PinBlock,
        from: PinKey,
        reference: PinReference,
        deadline: Instant,
    ) -> (Option<Mode>, Result<PinVerdict, HsmError>) {
        let order = Order::VerifyPin { pan, block, from, reference };
        let (mode, outcome) = self.ask_with_mode(order, deadline).await;
        let verdict = outcome.and_then(|answer| {
            let Answer::PinVerified { verified, key_version } = answer else {
                return Err(wrong());
            };
            Ok(PinVerdict { verified, key_version })
        });
        (mode, verdict)
    }

    /// Makes a MAC over `message`; `ksn` with a base derivation key, and only there.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn generate_mac(
        &self,
        key: KeyName,
        ksn: Option<Ksn>,
        message: Vec<u8>,
        length: Option<u8>,
        deadline: Instant,
    ) -> Result<Made, HsmError> {
        let order = Order::GenerateMac { key, ksn, message: Message(message), length };
        let Answer::Mac { mut mac, algorithm, key_version } = self.ask(order, deadline).await?
        else {
            return Err(wrong());
        };
        Ok(Made { mac: std::mem::take(&mut mac.0), algorithm, key_version })
    }

    /// Whether `mac` is the message's; `ksn` as for [`generate_mac`](Self::generate_mac).
    ///
    /// # Errors
    /// See [`HsmError`]; a wrong MAC is an answer.
    pub async fn verify_mac(
        &self,
        key: KeyName,
        ksn: Option<Ksn>,
        message: Message,
        mac: Message,
        deadline: Instant,
    ) -> Result<bool, HsmError> {
        let order = Order::VerifyMac { key, ksn, message, mac };
        let Answer::Verified(verified) = self.ask(order, deadline).await? else {
            return Err(wrong());
        };
        Ok(verified)
    }

    /// A new data key under the queue KEK.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn make_data_key(&self, deadline: Instant) -> Result<MadeDataKey, HsmError> {
        let kek = self.kek.clone().into();
        let Answer::DataKey { clear, wrapped, kek_version } =
            self.ask(Order::MakeDataKey { kek }, deadline).await?
        else {
            return Err(wrong());
        };
        Ok(MadeDataKey { clear, wrapped, kek_version })
    }

    /// Opens a wrapped data key.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn open_data_key(
        &self,
        wrapped: Vec<u8>,
        kek_version: u32,
        deadline: Instant,
    ) -> Result<ClearDataKey, HsmError> {
        let kek = KeyName { label: self.kek.clone(), version: Some(kek_version) };
        let Answer::OpenedDataKey(clear) =
            self.ask(Order::OpenDataKey { kek, wrapped }, deadline).await?
        else {
            return Err(wrong());
        };
        Ok(clear)
    }

    /// Every key with its check value.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn list_keys(&self, deadline: Instant) -> Result<Vec<KeyFacts>, HsmError> {
        let Answer::Keys(keys) = self.ask(Order::ListKeys, deadline).await? else {
            return Err(wrong());
        };
        Ok(keys)
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

    /// Gives one change of a key to one worker: the key as it is then.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn change_key(&self, order: Order, deadline: Instant) -> Result<KeyFacts, HsmError> {
        let Answer::Key(key) = self.ask(order, deadline).await? else { return Err(wrong()) };
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

    /// Closes the link while its keys cannot be trusted, or opens it again. Whether that is new.
    pub fn set_distrusted(&self, distrusted: bool) -> bool {
        self.distrusted.swap(distrusted, Ordering::AcqRel) != distrusted
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

    /// Whether a worker is ready.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Whether a worker is ready, its keys are trusted and the breaker lets calls pass.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let trusted = !self.distrusted.load(Ordering::Acquire);
        self.link.is_up() && trusted && self.breaker.rests_for().is_zero()
    }

    /// The link's name in metrics and audit.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
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

    /// The breaker around this link.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Ends the workers.
    pub async fn stop(self) {
        self.link.stop().await;
    }

    async fn ask(&self, order: Order, deadline: Instant) -> Result<Answer, HsmError> {
        self.ask_with_mode(order, deadline).await.1
    }

    async fn ask_with_mode(
        &self,
        order: Order,
        deadline: Instant,
    ) -> (Option<Mode>, Result<Answer, HsmError>) {
        let operation = order.operation();
        let started = Instant::now();
        let mut attempts = self.retry.attempts("hsm", deadline);
        let (mode, outcome) = loop {
            match self.attempt(&order, attempts.limit()).await {
                (mode, Ok(answer)) => {
                    attempts.done();
                    break (mode, Ok(answer));
                }
                (_, Err(error)) if attempts.again(&error).await => {}
                (mode, Err(error)) => break (mode, Err(error)),
            }
        };
        crate::telemetry::metrics::hsm_operation(
            operation,
            self.name,
            mode.map_or("none", Mode::name),
            match &outcome {
                Ok(_) => "ok",
                Err(HsmError::Link(LinkError::Answered(Failure::PinBlockRefused))) => "refused",
                Err(_) => "error",
            },
            started.elapsed(),
        );
        (mode, outcome)
    }

    async fn attempt(
        &self,
        order: &Order,
        limit: Instant,
    ) -> (Option<Mode>, Result<Answer, HsmError>) {
        // What shows the keys and changes them is what a person needs to set this right.
        let cures =
            matches!(order, Order::ListKeys | Order::ImportKey { .. } | Order::SetKeyState { .. });
        if !cures && self.distrusted.load(Ordering::Acquire) {
            return (None, Err(HsmError::Distrusted));
        }
        let Ok(permit) = self.breaker.admit() else { return (None, Err(HsmError::Resting)) };
        let limit = limit.min(Instant::now() + self.attempt_max);
        let (mode, outcome) = self.link.call(order, limit).await;
        permit.record(verdict(&outcome, self.link.is_answering()));
        (mode, outcome.map_err(HsmError::from))
    }
}

/// How long a start waits for the first worker.
const FIRST_OUTCOME_MAX: Duration = Duration::from_secs(5);

/// A mode in the words of the audit trail.
#[must_use]
pub fn audited(mode: Mode) -> compliance::Mode {
    match mode {
        Mode::InToken => compliance::Mode::InToken,
        Mode::Vendor => compliance::Mode::Vendor,
        Mode::InWorker => compliance::Mode::InWorker,
    }
}

/// Only what speaks of the token's health counts: a refused PIN block is an answer, and our own
/// bounds say nothing. A worker that is lost beside one that answers takes all its orders with it at
/// once; its supervisor replaces it, and the token is well.
fn verdict(outcome: &Result<Answer, LinkError>, another_answers: bool) -> Verdict {
    match outcome {
        Ok(_) => Verdict::Healthy,
        Err(LinkError::Busy | LinkError::OrderTooLong) => Verdict::Ignored,
        // Nobody's order can succeed until a person acts.
        Err(LinkError::Answered(Failure::Token {
            class: CkrClass::Permanent | CkrClass::Configuration,
            ..
        })) => Verdict::Failing,
        Err(LinkError::Answered(failure)) if !failure.is_transient() => Verdict::Healthy,
        Err(LinkError::NoWorker | LinkError::TimedOut | LinkError::WorkerDied)
            if another_answers =>
        {
            Verdict::Ignored
        }
        Err(LinkError::TimedOut) => Verdict::TimedOut,
        Err(
            LinkError::NoWorker
            | LinkError::WorkerDied
            | LinkError::WrongAnswer
            | LinkError::Answered(_),
        ) => Verdict::Failing,
    }
}

fn wrong() -> HsmError {
    HsmError::Link(LinkError::WrongAnswer)
}

/// Why the HSM link has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum HsmError {
    #[error("the HSM link's breaker is open")]
    Resting,
    #[error("the HSM link is not used: a key label stands for two keys (see key.substitution)")]
    Distrusted,
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl HsmError {
    /// What the token itself refused, when it answered.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Link(LinkError::Answered(failure)) => Some(failure),
            Self::Resting | Self::Distrusted | Self::Link(_) => None,
        }
    }
}

impl Retryable for HsmError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Resting | Self::Distrusted => false,
            Self::Link(error) => error.is_transient(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_lost_beside_one_that_answers_says_nothing_of_the_token() {
        for (lost, alone) in [
            (LinkError::NoWorker, Verdict::Failing),
            (LinkError::TimedOut, Verdict::TimedOut),
            (LinkError::WorkerDied, Verdict::Failing),
        ] {
            assert_eq!(verdict(&Err(lost.clone()), true), Verdict::Ignored);
            assert_eq!(verdict(&Err(lost), false), alone);
        }
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
