//! An open loop: a request every so often, whether the earlier ones are answered or not.
//!
//! A closed loop asks less often while the gateway is slow, and so hides what an outage costs. The
//! connections are opened before the run, so that no handshake is measured with a request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use harness::load::{Connection, Latencies, Target};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// From one request to the next.
pub(crate) const EVERY: Duration = Duration::from_millis(5);

/// A load that runs. Dropping it ends it; what is under way is answered.
pub(crate) struct Paced {
    shared: Arc<Shared>,
    coming: JoinHandle<()>,
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) sent: Instant,
    pub(crate) ended: Instant,
    /// Status and reason of whatever is not a success.
    pub(crate) failure: Option<String>,
}

struct Shared {
    target: Target,
    kept: Mutex<Vec<Connection>>,
    samples: Mutex<Vec<Sample>>,
}

/// What a part of a run did.
pub(crate) struct Part(Vec<Sample>);

impl Paced {
    /// Opens the connections and begins. `request` makes the request with this number; a success is
    /// whatever it is answered with 200.
    pub(crate) async fn start<F>(target: Target, request: F) -> anyhow::Result<Self>
    where
        F: Fn(u64) -> Request<Full<Bytes>> + Send + 'static,
    {
        let mut kept = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            kept.push(target.open().await?);
        }
        let (kept, samples) = (Mutex::new(kept), Mutex::default());
        let shared = Arc::new(Shared { target, kept, samples });
        let coming = tokio::spawn(come(Arc::clone(&shared), request));
        Ok(Self { shared, coming })
    }

    /// The requests that were under way at any time of this, and are answered.
    pub(crate) fn during(&self, from: Instant, to: Instant) -> Part {
        let samples = lock(&self.shared.samples);
        let within = samples.iter().filter(|sample| sample.ended >= from && sample.sent < to);
        Part(within.cloned().collect())
    }

    /// The requests that were sent from then on and are answered.
    pub(crate) fn sent(&self, from: Instant, to: Instant) -> Part {
        let samples = lock(&self.shared.samples);
        let within = samples.iter().filter(|sample| sample.sent >= from && sample.sent < to);
        Part(within.cloned().collect())
    }

    /// Waits for the first success from `since` on that a whole second without a failure follows;
    /// `None` when there is none within `patience`.
    pub(crate) async fn recovery(&self, since: Instant, patience: Duration) -> Option<Duration> {
        loop {
            sleep(LOOK_EVERY).await;
            let found = recovered(&self.during(since, Instant::now()).0, since);
            if let Some(at) = found.filter(|at| at.elapsed() >= CALM) {
                return Some(at - since);
            }
            if since.elapsed() > patience {
                return None;
            }
        }
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.coming.abort();
    }
}

impl Part {
    pub(crate) fn requests(&self) -> usize {
        self.0.len()
    }

    /// How many were not answered with 200.
    pub(crate) fn failed(&self) -> usize {
        self.0.iter().filter(|sample| sample.failure.is_some()).count()
    }

    /// The failures by their reason, for the table.
    pub(crate) fn failures(&self) -> String {
        let mut counts = BTreeMap::<&str, usize>::new();
        for failure in self.0.iter().filter_map(|sample| sample.failure.as_deref()) {
            *counts.entry(failure).or_default() += 1;
        }
        let counts = counts.iter().map(|(failure, count)| format!("{count} x {failure}"));
        counts.collect::<Vec<_>>().join(", ")
    }

    /// How long the answers took, failures too.
    pub(crate) fn latencies(&self) -> Latencies {
        let mut latencies = Latencies::default();
        for sample in &self.0 {
            latencies.record(sample.ended - sample.sent);
        }
        latencies
    }
}

async fn come<F>(shared: Arc<Shared>, request: F)
where
    F: Fn(u64) -> Request<Full<Bytes>> + Send + 'static,
{
    let (begun, places) = (Instant::now(), Arc::new(Semaphore::new(IN_FLIGHT_MAX)));
    let mut due = begun;
    for number in 0.. {
        sleep_until(due).await;
        due += EVERY;
        // Without a place the load is no longer an open loop; that many wait only when the gateway
        // keeps no deadline, which the figures show.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (shared, request) = (Arc::clone(&shared), request(number));
        tokio::spawn(async move {
            let sample = shared.ask(request).await;
            lock(&shared.samples).push(sample);
            drop(place);
        });
    }
}

impl Shared {
    async fn ask(&self, request: Request<Full<Bytes>>) -> Sample {
        let kept = lock(&self.kept).pop().filter(Connection::is_open);
        let opened = match kept {
            Some(connection) => Ok(connection),
            None => self.target.open().await,
        };
        let sent = Instant::now();
        let failure = match opened {
            Err(error) => Some(error.to_string()),
            Ok(mut connection) => match timeout(ANSWER_MAX, connection.send(request)).await {
                Err(_) => Some("silence".into()),
                Ok(Err(error)) => Some(error.to_string()),
                Ok(Ok((status, body))) => {
                    lock(&self.kept).push(connection);
                    (status != StatusCode::OK).then(|| reason(status, &body))
                }
            },
        };
        Sample { sent, ended: Instant::now(), failure }
    }
}

/// `503 hsm-unavailable`.
fn reason(status: StatusCode, body: &Bytes) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let slug = body["type"].as_str().and_then(|text| text.strip_prefix("/problems/"));
    let what = slug.or(body["status"].as_str()).unwrap_or("without a reason");
    format!("{} {what}", status.as_u16())
}

/// When the first success ended that no failure followed within a second.
fn recovered(samples: &[Sample], since: Instant) -> Option<Instant> {
    let ends = |failed: bool| {
        let some = samples.iter().filter(move |sample| sample.failure.is_some() == failed);
        some.map(|sample| sample.ended).filter(move |ended| *ended >= since)
    };
    let mut failures: Vec<Instant> = ends(true).collect();
    failures.sort();
    let mut good: Vec<Instant> = ends(false).collect();
    good.sort();
    good.into_iter().find(|at| {
        let next = failures.partition_point(|failure| failure < at);
        failures.get(next).is_none_or(|failure| *failure - *at >= CALM)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds it can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As many as hang at once when each of 200 a second takes a second and a bit.
const CONNECTIONS: usize = 256;
const IN_FLIGHT_MAX: usize = 1024;
const ANSWER_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const CALM: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_counts_as_recovery_when_a_second_without_a_failure_follows() {
        let since = Instant::now();
        let at = |ms: u64, failed: bool| {
            let ended = since + Duration::from_millis(ms);
            Sample { sent: since, ended, failure: failed.then(|| "503".to_owned()) }
        };
        let flapping = [at(100, true), at(200, false), at(900, true), at(1_000, false)];
        let failing = [at(100, false), at(1_000, true)];
        let lasting = [at(100, false), at(1_100, true)];

        assert_eq!(recovered(&flapping, since), Some(since + Duration::from_secs(1)));
        assert_eq!(recovered(&failing, since), None);
        assert_eq!(recovered(&lasting, since), Some(since + Duration::from_millis(100)));
    }
}
