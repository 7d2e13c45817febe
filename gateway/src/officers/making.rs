//! Makes what is approved: on every link, by one worker of each, under one number.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hsm_adapter::client::LinkError;
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::{KeyFacts, Order};
use hsm_adapter::register::KeyState;
use hsm_adapter::vocabulary::{KeyBlockText, KeyLabel, KeyName};
use tokio::time::Instant;

use super::{Officers, key_name, lock, patience};
use crate::links::token::{HsmError, HsmLink};
use crate::store::{KeyChange, KeyChangeKind, StoreError};

/// What came of a change in one round.
enum Made {
    /// On every link; the key as it is then, where somebody was asked now.
    Everywhere(Option<KeyFacts>),
    /// On some links; why each of the others lacks it.
    Partly(Option<KeyFacts>, Lacking),
    /// Nowhere, and it will not be: the worker's sentence; whether it found another key under this
    /// label.
    Refused { why: String, substitution: bool },
    /// Nowhere yet.
    Later(HsmError),
}

/// Why each link that lacks a change does.
pub(super) type Lacking = BTreeMap<&'static str, String>;

/// Why a link has not made a change.
enum Missed {
    /// It lacks an earlier one.
    Behind,
    /// It may tomorrow.
    Later(HsmError),
    /// It has no such key to take out of use.
    NoSuchKey,
    /// It was asked, and refuses.
    Refused { why: String, substitution: bool },
}

/// What is known of the links while a round lasts.
#[derive(Default)]
struct Round {
    /// The number of the last change in each link's register.
    last: HashMap<&'static str, u64>,
    /// Links that lack a change: they get no later one.
    behind: HashSet<&'static str>,
}

impl Officers {
    /// Makes what is approved, on every link that is there. A link that is away keeps nobody waiting:
    /// it is not used until it has caught up. Each link gets the changes in one order, that of their
    /// numbers, so that the last number in its register tells which it has, whatever was killed between.
    /// A compromise goes before all that is made nowhere yet. Gives the key of the change `wanted` when
    /// it was made here.
    pub(super) async fn make_all(&self, wanted: i64) -> Result<Option<KeyFacts>, StoreError> {
        let _one_at_a_time = self.making.lock().await;
        let (mut facts, mut round, mut seen) = (None, Round::default(), HashSet::new());
        loop {
            // Read anew each time: another compromise may have come.
            let approved = self.store.approved_key_changes().await?;
            lock(&self.partly).retain(|number, _| approved.iter().any(|it| it.number == *number));
            let Some(change) = self.next_of(approved, &seen) else { break };
            seen.insert(change.number);
            if change.made_at.is_some() && self.still_lacks(&change, &mut round) {
                continue;
            }
            let made = self.make_one(&change, &mut round).await?;
            let is_new = change.made_at.is_none();
            let refused = match made {
                Made::Later(error) => {
                    let key = key_name(&change);
                    tracing::warn!(%error, change = change.number, key, "a change waits: no link has it");
                    // Where an earlier change is not made, a later one is not either.
                    if self.hsm.links().all(|link| round.behind.contains(link.name())) {
                        break;
                    }
                    continue;
                }
                Made::Partly(key, lacking) => {
                    self.distrust(&change, lacking);
                    // On record once it is in force anywhere.
                    if is_new {
                        if !self.record(&change, false, false).await {
                            break;
                        }
                        self.store.note_key_change_made(change.number).await?;
                    }
                    facts = key.filter(|_| change.number == wanted).or(facts);
                    continue;
                }
                Made::Refused { why, substitution } => Some((why, substitution)),
                Made::Everywhere(key) => {
                    facts = key.filter(|_| change.number == wanted).or(facts);
                    None
                }
            };
            // First the record, then the end: what is not on record is done again, to no effect.
            let substitution = refused.as_ref().is_some_and(|(_, substitution)| *substitution);
            if is_new && !self.record(&change, refused.is_some(), substitution).await {
                break;
            }
            self.store.end_key_change(change.number, refused.map(|(why, _)| why)).await?;
            lock(&self.partly).remove(&change.number);
        }
        Ok(facts)
    }

