//! The whole configuration: one TOML file, one module a section.
//!
//! Every field states its unit and its default; every bound is checked here, once, and the error
//! names the key. Unknown keys are refused with their name and place. Environment variables
//! `TOLLGATE__SECTION__KEY` override single values, except those in lists (`[[biller]]`,
//! `[[client]]`, `[[hsm.link]]`) and in `[hsm.environment]`, whose names have upper-case letters. Secrets come as
//! file paths only.

mod audit;
mod biller;
mod client;
mod grants;
mod hsm;
mod limits;
mod listener;
mod officers;
mod queue;
mod sink;
mod store;
mod tls;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use compliance::StreamId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use audit::AuditConfig;
pub use biller::BillerConfig;
pub use client::{ClientConfig, Role};
pub use grants::Grants;
pub use hsm::{FurtherLinkConfig, HsmConfig, NamedLink, WaiverConfig};
pub use limits::LimitsConfig;
pub use listener::ListenerConfig;
pub use officers::OfficersConfig;
pub use queue::QueueConfig;
pub use sink::{SinkConfig, WhenFull};
pub use store::{Place, PostgresConfig, StoreConfig};
pub use tls::TlsConfig;

use crate::links::retry::RetryConfig;

/// `gateway.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What this gateway handles: `production` refuses what only demo and CI may do. No default.
    pub environment: Environment,
    /// The name of this process among its replicas. Default `gateway`.
    #[serde(default = "replica")]
    pub replica: String,
    /// `[data]`: the listener for clients.
    pub data: ListenerConfig,
    /// `[admin]`: the listener for operators, auditors, monitors and key officers.
    pub admin: ListenerConfig,
    /// `[tls.data]` and `[tls.admin]`: the files of each listener.
    pub tls: TlsPair,
    /// `[probe]`: the certificate with which `tollgate probe` asks the admin listener.
    #[serde(default)]
    pub probe: Option<ProbeConfig>,
    /// `[limits]`.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// `[hsm]`.
    pub hsm: HsmConfig,
    /// `[officers]`: changes of keys under dual control.
    #[serde(default)]
    pub officers: OfficersConfig,
    /// `[store]`.
    pub store: StoreConfig,
    /// `[queue]`.
    #[serde(default)]
    pub queue: QueueConfig,
    /// `[audit]`.
    pub audit: AuditConfig,
    /// `[retry]`: attempts at a biller while its client waits.
    #[serde(default)]
    pub retry: RetryConfig,
    /// The longest that one request may take. Milliseconds; default 25000.
    #[serde(default = "request_ms_max")]
    pub request_ms_max: u64,
    /// `[[biller]]`.
    #[serde(default)]
    pub biller: Vec<BillerConfig>,
    /// `[[client]]`: who may speak. A valid certificate without an entry has no rights.
    #[serde(default)]
    pub client: Vec<ClientConfig>,
}

/// Which rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Software tokens and made-up keys are welcome.
    Demo,
    /// They are not.
    Production,
}

/// The files of both listeners: each may have authorities of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPair {
    /// For clients.
    pub data: TlsConfig,
    /// For the other roles.
    pub admin: TlsConfig,
}

/// `[probe]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeConfig {
    /// PEM of the CA of the admin listener's certificate.
    pub ca: PathBuf,
    /// A client certificate with role monitor, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The host name in the admin listener's certificate. Default `localhost`.
    #[serde(default = "localhost")]
    pub server_name: String,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Names the file and the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let refused = |why: String| ConfigError::Refused { path: path.to_owned(), why };
        let environment = config::Environment::with_prefix("TOLLGATE")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true);
        let overridden =
            std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("TOLLGATE__"));
        let mut parsed: Self = if overridden {
            config::Config::builder()
                .add_source(config::File::from_str(&text, config::FileFormat::Toml))
                .add_source(environment)
                .build()
                .and_then(config::Config::try_deserialize)
                .map_err(|error| refused(error.to_string()))?
        } else {
            // Straight from the text: the error shows line and column.
            toml::from_str(&text).map_err(|error| refused(error.to_string()))?
        };
        parsed.hsm.is_for(parsed.environment);
        parsed.check().map_err(refused)?;
        Ok(parsed)
    }

    fn check(&self) -> Result<(), String> {
        self.data.check().map_err(|why| format!("data: {why}"))?;
        self.admin.check().map_err(|why| format!("admin: {why}"))?;
        self.tls.data.check().map_err(|why| format!("tls.data: {why}"))?;
        self.tls.admin.check().map_err(|why| format!("tls.admin: {why}"))?;
        self.limits.check()?;
        self.hsm.check()?;
        self.officers.check()?;
        self.store.check()?;
        self.queue.check()?;
        self.audit.check().map_err(|why| format!("audit.{why}"))?;
        if self.environment == Environment::Production {
            self.audit.check_production().map_err(|why| format!("audit.{why}"))?;
        }
        StreamId::new(&self.audit.deployment, &self.replica, Uuid::nil())
            .map_err(|why| format!("replica: {why}"))?;
        if self.replica == EVIDENCE {
            return Err(format!("replica: {EVIDENCE} is the name under which evidence is signed"));
        }
        self.retry.check().map_err(|why| format!("retry.{why}"))?;
        // A lease must outlast the attempts under it and the recording of what became of them.
        let sending_max = self.queue.sending_max();
        if self.retry.total_max() > sending_max {
            return Err("retry.total_ms_max: must be below 80 % of queue.lease_s".into());
        }
        within("request_ms_max", self.request_ms_max, 100..=30_000)?;
        let billers: Vec<&str> = self.biller.iter().map(|biller| biller.name.as_str()).collect();
        for (at, biller) in self.biller.iter().enumerate() {
            biller.check(sending_max)?;
            if billers[..at].contains(&biller.name.as_str()) {
                return Err(format!("biller {:?} stands twice", biller.name));
            }
        }
        for (at, client) in self.client.iter().enumerate() {
            client.check()?;
            let twin = |other: &ClientConfig| other.id == client.id || other.uri == client.uri;
            if self.client[..at].iter().any(twin) {
                return Err(format!("client {:?}: its id or uri stands twice", client.id));
            }
            let grants = client.grants.check(&billers);
            grants.map_err(|why| format!("client {:?}: {why}", client.id))?;
        }
        Ok(())
    }
}

/// Stands where a stream has its replica.
const EVIDENCE: &str = "evidence";

fn replica() -> String {
    "gateway".into()
}

fn request_ms_max() -> u64 {
    25_000
}

fn localhost() -> String {
    "localhost".into()
}

/// Refuses a value outside its bounds, in words that name the key.
fn within<T>(key: &str, value: T, bounds: RangeInclusive<T>) -> Result<(), String>
where
    T: PartialOrd + Display,
{
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(format!("{key} = {value}: must be from {} to {}", bounds.start(), bounds.end()))
}

/// Names that stand in metrics and in breakers' names.
fn plain_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=32).contains(&name.len()) || !name.bytes().all(plain) {
        return Err("name: use 1 to 32 of a-z, 0-9 and '-'".into());
    }
    Ok(())
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum ConfigError {
    #[error("reading the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration {} is refused: {why}", path.display())]
    Refused { path: PathBuf, why: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_replica_has_the_name_under_which_evidence_is_signed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        let reference = include_str!("../../gateway.toml");
        std::fs::write(&path, format!("replica = \"evidence\"\n{reference}")).unwrap();

        let refused = Config::load(&path).unwrap_err().to_string();

        assert!(refused.contains("replica: evidence is the name"), "{refused}");
    }
}
