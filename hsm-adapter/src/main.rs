//! `tollgate-hsm`: the worker process. The gateway starts it; see `hsm_adapter::worker`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use hsm_adapter::worker::{self, Options};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,cryptoki=off"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match worker::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = worker::chain(&error), "the worker does not run");
            ExitCode::FAILURE
        }
    }
}
