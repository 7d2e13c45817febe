//! The gateway's side of a token: starts workers, keeps deadlines, kills what hangs, starts anew.
//!
//! Mechanism only. Whether and how often to ask again is the caller's policy; every order is a pure
//! function, so that asking again is always safe.
//!
//! # An example for each operation
//!
//! Orders name labels and formats; everything else belongs to the key (`keys.toml`).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use hsm_adapter::client::TokenLink;
//! use hsm_adapter::protocol::{Answer, Message, Order, PinKey, PinReference};
//! use hsm_adapter::vocabulary::{
//!     KeyBlockText, KeyLabel, KeyName, Ksn, Pan, PinBlock, PinBlockFormat, PinOffset, Pvki, Pvv,
//! };
//! use tokio::time::Instant;
//!
//! type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
//!
//! fn key(label: &str) -> Outcome<KeyName> {
//!     Ok(KeyLabel::parse(label)?.into())
//! }
//!
//! fn side(label: &str, format: PinBlockFormat, ksn: Option<Ksn>) -> Outcome<PinKey> {
//!     Ok(PinKey { key: key(label)?, format, ksn })
//! }
//!
//! async fn operations(link: &TokenLink, block: PinBlock, mac: Vec<u8>) -> Outcome<()> {
//!     let ask = |order: Order| async move {
//!         link.call(&order, Instant::now() + Duration::from_secs(2)).await.1
//!     };
//!     let pan = || Pan::parse("4761737909457820");
//!     let zone = || side("zpk.acquirer-a", PinBlockFormat::Iso0, None);
//!     let message = || Message(b"0200...".to_vec());
//!
//!     // Translate, zone to zone: iso0 under TDES becomes iso4 under AES.
//!     let to = side("zpk.billing-aes", PinBlockFormat::Iso4, None)?;
//!     let order = Order::TranslatePin { pan: pan()?, block: block.clone(), from: zone()?, to };
//!     let Answer::Block { block: _, key_version: _ } = ask(order).await? else { return Ok(()) };
//!
//!     // Translate from a DUKPT device: its base derivation key and the KSN of this transaction.
//!     let ksn = Ksn::parse("123456789012345600000001")?;
//!     let from = side("bdk.terminals", PinBlockFormat::Iso4, Some(ksn))?;
//!     let to = side("zpk.billing", PinBlockFormat::Iso0, None)?;
//!     ask(Order::TranslatePin { pan: pan()?, block: block.clone(), from, to }).await?;
//!
//!     // Verify a PIN: by Visa PVV, by IBM 3624 offset, by a reference block.
//!     let (pvki, pvv) = (Pvki::try_from(1)?, Pvv::parse("2651")?);
//!     let offset = PinOffset::parse("7710")?;
//!     for reference in [
//!         PinReference::Pvv { key: key("pvk.issuer")?, pvki, pvv },
//!         PinReference::Ibm3624 { key: key("pvk.issuer-3624")?, offset },
//!         PinReference::Block { key: key("pin.reference")?, block: block.clone() },
//!     ] {
//!         let (pan, block, from) = (pan()?, block.clone(), zone()?);
//!         let Answer::PinVerified { verified, .. } =
//!             ask(Order::VerifyPin { pan, block, from, reference }).await?
//!         else {
//!             return Ok(());
//!         };
//!         println!("{verified}");
//!     }
//!
//!     // Make a MAC and verify one; with a KSN the key is a base derivation key.
//!     let zak = || key("zak.acquirer-a");
//!     ask(Order::GenerateMac { key: zak()?, ksn: None, message: message(), length: Some(4) }).await?;
//!     let mac = Message(mac);
//!     ask(Order::VerifyMac { key: zak()?, ksn: None, message: message(), mac }).await?;
//!
//!     // Data keys of the queue, random bytes, the keys themselves.
//!     ask(Order::MakeDataKey { kek: key("queue.kek")? }).await?;
//!     ask(Order::Random { bytes: 32 }).await?;
//!     let Answer::Keys(keys) = ask(Order::ListKeys).await? else { return Ok(()) };
//!
//!     // Import a key from a TR-31 / X9.143 block. `change` grows with each change of keys.
//!     let block = KeyBlockText::parse("D0112P0AE00E0000...")?;
//!     let label = KeyLabel::parse("zpk.acquirer-b")?;
//!     let wanted = hsm_adapter::register::KeyProfile {
//!         version: 2,
//!         formats: vec![PinBlockFormat::Iso4],
//!         ..hsm_adapter::register::KeyProfile::new(label, keys[0].role, keys[0].algorithm)
//!     };
//!     let (kbpk, profile) = (key("kek.acquirer-a")?, Box::new(wanted));
//!     ask(Order::ImportKey { change: 1, kbpk, block, profile }).await?;
//!
//!     // Read every key back and try what must fail; run the known answers.
//!     ask(Order::Lint).await?;
//!     ask(Order::SelfTest).await?;
//!     Ok(())
//! }
//! ```

mod connection;
mod supervisor;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::connection::Connection;
use self::supervisor::Slot;
use crate::error::{Failure, VendorCode};
use crate::protocol::{Answer, Order, Recipe};
use crate::vocabulary::Mode;
use crate::worker::Probes;

