//! A new version of the KEK: every data key is wrapped under it, a few at a time, and nothing that they
//! seal is touched.
//!
//! The rows themselves say how far it has come, so that a crash in the middle costs nothing, and several
//! gateways may work at it. Whether there is a new version the token tells when it is given the oldest
//! wrapped key: what comes back under the same version was not needed.

use super::{Chain, KeySourceError, Keys, ObtainError};

impl Keys {
    /// Wraps a few data keys under the active version of the KEK. Whether there may be more.
    pub(in crate::relay) async fn rewrap_some(&self) -> bool {
        match self.try_rewrap_some().await {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "data keys stay under the old KEK for now");
                false
            }
        }
    }

    async fn try_rewrap_some(&self) -> Result<bool, ObtainError> {
        let oldest = self.0.store.oldest_wrapped_deks(AT_ONCE).await?;
        let mut any = false;
        for row in &oldest {
            let rewrapped = self.0.source.rewrap(&row.wrapped, row.kek_version).await;
            // Such a key is lost whatever becomes of the KEK; it must not keep the others.
            if let Err(error @ KeySourceError::Refused(_)) = &rewrapped {
                tracing::error!(dek = row.dek_id, error = %Chain(error), "a data key is lost");
                continue;
            }
            let (wrapped, version) = rewrapped?;
            // All the others are under this version, too.
            if version == row.kek_version {
                return Ok(false);
            }
            any = true;
            self.0.store.rewrap_dek(row.dek_id, row.kek_version, wrapped, version).await?;
            let (dek, from, to) = (row.dek_id, row.kek_version, version);
            tracing::info!(dek, from, to, "a data key is under another version of the KEK");
        }
        Ok(any)
    }
}

/// Each costs the token a millisecond or so, and it has other work.
const AT_ONCE: u32 = 8;
