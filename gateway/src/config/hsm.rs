//! `[hsm]`: the links to tokens and the worker processes that hold them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hsm_adapter::client::LinkOptions;
use hsm_adapter::error::VendorCode;
use hsm_adapter::vocabulary::KeyLabel;
use hsm_adapter::worker::{Probes, probe_names};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::{Environment, plain_name, within};
use crate::links::Role;
use crate::links::breaker::BreakerConfig;
use crate::links::health::HealthConfig;
use crate::links::retry::RetryConfig;

/// The `[hsm]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HsmConfig {
    /// The worker program; default `tollgate-hsm` beside this program.
    #[serde(default)]
    pub worker: Option<PathBuf>,
    /// The PKCS#11 module, by absolute path. No default.
    pub module: PathBuf,
    /// The module's SHA-256, hex; no worker loads a module with another. Default none: any is loaded.
    #[serde(default)]
    pub module_sha256: Option<String>,
    /// The token's label. No default.
    pub token_label: String,
    /// A file that holds the HSM PIN, mode 0600; only the worker reads it. No default.
    pub pin_file: PathBuf,
    /// The key register, `keys.toml`. No default.
    pub keys: PathBuf,
    /// What the return codes of the token's vendor mean, as `0x80000001=transient`. Default: each
    /// means restart.
    #[serde(default)]
    pub vendor_codes: Vec<VendorCode>,
    /// All of the worker's environment, such as SOFTHSM2_CONF. Default empty.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Worker processes. Default 2, so that losing one is invisible.
    #[serde(default = "workers")]
    pub workers: usize,
    /// Token sessions in each worker, a thread each. Default 1: right for SoftHSM; a network HSM
    /// wants as many as hide its round trip.
    #[serde(default = "sessions")]
    pub sessions: u16,
    /// Orders in flight at one worker. Default 256.
    #[serde(default = "in_flight_max")]
    pub in_flight_max: usize,
    /// One attempt at one worker. Milliseconds; default 2000.
    #[serde(default = "attempt_ms_max")]
    pub attempt_ms_max: u64,
    /// From a worker's start to its readiness; a start that hangs is found out by it. Milliseconds; default 5000.
    #[serde(default = "start_ms_max")]
    pub start_ms_max: u64,
    /// Orders more than 250 ms past their deadline, without a reply, at one worker at once before it
    /// is killed. Default 2.
    #[serde(default = "lost_max")]
    pub lost_max: usize,
    /// The longest that one order may stay lost before its worker is killed. Milliseconds;
    /// default 5000.
    #[serde(default = "lost_ms_max")]
    pub lost_ms_max: u64,
    /// The first wait before a lost worker is started anew; each further one doubles. Milliseconds;
    /// default 100.
    #[serde(default = "restart_ms")]
    pub restart_ms: u64,
    /// The longest such wait: with it a token that is back serves again within five seconds.
    /// Milliseconds; default 2000.
    #[serde(default = "restart_ms_max")]
    pub restart_ms_max: u64,
    /// Orders that may wait for room at one link. Default 1024.
    #[serde(default = "waiting_max")]
    pub waiting_max: usize,
    /// How long an order of a client waits for room; then `overloaded`. Milliseconds; default 30.
    #[serde(default = "wait_ms_max")]
    pub wait_ms_max: u64,
    /// How much longer than at its best an order may take before fewer are let run at once.
    /// Milliseconds; default 100.
    #[serde(default = "queue_ms_max")]
    pub queue_ms_max: u64,
    /// How long a link that has come back takes to get its whole share, while another one is there.
    /// Seconds; default 30.
    #[serde(default = "ramp_s")]
    pub ramp_s: u64,
    /// The label of the key that wraps the queue's data keys. Default `queue.kek`.
    #[serde(default = "queue_kek")]
    pub queue_kek: KeyLabel,
    /// How often each worker reads its keys back and tries what must fail. Seconds; default 60.
    #[serde(default = "lint_s")]
    pub lint_s: u64,
    /// Probes that the token may fail: what it does although it must not. Default none; in production
    /// no worker starts on a token that fails another.
    #[serde(default)]
    pub accepted_probes: Vec<String>,
    /// `[hsm.retry]`.
    #[serde(default)]
    pub retry: RetryConfig,
    /// `[hsm.breaker]`.
    #[serde(default)]
    pub breaker: BreakerConfig,
    /// `[hsm.health]`.
    #[serde(default)]
    pub health: HealthConfig,
    /// `[[hsm.link]]`: further tokens with the same keys. Default none.
    #[serde(default)]
    pub link: Vec<FurtherLinkConfig>,
    /// Why clear PINs may be in worker memory although this is production. Default none: then a key
    /// register with a PIN key of mode `in_worker` is refused there.
    #[serde(default)]
    pub in_worker_waiver: Option<WaiverConfig>,
    /// Whether this is production: of the whole configuration, not of this section.
    #[serde(skip)]
    production: bool,
}

