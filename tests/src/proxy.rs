//! A TCP proxy on loopback that can be told to misbehave while connections run through it.
//!
//! It knows nothing of TLS or HTTP: it delays, holds, loses and counts bytes, and ends connections.
//! A [`Behaviour`] stays until the next one; a [`Trap`] is for one connection, once. What is drawn
//! at random comes from a seed.

mod conversation; // one connection and its two ways
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::soft::random::Random;

/// A running proxy. Dropping it ends it and every connection through it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// What happens to everything that comes. `Default` passes it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Behaviour {
    /// To a new connection.
    pub door: Door,
    /// To what the client sends.
    pub to_upstream: Way,
    /// To what the upstream answers.
    pub to_client: Way,
}

/// What a new connection meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Door {
    /// It is joined to the upstream.
    #[default]
    Open,
    /// It is accepted and reset at once.
    Resets,
    /// Nothing listens.
    Closed,
}

/// One direction of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// Whether bytes arrive.
    pub passage: Passage,
    /// How long each piece waits before it is sent on.
    pub delay: Duration,
    /// At most this much more, drawn for each piece.
    pub jitter: Duration,
    /// No more than this, when there is a limit.
    pub bytes_per_s: Option<u64>,
}

/// Whether the bytes of one direction arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passage {
    /// Yes.
    #[default]
    Open,
    /// Later: when the passage is open again, as after a partition that TCP outlives.
    Held,
    /// Never, and nothing that follows on the same connection does: a router forgot it.
    Lost,
}

/// One of the two directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From the client to the upstream.
    Request,
    /// From the upstream to the client.
    Answer,
}

/// The end of one connection: of the first that carries a byte this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// Which bytes count.
    pub side: Side,
    /// How many of them still pass, counted from now.
    pub after: u64,
    /// What then happens to both sides of it.
    pub end: End,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// RST.
    Reset,
    /// FIN.
    Close,
}

/// What connections share with the handle.
#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    trap: Mutex<Option<SetTrap>>,
    random: Mutex<Random>,
    /// Cancelling one resets its connection.
    open: Mutex<HashMap<u64, CancellationToken>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct SetTrap {
    trap: Trap,
    /// The connection that it counts, once one has come.
    connection: Option<u64>,
    sprung: oneshot::Sender<()>,
}

impl Proxy {
    /// Listens on `listen` (port 0 takes any free one) and joins what comes to `upstream`.
    ///
    /// # Errors
    /// A port that is taken.
    pub async fn start(
        listen: SocketAddr,
        upstream: SocketAddr,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| listen.to_string())?;
        let address = listener.local_addr().context("the listener has no address")?;
        let shared = Arc::new(Shared {
            upstream,
            trap: Mutex::new(None),
            random: Mutex::new(Random::of(seed)),
            open: Mutex::default(),
            next: AtomicU64::new(0),
        });
        let (behaviour, seen) = watch::channel(Behaviour::default());
        let stop = CancellationToken::new();
        let serving = serve(listener, address, seen, shared.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
        Ok(Self { address, behaviour, shared, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Behaves like this from now on, to connections that are open too.
    pub fn set(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// Sets a trap in the place of any other. What is returned ends well when it has sprung.
    pub fn arm(&self, trap: Trap) -> oneshot::Receiver<()> {
        let (sprung, told) = oneshot::channel();
        *lock(&self.shared.trap) = Some(SetTrap { trap, connection: None, sprung });
        told
    }

    /// Takes the trap away.
    pub fn disarm(&self) {
        *lock(&self.shared.trap) = None;
    }

    /// Resets every connection that is open now; how many.
    #[must_use]
    pub fn cut_existing(&self) -> usize {
        let open = lock(&self.shared.open);
        open.values().for_each(CancellationToken::cancel);
        open.len()
    }
}

impl Shared {
    /// How many of `count` bytes still pass, and whether the connection then ends.
    fn spring(&self, connection: u64, side: Side, count: usize) -> (usize, Option<End>) {
        let mut place = lock(&self.trap);
        let Some(set) = place.as_mut().filter(|set| set.trap.side == side) else {
            return (count, None);
        };
        if *set.connection.get_or_insert(connection) != connection {
            return (count, None);
        }
        let left = usize::try_from(set.trap.after).unwrap_or(usize::MAX);
        if count < left {
            set.trap.after -= count as u64;
            return (count, None);
        }
        let end = set.trap.end;
        if let Some(set) = place.take() {
            // Nobody waiting for it is nobody's loss.
            let _ = set.sprung.send(());
        }
        (left, Some(end))
    }

    /// A trap that waits for a connection which has ended waits for the next one.
    fn forget(&self, connection: u64) {
        lock(&self.open).remove(&connection);
        let mut place = lock(&self.trap);
        if let Some(set) = place.as_mut().filter(|set| set.connection == Some(connection)) {
            set.connection = None;
        }
    }

    fn wait_of(&self, way: &Way) -> Duration {
        let most = usize::try_from(way.jitter.as_micros()).unwrap_or(usize::MAX);
        let more = if most == 0 { 0 } else { lock(&self.random).between(0, most) };
        way.delay + Duration::from_micros(more as u64)
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    mut behaviour: watch::Receiver<Behaviour>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut listener = Some(listener);
    loop {
        let door = behaviour.borrow_and_update().door;
        if door == Door::Closed {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        let socket = match &listener {
            Some(open) => tokio::select! {
                accepted = open.accept() => accepted.ok(),
                changed = behaviour.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            },
            // The port may be held for a moment by a connection that has not ended.
            None if door != Door::Closed => {
                sleep(BIND_AGAIN_AFTER).await;
                continue;
            }
            None => match behaviour.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match (socket, door) {
            (Some((socket, _)), Door::Open) => {
                let (behaviour, shared) = (behaviour.clone(), shared.clone());
                tokio::spawn(conversation::run(socket, behaviour, shared, stop.child_token()));
            }
            (Some((socket, _)), Door::Resets | Door::Closed) => reset(&socket),
            // Out of descriptors, most likely: wait for one.
            (None, _) => sleep(BIND_AGAIN_AFTER).await,
        }
    }
}

/// Lets the drop of a socket say RST.
fn reset(socket: &TcpStream) {
    // An error says that it has ended already.
    let _ = socket.set_zero_linger();
}

fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

const BIND_AGAIN_AFTER: Duration = Duration::from_millis(5);
