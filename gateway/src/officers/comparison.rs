//! One label and version is one key, whichever link or worker is asked. Another check value behind
//! the same name is a substituted key (PCI PIN 19): whoever shows it is not to be used.

use std::collections::HashMap;
use std::fmt;

use hsm_adapter::protocol::KeyFacts;
use hsm_adapter::vocabulary::Kcv;

/// One key that two views know with different check values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Substitution {
    /// `label@version`.
    pub key: String,
    /// The view that knew it first, and its check value.
    pub first: (String, Kcv),
    /// The view that differs, and its check value.
    pub other: (String, Kcv),
}

impl Substitution {
    /// Whether it is one between this view and another.
    #[must_use]
    pub fn is_in(&self, view: &str) -> bool {
        self.first.0 == view || self.other.0 == view
    }

    /// Whether it is one between two of these views.
    #[must_use]
    pub fn is_within(&self, views: &[(String, Vec<KeyFacts>)]) -> bool {
        let has = |name: &str| views.iter().any(|(view, _)| view == name);
        has(&self.first.0) && has(&self.other.0)
    }
}

impl fmt::Display for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, first, other } = self;
        write!(f, "{key} has check value {} at {} and ", first.1, first.0)?;
        write!(f, "{} at {}: one of them is another key", other.1, other.0)
    }
}

/// Every key whose check value is not that of the first view that knows it. `views` are the keys of
/// each link or worker with its name. A key that only some have, or without check value, says
/// nothing.
#[must_use]
pub fn substitutions(views: &[(String, Vec<KeyFacts>)]) -> Vec<Substitution> {
    let mut known: HashMap<(&str, u32), (&str, Kcv)> = HashMap::new();
    let mut found = Vec::new();
    for (view, keys) in views {
        for key in keys {
            let Some(kcv) = key.kcv else { continue };
            let first = *known.entry((key.label.as_str(), key.version)).or_insert((view, kcv));
            if first.1 != kcv {
                found.push(Substitution {
                    key: format!("{}@{}", key.label, key.version),
                    first: (first.0.to_owned(), first.1),
                    other: (view.clone(), kcv),
                });
            }
        }
    }
    found
}

/// The first key, as `label@version`, that is not in the same state in both views.
#[must_use]
pub fn difference(one: &[KeyFacts], other: &[KeyFacts]) -> Option<String> {
    let lacks = |keys: &[KeyFacts], key: &KeyFacts| {
        !keys
            .iter()
            .any(|it| (&it.label, it.version, it.state) == (&key.label, key.version, key.state))
    };
    let mut lacking = one.iter().filter(|key| lacks(other, key));
    let mut more = other.iter().filter(|key| lacks(one, key));
    lacking.next().or_else(|| more.next()).map(|key| format!("{}@{}", key.label, key.version))
}

#[cfg(test)]
mod tests {
    use hsm_adapter::register::{KeyAlgorithm, KeyState};
    use hsm_adapter::vocabulary::{KeyLabel, KeyRole, Mode};

    use super::*;

    fn key(label: &str, version: u32, kcv: Option<&str>) -> KeyFacts {
        KeyFacts {
            label: KeyLabel::parse(label).unwrap(),
            version,
            state: KeyState::Active,
            usable_until_s: None,
            role: KeyRole::ZonePinIn,
            algorithm: KeyAlgorithm::Tdes,
            mode: Mode::InWorker,
            quarantined: None,
            formats: Vec::new(),
            mac: None,
            kcv: kcv.map(|kcv| Kcv::parse(kcv).unwrap()),
            kcv_from_token: true,
        }
    }

    #[test]
    fn links_that_know_the_same_keys_differ_in_nothing() {
        let keys = vec![key("zpk.a", 1, Some("BF1D3F")), key("zpk.a", 2, Some("000000"))];
        // Not imported there yet; not computable there.
        let fewer = vec![key("zpk.a", 1, None)];
        let views = [("a", keys.clone()), ("b", fewer), ("c", keys)];

        let found = substitutions(&views.map(|(name, keys)| (name.to_owned(), keys)));

        assert_eq!(found, []);
    }

    #[test]
    fn a_link_that_missed_a_change_differs_by_that_key() {
        let both = || vec![key("zpk.a", 1, None), key("zpk.b", 1, None)];
        let mut retired = both();
        retired[1].state = KeyState::Retired;
        let fewer = vec![key("zpk.a", 1, None)];

        assert_eq!(difference(&both(), &both()), None);
        for other in [retired, fewer] {
            assert_eq!(difference(&both(), &other).as_deref(), Some("zpk.b@1"));
            assert_eq!(difference(&other, &both()).as_deref(), Some("zpk.b@1"));
        }
    }

    #[test]
    fn a_label_with_another_check_value_is_named_with_the_link_that_differs() {
        let views = [
            ("a".to_owned(), vec![key("zpk.a", 1, Some("BF1D3F")), key("zpk.b", 1, None)]),
            ("b".to_owned(), vec![key("zpk.b", 1, Some("111111"))]),
            (
                "c".to_owned(),
                vec![key("zpk.a", 1, Some("BF1D40")), key("zpk.b", 1, Some("111111"))],
            ),
        ];

        let found = substitutions(&views);

        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        let expected = "zpk.a@1 has check value BF1D3F at a and BF1D40 at c: one of them is \
            another key";
        assert_eq!(told, [expected]);
    }
}