    /// The next change of a round: the first that it has not seen, but a compromise before what only
    /// links lack that are closed for it, and before the first comparison nothing else that is new: no
    /// link may refuse yet.
    fn next_of(&self, approved: Vec<KeyChange>, seen: &HashSet<i64>) -> Option<KeyChange> {
        let compared = self.compared.load(Ordering::Acquire);
        let partly = lock(&self.partly);
        let mut left: Vec<_> =
            approved.into_iter().filter(|it| !seen.contains(&it.number)).collect();
        let compromise = |it: &KeyChange| it.kind == KeyChangeKind::Compromise;
        let known = left.iter().all(|it| it.made_at.is_none() || partly.contains_key(&it.number));
        let urgent = left.iter().position(|it| it.made_at.is_none() && compromise(it));
        let first = left.iter().position(|it| it.made_at.is_some() || compromise(it) || compared);
        urgent.filter(|_| known).or(first).map(|at| left.swap_remove(at))
    }

    /// Whether the links that lacked the change are all away still: nobody need be asked.
    fn still_lacks(&self, change: &KeyChange, round: &mut Round) -> bool {
        let partly = lock(&self.partly);
        let Some(lacking) = partly.get(&change.number) else { return false };
        let away = self.hsm.links().all(|link| !link.is_up() || !lacking.contains_key(link.name()));
        if away {
            round.behind.extend(lacking.keys());
        }
        away
    }

    /// Makes the change where it is not made yet, the first link last. Until one has made it, a link whose
    /// keys are trusted may refuse it for all; but nobody keeps another link from taking a compromised key
    /// out of use.
    async fn make_one(&self, change: &KeyChange, round: &mut Round) -> Result<Made, StoreError> {
        let is_new = change.made_at.is_none();
        if let Some(why) = self.still_wraps(change).await?.filter(|_| is_new) {
            return Ok(Made::Refused { why, substitution: false });
        }
        let links: Vec<_> = self.hsm.links().cloned().collect();
        let (mut ready, mut missed) = (Vec::new(), Vec::new());
        let lacking = if is_new { self.missing() } else { HashSet::new() };
        for link in links.iter().rev() {
            if lacking.contains(link.name()) {
                missed.push((link.name(), Missed::Behind));
                continue;
            }
            match self.last_change(link, round).await {
                Ok(last) if !is_new && change.register_change.is_some_and(|it| it <= last) => {}
                Ok(_) => ready.push(link),
                Err(why) => missed.push((link.name(), why)),
            }
        }
        let last = ready.iter().filter_map(|link| round.last.get(link.name()).copied()).max();
        let number = match (change.register_change.filter(|_| !is_new), last) {
            (Some(given), _) => given,
            (None, Some(last)) => self.store.number_key_change(change.number, last).await?,
            // Nobody is given it.
            (None, None) => 0,
        };
        let mut applied = None;
        for link in ready {
            let name = link.name();
            match self.make_on(link, change, number).await {
                Ok(key) => {
                    applied = Some(key);
                    self.changed.fetch_add(1, Ordering::AcqRel);
                    round.last.insert(name, number);
                    *lock(&self.unsettled) = Some(Instant::now() + SETTLED_AFTER);
                }
                Err(Missed::Refused { why, substitution })
                    if is_new
                        && applied.is_none()
                        && change.kind != KeyChangeKind::Compromise
                        && !link.is_distrusted() =>
                {
                    let why = if links.len() > 1 { format!("{name}: {why}") } else { why };
                    return Ok(Made::Refused { why, substitution });
                }
                Err(why) => missed.push((name, why)),
            }
        }
        self.settle().await;
        // Who lacks the key has nothing to take out of use, once another has taken it.
        if !is_new || applied.is_some() {
            missed.retain(|(_, why)| !matches!(why, Missed::NoSuchKey));
        }
        let asked = missed.iter().filter(|(_, why)| !matches!(why, Missed::Behind));
        round.behind.extend(asked.map(|(name, _)| *name));
        Ok(if missed.is_empty() {
            Made::Everywhere(applied)
        } else if !is_new || applied.is_some() {
            let lacking = missed.into_iter().map(|(name, why)| (name, why.to_string()));
            Made::Partly(applied, lacking.collect())
        } else {
            nowhere(missed)
        })
    }

    /// Why a version of the queue's KEK may not end: what waits in the queue would never open again.
    async fn still_wraps(&self, change: &KeyChange) -> Result<Option<String>, StoreError> {
        let ends = change.kind == KeyChangeKind::Compromise;
        if !ends || change.label != self.hsm.queue_kek().as_str() {
            return Ok(None);
        }
        let under = self.store.deks_under(change.version).await?;
        Ok((under > 0).then(|| {
            format!(
                "{under} data keys of the queue are wrapped under it: activate another version, and \
                 wait until they are under that one"
            )
        }))
    }

