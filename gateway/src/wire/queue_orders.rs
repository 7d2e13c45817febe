//! The operators' requests about the queue: bytes and query to orders, strictly.

use serde::Deserialize;

use super::object::Object;
use super::problem::Problem;
use super::reason::reason;
use crate::store::{LIST_MAX, ListFilter, Priority, Status};

/// What a person found out about a payment at its biller, parsed.
#[derive(Debug)]
pub(crate) struct SettleOrder {
    pub(crate) paid: bool,
    pub(crate) response_code: String,
    pub(crate) reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    Paid,
    Failed,
}

impl SettleOrder {
    /// `{"outcome": "paid" | "failed", "response_code"?, "reason"}`. The code is one to four letters or
    /// digits; 00 or 96 when absent.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let paid = matches!(object.word("outcome")?, Found::Paid);
        let code = object.optional_text("response_code")?;
        let response_code = code.unwrap_or_else(|| if paid { "00" } else { "96" }.to_owned());
        let plain = response_code.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plain || !(1..=4).contains(&response_code.len()) {
            return Err(object.wrong("response_code", "must be 1 to 4 letters or digits"));
        }
        let reason = reason(&mut object)?;
        object.end()?;
        Ok(Self { paid, response_code, reason })
    }
}

/// The query of a list: `status` (several with commas), `dead=true` for held, failed and expired,
/// `biller`, `kind`, `priority`, `hold_reason`, `older_than_s`, `after`, `order=asc`, `limit`. `now` is in
/// epoch milliseconds.
///
/// # Errors
/// `malformed-request`, naming the parameter.
pub(crate) fn list_filter(query: &[(String, String)], now: i64) -> Result<ListFilter, Problem> {
    let mut filter = ListFilter { limit: 100, ..ListFilter::default() };
    for (name, value) in query {
        let wrong = |rule: &str| Problem::malformed(format!("{name}: {rule}"));
        let number = || value.parse::<u32>().map_err(|_| wrong("must be a whole number"));
        let word = || match value.len() {
            1..=WORD_MAX => Ok(Some(value.clone())),
            _ => Err(wrong("must have 1 to 128 characters")),
        };
        match name.as_str() {
            "status" => {
                for word in value.split(',') {
                    let known =
                        Status::ALL.into_iter().find(|it| it.name().eq_ignore_ascii_case(word));
                    filter.statuses.push(known.ok_or_else(|| wrong("is no status"))?);
                }
            }
            "dead" if value == "true" => filter.statuses.extend(DEAD),
            "dead" if value == "false" => {}
            "dead" => return Err(wrong("must be true or false")),
            "biller" => filter.target = word()?,
            "kind" => filter.kind = word()?,
            "hold_reason" => filter.hold_reason = word()?,
            "priority" => {
                let known = Priority::ALL.into_iter().find(|it| it.name() == value);
                filter.priority = Some(known.ok_or_else(|| wrong("is no priority"))?);
            }
            "older_than_s" => filter.created_before = Some(now - i64::from(number()?) * 1_000),
            "after" => {
                let seq = value.parse().map_err(|_| wrong("must be a whole number"))?;
                filter.after = Some(seq);
            }
            "order" => match value.as_str() {
                "asc" => filter.oldest_first = true,
                "desc" => filter.oldest_first = false,
                _ => return Err(wrong("must be asc or desc")),
            },
            "limit" => {
                filter.limit = number()?;
                if !(1..=LIST_MAX).contains(&filter.limit) {
                    return Err(wrong("must be from 1 to 500"));
                }
            }
            // The name is the caller's own text.
            _ => return Err(Problem::malformed("unknown parameter")),
        }
    }
    Ok(filter)
}

/// What no sender takes any more unless a person acts, or that ended without a biller's yes.
const DEAD: [Status; 3] = [Status::Held, Status::Failed, Status::Expired];

/// The longest name or reason.
const WORD_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Result<ListFilter, String> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs: Vec<(String, String)> = pairs
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        list_filter(&pairs, 100_000).map_err(|problem| problem.detail().unwrap().to_owned())
    }

    #[test]
    fn a_query_becomes_a_filter() {
        let every = "status=held,PENDING&biller=pln&kind=payment&priority=high&hold_reason=operator\
                     &older_than_s=60&after=7&order=asc&limit=500";

        let filter = filter(every).unwrap();

        let expected = ListFilter {
            statuses: vec![Status::Held, Status::Pending],
            target: Some("pln".into()),
            kind: Some("payment".into()),
            priority: Some(Priority::High),
            hold_reason: Some("operator".into()),
            created_before: Some(40_000),
            after: Some(7),
            oldest_first: true,
            limit: 500,
        };
        assert_eq!(filter, expected);
        assert_eq!(super::tests::filter("").unwrap().limit, 100);
        assert_eq!(super::tests::filter("dead=true").unwrap().statuses, DEAD);
    }

    #[test]
    fn what_is_wrong_in_a_query_is_named() {
        for (text, told) in [
            ("status=open", "status: is no status"),
            ("priority=0", "priority: is no priority"),
            ("dead=1", "dead: must be"),
            ("limit=501", "limit: must be from 1 to 500"),
            ("limit=0", "limit: must be from 1 to 500"),
            ("older_than_s=-1", "older_than_s: must be a whole number"),
            ("after=x", "after: must be a whole number"),
            ("order=up", "order: must be asc or desc"),
            ("biller=", "biller: must have"),
            ("pan=4111111111111111", "unknown parameter"),
        ] {
            assert!(filter(text).unwrap_err().starts_with(told), "{text}");
        }
    }

    #[test]
    fn a_settlement_says_what_was_found() {
        let parse = |body: &str| SettleOrder::parse(body.as_bytes());
        let paid = parse(r#"{"outcome":"paid","reason":"their report"}"#).unwrap();
        let failed = parse(r#"{"outcome":"failed","response_code":"14","reason":"r"}"#).unwrap();

        assert!(paid.paid && paid.response_code == "00" && paid.reason == "their report");
        assert!(!failed.paid && failed.response_code == "14");
        for (body, told) in [
            (r#"{"reason":"r"}"#, "missing field outcome"),
            (r#"{"outcome":"lost","reason":"r"}"#, "outcome: is no word"),
            (r#"{"outcome":"paid"}"#, "missing field reason"),
            (r#"{"outcome":"paid","response_code":"","reason":"r"}"#, "response_code: must be"),
            (r#"{"outcome":"paid","response_code":"00000","reason":"r"}"#, "response_code: must"),
        ] {
            let refused = parse(body).unwrap_err();
            assert!(refused.detail().unwrap().starts_with(told), "{refused:?}");
        }
    }
}
