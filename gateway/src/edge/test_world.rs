//! A private authority, a listener on a free port and clients that speak TLS by hand. For tests.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    routing::{get, post},
};
use pki::{Authority, Leaf};
use rustls::{
    ClientConfig as TlsClient, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{BodyRefused, Listener, OnRefused, Peer, Refusal, Registry, TlsSource};
use crate::config::{ClientConfig, LimitsConfig, ListenerConfig, TlsConfig};

pub(super) struct World {
    pub(super) authority: Authority,
    pub(super) dir: tempfile::TempDir,
    pub(super) address: SocketAddr,
    pub(super) tls: Arc<TlsSource>,
    pub(super) registry: Arc<Registry>,
    pub(super) shutdown: CancellationToken,
    pub(super) serving: JoinHandle<()>,
    refusals: Arc<Mutex<Vec<Refusal>>>,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(|_, _| ()).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut ListenerConfig, &mut LimitsConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = Authority::create(dir.path(), "Test CA").unwrap();
        authority
            .issue("gateway", &Leaf::server(["localhost"], ["127.0.0.1".parse().unwrap()]))
            .unwrap();
        let (mut config, mut limits) =
            (ListenerConfig::at(([127, 0, 0, 1], 0).into()), LimitsConfig::default());
        change(&mut config, &mut limits);
        let tls = TlsSource::load("data", &tls_files(dir.path()), config.http2).unwrap();
        let registry = Arc::new(Registry::new(&[client("a")], &limits).unwrap());
        let refusals: Arc<Mutex<Vec<Refusal>>> = Arc::default();
        let on_refused: OnRefused = {
            let refusals = Arc::clone(&refusals);
            Arc::new(move |refusal| refusals.lock().unwrap().push(refusal))
        };
        let listener = Listener::bind(
            "data",
            &config,
            &limits,
            Arc::clone(&tls),
            Arc::clone(&registry),
            on_refused,
        )
        .await
        .unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(listener.serve(routes(), shutdown.clone()));
        Self { authority, dir, address, tls, registry, shutdown, serving, refusals }
    }

    /// Issues a certificate and connects with it. TLS 1.3 tells of a refusal at the first read.
    pub(super) async fn connect(&mut self, leaf: &Leaf) -> Session {
        self.authority.issue("client", leaf).unwrap();
        self.connect_again().await
    }

    /// Connects with the certificate that was issued last.
    pub(super) async fn connect_again(&self) -> Session {
        Session::open(self.address, self.tls_client(&[b"http/1.1"])).await
    }

    pub(super) fn tls_client(&self, alpn: &[&[u8]]) -> TlsClient {
        let path = |name: &str| self.dir.path().join(name);
        let chain = CertificateDer::pem_file_iter(path("client.crt")).unwrap();
        let chain = chain.collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(path("client.key")).unwrap();
        let mut config = self.tls_builder().with_client_auth_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    pub(super) fn tls_builder(
        &self,
    ) -> rustls::ConfigBuilder<TlsClient, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.authority.ca_certificate()).unwrap()).unwrap();
        TlsClient::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
    }

    /// The reasons so far, once there is at least one.
    pub(super) async fn refusals(&self) -> Vec<&'static str> {
        for _ in 0..300 {
            let reasons: Vec<_> =
                self.refusals.lock().unwrap().iter().map(|refusal| refusal.reason).collect();
            if !reasons.is_empty() {
                return reasons;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Vec::new()
    }
}

/// One TLS connection that speaks HTTP/1.1 by hand.
pub(super) struct Session(TlsStream<TcpStream>);

impl Session {
    pub(super) async fn open(address: SocketAddr, config: TlsClient) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Self(TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap())
    }

    pub(super) async fn send(&mut self, text: &str) {
        // A refused session fails here or at the read; the tests ask at the read.
        let _ = self.0.write_all(text.as_bytes()).await;
        let _ = self.0.flush().await;
    }

    /// Sends to the end, whatever is answered in between.
    pub(super) async fn send_whole(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// What comes until the peer closes, or until it is silent for a while.
    pub(super) async fn read(&mut self) -> Read {
        let mut text = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            let read =
                tokio::time::timeout(Duration::from_millis(800), self.0.read(&mut buffer)).await;
            let is_open = match read {
                Ok(Ok(0) | Err(_)) => false,
                Ok(Ok(count)) => {
                    text.extend_from_slice(&buffer[..count]);
                    continue;
                }
                Err(_) => true,
            };
            return Read { text: String::from_utf8(text).unwrap(), is_open };
        }
    }

    pub(super) async fn ask(&mut self, path: &str) -> Read {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        self.read().await
    }

    /// Whether the peer closes within this time.
    pub(super) async fn closes_within(&mut self, time: Duration) -> bool {
        let mut sink = Vec::new();
        tokio::time::timeout(time, self.0.read_to_end(&mut sink)).await.is_ok()
    }

    pub(super) fn handshake(&self) -> Option<rustls::HandshakeKind> {
        self.0.get_ref().1.handshake_kind()
    }
}

#[derive(Debug)]
pub(super) struct Read {
    pub(super) text: String,
    pub(super) is_open: bool,
}

pub(super) fn tls_files(dir: &Path) -> TlsConfig {
    TlsConfig {
        certificate: dir.join("gateway.crt"),
        key: dir.join("gateway.key"),
        client_ca: dir.join("ca.crt"),
        crl: dir.join("crl.pem"),
    }
}

pub(super) fn client(id: &str) -> ClientConfig {
    let text = format!("id = \"{id}\"\nuri = \"{}\"\nroles = [\"client\"]", uri(id));
    toml::from_str(&text).unwrap()
}

pub(super) fn uri(id: &str) -> String {
    format!("spiffe://tollgate.test/{id}")
}

fn routes() -> Router {
    let who = |Extension(peer): Extension<Arc<Peer>>| async move {
        let id = peer.client.as_ref().map_or("nobody", |client| client.id()).to_owned();
        format!("{id} {} {} {}", peer.uri, peer.listener, peer.tls_group)
    };
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        "slow"
    };
    let body = |body: Body| async move {
        match axum::body::to_bytes(body, usize::MAX).await {
            Ok(bytes) => format!("{} bytes", bytes.len()),
            Err(error) => BodyRefused::cause_of(&error).map_or("?".into(), ToString::to_string),
        }
    };
    Router::new()
        .route("/who", get(who))
        .route("/slow", get(slow))
        .route("/hangs", get(std::future::pending::<()>))
        .route("/body", post(body))
}
