//! Accepts connections, one listener a port: no plaintext, no shared thread for handshakes, a bound
//! on everything. A handshake runs in its own task under a deadline; who fails it is reported and
//! counted against its address; who passes is entered among the live connections.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::Router;
use rustls::{CertificateError, pki_types::CertificateDer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connection::{self, NotHttp},
    identity::{self, CertificateFacts, Registry},
    live::{Live, Place},
    peer::Peer,
    sources::{Seat, Sources},
    tls::{ALPN_HTTP2, Loaded, TlsSource},
};
use crate::{
    config::{LimitsConfig, ListenerConfig},
    telemetry::metrics as figures,
};

/// A connection that was not let in, or was cut.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The listener.
    pub listener: &'static str,
    /// Where the connection came from.
    pub address: SocketAddr,
    /// Why, in one word of a closed list.
    pub reason: &'static str,
    /// The URI and certificate, when it came that far.
    pub peer: Option<(String, CertificateFacts)>,
}

/// Hears of every refusal. Called on the accept path: it must not block.
pub type OnRefused = Arc<dyn Fn(Refusal) + Send + Sync>;

/// A bound socket, ready to serve.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    config: ListenerConfig,
    tls: Arc<TlsSource>,
    registry: Arc<Registry>,
    sources: Arc<Sources>,
    live: Arc<Live>,
    on_refused: OnRefused,
}

