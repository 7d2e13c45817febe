//! An auditor's requests: query to filter and range, strictly.

use compliance::export::Format;
use compliance::search::{After, Filter};
use jiff::Timestamp;

use super::problem::Problem;

/// A search, parsed.
#[derive(Debug)]
pub(crate) struct SearchOrder {
    pub(crate) filter: Filter,
    pub(crate) after: Option<After>,
    pub(crate) limit: usize,
}

impl SearchOrder {
    /// `from`, `to` (RFC 3339), `actor`, `event` (a type, or a family as `pin.*`), `event_id`, `outcome`,
    /// `resource`, `request_id`, `limit` (1 to 1000), `after`.
    ///
    /// # Errors
    /// `malformed-request`, naming the parameter.
    pub(crate) fn parse(query: &[(String, String)]) -> Result<Self, Problem> {
        let mut order = Self { filter: Filter::default(), after: None, limit: 100 };
        for (name, value) in query {
            let wrong = |rule: &str| Problem::malformed(format!("{name}: {rule}"));
            let word = || match value.len() {
                1..=WORD_MAX => Ok(Some(value.clone())),
                _ => Err(wrong("must have 1 to 128 characters")),
            };
            let filter = &mut order.filter;
            match name.as_str() {
                "from" => filter.from = Some(time(name, value)?),
                "to" => filter.to = Some(time(name, value)?),
                "actor" => filter.actor = word()?,
                "event" => filter.event = word()?,
                "event_id" => filter.event_id = word()?,
                "outcome" => filter.outcome = word()?,
                "resource" => filter.resource = word()?,
                "request_id" => filter.request_id = word()?,
                "after" => {
                    let after = value.parse();
                    order.after = Some(after.map_err(|_| wrong("must be `next` of a page"))?);
                }
                "limit" => {
                    order.limit = value
                        .parse()
                        .ok()
                        .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                        .ok_or_else(|| wrong("must be from 1 to 1000"))?;
                }
                _ => return Err(Problem::malformed("unknown parameter")),
            }
        }
        Ok(order)
    }
}

/// An export, parsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExportOrder {
    pub(crate) format: Format,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
}

impl ExportOrder {
    /// `format` (`jsonl` when absent), `from`, `to` (RFC 3339).
    ///
    /// # Errors
    /// `malformed-request`, naming the parameter.
    pub(crate) fn parse(query: &[(String, String)]) -> Result<Self, Problem> {
        let mut order = Self { format: Format::Jsonl, from: None, to: None };
        for (name, value) in query {
            match name.as_str() {
                "format" => {
                    let known = value.parse();
                    let rule = "format: must be jsonl, syslog, cef, leef or ocsf";
                    order.format = known.map_err(|_| Problem::malformed(rule))?;
                }
                "from" => order.from = Some(time(name, value)?),
                "to" => order.to = Some(time(name, value)?),
                _ => return Err(Problem::malformed("unknown parameter")),
            }
        }
        Ok(order)
    }
}

fn time(name: &str, value: &str) -> Result<Timestamp, Problem> {
    let rule = "must be a time as 2026-11-26T18:00:00Z";
    value.parse().map_err(|_| Problem::malformed(format!("{name}: {rule}")))
}

const WORD_MAX: usize = 128;
const LIMIT_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_query_becomes_a_search() {
        let every = "from=2026-11-26T18:00:00Z&to=2026-11-26T19:00:00Z&actor=a&event=pin.*&event_id=i\
            &outcome=failure&resource=r&request_id=q&limit=7&after=01890a5d-ac96-774b-bcce-b302099a8057:12";

        let order = SearchOrder::parse(&pairs(every)).unwrap();

        let text = |text: &str| Some(text.to_owned());
        let filter = Filter {
            from: "2026-11-26T18:00:00Z".parse().ok(),
            to: "2026-11-26T19:00:00Z".parse().ok(),
            actor: text("a"),
            event: text("pin.*"),
            event_id: text("i"),
            outcome: text("failure"),
            resource: text("r"),
            request_id: text("q"),
        };
        assert_eq!((order.filter, order.limit, order.after.unwrap().seq), (filter, 7, 12));
        assert_eq!(SearchOrder::parse(&[]).unwrap().limit, 100);
    }

    #[test]
    fn what_is_no_search_or_export_is_refused_with_its_name() {
        let long = format!("actor={}", "a".repeat(129));
        for (query, told) in [
            ("from=yesterday", "from: must be a time"),
            ("limit=0", "limit: must be"),
            ("limit=1001", "limit: must be"),
            ("after=12", "after: must be"),
            ("actor=", "actor: must have"),
            (&long, "actor: must have"),
            ("pan=4111", "unknown parameter"),
        ] {
            let problem = SearchOrder::parse(&pairs(query)).unwrap_err();
            assert!(problem.detail().unwrap().starts_with(told), "{query}: {problem:?}");
        }
        let problem = ExportOrder::parse(&pairs("format=xml")).unwrap_err();
        assert!(problem.detail().unwrap().starts_with("format: must be"));
        assert_eq!(ExportOrder::parse(&pairs("format=cef")).unwrap().format, Format::Cef);
    }
}
