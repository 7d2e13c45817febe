//! One listener: where it listens and how long and how much a peer may take.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::within;

/// A listening socket with the bounds of its connections. Serves for data and admin alike.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Address and port. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Open connections, including those still in their handshake. Default 4096; keep it well
    /// below the process's descriptor limit.
    #[serde(default = "connections_max")]
    pub connections_max: u32,
    /// Handshakes in flight; more wait in the kernel's queue. Default 256.
    #[serde(default = "handshakes_max")]
    pub handshakes_max: u32,
    /// Milliseconds from accept to the end of the TLS handshake. Default 5000.
    #[serde(default = "handshake_ms_max")]
    pub handshake_ms_max: u64,
    /// Milliseconds from the first byte of an HTTP/1.1 request to the end of its head. Default 5000.
    #[serde(default = "header_ms_max")]
    pub header_ms_max: u64,
    /// Milliseconds from the head of a request to the last byte of its body. Default 10000.
    #[serde(default = "body_ms_max")]
    pub body_ms_max: u64,
    /// Milliseconds that a connection may rest between two requests. Default 60000.
    #[serde(default = "idle_ms_max")]
    pub idle_ms_max: u64,
    /// Seconds that a connection may live; it is then asked to go. Default 3600.
    #[serde(default = "connection_s_max")]
    pub connection_s_max: u64,
    /// Milliseconds that requests in flight get to finish when the process or a connection
    /// drains. Default 10000.
    #[serde(default = "drain_ms_max")]
    pub drain_ms_max: u64,
    /// Bytes of one request body. Default 163840: a MAC message of 64 KiB fits in hex.
    #[serde(default = "body_bytes_max")]
    pub body_bytes_max: u64,
    /// Bytes of one request head: request line and headers of HTTP/1.1, header list of HTTP/2.
    /// Default 16384.
    #[serde(default = "header_bytes_max")]
    pub header_bytes_max: u32,
    /// Streams that one HTTP/2 connection may have open. Default 100.
    #[serde(default = "streams_max")]
    pub streams_max: u32,
    /// Whether HTTP/2 is offered beside HTTP/1.1. Default true.
    #[serde(default = "http2")]
    pub http2: bool,
}

impl ListenerConfig {
    /// A listener at `listen` with every default.
    pub fn at(listen: SocketAddr) -> Self {
        Self {
            listen,
            connections_max: connections_max(),
            handshakes_max: handshakes_max(),
            handshake_ms_max: handshake_ms_max(),
            header_ms_max: header_ms_max(),
            body_ms_max: body_ms_max(),
            idle_ms_max: idle_ms_max(),
            connection_s_max: connection_s_max(),
            drain_ms_max: drain_ms_max(),
            body_bytes_max: body_bytes_max(),
            header_bytes_max: header_bytes_max(),
            streams_max: streams_max(),
            http2: http2(),
        }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        within("connections_max", self.connections_max, 1..=100_000)?;
        within("handshakes_max", self.handshakes_max, 1..=10_000)?;
        within("handshake_ms_max", self.handshake_ms_max, 100..=60_000)?;
        within("header_ms_max", self.header_ms_max, 100..=60_000)?;
        within("body_ms_max", self.body_ms_max, 100..=120_000)?;
        within("idle_ms_max", self.idle_ms_max, 1_000..=600_000)?;
        within("connection_s_max", self.connection_s_max, 1..=3_600)?;
        within("drain_ms_max", self.drain_ms_max, 0..=120_000)?;
        within("body_bytes_max", self.body_bytes_max, 1_024..=1_048_576)?;
        within("header_bytes_max", self.header_bytes_max, 1_024..=65_536)?;
        within("streams_max", self.streams_max, 1..=1_000)
    }
}

fn connections_max() -> u32 {
    4_096
}
fn handshakes_max() -> u32 {
    256
}
fn handshake_ms_max() -> u64 {
    5_000
}
fn header_ms_max() -> u64 {
    5_000
}
fn body_ms_max() -> u64 {
    10_000
}
fn idle_ms_max() -> u64 {
    60_000
}
fn connection_s_max() -> u64 {
    3_600
}
fn drain_ms_max() -> u64 {
    10_000
}
fn body_bytes_max() -> u64 {
    163_840
}
fn header_bytes_max() -> u32 {
    16_384
}
fn streams_max() -> u32 {
    100
}
fn http2() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_alone_takes_every_default() {
        let text = r#"listen = "127.0.0.1:8443""#;

        let read: ListenerConfig = toml::from_str(text).unwrap();

        assert_eq!(read, ListenerConfig::at(read.listen));
        assert_eq!(read.check(), Ok(()));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let text = "listen = \"127.0.0.1:8443\"\nidle_ms = 5";

        let error = toml::from_str::<ListenerConfig>(text).unwrap_err().to_string();

        assert!(error.contains("idle_ms"), "{error}");
    }

    #[test]
    fn a_value_out_of_bounds_is_refused_by_name() {
        let config = ListenerConfig {
            connection_s_max: 7_200,
            ..ListenerConfig::at(([127, 0, 0, 1], 0).into())
        };

        let error = config.check().unwrap_err();

        assert_eq!(error, "connection_s_max = 7200: must be from 1 to 3600");
    }
}
