//! The open connections of one listener, so that a reload can cut those that lost their right.
//!
//! rustls never looks at a certificate twice and a registry change does not reach a socket. So each
//! connection leaves its chain here, and `recheck` asks the new verifier and the registry again.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use super::{identity::Registry, peer::Peer, tls::Loaded};

/// The table. Bounded by the listener's `connections_max`.
#[derive(Debug, Default)]
pub(super) struct Live {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    peer: Arc<Peer>,
    chain: Arc<[CertificateDer<'static>]>,
    cut: CancellationToken,
}

/// A place in the table, left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    live: Arc<Live>,
    number: u64,
    /// Cancelled when the connection must end at once.
    pub(super) cut: CancellationToken,
}

impl Live {
    /// Enters a connection.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        chain: Arc<[CertificateDer<'static>]>,
    ) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        self.lock().insert(number, Entry { peer: Arc::clone(peer), chain, cut: cut.clone() });
        Place { live: Arc::clone(self), number, cut }
    }

    /// Cuts every connection whose chain would not be accepted now, or whose registry entry is not
    /// the one it began with. `report` hears of each before its end can be seen from outside.
    /// Verifies signatures: not for a runtime thread.
    pub(super) fn recheck(&self, loaded: &Loaded, registry: &Registry, report: impl Fn(&Peer)) {
        let open: Vec<_> = {
            let open = self.lock();
            let entries = open.values();
            entries.map(|e| (Arc::clone(&e.peer), Arc::clone(&e.chain), e.cut.clone())).collect()
        };
        for (peer, chain, cut) in open {
            if !Self::same_client(registry, &peer) || !loaded.still_accepts(&chain) {
                report(&peer);
                cut.cancel();
            }
        }
    }

    /// Whether the registry still has the entry that a connection began with, or still has none.
    pub(super) fn same_client(registry: &Registry, peer: &Peer) -> bool {
        match (registry.find(&peer.uri), &peer.client) {
            (Some(now), Some(then)) => Arc::ptr_eq(&now, then),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        // Insert and remove leave the map whole even when a holder panicked.
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.lock().remove(&self.number);
    }
}
