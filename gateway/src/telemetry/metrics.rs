//! Every metric in one table, and the recorder that `/metrics` renders.
//!
//! A name that is not in `TABLE` is not exported by us. The `metrics` macros hash name and labels
//! at each call; what happens for each request keeps its handles instead.

use std::{
    cell::RefCell,
    collections::HashMap,
    time::{Duration, SystemTime},
};

use metrics::{Counter, Histogram, Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size, in the buckets of `BUCKETS_S`.
    Histogram,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The full name.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Seconds or a plain count.
    pub unit: Unit,
    /// The label names.
    pub labels: &'static [&'static str],
    /// One sentence for the scrape.
    pub help: &'static str,
}

/// Declares a constant for each name, and the table of all.
macro_rules! table {
    ($($constant:ident = $name:literal $kind:ident $unit:ident [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = concat!("tollgate_", $name);)*
        /// Every metric of the gateway.
        pub const TABLE: &[Metric] = &[$(Metric {
            name: $constant,
            kind: Kind::$kind,
            unit: Unit::$unit,
            labels: &[$($label),*],
            help: $help,
        }),*];
    };
}

table! {
    REQUESTS = "requests_total" Counter Count ["operation", "outcome"] "Answers, by operation and outcome.";
    REQUEST_DURATION = "request_duration_seconds" Histogram Seconds ["operation"] "Time from the head of a request to its audited answer.";
    HSM_OPERATIONS = "hsm_operations_total" Counter Count ["operation", "mode", "outcome", "link"] "Operations asked of an HSM link.";
    HSM_OPERATION_DURATION = "hsm_operation_duration_seconds" Histogram Seconds ["operation", "link"] "Time of one operation on an HSM link.";
    HSM_LINK_UP = "hsm_link_up" Gauge Count ["link", "role"] "1 when the HSM link answers, else 0.";
    KEY_LINTS = "key_lints_total" Counter Count ["link", "outcome"] "Rounds of the key lint, by what they found.";
    KEYS_QUARANTINED = "keys_quarantined" Gauge Count ["link"] "Keys that the key lint took out of use in at least one worker.";
    PROBES_FAILED = "probes_failed" Gauge Count ["link"] "Calls that the token must refuse and does not, accepted risks left out.";
    HSM_SESSIONS = "hsm_sessions" Gauge Count ["link", "state"] "Token sessions of the link's workers: free, busy, or lost with a worker that is not ready.";
    HSM_WORKER_RESTARTS = "hsm_worker_restarts_total" Counter Count ["link"] "Workers started anew.";
    HSM_LATCHED = "hsm_latched" Gauge Count ["link"] "1 when a person must act before a worker can start: a refused login, or a refused configuration.";
    HEARTBEATS = "heartbeats_total" Counter Count ["name", "outcome"] "Heartbeats of the health monitor, good or failed.";
    HEARTBEAT_DURATION = "heartbeat_seconds" Gauge Seconds ["name"] "How long the last heartbeat took.";
    WRONG_ANSWERS = "wrong_answers_total" Counter Count ["name"] "Known questions that got a wrong answer.";
    LINK_LIMIT = "link_limit" Gauge Count ["name"] "Calls that may run at once at a member of a link.";
    LINK_RUNNING = "link_running" Gauge Count ["name"] "Calls that run at a member of a link.";
    LINK_WAITING = "link_waiting" Gauge Count ["name"] "Calls that wait for room at a member of a link.";
    LINK_REFUSED = "link_refused_total" Counter Count ["name"] "Calls refused for want of room at a member of a link.";
    BACKEND_CONNECTIONS = "backend_connections" Gauge Count ["backend", "role", "state"] "Exchanges that may run at once with a biller's URL: busy and free.";
    BACKEND_REQUESTS = "backend_requests_total" Counter Count ["backend", "outcome"] "Requests sent to a billing backend.";
    BACKEND_REQUEST_DURATION = "backend_request_duration_seconds" Histogram Seconds ["backend"] "Time of one request to a billing backend.";
    BREAKER_STATE = "breaker_state" Gauge Count ["name", "state"] "1 for the state that the breaker is in, 0 for the others.";
    BREAKER_CALLS = "breaker_calls_total" Counter Count ["name", "kind"] "Calls that a breaker saw, by what became of them.";
    BREAKER_FAILURE_RATE = "breaker_failure_rate" Gauge Count ["name"] "Share of failures among the breaker's last calls, 0 to 1; -1 with too few calls.";
    BREAKER_SLOW_RATE = "breaker_slow_rate" Gauge Count ["name"] "Share of slow answers among the breaker's last calls, 0 to 1; -1 with too few calls.";
    BREAKER_TRANSITIONS = "breaker_transitions_total" Counter Count ["name", "from", "to", "reason"] "Changes of a breaker's state, by their reason.";
    RETRY_ATTEMPTS = "retry_attempts_total" Counter Count ["link", "outcome"] "Attempts after the first, by what became of them.";
    QUEUE_DEPTH = "queue_depth" Gauge Count ["status", "priority"] "Stored payments, by status and priority.";
    QUEUE_OLDEST = "queue_oldest_seconds" Gauge Seconds [] "Age of the oldest payment that waits.";
    QUEUE_ENQUEUED = "queue_enqueued_total" Counter Count [] "Payments stored for later.";
    QUEUE_FORWARDED = "queue_forwarded_total" Counter Count ["outcome"] "Stored payments handed to their backend, by outcome.";
    QUEUE_HELD = "queue_held" Gauge Count ["reason"] "Stored payments that wait for a person, by reason.";
    QUEUE_RESCUED = "queue_rescued_total" Counter Count [] "Leases that ran out: a sender was lost.";
    QUEUE_STALE = "queue_stale_completions_total" Counter Count [] "Reports under a lease that was lost: kept as evidence, without effect.";
    QUEUE_CLAIM = "queue_claim_seconds" Histogram Seconds [] "Time of one claim of stored payments.";
    IDEMPOTENCY = "idempotency_total" Counter Count ["outcome"] "Payment requests by what their idempotency key stood for.";
    QUEUE_PAUSED = "queue_paused" Gauge Count ["biller"] "1 while operators keep the biller paused, else 0.";
    QUEUE_COMMIT = "queue_commit_seconds" Histogram Seconds [] "Time of one commit of the queue.";
    QUEUE_DEK_SPARES = "queue_dek_spares" Gauge Count [] "Data keys that are ready to take over.";
    QUEUE_DEK_AGE = "queue_dek_age_seconds" Gauge Seconds [] "For how long the active data key seals: an hour, more while the token is away.";
    QUEUE_ROLLED_BACK = "queue_rolled_back" Gauge Count [] "1 while the database is an old copy that no operator has acknowledged: nothing is forwarded.";
    PAYMENTS = "payments_total" Counter Count ["biller", "status"] "Payments that reached a status.";
    RATE_LIMITED = "rate_limited_total" Counter Count ["limit"] "Requests refused because a limit was used up.";
    BLOCKED = "blocked_total" Counter Count ["scope"] "Requests refused because a card, a key or a device is blocked.";
    AUDIT_RECORDS = "audit_records_total" Counter Count [] "Audit records that are durable.";
    AUDIT_LAG = "audit_lag_seconds" Gauge Seconds [] "Age of the oldest record of the last batch when it became durable.";
    AUDIT_SINK_BLOCKS = "audit_sink_blocks" Gauge Count ["sink"] "1 while new work is refused because the sink has fallen too far behind, else 0.";
    AUDIT_CHECKPOINT_SIGNED = "audit_checkpoint_signed" Gauge Count [] "1 when the last checkpoint of the audit log was signed by the HSM, else 0.";
    AUDIT_HEALTHY = "audit_healthy" Gauge Count [] "1 while audit records become durable, else 0: no answer leaves.";
    AUDIT_SINK_LAG = "audit_sink_lag_seconds" Gauge Seconds ["sink"] "Age of the oldest durable record that the sink has not confirmed: about confirm_s while all is well.";
    AUDIT_SINK_SPOOL = "audit_sink_spool_bytes" Gauge Bytes ["sink"] "Audit files that the sink still needs.";
    AUDIT_SINK_SENT = "audit_sink_sent_total" Counter Count ["sink"] "Records sent to the sink, repeats included.";
    AUDIT_SINK_FAILURES = "audit_sink_failures_total" Counter Count ["sink"] "Connections to the sink that failed or broke, and records that could not be sent.";
    CERTIFICATE_EXPIRY = "certificate_expiry_seconds" Gauge Seconds ["name"] "Seconds until a certificate ends or a revocation list is due.";
    TLS_REJECTS = "tls_rejects_total" Counter Count ["listener", "reason"] "Connections refused or cut, counted exactly.";
    TLS_RELOAD_FAILURES = "tls_reload_failures_total" Counter Count ["listener"] "TLS files that changed and could not be taken; the old ones stay in use.";
    CONNECTIONS_OPEN = "connections_open" Gauge Count ["listener"] "Connections that passed their handshake.";
    BUILD_INFO = "build_info" Gauge Count ["version"] "Always 1; the version is the label.";
}

/// The installed recorder.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the process's recorder and describes every metric. Call once, before the first
    /// request: handles taken earlier count nothing.
    ///
    /// # Errors
    /// A second call in one process.
    pub fn install() -> Result<Self, BuildError> {
        let handle = PrometheusBuilder::new().set_buckets(&BUCKETS_S)?.install_recorder()?;
        describe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self(handle))
    }

    /// The text that a scrape gets.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds histogram samples every five seconds, which would pile up otherwise. Ends with the
    /// token.
    pub async fn upkeep(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(UPKEEP_PERIOD);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.0.run_upkeep(),
            }
        }
    }
}

