//! The handle cache: every key of the register, found on the token and linted.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use cryptoki::object::ObjectHandle;

use super::attributes::{Part, deviations};
use super::token::{NotOne, TokenSession};
use crate::error::{CkrClass, Failure, TokenError};
use crate::operation::check_value;
use crate::protocol::KeyFacts;
use crate::register::{KeyProfile, KeyRegister, KeyState};
use crate::vocabulary::{KeyLabel, KeyName, KeyRole, Mode};

/// A key ready for use.
#[derive(Debug, Clone)]
pub(crate) struct LoadedKey {
    pub(crate) profile: KeyProfile,
    pub(crate) object: ObjectHandle,
    /// K_L K_L K_L of a retail MAC key.
    pub(crate) left: Option<ObjectHandle>,
}

/// Every key by name. Handles are replaced as a whole when one of them has gone stale.
pub(crate) struct KeyTable {
    register: KeyRegister,
    loaded: RwLock<Loaded>,
    /// By `label@version`: why the lint took the key out of use. Never released: what was edited
    /// behind our back once is looked at by a person, who starts the worker again.
    quarantined: RwLock<HashMap<String, String>>,
}

type Loaded = HashMap<KeyLabel, Vec<Arc<LoadedKey>>>;

impl KeyTable {
    /// Finds all keys, reads their attributes back and compares their check values.
    pub(crate) fn load(register: KeyRegister, session: &TokenSession) -> Result<Self, KeyTrouble> {
        let mut loaded = Loaded::new();
        for profile in register.iter() {
            let key = look(profile, session)?;
            loaded.entry(profile.label.clone()).or_default().push(Arc::new(key));
        }
        Ok(Self { register, loaded: RwLock::new(loaded), quarantined: RwLock::default() })
    }

    /// Every key of the register.
    pub(crate) fn profiles(&self) -> Vec<KeyProfile> {
        self.register.iter().cloned().collect()
    }

    /// The modes that the keys have, each once.
    pub(crate) fn modes(&self) -> Vec<Mode> {
        let mut modes: Vec<Mode> = self.register.iter().map(|profile| profile.mode).collect();
        modes.sort_unstable();
        modes.dedup();
        modes
    }

    /// The named version, or the active one.
    ///
    /// # Errors
    /// [`Failure::UnknownKey`], and [`Failure::KeyNotForThis`] for a key in quarantine.
    pub(crate) fn get(&self, name: &KeyName) -> Result<Arc<LoadedKey>, Failure> {
        let key = self.whatever(name)?;
        match self.quarantine_of(&key.profile) {
            Some(why) => {
                Err(Failure::KeyNotForThis(format!("{} is quarantined: {why}", key.profile.name())))
            }
            None => Ok(key),
        }
    }

    /// Like [`get`](Self::get), in quarantine or not.
    fn whatever(&self, name: &KeyName) -> Result<Arc<LoadedKey>, Failure> {
        let loaded = self.loaded.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let versions = loaded.get(&name.label).ok_or(Failure::UnknownKey)?;
        let meant = |key: &&Arc<LoadedKey>| match name.version {
            Some(version) => key.profile.version == version,
            None => key.profile.state == KeyState::Active,
        };
        versions.iter().find(meant).cloned().ok_or(Failure::UnknownKey)
    }

    /// Takes a key out of use until the worker starts again. The first reason stays.
    pub(crate) fn quarantine(&self, profile: &KeyProfile, why: String) {
        let mut quarantined = self.quarantined.write().unwrap_or_else(|p| p.into_inner());
        quarantined.entry(profile.name()).or_insert_with(|| {
            tracing::error!(key = profile.name(), why, "key quarantined");
            why
        });
    }

    /// Why a key is out of use, when it is.
    pub(crate) fn quarantine_of(&self, profile: &KeyProfile) -> Option<String> {
        let quarantined = self.quarantined.read().unwrap_or_else(|p| p.into_inner());
        // Nearly always: no name is put together for an order.
        if quarantined.is_empty() {
            return None;
        }
        quarantined.get(&profile.name()).cloned()
    }

    /// Like [`get`](Self::get), and refuses a key of another role.
    pub(crate) fn of_role(&self, name: &KeyName, role: KeyRole) -> Result<Arc<LoadedKey>, Failure> {
        let key = self.get(name)?;
        if key.profile.role == role {
            Ok(key)
        } else {
            Err(Failure::KeyNotForThis(format!("{name} is a {} key", key.profile.role)))
        }
    }

    /// Like [`of_role`](Self::of_role), and refuses a version that no longer protects.
    pub(crate) fn active_of_role(
        &self,
        name: &KeyName,
        role: KeyRole,
    ) -> Result<Arc<LoadedKey>, Failure> {
        let key = self.of_role(name, role)?;
        match key.profile.state {
            KeyState::Active => Ok(key),
            KeyState::Staged | KeyState::Retired | KeyState::Compromised => {
                Err(Failure::KeyNotForThis(format!("{name} is not active")))
            }
        }
    }

