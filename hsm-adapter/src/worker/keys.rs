//! The handle cache: every key of the register, found on the token and linted.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use cryptoki::object::ObjectHandle;

use super::attributes::{Part, deviations};
use super::recipes::Needs;
use super::token::{NotOne, TokenSession};
use crate::error::{Failure, TokenError};
use crate::operation::check_value;
use crate::protocol::KeyFacts;
use crate::register::{KeyProfile, KeyRegister, KeyState};
use crate::vocabulary::{KeyLabel, KeyName, KeyRole};

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
}

type Loaded = HashMap<KeyLabel, Vec<Arc<LoadedKey>>>;

impl KeyTable {
    /// Finds all keys, reads their attributes back and compares their check values.
    pub(crate) fn load(register: KeyRegister, session: &TokenSession) -> Result<Self, KeyTrouble> {
        let loaded = find_all(&register, session)?;
        Ok(Self { register, loaded: RwLock::new(loaded) })
    }

    /// What its keys can be asked for.
    pub(crate) fn needs(&self) -> Needs {
        Needs::of(&self.register)
    }

    /// The named version, or the active one.
    pub(crate) fn get(&self, name: &KeyName) -> Result<Arc<LoadedKey>, Failure> {
        let loaded = self.loaded.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let versions = loaded.get(&name.label).ok_or(Failure::UnknownKey)?;
        let meant = |key: &&Arc<LoadedKey>| match name.version {
            Some(version) => key.profile.version == version,
            None => key.profile.state == KeyState::Active,
        };
        versions.iter().find(meant).cloned().ok_or(Failure::UnknownKey)
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
    /// of another is not to be used.
    pub(crate) fn find_again(&self, session: &TokenSession) -> Result<(), KeyTrouble> {
        let loaded = find_all(&self.register, session)?;
        *self.loaded.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = loaded;
        Ok(())
    }

    /// What anyone may know of every key.
    pub(crate) fn facts(&self, session: &TokenSession) -> Result<Vec<KeyFacts>, Failure> {
        let mut facts = Vec::new();
        for profile in self.register.iter() {
            let version = Some(profile.version);
            let key = self.get(&KeyName { label: profile.label.clone(), version })?;
            let (kcv, kcv_from_token) = check_value::of(session, &key)?;
            facts.push(KeyFacts {
                label: profile.label.clone(),
                version: profile.version,
                state: profile.state,
                usable_until_s: profile.usable_until_s,
                role: profile.role,
                algorithm: profile.algorithm,
                mode: profile.mode,
                quarantined: None,
                formats: profile.formats.clone(),
                mac: profile.mac.map(|mac| mac.algorithm),
                kcv,
                kcv_from_token,
            });
        }
        Ok(facts)
    }
}

/// Every key of the register, found, linted, and its check value compared.
fn find_all(register: &KeyRegister, session: &TokenSession) -> Result<Loaded, KeyTrouble> {
    let find = |profile: &KeyProfile, label: &str| match session.find(profile, label)? {
        Ok(object) => Ok(object),
        Err(NotOne::None) => Err(KeyTrouble::Missing { key: profile.name(), object: label.into() }),
        Err(NotOne::Several) => {
            Err(KeyTrouble::Ambiguous { key: profile.name(), object: label.into() })
        }
    };
    let mut loaded = Loaded::new();
    for profile in register.iter() {
        let object = find(profile, &profile.object_label())?;
        let left = match profile.left_object_label() {
            Some(label) => Some(find(profile, &label)?),
            None => None,
        };
        let key = LoadedKey { profile: profile.clone(), object, left };
        lint(&key, session)?;
        compare(&key, session)?;
        loaded.entry(profile.label.clone()).or_default().push(Arc::new(key));
    }
    Ok(loaded)
}

fn lint(key: &LoadedKey, session: &TokenSession) -> Result<(), KeyTrouble> {
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
    #[error(transparent)]
    Token(#[from] TokenError),
}
