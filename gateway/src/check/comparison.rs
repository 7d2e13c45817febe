//! Whether the links would serve beside one another: their keys are compared as a running gateway does
//! it, see [`officers`](crate::officers).

use hsm_adapter::protocol::KeyFacts;

use crate::officers::{difference, substitutions};

/// A worker's name and the keys as it knows them.
pub(super) type View = (String, Vec<KeyFacts>);

/// One outcome a link beside the first, and one for each label that is two keys. A link without a view
/// is told of elsewhere.
pub(super) fn compare(links: &[(&str, Vec<View>)]) -> Vec<Result<String, String>> {
    let all: Vec<View> = links.iter().flat_map(|(_, views)| views).cloned().collect();
    let found = substitutions(&all);
    let is_one = |views: &[View]| !found.iter().any(|found| found.is_within(views));
    let seen = links.iter().filter(|(_, views)| !views.is_empty());
    // Of two links that differ the first goes on whose own workers do not.
    let model = seen.clone().find(|(_, views)| is_one(views));
    let mut rows = Vec::new();
    for (name, views) in seen.filter(|(name, _)| model.is_none_or(|(model, _)| model != name)) {
        let own = found.iter().filter(|found| views.iter().any(|(view, _)| found.is_in(view)));
        let mut told: Vec<_> =
            own.map(|found| Err(format!("{name}: would never serve: {found}"))).collect();
        if let (Some((model, one)), Some((_, keys))) = (model, views.first()) {
            let differs = one.first().and_then(|(_, one)| difference(one, keys));
            told.extend(differs.map(|key| {
                Err(format!(
                    "{name}: would not serve until it has caught up: {key} is missing or in \
                     another state there than at {model}"
                ))
            }));
            if told.is_empty() {
                told.push(Ok(format!("{name}: the keys of {model}")));
            }
        }
        rows.extend(told);
    }
    rows
}

#[cfg(test)]
mod tests {
    use hsm_adapter::register::{KeyAlgorithm, KeyState};
    use hsm_adapter::vocabulary::{Kcv, KeyLabel, KeyRole, Mode};

    use super::*;

    fn key(kcv: &str, state: KeyState) -> KeyFacts {
        KeyFacts {
            label: KeyLabel::parse("zpk.a").unwrap(),
            version: 1,
            state,
            usable_until_s: None,
            role: KeyRole::ZonePinIn,
            algorithm: KeyAlgorithm::Tdes,
            mode: Mode::InWorker,
            quarantined: None,
            formats: Vec::new(),
            mac: None,
            kcv: Some(Kcv::parse(kcv).unwrap()),
            kcv_from_token: true,
        }
    }

    fn link(name: &str, kcvs: [&str; 2], state: KeyState) -> (String, Vec<View>) {
        let view = |(at, kcv)| (format!("{name} worker {at}"), vec![key(kcv, state)]);
        (name.to_owned(), kcvs.into_iter().enumerate().map(view).collect())
    }

    fn compared(links: &[(String, Vec<View>)]) -> Vec<Result<String, String>> {
        let links: Vec<_> =
            links.iter().map(|(name, views)| (name.as_str(), views.clone())).collect();
        compare(&links)
    }

    const SAME: [&str; 2] = ["BF1D3F", "BF1D3F"];

    #[test]
    fn links_with_the_same_keys_serve_beside_one_another() {
        let links = ["a", "b"].map(|name| link(name, SAME, KeyState::Active));

        assert_eq!(compared(&links[..1]), []);
        assert_eq!(compared(&links), [Ok("b: the keys of a".into())]);
    }

    #[test]
    fn a_backup_with_another_key_or_an_older_state_is_red_and_so_are_workers_that_differ() {
        let first = || link("a", SAME, KeyState::Active);
        let another = link("b", ["BF1D40"; 2], KeyState::Active);
        let older = link("b", SAME, KeyState::Staged);
        let torn = link("a", ["BF1D3F", "BF1D40"], KeyState::Active);

        for (links, told) in [
            (vec![first(), another], "b: would never serve: zpk.a@1 has check value BF1D3F at a"),
            (vec![first(), older], "b: would not serve until it has caught up: zpk.a@1 is missing"),
            (vec![torn], "a: would never serve: zpk.a@1 has check value BF1D3F at a worker 0"),
        ] {
            let rows = compared(&links);

            assert!(rows.iter().all(Result::is_err), "{rows:?}");
            assert!(rows[0].as_ref().unwrap_err().starts_with(told), "{rows:?}");
        }
    }

    #[test]
    fn a_link_that_is_away_is_compared_with_nobody() {
        let away = ("b".to_owned(), Vec::new());

        assert_eq!(compared(&[link("a", SAME, KeyState::Active), away]), []);
    }
}
