//! `tollgate probe`: a container's health check, over mutual TLS like everything else.

use reqwest::Method;

use crate::operator::{Access, AdminClient};

/// Asks the admin listener for `path`; anything but 200 is an error that says what came.
///
/// # Errors
/// Not configured, not reachable, not 200.
pub async fn ask(access: &Access, path: &str) -> anyhow::Result<()> {
    AdminClient::open(access)?.text(Method::GET, path, None).await.map(drop)
}
