//! A request body that may neither be longer nor take longer than its listener allows.
//!
//! Whoever is refused before the end of the body is still sending it. An answer that closes the
//! connection in the face of these bytes may be lost: the peer's system reports a broken pipe, or
//! drops what it had received. So [`Leftover`] takes what was not read, within bounds, and the
//! answer leaves after it.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum BodyRefused {
    #[error("the body is longer than {bytes_max} bytes")]
    TooLong { bytes_max: u64 },
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the connection broke within the body")]
    Broken(#[source] hyper::Error),
}

impl BodyRefused {
    /// Finds the refusal in the causes of axum's error.
    pub fn cause_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |error| error.source())
            .find_map(|error| error.downcast_ref())
    }
}

/// The body as routes see it.
#[derive(Debug)]
pub(super) struct BoundedBody {
    arriving: Arc<Mutex<Arriving>>,
    bytes_max: u64,
    seen: u64,
    deadline: Instant,
    /// Made when the body first keeps us waiting: most arrive together with their head.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Arriving {
    body: Incoming,
    /// Whether the peer sends nothing before it is asked to (`Expect: 100-continue`): reading asks.
    is_held_back: bool,
}

impl BoundedBody {
    /// The body, and what will be left of it.
    pub(super) fn new(
        body: Incoming,
        is_held_back: bool,
        bytes_max: u64,
        deadline: Instant,
    ) -> (Self, Leftover) {
        let arriving = Arc::new(Mutex::new(Arriving { body, is_held_back }));
        let leftover = Leftover { arriving: Arc::clone(&arriving), deadline };
        (Self { arriving, bytes_max, seen: 0, deadline, timer: None }, leftover)
    }

    fn too_long(&self) -> BodyRefused {
        BodyRefused::TooLong { bytes_max: self.bytes_max }
    }
}

/// What a route did not read of its body.
#[derive(Debug)]
pub(super) struct Leftover {
    arriving: Arc<Mutex<Arriving>>,
    deadline: Instant,
}

impl Leftover {
    /// Reads it away, for no longer and no further than is worth an answer that arrives.
    pub(super) async fn discard(self) {
        let nothing_comes = {
            let arriving = lock(&self.arriving);
            arriving.body.is_end_stream() || arriving.is_held_back
        };
        if nothing_comes {
            return;
        }
        let read = async {
            let mut bytes = 0;
            while bytes < DISCARDED_BYTES_MAX {
                let frame = poll_fn(|cx| Pin::new(&mut lock(&self.arriving).body).poll_frame(cx));
                match frame.await {
                    Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) | None => return,
                }
            }
        };
        // Over either bound the answer leaves all the same, and hyper closes behind it.
        let _ = tokio::time::timeout_at(self.deadline.min(Instant::now() + DISCARD), read).await;
    }
}

fn lock(arriving: &Mutex<Arriving>) -> MutexGuard<'_, Arriving> {
    // Nothing that is done under it leaves it half done.
    arriving.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = BodyRefused;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyRefused>>> {
        // A declared length over the bound is refused before its first byte is read.
        let polled = {
            let mut arriving = lock(&self.arriving);
            if self.seen.saturating_add(arriving.body.size_hint().lower()) > self.bytes_max {
                return Poll::Ready(Some(Err(self.too_long())));
            }
            arriving.is_held_back = false;
            Pin::new(&mut arriving.body).poll_frame(cx)
        };
        if let Poll::Ready(frame) = polled {
            let Some(frame) = frame else { return Poll::Ready(None) };
            let frame = frame.map_err(BodyRefused::Broken)?;
            let length = frame.data_ref().map_or(0, Bytes::len);
            self.seen = self.seen.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            if self.seen > self.bytes_max {
                return Poll::Ready(Some(Err(self.too_long())));
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let deadline = self.deadline;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyRefused::TooSlow)))
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.arriving).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.arriving).body.size_hint()
    }
}

/// The largest body that a listener can be set to allow: whoever sends more is not one of ours.
const DISCARDED_BYTES_MAX: usize = 1024 * 1024;
/// A refusal must be quick, for a peer that does not send on too.
const DISCARD: Duration = Duration::from_secs(2);
