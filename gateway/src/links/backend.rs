//! The billing link: one payment over HTTPS with client certificate, and what its outcome means.
//!
//! The outcome says exactly what may be done next: nothing was sent, it is unknown whether it was
//! taken, the backend asks for another try, or it answered. An answer without the backend's valid
//! MAC proves nothing, whatever its status: a proxy may have spoken after the backend took the
//! payment.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hsm_adapter::worker::chain;
use hyper::body::{Body, Frame, SizeHint};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Url};
use tokio::time::Instant;

use super::breaker::{Breaker, Permit, Verdict};
use super::retry::Retryable;

/// The header that carries a MAC, both ways.
pub const MAC_HEADER: &str = "tollgate-mac";

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// One backend as the gateway uses it.
#[derive(Debug)]
pub struct BackendLink {
    name: String,
    client: Client,
    payments: Url,
    breaker: Breaker,
    attempt_max: Duration,
}

/// What an operator configures for one backend's connections.
#[derive(Debug)]
pub struct BackendOptions {
    /// Its name in metrics.
    pub name: String,
    /// `https://host:port/`.
    pub url: Url,
    /// PEM of the CA that its certificate must come from.
    pub ca: Vec<u8>,
    /// PEM of our client certificate and its key.
    pub identity: Vec<u8>,
    /// To connect, TLS included.
    pub connect_max: Duration,
    /// One attempt in all.
    pub attempt_max: Duration,
}

/// What came back, with its MAC still to be verified. Dropped without a verdict, it is a call that
/// was abandoned.
pub struct Answered {
    /// HTTP.
    pub status: u16,
    /// The exact bytes.
    pub body: Bytes,
    /// `key label:hex`, as sent.
    pub mac: Option<String>,
    after: Option<Duration>,
    permit: Permit,
}

impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answered({}, {} bytes)", self.status, self.body.len())
    }
}

impl Answered {
    /// The answer is the backend's own word on the payment: it is well.
    pub fn accept(self) {
        self.permit.record(Verdict::Healthy);
    }

    /// The backend's own word that it took nothing, and wants to be asked again.
    #[must_use]
    pub fn try_again(self) -> BackendError {
        self.permit.record(Verdict::Failing);
        BackendError::TryAgain { after: self.after }
    }

    /// The backend's own word that the request as such is not acceptable.
    #[must_use]
    pub fn refuse(self) -> BackendError {
        self.permit.record(Verdict::Healthy);
        BackendError::Refused { status: self.status }
    }

    /// The answer is not the backend's, or not to this question: whatever its status says, a proxy
    /// may have spoken after the backend took the payment.
    #[must_use]
    pub fn reject(self, backend: &str, why: &'static str) -> BackendError {
        tracing::warn!(backend, status = self.status, why, "an answer that proves nothing");
        self.permit.record(Verdict::Failing);
        BackendError::SentUnknown { why }
    }
}

impl BackendLink {
    /// # Errors
    /// When certificates or URL cannot be used.
    pub fn new(options: BackendOptions, breaker: Breaker) -> Result<Self, String> {
        let explain = |what: &str, error: reqwest::Error| format!("{what}: {error:?}");
        let ca = reqwest::Certificate::from_pem_bundle(&options.ca)
            .map_err(|error| explain("the backend's CA", error))?;
        let identity = reqwest::Identity::from_pem(&options.identity)
            .map_err(|error| explain("our client certificate", error))?;
        let client = Client::builder()
            .tls_certs_only(ca)
            .identity(identity)
            .tls_version_min(reqwest::tls::Version::TLS_1_3)
            .https_only(true)
            .connect_timeout(options.connect_max)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()
            .map_err(|error| explain("the HTTP client", error))?;
        let payments = options.url.join("v1/payments").map_err(|error| format!("url: {error}"))?;
        let attempt_max = options.attempt_max;
        Ok(Self { name: options.name, client, payments, breaker, attempt_max })
    }

    /// Leave for one exchange. Ask for it first: what rests costs nothing else.
    ///
    /// # Errors
    /// [`BackendError::NotSent`] while the breaker rests.
    pub fn admit(&self) -> Result<Permit, BackendError> {
        self.breaker.admit().map_err(|_| BackendError::NotSent { why: RESTING })
    }

