//! Who may call which path of the admin listener: the role matrix, for the review of access.
//!
//! The extractors of the handlers ask for these lists of roles; a test holds the table to the routers and to
//! the handlers.

use serde::Serialize;

use crate::config::Role;

/// Whoever has any of the admin roles.
pub(super) const WATCHERS: &[Role] =
    &[Role::Operator, Role::Auditor, Role::Monitor, Role::KeyOfficer];
/// Who moves payments, breakers and links.
pub(super) const OPERATORS: &[Role] = &[Role::Operator];
/// Who reads the audit log.
pub(super) const AUDITORS: &[Role] = &[Role::Auditor];
/// Who changes keys.
pub(super) const OFFICERS: &[Role] = &[Role::KeyOfficer];
/// Who sees the changes of keys.
pub(super) const REVIEWERS: &[Role] = &[Role::KeyOfficer, Role::Auditor];

/// One row of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Access {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The path's template.
    pub path: &'static str,
    /// Roles of which one is enough.
    pub roles: &'static [Role],
}

const fn get(path: &'static str, roles: &'static [Role]) -> Access {
    Access { method: "GET", path, roles }
}

const fn post(path: &'static str, roles: &'static [Role]) -> Access {
    Access { method: "POST", path, roles }
}

/// Every path of the admin listener.
pub const ACCESS: &[Access] = &[
    get("/healthz", WATCHERS),
    get("/readyz", WATCHERS),
    get("/metrics", WATCHERS),
    get("/openapi.json", WATCHERS),
    get("/v1/audit", AUDITORS),
    get("/v1/audit/events", AUDITORS),
    get("/v1/audit/export", AUDITORS),
    get("/v1/breakers", WATCHERS),
    get("/v1/breakers/{name}", WATCHERS),
    post("/v1/breakers/{name}/{order}", OPERATORS),
    get("/v1/keys", WATCHERS),
    get("/v1/keys/changes", REVIEWERS),
    post("/v1/keys/import", OFFICERS),
    post("/v1/keys/{label}/{change}", OFFICERS),
    post("/v1/keys/changes/{number}/{decision}", OFFICERS),
    get("/v1/links", WATCHERS),
    get("/v1/queue", WATCHERS),
    get("/v1/queue/stats", WATCHERS),
    get("/v1/queue/targets", WATCHERS),
    post("/v1/queue/targets/{biller}/{order}", OPERATORS),
    get("/v1/queue/{id}", WATCHERS),
    post("/v1/queue/{id}/{action}", OPERATORS),
    post("/v1/queue/rollback/acknowledge", OPERATORS),
];

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: [&str; 6] = [
        include_str!("mod.rs"),
        include_str!("audit.rs"),
        include_str!("breakers.rs"),
        include_str!("keys.rs"),
        include_str!("queue.rs"),
        include_str!("rollback.rs"),
    ];
    const LINKS: &str = include_str!("links.rs");
    const LISTS: [(&str, &[Role]); 5] = [
        ("WATCHERS", WATCHERS),
        ("OPERATORS", OPERATORS),
        ("AUDITORS", AUDITORS),
        ("OFFICERS", OFFICERS),
        ("REVIEWERS", REVIEWERS),
    ];
    const EXTRACTORS: [&str; 5] = ["Watching", "Operator", "Auditor", "Officer", "Reviewer"];

    fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
        text.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
    }

    /// The roles that an extractor asks for, by its own source, or by that of another file.
    fn asked_by(extractor: &str, own: &str) -> &'static [Role] {
        let head = format!("FromRequestParts<S> for {extractor} {{");
        let mut found = [own].into_iter().chain(SOURCES).filter_map(|text| {
            let body = text.split_once(&head)?.1;
            between(body, "one_of(parts, access::", ")")
        });
        let name = found.next().unwrap_or_else(|| panic!("{extractor} asks for no list"));
        LISTS.iter().find(|(list, _)| *list == name).map(|(_, roles)| *roles).unwrap()
    }

    /// Method, path and roles of a router's line, from the handler's arguments.
    fn route(line: &str, own: &'static str) -> Option<(String, String, &'static [Role])> {
        let path = between(line, ".route(\"", "\"")?;
        let (method, handler) = line.split_once("\", ")?.1.split_once('(')?;
        let handler = handler.split(')').next()?;
        let (text, name) = match handler.split_once("::") {
            Some((_, name)) => (LINKS, name),
            None => (own, handler),
        };
        let arguments = between(text, &format!("async fn {name}("), "{").unwrap();
        let words: Vec<&str> = arguments.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let extractors: Vec<_> = EXTRACTORS.iter().filter(|one| words.contains(one)).collect();
        assert_eq!(extractors.len(), 1, "{handler}: {extractors:?}");
        Some((method.to_uppercase(), path.to_owned(), asked_by(extractors[0], own)))
    }

    #[test]
    fn every_route_stands_in_the_table_with_the_roles_that_its_handler_asks_for() {
        let mut found: Vec<_> = SOURCES
            .iter()
            .flat_map(|text| text.lines().filter_map(move |line| route(line, text)))
            .collect();
        let mut table: Vec<_> = ACCESS
            .iter()
            .map(|row| (row.method.to_owned(), row.path.to_owned(), row.roles))
            .collect();
        let by_place = |one: &(String, String, &[Role])| (one.1.clone(), one.0.clone());
        found.sort_by_key(by_place);
        table.sort_by_key(by_place);

        assert_eq!(found, table);
        let routes: usize = SOURCES.iter().map(|text| text.matches(".route(").count()).sum();
        assert_eq!(routes, ACCESS.len(), "a route that the test cannot read");
    }

    #[test]
    fn clients_have_no_path_here() {
        assert!(ACCESS.iter().all(|row| !row.roles.contains(&Role::Client)));
    }
}
