//! How fast an address may connect, and how fast a client may use one operation.

use std::net::IpAddr;

use serde::Deserialize;

use super::within;

/// Limits that hold for everybody; those of one client stand in its own entry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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
    /// MAC operations a minute of one client. Default 6000.
    pub mac_per_minute: u32,
    /// Payments a minute of one client. Default 3000.
    pub payment_per_minute: u32,
    /// Admin calls a minute of one client; health, readiness and figures are free. Default 60.
    pub admin_per_minute: u32,
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
            mac_per_minute: 6_000,
            payment_per_minute: 3_000,
            admin_per_minute: 60,
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
        for (key, per_minute) in [
            ("translate_per_minute", self.translate_per_minute),
            ("mac_per_minute", self.mac_per_minute),
            ("payment_per_minute", self.payment_per_minute),
            ("admin_per_minute", self.admin_per_minute),
        ] {
            within(key, per_minute, 1..=10_000_000)?;
        }
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
