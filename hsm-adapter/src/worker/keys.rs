//! The handle cache: every key of the register, found on the token and linted.
//!
//! A start refuses a register that does not agree with the token. Later on, while the register
//! changes, only the key that deviates is taken out of use.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use cryptoki::object::ObjectHandle;

use super::attributes::{Part, deviations};
use super::chain;
use super::recipes::Needs;
use super::token::{NotOne, TokenSession};
use crate::error::{Failure, TokenError};
use crate::operation::check_value;
use crate::protocol::KeyFacts;
use crate::register::{KeyProfile, KeyRegister, KeyState, MacUse, now_s};
use crate::vocabulary::{Kcv, KeyLabel, KeyName, KeyRole, Mode};

/// A key ready for use.
#[derive(Debug, Clone)]
pub(crate) struct LoadedKey {
    pub(crate) profile: KeyProfile,
    pub(crate) object: ObjectHandle,
    /// K_L K_L K_L of a retail MAC key; the variant of a TDES base derivation key.
    pub(crate) left: Option<ObjectHandle>,
}

impl Found {
    /// The handles of a key; `None` for one that was not found.
    pub(super) fn handle(&self, profile: &KeyProfile) -> Option<&LoadedKey> {
        let versions = self.loaded.get(&profile.label)?;
        versions.iter().map(Arc::as_ref).find(|key| key.profile.version == profile.version)
    }
}

/// Every key by name. Handles are replaced as a whole when one of them has gone stale.
pub(crate) struct KeyTable {
    path: PathBuf,
    /// PIN keys of mode `in_worker` are refused, also when they come later.
    refuses_in_worker: bool,
    table: RwLock<Table>,
    /// By `label@version`: why the key is out of use until this worker starts anew.
    quarantined: RwLock<BTreeMap<String, String>>,
}

struct Table {
    register: KeyRegister,
    loaded: Loaded,
}

type Loaded = HashMap<KeyLabel, Vec<Arc<LoadedKey>>>;

/// A register that was looked up on the token: what was found, and what does not agree.
pub(super) struct Found {
    pub(super) register: KeyRegister,
    loaded: Loaded,
    pub(super) troubles: Vec<(String, KeyTrouble)>,
}

impl KeyTable {
    /// What its keys can be asked for.
    pub(crate) fn needs(&self) -> Needs {
        Needs::of(&self.register())
    }

    /// Finds all keys, reads their attributes back and compares their check values. `path` is the
    /// file that the register came from, and that changes go to.
    pub(crate) fn load(
        path: &Path,
        register: KeyRegister,
        session: &TokenSession,
    ) -> Result<Self, KeyTrouble> {
        let mut found = look_up(register, session)?;
        if let Some((_, trouble)) = found.troubles.pop() {
            return Err(trouble);
        }
        let table = Table { register: found.register, loaded: found.loaded };
        Ok(Self {
            path: path.to_owned(),
            refuses_in_worker: false,
            table: RwLock::new(table),
            quarantined: RwLock::default(),
        })
    }

    /// The same table, which takes no PIN key of mode `in_worker`.
    pub(super) fn refusing_in_worker(self, refuses_in_worker: bool) -> Self {
        Self { refuses_in_worker, ..self }
    }

