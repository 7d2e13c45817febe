//! Changes of keys: import, another state, and the register read anew.
//!
//! A change is made under the register's lock, from the register as the file has it: several
//! workers share that file. Its number grows; a change that the register holds is answered with the
//! key as it is. The token comes first and the register last, so that what is in the register is on
//! the token; what a killed worker leaves on the token is taken up when the import is repeated.

use cryptoki::object::{Attribute, ObjectHandle};

use super::attributes::{Part, creation_template};
use super::chain;
use super::keys::{Found, KeyTable, KeyTrouble, find_all};
use super::recipes::Needs;
use super::rewrite::RegisterLock;
use super::self_test;
use super::token::{NotOne, TokenSession};
use crate::error::Failure;
use crate::operation::check_value::{self, CheckValues};
use crate::operation::key_block::{self, Block, ClearKey};
use crate::protocol::KeyFacts;
use crate::register::{KeyProfile, KeyRegister, KeyState};
use crate::vocabulary::{Kcv, KeyBlockText, KeyName, KeyRole};

fn refused(why: impl Into<String>) -> Failure {
    Failure::KeyChangeRefused(why.into())
}

fn substituted(profile: &KeyProfile, found: Kcv, stated: Kcv) -> Failure {
    let name = profile.name();
    Failure::KeySubstitution(format!("{name} has check value {found} where {stated} is expected"))
}

/// Opens a key block and puts its key on the token and into the register, staged.
///
/// Errors: `KeyBlockRefused`, `KeySubstitution`, `KeyChangeRefused`; what `kbpk` is not; the token's
/// and the file's own. After an error neither token nor register have anything new.
pub(super) fn import(
    session: &TokenSession,
    keys: &KeyTable,
    change: u64,
    kbpk: &KeyName,
    text: &KeyBlockText,
    wanted: &KeyProfile,
) -> Result<KeyFacts, Failure> {
    let lock = RegisterLock::take(keys.path())?;
    let register = lock.read()?;
    if change <= register.change() {
        return as_it_is(session, keys, register, wanted);
    }
    if wanted.token_label.is_some() {
        return Err(refused("an imported key has no `token_label`: its object is label@version"));
    }
    let block = Block::parse(text)?;
    key_block::fits(&block, wanted)?;
    let kbpk = keys.of_role(kbpk, KeyRole::KeyBlockProtection)?;
    let key = key_block::open(session, &kbpk, &block)?;
    let values = CheckValues::of(session, block.algorithm, key.expose())?;
    key_block::check_kc(&block, &values)?;
    let profile = staged(wanted, &block, &values)?;
    let there = register.version(&profile.label, profile.version);
    let others = register.iter().filter(|other| there.is_none_or(|key| key.name() != other.name()));
    no_twin(others, &profile, &values)?;
    let mut profiles: Vec<KeyProfile> = register.iter().cloned().collect();
    let profile = match there {
        Some(there) => {
            kept(there, &profile, &values)?;
            there.clone()
        }
        None => {
            profiles.push(profile.clone());
            profile
        }
    };
    let candidate = register.changed(change, profiles).map_err(refused)?;
    would_start(session, keys, &candidate)?;
    let mut made = Made { session, objects: Vec::new() };
    made.put(&profile, &key)?;
    let found = find(session, candidate, &profile)?;
    lock.write(&found.register)?;
    made.objects.clear();
    keys.take(found);
    facts(session, keys, &profile)
}

