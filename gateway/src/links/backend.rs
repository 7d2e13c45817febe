//! The billing link: one payment over HTTPS with client certificate, and what its outcome means.
//!
//! The outcome says exactly what may be done next: nothing was sent, it is unknown whether it was
//! taken, the backend asks for another try, or it answered. An answer without the backend's valid
//! MAC proves nothing, whatever its status: a proxy may have spoken after the backend took the
//! payment. All URLs of a biller lead to one ledger: it recognises a reference at each of them.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hsm_adapter::worker::chain;
use hyper::body::{Body, Frame, SizeHint};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Url};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::breaker::Verdict;
use super::classify::Outcome;
use super::health::Sick;
use super::pool::{CallError, Endpoint, Fault};

/// The header that carries a MAC, both ways.
pub const MAC_HEADER: &str = "tollgate-mac";

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// One URL of a biller as the gateway uses it.
#[derive(Debug)]
pub struct Backend {
    /// `biller.pln`, and `biller.pln.2` for its second URL.
    name: String,
    /// The biller, in metrics.
    biller: String,
    client: Client,
    url: Url,
    /// By [`Resource`].
    resources: [Url; 3],
    health: Url,
    idle_min: usize,
}

/// What an operator configures for a biller's connections.
#[derive(Debug)]
pub struct BackendOptions {
    /// The biller's name in metrics.
    pub biller: String,
    /// PEM of the CA that its certificate must come from.
    pub ca: Vec<u8>,
    /// PEM of our client certificate and its key.
    pub identity: Vec<u8>,
    /// To connect, TLS included.
    pub connect_max: Duration,
    /// Where it tells that it is well, below the URL.
    pub health_path: String,
    /// Connections that are kept open when nobody needs them.
    pub idle_min: usize,
    /// Connections that stay open after use at most.
    pub idle_max: usize,
    /// How long one stays open unused.
    pub idle_for: Duration,
}

/// What came back, with its MAC still to be verified.
pub struct Answered {
    /// HTTP.
    pub status: u16,
    /// The exact bytes.
    pub body: Bytes,
    /// `key label:hex`, as sent.
    pub mac: Option<String>,
    after: Option<Duration>,
}

impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answered({}, {} bytes)", self.status, self.body.len())
    }
}

impl Answered {
    /// The backend's own word that it took nothing, and wants to be asked again.
    #[must_use]
    pub fn try_again(&self) -> BackendError {
        BackendError::TryAgain { status: self.status, after: self.after }
    }

    /// The backend's own word that the request as such is not acceptable.
    #[must_use]
    pub fn refuse(&self) -> BackendError {
        BackendError::Refused { status: self.status }
    }

    /// The answer is not the backend's, or not to this question: whatever its status says, a proxy
    /// may have spoken after the backend took the payment.
    #[must_use]
    pub fn reject(&self, backend: &str, why: &'static str) -> BackendError {
        tracing::warn!(backend, status = self.status, why, "an answer that proves nothing");
        BackendError::SentUnknown { why }
    }
}

/// What is asked of a biller, each below its URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// `v1/payments`.
    Payments,
    /// `v1/enquiries`.
    Enquiries,
    /// `v1/reversals`.
    Reversals,
}

impl BackendOptions {
    /// The client for one URL: each has connections of its own.
    fn client(&self) -> Result<Client, String> {
        let explain = |what: &str, error: reqwest::Error| format!("{what}: {error:?}");
        let ca = reqwest::Certificate::from_pem_bundle(&self.ca)
            .map_err(|error| explain("the backend's CA", error))?;
        let identity = reqwest::Identity::from_pem(&self.identity)
            .map_err(|error| explain("our client certificate", error))?;
        Client::builder()
            .tls_certs_only(ca)
            .identity(identity)
            .tls_version_min(reqwest::tls::Version::TLS_1_3)
            .https_only(true)
            .connect_timeout(self.connect_max)
            .pool_max_idle_per_host(self.idle_max)
            .pool_idle_timeout(self.idle_for)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()
            .map_err(|error| explain("the HTTP client", error))
    }
}