    pub(super) fn refuses_in_worker(&self) -> bool {
        self.refuses_in_worker
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The named version, or the active one, for an operation that protects nothing new: a retired
    /// version does it until its time is over, a staged or compromised one does nothing.
    pub(crate) fn get(&self, name: &KeyName) -> Result<Arc<LoadedKey>, Failure> {
        let table = self.table();
        let profile = table.profile(name).ok_or(Failure::UnknownKey)?;
        if let Some(why) = self.why_quarantined(profile) {
            let name = profile.name();
            return Err(Failure::KeyNotForThis(format!("{name} is quarantined: {why}")));
        }
        usable(profile, now_s()).map_err(Failure::KeyNotForThis)?;
        table.handle(profile).ok_or(Failure::UnknownKey)
    }

    /// The mode of the named version, or of the active one; `None` for a key that is not there.
    pub(super) fn mode(&self, name: &KeyName) -> Option<Mode> {
        Some(self.table().profile(name)?.mode)
    }

    /// Like [`get`](Self::get), and refuses a key of another role, or a MAC key that verifies none.
    pub(crate) fn of_role(&self, name: &KeyName, role: KeyRole) -> Result<Arc<LoadedKey>, Failure> {
        self.of_half(name, role, MacUse::Verify)
    }

    /// Like [`get`](Self::get), and refuses a key of another role, a version that no longer
    /// protects, and a MAC key that makes none.
    pub(crate) fn active_of_role(
        &self,
        name: &KeyName,
        role: KeyRole,
    ) -> Result<Arc<LoadedKey>, Failure> {
        let key = self.of_half(name, role, MacUse::Generate)?;
        match key.profile.state {
            KeyState::Active => Ok(key),
            KeyState::Staged | KeyState::Retired | KeyState::Compromised => {
                Err(Failure::KeyNotForThis(format!("{name} is not active")))
            }
        }
    }

    fn of_half(
        &self,
        name: &KeyName,
        role: KeyRole,
        half: MacUse,
    ) -> Result<Arc<LoadedKey>, Failure> {
        let key = self.get(name)?;
        if key.profile.role != role {
            return Err(Failure::KeyNotForThis(format!("{name} is a {} key", key.profile.role)));
        }
        if key.profile.mac_use.is_some_and(|mac_use| mac_use != half) {
            let what = match half {
                MacUse::Generate => "makes no MACs, it verifies them",
                MacUse::Verify => "verifies no MACs, it makes them",
            };
            return Err(Failure::KeyNotForThis(format!("{name} {what}")));
        }
        Ok(key)
    }

    /// The versions of audit signing keys that sign if they are asked to.
    pub(super) fn signers(&self) -> Vec<Arc<LoadedKey>> {
        let now_s = now_s();
        let signs = |key: &&Arc<LoadedKey>| {
            key.profile.role == KeyRole::AuditSigning
                && usable(&key.profile, now_s).is_ok()
                && self.why_quarantined(&key.profile).is_none()
        };
        self.table().loaded.values().flatten().filter(signs).cloned().collect()
    }

    /// Takes a key, by `label@version`, out of use until this worker starts anew. The first reason
    /// stays.
    pub(crate) fn quarantine(&self, name: &str, why: &str) {
        let mut quarantined = self.quarantined.write().unwrap_or_else(PoisonError::into_inner);
        if !quarantined.contains_key(name) {
            tracing::error!(key = name, why, "a key is quarantined");
            quarantined.insert(name.into(), why.into());
        }
    }

    pub(super) fn why_quarantined(&self, profile: &KeyProfile) -> Option<String> {
        let quarantined = self.quarantined.read().unwrap_or_else(PoisonError::into_inner);
        // Nearly always: no order need put the name together.
        if quarantined.is_empty() {
            return None;
        }
        quarantined.get(&profile.name()).cloned()
    }

    /// Looks every handle up again, with the checks of the first time: an object that took the place
    /// of another is not to be used.
    pub(crate) fn find_again(&self, session: &TokenSession) -> Result<(), TokenError> {
        self.take(find_all(self.register(), session)?);
        Ok(())
    }

    /// The register that the table is of.
    pub(crate) fn register(&self) -> KeyRegister {
        self.table().register.clone()
    }

    /// From now on this is the table, unless it has a later change already. What does not agree with
    /// its register is quarantined.
    pub(super) fn take(&self, found: Found) {
        for (name, trouble) in &found.troubles {
            self.quarantine(name, &chain(trouble));
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if found.register.change() >= table.register.change() {
            *table = Table { register: found.register, loaded: found.loaded };
        }
    }

    /// What anyone may know of every key.
    pub(crate) fn facts(&self, session: &TokenSession) -> Result<Vec<KeyFacts>, Failure> {
        self.register().iter().map(|profile| self.facts_of(session, profile)).collect()
    }

    /// What anyone may know of one key of the register.
    pub(super) fn facts_of(
        &self,
        session: &TokenSession,
        profile: &KeyProfile,
    ) -> Result<KeyFacts, Failure> {
        let (kcv, kcv_from_token) = match self.handle(profile) {
            Some(key) => check_value::of(session, &key)?,
            None => (profile.kcv, false),
        };
        Ok(KeyFacts {
            label: profile.label.clone(),
            version: profile.version,
            state: profile.state,
            usable_until_s: profile.usable_until_s,
            role: profile.role,
            algorithm: profile.algorithm,
            mode: profile.mode,
            quarantined: self.why_quarantined(profile),
            formats: profile.formats.clone(),
            mac: profile.mac.map(|mac| mac.algorithm),
            kcv,
            kcv_from_token,
        })
    }

    /// The handles of a key, whatever its state. `None` for one that is not on the token.
    pub(crate) fn handle(&self, profile: &KeyProfile) -> Option<Arc<LoadedKey>> {
        self.table().handle(profile)
    }

    fn table(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn profile(&self, name: &KeyName) -> Option<&KeyProfile> {
        self.register.iter().find(|profile| {
            profile.label == name.label
                && match name.version {
                    Some(version) => profile.version == version,
                    None => profile.state == KeyState::Active,
                }
        })
    }

    fn handle(&self, profile: &KeyProfile) -> Option<Arc<LoadedKey>> {
        let versions = self.loaded.get(&profile.label)?;
        versions.iter().find(|key| key.profile.version == profile.version).cloned()
    }
}

/// Why a key of this state verifies and deciphers nothing at this time.
fn usable(profile: &KeyProfile, now_s: i64) -> Result<(), String> {
    let why = match (profile.state, profile.usable_until_s) {
        (KeyState::Active, _) | (KeyState::Retired, None) => return Ok(()),
        (KeyState::Retired, Some(until)) if now_s < until => return Ok(()),
        (KeyState::Retired, Some(_)) => "retired, and its time is over",
        (KeyState::Staged, _) => "staged: it is not in use yet",
        (KeyState::Compromised, _) => "compromised",
    };
    Err(format!("{} is {why}", profile.name()))
}

/// Every key of the register, looked up while orders run. A token that vanished finds nothing and
/// calls that a success: a key is missing only when another is still found after it.
///
/// # Errors
/// The token's, and that it finds none of the keys.
pub(super) fn find_all(register: KeyRegister, session: &TokenSession) -> Result<Found, TokenError> {
    let found = look_up(register, session)?;
    let is_missing = |(_, trouble): &(_, KeyTrouble)| matches!(trouble, KeyTrouble::Missing { .. });
    if found.troubles.iter().any(is_missing) {
        some_found(&found.register, session)?;
    }
    Ok(found)
}

/// That the token still has a key of the register.
///
/// # Errors
/// The token's, and that it finds none of the keys.
pub(super) fn some_found(register: &KeyRegister, session: &TokenSession) -> Result<(), TokenError> {
    for profile in register.iter() {
        if session.find(profile, &profile.object_label())?.is_ok() {
            return Ok(());
        }
    }
    Err(TokenError::Library("the token finds no key of the register any more".into()))
}

/// Every key of the register, found, linted, and its check value compared. One that does nothing any
/// more is not looked for: its objects may be destroyed.
fn look_up(register: KeyRegister, session: &TokenSession) -> Result<Found, TokenError> {
    let mut loaded = Loaded::new();
    let mut troubles = Vec::new();
    for profile in register.living() {
        match find(profile, session) {
            Ok(key) => loaded.entry(profile.label.clone()).or_default().push(Arc::new(key)),
            Err(KeyTrouble::Token(error)) => return Err(error),
            Err(trouble) => troubles.push((profile.name(), trouble)),
        }
    }
    Ok(Found { register, loaded, troubles })
}

fn find(profile: &KeyProfile, session: &TokenSession) -> Result<LoadedKey, KeyTrouble> {
    let find = |label: String| match session.find(profile, &label)? {
        Ok(object) => Ok(object),
        Err(NotOne::None) => Err(KeyTrouble::Missing { key: profile.name(), object: label }),
        Err(NotOne::Several) => Err(KeyTrouble::Ambiguous { key: profile.name(), object: label }),
    };
    let object = find(profile.object_label())?;
    let left = profile.left_object_label().map(find).transpose()?;
    let key = LoadedKey { profile: profile.clone(), object, left };
    lint(&key, session)?;
    compare(&key, session)?;
    Ok(key)
}

fn lint(key: &LoadedKey, session: &TokenSession) -> Result<(), KeyTrouble> {
    let parts = [(Part::Whole, Some(key.object)), (Part::Left, key.left)];
    for (part, object) in parts {
        let Some(object) = object else { continue };
        let deviations = deviations(session, object, &key.profile, part)?;
        if !deviations.is_empty() {
            return Err(KeyTrouble::Attributes {
                key: key.profile.name(),
                deviations: deviations.join(", "),
            });
        }
    }
    Ok(())
}

fn compare(key: &LoadedKey, session: &TokenSession) -> Result<(), KeyTrouble> {
    let (kcv, from_token) = check_value::of(session, key)?;
    if let (Some(found), Some(stated), true) = (kcv, key.profile.kcv, from_token)
        && found != stated
    {
        return Err(KeyTrouble::Substituted { key: key.profile.name(), found, stated });
    }
    Ok(())
}

/// Why the register and the token do not agree.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum KeyTrouble {
    #[error("key {key}: no object labelled {object:?} on the token")]
    Missing { key: String, object: String },
    #[error("key {key}: several objects are labelled {object:?}; delete all but one")]
    Ambiguous { key: String, object: String },
    #[error("key {key}: not locked down; other than its role wants: {deviations}")]
    Attributes { key: String, deviations: String },
    #[error("key {key}: check value {found} on the token, {stated} in the register: substituted?")]
    Substituted { key: String, found: Kcv, stated: Kcv },
    #[error("the token object {object:?} may WRAP and DECRYPT, which reads keys out; delete it")]
    ReadsKeysOut { object: String },
    #[error(transparent)]
    Token(#[from] TokenError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::KeyAlgorithm;

    #[test]
    fn a_version_is_used_as_its_state_and_its_time_allow() {
        let label = KeyLabel::parse("zak.a").unwrap();
        let mut key = KeyProfile::new(label, KeyRole::Mac, KeyAlgorithm::Aes);
        let mut at = |state, until, now| {
            (key.state, key.usable_until_s) = (state, until);
            usable(&key, now)
        };

        assert_eq!(at(KeyState::Active, None, 100), Ok(()));
        assert_eq!(at(KeyState::Retired, None, 100), Ok(()));
        assert_eq!(at(KeyState::Retired, Some(101), 100), Ok(()));
        assert!(at(KeyState::Retired, Some(100), 100).unwrap_err().contains("time is over"));
        assert!(at(KeyState::Staged, Some(101), 100).unwrap_err().contains("staged"));
        assert!(at(KeyState::Compromised, Some(101), 100).unwrap_err().contains("compromised"));
    }
}
