//! Sockets and TLS: a client certificate of the CA is the only way in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

use super::api::{App, Connection, Identity};
use crate::mtls;

/// Where to listen and what to keep.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Folder with `ca.crt`, `billing.crt` and `billing.key`.
    pub pki: PathBuf,
    /// File of answers, made when missing, read back when not.
    pub journal: PathBuf,
}

/// A running simulator. Dropping it ends it at once; every answer it gave is on the disk.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    _stop: DropGuard,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Reads the journal, opens the port and serves in the background.
///
/// # Errors
/// A journal or PEM file that cannot be used, or a port that is taken.
pub async fn serve(options: Options) -> anyhow::Result<Server> {
    let router = App::open(&options.journal)?.router();
    let tls = TlsAcceptor::from(Arc::new(mtls::server_config(&options.pki, "billing")?));
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;

    let stop = CancellationToken::new();
    let accepting = accept(listener, tls, router, stop.clone());
    tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));
    Ok(Server { address, _stop: stop.drop_guard() })
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let (tls, router, cut) = (tls.clone(), router.clone(), stop.child_token());
                tokio::spawn(async move {
                    let connection = Connection(cut.clone());
                    cut.run_until_cancelled(converse(socket, tls, router, connection)).await;
                    drop(place);
                });
            }
            // Out of descriptors, most likely: wait for one.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// One connection, from the handshake to its end. A failed one says nothing: clients see it.
async fn converse(socket: TcpStream, tls: TlsAcceptor, router: Router, connection: Connection) {
    // Best effort: without it answers are only later.
    let _ = socket.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(HANDSHAKE_MAX, tls.accept(socket)).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(name) = certificate.and_then(mtls::uri_name) else { return };

    let identity = Identity(name.into());
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(identity.clone());
        request.extensions_mut().insert(connection.clone());
        router.clone().oneshot(request)
    });
    // An error means that the client went away, which is its right.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
