//! How fast an address may connect, how fast a client may use one operation, and how often a card
//! or a key may be tried.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::within;

/// Limits that hold for everybody; those of one client stand in its own entry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Open connections of one source address (IPv4 /32, IPv6 /48). Default 64.
    pub connections_per_address: u32,
    /// New connections a second of one source address. Default 20.
    pub connects_per_s: u32,
    /// New connections at once of one source address after a rest. Default 40.
    pub connects_burst: u32,
    /// Failed handshakes a minute of one source address before it is blocked. Default 20.
    pub failed_handshakes_per_minute: u32,
    /// Seconds of such a block. Default 900.
    pub address_block_s: u64,
    /// Source addresses that are never limited or blocked: balancers. Default none.
    pub exempt_addresses: Vec<IpAddr>,
    /// PIN translations a minute of one client. Default 3000.
    pub translate_per_minute: u32,
    /// PIN verifications a minute of one client. Default 600.
    pub verify_per_minute: u32,
    /// MAC operations a minute of one client. Default 6000.
    pub mac_per_minute: u32,
    /// Payments a minute of one client. Default 3000.
    pub payment_per_minute: u32,
    /// Admin calls a minute of one client; health, readiness and figures are free. Default 60.
    pub admin_per_minute: u32,
    /// PIN translations of one card an hour, all clients together. Default 10.
    pub pan_translations_per_hour: u32,
    /// PIN translations of one card a day, all clients together. Default 30.
    pub pan_translations_per_day: u32,
    /// Failed PIN verifications of one card in a row that block it. Default 5.
    pub pan_failures_max: u32,
    /// Seconds of that block, and for which failures are remembered. Default 86400.
    pub pan_block_s: u32,
    /// PIN verifications a minute of one client, all replicas together. Default 100.
    pub client_verifies_per_minute: u32,
    /// PIN verifications an hour of one client, all replicas together. Default 1000.
    pub client_verifies_per_hour: u32,
    /// Refused PIN blocks a minute under one key; one more takes it out of use. Default 20.
    pub malformed_blocks_per_minute: u32,
    /// Wrong MACs a day under one key; one more raises the alarm. Default 256.
    pub mac_failures_per_day: u32,
    /// Wrong MACs of less than 8 bytes in the life of one key; each one more takes it out of use.
    /// Default 4096.
    pub mac_failures_max: u32,
    /// Seconds for which such a key is out of use. Default 3600.
    pub key_quarantine_s: u32,
    /// DUKPT devices of one base derivation key. Default 1000000.
    pub dukpt_devices_max: u32,
    /// Cards, clients and keys that are counted at once, of each kind. Default 2000000.
    pub pin_counters_max: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_per_address: 64,
            connects_per_s: 20,
            connects_burst: 40,
            failed_handshakes_per_minute: 20,
            address_block_s: 900,
            exempt_addresses: Vec::new(),
            translate_per_minute: 3_000,
            verify_per_minute: 600,
            mac_per_minute: 6_000,
            payment_per_minute: 3_000,
            admin_per_minute: 60,
            pan_translations_per_hour: 10,
            pan_translations_per_day: 30,
            pan_failures_max: 5,
            pan_block_s: 86_400,
            client_verifies_per_minute: 100,
            client_verifies_per_hour: 1_000,
            malformed_blocks_per_minute: 20,
            mac_failures_per_day: 256,
            mac_failures_max: 4_096,
            key_quarantine_s: 3_600,
            dukpt_devices_max: 1_000_000,
            pin_counters_max: 2_000_000,
        }
    }
}

impl LimitsConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// The key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        within("connections_per_address", self.connections_per_address, 1..=100_000)?;
        within("connects_per_s", self.connects_per_s, 1..=100_000)?;
        within("connects_burst", self.connects_burst, 1..=100_000)?;
        within("failed_handshakes_per_minute", self.failed_handshakes_per_minute, 1..=100_000)?;
        within("address_block_s", self.address_block_s, 1..=86_400)?;
        within("exempt_addresses (entries)", self.exempt_addresses.len(), 0..=256)?;
        for (key, limit) in [
            ("translate_per_minute", self.translate_per_minute),
            ("verify_per_minute", self.verify_per_minute),
            ("mac_per_minute", self.mac_per_minute),
            ("payment_per_minute", self.payment_per_minute),
            ("admin_per_minute", self.admin_per_minute),
            ("pan_translations_per_hour", self.pan_translations_per_hour),
            ("pan_translations_per_day", self.pan_translations_per_day),
            ("pan_failures_max", self.pan_failures_max),
            ("client_verifies_per_minute", self.client_verifies_per_minute),
            ("client_verifies_per_hour", self.client_verifies_per_hour),
            ("malformed_blocks_per_minute", self.malformed_blocks_per_minute),
            ("mac_failures_per_day", self.mac_failures_per_day),
            ("mac_failures_max", self.mac_failures_max),
            ("dukpt_devices_max", self.dukpt_devices_max),
            ("pin_counters_max", self.pin_counters_max),
        ] {
            within(key, limit, 1..=10_000_000)?;
        }
        within("pan_block_s", self.pan_block_s, 60..=86_400)?;
        within("key_quarantine_s", self.key_quarantine_s, 60..=86_400)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_their_own_bounds() {
        let read: LimitsConfig = toml::from_str("").unwrap();

        assert_eq!(read, LimitsConfig::default());
        assert_eq!(read.check(), Ok(()));
    }

    #[test]
    fn a_limit_of_nothing_is_refused_by_name() {
        let config = LimitsConfig { mac_per_minute: 0, ..LimitsConfig::default() };

        let error = config.check().unwrap_err();

        assert!(error.starts_with("mac_per_minute = 0"), "{error}");
    }
}