/// Counts one answer and its time.
pub fn record_request(operation: &'static str, outcome: &'static str, took: Duration) {
    type Handles = HashMap<(&'static str, &'static str), (Counter, Histogram)>;
    thread_local! {
        // Bounded by the closed lists of operations and outcomes.
        static HANDLES: RefCell<Handles> = RefCell::default();
    }
    HANDLES.with_borrow_mut(|handles| {
        let (answers, time) = handles.entry((operation, outcome)).or_insert_with(|| {
            let answers = counter!(REQUESTS, "operation" => operation, "outcome" => outcome);
            (answers, histogram!(REQUEST_DURATION, "operation" => operation))
        });
        answers.increment(1);
        time.record(took);
    });
}

/// Counts one operation on an HSM link and its time.
pub fn hsm_operation(
    operation: &'static str,
    link: &'static str,
    mode: &'static str,
    outcome: &'static str,
    took: Duration,
) {
    type Key = (&'static str, &'static str, &'static str, &'static str);
    thread_local! {
        // Bounded by the closed lists of operations, links, modes and outcomes.
        static HANDLES: RefCell<HashMap<Key, (Counter, Histogram)>> = RefCell::default();
    }
    HANDLES.with_borrow_mut(|handles| {
        let (count, time) = handles.entry((operation, link, mode, outcome)).or_insert_with(|| {
            let labels =
                [("operation", operation), ("mode", mode), ("outcome", outcome), ("link", link)];
            let time = histogram!(HSM_OPERATION_DURATION, "operation" => operation, "link" => link);
            (counter!(HSM_OPERATIONS, &labels), time)
        });
        count.increment(1);
        time.record(took);
    });
}

