//! Why an officer or an operator does something: a word of its own, or part of an order.

use compliance::Label;

use super::object::Object;
use super::problem::Problem;

/// A body that is a reason and nothing else, parsed.
#[derive(Debug)]
pub(crate) struct Reasoned {
    pub(crate) reason: String,
}

impl Reasoned {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let reason = reason(&mut object)?;
        object.end()?;
        Ok(Self { reason })
    }
}

/// 1 to 128 printable ASCII characters, as an audit record holds them: no card number in it, wherever
/// it is stored, logged or shown.
pub(super) fn reason(object: &mut Object) -> Result<String, Problem> {
    let text = object.text("reason")?;
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !printable || text.trim().is_empty() || text.len() > 128 {
        return Err(object.wrong("reason", "must be 1 to 128 printable ASCII characters"));
    }
    Ok(Label::new(&text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_alone_is_a_body_and_nothing_else_is() {
        let parse = |body: &str| {
            let reasoned = Reasoned::parse(body.as_bytes());
            reasoned
                .map(|reasoned| reasoned.reason)
                .map_err(|problem| problem.detail().unwrap_or_default().to_owned())
        };

        assert_eq!(parse(r#"{"reason":"maintenance"}"#), Ok("maintenance".into()));
        let masked = parse(r#"{"reason":"card 4111111111111111 complains"}"#);
        assert_eq!(masked, Ok("card [pan removed] complains".into()));
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