/// Moves one version of a key to another state.
///
/// Errors: `KeyChangeRefused` for a move that is none, `UnknownKey`, the token's and the file's own.
pub(super) fn set_state(
    session: &TokenSession,
    keys: &KeyTable,
    change: u64,
    name: &KeyName,
    state: KeyState,
    usable_until_s: Option<i64>,
) -> Result<KeyFacts, Failure> {
    let Some(version) = name.version else { return Err(refused("it names no version")) };
    let lock = RegisterLock::take(keys.path())?;
    let register = lock.read()?;
    let Some(now) = register.version(&name.label, version).cloned() else {
        return Err(Failure::UnknownKey);
    };
    if change <= register.change() {
        return as_it_is(session, keys, register, &now);
    }
    if let Some(why) = keys.why_quarantined(&now).filter(|_| state == KeyState::Active) {
        return Err(refused(format!("{name} is quarantined: {why}")));
    }
    // Whether data keys are still wrapped under a retired one only the gateway knows, and asks before.
    let is_ended = state == KeyState::Compromised && now.state == KeyState::Active;
    if now.role == KeyRole::QueueKek && (is_ended || usable_until_s.is_some()) {
        return Err(refused(format!(
            "what waits in the queue is wrapped under {name}, and would never open again: activate \
             another version, which retires it without an end"
        )));
    }
    // An order whose answer was lost is given again, under another number when others came between.
    let ends: Vec<_> = register
        .iter()
        .filter(|other| other.label == name.label && other.state == KeyState::Retired)
        .map(|other| other.usable_until_s)
        .collect();
    let is_so = now.state == state
        && match state {
            // The end is that of the version whose place it took.
            KeyState::Active => ends.is_empty() || ends.contains(&usable_until_s),
            KeyState::Staged | KeyState::Retired | KeyState::Compromised => {
                now.usable_until_s == usable_until_s
            }
        };
    match (now.state, state) {
        _ if is_so => {}
        (KeyState::Staged, KeyState::Active) | (KeyState::Active, KeyState::Retired) => {}
        (KeyState::Staged | KeyState::Active | KeyState::Retired, KeyState::Compromised) => {}
        (from, to) => {
            return Err(refused(format!(
                "{name} is {from}, and does not become {to}: staged becomes active, active becomes \
                 retired, and any becomes compromised"
            )));
        }
    }
    let mut profiles: Vec<KeyProfile> = register.iter().cloned().collect();
    for other in profiles.iter_mut().filter(|other| !is_so && other.label == name.label) {
        let replaced = state == KeyState::Active && other.state == KeyState::Active;
        let meant = other.version == version;
        if replaced || meant && state == KeyState::Retired {
            (other.state, other.usable_until_s) = (KeyState::Retired, usable_until_s);
        } else if meant {
            (other.state, other.usable_until_s) = (state, None);
        }
    }
    let candidate = register.changed(change, profiles).map_err(refused)?;
    let found = if state == KeyState::Active {
        would_start(session, keys, &candidate)?;
        let found = find(session, candidate, &now)?;
        if let Some(key) = found.handle(&now).filter(|_| now.role == KeyRole::AuditSigning) {
            self_test::sign(session, key).map_err(|error| refused(chain(&error)))?;
        }
        found
    } else {
        find_all(candidate, session)?
    };
    lock.write(&found.register)?;
    keys.take(found);
    facts(session, keys, &now)
}

/// What a start would refuse is no change: the next worker would not come up with it.
fn would_start(
    session: &TokenSession,
    keys: &KeyTable,
    candidate: &KeyRegister,
) -> Result<(), Failure> {
    if let (true, Some(key)) = (keys.refuses_in_worker(), candidate.first_in_worker()) {
        return Err(refused(format!("{} has mode in_worker, which is refused here", key.name())));
    }
    let proved = self_test::run(session, &Needs::of(candidate));
    proved.map(drop).map_err(|error| refused(chain(&error)))
}

/// Reads the register anew. The number of the last change in it.
///
/// Errors: the file's and the token's.
pub(super) fn reload(session: &TokenSession, keys: &KeyTable) -> Result<u64, Failure> {
    let register = RegisterLock::take(keys.path())?.read()?;
    let change = register.change();
    keys.take(find_all(register, session)?);
    Ok(change)
}

/// The answer to a change that was made before: perhaps by another worker, so that this one has yet
/// to learn of it.
fn as_it_is(
    session: &TokenSession,
    keys: &KeyTable,
    register: KeyRegister,
    profile: &KeyProfile,
) -> Result<KeyFacts, Failure> {
    keys.take(find_all(register, session)?);
    facts(session, keys, profile)
}

fn facts(
    session: &TokenSession,
    keys: &KeyTable,
    profile: &KeyProfile,
) -> Result<KeyFacts, Failure> {
    let register = keys.register();
    let now = register.version(&profile.label, profile.version).ok_or(Failure::UnknownKey)?;
    keys.facts_of(session, now)
}

/// The profile as the register gets it. Errors: `KeySubstitution` when the officer expects another
/// check value.
fn staged(
    wanted: &KeyProfile,
    block: &Block<'_>,
    values: &CheckValues,
) -> Result<KeyProfile, Failure> {
    let method = wanted.kcv_method.unwrap_or_else(|| check_value::usual(wanted.algorithm));
    let Some(found) = values.kcv(method) else {
        return Err(refused("a key of this algorithm has no check value by `kcv_method`"));
    };
    if let Some(stated) = wanted.kcv.filter(|stated| *stated != found) {
        return Err(substituted(wanted, found, stated));
    }
    Ok(KeyProfile {
        state: KeyState::Staged,
        usable_until_s: None,
        exportability: Some(block.exportability),
        kcv: Some(found),
        kcv_method: Some(method),
        ..wanted.clone()
    })
}