/// A further token. What is absent is as in `[hsm]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FurtherLinkConfig {
    /// Its name in metrics and records; the first link is `primary`. No default.
    pub name: String,
    /// Whether it shares the work, or takes it over. Default `backup`.
    #[serde(default = "backup")]
    pub role: Role,
    /// The PKCS#11 module, by absolute path.
    #[serde(default)]
    pub module: Option<PathBuf>,
    /// The module's SHA-256, hex. With a module of its own: default none, any is loaded.
    #[serde(default)]
    pub module_sha256: Option<String>,
    /// The token's label.
    #[serde(default)]
    pub token_label: Option<String>,
    /// A file that holds the HSM PIN, mode 0600.
    #[serde(default)]
    pub pin_file: Option<PathBuf>,
    /// The key register of this token: each has its own. No default.
    pub keys: PathBuf,
    /// All of the workers' environment.
    #[serde(default)]
    pub environment: Option<BTreeMap<String, String>>,
    /// What the return codes of the token's vendor mean.
    #[serde(default)]
    pub vendor_codes: Option<Vec<VendorCode>>,
}

/// One link with what its workers need.
#[derive(Debug)]
pub struct NamedLink {
    /// The first is a primary.
    pub role: Role,
    /// For the adapter. The first one's name is `primary`.
    pub options: LinkOptions,
}

impl FurtherLinkConfig {
    fn check(&self) -> Result<(), String> {
        plain_name(&self.name)?;
        if RESERVED.contains(&self.name.as_str()) {
            return Err(format!("name: {} is the gateway's own word", self.name));
        }
        if self.module.as_ref().is_some_and(|module| !module.is_absolute()) {
            return Err("module: must be an absolute path".into());
        }
        if !self.module_sha256.iter().all(is_digest) {
            return Err("module_sha256: write the 64 hex digits of sha256sum".into());
        }
        Ok(())
    }

    fn options(&self, first: &LinkOptions) -> LinkOptions {
        let mut options = first.clone();
        options.name = self.name.clone();
        options.keys = self.keys.clone();
        if let Some(module) = &self.module {
            (options.module, options.module_sha256) = (module.clone(), None);
        }
        let LinkOptions { token_label, pin_file, environment, vendor_codes, .. } = &mut options;
        replace(token_label, &self.token_label);
        replace(pin_file, &self.pin_file);
        replace(environment, &self.environment);
        replace(vendor_codes, &self.vendor_codes);
        if self.module_sha256.is_some() {
            options.module_sha256.clone_from(&self.module_sha256);
        }
        options
    }
}

fn replace<T: Clone>(value: &mut T, by: &Option<T>) {
    if let Some(by) = by {
        value.clone_from(by);
    }
}

/// Names of links that mean something else.
const RESERVED: [&str; 2] = [FIRST_LINK, "none"];
const FIRST_LINK: &str = "primary";

/// Further links.
const FURTHER_LINKS_MAX: usize = 7;

/// Who answers for it that a rule does not hold, and how long. After it the gateway does not start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaiverConfig {
    /// Who allows it. No default.
    pub name: String,
    /// Why. No default.
    pub reason: String,
    /// The last day, UTC: `2027-01-31`. No default.
    pub until: String,
}