/// Counts one request to a billing backend and its time.
pub fn backend_request(backend: &str, outcome: &'static str, took: Duration) {
    counter!(BACKEND_REQUESTS, "backend" => backend.to_owned(), "outcome" => outcome).increment(1);
    histogram!(BACKEND_REQUEST_DURATION, "backend" => backend.to_owned()).record(took);
}

/// Counts one heartbeat and shows how long it took.
pub fn heartbeat(name: &str, good: bool, took: Duration) {
    let outcome = if good { "good" } else { "failed" };
    counter!(HEARTBEATS, "name" => name.to_owned(), "outcome" => outcome).increment(1);
    gauge!(HEARTBEAT_DURATION, "name" => name.to_owned()).set(took.as_secs_f64());
}

/// Counts a wrong answer to a known question.
pub fn wrong_answer(name: &str) {
    counter!(WRONG_ANSWERS, "name" => name.to_owned()).increment(1);
}

/// Shows how full a member of a link is.
pub fn show_member(name: &str, limit: u32, running: u32, waiting: usize, refused: u64) {
    gauge!(LINK_LIMIT, "name" => name.to_owned()).set(f64::from(limit));
    gauge!(LINK_RUNNING, "name" => name.to_owned()).set(f64::from(running));
    gauge!(LINK_WAITING, "name" => name.to_owned()).set(waiting as f64);
    counter!(LINK_REFUSED, "name" => name.to_owned()).absolute(refused);
}

