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
use zeroize::Zeroize;

use super::LinkError;
use crate::protocol::{Answer, FrameBuffer, Hello, Order, Reply, RequestRef, append_frame, wipe};

/// What the callers of one worker share.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) hello: Hello,
    in_flight_max: usize,
    next_id: AtomicU64,
    count: AtomicUsize,
    closed: AtomicBool,
    waiting: Mutex<HashMap<u64, Waiting>>,
    outbox: Mutex<Vec<u8>>,
    outbox_filled: Notify,
    /// Told when an order is lost, so that the supervisor looks.
    pub(super) order_lost: Notify,
}

#[derive(Debug)]
enum Waiting {
    Caller(oneshot::Sender<Reply>),
    /// Its caller has been answered already: the deadline passed.
    Lost {
        since: Instant,
    },
}

impl Connection {
    pub(super) fn new(hello: Hello, in_flight_max: usize) -> Self {
        Self {
            hello,
            in_flight_max,
            next_id: AtomicU64::new(1),
            count: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            waiting: Mutex::default(),
            outbox: Mutex::default(),
            outbox_filled: Notify::new(),
            order_lost: Notify::new(),
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

    pub(super) async fn call(&self, order: &Order, deadline: Instant) -> Result<Answer, LinkError> {
        if self.in_flight() >= self.in_flight_max {
            return Err(LinkError::Busy);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = RequestRef { id, deadline_ns: monotonic_ns(deadline), order };
        let mut answer = self.enter(id)?;
        // Dropped when the caller goes away: then nobody waits for the reply.
        let mut entry = Entry { connection: self, id, lost: false };
        {
            let mut outbox = lock(&self.outbox);
            append_frame(&mut outbox, &request).map_err(|_| LinkError::OrderTooLong)?;
        }
        self.outbox_filled.notify_one();
        match tokio::time::timeout_at(deadline, &mut answer).await {
            Ok(Ok(reply)) => Ok(reply.outcome?),
            Ok(Err(_)) => Err(LinkError::WorkerDied),
            Err(_) => {
                entry.lost = true;
                Err(LinkError::TimedOut)
            }
        }
    }

    fn enter(&self, id: u64) -> Result<oneshot::Receiver<Reply>, LinkError> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        // Under the lock that `close` takes: nobody waits at a connection that has ended.
        if self.closed.load(Ordering::Relaxed) {
            return Err(LinkError::NoWorker);
        }
        waiting.insert(id, Waiting::Caller(sender));
        self.count.store(waiting.len(), Ordering::Relaxed);
        Ok(receiver)
    }

    fn leave(&self, id: u64, lost: bool) {
        let mut waiting = lock(&self.waiting);
        if !waiting.contains_key(&id) {
            return;
        }
        if lost {
            waiting.insert(id, Waiting::Lost { since: Instant::now() });
            self.order_lost.notify_one();
        } else {
            // The worker still works on it; its reply finds nobody.
            waiting.remove(&id);
        }
        self.count.store(waiting.len(), Ordering::Relaxed);
    }

    /// How many orders are lost, and for how long the first has been.
    pub(super) fn lost(&self) -> (usize, Duration) {
        let now = Instant::now();
        let mut lost = (0, Duration::ZERO);
        for waiting in lock(&self.waiting).values() {
            if let Waiting::Lost { since } = waiting {
                lost = (lost.0 + 1, lost.1.max(now - *since));
            }
        }
        lost
    }

    fn deliver(&self, reply: Reply) {
        let mut waiting = lock(&self.waiting);
        let caller = waiting.remove(&reply.id);
        self.count.store(waiting.len(), Ordering::Relaxed);
        drop(waiting);
        if let Some(Waiting::Caller(caller)) = caller {
            // A caller that has just gone away needs no reply.
            let _ = caller.send(reply);
        }
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

/// One order's place among those that wait.
struct Entry<'c> {
    connection: &'c Connection,
    id: u64,
    lost: bool,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.connection.leave(self.id, self.lost);
    }
}

/// Moves bytes both ways until the worker hangs up or speaks nonsense.
pub(super) async fn run(connection: Arc<Connection>, stream: UnixStream, frames: FrameBuffer) {
    let (reading, writing) = stream.into_split();
    let error = tokio::select! {
        error = read_replies(&connection, reading, frames) => error,
        error = write_orders(&connection, writing) => error,
    };
    tracing::info!(%error, "the worker's socket ended");
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
    let mut batch = Vec::new();
    loop {
        std::mem::swap(&mut batch, &mut lock(&connection.outbox));
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
