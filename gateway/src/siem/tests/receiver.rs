//! A receiver of syslog over mutual TLS that counts octets, and misbehaves when told to.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Reads,
    /// Takes the connection and the handshake, and reads nothing.
    Hangs,
    /// Takes the connection and says nothing.
    Silent,
}

/// What was heard, over every start of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<Vec<(Instant, String)>>>);

/// Dropped, it closes everything.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    ended: Option<tokio::task::JoinHandle<()>>,
}

impl Receiver {
    /// Listens with the certificate of this name in `pki`.
    pub(super) async fn start(
        pki: &Path,
        name: &str,
        address: Option<SocketAddr>,
        manner: Manner,
        heard: &Heard,
    ) -> Self {
        let tls = TlsAcceptor::from(Arc::new(server(pki, name)));
        let address = address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, heard) = (CancellationToken::new(), heard.clone());
        let stopped = stop.clone();
        let ended = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let tcp = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (tls, heard) = (tls.clone(), heard.clone());
                connections.spawn(async move {
                    if manner == Manner::Silent {
                        let _tcp = tcp;
                        return std::future::pending().await;
                    }
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    if manner == Manner::Hangs {
                        let _stream = stream;
                        return std::future::pending().await;
                    }
                    let mut stream = BufReader::new(stream);
                    while let Some(message) = read_message(&mut stream).await {
                        heard.0.lock().unwrap().push((Instant::now(), message));
                    }
                });
            }
        });
        Self { address, stop, ended: Some(ended) }
    }

    /// Closes everything, and waits until the port is free.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        self.ended.take().unwrap().await.unwrap();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Heard {
    pub(super) fn messages(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, message)| message.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a crash costs: all that came within this time is forgotten. How much that was.
    pub(super) fn forget(&self, within: Duration) -> usize {
        let mut heard = self.0.lock().unwrap();
        let before = heard.len();
        heard.retain(|(at, _)| at.elapsed() > within);
        before - heard.len()
    }

    /// Boot and number of each message, in the order in which they came for the first time.
    pub(super) fn places(&self) -> Vec<(String, u64)> {
        let mut seen = HashSet::new();
        let all = self.messages();
        let mut places: Vec<_> = all.iter().map(|message| place(message)).collect();
        places.retain(|place| seen.insert(place.clone()));
        places
    }
}

/// Of a message whose text is the stored line, or in the syslog form.
fn place(message: &str) -> (String, u64) {
    if let Some((_, json)) = message.split_once(" - {") {
        let line: Value = serde_json::from_str(&format!("{{{json}")).unwrap();
        return (line["boot"].as_str().unwrap().to_owned(), line["seq"].as_u64().unwrap());
    }
    let value = |name: &str| {
        let (_, rest) = message.split_once(&format!(" {name}=\"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    (value("boot"), value("seq").parse().unwrap())
}

async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut length = 0_usize;
    loop {
        match stream.read_u8().await.ok()? {
            b' ' => break,
            digit => {
                assert!(digit.is_ascii_digit(), "no octet count: {digit}");
                assert!(length > 0 || digit != b'0', "a count begins with no zero");
                length = length * 10 + usize::from(digit - b'0');
            }
        }
    }
    assert!((1..=9_000).contains(&length), "{length}");
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.ok()?;
    Some(String::from_utf8(message).unwrap())
}

fn server(pki: &Path, name: &str) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.join("ca.crt")).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let chain = vec![CertificateDer::from_pem_file(pki.join(format!("{name}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pki.join(format!("{name}.key"))).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap()
}
