//! The billing link: one payment over HTTPS with client certificate, and what its outcome means.
//!
//! The outcome says exactly what may be done next: nothing was sent, it is unknown whether it was
//! taken, the backend asks for another try, or it answered. An answer without the backend's valid
//! MAC is no answer.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};
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

/// What the backend said, with its MAC still to be verified. Dropped without a verdict, it counts
/// neither way.
#[derive(Debug)]
pub struct Answered {
    /// The exact bytes.
    pub body: Bytes,
    /// `key label:hex`, as sent.
    pub mac: Option<String>,
    permit: Permit,
}

impl Answered {
    /// The answer is the backend's own: it is well.
    pub fn accept(self) {
        self.permit.record(Verdict::Healthy);
    }

    /// The answer is garbage or another's: the backend counts as failing.
    #[must_use]
    pub fn reject(self, why: &'static str) -> BackendError {
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

    /// Sends one payment once. `mac` is the header's value.
    ///
    /// # Errors
    /// See [`BackendError`]: its classes say what may be done next.
    pub async fn send(
        &self,
        body: Bytes,
        mac: String,
        limit: Instant,
    ) -> Result<Answered, BackendError> {
        let permit = self.breaker.admit().map_err(|_| BackendError::NotSent { why: RESTING })?;
        let started = Instant::now();
        let limit = limit.min(started + self.attempt_max);
        let outcome = match tokio::time::timeout_at(limit, self.exchange(body, mac)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(BackendError::SentUnknown { why: "time-out" }),
        };
        let class = outcome.as_ref().map_or_else(BackendError::class, |_| "answered");
        crate::telemetry::metrics::backend_request(&self.name, class, started.elapsed());
        match outcome {
            Ok((body, mac)) => Ok(Answered { body, mac, permit }),
            Err(error) => {
                permit.record(match error {
                    BackendError::Refused { .. } => Verdict::Healthy,
                    BackendError::NotSent { .. }
                    | BackendError::SentUnknown { .. }
                    | BackendError::TryAgain { .. } => Verdict::Failing,
                });
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

    async fn exchange(
        &self,
        body: Bytes,
        mac: String,
    ) -> Result<(Bytes, Option<String>), BackendError> {
        let request = self
            .client
            .post(self.payments.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(MAC_HEADER, mac)
            .body(body);
        let mut response = request.send().await.map_err(|error| {
            // A connection that never came about carried no byte of the request.
            if error.is_connect() || error.is_builder() {
                BackendError::NotSent { why: "connect" }
            } else {
                BackendError::SentUnknown { why: "connection lost" }
            }
        })?;
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.and_then(|value| value.parse().ok()).map(Duration::from_secs);
        match status {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return Err(BackendError::TryAgain { after: after.map(|it| it.min(AFTER_MAX)) });
            }
            _ if status.is_client_error() => {
                return Err(BackendError::Refused { status: status.as_u16() });
            }
            // Any other answer says nothing certain about the payment.
            _ => return Err(BackendError::SentUnknown { why: "unclear status" }),
        }
        let mac = response.headers().get(MAC_HEADER).and_then(|value| value.to_str().ok());
        let mac = mac.map(str::to_owned);
        let mut answer = Vec::new();
        loop {
            let chunk = response.chunk().await;
            match chunk.map_err(|_| BackendError::SentUnknown { why: "answer cut off" })? {
                None => return Ok((answer.into(), mac)),
                Some(chunk) if answer.len() + chunk.len() > ANSWER_BYTES_MAX => {
                    return Err(BackendError::SentUnknown { why: "answer too long" });
                }
                Some(chunk) => answer.extend_from_slice(&chunk),
            }
        }
    }
}

/// The reason of a send that the breaker did not let pass.
pub const RESTING: &str = "resting";

/// A longer wait than this is not waited for, whatever the other side says.
const AFTER_MAX: Duration = Duration::from_secs(300);

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
