//! Orders in, answers out: one thread for each token session.
//!
//! A thread that is free takes the next order from the shared inbox, runs it on its own session
//! and writes the answer. Whoever holds the inbox and finds it empty reads the socket, so that no
//! order passes from thread to thread. Answers leave together when more orders wait.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use rustix::time::{ClockId, clock_gettime};
use zeroize::Zeroize;

use super::keys::{KeyTable, some_found};
use super::perform::{mode_of, perform};
use super::self_test;
use super::token::{Token, TokenSession};
use super::{WorkerError, chain};
use crate::error::{CkrClass, Failure, TokenError};
use crate::protocol::{Answer, FrameBuffer, Order, Reply, Request, append_frame, wipe};

/// Serves until the gateway closes its end.
pub(super) fn serve(
    token: Token,
    keys: KeyTable,
    socket: UnixStream,
    sessions: u16,
) -> Result<(), WorkerError> {
    let outbox = socket.try_clone().map_err(WorkerError::Socket)?;
    let inbox = Inbox { socket, frames: FrameBuffer::default(), chunk: vec![0; 64 * 1024] };
    let shared =
        Arc::new(Shared { token, keys, inbox: Mutex::new(inbox), outbox: Mutex::new(outbox) });
    let mut threads = Vec::new();
    for number in 0..sessions.max(1) {
        let shared = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("session-{number}"))
            .stack_size(512 * 1024)
            .spawn(move || {
                let _end = EndOnPanic;
                SessionThread::new(&shared).run();
            })
            .map_err(WorkerError::Socket)?;
        threads.push(thread);
    }
    for thread in threads {
        // A thread ends when the gateway has gone; one that panicked has ended the process.
        let _ = thread.join();
    }
    Ok(())
}

/// A thread that panicked takes the process with it: the gateway starts another, and no session is
/// missing unnoticed.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::exit(70);
        }
    }
}

struct Shared {
    token: Token,
    keys: KeyTable,
    inbox: Mutex<Inbox>,
    outbox: Mutex<UnixStream>,
}

struct Inbox {
    socket: UnixStream,
    frames: FrameBuffer,
    chunk: Vec<u8>,
}

struct SessionThread<'s> {
    shared: &'s Shared,
    session: Option<TokenSession>,
    answers: Vec<u8>,
    answered: usize,
}

/// Answers that may wait for one another before they leave: with four, every thirteenth microsecond
/// of a busy worker went into writing.
const ANSWERS_TOGETHER_MAX: usize = 12;

impl<'s> SessionThread<'s> {
    fn new(shared: &'s Shared) -> Self {
        Self { shared, session: None, answers: Vec::new(), answered: 0 }
    }

    fn run(mut self) {
        while let Some((request, more_wait)) = self.next_request() {
            let Request { id, deadline_ns, order } = request;
            let mode = mode_of(&self.shared.keys, &order);
            let outcome = if now_ns() > deadline_ns {
                Err(Failure::Expired)
            } else {
                self.perform(&order).map_err(|failure| self.judge(failure))
            };
            let ending = outcome.as_ref().err().and_then(ending);
            // A reply that has no frame would be a bug of this crate; its caller times out.
            if append_frame(&mut self.answers, &Reply { id, mode, outcome }).is_ok() {
                self.answered += 1;
            }
            if let Some(code) = ending {
                self.flush();
                std::process::exit(code);
            }
            if !more_wait || self.answered >= ANSWERS_TOGETHER_MAX {
                self.flush();
            }
        }
    }

