//! Changes of the token's keys under dual control: proposed by one key officer, approved by
//! another, then made by one worker and read again by the others.
//!
//! The database says what was decided, each token's key register what was done there. An approved
//! change gets a number before it is given to a worker, above that of every change before it, and each
//! token gets the changes in the order of their numbers: the last number in a register tells which it
//! has, whatever crashed in between. What is made twice has no effect the second time. Changes are made
//! one after another; while the token is away they stay approved.

mod comparison; // one label, one key, whoever is asked
mod making; // what is approved, on every link

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use compliance::{
    Actor, Event, EventType, Label, Origin, Outcome, Reason, Resource, ResourceType, Role, Service,
};
use hsm_adapter::protocol::KeyFacts;
use hsm_adapter::register::KeyProfile;
use hsm_adapter::vocabulary::{KeyBlockText, KeyLabel, KeyName};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use self::comparison::{Substitution, difference, substitutions};
use self::making::Lacking;
use crate::audit::AuditLog;
use crate::config::OfficersConfig;
use crate::links::token::{Hsm, HsmError, HsmLink};
use crate::store::{
    Decided, Decision, KeyChange, KeyChangeKind, KeyImport, NewKeyChange, Proposed, Store,
    StoreError,
};

/// What a key officer asks for.
#[derive(Debug)]
pub enum KeyOrder {
    /// A new version, from a key block.
    Import {
        /// What it is to be for, staged.
        profile: Box<KeyProfile>,
        /// The key that protects the block.
        under: KeyName,
        /// The block.
        block: KeyBlockText,
    },
    /// Another state for a version.
    State {
        /// Which; never an import.
        kind: KeyChangeKind,
        /// The key.
        label: KeyLabel,
        /// Its version.
        version: u32,
        /// How long the version that retires by it still verifies and deciphers.
        overlap_s: Option<u32>,
    },
}

/// Keeps and makes the changes.
#[derive(Debug)]
pub struct Officers {
    hsm: Arc<Hsm>,
    store: Store,
    audit: AuditLog,
    config: OfficersConfig,
    /// Changes are made one after another.
    making: tokio::sync::Mutex<()>,
    /// How many a link has made.
    changed: AtomicU64,
    /// Whether the links' keys were compared: until then none of several is trusted.
    compared: AtomicBool,
    /// The change over which a worker was lost last, and how often in a row.
    lost: Mutex<(i64, u32)>,
    /// Until when workers that were starting while the register changed are told to read it again.
    unsettled: Mutex<Option<Instant>>,
    /// Approved changes that are made on some links and on record: which links lack each, and why.
    partly: Mutex<HashMap<i64, Lacking>>,
    /// Why each link's keys are not trusted, as it was told last.
    causes: Mutex<HashMap<&'static str, Vec<String>>>,
}

impl Officers {
    /// Of one gateway.
    #[must_use]
    pub fn new(hsm: Arc<Hsm>, store: Store, audit: AuditLog, config: OfficersConfig) -> Self {
        Self {
            compared: AtomicBool::new(hsm.links().count() == 1),
            hsm,
            store,
            audit,
            config,
            making: tokio::sync::Mutex::default(),
            changed: AtomicU64::new(0),
            lost: Mutex::default(),
            unsettled: Mutex::default(),
            partly: Mutex::default(),
            causes: Mutex::default(),
        }
    }

    /// Every key version of the token.
    ///
    /// # Errors
    /// When the token does not answer.
    pub async fn keys(&self) -> Result<Vec<KeyFacts>, HsmError> {
        self.hsm.list_keys(patience()).await
    }