    /// The number of the last change in a link's register, or why it cannot be asked for the next one.
    async fn last_change(&self, link: &HsmLink, round: &mut Round) -> Result<u64, Missed> {
        if !link.is_up() {
            return Err(Missed::Later(LinkError::NoWorker.into()));
        }
        if round.behind.contains(link.name()) {
            return Err(Missed::Behind);
        }
        if let Some(last) = round.last.get(link.name()) {
            return Ok(*last);
        }
        let last = link.reload_keys(patience()).await.map_err(Missed::Later)?;
        round.last.insert(link.name(), last);
        Ok(last)
    }

    /// Whoever lacks a change is not used, from now on and whatever comes after. Told once for each cause.
    fn distrust(&self, change: &KeyChange, lacking: Lacking) {
        let mut partly = lock(&self.partly);
        let told = partly.insert(change.number, lacking.clone()).unwrap_or_default();
        for link in self.hsm.links() {
            let name = link.name();
            let Some(why) = lacking.get(name) else { continue };
            link.set_distrusted(true);
            if told.get(name) != Some(why) {
                let key = key_name(change);
                tracing::error!(
                    link = name,
                    change = change.number,
                    key,
                    why,
                    "not used: it lacks a change of a key that another link has made"
                );
            }
        }
    }

    /// The links that lack an approved change.
    pub(super) fn missing(&self) -> HashSet<&'static str> {
        lock(&self.partly).values().flat_map(BTreeMap::keys).copied().collect()
    }

    async fn make_on(
        &self,
        link: &HsmLink,
        change: &KeyChange,
        number: u64,
    ) -> Result<KeyFacts, Missed> {
        let refused = |why: String| Missed::Refused { why, substitution: false };
        let order = worker_order(change, number).map_err(|why| refused(why.into()))?;
        match link.change_key(&order, patience()).await {
            Ok(key) if is_made(change, &key) => Ok(key),
            // Somebody else has written the register since its number was read.
            Ok(_) => Err(Missed::Later(LinkError::WrongAnswer.into())),
            Err(error) => Err(self.not_made(change, error)),
        }
    }

    fn not_made(&self, change: &KeyChange, error: HsmError) -> Missed {
        match &error {
            HsmError::Link(LinkError::WorkerDied | LinkError::TimedOut) => {
                let mut lost = lock(&self.lost);
                let times = if lost.0 == change.number { lost.1 + 1 } else { 1 };
                *lost = (change.number, times);
                if times < LOST_MAX {
                    return Missed::Later(error);
                }
                let why = format!(
                    "{LOST_MAX} workers were lost over it; the key list shows what became of it"
                );
                Missed::Refused { why, substitution: false }
            }
            HsmError::Link(LinkError::Answered(Failure::UnknownKey))
                if change.kind == KeyChangeKind::Compromise =>
            {
                Missed::NoSuchKey
            }
            HsmError::Link(LinkError::Answered(failure)) if is_final(failure) => {
                let substitution = matches!(failure, Failure::KeySubstitution(_));
                Missed::Refused { why: failure.to_string(), substitution }
            }
            HsmError::Link(LinkError::OrderTooLong) => {
                Missed::Refused { why: error.to_string(), substitution: false }
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
            ) => Missed::Later(error),
        }
    }

    /// Tells the workers to read the register again, for as long as one may have been starting.
    pub(super) async fn settle(&self) {
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
}

/// What it comes to when no link has made the change: it is refused where nobody is left who may make it.
fn nowhere(missed: Vec<(&'static str, Missed)>) -> Made {
    let several = missed.len() > 1;
    let mut refusals = Vec::new();
    let mut substituted = false;
    for (name, missed) in missed {
        let told = missed.to_string();
        let told = if several { format!("{name}: {told}") } else { told };
        match missed {
            Missed::Behind => return Made::Later(LinkError::NoWorker.into()),
            Missed::Later(error) => return Made::Later(error),
            Missed::NoSuchKey => refusals.push(told),
            Missed::Refused { substitution, .. } => {
                substituted |= substitution;
                refusals.push(told);
            }
        }
    }
    Made::Refused { why: refusals.join("; "), substitution: substituted }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind => "it lacks an earlier change".fmt(f),
            Self::Later(error) => error.fmt(f),
            Self::NoSuchKey => Failure::UnknownKey.fmt(f),
            Self::Refused { why, .. } => why.fmt(f),
        }
    }
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

/// Workers that may be lost over one change before it is refused.
const LOST_MAX: u32 = 5;

/// A worker that began to start before a change has read the register, or ended, by then.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{KeyChangeState, KeyImport};

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
            made_at: None,
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