    /// Sends one payment once. `mac` is the header's value.
    ///
    /// # Errors
    /// See [`BackendError`]: its classes say what may be done next.
    pub async fn exchange(
        &self,
        permit: Permit,
        body: Bytes,
        mac: String,
        limit: Instant,
    ) -> Result<Answered, BackendError> {
        let started = Instant::now();
        let limit = limit.min(started + self.attempt_max);
        let begun = Arc::new(AtomicBool::new(false));
        let exchange = self.send_and_read(body, mac, Arc::clone(&begun));
        let (verdict, outcome) = match tokio::time::timeout_at(limit, exchange).await {
            Ok(outcome) => {
                (Verdict::Failing, outcome.map_err(|error| (error.why, Some(error.cause))))
            }
            Err(_) => (Verdict::TimedOut, Err(("time-out", None))),
        };
        let outcome = outcome.map_err(|(why, cause)| {
            let error = match begun.load(Ordering::Acquire) {
                true => BackendError::SentUnknown { why },
                false => BackendError::NotSent { why },
            };
            let cause = cause.as_ref().map(|cause| chain(cause)).unwrap_or_default();
            tracing::warn!(backend = self.name, class = error.class(), why, cause, "no answer");
            error
        });
        let class = outcome.as_ref().map_or_else(BackendError::class, |_| "answered");
        crate::telemetry::metrics::backend_request(&self.name, class, started.elapsed());
        match outcome {
            Ok(Read { status, after, body, mac }) => {
                Ok(Answered { status, body, mac, after, permit })
            }
            Err(error) => {
                permit.record(verdict);
                Err(error)
            }
        }
    }

    /// The breaker around this backend.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Its name in metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    async fn send_and_read(
        &self,
        body: Bytes,
        mac: String,
        begun: Arc<AtomicBool>,
    ) -> Result<Read, Broken> {
        let request = self
            .client
            .post(self.payments.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(MAC_HEADER, mac)
            .body(reqwest::Body::wrap(Watched { bytes: Some(body), begun }));
        let sent = request.send().await;
        let mut response = sent.map_err(|cause| Broken { why: "connection", cause })?;
        let status = response.status().as_u16();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let after = text(RETRY_AFTER.as_str()).and_then(|value| value.parse().ok());
        let after = after.map(|seconds| Duration::from_secs(seconds).min(AFTER_MAX));
        let mac = text(MAC_HEADER).map(str::to_owned);
        let mut answer = Vec::new();
        loop {
            let chunk = response.chunk().await;
            match chunk.map_err(|cause| Broken { why: "answer cut off", cause })? {
                None => return Ok(Read { status, after, body: answer.into(), mac }),
                // Too long to be ours: what is there already does not have the right MAC.
                Some(chunk) if answer.len() + chunk.len() > ANSWER_BYTES_MAX => {
                    return Ok(Read { status, after, body: answer.into(), mac: None });
                }
                Some(chunk) => answer.extend_from_slice(&chunk),
            }
        }
    }
}

/// An answer that was read to its end.
struct Read {
    status: u16,
    after: Option<Duration>,
    body: Bytes,
    mac: Option<String>,
}

/// A request without an answer.
struct Broken {
    why: &'static str,
    cause: reqwest::Error,
}

/// A request's body that says when it is taken: before that, not one byte of it has left.
struct Watched {
    bytes: Option<Bytes>,
    begun: Arc<AtomicBool>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.begun.store(true, Ordering::Release);
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// A longer wait than this is not waited for, whatever the other side says.
const AFTER_MAX: Duration = Duration::from_secs(300);

/// The reason of a send that the breaker did not let pass.
pub const RESTING: &str = "resting";

/// Why there is no answer, and so what may be done next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum BackendError {
    #[error("nothing was sent: {why}")]
    NotSent { why: &'static str },
    #[error("sent, and it is unknown whether it was taken: {why}")]
    SentUnknown { why: &'static str },
    #[error("the backend asks for another try")]
    TryAgain { after: Option<Duration> },
    #[error("the backend refused the request with status {status}")]
    Refused { status: u16 },
}

impl BackendError {
    /// The class, as metrics and the queue's history name it.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::NotSent { .. } => "not_sent",
            Self::SentUnknown { .. } => "sent_unknown",
            Self::TryAgain { .. } => "answered_retryable",
            Self::Refused { .. } => "answered_final",
        }
    }
}

impl Retryable for BackendError {
    /// A backend that deduplicates on our reference may be asked again after each of these.
    fn is_transient(&self) -> bool {
        match self {
            // An open breaker does not close within one request's patience.
            Self::NotSent { why } => *why != RESTING,
            Self::SentUnknown { .. } | Self::TryAgain { .. } => true,
            Self::Refused { .. } => false,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TryAgain { after } => *after,
            Self::NotSent { .. } | Self::SentUnknown { .. } | Self::Refused { .. } => None,
        }
    }
}