/// How a link's workers are started and when they count as lost.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The link's name, for logs.
    pub name: String,
    /// The worker program.
    pub program: PathBuf,
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// A file with the HSM PIN.
    pub pin_file: PathBuf,
    /// The key register.
    pub keys: PathBuf,
    /// What the codes of the token's vendor mean; what is not named means restart.
    pub vendor_codes: Vec<VendorCode>,
    /// The module's SHA-256, hex; a module with another is not loaded.
    pub module_sha256: Option<String>,
    /// What a token that does what it must not leads to.
    pub probes: Probes,
    /// Negative probes that may fail all the same, by name.
    pub accepted_probes: Vec<String>,
    /// Whether PIN keys may have mode `in_worker`.
    pub in_worker: bool,
    /// All of the worker's environment.
    pub environment: BTreeMap<String, String>,
    /// Worker processes.
    pub workers: usize,
    /// Token sessions in each.
    pub sessions: u16,
    /// Orders in flight at one worker; more are refused as busy.
    pub in_flight_max: usize,
    /// From start to hello.
    pub start_limit: Duration,
    /// Orders lost (well past their deadline, without a reply) at one worker at once before it is
    /// killed.
    pub lost_max: usize,
    /// An order that is older is overdue, whatever less its caller allows itself: a caller in a hurry
    /// must not make a worker look hung.
    pub answer_limit: Duration,
    /// The longest that one order may stay lost before its worker is killed.
    pub lost_limit: Duration,
    /// The first wait before a worker is started anew; each further one doubles.
    pub restart_wait: Duration,
    /// The longest such wait.
    pub restart_wait_max: Duration,
}

/// One HSM link: a token and the workers that hold sessions on it.
#[derive(Debug)]
pub struct TokenLink {
    slots: Vec<Arc<Slot>>,
    sessions: u16,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
}

impl TokenLink {
    /// Starts the workers, one after another, and keeps them running until [`stop`](Self::stop).
    /// Returns at once: [`status`](Self::status) tells when one is ready.
    #[must_use]
    pub fn start(options: LinkOptions) -> Self {
        let slots: Vec<_> = (0..options.workers.max(1)).map(|_| Arc::new(Slot::new())).collect();
        let (stop, sessions) = (CancellationToken::new(), options.sessions);
        let supervisor = tokio::spawn(supervisor::supervise(options, slots.clone(), stop.clone()));
        Self { slots, sessions, supervisor: Mutex::new(Some(supervisor)), stop }
    }

    /// Gives one order to the first ready worker that is not busy, else to the one with the fewest in
    /// flight. A worker that has a few orders at once reads and answers them together, which costs
    /// less than spreading them. One that has been silent for a while with an order in hand gets no
    /// further ones while another is there.
    ///
    /// Beside the outcome: where a clear PIN was, when the worker said so.
    pub async fn call(
        &self,
        order: &Order,
        deadline: Instant,
    ) -> (Option<Mode>, Result<Answer, LinkError>) {
        let Some(connection) = self.choose() else { return (None, Err(LinkError::NoWorker)) };
        connection.call(order, deadline).await
    }

    fn choose(&self) -> Option<Arc<Connection>> {
        let connections = || self.slots.iter().filter_map(|slot| slot.connection());
        let lively = || connections().filter(|connection| !connection.is_silent());
        let free = lively().find(|connection| !connection.is_busy());
        let least = || lively().min_by_key(|connection| connection.in_flight());
        let any = || connections().min_by_key(|connection| connection.in_flight());
        free.or_else(least).or_else(any)
    }

    /// Asks every ready worker for its known answer. One that has it is enough: a worker that owes its
    /// answer, or gives a wrong one, is replaced by its supervisor, and the next one's start runs the
    /// self-test.
    ///
    /// # Errors
    /// Why none has it; a wrong answer before all others.
    pub async fn heartbeat(&self, deadline: Instant) -> Result<(), LinkError> {
        let mut asked = JoinSet::new();
        for connection in self.slots.iter().filter_map(|slot| slot.connection()) {
            asked.spawn(async move {
                match connection.call(&Order::Heartbeat, deadline).await.1 {
                    Ok(Answer::Beat { right: true }) => Ok(()),
                    Ok(_) => {
                        connection.condemn();
                        Err(LinkError::WrongAnswer)
                    }
                    Err(error) => Err(error),
                }
            });
        }
        let mut outcome = Err(LinkError::NoWorker);
        while let Some(asked) = asked.join_next().await {
            let asked = asked.unwrap_or(Err(LinkError::WorkerDied));
            match (&outcome, &asked) {
                (Ok(()), _) | (Err(LinkError::WrongAnswer), Err(_)) => {}
                (Err(_), _) => outcome = asked,
            }
        }
        outcome
    }

