//! Stands before the token: counts what could be guessing, and refuses what was seen before.
//!
//! Every PIN and MAC of a client passes here, whatever route it came by. What is limited is counted
//! in the database before the token is asked and settled after; when the database cannot count,
//! nothing is asked. A card is known by a keyed hash of its number. No counter is shown to clients.
//!
//! Rules: PCI PIN 3.1, requirements 18-1 and 20-1; X9.24-1 and X9.24-3 (a transaction counter is
//! used once).

mod events; // what a pattern suggests, for the audit log
mod rules; // how often is too often

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use compliance::EventType;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Message, PinKey, PinReference};
use hsm_adapter::vocabulary::{KeyLabel, KeyName, Ksn, Pan, PinBlock};
use tokio::time::Instant;

use self::rules::Rules;
use crate::audit::AuditLog;
use crate::config::LimitsConfig;
use crate::links::token::{Hsm, HsmError, PinVerdict, Place, Translated};
use crate::relay::keys::{Keys, SealingUnavailable};
use crate::store::{
    Advanced, Counted, DukptPurpose, DukptUse, GuardScope, Store, StoreError, Try, TryEnd, insist,
};
use crate::telemetry::metrics::{BLOCKED, RATE_LIMITED};

/// The guarded token.
#[derive(Debug)]
pub struct Guard {
    hsm: Arc<Hsm>,
    store: Store,
    keys: Keys,
    audit: AuditLog,
    rules: Rules,
    /// Until when a key is out of use, epoch milliseconds. Bounded by the keys of the grants.
    quarantined: RwLock<HashMap<(GuardScope, String), i64>>,
}

/// A PIN block of a card.
#[derive(Debug, Clone)]
pub struct PinOrder {
    /// Which card.
    pub pan: Pan,
    /// The block.
    pub block: PinBlock,
    /// Its key and format.
    pub from: PinKey,
}

/// A MAC that somebody says is a message's.
#[derive(Debug)]
pub struct MacOrder {
    /// The MAC key, or the base derivation key.
    pub key: KeyName,
    /// For a base derivation key, and only there.
    pub ksn: Option<Ksn>,
    /// The message, as it is.
    pub message: Message,
    /// Of the key's own length, or it is none.
    pub mac: Message,
}

/// A MAC short enough to be guessed, by what its key's budget of wrong ones has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guess {
    /// It is counted.
    InBudget,
    /// If it is wrong, the key goes out of use.
    BeyondBudget,
}