impl WaiverConfig {
    fn check(&self) -> Result<(), String> {
        for (key, text) in [("name", &self.name), ("reason", &self.reason)] {
            if text.trim().is_empty() {
                return Err(format!("{key} is empty: say who allows it, and why"));
            }
        }
        self.last_day().map(drop)
    }

    fn last_day(&self) -> Result<Date, String> {
        let written = self.until.parse();
        written.map_err(|_| format!("until = {:?}: write a day as 2027-01-31", self.until))
    }

    /// Whether it still holds today. Asked at the start and by `tollgate check`, not when clients are
    /// read again: a running gateway must be able to take a client's rights.
    fn in_time(&self) -> Result<(), String> {
        let until = self.last_day()?;
        if until < Timestamp::now().to_zoned(TimeZone::UTC).date() {
            return Err(format!("until = {until}: is in the past; it must be allowed anew"));
        }
        Ok(())
    }
}

impl HsmConfig {
    /// Which rules hold for the workers.
    pub(super) fn is_for(&mut self, environment: Environment) {
        self.production = environment == Environment::Production;
    }

    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<(), String> {
        if !self.module.is_absolute() {
            return Err("hsm.module: must be an absolute path".into());
        }
        within("hsm.workers", self.workers, 1..=16)?;
        within("hsm.sessions", self.sessions, 1..=256)?;
        within("hsm.in_flight_max", self.in_flight_max, 1..=65_536)?;
        within("hsm.attempt_ms_max", self.attempt_ms_max, 10..=30_000)?;
        within("hsm.start_ms_max", self.start_ms_max, 1_000..=120_000)?;
        within("hsm.lost_max", self.lost_max, 1..=1_000)?;
        within("hsm.lost_ms_max", self.lost_ms_max, 100..=60_000)?;
        within("hsm.restart_ms", self.restart_ms, 10..=60_000)?;
        within("hsm.restart_ms_max", self.restart_ms_max, self.restart_ms..=300_000)?;
        within("hsm.waiting_max", self.waiting_max, 0..=65_536)?;
        within("hsm.wait_ms_max", self.wait_ms_max, 0..=5_000)?;
        within("hsm.queue_ms_max", self.queue_ms_max, 1..=10_000)?;
        within("hsm.ramp_s", self.ramp_s, 0..=3_600)?;
        within("hsm.lint_s", self.lint_s, 1..=3_600)?;
        within("hsm.link: how many", self.link.len(), 0..=FURTHER_LINKS_MAX)?;
        for (at, link) in self.link.iter().enumerate() {
            link.check().map_err(|why| format!("hsm.link {:?}: {why}", link.name))?;
            let before = &self.link[..at];
            if before.iter().any(|other| other.name == link.name) {
                return Err(format!("hsm.link {:?}: stands twice", link.name));
            }
            let registers = before.iter().map(|other| &other.keys).chain([&self.keys]);
            if registers.into_iter().any(|keys| *keys == link.keys) {
                return Err(format!("hsm.link {:?}: keys: each token has its own", link.name));
            }
            let token = self.token_of(link);
            let others = before.iter().map(|other| self.token_of(other));
            let first = (&self.module, &self.token_label, &self.environment);
            if others.chain([first]).any(|other| other == token) {
                let why = "another link has this token_label with this module and environment";
                return Err(format!("hsm.link {:?}: {why}: it is the same token", link.name));
            }
        }
        if !self.module_sha256.iter().all(is_digest) {
            return Err("hsm.module_sha256: write the 64 hex digits of sha256sum".into());
        }
        let is_probe = |name: &&String| probe_names().any(|probe| probe == **name);
        if let Some(unknown) = self.accepted_probes.iter().find(|name| !is_probe(name)) {
            let known = probe_names().collect::<Vec<_>>().join(", ");
            return Err(format!("hsm.accepted_probes: {unknown:?} is none of {known}"));
        }
        self.retry.check().map_err(|why| format!("hsm.retry.{why}"))?;
        self.breaker.check().map_err(|why| format!("hsm.breaker.{why}"))?;
        self.health.check().map_err(|why| format!("hsm.health.{why}"))?;
        if let Some(waiver) = &self.in_worker_waiver {
            waiver.check().map_err(|why| format!("hsm.in_worker_waiver.{why}"))?;
        }
        Ok(())
    }

