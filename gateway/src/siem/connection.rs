//! Mutual TLS towards a receiver, with a limit on every step.
//!
//! The files are read anew for each connection, so that a new certificate needs no restart. No session is
//! resumed: a revoked receiver would come back by it. The kernel breaks a connection whose bytes stay
//! unacknowledged for two thirds of the time after which records on it would count as confirmed.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::SinkConfig;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum ConnectError {
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("the certificate and the key are not usable together: {0}")]
    Identity(rustls::Error),
    #[error("{0:?} is no name of a server")]
    Name(String),
    #[error("{address} is not found: {why}")]
    Unknown { address: String, why: io::Error },
    #[error("{address} takes no connection: {why}")]
    Refused { address: String, why: io::Error },
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("it closed the connection after the handshake: {0}")]
    Closed(io::Error),
    #[error("not connected within {0:?}")]
    TooLate(Duration),
}

/// Connects and finishes the handshake.
///
/// # Errors
/// See [`ConnectError`].
pub(super) async fn connect(config: &SinkConfig) -> Result<TlsStream<TcpStream>, ConnectError> {
    let limit = config.connect_max();
    timeout(limit, within(config)).await.unwrap_or(Err(ConnectError::TooLate(limit)))
}

/// Connects, waits a moment for a refusal of our certificate, which TLS 1.3 tells after the handshake, and
/// goes.
///
/// # Errors
/// See [`ConnectError`].
pub async fn try_out(config: &SinkConfig) -> Result<(), ConnectError> {
    let mut stream = connect(config).await?;
    if let Ok(seen) = timeout(REFUSAL_WAIT, stream.read(&mut [0; 64])).await {
        let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
        match seen {
            Ok(0) => return Err(ConnectError::Closed(closed())),
            Ok(_) => {}
            Err(why) => return Err(ConnectError::Closed(why)),
        }
    }
    // It is a visit: whether the farewell arrives does not matter.
    let _ = timeout(config.write_max(), stream.shutdown()).await;
    Ok(())
}

async fn within(config: &SinkConfig) -> Result<TlsStream<TcpStream>, ConnectError> {
    let (host, port) =
        config.host_and_port().ok_or_else(|| ConnectError::Name(config.address.clone()))?;
    let files = config.clone();
    let tls = tokio::task::spawn_blocking(move || client(&files)).await;
    let tls = tls.unwrap_or_else(|panic| {
        Err(ConnectError::File { path: config.certificate.clone(), why: panic.to_string() })
    })?;
    let name = config.server_name.as_deref().unwrap_or(host);
    let server = ServerName::try_from(name.to_owned());
    let server = server.map_err(|_| ConnectError::Name(name.to_owned()))?;
    let tcp = reach(&config.address, host, port, config.connect_max()).await?;
    guard(&tcp, config.confirm())
        .map_err(|why| ConnectError::Refused { address: config.address.clone(), why })?;
    TlsConnector::from(tls).connect(server, tcp).await.map_err(ConnectError::Handshake)
}

/// The first address that answers; each gets its share of the time, so that a dead one does not take it all.
async fn reach(
    address: &str,
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let unknown = |why| ConnectError::Unknown { address: address.to_owned(), why };
    let found: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(unknown)?.collect();
    let share = limit / u32::try_from(found.len().max(1)).unwrap_or(1);
    let mut why = io::Error::from(io::ErrorKind::NotFound);
    for one in found {
        match timeout_at(Instant::now() + share, TcpStream::connect(one)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => why = error,
            Err(_) => why = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(ConnectError::Refused { address: address.to_owned(), why })
}

/// Unacknowledged bytes break the connection before what is in them would count as confirmed.
fn guard(tcp: &TcpStream, confirm: Duration) -> io::Result<()> {
    let broken_after = confirm * 2 / 3;
    let keepalive = TcpKeepalive::new()
        .with_time((broken_after / 2).max(Duration::from_secs(1)))
        .with_interval((broken_after / 4).max(Duration::from_secs(1)));
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(broken_after))?;
        // What the kernel has accepted and not yet sent is little.
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    }
    tcp.set_nodelay(true)
}

/// Reads the files. Blocks on the disk.
fn client(config: &SinkConfig) -> Result<Arc<ClientConfig>, ConnectError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&config.ca)? {
        roots.add(authority).map_err(|error| file(&config.ca, &error))?;
    }
    let chain = certificates(&config.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|why| file(&config.key, &why))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConnectError::Identity)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(ConnectError::Identity)?;
    client.resumption = Resumption::disabled();
    client.enable_early_data = false;
    Ok(Arc::new(client))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| file(path, &error))?;
    let all: Result<Vec<_>, _> = read.collect();
    let all = all.map_err(|error| file(path, &error))?;
    if all.is_empty() {
        return Err(file(path, &"holds no certificate"));
    }
    Ok(all)
}

fn file(path: &Path, why: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::File { path: path.to_owned(), why: why.to_string() }
}

/// A receiver that refuses our certificate says so within a round trip.
const REFUSAL_WAIT: Duration = Duration::from_millis(500);
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 64 * 1024;
