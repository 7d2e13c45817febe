//! The HSM link as the rest of the gateway sees it: typed questions to whichever token answers.

use std::sync::Arc;

use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, ClearDataKey, KeyFacts, Message, Order, PinKey, PinReference};
use hsm_adapter::vocabulary::{KeyLabel, KeyName, Ksn, MacAlgorithm, Mode, Pan, PinBlock};
use tokio::time::Instant;

use super::Patience;
use super::classify::Operation;
pub use super::hsm::{HsmError, HsmLink};
use super::hsm::{Said, wrong};
use super::pool::{Call, Called, Member, Pool};
use crate::telemetry::metrics::hsm_operation;

/// Every HSM link of this gateway.
#[derive(Debug)]
pub struct Hsm {
    pool: Arc<Pool<HsmLink>>,
    kek: KeyLabel,
}

/// Which link ran an order, and where a clear PIN was.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    /// `None` when none did.
    pub link: Option<&'static str>,
    /// `None` when the order has no PIN, or nobody said.
    pub mode: Option<Mode>,
}

/// A translated block.
#[derive(Debug)]
pub struct Translated {
    /// Under the outbound key.
    pub block: PinBlock,
    /// The version of that key.
    pub key_version: u32,
}

/// The outcome of a PIN verification.
#[derive(Debug, Clone, Copy)]
pub struct PinVerdict {
    /// Whether it is the PIN.
    pub verified: bool,
    /// The version of the key that it was verified with.
    pub key_version: u32,
}

/// A MAC that was made.
#[derive(Debug)]
pub struct Made {
    /// Left-most bytes.
    pub mac: Vec<u8>,
    /// The key's algorithm.
    pub algorithm: MacAlgorithm,
    /// The version that made it.
    pub key_version: u32,
}

/// A data key in both forms.
#[derive(Debug)]
pub struct MadeDataKey {
    /// For sealing, here.
    pub clear: ClearDataKey,
    /// For the database.
    pub wrapped: Vec<u8>,
    /// The version of the KEK.
    pub kek_version: u32,
}

impl Hsm {
    /// `kek` wraps the queue's data keys.
    #[must_use]
    pub fn new(pool: Arc<Pool<HsmLink>>, kek: KeyLabel) -> Self {
        Self { pool, kek }
    }

    /// The links in their order; the first is the one that others are compared with.
    pub fn links(&self) -> impl Iterator<Item = &Arc<HsmLink>> {
        self.pool.members().iter().map(Member::endpoint)
    }

