//! Which faults, in which order: drawn from the seed, before anything starts.
//!
//! Each act draws from a source of its own, so that leaving one out changes no other.

use std::time::Duration;

use crate::billing::{Fault as Misanswer, Mode};
use crate::proxy::{Behaviour, Door, End, Passage, Side, Trap, Way};
use crate::soft::random::Random;

/// Faults of one kind, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// The row of the table.
    pub name: &'static str,
    /// In order.
    pub faults: Vec<Fault>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A rule of the shim until its function has been called so often.
    Call {
        /// Without `C_`.
        function: &'static str,
        /// As in the control file.
        action: String,
        /// How often, in each worker.
        calls: u64,
    },
    /// A rule of the shim that a worker meets in its start: one is killed while it stands.
    Start {
        /// Without `C_`.
        function: &'static str,
        /// As in the control file.
        action: String,
    },
    /// A signal to workers.
    Signal {
        /// Which.
        sent: Sent,
        /// To all of them, or to one.
        all: bool,
    },
    /// The token's directory is renamed, and back.
    TokenAway {
        /// For so long.
        ms: u64,
        /// Whether the workers are killed meanwhile.
        killed: bool,
    },
    /// The way to the billers is bad.
    Network {
        /// How.
        behaviour: Behaviour,
        /// Whether the connections that are open are reset first.
        cut: bool,
        /// For so long.
        ms: u64,
        /// And then well for so long, with the next fault close behind; absent: until recovery.
        pause_ms: Option<u64>,
    },
    /// One connection to the biller ends at a byte.
    Trap(Trap),
    /// The biller answers badly.
    Biller(Misanswer),
    /// The first of two HSM links is bad, and the other one is not.
    OneLink {
        /// The control file of its shim.
        rules: &'static str,
        /// For so long.
        ms: u64,
    },
    /// The token and the network at once.
    Both {
        /// The control file of the shim.
        rules: &'static str,
        /// The way to the billers.
        behaviour: Behaviour,
        /// For so long.
        ms: u64,
    },
}

/// A signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT after this.
    Pause {
        /// Milliseconds.
        ms: u64,
    },
    /// SIGSTOP for good.
    Stop,
}

impl Fault {
    /// Whether the next fault waits until this one is recovered from. After the others it follows
    /// closely, unless a worker was lost by them.
    #[must_use]
    pub fn needs_rest(&self) -> bool {
        match self {
            Self::Call { action, .. } => action == "hang" || action == "crash",
            Self::Network { pause_ms, .. } => pause_ms.is_none(),
            // Else the next one meets the same payment's second attempt, and the breaker opens.
            Self::Trap(_) | Self::Biller(_) => true,
            Self::Start { .. }
            | Self::Signal { .. }
            | Self::TokenAway { .. }
            | Self::OneLink { .. }
            | Self::Both { .. } => true,
        }
    }
}

/// All acts of a seed, for a gateway with so many HSM links.
#[must_use]
pub fn plan(seed: u64, links: usize) -> Vec<Act> {
    let mut acts = Vec::new();
    for (number, (name, count, draw)) in ACTS.iter().enumerate() {
        let mut random = Random::of(seed ^ ((number as u64 + 1) << 40));
        let faults = (0..*count).map(|number| draw(&mut random, number)).collect();
        acts.push(Act { name, faults });
    }
    if links < 2 {
        acts.retain(|act| !act.faults.iter().any(|fault| matches!(fault, Fault::OneLink { .. })));
    }
    acts
}

/// Draws the fault with this number of an act.
type Draw = fn(&mut Random, u64) -> Fault;