    /// What tells a further link's token from others.
    fn token_of<'a>(
        &'a self,
        link: &'a FurtherLinkConfig,
    ) -> (&'a PathBuf, &'a String, &'a BTreeMap<String, String>) {
        let module = link.module.as_ref().unwrap_or(&self.module);
        let label = link.token_label.as_ref().unwrap_or(&self.token_label);
        (module, label, link.environment.as_ref().unwrap_or(&self.environment))
    }

    /// Every link in its order.
    ///
    /// # Errors
    /// When this program's own path is unknown and no worker is named, or the waiver has ended.
    pub fn links(&self) -> Result<Vec<NamedLink>, String> {
        let first = self.link_options()?;
        let further = self
            .link
            .iter()
            .map(|link| NamedLink { role: link.role, options: link.options(&first) });
        let mut links: Vec<_> = further.collect();
        links.insert(0, NamedLink { role: Role::Primary, options: first });
        Ok(links)
    }

    fn link_options(&self) -> Result<LinkOptions, String> {
        if let Some(waiver) = &self.in_worker_waiver {
            waiver.in_time().map_err(|why| format!("hsm.in_worker_waiver.{why}"))?;
        }
        let program = match &self.worker {
            Some(program) => program.clone(),
            None => std::env::current_exe()
                .map_err(|error| format!("hsm.worker: not set, and this program: {error}"))?
                .with_file_name("tollgate-hsm"),
        };
        Ok(LinkOptions {
            name: FIRST_LINK.to_owned(),
            program,
            module: self.module.clone(),
            token_label: self.token_label.clone(),
            pin_file: self.pin_file.clone(),
            keys: self.keys.clone(),
            vendor_codes: self.vendor_codes.clone(),
            module_sha256: self.module_sha256.clone(),
            probes: if self.production { Probes::Enforce } else { Probes::Report },
            accepted_probes: self.accepted_probes.clone(),
            in_worker: !self.production || self.in_worker_waiver.is_some(),
            environment: self.environment.clone(),
            workers: self.workers,
            sessions: self.sessions,
            in_flight_max: self.in_flight_max,
            start_limit: Duration::from_millis(self.start_ms_max),
            lost_max: self.lost_max,
            answer_limit: Duration::from_millis(self.attempt_ms_max),
            lost_limit: Duration::from_millis(self.lost_ms_max),
            restart_wait: Duration::from_millis(self.restart_ms),
            restart_wait_max: Duration::from_millis(self.restart_ms_max),
        })
    }
}

