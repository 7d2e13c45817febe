//! The key lint: the token is read back again and again, because a set of attributes that was right
//! at the ceremony proves nothing of today.
//!
//! At start anything that is not as it must be refuses to start. While orders run, a key that
//! deviates is quarantined in this worker, and all others go on. Quarantine ends with the worker.
//!
//! What it cannot see: another value under the label of a key that may only decipher, derive or
//! wrap. The token computes no check value of such a key.

use cryptoki::object::{Attribute, AttributeType, ObjectClass};

use super::attributes::class;
use super::keys::{KeyTable, KeyTrouble};
use super::probes;
use super::token::TokenSession;
use crate::error::{Failure, TokenError};
use crate::protocol::{KeyRow, LintReport};
use crate::register::{KeyAlgorithm, KeyProfile};

/// Objects that no key of the register names, of which a report tells.
const STRANGERS_MAX: usize = 64;

/// Reads every key back and quarantines what deviates; tries what must fail; counts what is left
/// behind.
pub(super) fn run(session: &TokenSession, keys: &KeyTable) -> Result<LintReport, Failure> {
    let mut report = LintReport::default();
    for (profile, trouble) in keys.find_again(session)? {
        let substituted = matches!(trouble, Some(KeyTrouble::Substituted { .. }));
        // What a key was quarantined for stays its deviation, whatever the token says now.
        let now = trouble.map(|trouble| trouble.to_string());
        let deviations = keys.quarantine_of(&profile).or(now).into_iter().collect();
        let (key, role) = (profile.name(), Some(profile.role));
        report.keys.push(KeyRow { key, role, deviations, substituted });
    }
    let profiles = keys.profiles();
    for stranger in strangers(session, &profiles)?.into_iter().take(STRANGERS_MAX) {
        let deviations = stranger.trouble().into_iter().map(|why| why.to_string());
        report.keys.push(KeyRow {
            deviations: deviations.collect(),
            key: stranger.label,
            role: None,
            substituted: false,
        });
    }
    report.probes = probes::run(session, &keys.modes())?;
    let passing = session.session.find_objects(&[Attribute::Token(false)]);
    report.session_objects = passing.map_err(TokenError::from)?.len() as u64;
    Ok(report)
}

/// No object of the token, whoever made it, may both wrap and decipher.
pub(super) fn refuse_readers(
    session: &TokenSession,
    profiles: &[KeyProfile],
) -> Result<(), KeyTrouble> {
    let trouble = strangers(session, profiles)?.iter().find_map(Stranger::trouble);
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

fn strangers(session: &TokenSession, profiles: &[KeyProfile]) -> Result<Vec<Stranger>, TokenError> {
    let mut known = Vec::new();
    for profile in profiles {
        let objects = [Some(profile.object_label()), profile.left_object_label()];
        known.extend(objects.into_iter().flatten().map(|label| (class(profile), label)));
        if profile.algorithm == KeyAlgorithm::Ec {
            known.push((ObjectClass::PUBLIC_KEY, profile.object_label()));
        }
    }
    let asked =
        [AttributeType::Class, AttributeType::Label, AttributeType::Wrap, AttributeType::Decrypt];
    let mut strangers = Vec::new();
    for object in session.session.find_objects(&[Attribute::Token(true)])? {
        // What another process deleted meanwhile has no attributes any more.
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
