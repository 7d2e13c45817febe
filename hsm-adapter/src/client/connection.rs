//! One ready worker: orders out, replies matched by number.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use zeroize::{Zeroize, Zeroizing};

use super::LinkError;
use crate::protocol::{Answer, FrameBuffer, Hello, Order, Reply, RequestRef, append_frame, wipe};
use crate::vocabulary::Mode;

/// What the callers of one worker share.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) hello: Hello,
    in_flight_max: usize,
    answer_limit: Duration,
    next_id: AtomicU64,
    count: AtomicUsize,
    closed: AtomicBool,
    condemned: Notify,
    waiting: Mutex<HashMap<u64, Waiting>>,
    /// When it last answered, or got an order while it had none. Milliseconds since `begun`.
    heard_ms: AtomicU64,
    begun: Instant,
    outbox: Mutex<Zeroizing<Vec<u8>>>,
    outbox_filled: Notify,
}

/// An order at the worker. It stays until its reply comes or the connection ends, whether or not
/// its caller still waits: what a hung worker owes must count, and the bound on these entries
/// bounds the outbox too.
#[derive(Debug)]
struct Waiting {
    /// Without a reply until then it is owed: its caller's deadline, or later when that is sooner than
    /// an order may fairly take.
    due: Instant,
    caller: oneshot::Sender<Reply>,
}

/// A reply may be this late: a worker that says "expired" is alive, and it says so after the
/// deadline.
const GRACE: Duration = Duration::from_millis(250);

impl Connection {
    pub(super) fn new(hello: Hello, in_flight_max: usize, answer_limit: Duration) -> Self {
        Self {
            hello,
            in_flight_max,
            answer_limit,
            next_id: AtomicU64::new(1),
            count: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            condemned: Notify::new(),
            waiting: Mutex::default(),
            heard_ms: AtomicU64::new(0),
            begun: Instant::now(),
            outbox: Mutex::default(),
            outbox_filled: Notify::new(),
        }
    }

    /// Whether it still takes orders: the socket may have ended before the supervisor knows.
    pub(super) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether every session has a few orders waiting already.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight() >= usize::from(self.hello.sessions.max(1)) * ORDERS_TOGETHER
    }

    /// Whether it has an order in hand and has said nothing for a while.
    pub(super) fn is_silent(&self) -> bool {
        self.in_flight() > 0
            && self.now_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed)) > SILENT_MS
    }

    fn hear(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The answer is of the kind that the order asks for; a worker that gives another one is condemned.
    pub(super) async fn call(
        &self,
        order: &Order,
        deadline: Instant,
    ) -> (Option<Mode>, Result<Answer, LinkError>) {
        let (id, answer) = match self.enter(order, deadline) {
            Ok(entered) => entered,
            Err(error) => return (None, Err(error)),
        };
        let request = RequestRef { id, deadline_ns: monotonic_ns(deadline), order };
        if append_frame(&mut lock(&self.outbox), &request).is_err() {
            self.take(id);
            return (None, Err(LinkError::OrderTooLong));
        }
        self.outbox_filled.notify_one();
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(Reply { outcome: Ok(answer), .. })) if !order.is_answered_by(&answer) => {
                self.condemn();
                (None, Err(LinkError::WrongAnswer))
            }
            Ok(Ok(reply)) => (reply.mode, reply.outcome.map_err(LinkError::from)),
            Ok(Err(_)) => (None, Err(LinkError::WorkerDied)),
            Err(_) => (None, Err(LinkError::TimedOut)),
        }
    }

    fn enter(
        &self,
        order: &Order,
        deadline: Instant,
    ) -> Result<(u64, oneshot::Receiver<Reply>), LinkError> {
        let (caller, receiver) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut waiting = lock(&self.waiting);
        // Under the lock that `close` takes: nobody waits at a connection that has ended.
        if self.closed.load(Ordering::Relaxed) {
            return Err(LinkError::NoWorker);
        }
        // A full worker must still be able to say that it is well.
        let more = if matches!(order, Order::Heartbeat) { HEARTBEATS } else { 0 };
        if waiting.len() >= self.in_flight_max + more {
            return Err(LinkError::Busy);
        }
        if waiting.is_empty() {
            self.hear();
        }
        let due = deadline.max(Instant::now() + self.answer_limit);
        waiting.insert(id, Waiting { due, caller });
        self.count.store(waiting.len(), Ordering::Relaxed);
        Ok((id, receiver))
    }

    fn take(&self, id: u64) -> Option<Waiting> {
        let mut waiting = lock(&self.waiting);
        let taken = waiting.remove(&id);
        self.count.store(waiting.len(), Ordering::Relaxed);
        taken
    }

    /// Whether a reply is due that has not come.
    pub(super) fn owes(&self) -> bool {
        let now = Instant::now();
        lock(&self.waiting).values().any(|waiting| waiting.due <= now)
    }

    /// How many orders are lost, which is overdue by more than the grace, and for how long the
    /// first has been.
    pub(super) fn lost(&self) -> (usize, Duration) {
        let now = Instant::now();
        let mut lost = (0, Duration::ZERO);
        for waiting in lock(&self.waiting).values() {
            if let Some(since) = now.checked_duration_since(waiting.due + GRACE) {
                lost = (lost.0 + 1, lost.1.max(since));
            }
        }
        lost
    }

    pub(super) fn deliver(&self, reply: Reply) {
        self.hear();
        if let Some(waiting) = self.take(reply.id) {
            // A caller that has gone away needs no reply.
            let _ = waiting.caller.send(reply);
        }
    }

    /// Takes no further order and no further answer: what this worker said was wrong, and its
    /// supervisor is to end it.
    pub(super) fn condemn(&self) {
        self.close();
        self.condemned.notify_one();
    }

    /// Ends when the worker is condemned.
    pub(super) async fn is_condemned(&self) {
        self.condemned.notified().await;
    }

    fn close(&self) {
        let mut waiting = lock(&self.waiting);
        self.closed.store(true, Ordering::Relaxed);
        waiting.clear();
        self.count.store(0, Ordering::Relaxed);
    }
}