fn is_digest(text: &String) -> bool {
    text.len() == 64 && hex::decode(text).is_ok()
}
fn backup() -> Role {
    Role::Backup
}
fn restart_ms() -> u64 {
    100
}
fn restart_ms_max() -> u64 {
    2_000
}
fn waiting_max() -> usize {
    1_024
}
fn wait_ms_max() -> u64 {
    30
}
fn queue_ms_max() -> u64 {
    100
}
fn ramp_s() -> u64 {
    30
}
fn workers() -> usize {
    2
}
fn sessions() -> u16 {
    1
}
fn in_flight_max() -> usize {
    256
}
fn attempt_ms_max() -> u64 {
    2_000
}
fn start_ms_max() -> u64 {
    5_000
}
fn lost_max() -> usize {
    2
}
fn lost_ms_max() -> u64 {
    5_000
}
fn lint_s() -> u64 {
    60
}
fn queue_kek() -> KeyLabel {
    KeyLabel::parse("queue.kek").expect("nine characters of the allowed set")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(waiver: &str) -> HsmConfig {
        let text = "module = \"/m\"\ntoken_label = \"t\"\npin_file = \"p\"\nkeys = \"k\"\n";
        toml::from_str(&format!("{text}{waiver}")).unwrap()
    }

    #[test]
    fn a_digest_is_64_hex_digits_and_an_accepted_probe_is_one_that_there_is() {
        let told = |text: &str| config(text).check().unwrap_err();

        let digest = format!("module_sha256 = {:?}\n", "0A".repeat(32));
        let good = format!("{digest}accepted_probes = [\"copy\", \"digest-key\"]\nlint_s = 1");
        assert_eq!(config(&good).check(), Ok(()));
        for bad in ["0A", &"0G".repeat(32), &"0A".repeat(33)] {
            assert!(told(&format!("module_sha256 = {bad:?}")).contains("hsm.module_sha256"));
        }
        assert!(told("accepted_probes = [\"all\"]").contains("\"all\" is none of encrypt, "));
        assert!(told("lint_s = 0").contains("hsm.lint_s"));
    }

    #[test]
    fn a_further_link_takes_from_the_first_what_it_does_not_say() {
        let text = "[[link]]\nname = \"backup\"\nkeys = \"k2\"\ntoken_label = \"t2\"\n";

        let links = config(text).links().unwrap();

        let told: Vec<_> =
            links.iter().map(|link| (link.options.name.as_str(), link.role)).collect();
        assert_eq!(told, [("primary", Role::Primary), ("backup", Role::Backup)]);
        let (first, second) = (&links[0].options, &links[1].options);
        assert_eq!((second.token_label.as_str(), &second.module), ("t2", &first.module));
        assert_ne!(first.keys, second.keys);
    }

    #[test]
    fn links_have_names_and_key_registers_of_their_own() {
        for (text, told) in [
            ("[[link]]\nname = \"primary\"\nkeys = \"k2\"", "own word"),
            ("[[link]]\nname = \"b\"\nkeys = \"k\"", "each token has its own"),
            ("[[link]]\nname = \"b\"\nkeys = \"k2\"", "it is the same token"),
            ("[[link]]\nname = \"B\"\nkeys = \"k2\"", "a-z"),
            (
                "[[link]]\nname = \"b\"\nkeys = \"x\"\ntoken_label = \"x\"\n[[link]]\nname = \"b\"\nkeys = \"y\"",
                "stands twice",
            ),
        ] {
            let refusal = config(text).check().unwrap_err();

            assert!(refusal.contains(told), "{refusal}");
        }
    }

    fn waiver(name: &str, reason: &str, until: &str) -> HsmConfig {
        let table = format!("{{ name = {name:?}, reason = {reason:?}, until = {until:?} }}");
        config(&format!("in_worker_waiver = {table}"))
    }

    #[test]
    fn a_waiver_names_who_and_why_until_a_day_that_is_to_come() {
        assert_eq!(waiver("Head of payments", "pilot", "2999-01-31").check(), Ok(()));
        let refused = [
            (waiver(" ", "pilot", "2999-01-31"), "hsm.in_worker_waiver.name is empty"),
            (waiver("Head", "", "2999-01-31"), "hsm.in_worker_waiver.reason is empty"),
            (waiver("Head", "pilot", "soon"), "write a day"),
        ];
        for (config, told) in refused {
            let refusal = config.check().unwrap_err();
            assert!(refusal.contains(told), "{refusal}");
        }
        // The day counts at a start, and not when the clients are read again.
        let over = waiver("Head", "pilot", "2026-01-31");
        assert_eq!(over.check(), Ok(()));
        let refusal = over.link_options().unwrap_err();
        assert!(
            refusal.contains("hsm.in_worker_waiver.until = 2026-01-31: is in the past"),
            "{refusal}"
        );
    }

    #[test]
    fn production_lets_clear_pins_into_the_worker_only_by_a_waiver() {
        let allowed = |mut config: HsmConfig, environment| {
            config.is_for(environment);
            config.link_options().unwrap().in_worker
        };
        let waived = || waiver("Head of payments", "pilot", "2999-01-31");

        assert!(allowed(config(""), Environment::Demo));
        assert!(!allowed(config(""), Environment::Production));
        assert!(allowed(waived(), Environment::Production));
    }
}