/// A version that the register has already stays, when it is the same key for the same thing.
fn kept(there: &KeyProfile, profile: &KeyProfile, values: &CheckValues) -> Result<(), Failure> {
    let found = there.kcv_method.and_then(|method| values.kcv(method));
    if let (Some(stated), Some(found)) = (there.kcv, found)
        && stated != found
    {
        return Err(substituted(there, found, stated));
    }
    if there.state == KeyState::Compromised {
        return Err(refused(format!("{} is compromised", there.name())));
    }
    // State and end moved on since, and a check value may have been stated by another method.
    let wanted = KeyProfile {
        state: there.state,
        usable_until_s: there.usable_until_s,
        exportability: there.exportability,
        kcv: there.kcv,
        kcv_method: there.kcv_method,
        ..profile.clone()
    };
    if *there != wanted {
        return Err(refused(format!("{} is there already, with another profile", there.name())));
    }
    Ok(())
}

/// Two zones with one key are one zone, and a version with the old key changes nothing.
fn no_twin<'r>(
    mut others: impl Iterator<Item = &'r KeyProfile>,
    profile: &KeyProfile,
    values: &CheckValues,
) -> Result<(), Failure> {
    let twin = others.find(|other| {
        let value = other.kcv_method.and_then(|method| values.kcv(method));
        other.role == profile.role
            && other.algorithm == profile.algorithm
            && value.is_some()
            && value == other.kcv
    });
    match twin {
        Some(twin) => Err(refused(format!(
            "{} has the check value of {}: two {} keys are never the same key",
            profile.name(),
            twin.name(),
            profile.role
        ))),
        None => Ok(()),
    }
}

/// Looks the candidate up on the token, and insists on this key of it.
fn find(
    session: &TokenSession,
    candidate: KeyRegister,
    key: &KeyProfile,
) -> Result<Found, Failure> {
    let mut found = find_all(candidate, session)?;
    let Some(at) = found.troubles.iter().position(|(name, _)| *name == key.name()) else {
        return Ok(found);
    };
    Err(match found.troubles.swap_remove(at).1 {
        trouble @ KeyTrouble::Substituted { .. } => Failure::KeySubstitution(trouble.to_string()),
        KeyTrouble::Token(error) => error.into(),
        trouble @ (KeyTrouble::Missing { .. }
        | KeyTrouble::Ambiguous { .. }
        | KeyTrouble::Attributes { .. }
        | KeyTrouble::ReadsKeysOut { .. }) => refused(trouble.to_string()),
    })
}

/// Token objects that are destroyed again unless the change is made.
struct Made<'s> {
    session: &'s TokenSession,
    objects: Vec<ObjectHandle>,
}

impl Made<'_> {
    /// Each object of the key: the one that is there, when it holds this key, or a new one.
    fn put(&mut self, profile: &KeyProfile, key: &ClearKey) -> Result<(), Failure> {
        let parts = [
            (Part::Whole, Some(profile.object_label())),
            (Part::Left, profile.left_object_label()),
        ];
        for (part, label) in parts {
            let Some(label) = label else { continue };
            match self.session.find(profile, &label)? {
                Ok(object) => self.same(profile, part, object, key)?,
                Err(NotOne::Several) => {
                    return Err(refused(format!("several objects are labelled {label:?}")));
                }
                Err(NotOne::None) => {
                    let mut template = creation_template(profile, part, key.expose(), true);
                    template.push(Attribute::Label(label.into()));
                    template.push(Attribute::Id(profile.object_label().into()));
                    self.objects.push(self.session.create_secret(template)?);
                }
            }
        }
        Ok(())
    }

    fn same(
        &self,
        profile: &KeyProfile,
        part: Part,
        object: ObjectHandle,
        key: &ClearKey,
    ) -> Result<(), Failure> {
        match check_value::holds(self.session, profile, part, object, key.expose())? {
            Some(true) => Ok(()),
            Some(false) => Err(Failure::KeySubstitution(format!(
                "the object labelled {:?} on the token holds another key",
                profile.object_label()
            ))),
            None => Err(refused(format!(
                "an object labelled {:?} is on the token already, and its role does not let it be \
                 compared: destroy it, or import another version",
                profile.object_label()
            ))),
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for object in self.objects.drain(..) {
            if let Err(error) = self.session.session.destroy_object(object) {
                tracing::error!(%error, "an object of a refused import stays on the token");
            }
        }
    }
}