/// Orders that one session takes together before another worker is asked: few enough that the last
/// of them waits less than a network round trip.
const ORDERS_TOGETHER: usize = 8;

/// Heartbeats beyond `in_flight_max`.
const HEARTBEATS: usize = 8;

/// A worker that answers takes less for an order; one that takes longer is not asked while another
/// is there.
const SILENT_MS: u64 = 250;

/// Moves bytes both ways until the worker hangs up or speaks nonsense. `link` is for the log.
pub(super) async fn run(
    connection: Arc<Connection>,
    stream: UnixStream,
    frames: FrameBuffer,
    link: &str,
) {
    let (reading, writing) = stream.into_split();
    let error = tokio::select! {
        error = read_replies(&connection, reading, frames) => error,
        error = write_orders(&connection, writing) => error,
    };
    tracing::info!(link, %error, "the worker's socket ended");
    connection.close();
}

async fn read_replies(
    connection: &Connection,
    mut socket: OwnedReadHalf,
    mut frames: FrameBuffer,
) -> io::Error {
    let mut chunk = vec![0; 16 * 1024];
    loop {
        match socket.read(&mut chunk).await {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(count) => {
                frames.extend(&chunk[..count]);
                chunk[..count].zeroize();
            }
            Err(error) => return error,
        }
        loop {
            match frames.next_frame::<Reply>() {
                Ok(Some(reply)) => connection.deliver(reply),
                Ok(None) => break,
                Err(error) => return io::Error::other(error),
            }
        }
    }
}

/// Orders that gather while a write runs leave together in the next.
async fn write_orders(connection: &Connection, mut socket: OwnedWriteHalf) -> io::Error {
    let mut batch = Zeroizing::new(Vec::new());
    loop {
        std::mem::swap(&mut batch, &mut *lock(&connection.outbox));
        if batch.is_empty() {
            connection.outbox_filled.notified().await;
            continue;
        }
        if let Err(error) = socket.write_all(&batch).await {
            return error;
        }
        wipe(&mut batch);
    }
}

