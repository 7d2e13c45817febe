//! The audit key of the token, and what a start of the process tells of itself.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use compliance::{Digests, Hash, SignatureType};
use hsm_adapter::vocabulary::{KeyLabel, KeyName, SignatureAlgorithm};
use hsm_adapter::worker::chain;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::audit::{CheckpointSignature, Signs};
use crate::links::hsm::SignedCheckpoint;
use crate::links::token::Hsm;

/// The audit key of every link's token.
#[derive(Clone, Debug)]
pub struct CheckpointKey {
    /// Where it is.
    pub hsm: Arc<Hsm>,
    /// Its label.
    pub label: KeyLabel,
}

impl Signs for CheckpointKey {
    async fn sign(
        &self,
        version: Option<u32>,
        text: String,
    ) -> Vec<Result<CheckpointSignature, String>> {
        let limit = Instant::now() + SIGN_MAX;
        let usable = self.hsm.links().filter(|link| link.is_up() && !link.is_distrusted());
        let mut asked = JoinSet::new();
        for link in usable {
            let link = Arc::clone(link);
            let key = KeyName { label: self.label.clone(), version };
            let text = text.clone().into_bytes();
            asked.spawn(async move {
                let made = link.sign_checkpoint(key, text, limit).await;
                made.map(signature).map_err(|error| format!("{}: {}", link.name(), chain(&error)))
            });
        }
        let made: Vec<_> = asked.join_all().await;
        if made.is_empty() { vec![Err("no HSM link is up".into())] } else { made }
    }
}

/// As the log takes it.
pub(crate) fn signature(made: SignedCheckpoint) -> CheckpointSignature {
    CheckpointSignature {
        kind: match made.algorithm {
            SignatureAlgorithm::EcdsaP256Sha256 => SignatureType::EcdsaP256,
            SignatureAlgorithm::Ed25519 => SignatureType::Ed25519,
        },
        public_key: made.public_key,
        signature: made.signature,
        version: made.key_version,
    }
}

/// What this process runs: its program, its configuration file, and the keys that the token tells of.
///
/// # Errors
/// When a file cannot be read.
pub async fn digests(config: &Path, hsm: &Hsm) -> io::Result<Digests> {
    let config = config.to_owned();
    let files = tokio::task::spawn_blocking(move || {
        Ok::<_, io::Error>((digest_of(&config)?, digest_of(Path::new("/proc/self/exe"))?))
    });
    let (configuration, program) = files.await.map_err(io::Error::other)??;
    let keys = hsm.list_keys(Instant::now() + KEYS_MAX).await.ok().map(|keys| {
        let line = |key: &hsm_adapter::protocol::KeyFacts| {
            let kcv = key.kcv.map(|kcv| kcv.to_string()).unwrap_or_default();
            format!("{}@{} {} {} {kcv}\n", key.label, key.version, key.role, key.state)
        };
        let mut lines: Vec<String> = keys.iter().map(line).collect();
        lines.sort_unstable();
        Hash(Sha256::digest(lines.concat()).into())
    });
    Ok(Digests { configuration, keys, program })
}

pub(crate) fn digest_of(path: &Path) -> io::Result<Hash> {
    Hash::of_file(path).map(|(hash, _)| hash)
}

/// One signature of each link.
const SIGN_MAX: Duration = Duration::from_millis(700);
/// A token that starts more slowly leaves the start record without keys.
const KEYS_MAX: Duration = Duration::from_secs(2);
