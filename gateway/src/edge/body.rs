//! A request body that may neither be longer nor take longer than its listener allows.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
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
    inner: Incoming,
    bytes_max: u64,
    seen: u64,
    deadline: Instant,
    /// Made when the body first keeps us waiting: most arrive together with their head.
    timer: Option<Pin<Box<Sleep>>>,
}

impl BoundedBody {
    pub(super) fn new(inner: Incoming, bytes_max: u64, deadline: Instant) -> Self {
        Self { inner, bytes_max, seen: 0, deadline, timer: None }
    }

    fn too_long(&self) -> BodyRefused {
        BodyRefused::TooLong { bytes_max: self.bytes_max }
    }
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = BodyRefused;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyRefused>>> {
        // A declared length over the bound is refused before its first byte is read.
        if self.seen.saturating_add(self.inner.size_hint().lower()) > self.bytes_max {
            return Poll::Ready(Some(Err(self.too_long())));
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
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
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
