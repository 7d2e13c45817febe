//! Has the HSM sign what the log has come to: every few seconds, also when nothing happens.
//!
//! The writer says when, and never waits: records go on behind the size that is signed. While the HSM is away
//! checkpoints are written without a signature, and the next signed one covers them all. Each token signs with
//! its own key; a new key is introduced by one note that it and a known one sign.

use std::{future::Future, time::Duration};

use compliance::{
    Checkpoint, Event, EventType, Hash, Label, Outcome, Reason, Resource, ResourceType,
    SignatureType, SignedNote, VerifierKey,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::log::AuditLog;
use crate::telemetry::metrics as figures;

/// What is to be signed next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) size: u64,
    pub(super) root: Hash,
}

/// Signs with the audit key, inside the HSM.
pub trait Signs: Send + Sync + 'static {
    /// Signs the text with this version of the key, with the active one when none is named: what each
    /// token makes of it, or why it does not. Never empty.
    fn sign(
        &self,
        version: Option<u32>,
        text: String,
    ) -> impl Future<Output = Vec<Result<CheckpointSignature, String>>> + Send;
}

/// A signature and what it is verified with.
#[derive(Clone, Debug)]
pub struct CheckpointSignature {
    /// How it was made.
    pub kind: SignatureType,
    /// As `VerifierKey` takes it.
    pub public_key: Vec<u8>,
    /// As a note takes it.
    pub signature: Vec<u8>,
    /// The version of the key.
    pub version: u32,
}

/// The task behind the writer.
#[derive(Debug)]
pub struct Checkpoints<S> {
    log: AuditLog,
    signs: S,
    interval_s: u64,
    /// The keys that sign, one a token unless they share it; also those from before this start. Only a note that
    /// is written changes them.
    keys: Vec<VerifierKey>,
    /// What they are once the note that is being made is written.
    next_keys: Option<Vec<VerifierKey>>,
    /// How many in a row are not signed.
    unsigned: u32,
    /// Whether keys that nobody vouches for stand on record.
    is_unvouched: bool,
}

impl<S: Signs> Checkpoints<S> {
    /// Notes are to come every `interval_s` seconds.
    pub fn new(log: AuditLog, signs: S, interval_s: u64) -> Self {
        let keys = log.previous().keys.clone();
        Self { log, signs, interval_s, keys, next_keys: None, unsigned: 0, is_unvouched: false }
    }

