//! The operator's word on a breaker: bytes to an order, strictly.

use super::key_orders::reason;
use super::object::Object;
use super::problem::Problem;

/// Why a breaker is forced or reset, parsed.
#[derive(Debug)]
pub(crate) struct BreakerWord {
    pub(crate) reason: String,
}

impl BreakerWord {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let reason = reason(&mut object)?;
        object.end()?;
        Ok(Self { reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_reason_and_nothing_else() {
        let parse = |body: &str| {
            let word = BreakerWord::parse(body.as_bytes());
            word.map(|word| word.reason)
                .map_err(|problem| problem.detail().unwrap_or_default().to_owned())
        };

        assert_eq!(parse(r#"{"reason":"maintenance"}"#), Ok("maintenance".into()));
        for (body, told) in [
            ("{}", "missing field reason"),
            (r#"{"reason":" "}"#, "reason: must be"),
            (r#"{"reason":"r","for_s":60}"#, "unknown field for_s"),
        ] {
            let refused = parse(body).unwrap_err();
            assert!(refused.starts_with(told), "{refused}");
        }
    }
}