    /// The next order and whether another one waits behind it; `None` when the gateway has gone.
    fn next_request(&mut self) -> Option<(Request, bool)> {
        let shared = self.shared;
        let mut inbox = match shared.inbox.try_lock() {
            Ok(inbox) => inbox,
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {
                self.flush();
                shared.inbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
            }
        };
        loop {
            match inbox.frames.next_frame::<Request>() {
                Ok(Some(request)) => return Some((request, inbox.frames.holds_frame())),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "the gateway sent what is no order; hanging up");
                    return None;
                }
            }
            self.flush();
            read(&mut inbox)?;
        }
    }

    fn flush(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let mut outbox = self.shared.outbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if outbox.write_all(&self.answers).is_err() {
            // The gateway has gone; the next read says so.
            tracing::info!("answers had no reader");
        }
        wipe(&mut self.answers);
        self.answered = 0;
    }

    /// Runs one order, curing once what a fresh session, a new look-up or a new login cures.
    fn perform(&mut self, order: &Order) -> Result<Answer, Failure> {
        let outcome = self.attempt(order);
        let Err(Failure::Token { class, .. }) = &outcome else { return outcome };
        match class {
            // Opening a session logs in when nobody is.
            CkrClass::Transient | CkrClass::Relogin => {
                self.session = None;
                self.attempt(order)
            }
            CkrClass::Refind => {
                self.session = None;
                let keys = &self.shared.keys;
                let found = self.session().and_then(|session| keys.find_again(session));
                found.map_err(Failure::from).and_then(|()| self.attempt(order))
            }
            CkrClass::Restart
            | CkrClass::Permanent
            | CkrClass::Configuration
            | CkrClass::Caller
            | CkrClass::Answer
            | CkrClass::Benign => outcome,
        }
    }

    fn session(&mut self) -> Result<&TokenSession, TokenError> {
        match self.session {
            Some(ref session) => Ok(session),
            None => Ok(self.session.insert(self.shared.token.session()?)),
        }
    }

    fn attempt(&mut self, order: &Order) -> Result<Answer, Failure> {
        let keys = &self.shared.keys;
        perform(self.session()?, keys, order)
    }

    /// One code alone does not decide, for tokens say GENERAL_ERROR to a wrapped key that is bad:
    /// the token is asked for known answers on a fresh session, and for a key of the register, since
    /// session keys go on working on a token that has vanished. If it has them, this order itself was
    /// at fault.
    fn judge(&mut self, failure: Failure) -> Failure {
        let Failure::Token { function, code, class: CkrClass::Restart } = failure else {
            return failure;
        };
        self.session = None;
        let keys = &self.shared.keys;
        let needs = keys.needs();
        let known = match self.session() {
            Ok(session) => self_test::run(session, &needs)
                .map_err(|error| chain(&error))
                .and_then(|_| some_found(&keys.register(), session).map_err(|error| chain(&error))),
            // A refused login is the reason to end by.
            Err(error) if error.class() == CkrClass::Permanent => return error.into(),
            Err(error) => Err(chain(&error)),
        };
        let class = match known {
            Ok(()) => CkrClass::Caller,
            Err(why) => {
                tracing::error!(why, "the token has no known answers");
                CkrClass::Restart
            }
        };
        Failure::Token { function, code, class }
    }
}

/// The exit code of a worker whose token is gone: another start may help.
const EXIT_TOKEN_GONE: i32 = 75;
/// The exit code of a worker that a person must help: its next start says why, and is the last.
const EXIT_PERMANENT: i32 = 77;

/// Whether this process ends after such an answer. After a login that was refused for good, each
/// further order would log in again and bring the token nearer to its lock.
fn ending(failure: &Failure) -> Option<i32> {
    let Failure::Token { class, .. } = failure else { return None };
    let code = match class {
        CkrClass::Restart => EXIT_TOKEN_GONE,
        CkrClass::Permanent => EXIT_PERMANENT,
        CkrClass::Transient
        | CkrClass::Refind
        | CkrClass::Relogin
        | CkrClass::Configuration
        | CkrClass::Caller
        | CkrClass::Answer
        | CkrClass::Benign => return None,
    };
    tracing::error!(why = chain(failure), code, "this worker ends");
    Some(code)
}

/// More bytes for the inbox; `None` at the end.
fn read(inbox: &mut MutexGuard<'_, Inbox>) -> Option<()> {
    let Inbox { socket, frames, chunk } = &mut **inbox;
    loop {
        match socket.read(chunk) {
            Ok(0) => return None,
            Ok(count) => {
                frames.extend(&chunk[..count]);
                chunk[..count].zeroize();
                return Some(());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "reading the socket");
                return None;
            }
        }
    }
}

/// CLOCK_MONOTONIC, which the gateway reads too.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(class: CkrClass) -> Failure {
        Failure::Token { function: "Login".into(), code: "PinIncorrect".into(), class }
    }

    #[test]
    fn a_refused_login_and_a_lost_token_end_the_worker_and_nothing_else_does() {
        assert_eq!(ending(&of(CkrClass::Permanent)), Some(EXIT_PERMANENT));
        assert_eq!(ending(&of(CkrClass::Restart)), Some(EXIT_TOKEN_GONE));
        for class in [CkrClass::Caller, CkrClass::Configuration, CkrClass::Transient] {
            assert_eq!(ending(&of(class)), None, "{class:?}");
        }
        assert_eq!(ending(&Failure::PinBlockRefused), None);
    }
}
