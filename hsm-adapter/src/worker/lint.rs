//! The key lint: the token is read back again and again, because a set of attributes that was right
//! at the ceremony proves nothing of today.
//!
//! At start anything that is not as it must be refuses to start. While orders run, a key that
//! deviates is quarantined in this worker, and all others go on. Quarantine ends with the worker.
//!
//! What it cannot see: another value under the label of a key that may only decipher, derive or
//! wrap. The token computes no check value of such a key.

use std::collections::HashMap;
use std::slice;

use cryptoki::object::{Attribute, AttributeType, ObjectClass};

use super::attributes::class;
use super::keys::{KeyTable, KeyTrouble, find_all};
use super::probes;
use super::token::TokenSession;
use crate::error::{Failure, TokenError};
use crate::operation::translate_in_token::LENGTH_CHECK;
use crate::protocol::{KeyRow, LintReport};
use crate::register::KeyRegister;

/// Objects that no key of the register names, of which a report tells.
const STRANGERS_MAX: usize = 64;

/// Reads every key back and quarantines what deviates; tries what must fail; counts what is left
/// behind.
pub(super) fn run(session: &TokenSession, keys: &KeyTable) -> Result<LintReport, Failure> {
    let mut report = LintReport::default();
    let found = find_all(keys.register(), session)?;
    let register = found.register.clone();
    let trouble_of: HashMap<String, (String, bool)> = found.troubles.iter().map(row).collect();
    keys.take(found);
    for profile in register.iter() {
        let key = profile.name();
        let now = trouble_of.get(&key);
        // What a key was quarantined for stays its deviation, whatever the token says now.
        let why = keys.why_quarantined(profile).or_else(|| now.map(|(text, _)| text.clone()));
        report.keys.push(KeyRow {
            key,
            role: Some(profile.role),
            deviations: why.into_iter().collect(),
            substituted: now.is_some_and(|(_, substituted)| *substituted),
        });
    }
    for stranger in strangers(session, &register)?.into_iter().take(STRANGERS_MAX) {
        let deviations = stranger.trouble().into_iter().map(|why| why.to_string());
        report.keys.push(KeyRow {
            deviations: deviations.collect(),
            key: stranger.label,
            role: None,
            substituted: false,
        });
    }
    report.probes = probes::run(session, &register.modes())?;
    let count = |template: &[Attribute]| -> Result<u64, TokenError> {
        Ok(session.session.find_objects(template)?.len() as u64)
    };
    let passing = Attribute::Token(false);
    let staying = Attribute::Label(LENGTH_CHECK.into());
    let all = count(slice::from_ref(&passing))?;
    report.session_objects = all.saturating_sub(count(&[passing, staying])?);
    Ok(report)
}

/// By key: what is wrong, and whether another key took its place.
fn row((key, trouble): &(String, KeyTrouble)) -> (String, (String, bool)) {
    (key.clone(), (trouble.to_string(), matches!(trouble, KeyTrouble::Substituted { .. })))
}

/// No object of the token, whoever made it, may both wrap and decipher.
pub(super) fn refuse_readers(
    session: &TokenSession,
    register: &KeyRegister,
) -> Result<(), KeyTrouble> {
    let trouble = strangers(session, register)?.iter().find_map(Stranger::trouble);
    trouble.map_or(Ok(()), Err)
}

/// An object of the token that no key of the register names.
struct Stranger {
    label: String,
    /// WRAP together with DECRYPT.
    reads_keys_out: bool,
}

impl Stranger {
    fn trouble(&self) -> Option<KeyTrouble> {
        let object = self.label.clone();
        self.reads_keys_out.then_some(KeyTrouble::ReadsKeysOut { object })
    }
}

fn strangers(session: &TokenSession, register: &KeyRegister) -> Result<Vec<Stranger>, TokenError> {
    let mut known = Vec::new();
    for profile in register.iter() {
        let objects = [Some(profile.object_label()), profile.left_object_label()];
        known.extend(objects.into_iter().flatten().map(|label| (class(profile), label)));
        if profile.algorithm.is_pair() {
            known.push((ObjectClass::PUBLIC_KEY, profile.object_label()));
        }
    }
    let asked =
        [AttributeType::Class, AttributeType::Label, AttributeType::Wrap, AttributeType::Decrypt];
    let mut strangers = Vec::new();
    for object in session.session.find_objects(&[Attribute::Token(true)])? {
        // What another process deletes meanwhile is a stale handle: the order is tried once more.
        let found = session.session.get_attributes(object, &asked)?;
        let has = |attribute| found.contains(&attribute);
        let label = found.iter().find_map(|attribute| {
            let Attribute::Label(label) = attribute else { return None };
            Some(String::from_utf8_lossy(label).into_owned())
        });
        let stranger = Stranger {
            label: label.unwrap_or_default(),
            reads_keys_out: has(Attribute::Wrap(true)) && has(Attribute::Decrypt(true)),
        };
        let is_known = known
            .iter()
            .any(|(class, label)| *label == stranger.label && has(Attribute::Class(*class)));
        if !is_known {
            strangers.push(stranger);
        }
    }
    Ok(strangers)
}
