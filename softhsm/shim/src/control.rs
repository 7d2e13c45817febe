//! The control file: what goes wrong, and when.
//!
//! ```text
//! FUNCTION ACTION [ARG] [COUNT]      # from here on a comment
//! Sign delay 150                     150 ms later than normal
//! Encrypt fail 0x32 10               DEVICE_REMOVED ten times, then healed
//! Sign failafter 0x32 50             works 50 times, then fails
//! WrapKey hang                       never returns; only SIGKILL helps
//! * crash                            signal 11
//! Encrypt flip                       one bit of the output is wrong
//! ```
//!
//! FUNCTION is a name without `C_`, or `*` for every replaced one. All lines that fit a call apply,
//! in their order. COUNT limits a line to so many calls of this process. The file is read again at
//! most every 5 ms, when it is another one; then all counting begins anew. A line that makes no
//! sense ends the process: a test that controls nothing must not pass.
//!
//! A call that asks for an answer's length is half of a call: it meets no fault and is not counted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cryptoki_sys::CK_RV;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The control file and what is left of its lines.
pub(crate) struct Control {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Timespec>,
    stamp: Option<Stamp>,
    rules: Vec<Rule>,
}

/// Device and inode, size, and modification time with its nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

struct Rule {
    function: String,
    action: Action,
    /// Calls that fitted.
    seen: u64,
    /// Calls that this line is for.
    count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Delay(Duration),
    Fail(CK_RV),
    FailAfter(CK_RV, u64),
    Hang,
    Crash,
    Flip,
}

/// What becomes of a call that came back from its faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Normal,
    Fails(CK_RV),
    /// Its output is wrong by one bit.
    Flipped,
}

const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Control {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// Lets one call of this function suffer what the file says.
    pub(crate) fn suffer(&self, function: &str) -> Fate {
        let Some(path) = &self.path else { return Fate::Normal };
        let mut actions = Vec::new();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.look(path);
            let fits = |rule: &&mut Rule| rule.function == "*" || rule.function == function;
            for rule in state.rules.iter_mut().filter(fits) {
                rule.seen += 1;
                if rule.seen <= rule.count {
                    actions.push((rule.action, rule.seen));
                }
            }
        }
        let mut fate = Fate::Normal;
        for (action, seen) in actions {
            match action {
                Action::Delay(time) => sleep(time),
                Action::Fail(rv) => return Fate::Fails(rv),
                Action::FailAfter(rv, good) if seen > good => return Fate::Fails(rv),
                Action::FailAfter(..) => {}
                Action::Hang => loop {
                    sleep(Duration::from_secs(3600));
                },
                Action::Crash => crash(),
                Action::Flip => fate = Fate::Flipped,
            }
        }
        fate
    }
}

impl State {
    fn look(&mut self, path: &PathBuf) {
        let now = clock_gettime(ClockId::Monotonic);
        let limit = Timespec::try_from(LOOK_EVERY).unwrap_or_default();
        if self.looked.is_some_and(|looked| now < looked + limit) {
            return;
        }
        self.looked = Some(now);
        let stamp = fs::metadata(path)
            .ok()
            .map(|file| (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        let text = fs::read_to_string(path).unwrap_or_default();
        match parse(&text) {
            Ok(rules) => self.rules = rules,
            Err(why) => {
                eprintln!("softhsm-shim: {}: {why}", path.display());
                std::process::abort();
            }
        }
    }
}

fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        if line.trim().is_empty() {
            continue;
        }
        rules.push(rule(line).ok_or_else(|| format!("line {}: {line:?}", at + 1))?);
    }
    Ok(rules)
}

fn rule(line: &str) -> Option<Rule> {
    let mut words = line.split_whitespace();
    let function = words.next()?;
    if function != "*" && !crate::entries::NAMES.contains(&function) {
        return None;
    }
    let action = match words.next()? {
        "delay" => Action::Delay(Duration::from_millis(number(words.next()?)?)),
        "fail" => Action::Fail(number(words.next()?)?),
        "failafter" => Action::FailAfter(number(words.next()?)?, number(words.next()?)?),
        "hang" => Action::Hang,
        "crash" => Action::Crash,
        "flip" => Action::Flip,
        _ => return None,
    };
    let count = match words.next() {
        Some(word) => number(word)?,
        None => u64::MAX,
    };
    words.next().is_none().then(|| Rule { function: function.into(), action, seen: 0, count })
}

/// Decimal, or hexadecimal behind `0x`.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

#[expect(clippy::disallowed_methods, reason = "a module blocks its caller: that is the fault")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

fn crash() -> ! {
    // SAFETY: none, on purpose. The first page of a process is never mapped, so that the write ends
    // it by signal 11, as a module that follows a null pointer does.
    unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) };
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_page_says() {
        let text = "# all\nSign delay 150\nEncrypt fail 0x32 10 # healed\n\nSign failafter 50 5\n\
                    * crash\nWrapKey hang\nDecrypt flip 1";

        let rules = parse(text).unwrap_or_else(|why| panic!("{why}"));

        let read: Vec<_> =
            rules.iter().map(|rule| (rule.function.as_str(), rule.action, rule.count)).collect();
        let always = u64::MAX;
        let wanted = [
            ("Sign", Action::Delay(Duration::from_millis(150)), always),
            ("Encrypt", Action::Fail(0x32), 10),
            ("Sign", Action::FailAfter(50, 5), always),
            ("*", Action::Crash, always),
            ("WrapKey", Action::Hang, always),
            ("Decrypt", Action::Flip, 1),
        ];
        assert_eq!(read, wanted);
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        for line in ["C_Sign hang", "Sign", "Sign fail", "Sign fail x", "Sign hang 1 2", "Sign die"]
        {
            let Err(why) = parse(&format!("\n{line}")) else { panic!("{line}") };
            assert_eq!(why, format!("line 2: {line:?}"));
        }
    }
}