impl Listener {
    /// Binds the socket. Nothing is accepted before `serve`.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        name: &'static str,
        config: &ListenerConfig,
        limits: &LimitsConfig,
        tls: Arc<TlsSource>,
        registry: Arc<Registry>,
        on_refused: OnRefused,
    ) -> io::Result<Self> {
        let socket = TcpListener::bind(config.listen).await?;
        let (config, sources) = (config.clone(), Sources::new(limits));
        let live = Arc::new(Live::default());
        Ok(Self { name, socket, config, tls, registry, sources, live, on_refused })
    }

    /// Where it listens: the real port when the configured one is 0.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves `router` until `shutdown`, then lets requests in flight finish within the drain
    /// time. Each request carries an `Arc<Peer>` in its extensions.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let listener = Arc::new(self);
        let connections = Arc::new(Semaphore::new(places(listener.config.connections_max)));
        let handshakes = Arc::new(Semaphore::new(places(listener.config.handshakes_max)));
        let tracker = TaskTracker::new();
        tracker.spawn(Arc::clone(&listener).recheck_on_change(shutdown.clone()));
        loop {
            // Places first: without one the connection waits in the kernel and costs us nothing.
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept(&connections, &handshakes) => accepted,
            };
            let Some((stream, address, places)) = accepted else { continue };
            match listener.sources.admit(address.ip()) {
                Ok(seat) => {
                    let task = Arc::clone(&listener).run(
                        Arrival { stream, address, seat, places },
                        router.clone(),
                        shutdown.clone(),
                    );
                    tracker.spawn(task);
                }
                Err(reason) => listener.refuse(address, reason, None),
            }
        }
        tracker.close();
        // Every connection ends by itself when its drain time is over.
        tracker.wait().await;
    }

    /// One accepted socket with its places, or nothing after an error and a rest.
    async fn accept(
        &self,
        connections: &Arc<Semaphore>,
        handshakes: &Arc<Semaphore>,
    ) -> Option<(TcpStream, SocketAddr, Places)> {
        // Neither semaphore is ever closed.
        let connection = Arc::clone(connections).acquire_owned().await.ok()?;
        let handshake = Arc::clone(handshakes).acquire_owned().await.ok()?;
        match self.socket.accept().await {
            Ok((stream, address)) => Some((stream, address, Places { connection, handshake })),
            Err(error) => {
                // Out of descriptors, or the peer is gone already: the next one may fare better.
                tracing::warn!(listener = self.name, %error, "accept failed");
                tokio::time::sleep(ACCEPT_REST).await;
                None
            }
        }
    }

    async fn run(self: Arc<Self>, arrival: Arrival, router: Router, shutdown: CancellationToken) {
        let Arrival { stream, address, seat, places } = arrival;
        let Places { connection: _connection, handshake } = places;
        let time = Duration::from_millis(self.config.handshake_ms_max);
        let entered = tokio::select! {
            () = shutdown.cancelled() => return,
            entered = tokio::time::timeout(time, self.enter(stream, address)) => {
                entered.unwrap_or_else(|_| Err(("handshake-timeout", None)))
            }
        };
        drop(handshake);
        match entered {
            Ok(Entered { stream, is_http2, peer, place }) => {
                let _open = figures::connection_opened(self.name);
                let cut = place.cut.clone();
                let served = connection::serve(
                    stream,
                    is_http2,
                    &self.config,
                    &router,
                    &peer,
                    &cut,
                    &shutdown,
                );
                if let Err(NotHttp) = served.await {
                    let who = Some((peer.uri.clone(), peer.certificate.clone()));
                    self.refuse(address, "not-http", who);
                }
            }
            Err((reason, who)) => {
                seat.handshake_failed();
                self.refuse(address, reason, who);
            }
        }
    }

    /// From an accepted socket to a known peer.
    async fn enter(&self, stream: TcpStream, address: SocketAddr) -> Result<Entered, Refused> {
        // A TLS client speaks first, and says 0x16. Anything else gets no byte, not even an alert.
        let mut first = [0_u8; 1];
        if stream.peek(&mut first).await.map_err(|_| ("connection-lost", None))? == 0 {
            return Err(("connection-lost", None));
        }
        if first != [TLS_HANDSHAKE] {
            // Unread bytes would turn the close into a reset.
            let _ = stream.try_read(&mut [0_u8; 4096]);
            return Err(("not-tls", None));
        }
        stream.set_nodelay(true).map_err(|_| ("connection-lost", None))?;
        let loaded = self.tls.current();
        let stream = TlsAcceptor::from(Arc::clone(&loaded.server))
            .accept(stream)
            .await
            .map_err(|error| (tls_reason(&error), None))?;

        let (_, session) = stream.get_ref();
        let chain: Arc<[CertificateDer<'static>]> = session
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|c| c.clone().into_owned())
            .collect();
        let leaf = chain.first().ok_or(("no-certificate", None))?;
        if chain.len() > CHAIN_MAX {
            return Err(("chain-too-long", None));
        }
        let (uri, certificate) =
            identity::read_leaf(leaf).map_err(|error| (error.as_str(), None))?;
        let client = self.registry.find(&uri);
        if client.as_ref().is_some_and(|client| !client.accepts_key(&certificate.spki_sha256)) {
            return Err(("key-not-pinned", Some((uri, certificate))));
        }
        let is_http2 = session.alpn_protocol() == Some(ALPN_HTTP2);
        let tls_group = session
            .negotiated_key_exchange_group()
            .map_or_else(String::new, |group| format!("{:?}", group.name()));
        let listener = self.name;
        let audited = OnceLock::new();
        let peer =
            Arc::new(Peer { client, uri, certificate, address, listener, tls_group, audited });
        let place = self.live.enter(&peer, Arc::clone(&chain));
        // A reload between our look and our entry has rechecked the others without us.
        if !self.still_holds(&peer, &chain, &loaded) {
            return Err(("no-longer-accepted", Some((peer.uri.clone(), peer.certificate.clone()))));
        }
        Ok(Entered { stream, is_http2, peer, place })
    }

    fn still_holds(&self, peer: &Peer, chain: &[CertificateDer<'static>], then: &Loaded) -> bool {
        let now = self.tls.current();
        Live::same_client(&self.registry, peer)
            && (std::ptr::eq(Arc::as_ptr(&now), then) || now.still_accepts(chain))
    }

    /// After each reload of TLS or registry: cuts the connections that lost their right.
    async fn recheck_on_change(self: Arc<Self>, shutdown: CancellationToken) {
        let (mut tls, mut registry) = (self.tls.changes(), self.registry.changes());
        loop {
            // Both senders live as long as the listener.
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = tls.changed() => {}
                Ok(()) = registry.changed() => {}
            }
            let listener = Arc::clone(&self);
            let recheck = move || {
                listener.live.recheck(&listener.tls.current(), &listener.registry, |peer| {
                    let who = Some((peer.uri.clone(), peer.certificate.clone()));
                    listener.refuse(peer.address, "no-longer-accepted", who);
                });
            };
            if let Err(error) = tokio::task::spawn_blocking(recheck).await {
                tracing::error!(listener = self.name, %error, "rechecking open connections failed");
            }
        }
    }

    fn refuse(
        &self,
        address: SocketAddr,
        reason: &'static str,
        peer: Option<(String, CertificateFacts)>,
    ) {
        figures::count_tls_reject(self.name, reason);
        (self.on_refused)(Refusal { listener: self.name, address, reason, peer });
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An accepted socket with everything that it occupies.
struct Arrival {
    stream: TcpStream,
    address: SocketAddr,
    seat: Seat,
    places: Places,
}

struct Places {
    connection: OwnedSemaphorePermit,
    handshake: OwnedSemaphorePermit,
}

/// A connection that may send requests.
struct Entered {
    stream: TlsStream<TcpStream>,
    is_http2: bool,
    peer: Arc<Peer>,
    place: Place,
}

/// The reason, and who it was when that is known.
type Refused = (&'static str, Option<(String, CertificateFacts)>);

fn places(count: u32) -> usize {
    usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS)
}

/// A failed handshake in one word.
fn tls_reason(error: &io::Error) -> &'static str {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return "connection-lost";
    };
    if let rustls::Error::InvalidCertificate(error) = error {
        return certificate_reason(error);
    }
    if matches!(error, rustls::Error::NoCertificatesPresented) {
        return "no-certificate";
    }
    if matches!(error, rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) {
        return "incompatible";
    }
    if matches!(error, rustls::Error::AlertReceived(_)) {
        return "refused-by-peer";
    }
    "handshake-failed"
}

fn certificate_reason(error: &CertificateError) -> &'static str {
    use CertificateError as E;
    if matches!(error, E::Revoked) {
        return "certificate-revoked";
    }
    if matches!(error, E::Expired | E::ExpiredContext { .. }) {
        return "certificate-expired";
    }
    if matches!(error, E::NotValidYet | E::NotValidYetContext { .. }) {
        return "certificate-not-yet-valid";
    }
    if matches!(error, E::UnknownRevocationStatus) {
        return "crl-missing";
    }
    if matches!(error, E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. }) {
        return "crl-expired";
    }
    if matches!(error, E::UnknownIssuer) {
        return "unknown-issuer";
    }
    if matches!(error, E::InvalidPurpose | E::InvalidPurposeContext { .. }) {
        return "certificate-purpose";
    }
    "certificate-refused"
}

/// The record type that begins every TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Leaf and two intermediates; the root is ours.
const CHAIN_MAX: usize = 3;

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