    /// The latest changes, the last first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn changes(&self) -> Result<Vec<KeyChange>, StoreError> {
        self.store.key_changes(LISTED_MAX).await
    }

    /// Records what an officer asks for.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn propose(
        &self,
        order: KeyOrder,
        officer: &str,
        reason: &str,
    ) -> Result<Proposed, StoreError> {
        let (kind, label, version, overlap_s, import) = match order {
            KeyOrder::State { kind, label, version, overlap_s } => {
                (kind, label, version, overlap_s, None)
            }
            KeyOrder::Import { profile, under, block } => {
                let import = KeyImport {
                    profile: serde_json::to_string(&profile)
                        .map_err(|_| StoreError::Foreign("profile"))?,
                    kbpk: under.label.to_string(),
                    kbpk_version: under.version,
                    block: Some(block.as_str().to_owned()),
                };
                (KeyChangeKind::Import, profile.label, profile.version, None, Some(import))
            }
        };
        let change = NewKeyChange {
            kind,
            label: label.to_string(),
            version,
            import,
            overlap_s,
            // As the audit log would write it: no card number in it.
            reason: Label::new(reason).to_string(),
            proposer: officer.to_owned(),
            life: self.config.proposal_life(),
            proposals_max: self.config.proposals_max,
        };
        self.store.propose_key_change(change).await
    }

    /// Records an officer's decision, if it is his to make.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn decide(
        &self,
        number: i64,
        decision: Decision,
        officer: &str,
        reason: &str,
    ) -> Result<Decided, StoreError> {
        let reason = Label::new(reason);
        self.store.decide_key_change(number, decision, officer, reason.as_str()).await
    }

    /// Makes what is approved, as far as the token answers within [`MADE_WITHIN`]. Gives the change
    /// of this number as it is then, and its key when it was made here.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn make(
        &self,
        number: i64,
    ) -> Result<Option<(KeyChange, Option<KeyFacts>)>, StoreError> {
        // Given up in the middle it is taken up again by the upkeep, with its own number.
        let made = match timeout(MADE_WITHIN, self.make_all(number)).await {
            Ok(made) => made?,
            Err(_) => None,
        };
        Ok(self.store.key_change(number).await?.map(|change| (change, made)))
    }

    /// Makes approved changes, ends proposals that waited too long, and compares the keys of the
    /// workers, until `stop`.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut compared: Option<(Instant, u64)> = None;
        let mut expired: Option<Instant> = None;
        let mut rest = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(rest) => {}
            }
            // The first round at once: a further link serves only when its keys were compared.
            rest = TICK;
            if expired.is_none_or(|at| at.elapsed() >= MINUTE) {
                expired = Some(Instant::now());
                if let Err(error) = self.expire().await {
                    tracing::error!(%error, "ending old key proposals");
                }
            }
            if !self.hsm.links().any(|link| link.is_up()) {
                continue;
            }
            if let Err(error) = self.make_all(0).await {
                tracing::error!(%error, "making key changes");
                // Nobody knows which links lack what.
                continue;
            }
            self.settle().await;
            let restarts = |link: &Arc<HsmLink>| {
                link.workers().iter().map(|worker| worker.restarts).sum::<u64>()
            };
            let starts = self.hsm.links().map(restarts).sum();
            let waits = self.hsm.links().any(|link| link.is_up() && link.is_distrusted());
            let every = if waits { CATCHING_UP } else { MINUTE };
            let due = compared.is_none_or(|(at, seen)| at.elapsed() >= every || seen != starts);
            if due && self.compare().await {
                compared = Some((Instant::now(), starts));
            }
        }
    }

    /// Whether every link that is up could be asked. The first link that has every approved change
    /// and one key under each label is the model. A label with two check values closes the link that differs from it, or whose own
    /// workers differ; and a link that lacks an approved change, or whose keys are in another state than
    /// those of one that has them all, is not used until it has caught up.
    async fn compare(&self) -> bool {
        let (mut seen, mut all) = (Vec::new(), true);
        let changed = self.changed.load(Ordering::Acquire);
        for link in self.hsm.links().filter(|link| link.is_up()) {
            match link.list_keys_each(patience()).await {
                Ok(views) => seen.push((link, views)),
                Err(_) => all = false,
            }
        }
        let _nothing_changes_now = self.making.lock().await;
        if self.changed.load(Ordering::Acquire) != changed {
            // What was seen is not so any more.
            return false;
        }
        let views: Vec<_> = seen.iter().flat_map(|(_, views)| views).cloned().collect();
        let found = substitutions(&views);
        let missing = self.missing();
        // Whatever was approved is made there, or it waits everywhere.
        let trusted = seen.iter().find(|(link, views)| {
            let one = !found.iter().any(|found| found.is_within(views));
            one && !missing.contains(link.name())
        });
        let model = trusted.map(|(link, views)| (link.name(), views.clone()));
        for (link, views) in seen {
            let is_in = |found: &Substitution| views.iter().any(|(view, _)| found.is_in(view));
            // Of two links that differ the model goes on, whose own workers do not.
            let is_model = model.as_ref().is_some_and(|(name, _)| *name == link.name());
            let own: Vec<_> = found.iter().filter(|found| !is_model && is_in(found)).collect();
            let modelled = model.as_ref().and_then(|(_, views)| views.first());
            let differs = modelled.zip(views.first());
            let differs = differs.and_then(|((_, one), (_, keys))| difference(one, keys));
            let lacks = missing.contains(link.name());
            link.set_distrusted(!own.is_empty() || differs.is_some() || lacks);
            let name = link.name();
            // Told once for each cause, also of a link that was never used.
            let causes: Vec<_> =
                own.iter().map(ToString::to_string).chain(differs.clone()).collect();
            let told = lock(&self.causes).insert(name, causes.clone());
            if told.unwrap_or_default() == causes {
                continue;
            }
            if let Some(key) = differs {
                tracing::error!(link = name, key, "not used: another link has it in another state");
            }
            for substitution in own {
                tracing::error!(%substitution, link = name, "not used");
                let event = self.event(
                    Actor::system(),
                    EventType::KeySubstitution,
                    Outcome::Failure,
                    &substitution.key,
                );
                self.append(event.link(Label::new(name))).await;
            }
        }
        self.compared.store(true, Ordering::Release);
        all
    }

    async fn expire(&self) -> Result<(), StoreError> {
        for change in self.store.expire_key_changes().await? {
            let event = self
                .event(Actor::system(), EventType::KeyChange, Outcome::Failure, &key_name(&change))
                .reason(Reason::Expired)
                .proposer(Label::new(&change.proposer))
                .note(Label::new(&change.reason));
            self.append(event).await;
        }
        Ok(())
    }

    /// The change as an event of its own kind, by the officer who let it happen. Whether it is on
    /// record.
    async fn record(&self, change: &KeyChange, refused: bool, substitution: bool) -> bool {
        let kind = match change.kind {
            KeyChangeKind::Import => EventType::KeyImport,
            KeyChangeKind::Activate => EventType::KeyActivate,
            KeyChangeKind::Retire => EventType::KeyRetire,
            KeyChangeKind::Compromise => EventType::KeyCompromise,
        };
        let outcome = if refused { Outcome::Failure } else { Outcome::Success };
        let by = change.decider.as_deref().unwrap_or(&change.proposer);
        let officer = || Actor::admin(Label::new(by), [Role::KeyOfficer]);
        let key = key_name(change);
        let mut event = self
            .event(officer(), kind, outcome, &key)
            .proposer(Label::new(&change.proposer))
            .note(Label::new(&change.reason));
        if let Some(approver) = &change.decider {
            event = event.approver(Label::new(approver));
        }
        if refused {
            event = event.reason(Reason::Refused);
        }
        let recorded = self.append(event).await;
        if substitution {
            let kind = EventType::KeySubstitution;
            self.append(self.event(officer(), kind, Outcome::Failure, &key)).await;
        }
        recorded
    }

    fn event(&self, who: Actor, kind: EventType, outcome: Outcome, key: &str) -> Event {
        let resource = Resource::new(ResourceType::Key, Label::new(key));
        let (now, origin) = (jiff::Timestamp::now(), Origin::inside(self.audit.host()));
        Event::new(who, kind, now, outcome, origin, resource).service(Service::Keys)
    }

    async fn append(&self, event: Event) -> bool {
        let kind = event.kind();
        let recorded = self.audit.append(event).await.is_ok();
        if !recorded {
            tracing::error!(%kind, "an event of a key is not in the audit log");
        }
        recorded
    }
}

fn key_name(change: &KeyChange) -> String {
    format!("{}@{}", change.label, change.version)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each holds one value that is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn patience() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// How long an officer waits for a change before it is left to the upkeep.
pub const MADE_WITHIN: Duration = Duration::from_secs(15);

/// How often the upkeep looks for approved changes.
const TICK: Duration = Duration::from_secs(2);
const MINUTE: Duration = Duration::from_secs(60);

/// How often keys are compared while a link waits to be trusted.
const CATCHING_UP: Duration = Duration::from_secs(4);

/// Changes in one answer.
const LISTED_MAX: u32 = 200;