    /// Gives one order to each ready worker, one after the other, and gathers the answers.
    ///
    /// # Errors
    /// The first that failed; [`LinkError::NoWorker`] when none is ready.
    pub async fn call_each(
        &self,
        order: &Order,
        deadline: Instant,
    ) -> Result<Vec<Answer>, LinkError> {
        let mut answers = Vec::new();
        for connection in self.slots.iter().filter_map(|slot| slot.connection()) {
            answers.push(connection.call(order, deadline).await.1?);
        }
        if answers.is_empty() { Err(LinkError::NoWorker) } else { Ok(answers) }
    }

    /// Token sessions of each worker.
    #[must_use]
    pub fn sessions(&self) -> u16 {
        self.sessions
    }

    /// The state of each worker.
    #[must_use]
    pub fn status(&self) -> Vec<WorkerStatus> {
        self.slots.iter().map(|slot| slot.status()).collect()
    }

    /// What a ready worker proved at its start; `None` while none is ready.
    #[must_use]
    pub fn recipes(&self) -> Option<Vec<Recipe>> {
        let ready = self.slots.iter().find_map(|slot| slot.connection())?;
        Some(ready.hello.recipes.clone())
    }

    /// Whether at least one worker is ready.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.slots.iter().any(|slot| slot.connection().is_some())
    }

    /// Whether at least one worker is ready, owes no answer and is not silent: what is lost elsewhere is
    /// then the loss of a worker, not of the token.
    #[must_use]
    pub fn is_answering(&self) -> bool {
        let mut connections = self.slots.iter().filter_map(|slot| slot.connection());
        connections.any(|connection| !connection.owes() && !connection.is_silent())
    }

    /// Ends the workers. Orders in flight end with [`LinkError::WorkerDied`].
    pub async fn stop(&self) {
        self.stop.cancel();
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(supervisor) = supervisor {
            // A supervisor that panicked has dropped its children, which kills them.
            let _ = supervisor.await;
        }
    }
}

/// One worker as an operator sees it.
#[derive(Debug, Clone)]
pub struct WorkerStatus {
    /// While it runs.
    pub pid: Option<u32>,
    /// Whether it takes orders.
    pub ready: bool,
    /// Orders given and not yet answered.
    pub in_flight: usize,
    /// Starts after the first.
    pub restarts: u64,
    /// What the token calls itself.
    pub token: Option<String>,
    /// SHA-256 of the module that it loaded, hex.
    pub module_sha256: Option<String>,
    /// Why it is not ready, when it is not.
    pub trouble: Option<String>,
    /// Whether a person must act: no further start is tried.
    pub latched: bool,
    /// Whether what it must act on is the configuration: the token is well, and cannot or may not do
    /// what the key register asks for.
    pub refused: bool,
}

/// Why an order has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum LinkError {
    #[error("no HSM worker is ready")]
    NoWorker,
    #[error("the HSM workers have all the orders that they may have")]
    Busy,
    #[error("the HSM did not answer within the deadline")]
    TimedOut,
    #[error("the HSM worker died with the order in flight")]
    WorkerDied,
    #[error("the HSM worker answered another question")]
    WrongAnswer,
    #[error("the order is longer than a frame")]
    OrderTooLong,
    #[error(transparent)]
    Answered(#[from] Failure),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::connection::tests::connection;
    use crate::error::Failure;
    use crate::protocol::Reply;

    /// Each worker answers the heartbeat so.
    async fn beats(outcomes: Vec<Result<Answer, Failure>>) -> (TokenLink, Result<(), LinkError>) {
        let workers: Vec<_> = outcomes.iter().map(|_| Arc::new(connection(8))).collect();
        let slots = workers.iter().map(|worker| Arc::new(Slot::with(Arc::clone(worker))));
        let (slots, supervisor, stop) =
            (slots.collect(), Mutex::default(), CancellationToken::new());
        let link = TokenLink { slots, sessions: 1, supervisor, stop };
        let answers = async {
            tokio::task::yield_now().await;
            for (worker, outcome) in workers.iter().zip(outcomes) {
                worker.deliver(Reply { id: 1, mode: None, outcome });
            }
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        let (outcome, ()) = tokio::join!(link.heartbeat(deadline), answers);
        (link, outcome)
    }

    fn ready(link: &TokenLink) -> Vec<bool> {
        link.slots.iter().map(|slot| slot.connection().is_some()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_answers_wrongly_is_ended_and_the_one_that_does_not_speaks_for_the_link()
    {
        let beat = |right| Ok(Answer::Beat { right });

        for answers in [[false, true], [true, false]] {
            let (link, outcome) = beats(answers.map(beat).into()).await;

            assert_eq!(outcome, Ok(()));
            assert_eq!(ready(&link), answers);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_is_wrong_when_no_worker_answers_rightly_and_one_answers_wrongly() {
        let (wrong, away) = (|| Ok(Answer::Beat { right: false }), || Err(Failure::Expired));

        for (answers, expected) in [
            (vec![wrong(), wrong()], LinkError::WrongAnswer),
            (vec![wrong(), away()], LinkError::WrongAnswer),
            (vec![away(), wrong()], LinkError::WrongAnswer),
            (vec![away(), away()], LinkError::Answered(Failure::Expired)),
            (vec![], LinkError::NoWorker),
        ] {
            let (_, outcome) = beats(answers).await;

            assert_eq!(outcome, Err(expected));
        }
    }
}