    /// The links with what stands before them.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool<HsmLink>> {
        &self.pool
    }

    /// Whether a link takes orders: a worker is ready, its keys are trusted, its breaker lets calls
    /// pass.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.pool.is_usable()
    }

    /// Where clear PINs may be: the name of the weakest mode of any link; `unknown` while no worker
    /// is ready.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        self.links().filter_map(|link| link.weakest_mode()).max().map_or("unknown", Mode::name)
    }

    /// Ends the workers.
    pub async fn stop(&self) {
        for link in self.links() {
            link.stop().await;
        }
    }

    /// Re-enciphers a PIN block. Beside the outcome: where it ran.
    pub async fn translate_pin(
        &self,
        pan: Pan,
        block: PinBlock,
        from: PinKey,
        to: PinKey,
        patience: impl Into<Patience>,
    ) -> (Place, Result<Translated, HsmError>) {
        let order = Order::TranslatePin { pan, block, from, to };
        let (place, outcome) = self.ask_placed(order, patience.into()).await;
        let translated = outcome.and_then(|answer| {
            let Answer::Block { block, key_version } = answer else { return Err(wrong()) };
            Ok(Translated { block, key_version })
        });
        (place, translated)
    }

    /// Compares the PIN of a block with what the issuer keeps. Beside the
    /// outcome: where it ran.
    pub async fn verify_pin(
        &self,
        pan: Pan,
        block: PinBlock,
        from: PinKey,
        reference: PinReference,
        patience: impl Into<Patience>,
    ) -> (Place, Result<PinVerdict, HsmError>) {
        let order = Order::VerifyPin { pan, block, from, reference };
        let (place, outcome) = self.ask_placed(order, patience.into()).await;
        let verdict = outcome.and_then(|answer| {
            let Answer::PinVerified { verified, key_version } = answer else {
                return Err(wrong());
            };
            Ok(PinVerdict { verified, key_version })
        });
        (place, verdict)
    }

    /// Makes a MAC over `message`; `ksn` with a base derivation key, and only there.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn generate_mac(
        &self,
        key: KeyName,
        ksn: Option<Ksn>,
        message: Vec<u8>,
        length: Option<u8>,
        patience: impl Into<Patience>,
    ) -> Result<Made, HsmError> {
        let order = Order::GenerateMac { key, ksn, message: Message(message), length };
        let Answer::Mac { mut mac, algorithm, key_version } =
            self.ask(order, patience.into()).await?
        else {
            return Err(wrong());
        };
        Ok(Made { mac: std::mem::take(&mut mac.0), algorithm, key_version })
    }

    /// Whether `mac` is the message's; `ksn` as for [`generate_mac`](Self::generate_mac).
    ///
    /// # Errors
    /// See [`HsmError`]; a wrong MAC is an answer.
    pub async fn verify_mac(
        &self,
        key: KeyName,
        ksn: Option<Ksn>,
        message: Message,
        mac: Message,
        patience: impl Into<Patience>,
    ) -> Result<bool, HsmError> {
        let order = Order::VerifyMac { key, ksn, message, mac };
        let Answer::Verified(verified) = self.ask(order, patience.into()).await? else {
            return Err(wrong());
        };
        Ok(verified)
    }

    /// A new data key under the queue KEK.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn make_data_key(&self, deadline: Instant) -> Result<MadeDataKey, HsmError> {
        let kek = self.kek.clone().into();
        let Answer::DataKey { clear, wrapped, kek_version } =
            self.ask(Order::MakeDataKey { kek }, Patience::vital(deadline)).await?
        else {
            return Err(wrong());
        };
        Ok(MadeDataKey { clear, wrapped, kek_version })
    }

    /// Opens a wrapped data key.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn open_data_key(
        &self,
        wrapped: Vec<u8>,
        kek_version: u32,
        deadline: Instant,
    ) -> Result<ClearDataKey, HsmError> {
        let kek = KeyName { label: self.kek.clone(), version: Some(kek_version) };
        let Answer::OpenedDataKey(clear) =
            self.ask(Order::OpenDataKey { kek, wrapped }, Patience::vital(deadline)).await?
        else {
            return Err(wrong());
        };
        Ok(clear)
    }

    /// Wraps a data key anew under the active version of the queue KEK: its new form, and that version.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn rewrap_data_key(
        &self,
        wrapped: Vec<u8>,
        kek_version: u32,
        deadline: Instant,
    ) -> Result<(Vec<u8>, u32), HsmError> {
        let kek = KeyName { label: self.kek.clone(), version: Some(kek_version) };
        let Answer::RewrappedDataKey { wrapped, kek_version } =
            self.ask(Order::RewrapDataKey { kek, wrapped }, Patience::vital(deadline)).await?
        else {
            return Err(wrong());
        };
        Ok((wrapped, kek_version))
    }

    /// The KEK of the queue's data keys.
    #[must_use]
    pub fn queue_kek(&self) -> &KeyLabel {
        &self.kek
    }

    /// Every key with its check value, as one link knows them.
    ///
    /// # Errors
    /// See [`HsmError`].
    pub async fn list_keys(&self, deadline: Instant) -> Result<Vec<KeyFacts>, HsmError> {
        // What shows the keys is what a person needs to set a distrusted link right.
        let distrusted = self.links().find(|link| link.is_up() && link.is_distrusted());
        if let Some(link) = distrusted.filter(|_| !self.pool.is_usable()) {
            let views = link.list_keys_each(deadline).await?;
            return Ok(views.into_iter().next().map(|(_, keys)| keys).unwrap_or_default());
        }
        let Answer::Keys(keys) = self.ask(Order::ListKeys, deadline.into()).await? else {
            return Err(wrong());
        };
        Ok(keys)
    }

    async fn ask(&self, order: Order, patience: Patience) -> Result<Answer, HsmError> {
        self.ask_placed(order, patience).await.1
    }

    async fn ask_placed(
        &self,
        order: Order,
        patience: Patience,
    ) -> (Place, Result<Answer, HsmError>) {
        let operation = order.operation();
        let started = Instant::now();
        let call = Call { operation: Operation::Pure, patience, waits: true };
        let attempt = |link: Arc<HsmLink>, limit| {
            let order = &order;
            async move { link.attempt(order, limit).await }
        };
        let Called { result, by, .. } = self.pool.call(call, attempt).await;
        let link = by.map(|link| link.name());
        let (mode, outcome) = match result {
            Ok(Said { mode, what }) => (mode, Ok(what)),
            Err(error) => (error.mode(), Err(HsmError::from(error))),
        };
        hsm_operation(
            operation,
            link.unwrap_or("none"),
            mode.map_or("none", Mode::name),
            match &outcome {
                Ok(_) => "ok",
                Err(HsmError::Link(LinkError::Answered(Failure::PinBlockRefused))) => "refused",
                Err(_) => "error",
            },
            started.elapsed(),
        );
        let none_trusted = || self.links().all(|link| link.is_distrusted());
        let outcome = outcome.map_err(|error| {
            let closed = matches!(error, HsmError::NoneReady { .. }) && none_trusted();
            if closed { HsmError::Distrusted } else { error }
        });
        (Place { link, mode }, outcome)
    }
}

/// A mode in the words of the audit trail.
#[must_use]
pub fn audited(mode: Mode) -> compliance::Mode {
    match mode {
        Mode::InToken => compliance::Mode::InToken,
        Mode::Vendor => compliance::Mode::Vendor,
        Mode::InWorker => compliance::Mode::InWorker,
    }
}
