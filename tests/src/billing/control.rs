//! The test's hand on a running simulator: sets faults, reads the ledger.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;

use super::{Fault, LedgerReport};
use crate::mtls;

/// A control client over mutual TLS, with any certificate of the CA.
#[derive(Debug, Clone)]
pub struct Control {
    http: reqwest::Client,
    base: String,
}

impl Control {
    /// Shows `<client>.crt` of the folder to the simulator at `address`.
    ///
    /// # Errors
    /// A PEM file that cannot be used.
    pub fn new(pki: &Path, client: &str, address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { http: mtls::http_client(pki, client)?, base: format!("https://{address}") })
    }

    /// Puts a fault in force: `Fault::next(Mode::CutAfter, 1)`.
    ///
    /// # Errors
    /// A simulator that is away, or a fault that makes no sense.
    pub async fn set_mode(&self, fault: Fault) -> anyhow::Result<()> {
        let request = self.http.post(format!("{}/control", self.base)).json(&fault);
        let answer = request.send().await.context("the billing simulator does not answer")?;
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        anyhow::ensure!(status.is_success(), "the billing simulator answered {status}: {text}");
        Ok(())
    }

    /// The fault in force: what is left of a counted one.
    ///
    /// # Errors
    /// A simulator that is away.
    pub async fn fault(&self) -> anyhow::Result<Fault> {
        let request = self.http.get(format!("{}/control", self.base));
        let answer = request.send().await.context("the billing simulator does not answer")?;
        answer.json().await.context("the fault is not in its form")
    }

    /// All effects and counters.
    ///
    /// # Errors
    /// A simulator that is away.
    pub async fn ledger(&self) -> anyhow::Result<LedgerReport> {
        let request = self.http.get(format!("{}/control/ledger", self.base));
        let answer = request.send().await.context("the billing simulator does not answer")?;
        let answer = answer.error_for_status().context("the billing simulator refused")?;
        answer.json().await.context("the ledger is not in its form")
    }
}
