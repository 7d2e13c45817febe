//! How the simulator misbehaves, and for how many requests.
//!
//! A fault is a layer around the handlers: what spoils a request before its effect never reaches
//! them, what spoils the answer lets them finish first. Both kinds reach enquiries too.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What happens to a payment request or an enquiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing unusual.
    Normal,
    /// Waits `delay_ms`, then works as usual.
    Slow,
    /// The same, also when the caller has hung up meanwhile.
    Stubborn,
    /// 503 with Retry-After under the biller's MAC: it took nothing.
    Fail,
    /// 429 with Retry-After under the biller's MAC: it took nothing.
    TooMany,
    /// The effect, then a 503 without MAC, as a proxy says it whose upstream went away.
    #[serde(rename = "proxy-503")]
    Proxy503,
    /// 500, no effect.
    #[serde(rename = "error-500")]
    Error500,
    /// No effect and never an answer.
    Hang,
    /// The effect, and never an answer.
    HangAfter,
    /// The connection dies before the effect.
    CutBefore,
    /// The connection dies after the effect and before the answer.
    CutAfter,
    /// The effect, then a 200 that is not JSON and has no MAC.
    Garbage,
    /// The effect, then the right answer under a wrong MAC.
    WrongMac,
    /// The effect, then a refusal of another payment under the biller's MAC, as a proxy may have kept.
    StaleRefusal,
}

/// A mode, and how long it lasts: for `count` requests, or until the next order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What happens.
    pub mode: Mode,
    /// How long `slow` and `stubborn` wait; no other mode takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// For how many requests, counted from now; then normal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Fault {
    /// Until the next order.
    pub fn always(mode: Mode) -> Self {
        Self { mode, delay_ms: None, count: None }
    }

    /// For the next `count` requests.
    pub fn next(mode: Mode, count: u64) -> Self {
        Self { mode, delay_ms: None, count: Some(count) }
    }

    /// Slow until the next order.
    pub fn slow(delay: Duration) -> Self {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Self { mode: Mode::Slow, delay_ms: Some(delay_ms), count: None }
    }

    /// Why the fault makes no sense, if it does not.
    pub(crate) fn defect(&self) -> Option<&'static str> {
        match (self.mode, self.delay_ms, self.count) {
            (_, _, Some(0)) => Some("count must be at least 1"),
            (Mode::Slow | Mode::Stubborn, None, _) => Some("slow and stubborn need delay_ms"),
            (Mode::Slow | Mode::Stubborn, Some(DELAY_MS_TOO_LONG..), _) => {
                Some("delay_ms must be below 600000")
            }
            (Mode::Slow | Mode::Stubborn, Some(_), _) | (_, None, _) => None,
            (_, Some(_), _) => Some("only slow and stubborn take delay_ms"),
        }
    }

    /// How long to wait first.
    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.unwrap_or(0))
    }
}

/// The fault in force.
#[derive(Debug)]
pub(crate) struct Faults(Mutex<Fault>);

impl Faults {
    pub(crate) fn none() -> Self {
        Self(Mutex::new(Fault::always(Mode::Normal)))
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// The fault that the next request will meet.
    pub(crate) fn now(&self) -> Fault {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault for one request, which it uses up.
    pub(crate) fn take(&self) -> Fault {
        let mut fault = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = *fault;
        match taken.count {
            Some(0 | 1) => *fault = Fault::always(Mode::Normal),
            Some(count) => fault.count = Some(count - 1),
            None => {}
        }
        taken
    }
}

const DELAY_MS_TOO_LONG: u64 = 600_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_fault_ends_by_itself() {
        let faults = Faults::none();
        faults.set(Fault::next(Mode::Fail, 2));

        let modes: Vec<_> = (0..3).map(|_| (faults.now().mode, faults.take().mode)).collect();

        assert_eq!(modes, [Mode::Fail, Mode::Fail, Mode::Normal].map(|mode| (mode, mode)));
    }

    #[test]
    fn an_uncounted_fault_stays() {
        let faults = Faults::none();
        faults.set(Fault::always(Mode::Hang));

        let modes: Vec<_> = (0..3).map(|_| faults.take().mode).collect();

        assert_eq!(modes, [Mode::Hang; 3]);
    }

    #[test]
    fn every_mode_is_written_as_its_name() {
        let names = [
            "normal",
            "slow",
            "stubborn",
            "fail",
            "too-many",
            "proxy-503",
            "error-500",
            "hang",
            "hang-after",
            "cut-before",
            "cut-after",
            "garbage",
            "wrong-mac",
        ];

        for name in names {
            let mode: Mode = serde_json::from_value(name.into()).unwrap();

            assert_eq!(serde_json::to_value(mode).unwrap(), name);
        }
    }

    #[test]
    fn a_fault_that_makes_no_sense_is_refused() {
        assert!(Fault::next(Mode::Fail, 0).defect().is_some());
        assert!(Fault::always(Mode::Slow).defect().is_some());
        assert!(Fault::slow(Duration::from_secs(601)).defect().is_some());
        assert!(Fault { delay_ms: Some(1), ..Fault::always(Mode::Hang) }.defect().is_some());
        assert!(Fault::slow(Duration::from_millis(5)).defect().is_none());
        assert!(Fault::always(Mode::CutAfter).defect().is_none());
    }
}
