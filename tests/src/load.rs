//! A closed loop of requests over kept connections: each sends its next when the last is answered.
//!
//! Raw HTTP/1.1 over TLS, because the driver shares its two cores with what it measures. A broken
//! connection is counted, opened again after a pause, and never hidden by a retry.

mod connection; // one kept connection
mod latencies; // how long each took, in bounded space

pub use connection::{Connection, Target};
pub use latencies::Latencies;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// When a run ends. Requests under way are finished.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After this many requests over all connections.
    Count(u64),
    /// After this long.
    Elapsed(Duration),
}

/// What a run did.
#[derive(Debug, Clone)]
pub struct Report {
    /// Requests sent, broken ones too.
    pub requests: u64,
    /// Answers that were accepted.
    pub ok: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer: connection refused, cut, or silent for too long.
    pub broken: u64,
    /// Wall time of the run.
    pub elapsed: Duration,
    /// Accepted answers per second.
    pub per_s: f64,
    /// Half of the answers came within this.
    pub p50: Duration,
    /// 99 of 100 answers came within this.
    pub p99: Duration,
    /// The slowest answer.
    pub max: Duration,
}

/// Drives `connections` kept connections until the end.
///
/// `request` makes the request with a number from 0 that no other request of the run has; it must
/// be cheap or prepared, because it is part of the loop, though not of the measured time. `accept`
/// says whether an answer is the right one.
pub async fn drive<F, G>(
    target: &Target,
    connections: usize,
    until: Until,
    request: F,
    accept: G,
) -> Report
where
    F: Fn(u64) -> Request<Full<Bytes>> + Send + Sync + 'static,
    G: Fn(StatusCode, &Bytes) -> bool + Send + Sync + 'static,
{
    let begun = Instant::now();
    let run = Arc::new(Run { begun, until, next: AtomicU64::new(0), request, accept });
    let mut loops = JoinSet::new();
    for _ in 0..connections {
        loops.spawn(run.clone().one_loop(target.clone()));
    }
    // A loop that panics (in `request` or `accept`) takes the run with it.
    let tallies = loops.join_all().await;
    Report::of(tallies, begun.elapsed())
}

struct Run<F, G> {
    begun: Instant,
    until: Until,
    next: AtomicU64,
    request: F,
    accept: G,
}

#[derive(Default)]
struct Tally {
    ok: u64,
    broken: u64,
    statuses: BTreeMap<u16, u64>,
    latencies: Latencies,
}

impl<F, G> Run<F, G>
where
    F: Fn(u64) -> Request<Full<Bytes>>,
    G: Fn(StatusCode, &Bytes) -> bool,
{
    async fn one_loop(self: Arc<Self>, target: Target) -> Tally {
        let mut tally = Tally::default();
        let mut kept = None;
        while let Some(number) = self.take_number() {
            let request = (self.request)(number);
            let begun = Instant::now();
            match timeout(ANSWER_MAX, ask(&target, &mut kept, request)).await {
                Ok(Ok((status, body))) => {
                    tally.latencies.record(begun.elapsed());
                    *tally.statuses.entry(status.as_u16()).or_default() += 1;
                    tally.ok += u64::from((self.accept)(status, &body));
                }
                Ok(Err(_)) | Err(_) => {
                    tally.broken += 1;
                    kept = None;
                    sleep(REOPEN_AFTER).await;
                }
            }
        }
        tally
    }

    fn take_number(&self) -> Option<u64> {
        if let Until::Elapsed(limit) = self.until
            && self.begun.elapsed() >= limit
        {
            return None;
        }
        let number = self.next.fetch_add(1, Relaxed);
        match self.until {
            Until::Count(count) if number >= count => None,
            Until::Count(_) | Until::Elapsed(_) => Some(number),
        }
    }
}

/// Sends over the kept connection, or a new one; keeps it while the peer does.
async fn ask(
    target: &Target,
    kept: &mut Option<Connection>,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let mut connection = match kept.take().filter(Connection::is_open) {
        Some(connection) => connection,
        None => target.open().await?,
    };
    let answer = connection.send(request).await?;
    *kept = Some(connection);
    Ok(answer)
}

impl Report {
    fn of(tallies: Vec<Tally>, elapsed: Duration) -> Self {
        let mut sum = Tally::default();
        for tally in tallies {
            sum.ok += tally.ok;
            sum.broken += tally.broken;
            for (status, count) in tally.statuses {
                *sum.statuses.entry(status).or_default() += count;
            }
            sum.latencies.add(&tally.latencies);
        }
        Self {
            requests: sum.latencies.count() + sum.broken,
            ok: sum.ok,
            statuses: sum.statuses,
            broken: sum.broken,
            elapsed,
            per_s: sum.ok as f64 / elapsed.as_secs_f64().max(f64::EPSILON),
            p50: sum.latencies.quantile(0.50),
            p99: sum.latencies.quantile(0.99),
            max: sum.latencies.max(),
        }
    }
}

/// One line for a table or a log.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, ok, broken, per_s, p50, p99, max, .. } = self;
        write!(f, "{requests} requests, {ok} ok, {broken} broken, {per_s:.0}/s, ")?;
        write!(f, "p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}")
    }
}

const ANSWER_MAX: Duration = Duration::from_secs(30);
const REOPEN_AFTER: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