impl Backend {
    /// `name` stands in metrics and for operators.
    ///
    /// # Errors
    /// When certificates or URL cannot be used.
    pub fn new(name: String, url: Url, options: &BackendOptions) -> Result<Self, String> {
        let client = options.client()?;
        let below = |path: &str| url.join(path).map_err(|error| format!("url: {error}"));
        let resources = [below("v1/payments")?, below("v1/enquiries")?, below("v1/reversals")?];
        let health = below(&options.health_path)?;
        let (biller, idle_min) = (options.biller.clone(), options.idle_min);
        Ok(Self { name, biller, client, url, resources, health, idle_min })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Sends one request once. `mac` is the header's value.
    ///
    /// # Errors
    /// See [`BackendError`]: its classes say what may be done next.
    pub async fn exchange(
        &self,
        resource: Resource,
        body: Bytes,
        mac: String,
        limit: Instant,
    ) -> Result<Answered, BackendError> {
        let started = Instant::now();
        let departure = Arc::new(Departure::default());
        let left = limit.saturating_duration_since(started);
        let exchange = self.send_and_read(resource, body, mac, left, Arc::clone(&departure));
        let outcome = match timeout_at(limit, exchange).await {
            Ok(outcome) => outcome.map_err(|error| (error.why, Some(error.cause))),
            Err(_) => Err((TIME_OUT, None)),
        };
        let outcome = outcome.map_err(|(why, cause)| {
            let error = match departure.forbid() {
                true => BackendError::NotSent { why },
                false => BackendError::SentUnknown { why },
            };
            let cause = cause.as_ref().map(|cause| chain(cause)).unwrap_or_default();
            let class = error.outcome().name();
            tracing::warn!(backend = self.name, class, why, cause, "no answer");
            error
        });
        let class = outcome.as_ref().map_or_else(|error| error.outcome().name(), |_| "answered");
        crate::telemetry::metrics::backend_request(&self.biller, class, started.elapsed());
        outcome
    }

    async fn send_and_read(
        &self,
        resource: Resource,
        body: Bytes,
        mac: String,
        left: Duration,
        departure: Arc<Departure>,
    ) -> Result<Answered, Broken> {
        let request = self
            .client
            .post(self.resources[resource as usize].clone())
            .header(CONTENT_TYPE, "application/json")
            .header(MAC_HEADER, mac)
            // How long its answer is of use to us.
            .header("request-timeout", format!("{:.3}", left.as_secs_f64()))
            .body(reqwest::Body::wrap(Watched { bytes: Some(body), departure }));
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
                None => return Ok(Answered { status, after, body: answer.into(), mac }),
                // Too long to be ours: what is there already does not have the right MAC.
                Some(chunk) if answer.len() + chunk.len() > ANSWER_BYTES_MAX => {
                    return Ok(Answered { status, after, body: answer.into(), mac: None });
                }
                Some(chunk) => answer.extend_from_slice(&chunk),
            }
        }
    }
}

impl Endpoint for Backend {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_ready(&self) -> bool {
        true
    }

    /// Asks for its health, once on each of `idle_min` connections, which stay open by that. Any
    /// answer below 500 is good: a biller without such a page is well when it says so.
    async fn heartbeat(&self, limit: Instant) -> Result<(), Sick> {
        let mut asked = JoinSet::new();
        for _ in 0..self.idle_min.max(1) {
            let request = self.client.get(self.health.clone());
            asked.spawn(async move {
                let answer = timeout_at(limit, request.send()).await;
                let answer = answer.map_err(|_| "no answer in time".to_owned())?;
                let mut answer = answer.map_err(|error| chain(&error))?;
                let status = answer.status();
                // Read to its end, so that the connection can be used again.
                let mut left = ANSWER_BYTES_MAX;
                while let Ok(Some(chunk)) = answer.chunk().await {
                    left = left.saturating_sub(chunk.len());
                    if left == 0 {
                        break;
                    }
                }
                if status.is_server_error() { Err(format!("status {status}")) } else { Ok(()) }
            });
        }
        let (mut good, mut why) = (false, String::new());
        while let Some(outcome) = asked.join_next().await {
            match outcome.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(()) => good = true,
                Err(error) => why = error,
            }
        }
        if good { Ok(()) } else { Err(Sick { wrong: false, why }) }
    }
}

/// A request without an answer.
struct Broken {
    why: &'static str,
    cause: reqwest::Error,
}

/// Whether a body has been taken, or may not be taken any more: one of the two, decided once.
#[derive(Debug, Default)]
struct Departure(AtomicU8);

