//! `[[audit.sink]]`: a system that gets a copy of each record, and how far it may fall behind.

use std::path::PathBuf;
use std::time::Duration;

use compliance::export::Format;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{plain_name, within};

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SinkConfig {
    /// Its name in figures, records and in the file of its place: lower-case letters, digits, `-`; at
    /// most 32. No default.
    pub name: String,
    /// `host:port`. No default.
    pub address: String,
    /// The name in its certificate. Default: the host of `address`.
    #[serde(default)]
    pub server_name: Option<String>,
    /// PEM of the CA that its certificate must come from. No default.
    pub ca: PathBuf,
    /// Our client certificate towards it, PEM. No default.
    pub certificate: PathBuf,
    /// The key of that certificate, PEM. No default.
    pub key: PathBuf,
    /// `syslog`, or `jsonl`, `cef`, `leef`, `ocsf` as the text of a syslog message. Default `syslog`.
    #[serde(default = "format", deserialize_with = "named_format")]
    pub format: Format,
    /// To connect, TLS included. Milliseconds; default 5000.
    #[serde(default = "connect_ms_max")]
    pub connect_ms_max: u64,
    /// How long it may take to accept 16 KiB. Milliseconds; default 5000.
    #[serde(default = "write_ms_max")]
    pub write_ms_max: u64,
    /// How long a connection must stand after a record was written until it counts as confirmed.
    /// Seconds; default 15.
    #[serde(default = "confirm_s")]
    pub confirm_s: u64,
    /// Audit files that it may still need before `when_full`. Bytes; default 1073741824.
    #[serde(default = "spool_bytes_max")]
    pub spool_bytes_max: u64,
    /// What happens at 95 % of that. Default `block`.
    #[serde(default)]
    pub when_full: WhenFull,
}

/// What happens when a sink has fallen too far behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// New work is refused until it has caught up.
    #[default]
    Block,
    /// An alarm, and no more. Each start records this choice.
    AlarmOnly,
}

impl SinkConfig {
    /// A sink at `address` with every default, and `ca.crt`, `tollgate.crt`, `tollgate.key` of `pki`.
    pub fn at(name: &str, address: &str, pki: &std::path::Path) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            server_name: None,
            ca: pki.join("ca.crt"),
            certificate: pki.join("tollgate.crt"),
            key: pki.join("tollgate.key"),
            format: format(),
            connect_ms_max: connect_ms_max(),
            write_ms_max: write_ms_max(),
            confirm_s: confirm_s(),
            spool_bytes_max: spool_bytes_max(),
            when_full: WhenFull::default(),
        }
    }

    /// Host and port. `None` when `address` is neither `host:port` nor `[host]:port`.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let is_host = !host.is_empty() && (bare.is_some() || !host.contains(':'));
        Some((host, port.parse().ok().filter(|port| *port > 0)?)).filter(|_| is_host)
    }

    /// To connect, TLS included.
    pub fn connect_max(&self) -> Duration {
        Duration::from_millis(self.connect_ms_max)
    }

    /// For 16 KiB.
    pub fn write_max(&self) -> Duration {
        Duration::from_millis(self.write_ms_max)
    }

    /// From the write to the confirmation.
    pub fn confirm(&self) -> Duration {
        Duration::from_secs(self.confirm_s)
    }

    fn check(&self) -> Result<(), String> {
        plain_name(&self.name)?;
        if self.host_and_port().is_none() {
            return Err(format!("address: {:?} must be host:port", self.address));
        }
        let files = [("ca", &self.ca), ("certificate", &self.certificate), ("key", &self.key)];
        for (key, path) in files {
            if path.as_os_str().is_empty() {
                return Err(format!("{key} is empty: name a PEM file"));
            }
        }
        within("connect_ms_max", self.connect_ms_max, 10..=30_000)?;
        within("write_ms_max", self.write_ms_max, 10..=30_000)?;
        within("confirm_s", self.confirm_s, 1..=300)?;
        within("spool_bytes_max", self.spool_bytes_max, 1 << 20..=1 << 50)
    }
}

/// Checks every sink's bounds.
///
/// # Errors
/// Names the sink and the key.
pub(super) fn check(sinks: &[SinkConfig]) -> Result<(), String> {
    within("sink: how many", sinks.len(), 0..=SINKS_MAX)?;
    for (at, sink) in sinks.iter().enumerate() {
        sink.check().map_err(|why| format!("sink {:?}: {why}", sink.name))?;
        if sinks[..at].iter().any(|other| other.name == sink.name) {
            return Err(format!("sink {:?} stands twice", sink.name));
        }
    }
    Ok(())
}

fn named_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Format, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn format() -> Format {
    Format::Syslog
}
fn connect_ms_max() -> u64 {
    5_000
}
fn write_ms_max() -> u64 {
    5_000
}
fn confirm_s() -> u64 {
    15
}
fn spool_bytes_max() -> u64 {
    1 << 30
}

const SINKS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_keys_take_every_default() {
        let text = "name = \"siem\"\naddress = \"siem.example:6514\"\nca = \"p/ca.crt\"\n\
                    certificate = \"p/tollgate.crt\"\nkey = \"p/tollgate.key\"";

        let read: SinkConfig = toml::from_str(text).unwrap();

        assert_eq!(read, SinkConfig::at("siem", "siem.example:6514", "p".as_ref()));
        assert_eq!(check(&[read]), Ok(()));
    }

    #[test]
    fn a_sink_out_of_bounds_is_refused_by_name_and_key() {
        let sink = SinkConfig::at("siem", "[::1]:6514", "p".as_ref());
        assert_eq!(sink.host_and_port(), Some(("::1", 6514)));
        for (sinks, expected) in [
            (vec![sink.clone(), sink.clone()], "sink \"siem\" stands twice"),
            (vec![sink.clone(); 9], "sink: how many = 9: must be from 0 to 8"),
            (
                vec![SinkConfig { address: "::1:6514".into(), ..sink.clone() }],
                "sink \"siem\": address: \"::1:6514\" must be host:port",
            ),
            (
                vec![SinkConfig { confirm_s: 0, ..sink.clone() }],
                "sink \"siem\": confirm_s = 0: must be from 1 to 300",
            ),
            (
                vec![SinkConfig { key: "".into(), ..sink }],
                "sink \"siem\": key is empty: name a PEM file",
            ),
        ] {
            assert_eq!(check(&sinks).unwrap_err(), expected);
        }
    }

    #[test]
    fn no_other_format_and_no_other_key() {
        let text =
            "name = \"a\"\naddress = \"b:1\"\nca = \"c\"\ncertificate = \"d\"\nkey = \"e\"\n";

        for more in ["format = \"xml\"", "when_full = \"drop\"", "protocol = \"udp\""] {
            assert!(toml::from_str::<SinkConfig>(&format!("{text}{more}")).is_err(), "{more}");
        }
    }
}
