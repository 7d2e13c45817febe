//! Keeps the workers of a link running: start, watch, kill, start again with back-off.
//!
//! Workers start one after another (two starts of one module in the same instant can fail). A
//! failure that only a person can cure, such as a wrong HSM PIN, latches: no further start.

use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{self, Connection};
use super::{LinkOptions, WorkerStatus};
use crate::protocol::{FrameBuffer, VERSION};
use crate::worker::{Greeting, StartFailure, StartFailureKind};

/// One worker's place, filled by one process after another.
#[derive(Debug)]
pub(super) struct Slot {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Arc<Connection>>,
    pid: Option<u32>,
    starts: u64,
    trouble: Option<String>,
    latched: bool,
    refused: bool,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// With a worker that is ready.
    #[cfg(test)]
    pub(super) fn with(connection: Arc<Connection>) -> Self {
        let state = State { connection: Some(connection), ..State::default() };
        Self { state: Mutex::new(state) }
    }

    pub(super) fn connection(&self) -> Option<Arc<Connection>> {
        self.state().connection.clone().filter(|connection| connection.is_open())
    }

    pub(super) fn status(&self) -> WorkerStatus {
        let state = self.state();
        let connection = state.connection.as_ref();
        WorkerStatus {
            pid: state.pid,
            ready: connection.is_some(),
            in_flight: connection.map_or(0, |connection| connection.in_flight()),
            restarts: state.starts.saturating_sub(1),
            token: connection.map(|connection| connection.hello.token.clone()),
            module_sha256: connection.map(|connection| connection.hello.module_sha256.clone()),
            trouble: state.trouble.clone(),
            latched: state.latched,
            refused: state.refused,
        }
    }
}

/// Held while a worker starts; keeps the failure after which no worker of the link may start, because
/// each further login with a wrong PIN brings the token nearer to its lock, or because the
/// configuration is refused.
type Starting = tokio::sync::Mutex<Option<StartFailure>>;

/// Runs every slot until `stop`.
pub(super) async fn supervise(
    options: LinkOptions,
    slots: Vec<Arc<Slot>>,
    stop: CancellationToken,
) {
    let options = Arc::new(options);
    let starting = Arc::new(Starting::new(None));
    let mut workers = JoinSet::new();
    for slot in slots {
        let (options, starting) = (Arc::clone(&options), Arc::clone(&starting));
        let stop = stop.clone();
        workers.spawn(async move { keep_running(&options, &slot, &starting, &stop).await });
    }
    while workers.join_next().await.is_some() {}
}

/// After a life of this length the next wait is the first one again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

async fn keep_running(
    options: &LinkOptions,
    slot: &Slot,
    starting: &Starting,
    stop: &CancellationToken,
) {
    let mut rest = options.restart_wait;
    loop {
        let started = Instant::now();
        let trouble = tokio::select! {
            () = stop.cancelled() => None,
            trouble = one_life(options, slot, starting) => Some(trouble),
        };
        {
            let mut state = slot.state();
            state.connection = None;
            let pid = state.pid.take();
            let Some(trouble) = trouble else { return };
            let StartFailure { why, kind } = trouble;
            tracing::error!(link = options.name, pid, trouble = why, ?kind, "HSM worker lost");
            state.trouble = Some(why);
            state.latched = kind != StartFailureKind::Passing;
            state.refused = kind == StartFailureKind::Refused;
            if state.latched {
                return;
            }
        }
        if started.elapsed() > STABLE_AFTER {
            rest = options.restart_wait;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(rest) => {}
        }
        rest = (rest * 2).min(options.restart_wait_max);
    }
}

