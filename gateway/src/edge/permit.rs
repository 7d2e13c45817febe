//! How much one client may do at a time and in a time.
//!
//! Three limits are one transaction: requests in flight, requests of this operation, requests in
//! all. A refused request costs nothing in any of them.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::gcra::Gcra;
use crate::config::{ClientConfig, LimitsConfig, Role};

/// A registered client with its limits.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    limits: LimitsConfig,
    in_flight: Arc<Semaphore>,
    requests: Gcra,
    operations: [Gcra; Operation::ALL.len()],
}

/// What limits tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// PIN translation.
    Translate,
    /// PIN verification.
    Verify,
    /// MAC generation and verification.
    Mac,
    /// Payments: new ones and questions about them.
    Payment,
    /// Everything on the admin listener that counts, and not the probes.
    Admin,
}

/// The right to run one request. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit {
    _in_flight: OwnedSemaphorePermit,
    /// What is left of the client's requests, for the answer's headers.
    pub rate_limit: RateLimit,
}

/// One limit in the terms of the RateLimit header fields draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The limit's name.
    pub policy: &'static str,
    /// Requests in a window.
    pub quota: u32,
    /// Seconds of a window.
    pub window_s: u32,
    /// Requests that could follow at once.
    pub remaining: u32,
    /// Seconds until everything is refilled.
    pub reset_s: u32,
}

/// A used-up limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit {} is used up, retry in {retry_after_s} s", .rate_limit.policy)]
pub struct Limited {
    /// Whole seconds, at least one, spread by a tenth so that refused clients come back apart.
    pub retry_after_s: u32,
    /// The limit.
    pub rate_limit: RateLimit,
}

/// Why a request may not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The certificate is valid and nobody registered its URI.
    #[error("the certificate's URI is not registered or not enabled")]
    Unknown,
    /// A limit is used up.
    #[error(transparent)]
    Limited(#[from] Limited),
}

impl Client {
    pub(super) fn new(config: &ClientConfig, limits: &LimitsConfig) -> Self {
        let in_flight = usize::try_from(config.concurrent).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            in_flight: Arc::new(Semaphore::new(in_flight.min(Semaphore::MAX_PERMITS))),
            requests: Gcra::new(config.requests_per_minute, MINUTE, config.burst),
            // A tenth of a minute's calls at once, as the default of requests has about.
            operations: Operation::ALL.map(|operation| {
                let count = operation.per_minute(limits);
                Gcra::new(count, MINUTE, (count / 10).max(10))
            }),
            config: config.clone(),
            limits: limits.clone(),
        }
    }

    /// Name in records and figures.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Roles from the registry.
    pub fn roles(&self) -> &[Role] {
        &self.config.roles
    }

    /// Whether the client holds a role.
    pub fn has_role(&self, role: Role) -> bool {
        self.config.roles.contains(&role)
    }

    /// Whether the client may use this public key: any, or one of its pins.
    pub(super) fn accepts_key(&self, spki_sha256: &str) -> bool {
        let pins = &self.config.spki_sha256;
        pins.is_empty() || pins.iter().any(|pin| pin == spki_sha256)
    }

    pub(super) fn is_made_from(&self, config: &ClientConfig, limits: &LimitsConfig) -> bool {
        self.config == *config && self.limits == *limits
    }

    /// Takes one request of an operation from every limit, or from none.
    ///
    /// # Errors
    /// The limit that is used up, and when to come back.
    pub fn admit(&self, operation: Operation) -> Result<Permit, Limited> {
        let now = Instant::now();
        let in_flight = Arc::clone(&self.in_flight).try_acquire_owned().map_err(|_| {
            let quota = self.config.concurrent;
            let window_s = 1;
            limited(RateLimit { policy: "concurrent", quota, window_s, remaining: 0, reset_s: 1 })
        })?;
        let of_operation = &self.operations[operation as usize];
        if let Err(wait) = of_operation.spend(now) {
            let quota = operation.per_minute(&self.limits);
            return Err(refused(operation.as_str(), quota, of_operation, wait, now));
        }
        let quota = self.config.requests_per_minute;
        match self.requests.spend(now) {
            Ok(remaining) => {
                let rate_limit =
                    RateLimit { remaining, ..facts("requests", quota, &self.requests, now) };
                Ok(Permit { _in_flight: in_flight, rate_limit })
            }
            Err(wait) => {
                of_operation.give_back();
                Err(refused("requests", quota, &self.requests, wait, now))
            }
        }
    }
}