/// Name, how many, and how one is drawn.
const ACTS: [(&str, u64, Draw); 28] = [
    ("token-delay", 40, |random, _| {
        let action = format!("delay {}", random.between(20, 600));
        call(random, action)
    }),
    ("token-fail-session", 300, |random, _| {
        // What another session, another search or another login cures.
        let code = random.pick(&[0xB3, 0xB0, 0x60, 0x82, 0x101, 0x91, 0x31]);
        call(random, format!("fail {code:#x}"))
    }),
    ("token-fail-device", 12, |random, _| {
        // What only a new start of the module cures.
        let code = random.pick(&[0x30, 0x32, 0x03, 0x05, 0x06, 0xE0, 0x190]);
        call(random, format!("fail {code:#x}"))
    }),
    ("token-hang", 6, |random, _| one_call(random, "hang")),
    ("token-crash", 6, |random, _| one_call(random, "crash")),
    ("token-start", 5, |random, _| {
        let function = random.pick(&AT_START);
        let action = match random.between(0, 3) {
            0 => format!("delay {}", random.between(100, 900)),
            _ => format!("fail {:#x} 1", random.pick(&[0x30, 0x32, 0x05, 0xB3])),
        };
        Fault::Start { function, action }
    }),
    ("token-away", 5, |random, number| Fault::TokenAway {
        ms: between(random, 300, 2_500),
        killed: number % 2 == 0,
    }),
    ("worker-killed", 16, |random, number| {
        random.bits();
        Fault::Signal { sent: Sent::Kill, all: number % 4 == 3 }
    }),
    ("worker-paused", 12, |random, number| Fault::Signal {
        sent: Sent::Pause { ms: between(random, 300, 2_000) },
        all: number % 4 == 3,
    }),
    ("worker-stopped", 6, |_, number| Fault::Signal { sent: Sent::Stop, all: number % 4 == 3 }),
    ("biller-refused", 10, |random, number| {
        let door = if number % 3 == 2 { Door::Resets } else { Door::Closed };
        let behaviour = Behaviour { door, ..Behaviour::default() };
        let ms = between(random, 300, 2_500);
        Fault::Network { behaviour, cut: true, ms, pause_ms: None }
    }),
    ("biller-reset-request", 250, |random, number| trap(random, number, Side::Request)),
    ("biller-reset-answer", 250, |random, number| trap(random, number, Side::Answer)),
    ("biller-half-open", 8, |random, number| one_way(random, number, Passage::Lost, 3_000)),
    ("biller-held", 6, |random, number| one_way(random, number, Passage::Held, 4_000)),
    ("biller-delayed", 8, |random, _| {
        let delay = Duration::from_millis(between(random, 50, 3_000));
        let way = Way { delay, jitter: delay / 4, ..Way::default() };
        let behaviour = ways(random.between(0, 2) as u64, way);
        let ms = between(random, 1_000, 2_500);
        Fault::Network { behaviour, cut: false, ms, pause_ms: None }
    }),
    ("biller-slow-line", 6, |random, number| {
        let bytes_per_s = Some(between(random, 2_000, 40_000));
        let behaviour = ways(number, Way { bytes_per_s, ..Way::default() });
        let ms = between(random, 1_000, 2_500);
        Fault::Network { behaviour, cut: false, ms, pause_ms: None }
    }),
    ("biller-fail", 16, |random, _| misanswer(random, Mode::Fail)),
    ("biller-too-many", 16, |random, _| misanswer(random, Mode::TooMany)),
    ("biller-proxy-503", 16, |random, _| misanswer(random, Mode::Proxy503)),
    ("biller-error-500", 16, |random, _| misanswer(random, Mode::Error500)),
    ("biller-garbage", 16, |random, _| misanswer(random, Mode::Garbage)),
    ("biller-wrong-mac", 16, |random, _| misanswer(random, Mode::WrongMac)),
    ("biller-cut", 32, |random, number| {
        misanswer(random, if number % 2 == 0 { Mode::CutBefore } else { Mode::CutAfter })
    }),
    ("biller-hang", 8, |random, number| {
        misanswer(random, if number % 2 == 0 { Mode::Hang } else { Mode::HangAfter })
    }),
    ("biller-flapping", 12, |random, _| {
        let behaviour = Behaviour { door: Door::Closed, ..Behaviour::default() };
        let (ms, pause) = (between(random, 300, 1_500), between(random, 300, 1_500));
        Fault::Network { behaviour, cut: true, ms, pause_ms: Some(pause) }
    }),
    ("both-links", 5, |random, number| {
        let rules = random.pick(&["* fail 0x30", "Sign fail 0x32", "* delay 700", "Decrypt hang"]);
        let way = Way { passage: Passage::Lost, ..Way::default() };
        let closed = Behaviour { door: Door::Closed, ..Behaviour::default() };
        let behaviour = if number % 2 == 0 { closed } else { ways(number / 2, way) };
        Fault::Both { rules, behaviour, ms: between(random, 500, 2_500) }
    }),
    ("one-of-two-links", 6, |random, number| {
        let rules = ["* hang", "* fail 0x30", "* delay 700"][number as usize % 3];
        Fault::OneLink { rules, ms: between(random, 1_000, 3_000) }
    }),
];

