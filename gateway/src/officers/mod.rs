//! Changes of the token's keys under dual control: proposed by one key officer, approved by
//! another, then made by one worker and read again by the others.
//!
//! The database says what was decided, the worker's key register what was done. An approved change
//! gets its number in the register before it is first given to a worker, and keeps it: whatever
//! crashes in between, it is made once. Changes are made one after another; while the token is away
//! they stay approved.

mod comparison; // one label, one key, whoever is asked

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use compliance::{
    Actor, Event, EventType, Label, Origin, Outcome, Reason, Resource, ResourceType, Role, Service,
};
use hsm_adapter::client::LinkError;
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::{KeyFacts, Order};
use hsm_adapter::register::{KeyProfile, KeyState};
use hsm_adapter::vocabulary::{KeyBlockText, KeyLabel, KeyName};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use self::comparison::{Substitution, difference, substitutions};
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
    /// The change over which a worker was lost last, and how often in a row.
    lost: Mutex<(i64, u32)>,
    /// Until when workers that were starting while the register changed are told to read it again.
    unsettled: Mutex<Option<Instant>>,
}

/// What came of giving a change to a worker.
enum Made {
    /// The key as it is now.
    Applied(KeyFacts),
    /// The worker's sentence; whether it found another key under this label.
    Refused { why: String, substitution: bool },
    /// The token is away.
    Later(HsmError),
}

