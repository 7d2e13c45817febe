//! The billing simulator as a program: says where it listens, serves until told to stop.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use harness::billing::{Options, serve};
use harness::mtls;
use tokio::signal::unix::{SignalKind, signal};

/// A biller that answers over mutual TLS, and misbehaves on demand (POST /control).
#[derive(Parser)]
struct Arguments {
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:8082")]
    listen: SocketAddr,
    /// Folder with ca.crt, billing.crt and billing.key.
    #[arg(long)]
    pki: PathBuf,
    /// File of given answers; read back at start.
    #[arg(long)]
    journal: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    mtls::install_provider();
    let Arguments { listen, pki, journal } = Arguments::parse();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;

    let server = serve(Options { listen, pki, journal }).await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening {}", server.address())?;
    stdout.flush()?;

    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}
