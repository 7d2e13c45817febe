//! `[[biller]]`: where one biller's payments go and what may wait for it.

use std::path::PathBuf;
use std::time::Duration;

use hsm_adapter::vocabulary::{KeyLabel, PinBlockFormat};
use serde::Deserialize;

use super::{plain_name, within};
use crate::links::breaker::BreakerConfig;
use crate::links::health::HealthConfig;

/// One biller.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BillerConfig {
    /// Its name in requests: lower-case letters, digits, `-`; at most 32. No default.
    pub name: String,
    /// `https://host:port/`, all of the same ledger of references. 1 to 8, no default.
    pub urls: Vec<String>,
    /// The same, for when none of `urls` takes a payment. At most 8; default none.
    #[serde(default)]
    pub backup_urls: Vec<String>,
    /// Where it tells that it is well, below each URL. Default `healthz`.
    #[serde(default = "health_path")]
    pub health_path: String,
    /// PEM of the CA that its certificate must come from. No default.
    pub ca: PathBuf,
    /// Our client certificate towards it, PEM. No default.
    pub certificate: PathBuf,
    /// The key of that certificate, PEM. No default.
    pub key: PathBuf,
    /// The MAC key between us and it. No default.
    pub mac_key: KeyLabel,
    /// The zone PIN key under which it wants PIN blocks. Default none: it takes no PIN.
    #[serde(default)]
    pub pin_key: Option<KeyLabel>,
    /// The format in which it wants them; needed with `pin_key`.
    #[serde(default)]
    pub pin_format: Option<PinBlockFormat>,
    /// Whether a payment may wait in the queue when it is away. Default false.
    #[serde(default)]
    pub store: bool,
    /// Whether the PIN block may wait with it, for `queue.pin_life_s`. Default false; PCI PIN
    /// requirement 4 allows it for store-and-forward only.
    #[serde(default)]
    pub store_pin: bool,
    /// The biller recognises a reference that it has seen and answers as it did then. No default: where
    /// it is false, a payment whose answer is lost is never sent again; `enquiry` or `reversal` find
    /// out, else a person.
    pub deduplicates: bool,
    /// It answers `v1/enquiries`: what became of a reference. Default false.
    #[serde(default)]
    pub enquiry: bool,
    /// It takes `v1/reversals`, also of payments that never arrived. Default false.
    #[serde(default)]
    pub reversal: bool,
    /// To connect, TLS included. Milliseconds; default 3000.
    #[serde(default = "connect_ms_max")]
    pub connect_ms_max: u64,
    /// One attempt in all. Milliseconds; default 20000.
    #[serde(default = "attempt_ms_max")]
    pub attempt_ms_max: u64,
    /// Payments at once to one URL; over HTTP/1.1 each has a connection of its own. Default 64.
    #[serde(default = "connections_max")]
    pub connections_max: u32,
    /// Connections to one URL that are kept open although nobody needs them. Default 2.
    #[serde(default = "connections_idle_min")]
    pub connections_idle_min: usize,
    /// How long a connection stays open unused; less than the biller allows. Seconds; default 75.
    #[serde(default = "connection_idle_s")]
    pub connection_idle_s: u64,
    /// Payments that may wait for room at one URL. Default 256.
    #[serde(default = "waiting_max")]
    pub waiting_max: usize,
    /// How long a payment waits for room. Milliseconds; default 30.
    #[serde(default = "wait_ms_max")]
    pub wait_ms_max: u64,
    /// How long a URL that has come back takes to get its whole share, while another one is there.
    /// Seconds; default 30.
    #[serde(default = "ramp_s")]
    pub ramp_s: u64,
    /// `[biller.health]`.
    #[serde(default)]
    pub health: HealthConfig,
    /// `[biller.breaker]`.
    #[serde(default)]
    pub breaker: BreakerConfig,
}

impl BillerConfig {
    /// # Errors
    /// Names the biller and the key.
    pub fn check(&self, sending_max: Duration) -> Result<(), String> {
        self.check_keys(sending_max).map_err(|why| format!("biller {:?}: {why}", self.name))
    }

    fn check_keys(&self, sending_max: Duration) -> Result<(), String> {
        plain_name(&self.name)?;
        within("urls: how many", self.urls.len(), 1..=8)?;
        within("backup_urls: how many", self.backup_urls.len(), 0..=8)?;
        let all: Vec<_> = self.urls.iter().chain(&self.backup_urls).collect();
        for (at, url) in all.iter().enumerate() {
            if !url.starts_with("https://") || !url.ends_with('/') {
                return Err(format!("urls: {url:?} must start with https:// and end with /"));
            }
            if all[..at].contains(url) {
                return Err(format!("urls: {url:?} stands twice"));
            }
        }
        if self.health_path.is_empty() || self.health_path.starts_with('/') {
            return Err("health_path: is below the url, without a leading /".into());
        }
        within("connections_max", self.connections_max, 1..=4_096)?;
        within("connections_idle_min", self.connections_idle_min, 1..=64)?;
        within("connection_idle_s", self.connection_idle_s, 1..=3_600)?;
        within("waiting_max", self.waiting_max, 0..=65_536)?;
        within("wait_ms_max", self.wait_ms_max, 0..=5_000)?;
        within("ramp_s", self.ramp_s, 0..=3_600)?;
        if self.pin_key.is_some() != self.pin_format.is_some() {
            return Err("pin_key and pin_format come together".into());
        }
        if self.pin_format == Some(PinBlockFormat::Iso1) {
            return Err("pin_format: iso1 is an input format only (PCI PIN 3-3)".into());
        }
        if self.store_pin && !(self.store && self.pin_key.is_some()) {
            return Err("store_pin: needs store = true and a pin_key".into());
        }
        within("connect_ms_max", self.connect_ms_max, 10..=30_000)?;
        within("attempt_ms_max", self.attempt_ms_max, 10..=20_000)?;
        if Duration::from_millis(self.attempt_ms_max) > sending_max {
            return Err("attempt_ms_max: must be below 80 % of queue.lease_s".into());
        }
        self.health.check().map_err(|why| format!("health.{why}"))?;
        self.breaker.check().map_err(|why| format!("breaker.{why}"))
    }
}

fn health_path() -> String {
    "healthz".into()
}
fn connections_max() -> u32 {
    64
}
fn connections_idle_min() -> usize {
    2
}
fn connection_idle_s() -> u64 {
    75
}
fn waiting_max() -> usize {
    256
}
fn wait_ms_max() -> u64 {
    30
}
fn ramp_s() -> u64 {
    30
}
fn connect_ms_max() -> u64 {
    3_000
}
fn attempt_ms_max() -> u64 {
    20_000
}
