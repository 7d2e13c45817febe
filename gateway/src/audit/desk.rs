//! What an auditor asks of the log: where it stands, records by what they say, a range to take home.
//!
//! It reads the files behind the writer, never what is not durable, at most two at a time.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use compliance::{
    Hash, SignedNote, VerifierKey,
    export::Format,
    search::{After, Bounds, Filter, Found, search},
    write_set,
};
use jiff::Timestamp;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::spawn_blocking,
    time::timeout,
};

use super::log::AuditLog;

/// The reading side of the log of this replica.
#[derive(Clone, Debug)]
pub struct AuditDesk {
    log: AuditLog,
    places: Arc<Semaphore>,
}

/// Where the log stands.
#[derive(Clone, Debug)]
pub struct AuditStatus {
    /// The stream of this process.
    pub stream: String,
    /// Its last record that is durable.
    pub seq: u64,
    /// Whether records become durable.
    pub is_writable: bool,
    /// Whether a sink has fallen so far behind that new work is refused.
    pub is_blocked: bool,
    /// The last checkpoint that was signed.
    pub note: Option<SignedNote>,
}

impl AuditStatus {
    /// The keys that the last signed checkpoint names, with the SHA-256 of each.
    pub fn keys(&self) -> impl Iterator<Item = (&VerifierKey, Hash)> {
        let keys = self.note.iter().flat_map(|note| &note.checkpoint().keys);
        keys.map(|key| (key, key.fingerprint()))
    }
}

/// Why the log was not read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum DeskError {
    #[error("others read the audit log")]
    Busy,
    #[error("reading the audit log")]
    Read(#[source] io::Error),
}

impl AuditDesk {
    /// For the log of this process.
    #[must_use]
    pub fn new(log: AuditLog) -> Self {
        Self { log, places: Arc::new(Semaphore::new(READERS)) }
    }

    /// Where the log stands.
    #[must_use]
    pub fn status(&self) -> AuditStatus {
        AuditStatus {
            stream: self.log.stream().to_string(),
            seq: *self.log.durable().borrow(),
            is_writable: self.log.is_writable(),
            is_blocked: self.log.is_blocked(),
            note: self.log.shared().signed.borrow().clone(),
        }
    }

    /// A page of what matches in the files that are at hand.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn search(
        &self,
        filter: Filter,
        after: Option<After>,
        records: usize,
    ) -> Result<Found, DeskError> {
        let place = self.place()?;
        let dir = self.dir();
        let bounds = Bounds { records, time: SEARCH_TIME };
        let searched = spawn_blocking(move || {
            let _place = place;
            search(&dir, &filter, after, bounds)
        });
        searched.await.map_err(io::Error::other).flatten().map_err(DeskError::Read)
    }

    /// The records of a time range in a format, in pieces of some 64 KiB. As JSON Lines it verifies by itself,
    /// and ends with the checkpoint that covers it; an error in it means that it is not whole.
    ///
    /// # Errors
    /// [`DeskError::Busy`].
    pub async fn export(
        &self,
        format: Format,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<mpsc::Receiver<io::Result<Vec<u8>>>, DeskError> {
        let place = self.place()?;
        // So that what is asked for is covered now.
        self.log.checkpoint_now().await;
        let (pieces, taken) = mpsc::channel(PIECES);
        let (dir, runtime) = (self.dir(), Handle::current());
        spawn_blocking(move || {
            let _place: OwnedSemaphorePermit = place;
            let mut out = Pieces { pieces, runtime, held: Vec::with_capacity(PIECE_BYTES) };
            let made = write_set(&dir, format, from, to, &mut out);
            let ended = made.map_err(io::Error::other).and_then(|_| out.flush());
            if let Err(error) = ended {
                tracing::warn!(%error, "an export of the audit log ended early");
                out.send(Err(error));
            }
        });
        Ok(taken)
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, DeskError> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| DeskError::Busy)
    }

    fn dir(&self) -> PathBuf {
        self.log.dir().to_owned()
    }
}

/// A writer whose bytes go to another task, as fast as that takes them.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Vec<u8>>>,
    runtime: Handle,
    held: Vec<u8>,
}

impl Pieces {
    fn send(&self, piece: io::Result<Vec<u8>>) -> bool {
        let sent = self.runtime.block_on(timeout(SEND_MAX, self.pieces.send(piece)));
        matches!(sent, Ok(Ok(())))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.held, Vec::with_capacity(PIECE_BYTES));
        if piece.is_empty() || self.send(Ok(piece)) {
            return Ok(());
        }
        // Who asked has gone.
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

const READERS: usize = 2;
const SEARCH_TIME: Duration = Duration::from_secs(5);
const PIECE_BYTES: usize = 64 * 1024;
const PIECES: usize = 4;
/// Who takes nothing for so long gets no more: others wait for the place.
const SEND_MAX: Duration = Duration::from_secs(30);
