//! `Request-Timeout`: when an answer is of no use any more.
//!
//! One absolute deadline a request, set when its head has been read, and at most the server's. What
//! the request asks of the links ends a little earlier, so that the answer and its audit record
//! still come in time.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::time::timeout_at;

use super::Gateway;
use super::asked::header;
use crate::links::Deadline;
use crate::wire::problem::{Problem, Slug};

/// What the API's description says of the header.
pub(super) const REQUEST_TIMEOUT: &str =
    "Seconds, as 5 or 0.5, after which the answer is of no use; at most the server's own limit";

/// What `work` gives, or `overloaded` when it takes until the answer is due: links have been left by
/// then, so that it is something of our own that is slow.
pub(super) async fn keep<T>(
    deadline: Deadline,
    work: impl Future<Output = T>,
) -> Result<T, Problem> {
    timeout_at(deadline.answer_by, work).await.map_err(|_| Problem::new(Slug::Overloaded))
}

impl FromRequestParts<Gateway> for Deadline {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        if !parts.headers.contains_key(NAME) {
            return Ok(Self::after(gateway.request_max));
        }
        let asked = header(&parts.headers, NAME).and_then(seconds);
        let asked = asked.ok_or_else(|| {
            Problem::malformed("Request-Timeout: seconds from 0.001 on, at most three decimals")
        })?;
        Ok(Self::after(asked.min(gateway.request_max)))
    }
}

/// Digits, and perhaps a point and up to three more; not nothing and not zero.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str, most| {
        (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole, 6) || !digits(part, 3) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = format!("{part:0<3}").parse().ok()?;
    Some(Duration::from_millis(whole * 1000 + part)).filter(|asked| !asked.is_zero())
}

const NAME: &str = "request-timeout";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_digits_with_up_to_three_decimals_and_more_than_nothing() {
        for (text, ms) in [("5", 5_000), ("0.5", 500), ("0.001", 1), ("12.25", 12_250)] {
            assert_eq!(seconds(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "0.0", "-1", "+1", "1e3", "1.", ".5", "1.2345", "1 ", "1234567", "1s"]
        {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn links_are_left_a_little_before_the_answer_is_due() {
        let now = tokio::time::Instant::now();
        let (long, short) =
            (Deadline::after(Duration::from_secs(5)), Deadline::after(Duration::from_millis(100)));

        assert_eq!(long.work_by, now + Duration::from_millis(4_800));
        assert_eq!(short.work_by, now + Duration::from_millis(80));
        assert!(keep(short, std::future::pending::<()>()).await.is_err());
        assert_eq!(now.elapsed(), Duration::from_millis(100));
    }
}