impl Officers {
    /// Of one gateway.
    #[must_use]
    pub fn new(hsm: Arc<Hsm>, store: Store, audit: AuditLog, config: OfficersConfig) -> Self {
        let (making, lost) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { hsm, store, audit, config, making, lost, unsettled: Mutex::default() }
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
            }
            self.settle().await;
            let restarts = |link: &Arc<HsmLink>| {
                link.workers().iter().map(|worker| worker.restarts).sum::<u64>()
            };
            let starts = self.hsm.links().map(restarts).sum();
            let due = compared.is_none_or(|(at, seen)| at.elapsed() >= MINUTE || seen != starts)
                || self.hsm.links().any(|link| link.is_up() && link.is_distrusted());
            if due && self.compare().await {
                compared = Some((Instant::now(), starts));
            }
        }
    }

    /// Makes what is approved, in order, until nothing is left or the token is away.
    async fn make_all(&self, wanted: i64) -> Result<Option<KeyFacts>, StoreError> {
        let _one_at_a_time = self.making.lock().await;
        let mut facts = None;
        while let Some(change) = self.store.next_key_change().await? {
            let (refused, substitution) = match self.make_one(&change).await? {
                Made::Later(error) => {
                    tracing::warn!(%error, change = change.number, "a key change waits");
                    break;
                }
                Made::Refused { why, substitution } => (Some(why), substitution),
                Made::Applied(key) => {
                    facts = (change.number == wanted).then_some(key).or(facts);
                    (None, false)
                }
            };
            // First the record, then the end: what is not on record is done again, to no effect.
            if !self.record(&change, refused.is_some(), substitution).await {
                break;
            }
            self.store.end_key_change(change.number, refused).await?;
        }
        Ok(facts)
    }

    /// Makes the change on every link, the first one last: what a backup refuses leaves all as it was.
    async fn make_one(&self, change: &KeyChange) -> Result<Made, StoreError> {
        let links: Vec<_> = self.hsm.links().cloned().collect();
        let (mut ready, mut missed, mut last) = (Vec::new(), Vec::new(), 0);
        for link in links.iter().rev() {
            match link.reload_keys(patience()).await {
                Ok(known) => {
                    last = last.max(known);
                    ready.push((link, known));
                }
                Err(error) => missed.push((link, error)),
            }
        }
        let mut number = match change.register_change {
            Some(given) => given,
            None if ready.is_empty() => 0,
            None => self.store.number_key_change(change.number, last).await?,
        };
        let mut applied = None;
        for (link, known) in ready {
            if number <= known {
                // It was made and not recorded, or another was made before it.
                match made_there(link, change).await {
                    Ok(Some(key)) => {
                        applied = Some(key);
                        continue;
                    }
                    Ok(None) => number = self.store.number_key_change(change.number, last).await?,
                    Err(error) => {
                        missed.push((link, error));
                        continue;
                    }
                }
            }
            match self.make_on(link, change, number).await {
                Ok(key) => applied = Some(key),
                Err(Made::Later(error)) => missed.push((link, error)),
                Err(refused) => return Ok(refused),
            }
        }
        if applied.is_some() {
            *lock(&self.unsettled) = Some(Instant::now() + SETTLED_AFTER);
            self.settle().await;
            for (link, _) in &missed {
                if link.set_distrusted(true) {
                    let (link, change) = (link.label(), change.number);
                    tracing::error!(link, change, "not used: it has missed a change of a key");
                }
            }
        }
        match (missed.pop(), applied) {
            (Some((_, error)), _) => Ok(Made::Later(error)),
            (None, Some(key)) => Ok(Made::Applied(key)),
            (None, None) => Ok(Made::Later(LinkError::NoWorker.into())),
        }
    }

    async fn make_on(
        &self,
        link: &HsmLink,
        change: &KeyChange,
        number: u64,
    ) -> Result<KeyFacts, Made> {
        let refused = |why: String| Made::Refused { why, substitution: false };
        let order = worker_order(change, number).map_err(|why| refused(why.into()))?;
        match link.change_key(&order, patience()).await {
            Ok(key) if is_made(change, &key) => Ok(key),
            Ok(key) => Err(refused(format!("the worker left the key {}", key.state))),
            Err(error) => Err(self.not_made(change, error)),
        }
    }

    fn not_made(&self, change: &KeyChange, error: HsmError) -> Made {
        match &error {
            HsmError::Link(LinkError::WorkerDied | LinkError::TimedOut) => {
                let mut lost = lock(&self.lost);
                let times = if lost.0 == change.number { lost.1 + 1 } else { 1 };
                *lost = (change.number, times);
                if times < LOST_MAX {
                    return Made::Later(error);
                }
                let why = format!(
                    "{LOST_MAX} workers were lost over it; the key list shows what became of it"
                );
                Made::Refused { why, substitution: false }
            }
            HsmError::Link(LinkError::Answered(failure)) if is_final(failure) => {
                let substitution = matches!(failure, Failure::KeySubstitution(_));
                Made::Refused { why: failure.to_string(), substitution }
            }
            HsmError::Link(LinkError::OrderTooLong) => {
                Made::Refused { why: error.to_string(), substitution: false }
            }
            HsmError::NoneReady { .. }
            | HsmError::Distrusted
            | HsmError::Overloaded
            | HsmError::TooLate
            | HsmError::Link(
                LinkError::NoWorker
                | LinkError::Busy
                | LinkError::WrongAnswer
                | LinkError::Answered(_),
            ) => Made::Later(error),
        }
    }

    /// Tells the workers to read the register again, for as long as one may have been starting.
    async fn settle(&self) {
        let until = *lock(&self.unsettled);
        let Some(until) = until else { return };
        let mut told = true;
        for link in self.hsm.links().filter(|link| link.is_up()) {
            told &= link.reload_keys(patience()).await.is_ok();
        }
        if told && Instant::now() >= until {
            *lock(&self.unsettled) = None;
        }
    }

    /// Whether every link that is up could be asked. A label with two check values closes the links
    /// that have them, and a link whose keys are in another state than those of a trusted link is not
    /// used until it has caught up.
    async fn compare(&self) -> bool {
        let (mut seen, mut all) = (Vec::new(), true);
        for link in self.hsm.links().filter(|link| link.is_up()) {
            match link.list_keys_each(patience()).await {
                Ok(views) => seen.push((link, views)),
                Err(_) => all = false,
            }
        }
        let views: Vec<_> = seen.iter().flat_map(|(_, views)| views).cloned().collect();
        let found = substitutions(&views);
        let trusted = seen.iter().find(|(link, _)| !link.is_distrusted()).or(seen.first());
        let model = trusted.and_then(|(_, views)| views.first()).map(|(_, keys)| keys.clone());
        for (link, views) in seen {
            let own = found.iter().filter(|found| views.iter().any(|(view, _)| found.is_in(view)));
            let own: Vec<_> = own.collect();
            let keys = views.first().map(|(_, keys)| keys);
            let differs = model.as_ref().zip(keys).and_then(|(model, keys)| difference(model, keys));
            let distrusted = !own.is_empty() || differs.is_some();
            if !link.set_distrusted(distrusted) {
                continue;
            }
            let name = link.label();
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

/// The key on this link when the change is made there.
async fn made_there(link: &HsmLink, change: &KeyChange) -> Result<Option<KeyFacts>, HsmError> {
    let views = link.list_keys_each(patience()).await?;
    let mut keys = views.into_iter().flat_map(|(_, keys)| keys);
    Ok(keys.find(|key| is_made(change, key)))
}

/// The change as the worker is asked for it.
fn worker_order(change: &KeyChange, number: u64) -> Result<Order, &'static str> {
    const UNREADABLE: &str = "the database holds it in a form that this release does not read";
    if let Some(import) = &change.import {
        let block = import.block.as_deref().ok_or(UNREADABLE)?;
        return Ok(Order::ImportKey {
            change: number,
            kbpk: KeyName {
                label: KeyLabel::parse(&import.kbpk).map_err(|_| UNREADABLE)?,
                version: import.kbpk_version,
            },
            block: KeyBlockText::parse(block).map_err(|_| UNREADABLE)?,
            profile: serde_json::from_str(&import.profile).map_err(|_| UNREADABLE)?,
        });
    }
    let decided_at = change.decided_at.unwrap_or(change.proposed_at);
    let label = KeyLabel::parse(&change.label).map_err(|_| UNREADABLE)?;
    Ok(Order::SetKeyState {
        change: number,
        key: KeyName { label, version: Some(change.version) },
        state: wanted_state(change.kind).ok_or(UNREADABLE)?,
        usable_until_s: change.overlap_s.map(|overlap| decided_at / 1000 + i64::from(overlap)),
    })
}

fn wanted_state(kind: KeyChangeKind) -> Option<KeyState> {
    match kind {
        KeyChangeKind::Import => None,
        KeyChangeKind::Activate => Some(KeyState::Active),
        KeyChangeKind::Retire => Some(KeyState::Retired),
        KeyChangeKind::Compromise => Some(KeyState::Compromised),
    }
}

/// Whether the key is as the change wants it.
fn is_made(change: &KeyChange, key: &KeyFacts) -> bool {
    key.label.as_str() == change.label
        && key.version == change.version
        && wanted_state(change.kind).is_none_or(|state| key.state == state)
}

/// Whether the same order would be answered so again, however well the token is.
fn is_final(failure: &Failure) -> bool {
    let needs_a_person = matches!(failure, Failure::Token { class: CkrClass::Permanent, .. });
    !failure.is_transient() && !needs_a_person && *failure != Failure::Expired
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

/// A worker that began to start before a change has read the register, or ended, by then.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// Workers that may be lost over one change before it is refused.
const LOST_MAX: u32 = 5;

/// Changes in one answer.
const LISTED_MAX: u32 = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::KeyChangeState;

    fn change(kind: KeyChangeKind) -> KeyChange {
        KeyChange {
            number: 1,
            kind,
            label: "zpk.a".into(),
            version: 2,
            import: None,
            overlap_s: Some(3600),
            state: KeyChangeState::Approved,
            reason: "yearly".into(),
            proposer: "ann".into(),
            proposed_at: 1_000_000,
            expires_at: 9_000_000,
            decider: Some("ben".into()),
            decision_reason: Some("seen".into()),
            decided_at: Some(2_000_000),
            register_change: None,
            error: None,
            ended_at: None,
        }
    }

    #[test]
    fn an_overlap_runs_from_the_approval_however_late_the_change_is_made() {
        let order = worker_order(&change(KeyChangeKind::Retire), 7).unwrap();

        let expected = Order::SetKeyState {
            change: 7,
            key: KeyName { label: KeyLabel::parse("zpk.a").unwrap(), version: Some(2) },
            state: KeyState::Retired,
            usable_until_s: Some(2000 + 3600),
        };
        assert_eq!(order, expected);
    }

    #[test]
    fn an_import_without_its_block_is_no_order() {
        let import = KeyImport {
            profile: r#"{"label":"zpk.a","role":"zone-pin-in","algorithm":"tdes"}"#.into(),
            kbpk: "kek.a".into(),
            kbpk_version: Some(3),
            block: Some("D0112P0TE00N0000".into()),
        };
        let wiped = KeyImport { block: None, ..import.clone() };
        let with = |import| KeyChange { import: Some(import), ..change(KeyChangeKind::Import) };

        let order = worker_order(&with(import), 7).unwrap();

        let Order::ImportKey { change: 7, kbpk, .. } = order else { panic!("{order:?}") };
        assert_eq!(kbpk.to_string(), "kek.a@3");
        assert!(worker_order(&with(wiped), 7).is_err());
    }

    #[test]
    fn what_the_token_may_answer_otherwise_tomorrow_is_not_final() {
        let token = |class| Failure::Token { function: "f".into(), code: "c".into(), class };

        for (failure, expected) in [
            (Failure::UnknownKey, true),
            (Failure::KeyBlockRefused("version A".into()), true),
            (Failure::KeySubstitution("zpk.a@2".into()), true),
            (token(CkrClass::Caller), true),
            (token(CkrClass::Configuration), true),
            (token(CkrClass::Transient), false),
            (token(CkrClass::Permanent), false),
            (Failure::Expired, false),
        ] {
            assert_eq!(is_final(&failure), expected, "{failure:?}");
        }
    }
}