impl Operation {
    const ALL: [Self; 5] = [Self::Translate, Self::Verify, Self::Mac, Self::Payment, Self::Admin];

    /// The limit's name in headers and figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Translate => "translate",
            Self::Verify => "verify",
            Self::Mac => "mac",
            Self::Payment => "payment",
            Self::Admin => "admin",
        }
    }

    fn per_minute(self, limits: &LimitsConfig) -> u32 {
        match self {
            Self::Translate => limits.translate_per_minute,
            Self::Verify => limits.verify_per_minute,
            Self::Mac => limits.mac_per_minute,
            Self::Payment => limits.payment_per_minute,
            Self::Admin => limits.admin_per_minute,
        }
    }
}

fn facts(policy: &'static str, quota: u32, limit: &Gcra, now: Instant) -> RateLimit {
    RateLimit { policy, quota, window_s: 60, remaining: 0, reset_s: seconds(limit.reset(now)) }
}

fn refused(
    policy: &'static str,
    quota: u32,
    limit: &Gcra,
    wait: Duration,
    now: Instant,
) -> Limited {
    // The reset time differs from call to call by nanoseconds: dice enough for a spread of a tenth.
    let percent = 90 + limit.reset(now).subsec_nanos() % 21;
    let retry_after_s = seconds(wait * percent / 100).max(1);
    count(policy);
    Limited { retry_after_s, rate_limit: facts(policy, quota, limit, now) }
}

fn limited(rate_limit: RateLimit) -> Limited {
    count(rate_limit.policy);
    Limited { retry_after_s: 1, rate_limit }
}

fn count(policy: &'static str) {
    metrics::counter!(crate::telemetry::metrics::RATE_LIMITED, "limit" => policy).increment(1);
}

/// Whole seconds, rounded up.
fn seconds(duration: Duration) -> u32 {
    let up = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(up).unwrap_or(u32::MAX)
}

const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn client(requests_per_minute: u32, burst: u32, concurrent: u32) -> Client {
        let config: ClientConfig = toml::from_str(&format!(
            "id = \"a\"\nuri = \"spiffe://tollgate.test/a\"\nroles = [\"client\"]\n\
             requests_per_minute = {requests_per_minute}\nburst = {burst}\nconcurrent = {concurrent}"
        ))
        .unwrap();
        Client::new(&config, &LimitsConfig { admin_per_minute: 60, ..LimitsConfig::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_in_flight_is_free_again_when_its_permit_drops() {
        let client = client(6_000, 200, 1);

        let first = client.admit(Operation::Mac).unwrap();
        let refused = client.admit(Operation::Mac).unwrap_err();
        drop(first);
        let third = client.admit(Operation::Mac);

        assert_eq!(refused.rate_limit.policy, "concurrent");
        assert!(third.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_burst_is_granted_and_the_next_request_is_told_when_to_return() {
        let client = client(6, 2, 64);

        let left: Vec<_> =
            (0..2).map(|_| client.admit(Operation::Mac).unwrap().rate_limit.remaining).collect();
        let refused = client.admit(Operation::Mac).unwrap_err();

        assert_eq!(left, [1, 0]);
        assert_eq!(refused.rate_limit.policy, "requests");
        assert_eq!(refused.rate_limit.quota, 6);
        assert!((9..=11).contains(&refused.retry_after_s), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_operation_used_up_leaves_the_others_alone() {
        let client = client(6_000, 200, 64);
        while client.admit(Operation::Admin).is_ok() {}

        let admin = client.admit(Operation::Admin).unwrap_err();
        let translate = client.admit(Operation::Translate);

        assert_eq!(admin.rate_limit.policy, "admin");
        assert!(translate.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_one_limit_refuses_costs_nothing_in_the_others() {
        let client = client(60, 1, 64);
        client.admit(Operation::Admin).unwrap();
        for _ in 0..100 {
            assert!(client.admit(Operation::Admin).is_err());
        }

        // Ten admin calls at once are allowed and one was spent: the refusals spent none, so
        // one a second goes through for a while.
        for _ in 0..9 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(client.admit(Operation::Admin).is_ok());
        }
    }
}
