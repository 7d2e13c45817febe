//! `tollgate probe`: a container's health check, over mutual TLS like everything else.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::Config;

/// Asks the admin listener for `path`; anything but 200 is an error that says what came.
///
/// # Errors
/// Not configured, not reachable, not 200.
pub async fn ask(config: &Config, path: &str) -> anyhow::Result<()> {
    let probe = config.probe.as_ref().context("[probe] is not configured; name a certificate")?;
    let read = |path: &std::path::Path| {
        std::fs::read(path).with_context(|| format!("[probe] {}", path.display()))
    };
    let mut identity = read(&probe.certificate)?;
    identity.extend(read(&probe.key)?);
    let mut address: SocketAddr = config.admin.listen;
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    let client = reqwest::Client::builder()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(&read(&probe.ca)?)?)
        .identity(reqwest::Identity::from_pem(&identity)?)
        .resolve(&probe.server_name, address)
        .timeout(Duration::from_secs(5))
        .no_proxy()
        .build()?;
    let url = format!("https://{}:{}{path}", probe.server_name, address.port());
    let answer = client.get(&url).send().await.with_context(|| format!("asking {url}"))?;
    let status = answer.status();
    if status.as_u16() != 200 {
        bail!("{url} answered {status}: {}", answer.text().await.unwrap_or_default());
    }
    Ok(())
}