/// What requests call, each many times a second.
const IN_REQUESTS: [&str; 6] =
    ["EncryptInit", "Encrypt", "DecryptInit", "Decrypt", "SignInit", "Sign"];

/// What a worker calls until it is ready.
const AT_START: [&str; 10] = [
    "Initialize",
    "GetSlotList",
    "GetTokenInfo",
    "OpenSession",
    "Login",
    "FindObjectsInit",
    "FindObjects",
    "GetAttributeValue",
    "EncryptInit",
    "Sign",
];

fn call(random: &mut Random, action: String) -> Fault {
    Fault::Call { function: random.pick(&IN_REQUESTS), action, calls: between(random, 1, 3) }
}

fn one_call(random: &mut Random, action: &str) -> Fault {
    Fault::Call { function: random.pick(&IN_REQUESTS), action: action.to_owned(), calls: 1 }
}

/// A new connection's handshake and a request are some 4,000 bytes one way.
fn trap(random: &mut Random, number: u64, side: Side) -> Fault {
    let after = number * TRAP_STEP + between(random, 0, TRAP_STEP - 1);
    let end = if random.between(0, 1) == 0 { End::Reset } else { End::Close };
    Fault::Trap(Trap { side, after, end })
}

const TRAP_STEP: u64 = 16;

fn misanswer(random: &mut Random, mode: Mode) -> Fault {
    Fault::Biller(Misanswer::next(mode, between(random, 1, 3)))
}

fn one_way(random: &mut Random, number: u64, passage: Passage, ms_max: u64) -> Fault {
    let behaviour = ways(number, Way { passage, ..Way::default() });
    Fault::Network { behaviour, cut: false, ms: between(random, 500, ms_max), pause_ms: None }
}

/// The answers' way, the requests' way, or both.
fn ways(choice: u64, way: Way) -> Behaviour {
    let (well, door) = (Way::default(), Door::Open);
    match choice % 3 {
        0 => Behaviour { door, to_upstream: well, to_client: way },
        1 => Behaviour { door, to_upstream: way, to_client: well },
        _ => Behaviour { door, to_upstream: way, to_client: way },
    }
}

fn between(random: &mut Random, from: u64, to: u64) -> u64 {
    from + random.bits() % (to - from + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_another_gives_others() {
        assert_eq!(plan(7, 1), plan(7, 1));
        assert_ne!(plan(7, 1), plan(8, 1));
    }

    #[test]
    fn a_second_link_adds_acts_and_changes_none() {
        let (one, two) = (plan(7, 1), plan(7, 2));

        assert!(two.len() > one.len());
        assert!(one.iter().all(|act| two.contains(act)));
    }

    #[test]
    fn a_battery_is_more_than_a_thousand_faults_in_acts_of_their_own_names() {
        let acts = plan(1, 1);

        let faults: usize = acts.iter().map(|act| act.faults.len()).sum();
        let names: BTreeSet<_> = acts.iter().map(|act| act.name).collect();
        assert!(faults >= 1_050, "{faults}");
        assert_eq!(names.len(), acts.len());
    }
}
