//! Whose signatures count.
//!
//! The keys that were given, and each that signs a note together with one that counts already. When none was
//! given, the first key that signs is taken from the files: that shows a change made without the key, and not
//! a log made anew with another.

use std::collections::BTreeSet;

use crate::{Signed, SignedNote, VerifierKey};

#[derive(Debug)]
pub(crate) struct Trust {
    keys: BTreeSet<VerifierKey>,
    given: BTreeSet<VerifierKey>,
}

/// What a note's signatures are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Trusted,
    /// Signed, by keys that do not count so far.
    Unvouched,
    Unsigned,
    /// In the name of a key that counts, and not by it.
    Wrong,
}

impl Trust {
    pub(crate) fn new(given: &[VerifierKey]) -> Self {
        let given: BTreeSet<_> = given.iter().cloned().collect();
        Self { keys: given.clone(), given }
    }

    pub(crate) fn is_pinned(&self) -> bool {
        !self.given.is_empty()
    }

    /// The keys that count, and whether each was given.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&VerifierKey, bool)> {
        self.keys.iter().map(|key| (key, self.given.contains(key)))
    }

    /// Judges a note, and learns the keys that it vouches for.
    pub(crate) fn judge(&mut self, note: &SignedNote) -> Judged {
        let judged = match note.signed_by(&self.keys) {
            Signed::ByOne => Judged::Trusted,
            Signed::Wrong => Judged::Wrong,
            Signed::ByNobody => Judged::Unsigned,
            Signed::ByOthers if self.keys.is_empty() && signers(note).next().is_some() => {
                Judged::Trusted
            }
            Signed::ByOthers => Judged::Unvouched,
        };
        if judged == Judged::Trusted {
            self.keys.extend(signers(note).cloned());
        }
        judged
    }

    /// The key that counts and has signed the note.
    pub(crate) fn signer(&self, note: &SignedNote) -> Option<&VerifierKey> {
        self.keys.iter().find(|key| note.signed_by([*key]) == Signed::ByOne)
    }
}

/// The keys that a note names and that have signed it.
fn signers(note: &SignedNote) -> impl Iterator<Item = &VerifierKey> {
    let named = note.checkpoint().keys.iter();
    named.filter(|key| note.signed_by([*key]) == Signed::ByOne)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Signer;
    use crate::{Checkpoint, Hash};

    fn note(keys: Vec<VerifierKey>) -> Checkpoint {
        Checkpoint { origin: "a/b/c".into(), size: 1, root: Hash::ZERO, keys, interval_s: 5 }
    }

    #[test]
    fn a_key_is_learned_from_a_note_that_both_have_signed() {
        let (old, new, other) = (Signer::ecdsa("t"), Signer::ed25519("t"), Signer::ecdsa("t"));
        let both = vec![old.key(), new.key()];
        let mut trust = Trust::new(&[old.key()]);

        assert_eq!(trust.judge(&new.sign(note(both.clone()))), Judged::Unvouched);
        assert_eq!(trust.judge(&old.sign(note(both.clone()))), Judged::Trusted);
        // Named, but it has not signed.
        assert_eq!(trust.judge(&new.sign(note(both.clone()))), Judged::Unvouched);
        assert_eq!(trust.judge(&new.sign_too(old.sign(note(both.clone())))), Judged::Trusted);
        assert_eq!(trust.judge(&new.sign(note(both.clone()))), Judged::Trusted);
        assert_eq!(trust.judge(&other.sign(note(vec![other.key()]))), Judged::Unvouched);
        assert_eq!(trust.judge(&SignedNote::unsigned(note(both))), Judged::Unsigned);
    }

    #[test]
    fn without_a_key_the_first_that_signs_is_taken_and_no_second() {
        let (first, second) = (Signer::ed25519("t"), Signer::ed25519("t"));
        let mut trust = Trust::new(&[]);

        assert_eq!(trust.judge(&first.sign(note(vec![]))), Judged::Unvouched);
        assert_eq!(trust.judge(&first.sign(note(vec![first.key()]))), Judged::Trusted);
        assert_eq!(trust.judge(&second.sign(note(vec![second.key()]))), Judged::Unvouched);
        assert!(!trust.is_pinned());
    }
}
