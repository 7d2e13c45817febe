//! What one source address may do before anybody looked at a certificate: so many connections open,
//! so many new ones a second, so many failed handshakes a minute. IPv4 counts by address, IPv6 by
//! /48, because one customer owns that many.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::gcra::Gcra;
use crate::config::LimitsConfig;

/// The table of addresses seen lately, at most `SOURCES_MAX` of them.
#[derive(Debug)]
pub(super) struct Sources {
    limits: LimitsConfig,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    sources: HashMap<IpAddr, Source>,
    /// When the table was last swept while full: once a second at most, or a flood of addresses
    /// would make every accept pay for a sweep.
    swept: Instant,
}

#[derive(Debug)]
struct Source {
    open: u32,
    connects: Gcra,
    failures: Gcra,
    blocked_until: Option<Instant>,
}

/// One open connection of an address, counted until dropped.
#[derive(Debug)]
pub(super) struct Seat {
    sources: Arc<Sources>,
    key: Option<IpAddr>,
}

impl Sources {
    pub(super) fn new(limits: &LimitsConfig) -> Arc<Self> {
        let table = Table { sources: HashMap::new(), swept: Instant::now() };
        Arc::new(Self { limits: limits.clone(), table: Mutex::new(table) })
    }

    /// Lets one more connection of an address in.
    ///
    /// # Errors
    /// The limit that refuses it, as audit and metrics write it.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Seat, &'static str> {
        let address = address.to_canonical();
        if self.limits.exempt_addresses.iter().any(|exempt| exempt.to_canonical() == address) {
            return Ok(Seat { sources: Arc::clone(self), key: None });
        }
        let now = Instant::now();
        let mut table = self.lock();
        let key = table.room_for(key(address), now);
        let source = table.sources.entry(key).or_insert_with(|| Source::new(&self.limits));
        if source.blocked_until.is_some_and(|until| now < until) {
            return Err("address-blocked");
        }
        if source.open >= self.limits.connections_per_address {
            return Err("address-connections");
        }
        if source.connects.spend(now).is_err() {
            return Err("address-connect-rate");
        }
        source.open += 1;
        Ok(Seat { sources: Arc::clone(self), key: Some(key) })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Counters stay usable after a panic of a holder; at worst one seat is counted too many.
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Seat {
    /// Counts a failed handshake of this connection. One too many blocks the address for a while.
    pub(super) fn handshake_failed(&self) {
        let Some(key) = self.key else { return };
        let now = Instant::now();
        let mut table = self.sources.lock();
        if let Some(source) = table.sources.get_mut(&key)
            && source.failures.spend(now).is_err()
        {
            let block = Duration::from_secs(self.sources.limits.address_block_s);
            source.blocked_until = Some(now + block);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        if let Some(source) = self.sources.lock().sources.get_mut(&key) {
            source.open = source.open.saturating_sub(1);
        }
    }
}

impl Table {
    /// The key to count under: the address's own, or when the table is full of active addresses
    /// the one that all newcomers share.
    fn room_for(&mut self, key: IpAddr, now: Instant) -> IpAddr {
        if self.sources.len() < SOURCES_MAX || self.sources.contains_key(&key) {
            return key;
        }
        if now.saturating_duration_since(self.swept) >= SWEEP_PERIOD {
            self.swept = now;
            self.sources.retain(|_, source| !source.is_rested(now));
        }
        if self.sources.len() < SOURCES_MAX { key } else { NEWCOMERS }
    }
}

impl Source {
    fn new(limits: &LimitsConfig) -> Self {
        let failures = limits.failed_handshakes_per_minute;
        Self {
            open: 0,
            connects: Gcra::new(
                limits.connects_per_s,
                Duration::from_secs(1),
                limits.connects_burst,
            ),
            failures: Gcra::new(failures, Duration::from_secs(60), failures),
            blocked_until: None,
        }
    }

    /// Whether forgetting this address would change nothing.
    fn is_rested(&self, now: Instant) -> bool {
        self.open == 0
            && self.connects.is_rested(now)
            && self.failures.is_rested(now)
            && self.blocked_until.is_none_or(|until| until <= now)
    }
}

fn key(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
    }
}

const SOURCES_MAX: usize = 65_536;
const SWEEP_PERIOD: Duration = Duration::from_secs(1);
/// The unspecified address never connects, so its entry is free for this.
const NEWCOMERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn sources() -> Arc<Sources> {
        Sources::new(&LimitsConfig {
            connections_per_address: 2,
            connects_burst: 3,
            failed_handshakes_per_minute: 2,
            exempt_addresses: vec!["192.0.2.9".parse().unwrap()],
            ..LimitsConfig::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_so_many_connections_open_and_no_more() {
        let sources = sources();

        let first = sources.admit(PEER).unwrap();
        let _second = sources.admit(PEER).unwrap();
        let third = sources.admit(PEER);
        drop(first);
        let again = sources.admit(PEER);

        assert_eq!(third.unwrap_err(), "address-connections");
        assert!(again.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_connects_so_fast_and_no_faster() {
        let sources = sources();
        for _ in 0..3 {
            drop(sources.admit(PEER).unwrap());
        }

        let fourth = sources.admit(PEER);
        tokio::time::advance(Duration::from_millis(50)).await;
        let later = sources.admit(PEER);

        assert_eq!(fourth.unwrap_err(), "address-connect-rate");
        assert!(later.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn failed_handshakes_block_the_address_for_a_while() {
        let sources = sources();
        let seat = sources.admit(PEER).unwrap();
        for _ in 0..3 {
            seat.handshake_failed();
        }
        drop(seat);

        let blocked = sources.admit(PEER);
        tokio::time::advance(Duration::from_secs(900)).await;
        let later = sources.admit(PEER);

        assert_eq!(blocked.unwrap_err(), "address-blocked");
        assert!(later.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exempt_address_is_never_counted() {
        let sources = sources();
        let balancer = "::ffff:192.0.2.9".parse().unwrap();

        let seats: Vec<_> = (0..100).map(|_| sources.admit(balancer)).collect();

        assert!(seats.iter().all(Result::is_ok));
        assert!(sources.lock().sources.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn neighbours_of_one_ipv6_customer_share_a_count() {
        let sources = sources();
        let _a = sources.admit("2001:db8:1:2::1".parse().unwrap()).unwrap();
        let _b = sources.admit("2001:db8:1:3::1".parse().unwrap()).unwrap();

        let same = sources.admit("2001:db8:1:4::1".parse().unwrap());
        let other = sources.admit("2001:db8:2:2::1".parse().unwrap());

        assert!(same.is_err());
        assert!(other.is_ok());
    }
}
