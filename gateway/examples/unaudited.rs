//! A gateway that does not record PIN translations: what the bench compares auditing with. For nothing else.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, ensure};
use gateway::app::App;
use gateway::config::{Config, Environment};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// `unaudited serve --config FILE`, as the gateway itself is started.
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    ensure!(provider.install_default().is_ok(), "a crypto provider is installed already");
    let path = PathBuf::from(std::env::args().nth(3).context("serve --config FILE")?);
    let config = Config::load(&path)?;
    ensure!(config.environment == Environment::Demo, "for the demo's world alone");
    gateway::telemetry::logs::install("info")?;
    let app = App::build(&config, &path).await?;
    let stop = CancellationToken::new();
    let (_reload, asked) = tokio::sync::mpsc::channel(1);
    let (mut terminate, stopping) = (signal(SignalKind::terminate())?, stop.clone());
    tokio::spawn(async move {
        terminate.recv().await;
        stopping.cancel();
    });
    app.danger_run_unaudited(stop, asked).await
}
