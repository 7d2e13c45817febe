//! One connection from the end of its handshake until it closes.
//!
//! The protocol is the one that ALPN chose, so nothing is read before a deadline holds. Deadlines
//! are our own: hyper's header timer also runs between two requests, where the longer idle bound
//! is meant, and costs a timer for each request. Here one timer serves the whole connection and is
//! armed anew only when a deadline comes nearer.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Frame, Incoming, SizeHint},
    header,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{body::BoundedBody, peer::Peer};
use crate::config::ListenerConfig;

/// Serves requests until the peer leaves, a deadline passes, `cut` fires (at once) or `shutdown`
/// does (after the requests in flight, within the drain time).
///
/// # Errors
/// [`NotHttp`] when the peer sent a head that is none: hyper has answered 400 or 431 by itself, and
/// no route and no audit layer has seen anything.
pub(super) async fn serve(
    stream: TlsStream<TcpStream>,
    is_http2: bool,
    config: &ListenerConfig,
    router: &Router,
    peer: &Arc<Peer>,
    cut: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<(), NotHttp> {
    let activity = Arc::new(Activity::new(!is_http2));
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    let service = {
        let activity = Arc::clone(&activity);
        let (bytes_max, body_ms_max) = (config.body_bytes_max, config.body_ms_max);
        service_fn(move |request: Request<Incoming>| {
            let in_flight = InFlight::begin(&activity);
            let is_held_back = request.headers().contains_key(header::EXPECT);
            let mut leftover = None;
            let mut request = request.map(|body| {
                if body.is_end_stream() {
                    return Body::empty();
                }
                let deadline = Instant::now() + Duration::from_millis(body_ms_max);
                let (body, left) = BoundedBody::new(body, is_held_back, bytes_max, deadline);
                // HTTP/2 answers beside a stream that still comes in.
                leftover = Some(left).filter(|_| !is_http2);
                Body::new(body)
            });
            request.extensions_mut().insert(Arc::clone(peer));
            let answer = router.clone().call(request);
            async move {
                let answer = answer.await?;
                if let Some(leftover) = leftover {
                    leftover.discard().await;
                }
                Ok::<Response<_>, Infallible>(
                    answer.map(|body| Answer { body, _in_flight: in_flight }),
                )
            }
        })
    };
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(config.streams_max)
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_header_list_size(config.header_bytes_max)
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(64)
            .max_send_buf_size(64 * 1024)
            .serve_connection(io, service);
        drive(connection, config, &activity, cut, shutdown).await
    } else {
        let header_bytes_max = usize::try_from(config.header_bytes_max).unwrap_or(usize::MAX);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_header_size(header_bytes_max)
            .max_buf_size(HTTP1_BUFFER_BYTES)
            .half_close(false)
            .serve_connection(io, service);
        drive(connection, config, &activity, cut, shutdown).await
    }
}

/// The head of a request that is none.
#[derive(Debug)]
pub(super) struct NotHttp;

/// Polls a connection and keeps its deadlines.
async fn drive<C>(
    connection: C,
    config: &ListenerConfig,
    activity: &Activity,
    cut: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<(), NotHttp>
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let (mut connection, mut cut) = (pin!(connection), pin!(cut.cancelled()));
    let mut shutdown = pin!(shutdown.cancelled());
    let life_ends = activity.born + Duration::from_secs(config.connection_s_max);
    let mut drain_ends = None;
    let mut timer = pin!(tokio::time::sleep_until(life_ends));
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                // Other ends, such as a peer that hung up, are those of requests or of nothing.
                return Poll::Ready(
                    end.or_else(|e| if e.is_parse() { Err(NotHttp) } else { Ok(()) }),
                );
            }
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if drain_ends.is_none() && shutdown.as_mut().poll(cx).is_ready() {
                drain_ends = Some(Instant::now() + Duration::from_millis(config.drain_ms_max));
                connection.as_mut().graceful_shutdown();
                continue;
            }
            let (due, end) = match drain_ends {
                Some(at) => (at, End::Now),
                None => activity.due(config, life_ends),
            };
            if due < timer.deadline() {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if due > now {
                timer.as_mut().reset(due);
                continue;
            }
            match end {
                End::Now => return Poll::Ready(Ok(())),
                End::LookAgain => timer.as_mut().reset(now + LOOK_AGAIN),
                End::Gracefully => {
                    let drain_until = now + Duration::from_millis(config.drain_ms_max);
                    drain_ends = Some(drain_until);
                    timer.as_mut().reset(drain_until);
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    })
    .await
}

/// What happens when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The connection is dropped.
    Now,
    /// The peer is told to go; requests in flight finish.
    Gracefully,
    /// Nothing; the deadline is computed anew.
    LookAgain,
}

/// When the connection last did what. Times are milliseconds after its birth.
#[derive(Debug)]
struct Activity {
    born: Instant,
    /// Whether bytes between two requests are the head of the next one (HTTP/1.1). In HTTP/2 they
    /// may be any frame, and only requests keep a connection from being idle.
    bytes_are_heads: bool,
    in_flight: AtomicU32,
    idle_since_ms: AtomicU64,
    /// Zero when no head is half read.
    head_since_ms: AtomicU64,
}

impl Activity {
    fn new(bytes_are_heads: bool) -> Self {
        Self {
            born: Instant::now(),
            bytes_are_heads,
            in_flight: AtomicU32::new(0),
            idle_since_ms: AtomicU64::new(0),
            head_since_ms: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn bytes_came(&self) {
        if self.bytes_are_heads
            && self.in_flight.load(Ordering::Relaxed) == 0
            && self.head_since_ms.load(Ordering::Relaxed) == 0
        {
            self.head_since_ms.store(self.now_ms().max(1), Ordering::Relaxed);
        }
    }

    /// The next deadline and what it means.
    fn due(&self, config: &ListenerConfig, life_ends: Instant) -> (Instant, End) {
        let at = |since_ms: u64, ms_max: u64| self.born + Duration::from_millis(since_ms + ms_max);
        let head_since_ms = self.head_since_ms.load(Ordering::Relaxed);
        let nearer = if self.in_flight.load(Ordering::Relaxed) > 0 {
            (Instant::now() + LOOK_AGAIN, End::LookAgain)
        } else if head_since_ms > 0 {
            (at(head_since_ms, config.header_ms_max), End::Now)
        } else {
            let idle_since_ms = self.idle_since_ms.load(Ordering::Relaxed);
            (at(idle_since_ms, config.idle_ms_max), End::Gracefully)
        };
        if nearer.0 < life_ends { nearer } else { (life_ends, End::Gracefully) }
    }
}

/// Counts a request from its head to the last byte of its answer.
#[derive(Debug)]
struct InFlight(Arc<Activity>);

impl InFlight {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        activity.head_since_ms.store(0, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle_since_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body that keeps its request counted until it is sent.
struct Answer {
    body: Body,
    _in_flight: InFlight,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The decrypted stream, which notes when bytes come.
struct Watched {
    stream: TlsStream<TcpStream>,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.bytes_came();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A request in flight has deadlines of its own; the connection's are looked at again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Bounds the memory of a connection; heads have their own, lower bound.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;
