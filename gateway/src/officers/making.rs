//! Makes what is approved: on every link, by one worker of each, under one number.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hsm_adapter::client::LinkError;
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::{KeyFacts, Order};
use hsm_adapter::register::KeyState;
use hsm_adapter::vocabulary::{KeyBlockText, KeyLabel, KeyName};
use tokio::time::Instant;

use super::{Officers, lock, patience};
use crate::links::token::{HsmError, HsmLink};
use crate::store::{KeyChange, KeyChangeKind, StoreError};

/// What came of a change in one round.
enum Made {
    /// The key as it is now, on every link.
    Applied(KeyFacts),
    /// The key as it is now, where it was made; the links that have missed it.
    Partly(KeyFacts, Vec<&'static str>),
    /// The worker's sentence; whether it found another key under this label. Nothing was made.
    Refused { why: String, substitution: bool },
    /// No link has it.
    Later(HsmError),
}

/// Why a link has not made a change.
enum Missed {
    /// It may tomorrow.
    Later(HsmError),
    /// It was asked, and refuses.
    Refused { why: String, substitution: bool },
}

impl Officers {
    /// Makes what is approved, in order, on every link that is there. A link that is away keeps nobody
    /// waiting: it is not used until it has caught up, change by change. Gives the key of the change
    /// `wanted` when it was made here.
    pub(super) async fn make_all(&self, wanted: i64) -> Result<Option<KeyFacts>, StoreError> {
        let _one_at_a_time = self.making.lock().await;
        let (mut facts, mut behind) = (None, HashSet::new());
        let approved = self.store.approved_key_changes().await?;
        lock(&self.partly).retain(|number, _| approved.iter().any(|it| it.number == *number));
        for change in approved {
            let told = lock(&self.partly).get(&change.number).cloned();
            if let Some(missed) = &told
                && self.hsm.links().all(|link| !link.is_up() || !missed.contains(&link.name()))
            {
                behind.extend(missed);
                continue;
            }
            let (refused, substitution) = match self.make_one(&change, &told, &mut behind).await? {
                Made::Later(error) => {
                    tracing::warn!(%error, change = change.number, "a key change waits");
                    // Where an earlier change is not made, a later one is not either.
                    if self.hsm.links().all(|link| behind.contains(link.name())) {
                        break;
                    }
                    continue;
                }
                Made::Partly(key, missed) => {
                    self.distrust(&change, &missed);
                    // On record once it is in force anywhere.
                    if told.is_some() || self.record(&change, false, false).await {
                        lock(&self.partly).insert(change.number, missed);
                    }
                    facts = (change.number == wanted).then_some(key).or(facts);
                    continue;
                }
                Made::Refused { why, substitution } => (Some(why), substitution),
                Made::Applied(key) => {
                    facts = (change.number == wanted).then_some(key).or(facts);
                    (None, false)
                }
            };
            // First the record, then the end: what is not on record is done again, to no effect.
            if told.is_none() && !self.record(&change, refused.is_some(), substitution).await {
                break;
            }
            self.store.end_key_change(change.number, refused).await?;
            lock(&self.partly).remove(&change.number);
        }
        Ok(facts)
    }

    /// Makes the change where it is not made yet, the first link last: what a backup refuses leaves
    /// all as it was. `told` names the links that lack it, when others have it; `behind` those that
    /// lack an earlier one.
    async fn make_one(
        &self,
        change: &KeyChange,
        told: &Option<Vec<&'static str>>,
        behind: &mut HashSet<&'static str>,
    ) -> Result<Made, StoreError> {
        let links: Vec<_> = self.hsm.links().cloned().collect();
        let lacks =
            |link: &&Arc<HsmLink>| told.as_ref().is_none_or(|missed| missed.contains(&link.name()));
        let (mut ready, mut last) = (Vec::new(), 0);
        let mut applied = None;
        let mut missed: Vec<(&'static str, Missed)> = Vec::new();
        for link in links.iter().rev().filter(lacks) {
            let name = link.name();
            if behind.contains(name) || !link.is_up() {
                missed.push((name, Missed::Later(LinkError::NoWorker.into())));
                continue;
            }
            let known = match link.reload_keys(patience()).await {
                Ok(known) => made_there(link, change).await.map(|made| (known, made)),
                Err(error) => Err(error),
            };
            match known {
                Ok((_, Some(key))) => applied = Some(key),
                Ok((known, None)) => {
                    last = last.max(known);
                    ready.push(link);
                }
                Err(error) => missed.push((name, Missed::Later(error))),
            }
        }
        let number = match change.register_change {
            Some(given) if given > last => given,
            // Nobody is given it.
            None if ready.is_empty() => 0,
            // Above all that the links hold which are to make it.
            Some(_) | None => self.store.number_key_change(change.number, last).await?,
        };
        for link in ready {
            match self.make_on(link, change, number).await {
                Ok(key) => {
                    applied = Some(key);
                    *lock(&self.unsettled) = Some(Instant::now() + SETTLED_AFTER);
                }
                Err(Missed::Refused { why, substitution })
                    if applied.is_none() && told.is_none() =>
                {
                    return Ok(Made::Refused { why, substitution });
                }
                Err(why) => missed.push((link.name(), why)),
            }
        }
        self.settle().await;
        behind.extend(missed.iter().map(|(name, _)| *name));
        for (link, why) in &missed {
            if let Missed::Refused { why, .. } = why {
                tracing::error!(link, why, change = change.number, "refused, and made elsewhere");
            }
        }
        let names = missed.iter().map(|(name, _)| *name).collect();
        let first = missed.into_iter().next().map(|(_, why)| why);
        Ok(match (first, applied) {
            (None, Some(key)) => Made::Applied(key),
            (Some(_), Some(key)) => Made::Partly(key, names),
            (Some(_), None) if told.is_some() => {
                // Others have it; these lack it still.
                return self.still_partly(change, names).await;
            }
            (Some(Missed::Later(error)), None) => Made::Later(error),
            (Some(Missed::Refused { why, substitution }), None) => {
                Made::Refused { why, substitution }
            }
            (None, None) => Made::Later(LinkError::NoWorker.into()),
        })
    }

    /// The change as a link has it that made it before.
    async fn still_partly(
        &self,
        change: &KeyChange,
        missed: Vec<&'static str>,
    ) -> Result<Made, StoreError> {
        for link in self.hsm.links().filter(|link| !missed.contains(&link.name())) {
            if let Ok(Some(key)) = made_there(link, change).await {
                return Ok(Made::Partly(key, missed));
            }
        }
        Ok(Made::Later(LinkError::NoWorker.into()))
    }

    /// Whoever has missed a change is not used.
    fn distrust(&self, change: &KeyChange, missed: &[&'static str]) {
        for link in self.hsm.links().filter(|link| missed.contains(&link.name())) {
            if link.set_distrusted(true) {
                let (link, change) = (link.name(), change.number);
                tracing::error!(link, change, "not used: it has missed a change of a key");
            }
        }
    }

    /// The links that lack an approved change.
    pub(super) fn missing(&self) -> HashSet<&'static str> {
        lock(&self.partly).values().flatten().copied().collect()
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
            Ok(key) => Err(refused(format!("the worker left the key {}", key.state))),
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