    /// Looks every handle up again, with the checks of the first time: an object that took the place
    /// of another is not to be used. A key that does not pass is quarantined, and keeps no other key
    /// from its work. What was wrong, by key.
    pub(crate) fn find_again(
        &self,
        session: &TokenSession,
    ) -> Result<Vec<(KeyProfile, Option<KeyTrouble>)>, Failure> {
        let (mut loaded, mut seen) = (Loaded::new(), Vec::new());
        for (profile, found) in look_at_all(self.profiles(), session)? {
            let (key, trouble) = match found {
                Ok(key) => (Some(Arc::new(key)), None),
                Err(trouble) => {
                    self.quarantine(&profile, trouble.to_string());
                    // The old handle still answers who asks for the key; nobody may use it.
                    let (label, version) = (profile.label.clone(), Some(profile.version));
                    (self.whatever(&KeyName { label, version }).ok(), Some(trouble))
                }
            };
            loaded.entry(profile.label.clone()).or_default().extend(key);
            seen.push((profile, trouble));
        }
        *self.loaded.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = loaded;
        Ok(seen)
    }

    /// What anyone may know of every key.
    pub(crate) fn facts(&self, session: &TokenSession) -> Result<Vec<KeyFacts>, Failure> {
        let mut facts = Vec::new();
        for profile in self.register.iter() {
            let version = Some(profile.version);
            let key = self.whatever(&KeyName { label: profile.label.clone(), version })?;
            let quarantined = self.quarantine_of(profile);
            let (kcv, kcv_from_token) = match quarantined {
                Some(_) => (profile.kcv, false),
                None => check_value::of(session, &key)?,
            };
            facts.push(KeyFacts {
                label: profile.label.clone(),
                version: profile.version,
                state: profile.state,
                usable_until_s: profile.usable_until_s,
                role: profile.role,
                algorithm: profile.algorithm,
                mode: profile.mode,
                quarantined,
                formats: profile.formats.clone(),
                mac: profile.mac.map(|mac| mac.algorithm),
                kcv,
                kcv_from_token,
            });
        }
        Ok(facts)
    }
}

/// What [`look`] says of each key. A token that vanished, or that logged us out, finds nothing and
/// calls that a success: a key is missing only when another is still found after it.
fn look_at_all(
    profiles: Vec<KeyProfile>,
    session: &TokenSession,
) -> Result<Vec<(KeyProfile, Result<LoadedKey, KeyTrouble>)>, Failure> {
    let (mut all, mut missing) = (Vec::new(), None);
    for profile in profiles {
        let found = match look(&profile, session) {
            Err(KeyTrouble::Token(error)) => return Err(error.into()),
            found => found,
        };
        if let Err(trouble @ KeyTrouble::Missing { .. }) = &found {
            missing = Some(trouble.to_string());
        }
        all.push((profile, found));
    }
    if let Some(missing) = missing {
        let one = all.iter().find_map(|(profile, found)| found.is_ok().then_some(profile));
        let label = one.map(|profile| (profile, profile.object_label()));
        let there = label.map(|(profile, label)| session.find(profile, &label)).transpose()?;
        if !matches!(there, Some(Ok(_))) {
            return Err(Failure::Token {
                function: "FindObjects".into(),
                code: format!("nothing is found any more: {missing}"),
                class: CkrClass::Configuration,
            });
        }
    }
    Ok(all)
}

/// One key of the register, found, its attributes read back and its check value compared.
pub(crate) fn look(profile: &KeyProfile, session: &TokenSession) -> Result<LoadedKey, KeyTrouble> {
    let find = |label: &str| match session.find(profile, label)? {
        Ok(object) => Ok(object),
        Err(NotOne::None) => Err(KeyTrouble::Missing { key: profile.name(), object: label.into() }),
        Err(NotOne::Several) => {
            Err(KeyTrouble::Ambiguous { key: profile.name(), object: label.into() })
        }
    };
    let object = find(&profile.object_label())?;
    let left = profile.left_object_label().map(|label| find(&label)).transpose()?;
    let key = LoadedKey { profile: profile.clone(), object, left };
    lock_down(&key, session)?;
    compare(&key, session)?;
    Ok(key)
}

fn lock_down(key: &LoadedKey, session: &TokenSession) -> Result<(), KeyTrouble> {
    let parts = [(Part::Whole, Some(key.object)), (Part::Left, key.left)];
    for (part, object) in parts {
        let Some(object) = object else { continue };
        let deviations = deviations(session.raw, &session.session, object, &key.profile, part)?;
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
        return Err(KeyTrouble::Substituted {
            key: key.profile.name(),
            found: found.to_string(),
            stated: stated.to_string(),
        });
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
    Substituted { key: String, found: String, stated: String },
    #[error("the token object {object:?} may WRAP and DECRYPT, which reads keys out; delete it")]
    ReadsKeysOut { object: String },
    #[error(transparent)]
    Token(#[from] TokenError),
}