/// Why the token was not asked, or its answer is told to nobody.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum GuardError {
    #[error(transparent)]
    Hsm(#[from] HsmError),
    #[error("too many attempts with this card")]
    Blocked,
    #[error("too many failures under this key")]
    Quarantined,
    #[error("this client verifies too much")]
    Throttled { retry_after: Duration },
    #[error("the KSN was used before")]
    Replayed,
    #[error("limits.{0} rows are in use")]
    NoRoom(&'static str),
    #[error("the counters cannot be kept")]
    Store(#[from] StoreError),
    #[error("cards cannot be told apart yet")]
    NoReference(#[from] SealingUnavailable),
    #[error("the task ended before its outcome was known")]
    Unclear,
}

impl Guard {
    /// Takes up the quarantines of earlier runs.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn start(
        hsm: Arc<Hsm>,
        store: Store,
        keys: Keys,
        audit: AuditLog,
        limits: &LimitsConfig,
    ) -> Result<Self, StoreError> {
        let known = store.quarantined().await?.into_iter();
        let quarantined = known.map(|(scope, key, until)| ((scope, key), until)).collect();
        let quarantined = RwLock::new(quarantined);
        Ok(Self { hsm, store, keys, audit, rules: Rules::new(limits), quarantined })
    }

    /// Re-enciphers a PIN block. `holder` names the idempotent request that may come again with the
    /// same KSN. Runs to its end whatever becomes of the client: a block that was refused is counted
    /// also for one that gives up early. Beside the outcome: where it ran.
    pub async fn translate_pin(
        self: &Arc<Self>,
        client: &str,
        order: PinOrder,
        to: PinKey,
        holder: Option<[u8; 32]>,
        deadline: Instant,
    ) -> (Place, Result<Translated, GuardError>) {
        let (guard, client) = (Arc::clone(self), client.to_owned());
        placed(async move { guard.translate(&client, order, to, holder, deadline).await }).await
    }

    async fn translate(
        &self,
        client: &str,
        order: PinOrder,
        to: PinKey,
        holder: Option<[u8; 32]>,
        deadline: Instant,
    ) -> (Place, Result<Translated, GuardError>) {
        let used = dukpt_use(&order.from, holder);
        let pan = match self.admit_translation(client, &order, used.as_ref()).await {
            Ok(pan) => pan,
            Err(refused) => return (Place::default(), Err(refused)),
        };
        let PinOrder { pan: number, block, from } = order;
        let label = from.key.label.to_string();
        let (place, outcome) = self.hsm.translate_pin(number, block, from, to, deadline).await;
        let outcome = match outcome {
            Ok(translated) => self.spend(client, used).await.map(|()| translated),
            Err(error) => {
                let settled = if is_block_refused(&error) {
                    self.malformed(client, &label).await
                } else {
                    let rule = self.rules.pan_translations.rule;
                    self.store.uncount(rule, &pan).await.map_err(GuardError::from)
                };
                Err(settled.err().unwrap_or(GuardError::Hsm(error)))
            }
        };
        (place, outcome)
    }

    async fn admit_translation(
        &self,
        client: &str,
        order: &PinOrder,
        used: Option<&DukptUse>,
    ) -> Result<[u8; 16], GuardError> {
        let label = order.from.key.label.as_str();
        self.usable(GuardScope::Pin, label)?;
        self.unseen(client, used).await?;
        let pan = self.keys.pan_reference(&order.pan)?;
        let rules = &self.rules;
        match self.store.count(rules.pan_translations, &pan, rules.counters_max).await? {
            Counted::Within => Ok(pan),
            Counted::Over { first, .. } => {
                if first {
                    self.tell(EventType::PinCodebookSuspect, client, label, Some(&order.pan));
                }
                metrics::counter!(BLOCKED, "scope" => "pan").increment(1);
                Err(GuardError::Blocked)
            }
            Counted::NoRoom => Err(GuardError::NoRoom("pin_counters_max")),
        }
    }

    /// Compares a PIN with what the issuer keeps. Runs to its end whatever becomes of the client:
    /// a try that was answered must not stay counted as a failure, nor a failure be taken back.
    pub async fn verify_pin(
        self: &Arc<Self>,
        client: &str,
        order: PinOrder,
        reference: PinReference,
        deadline: Instant,
    ) -> (Place, Result<PinVerdict, GuardError>) {
        let (guard, client) = (Arc::clone(self), client.to_owned());
        placed(async move { guard.try_pin(&client, order, reference, deadline).await }).await
    }

    async fn try_pin(
        &self,
        client: &str,
        order: PinOrder,
        reference: PinReference,
        deadline: Instant,
    ) -> (Place, Result<PinVerdict, GuardError>) {
        let used = dukpt_use(&order.from, None);
        let (pan, number) = match self.admit_try(client, &order, used.as_ref()).await {
            Ok(admitted) => admitted,
            Err(refused) => return (Place::default(), Err(refused)),
        };
        let PinOrder { pan: digits, block, from } = order;
        let label = from.key.label.to_string();
        let (place, outcome) = self.hsm.verify_pin(digits, block, from, reference, deadline).await;
        let (end, outcome) = match outcome {
            Ok(verdict) => match self.spend(client, used).await {
                Ok(()) => (verdict.verified.then_some(TryEnd::Right), Ok(verdict)),
                Err(error) => (Some(TryEnd::NotAsked), Err(error)),
            },
            Err(error) if is_block_refused(&error) => {
                let counted = self.malformed(client, &label).await;
                (None, Err(counted.err().unwrap_or(GuardError::Hsm(error))))
            }
            Err(error) => (Some(TryEnd::NotAsked), Err(GuardError::Hsm(error))),
        };
        if let Some(end) = end
            && let Err(error) = self.store.end_try(pan, number, end).await
        {
            // It stays a failure: stricter than it is, and told.
            tracing::warn!(%error, "a PIN verification stays counted as failed");
        }
        (place, outcome)
    }

    async fn admit_try(
        &self,
        client: &str,
        order: &PinOrder,
        used: Option<&DukptUse>,
    ) -> Result<([u8; 16], i64), GuardError> {
        self.usable(GuardScope::Pin, order.from.key.label.as_str())?;
        self.unseen(client, used).await?;
        let pan = self.keys.pan_reference(&order.pan)?;
        let Rules { client_verifies, pan_failures, counters_max, .. } = self.rules;
        let begun = self.store.begin_try(pan, client, client_verifies, pan_failures, counters_max);
        match begun.await? {
            Try::Granted(number) => Ok((pan, number)),
            Try::Blocked => {
                metrics::counter!(BLOCKED, "scope" => "pan").increment(1);
                Err(GuardError::Blocked)
            }
            Try::Throttled { retry_after } => {
                metrics::counter!(RATE_LIMITED, "limit" => client_verifies.rule).increment(1);
                Err(GuardError::Throttled { retry_after })
            }
            Try::NoRoom => Err(GuardError::NoRoom("pin_counters_max")),
        }
    }

    /// Whether it is the message's MAC. A replayed KSN is as wrong as a wrong MAC. Runs to its end
    /// whatever becomes of the client: a guess that hangs up is counted too.
    ///
    /// # Errors
    /// [`GuardError`].
    pub async fn verify_mac(
        self: &Arc<Self>,
        client: &str,
        order: MacOrder,
        deadline: Instant,
    ) -> Result<bool, GuardError> {
        let (guard, client) = (Arc::clone(self), client.to_owned());
        let run = async move { guard.try_mac(&client, order, deadline).await };
        // A panic, whose place is logged, is no answer.
        tokio::spawn(run).await.unwrap_or(Err(GuardError::Unclear))
    }

    async fn try_mac(
        &self,
        client: &str,
        order: MacOrder,
        deadline: Instant,
    ) -> Result<bool, GuardError> {
        let MacOrder { key, ksn, message, mac } = order;
        let label = key.label.to_string();
        self.usable(GuardScope::Mac, &label)?;
        let used = ksn.map(|ksn| use_of(&label, DukptPurpose::Mac, ksn, None));
        match self.unseen(client, used.as_ref()).await {
            Ok(()) => {}
            Err(GuardError::Replayed) => return Ok(false),
            Err(error) => return Err(error),
        }
        // Before the token is asked: while nothing can be counted, no guess is free.
        let guess =
            if mac.0.len() < MAC_BYTES_SAFE { Some(self.guess(&label).await?) } else { None };
        let outcome = self.hsm.verify_mac(key, ksn, message, mac, deadline).await;
        if !matches!(outcome, Ok(false)) && guess == Some(Guess::InBudget) {
            self.no_guess(&label).await;
        }
        if !outcome? {
            self.wrong_mac(client, &label, guess).await?;
            return Ok(false);
        }
        match self.spend(client, used).await {
            Ok(()) => Ok(true),
            Err(GuardError::Replayed) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Counts a short MAC as wrong, until it is right.
    async fn guess(&self, label: &str) -> Result<Guess, GuardError> {
        let (rule, rows_max) = (self.rules.mac_failures_life, self.rules.counters_max);
        match self.store.count(rule, label.as_bytes(), rows_max).await? {
            Counted::Within => Ok(Guess::InBudget),
            Counted::Over { .. } => Ok(Guess::BeyondBudget),
            Counted::NoRoom => Err(GuardError::NoRoom("pin_counters_max")),
        }
    }

    /// Takes a short MAC back that turned out right, or was not compared. The answer stands whether
    /// that succeeds or not; taken back twice it would be a free guess for somebody.
    async fn no_guess(&self, label: &str) {
        let rule = self.rules.mac_failures_life.rule;
        let uncount = || self.store.uncount(rule, label.as_bytes());
        if let Err(error) = insist(uncount, StoreError::changed_nothing).await {
            // Stricter than it is, and told.
            tracing::warn!(%error, key = label, "a short MAC stays counted as wrong");
        }
    }

    /// Whether MACs may be made under this key.
    ///
    /// # Errors
    /// [`GuardError::Quarantined`].
    pub fn may_mac(&self, key: &KeyLabel) -> Result<(), GuardError> {
        self.usable(GuardScope::Mac, key.as_str())
    }

    /// A key that a counter took out of use looks like one that is not granted.
    fn usable(&self, scope: GuardScope, label: &str) -> Result<(), GuardError> {
        let quarantined = self.quarantined.read().unwrap_or_else(PoisonError::into_inner);
        // Empty on every good day: no text is made to look it up.
        if quarantined.is_empty() {
            return Ok(());
        }
        match quarantined.get(&(scope, label.to_owned())) {
            Some(until) if self.store.now() < *until => {
                metrics::counter!(BLOCKED, "scope" => "key").increment(1);
                Err(GuardError::Quarantined)
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn unseen(&self, client: &str, used: Option<&DukptUse>) -> Result<(), GuardError> {
        match used {
            Some(used) if !self.store.is_new(used).await? => {
                self.tell(EventType::DukptReplay, client, &used.key_label, None);
                Err(GuardError::Replayed)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Records the use of a KSN; of any number of uses at once one succeeds.
    async fn spend(&self, client: &str, used: Option<DukptUse>) -> Result<(), GuardError> {
        let Some(used) = used else { return Ok(()) };
        let label = used.key_label.clone();
        match self.store.advance(used, self.rules.devices_max).await? {
            Advanced::Grown => Ok(()),
            Advanced::Replayed => {
                self.tell(EventType::DukptReplay, client, &label, None);
                Err(GuardError::Replayed)
            }
            Advanced::NoRoom => Err(GuardError::NoRoom("dukpt_devices_max")),
        }
    }

    async fn malformed(&self, client: &str, label: &str) -> Result<(), GuardError> {
        let window = self.rules.malformed_blocks;
        match self.store.count(window, label.as_bytes(), self.rules.counters_max).await? {
            Counted::Within => Ok(()),
            Counted::Over { .. } => {
                self.quarantine(GuardScope::Pin, label).await?;
                self.tell(EventType::PinSanityBurst, client, label, None);
                Ok(())
            }
            Counted::NoRoom => Err(GuardError::NoRoom("pin_counters_max")),
        }
    }

    async fn wrong_mac(
        &self,
        client: &str,
        label: &str,
        guess: Option<Guess>,
    ) -> Result<(), GuardError> {
        let rules = &self.rules;
        let mut suspect = guess == Some(Guess::BeyondBudget);
        if suspect {
            self.quarantine(GuardScope::Mac, label).await?;
        }
        match self.store.count(rules.mac_failures_day, label.as_bytes(), rules.counters_max).await?
        {
            Counted::Within => {}
            Counted::Over { first, .. } => suspect |= first,
            Counted::NoRoom => return Err(GuardError::NoRoom("pin_counters_max")),
        }
        if suspect {
            self.tell(EventType::MacGuessSuspect, client, label, None);
        }
        Ok(())
    }

    async fn quarantine(&self, scope: GuardScope, label: &str) -> Result<(), GuardError> {
        let until = self.store.now() + self.rules.quarantine_ms;
        // Here first: a database that is away must not leave the key in use.
        {
            let mut quarantined = self.quarantined.write().unwrap_or_else(PoisonError::into_inner);
            quarantined.insert((scope, label.to_owned()), until);
        }
        tracing::error!(
            key = label,
            scope = scope.name(),
            "a key is out of use: too many failures"
        );
        Ok(self.store.quarantine(scope, label, until).await?)
    }
}

/// Runs a PIN operation in a task of its own, which no client ends. After a panic, whose place is
/// logged, what was counted stays counted.
async fn placed<T: Send + 'static>(
    run: impl Future<Output = (Place, Result<T, GuardError>)> + Send + 'static,
) -> (Place, Result<T, GuardError>) {
    tokio::spawn(run).await.unwrap_or_else(|_| (Place::default(), Err(GuardError::Unclear)))
}

fn dukpt_use(from: &PinKey, holder: Option<[u8; 32]>) -> Option<DukptUse> {
    from.ksn.map(|ksn| use_of(from.key.label.as_str(), DukptPurpose::Pin, ksn, holder))
}

fn use_of(label: &str, purpose: DukptPurpose, ksn: Ksn, holder: Option<[u8; 32]>) -> DukptUse {
    let (key_label, device) = (label.to_owned(), ksn.device().as_bytes().to_vec());
    DukptUse { key_label, purpose, device, counter: ksn.counter(), holder }
}

/// Whether the token's answer was that the PIN block is none.
pub(crate) fn is_block_refused(error: &HsmError) -> bool {
    error.failure() == Some(&Failure::PinBlockRefused)
}

/// A MAC of 64 bits is not found by guessing.
const MAC_BYTES_SAFE: usize = 8;
