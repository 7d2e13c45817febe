//! The data keys of the queue: made and wrapped in the token, used here, destroyed when done.
//!
//! One key seals records for an hour or 2^20 of them; two successors are ready before they are needed,
//! so that a gateway that runs goes on sealing while the token is away, up to a day under one key.
//! A gateway that starts without the token has no key and stores nothing. PIN blocks have keys of
//! their own, one for each quarter of an hour, destroyed with the last block under them: what is
//! left of such a block in logs and backups is noise.

mod rotation; // a new version of the KEK

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use hsm_adapter::protocol::ClearDataKey;
use hsm_adapter::vocabulary::Pan;
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::ring::{Dek, Figures, RECORD_LIFE, Ring, millis};
use super::sealing::{Cipher, Part, Tampered};
use crate::store::{
    ANSWER_WITHIN, DekClass, FINGERPRINT_BYTES, Idempotency, ItemFacts, NewDek, OrdKey, Sealed,
    Store, StoreError,
};
use crate::telemetry::metrics::{QUEUE_DEK_AGE, QUEUE_DEK_SPARES};

/// Where data keys come from: the token, or a stand-in in tests.
pub trait DataKeySource: Send + Sync + 'static {
    /// Draws a key and wraps it under the active KEK.
    fn make(&self) -> impl Future<Output = Result<DataKey, KeySourceError>> + Send;

    /// Unwraps a key that was wrapped under this version of the KEK.
    fn open(
        &self,
        wrapped: &[u8],
        kek_version: u32,
    ) -> impl Future<Output = Result<ClearDataKey, KeySourceError>> + Send;

    /// Wraps such a key anew: its form under the active version of the KEK, and that version.
    fn rewrap(
        &self,
        wrapped: &[u8],
        kek_version: u32,
    ) -> impl Future<Output = Result<(Vec<u8>, u32), KeySourceError>> + Send;
}

/// A new data key in both forms.
#[derive(Debug)]
pub struct DataKey {
    /// For use here.
    pub clear: ClearDataKey,
    /// For the database.
    pub wrapped: Vec<u8>,
    /// The version of the KEK that wraps it.
    pub kek_version: u32,
}

/// Why the source gave no key.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// The token is away; it may come back.
    #[error("the token did not answer in time")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The token answered: these bytes are no key under its KEK.
    #[error("the token does not unwrap the data key")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why something was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no data key to seal under: the token has given none since the gateway started, or not for a day"
)]
pub struct SealingUnavailable;

/// Why a PIN block was not sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealPinError {
    /// The token gives no key.
    #[error(transparent)]
    NoKey(#[from] SealingUnavailable),
    /// The key cannot be made durable.
    #[error(transparent)]
    Store(StoreError),
}