    /// Serves the writer until `stop`.
    pub async fn keep(mut self, stop: CancellationToken) {
        let mut due = self.log.shared().due.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = due.changed() => if changed.is_err() { return stop.cancelled().await },
            }
            let Some(next) = *due.borrow_and_update() else { continue };
            self.make(next).await;
        }
    }

    async fn make(&mut self, due: Due) {
        self.next_keys = None;
        let signed = match timeout(SIGN_MAX, self.sign(due)).await {
            Ok(signed) => signed,
            Err(_) => Err("the HSM did not answer in time".into()),
        };
        let (note, trouble) = match signed {
            Ok(note) => (note, None),
            Err(why) => (SignedNote::unsigned(self.checkpoint(due, Vec::new())), Some(why)),
        };
        let signed = trouble.is_none().then(|| note.clone());
        let on = Resource::new(ResourceType::AuditStream, Label::new(self.log.stream().as_str()));
        let outcome = if trouble.is_none() { Outcome::Success } else { Outcome::Error };
        let event = self.log.own_event(EventType::AuditCheckpoint, outcome, on).checkpoint(note);
        let event = match &trouble {
            Some(_) => event.reason(Reason::HsmUnavailable),
            None => event,
        };
        let event = self.log.shared().queue_state().into_iter().fold(event, Event::queue);
        if self.log.append(event).await.is_ok() {
            self.log.shared().covered.send_replace(due.size);
            self.keys = self.next_keys.take().unwrap_or_else(|| std::mem::take(&mut self.keys));
            metrics::gauge!(figures::AUDIT_CHECKPOINT_SIGNED)
                .set(f64::from(u8::from(trouble.is_none())));
            if signed.is_some() {
                self.log.shared().signed.send_replace(signed);
            }
        }
        self.tell(trouble).await;
    }

    /// One late answer is no failure: the verifier, too, waits for three.
    async fn tell(&mut self, trouble: Option<String>) {
        match trouble {
            Some(why) => {
                self.unsigned = self.unsigned.saturating_add(1);
                if self.unsigned == UNSIGNED_MAX {
                    self.log.control(true, CONTROL, Some(Reason::HsmUnavailable), &why).await;
                }
            }
            None => {
                if self.unsigned >= UNSIGNED_MAX {
                    self.log.control(false, CONTROL, None, "signed again").await;
                }
                self.unsigned = 0;
            }
        }
    }

    async fn sign(&mut self, due: Due) -> Result<SignedNote, String> {
        let checkpoint = self.checkpoint(due, self.keys.clone());
        let made = self.signatures(None, &checkpoint).await?;
        if made.iter().all(|(key, _)| self.keys.contains(key)) {
            if std::mem::take(&mut self.is_unvouched) {
                self.log.control(false, CONTROL_KEY, None, "the new key signs").await;
            }
            return Ok(noted(checkpoint, &made));
        }
        self.introduce(due, made).await
    }

    /// New keys sign a note that names them, and so does each one known that still can.
    async fn introduce(&mut self, due: Due, seen: Vec<Made>) -> Result<SignedNote, String> {
        let (known, mut keys) = (self.keys.clone(), self.keys.clone());
        let new = seen.iter().map(|(key, _)| key).filter(|key| !known.contains(key));
        keys.extend(new.cloned());
        let checkpoint = self.checkpoint(due, keys);
        let mut made = self.signatures(None, &checkpoint).await?;
        let active: Vec<VerifierKey> = made.iter().map(|(key, _)| key.clone()).collect();
        let versions = seen.iter().map(|(_, made)| made.version).max().unwrap_or(1);
        for earlier in (1..versions).rev().take(VERSIONS_TRIED) {
            if made.iter().any(|(key, _)| known.contains(key)) {
                break;
            }
            let by_old = self.signatures(Some(earlier), &checkpoint).await.unwrap_or_default();
            made.extend(by_old.into_iter().filter(|(key, _)| known.contains(key)));
        }
        let is_vouched_for = known.is_empty() || made.iter().any(|(key, _)| known.contains(key));
        if !is_vouched_for {
            let keys = active.iter().map(VerifierKey::to_string).collect::<Vec<_>>().join(" ");
            tracing::error!(
                keys,
                "no known audit key vouches for these: give them to the auditors"
            );
            let note = "a key that no known one has signed: hand it out anew";
            self.log.control(true, CONTROL_KEY, None, note).await;
            self.is_unvouched = true;
        }
        self.next_keys = Some(active);
        Ok(noted(checkpoint, &made))
    }

    /// One for each key; an error when there is none at all.
    async fn signatures(
        &self,
        version: Option<u32>,
        checkpoint: &Checkpoint,
    ) -> Result<Vec<Made>, String> {
        let (mut found, mut trouble) = (Vec::<Made>::new(), None);
        for made in self.signs.sign(version, checkpoint.text()).await {
            match made.and_then(|made| Ok((self.key_of(&made)?, made))) {
                Ok((key, _)) if found.iter().any(|(other, _)| *other == key) => {}
                Ok(made) => found.push(made),
                Err(why) => trouble = Some(why),
            }
        }
        match trouble {
            Some(why) if found.is_empty() => Err(why),
            _ => Ok(found),
        }
    }

    fn checkpoint(&self, due: Due, keys: Vec<VerifierKey>) -> Checkpoint {
        let origin = self.log.stream().to_string();
        Checkpoint { origin, size: due.size, root: due.root, keys, interval_s: self.interval_s }
    }

    fn key_of(&self, made: &CheckpointSignature) -> Result<VerifierKey, String> {
        let name = self.log.stream().deployment();
        VerifierKey::new(name, made.kind, made.public_key.clone()).map_err(|why| why.to_string())
    }
}

type Made = (VerifierKey, CheckpointSignature);

fn noted(checkpoint: Checkpoint, made: &[Made]) -> SignedNote {
    made.iter().fold(SignedNote::unsigned(checkpoint), |note, (key, made)| {
        note.signed(key, made.signature.clone())
    })
}

/// The name under which it fails and recovers.
const CONTROL: &str = "checkpoints";
const CONTROL_KEY: &str = "checkpoints.key";
/// So many checkpoints without a signature are a failure of the control.
const UNSIGNED_MAX: u32 = 3;
/// Well below the interval: a checkpoint that is late is written without a signature.
const SIGN_MAX: Duration = Duration::from_millis(1_500);
/// Versions of the key that are asked, when another one signs than before.
const VERSIONS_TRIED: usize = 8;