/// CLOCK_MONOTONIC at `deadline`, for the worker.
fn monotonic_ns(deadline: Instant) -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    let left = deadline.saturating_duration_since(Instant::now());
    now_ns.saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::Failure;
    use crate::protocol::VERSION;

    /// Of a worker that is not there: it answers what is delivered.
    pub(in crate::client) fn connection(in_flight_max: usize) -> Connection {
        let token = "a token".to_owned();
        let (module_sha256, recipes) = (String::new(), Vec::new());
        let hello = Hello { version: VERSION, sessions: 1, token, module_sha256, recipes };
        Connection::new(hello, in_flight_max, Duration::ZERO)
    }

    fn after(milliseconds: u64) -> Instant {
        Instant::now() + Duration::from_millis(milliseconds)
    }

    async fn give_up_at_once(connection: &Connection, deadline: Instant) {
        let call = connection.call(&Order::ListKeys, deadline);
        let given_up = tokio::time::timeout(Duration::ZERO, call).await;
        assert!(given_up.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_whose_caller_went_away_is_owed_and_in_time_lost() {
        let connection = connection(8);
        give_up_at_once(&connection, after(1_000)).await;
        assert_eq!((connection.in_flight(), connection.owes()), (1, false));

        tokio::time::advance(Duration::from_millis(1_100)).await;
        let soon = (connection.owes(), connection.lost().0);
        tokio::time::advance(Duration::from_millis(1_000)).await;
        let (count, longest) = connection.lost();

        assert_eq!(soon, (true, 0));
        assert_eq!((connection.in_flight(), count), (1, 1));
        assert!(longest > Duration::from_millis(800), "{longest:?}");
    }

    /// A client may ask for its answer within a millisecond. That must not get a worker killed.
    #[tokio::test(start_paused = true)]
    async fn a_caller_in_a_hurry_makes_no_worker_look_hung() {
        let hasty = connection(8);
        let fair = Connection::new(hasty.hello.clone(), 8, Duration::from_secs(2));
        for connection in [&hasty, &fair] {
            let timed_out = connection.call(&Order::ListKeys, after(1)).await.1;
            assert_eq!(timed_out.unwrap_err(), LinkError::TimedOut);
        }

        tokio::time::advance(Duration::from_secs(1)).await;
        let soon = [hasty.lost().0, fair.lost().0];
        let owes = [hasty.owes(), fair.owes()];
        tokio::time::advance(Duration::from_secs(2)).await;

        assert_eq!((soon, owes), ([1, 0], [true, false]));
        assert_eq!(fair.lost().0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_worker_still_takes_a_heartbeat() {
        let connection = connection(1);
        give_up_at_once(&connection, after(1_000)).await;

        let full = connection.call(&Order::ListKeys, after(1_000)).await.1;
        let beat = connection.call(&Order::Heartbeat, after(10)).await.1;

        assert_eq!(full.unwrap_err(), LinkError::Busy);
        assert_eq!(beat.unwrap_err(), LinkError::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_says_nothing_with_an_order_in_hand_is_silent() {
        let connection = connection(8);
        tokio::time::advance(Duration::from_secs(60)).await;
        let idle = connection.is_silent();
        give_up_at_once(&connection, after(1_000)).await;
        tokio::time::advance(Duration::from_millis(200)).await;
        let working = connection.is_silent();
        tokio::time::advance(Duration::from_millis(100)).await;
        let silent = connection.is_silent();
        connection.deliver(Reply { id: 1, mode: None, outcome: Err(Failure::Expired) });

        assert_eq!((idle, working, silent), (false, false, true));
        assert!(!connection.is_silent());
    }

    /// It may have taken one order's answer for another's: no order of it can be trusted any more.
    #[tokio::test(start_paused = true)]
    async fn a_worker_that_answers_another_question_is_condemned_with_all_that_it_has_in_hand() {
        let connection = connection(8);
        let answers = async {
            tokio::task::yield_now().await;
            let outcome = Ok(Answer::Verified(true));
            connection.deliver(Reply { id: 1, mode: None, outcome });
        };

        let (asked, beside, ()) = tokio::join!(
            connection.call(&Order::ListKeys, after(1_000)),
            connection.call(&Order::Random { bytes: 8 }, after(1_000)),
            answers
        );

        assert_eq!(asked.1.unwrap_err(), LinkError::WrongAnswer);
        assert_eq!(beside.1.unwrap_err(), LinkError::WorkerDied);
        let condemned = tokio::time::timeout(Duration::ZERO, connection.is_condemned()).await;
        assert!(condemned.is_ok() && !connection.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn replies_that_are_just_late_are_not_lost() {
        let connection = connection(8);
        for id in [1, 2] {
            let outcome = connection.call(&Order::ListKeys, after(1)).await;
            assert_eq!(outcome.1.unwrap_err(), LinkError::TimedOut, "{id}");
        }

        tokio::time::advance(Duration::from_millis(100)).await;
        let lost = connection.lost().0;
        for id in [1, 2] {
            connection.deliver(Reply { id, mode: None, outcome: Err(Failure::Expired) });
        }

        assert_eq!((lost, connection.in_flight(), connection.owes()), (0, 0, false));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_who_go_away_do_not_make_room_for_more_orders_than_allowed() {
        let connection = connection(2);
        give_up_at_once(&connection, after(1_000)).await;
        give_up_at_once(&connection, after(1_000)).await;

        let refused = connection.call(&Order::ListKeys, after(1_000)).await;
        connection.deliver(Reply { id: 1, mode: None, outcome: Err(Failure::Expired) });

        assert_eq!(refused.1.unwrap_err(), LinkError::Busy);
        assert_eq!(connection.in_flight(), 1);
    }
}
