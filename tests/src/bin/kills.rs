//! `make kills`: sudden deaths of the gateway under load, and of its PostgreSQL server; one table
//! and var/kills.json.
//!
//! Exit 0 only when nothing that was acknowledged was lost, made twice or made out of order, and every answer
//! is in an audit log that verifies.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use harness::kills::{Options, Outcome, Store, run, to_json, to_table};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Kills the gateway, round by round")]
struct Arguments {
    /// One store instead of both.
    #[arg(long)]
    store: Option<On>,
    /// Deaths; 200 on SQLite and 40 on PostgreSQL when absent.
    #[arg(long)]
    rounds: Option<u32>,
    /// The same seed chooses the same moments.
    #[arg(long, default_value_t = 20_260_101)]
    seed: u64,
    /// The file for scripts.
    #[arg(long, default_value = "var/kills.json")]
    json: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    Sqlite,
    Postgres,
}

/// The server of a PostgreSQL run ends with the thread that started it: the main one.
#[tokio::main]
async fn main() -> ExitCode {
    harness::mtls::install_provider();
    match kills(Arguments::parse()).await {
        Ok(outcomes) if outcomes.iter().all(Outcome::is_clean) => ExitCode::SUCCESS,
        Ok(outcomes) => {
            for judged in outcomes.iter().map(|outcome| &outcome.judged) {
                eprintln!("kills: twice {:?}, inverted {:?}", judged.doubled, judged.inverted);
                // Behind one that is held the whole account waits: the first ones tell.
                let first = &judged.lost[..judged.lost.len().min(10)];
                eprintln!("kills: {} not paid, the first of them {first:?}", judged.lost.len());
            }
            for trail in outcomes.iter().map(|outcome| &outcome.trail).filter(|one| !one.is_whole())
            {
                let first = &trail.unrecorded[..trail.unrecorded.len().min(10)];
                eprintln!("kills: no record of {first:?}; {}", trail.verdict);
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("kills: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn kills(arguments: Arguments) -> anyhow::Result<Vec<Outcome>> {
    let Arguments { store, rounds, seed, json } = arguments;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut outcomes = Vec::new();
    for (on, store_of, usual) in
        [(On::Sqlite, Store::Sqlite, 200), (On::Postgres, Store::Postgres, 40)]
    {
        if store.is_some_and(|store| store != on) {
            continue;
        }
        let rounds = rounds.unwrap_or(usual);
        println!("seed {seed}: {rounds} kills on {on:?}");
        let options = Options { store: store_of, rounds, seed, dir: None };
        // What is dropped here ends its processes.
        outcomes.push(tokio::select! {
            outcome = run(options) => outcome?,
            _ = terminate.recv() => anyhow::bail!("told to stop"),
            _ = interrupt.recv() => anyhow::bail!("told to stop"),
        });
    }
    println!("\n{}", to_table(&outcomes));
    let text = serde_json::to_string_pretty(&to_json(&outcomes))?;
    if let Some(dir) = json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&json, text).with_context(|| json.display().to_string())?;
    println!("written to {}", json.display());
    Ok(outcomes)
}