/// Starts one worker and watches it to its end.
async fn one_life(options: &LinkOptions, slot: &Slot, starting: &Starting) -> StartFailure {
    let mut turn = starting.lock().await;
    if let Some(latched) = &*turn {
        return latched.clone();
    }
    let (mut child, mut stream) = match spawn(options) {
        Ok(spawned) => spawned,
        Err(error) => {
            let program = options.program.display();
            return passing(format!("starting {program}: {error}"));
        }
    };
    {
        let mut state = slot.state();
        state.pid = child.id();
        state.starts += 1;
    }
    let mut frames = FrameBuffer::default();
    let begun = Instant::now();
    let mut first = Box::pin(greeting(&mut stream, &mut frames));
    // A start that hangs must not keep the others waiting for all of its time.
    let mut greeted = timeout(TURN_MAX.min(options.start_limit), &mut first).await;
    if greeted.is_ok() {
        latch(&mut turn, &greeted);
        drop(turn);
    } else {
        drop(turn);
        greeted = timeout_at(begun + options.start_limit, &mut first).await;
        latch(&mut *starting.lock().await, &greeted);
    }
    drop(first);
    let hello = match greeted {
        Ok(Ok(Ok(hello))) => hello,
        Ok(Ok(Err(failure))) => return failure,
        Ok(Err(error)) => return passing(format!("no hello: {error}; {}", end(&mut child).await)),
        Err(_) => {
            return passing(format!("no hello within {:?}; killed", options.start_limit));
        }
    };
    if hello.version != VERSION {
        return StartFailure {
            why: format!("the worker speaks protocol {}, not {VERSION}", hello.version),
            kind: StartFailureKind::Refused,
        };
    }
    let connection = Arc::new(Connection::new(hello, options.in_flight_max, options.answer_limit));
    {
        let mut state = slot.state();
        state.connection = Some(Arc::clone(&connection));
        state.trouble = None;
    }
    let (link, token) = (&options.name, &connection.hello.token);
    tracing::info!(link, pid = child.id(), token, "HSM worker ready");
    let talk = connection::run(Arc::clone(&connection), stream, frames, link);
    tokio::pin!(talk);
    tokio::select! {
        () = &mut talk => {
            slot.state().connection = None;
            passing(end(&mut child).await)
        }
        () = lost_too_much(&connection, options) => {
            // Kill, never cancel: a running C_ call cannot be called back.
            slot.state().connection = None;
            kill(&mut child, options);
            talk.await;
            passing("it hung and was killed".into())
        }
        () = connection.is_condemned() => {
            slot.state().connection = None;
            kill(&mut child, options);
            talk.await;
            passing("it gave a wrong answer and was killed".into())
        }
    }
}

/// Keeps what only a person can cure, for all workers of the link.
fn latch(
    latched: &mut Option<StartFailure>,
    greeted: &Result<std::io::Result<Greeting>, tokio::time::error::Elapsed>,
) {
    if let Ok(Ok(Err(failure))) = greeted
        && failure.kind != StartFailureKind::Passing
    {
        *latched = Some(failure.clone());
    }
}

/// How long a worker's start keeps others from starting. Longer than a token takes to say that the
/// HSM PIN is wrong, or a second worker spends a login on it too.
const TURN_MAX: Duration = Duration::from_secs(2);

fn spawn(options: &LinkOptions) -> std::io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(&options.program)
        .arg("--module")
        .arg(&options.module)
        .arg("--token-label")
        .arg(&options.token_label)
        .arg("--pin-file")
        .arg(&options.pin_file)
        .arg("--keys")
        .arg(&options.keys)
        .arg("--sessions")
        .arg(options.sessions.to_string())
        .args(options.vendor_codes.iter().map(|code| format!("--vendor-code={code}")))
        .arg("--probes")
        .arg(options.probes.name())
        .args(options.module_sha256.iter().flat_map(|digest| ["--module-sha256", digest]))
        .args(options.accepted_probes.iter().flat_map(|probe| ["--accept-probe", probe]))
        .arg("--in-worker")
        .arg(if options.in_worker { "allowed" } else { "refused" })
        .env_clear()
        .envs(&options.environment)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

async fn greeting(stream: &mut UnixStream, frames: &mut FrameBuffer) -> std::io::Result<Greeting> {
    let mut chunk = [0; 4096];
    loop {
        if let Some(greeting) = frames.next_frame().map_err(std::io::Error::other)? {
            return Ok(greeting);
        }
        match stream.read(&mut chunk).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => frames.extend(&chunk[..count]),
        }
    }
}

/// How often a worker's debts are looked at. Orders are lost by time alone, with nobody to tell.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Ends when too many orders are lost, or one for too long.
async fn lost_too_much(connection: &Connection, options: &LinkOptions) {
    loop {
        let (count, longest) = connection.lost();
        if count >= options.lost_max || longest >= options.lost_limit {
            return;
        }
        sleep(LOOK_EVERY).await;
    }
}

fn kill(child: &mut Child, options: &LinkOptions) {
    if let Err(error) = child.start_kill() {
        tracing::error!(link = options.name, pid = child.id(), %error, "killing a worker");
    }
}

/// How the process ended; a worker that hung up but lives on is killed.
async fn end(child: &mut Child) -> String {
    let status: Option<ExitStatus> = match timeout(Duration::from_secs(1), child.wait()).await {
        Ok(status) => status.ok(),
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await.ok()
        }
    };
    status.map_or_else(|| "it ended".into(), |status| format!("it ended: {status}"))
}

fn passing(why: String) -> StartFailure {
    StartFailure { why, kind: StartFailureKind::Passing }
}