/// Shows how many exchanges run at a biller's URL, or may still.
pub fn show_connections(backend: &str, role: &'static str, state: &'static str, count: u32) {
    let labels =
        [("backend", backend.to_owned()), ("role", role.to_owned()), ("state", state.to_owned())];
    gauge!(BACKEND_CONNECTIONS, &labels).set(f64::from(count));
}

/// Shows whether an HSM link takes orders.
pub fn show_hsm_link(link: &'static str, role: &'static str, up: bool) {
    gauge!(HSM_LINK_UP, "link" => link, "role" => role).set(if up { 1.0 } else { 0.0 });
}

/// Shows how many sessions of an HSM link are in a state.
pub fn show_sessions(link: &'static str, state: &'static str, count: u32) {
    gauge!(HSM_SESSIONS, "link" => link, "state" => state).set(f64::from(count));
}

/// Shows how often workers of an HSM link were started anew, and whether a person must act.
pub fn show_workers(link: &'static str, restarts: u64, latched: bool) {
    counter!(HSM_WORKER_RESTARTS, "link" => link).absolute(restarts);
    gauge!(HSM_LATCHED, "link" => link).set(if latched { 1.0 } else { 0.0 });
}

/// Shows whether operators keep a biller paused.
pub fn show_paused(biller: &str, paused: bool) {
    gauge!(QUEUE_PAUSED, "biller" => biller.to_owned()).set(if paused { 1.0 } else { 0.0 });
}

/// Counts a connection that was refused or cut.
pub fn count_tls_reject(listener: &'static str, reason: &'static str) {
    counter!(TLS_REJECTS, "listener" => listener, "reason" => reason).increment(1);
}

/// Counts a set of TLS files that could not be taken.
pub fn count_tls_reload_failure(listener: &'static str) {
    counter!(TLS_RELOAD_FAILURES, "listener" => listener).increment(1);
}

/// Counts a connection as open until the answer is dropped.
pub fn connection_opened(listener: &'static str) -> impl Drop {
    struct Open(metrics::Gauge);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.decrement(1);
        }
    }
    let open = gauge!(CONNECTIONS_OPEN, "listener" => listener);
    open.increment(1);
    Open(open)
}

/// Says how long each certificate or revocation list still holds. Of two under one name the sooner
/// counts.
pub fn set_expiries<'a>(expiries: impl Iterator<Item = (&'a str, i64)>) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut soonest: HashMap<&str, f64> = HashMap::new();
    for (name, expires_s) in expiries {
        let left = expires_s as f64 - now.as_secs_f64();
        let entry = soonest.entry(name).or_insert(left);
        *entry = entry.min(left);
    }
    for (name, left) in soonest {
        gauge!(CERTIFICATE_EXPIRY, "name" => name.to_owned()).set(left);
    }
}

fn describe() {
    for Metric { name, kind, unit, help, .. } in TABLE {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *unit, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *unit, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, *unit, *help),
        }
    }
}

/// Upper bounds in seconds: a MAC takes a tenth of a millisecond, a billing backend half a minute.
const BUCKETS_S: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_once_and_counters_say_total() {
        let mut names: Vec<_> = TABLE.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();

        assert_eq!(names.len(), TABLE.len());
        for Metric { name, kind, .. } in TABLE {
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        }
    }

    #[test]
    fn a_scrape_shows_help_labels_and_buckets() {
        let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS_S).unwrap().build_recorder();
        let handle = recorder.handle();

        metrics::with_local_recorder(&recorder, || {
            describe();
            record_request("mac.generate", "success", Duration::from_micros(300));
            count_tls_reject("data", "not-tls");
            drop(connection_opened("data"));
        });
        let text = handle.render();

        for line in [
            "# HELP tollgate_requests_total Answers, by operation and outcome.",
            r#"tollgate_requests_total{operation="mac.generate",outcome="success"} 1"#,
            r#"tollgate_request_duration_seconds_bucket{operation="mac.generate",le="0.0005"} 1"#,
            r#"tollgate_tls_rejects_total{listener="data",reason="not-tls"} 1"#,
            r#"tollgate_connections_open{listener="data"} 0"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
