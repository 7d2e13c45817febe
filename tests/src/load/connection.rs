//! One kept HTTP/1.1 connection, usually over TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::mtls;

/// Where to connect, and as whom.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

/// A connection that answers one request at a time. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    driver: JoinHandle<()>,
}

impl Target {
    /// The server at `address`, shown `<client>.crt` of the folder.
    ///
    /// # Errors
    /// A PEM file that cannot be used.
    pub fn new(pki: &Path, client: &str, address: SocketAddr) -> anyhow::Result<Self> {
        let config = Arc::new(mtls::client_config(pki, client)?);
        Ok(Self { address, tls: Some(TlsConnector::from(config)) })
    }

    /// A server without TLS: only for the driver's own tests.
    #[cfg(test)]
    pub(super) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// A server that is away or refuses the handshake.
    pub async fn open(&self) -> anyhow::Result<Connection> {
        let socket = TcpStream::connect(self.address).await.context("no connection")?;
        socket.set_nodelay(true).context("no connection")?;
        match &self.tls {
            None => Connection::over(socket, self.address).await,
            Some(connector) => {
                let name = ServerName::from(self.address.ip());
                let stream = connector.connect(name, socket).await.context("no TLS handshake")?;
                Connection::over(stream, self.address).await
            }
        }
    }
}

impl Connection {
    async fn over<S>(stream: S, address: SocketAddr) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // The sender sees the same error, at its next request.
            let _ = driver.await;
        });
        let host = HeaderValue::try_from(address.to_string())?;
        Ok(Self { sender, host, driver })
    }

    /// Whether the peer still keeps it.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// A connection that ends first.
    pub async fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        request.headers_mut().entry(HOST).or_insert_with(|| self.host.clone());
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok((head.status, body.collect().await?.to_bytes()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.address)
    }
}