impl Departure {
    const OPEN: u8 = 0;
    const TAKEN: u8 = 1;
    const FORBIDDEN: u8 = 2;

    fn change(&self, to: u8) -> bool {
        let changed = self.0.compare_exchange(Self::OPEN, to, Ordering::AcqRel, Ordering::Acquire);
        changed.map_or_else(|before| before == to, |_| true)
    }

    /// Whether it may be taken.
    fn take(&self) -> bool {
        self.change(Self::TAKEN)
    }

    /// Whether not one byte of it left, nor ever will.
    fn forbid(&self) -> bool {
        self.change(Self::FORBIDDEN)
    }
}

/// A request's body that is taken once, and never after its time.
struct Watched {
    bytes: Option<Bytes>,
    departure: Arc<Departure>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        if !self.departure.take() {
            return Poll::Ready(Some(Err(TooLate)));
        }
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// Nobody waits for the exchange any more.
#[derive(Debug, thiserror::Error)]
#[error("its time was over before it was sent")]
struct TooLate;

/// A longer wait than this is not waited for, whatever the other side says.
const AFTER_MAX: Duration = Duration::from_secs(300);

/// Reasons of an exchange that failed before it, or by the clock.
///
/// No URL of the biller takes calls now.
pub const RESTING: &str = "resting";
/// No HSM link made or verified the MAC.
pub const NO_HSM: &str = "no HSM";
/// As many exchanges run as may.
pub const BUSY: &str = "busy";
/// No time was left.
pub const TOO_LATE: &str = "too late";
const TIME_OUT: &str = "time-out";

/// 429 of HTTP.
const TOO_MANY: u16 = 429;

/// Why there is no answer, and so what may be done next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum BackendError {
    #[error("nothing was sent: {why}")]
    NotSent { why: &'static str },
    #[error("sent, and it is unknown whether it was taken: {why}")]
    SentUnknown { why: &'static str },
    #[error("the backend asks for another try with status {status}")]
    TryAgain { status: u16, after: Option<Duration> },
    #[error("the backend refused the request with status {status}")]
    Refused { status: u16 },
}

impl BackendError {
    /// What it says of the backend's health. An HSM that is away says nothing of it, and "too many"
    /// speaks of us or of a customer: one client's bills must not close a biller for all.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::NotSent { why } | Self::SentUnknown { why } => match *why {
                NO_HSM | BUSY | RESTING | TOO_LATE => Verdict::Ignored,
                TIME_OUT => Verdict::TimedOut,
                _ => Verdict::Failing,
            },
            Self::TryAgain { status: TOO_MANY, .. } => Verdict::Ignored,
            Self::TryAgain { .. } => Verdict::Failing,
            Self::Refused { .. } => Verdict::Healthy,
        }
    }
}

impl Fault for BackendError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::NotSent { .. } => Outcome::NotSent,
            Self::SentUnknown { .. } => Outcome::SentUnknown,
            Self::TryAgain { .. } => Outcome::AnsweredRetryable,
            Self::Refused { .. } => Outcome::AnsweredFinal,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TryAgain { after, .. } => *after,
            Self::NotSent { .. } | Self::SentUnknown { .. } | Self::Refused { .. } => None,
        }
    }
}

impl From<CallError<BackendError>> for BackendError {
    fn from(error: CallError<BackendError>) -> Self {
        match error {
            CallError::NoneReady { .. } => Self::NotSent { why: RESTING },
            CallError::Overloaded => Self::NotSent { why: BUSY },
            CallError::TooLate => Self::NotSent { why: TOO_LATE },
            CallError::Failed(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_taken_or_its_time_is_over_and_never_both() {
        let (taken, forbidden) = (Departure::default(), Departure::default());

        assert!(taken.take() && !taken.forbid() && taken.take());
        assert!(forbidden.forbid() && !forbidden.take() && forbidden.forbid());
    }

    #[test]
    fn too_many_is_asked_again_and_says_nothing_of_the_billers_health() {
        let after = Some(Duration::from_secs(1));
        let said = |status| BackendError::TryAgain { status, after };

        assert_eq!(said(429).verdict(), Verdict::Ignored);
        assert_eq!(said(503).verdict(), Verdict::Failing);
        for error in [said(429), said(503)] {
            assert_eq!(error.outcome(), Outcome::AnsweredRetryable);
            assert_eq!(error.retry_after(), after);
        }
    }
}