/// Why something was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It never will: hold it for a person.
    #[error(transparent)]
    Tampered(#[from] Tampered),
    /// Its key cannot be unwrapped now.
    #[error("a data key cannot be opened now")]
    Token(#[source] KeySourceError),
    /// Its key cannot be read now.
    #[error("a data key cannot be read now")]
    Store(#[source] StoreError),
}

/// How long data keys live.
#[derive(Debug, Clone, Copy)]
pub struct KeyLives {
    /// How long a PIN block may wait: `queue.pin_life_s`.
    pub pin: Duration,
}

/// The queue's keys. Cheap to clone; the upkeep ends with the last clone.
#[derive(Clone)]
pub struct Keys(Arc<Shared>);

struct Shared {
    store: Store,
    source: Box<dyn AnySource>,
    lives: KeyLives,
    ring: Mutex<Ring>,
    /// The PIN key of the current window. Behind an asynchronous lock: one caller makes it, the
    /// others wait for it.
    pin: tokio::sync::Mutex<Option<Arc<Dek>>>,
}

impl Keys {
    /// Starts to obtain keys, and keeps obtaining them. Returns at once: see [`ready`](Self::ready).
    pub fn start(store: Store, source: impl DataKeySource, lives: KeyLives) -> Self {
        let keys = Self::new(store, source, lives);
        let shared = Arc::downgrade(&keys.0);
        tokio::spawn(async move {
            let mut tick = 0_u64;
            let (mut failing, mut stretched, mut rotating) = (false, false, false);
            while let Some(shared) = shared.upgrade() {
                let keys = Self(shared);
                let obtained = keys.obtain().await;
                // An outage is two lines in the log, not one a second.
                if let Err(error) = &obtained
                    && !failing
                {
                    let ready = keys.ready();
                    tracing::warn!(error = %Chain(error), ready, "no new data key");
                } else if obtained.is_ok() && failing {
                    tracing::info!("data keys come again");
                }
                failing = obtained.is_err();
                let figures = keys.figures();
                if figures.is_stretched() && !stretched {
                    let hours = figures.age.as_secs() / 3_600;
                    tracing::warn!(hours, "no successor: one data key seals longer than it should");
                }
                stretched = figures.is_stretched();
                metrics::gauge!(QUEUE_DEK_SPARES).set(figures.spares as f64);
                metrics::gauge!(QUEUE_DEK_AGE).set(figures.age.as_secs_f64());
                if tick.is_multiple_of(TICKS_PER_DESTROY) {
                    keys.destroy().await;
                    rotating = true;
                }
                if rotating {
                    rotating = keys.rewrap_some().await;
                }
                drop(keys);
                tick += 1;
                tokio::time::sleep(TICK).await;
            }
        });
        keys
    }

    pub(super) fn new(store: Store, source: impl DataKeySource, lives: KeyLives) -> Self {
        let (ring, pin) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Shared { store, source: Box::new(source), lives, ring, pin }))
    }

    /// Whether payments can be sealed now. Part of readiness.
    #[must_use]
    pub fn ready(&self) -> bool {
        let now = self.0.store.now();
        let ring = self.ring();
        ring.index.is_some() && ring.active.as_ref().is_some_and(|active| active.seals(now))
    }

    pub(super) fn figures(&self) -> Figures {
        let now = self.0.store.now();
        let ring = self.ring();
        let age_ms = ring.active.as_ref().map_or(0, |active| now - active.since);
        let age = Duration::from_millis(age_ms.try_into().unwrap_or(0));
        Figures { spares: ring.spares.len(), age }
    }

    /// Seals a payload.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn seal_record(&self, row: &ItemFacts, clear: &[u8]) -> Result<Sealed, SealingUnavailable> {
        self.seal(Part::Record, row, clear)
    }

    /// Seals an answer: its HTTP status and its body.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn seal_answer(
        &self,
        row: &ItemFacts,
        status: u16,
        body: &[u8],
    ) -> Result<Sealed, SealingUnavailable> {
        self.seal(Part::Answer, row, &[&status.to_be_bytes(), body].concat())
    }

    /// Seals a PIN block under the key of the current window.
    ///
    /// # Errors
    /// [`SealPinError`].
    pub async fn seal_pin(&self, row: &ItemFacts, clear: &[u8]) -> Result<Sealed, SealPinError> {
        let dek = self.pin_window().await?;
        Ok(dek.cipher.seal(dek.id, Part::Pin, row, clear).ok_or(SealingUnavailable)?)
    }

    /// Opens a payload.
    ///
    /// # Errors
    /// [`OpenError::Tampered`]: hold the payment. Otherwise try later.
    pub async fn open_record(
        &self,
        row: &ItemFacts,
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        Ok(self.opener(sealed.dek_id).await?.cipher.open(Part::Record, row, sealed)?)
    }

    /// Opens an answer: its HTTP status and its body.
    ///
    /// # Errors
    /// As [`open_record`](Self::open_record).
    pub async fn open_answer(
        &self,
        row: &ItemFacts,
        sealed: &Sealed,
    ) -> Result<(u16, Vec<u8>), OpenError> {
        let clear = self.opener(sealed.dek_id).await?.cipher.open(Part::Answer, row, sealed)?;
        let (status, body) = clear.split_first_chunk::<2>().ok_or(Tampered)?;
        Ok((u16::from_be_bytes(*status), body.to_vec()))
    }

    /// Opens a PIN block.
    ///
    /// # Errors
    /// As [`open_record`](Self::open_record).
    pub async fn open_pin(
        &self,
        row: &ItemFacts,
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        Ok(self.opener(sealed.dek_id).await?.cipher.open(Part::Pin, row, sealed)?)
    }

    /// The lane of these parts: keyed, since an account number is soon guessed.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn ord_key(&self, parts: &[&[u8]]) -> Result<OrdKey, SealingUnavailable> {
        let hash = self.hash(b"ord/1", parts)?;
        let (left, _) = hash.split_first_chunk::<16>().ok_or(SealingUnavailable)?;
        Ok(OrdKey(*left))
    }

    /// What a biller knows something by: a UUID (version 8) of these parts, which tells nothing of them.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn reference(&self, parts: &[&[u8]]) -> Result<Uuid, SealingUnavailable> {
        let hash = self.hash(b"ref/1", parts)?;
        let (left, _) = hash.split_first_chunk::<16>().ok_or(SealingUnavailable)?;
        Ok(uuid::Builder::from_custom_bytes(*left).into_uuid())
    }

    /// A request's fingerprint.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn fingerprint(
        &self,
        parts: &[&[u8]],
    ) -> Result<[u8; FINGERPRINT_BYTES], SealingUnavailable> {
        self.hash(b"fp/1", parts)
    }

    /// What a card is known by outside of sealed rows, useless without the index key: a keyed hash of
    /// the eleven right-most digits without the check digit, which every format and PVV holds. Over
    /// the whole number, who varies the other digits would have new counters for the same PIN block.
    /// 16 bytes.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn pan_reference(&self, pan: &Pan) -> Result<[u8; 16], SealingUnavailable> {
        let digits = Zeroizing::new(pan.pvv_digits());
        let hash = self.hash(b"pan/1", &[&*digits])?;
        hash.first_chunk().copied().ok_or(SealingUnavailable)
    }

    /// One idempotent request, as the guard knows it when its KSN comes again.
    ///
    /// # Errors
    /// [`SealingUnavailable`].
    pub fn holder(&self, request: &Idempotency) -> Result<[u8; 32], SealingUnavailable> {
        self.hash(b"ksn/1", &[&request.key_hash, &request.fp])
    }

    fn hash(&self, label: &[u8], parts: &[&[u8]]) -> Result<[u8; 32], SealingUnavailable> {
        let key = self.ring().index.clone().ok_or(SealingUnavailable)?;
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(key.expose()).map_err(|_| SealingUnavailable)?;
        hmac.update(label);
        for part in parts {
            hmac.update(&(part.len() as u64).to_be_bytes());
            hmac.update(part);
        }
        Ok(hmac.finalize().into_bytes().into())
    }

    fn seal(
        &self,
        part: Part,
        row: &ItemFacts,
        clear: &[u8],
    ) -> Result<Sealed, SealingUnavailable> {
        let dek = self.active()?;
        dek.cipher.seal(dek.id, part, row, clear).ok_or(SealingUnavailable)
    }

    /// The key to seal one record under.
    fn active(&self) -> Result<Arc<Dek>, SealingUnavailable> {
        let now = self.0.store.now();
        let mut ring = self.ring();
        ring.advance(now);
        let active = ring.active.as_mut().filter(|active| active.seals(now));
        let active = active.ok_or(SealingUnavailable)?;
        active.sealed += 1;
        Ok(active.dek.clone())
    }

    async fn pin_window(&self) -> Result<Arc<Dek>, SealPinError> {
        // While no key can be had, callers wait side by side, not each for all before it.
        let window = tokio::time::timeout(ANSWER_WITHIN, self.0.pin.lock()).await;
        let mut window = window.map_err(|_| SealPinError::Store(StoreError::Busy))?;
        let now = self.0.store.now();
        if let Some(dek) = window.as_ref().filter(|dek| now < dek.not_after) {
            return Ok(dek.clone());
        }
        // The block to seal was translated a moment ago: the token is there.
        let dek = self.make(DekClass::Pin, now + millis(PIN_WINDOW)).await.map_err(|error| {
            tracing::warn!(error = %Chain(&error), "no data key for PIN blocks");
            match error {
                ObtainError::Source(_) => SealingUnavailable.into(),
                ObtainError::Store(error) => SealPinError::Store(error),
            }
        })?;
        Ok(window.insert(dek).clone())
    }

    async fn opener(&self, dek_id: i64) -> Result<Arc<Dek>, OpenError> {
        if let Some(dek) = self.ring().find(dek_id) {
            return Ok(dek);
        }
        let row = self.0.store.dek(dek_id).await.map_err(OpenError::Store)?;
        // An open row never refers to a key that is gone.
        let row = row.ok_or(Tampered)?;
        let clear = match self.0.source.open(&row.wrapped, row.kek_version).await {
            Ok(clear) => clear,
            Err(KeySourceError::Refused(_)) => return Err(Tampered.into()),
            Err(away @ KeySourceError::Unavailable(_)) => return Err(OpenError::Token(away)),
        };
        let dek = Arc::new(Dek::of(&row, &clear));
        self.ring().remember(dek.clone());
        Ok(dek)
    }

    /// Obtains whatever is missing. What cannot be had now is asked for again at the next tick.
    pub(super) async fn obtain(&self) -> Result<(), ObtainError> {
        if self.ring().index.is_none() {
            let index = self.index().await?;
            self.ring().index = Some(index);
        }
        // The first one, too, arrives as a spare: `advance` puts it to work.
        while self.ring().lacks(self.0.store.now()) {
            let not_after = self.0.store.now() + millis(RECORD_LIFE_MAX);
            let spare = self.make(DekClass::Record, not_after).await?;
            self.ring().spares.push_back(spare);
        }
        Ok(())
    }

    async fn index(&self) -> Result<ClearDataKey, ObtainError> {
        if let Some(row) = self.0.store.deks(DekClass::Index).await?.first() {
            return Ok(self.0.source.open(&row.wrapped, row.kek_version).await?);
        }
        let DataKey { clear, wrapped, kek_version } = self.0.source.make().await?;
        let class = DekClass::Index;
        self.0
            .store
            .insert_dek(NewDek { class, kek_version, wrapped, not_after: i64::MAX })
            .await?;
        Ok(clear)
    }

    /// A new key, durable before it seals anything.
    async fn make(&self, class: DekClass, not_after: i64) -> Result<Arc<Dek>, ObtainError> {
        let DataKey { clear, wrapped, kek_version } = self.0.source.make().await?;
        let row = NewDek { class, kek_version, wrapped, not_after };
        let id = self.0.store.insert_dek(row).await?;
        let dek = Arc::new(Dek { id, cipher: Cipher::new(&clear), not_after });
        self.ring().remember(dek.clone());
        Ok(dek)
    }

    /// Destroys keys that no open row refers to: of records after their day, of PIN blocks when no
    /// block of their window can be alive.
    pub(super) async fn destroy(&self) {
        let now = self.0.store.now();
        let pin_rest = millis(self.0.lives.pin + Duration::from_secs(60));
        for (class, rest) in [(DekClass::Pin, pin_rest), (DekClass::Record, millis(RECORD_LIFE))] {
            match self.0.store.destroy_deks(class, now - rest).await {
                Ok(destroyed) => self.ring().opened.retain(|dek| !destroyed.contains(&dek.id)),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), class = class.name(), "data keys outlive their use");
                }
            }
        }
        // The handle of a past window is a copy of the key.
        self.0.pin.lock().await.take_if(|dek| now >= dek.not_after + pin_rest);
    }

    /// The lock is held for look-ups only; a panic under it leaves the ring whole.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys(ready: {})", self.ready())
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ObtainError {
    #[error(transparent)]
    Source(#[from] KeySourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// [`DataKeySource`] with its futures boxed, so that `Keys` need not name it.
trait AnySource: Send + Sync {
    fn make(&self) -> BoxFuture<'_, DataKey>;
    fn open<'a>(&'a self, wrapped: &'a [u8], kek_version: u32) -> BoxFuture<'a, ClearDataKey>;
    fn rewrap<'a>(&'a self, wrapped: &'a [u8], version: u32) -> BoxFuture<'a, (Vec<u8>, u32)>;
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeySourceError>> + Send + 'a>>;

impl<S: DataKeySource> AnySource for S {
    fn make(&self) -> BoxFuture<'_, DataKey> {
        Box::pin(DataKeySource::make(self))
    }

    fn open<'a>(&'a self, wrapped: &'a [u8], kek_version: u32) -> BoxFuture<'a, ClearDataKey> {
        Box::pin(DataKeySource::open(self, wrapped, kek_version))
    }

    fn rewrap<'a>(&'a self, wrapped: &'a [u8], version: u32) -> BoxFuture<'a, (Vec<u8>, u32)> {
        Box::pin(DataKeySource::rewrap(self, wrapped, version))
    }
}

/// An error and its causes in one line.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// How far a key is stretched while the token gives no successor.
const RECORD_LIFE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Blocks of one window share a key, and its end.
const PIN_WINDOW: Duration = Duration::from_secs(900);

const TICK: Duration = Duration::from_secs(1);

const TICKS_PER_DESTROY: u64 = 30;
