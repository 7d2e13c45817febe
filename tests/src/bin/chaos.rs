//! `make chaos`: a thousand faults on both links under steady load; one table and var/chaos.json.
//!
//! Exit 0 only when no answer was wrong, no payment lost and none made twice.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use harness::chaos::{Options, Table, plan, run};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Tollgate's fault battery")]
struct Arguments {
    /// The same seed injects the same faults in the same order.
    #[arg(long, default_value_t = 20_260_101)]
    seed: u64,
    /// Acts whose names begin so; all when absent. May be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Each act with an eighth of its faults.
    #[arg(long)]
    quick: bool,
    /// Requests a second.
    #[arg(long, default_value_t = 120)]
    rate: u32,
    /// HSM links: 1, or a primary and a backup.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    links: u8,
    /// Where the world lives; made anew at each start.
    #[arg(long, default_value = "var/chaos")]
    dir: PathBuf,
    /// The file for scripts.
    #[arg(long, default_value = "var/chaos.json")]
    out: PathBuf,
    /// Prints the faults and injects none.
    #[arg(long)]
    list: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    harness::mtls::install_provider();
    match battery(Arguments::parse()).await {
        Ok(Some(table)) if !table.is_clean() => {
            for finding in table.findings() {
                eprintln!("chaos: {finding}");
            }
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn battery(arguments: Arguments) -> anyhow::Result<Option<Table>> {
    let Arguments { seed, only, quick, rate, links, dir, out, list } = arguments;
    let links = usize::from(links);
    let mut acts = plan(seed, links);
    acts.retain(|act| only.is_empty() || only.iter().any(|name| act.name.starts_with(name)));
    anyhow::ensure!(!acts.is_empty(), "no act is named {only:?}");
    if quick {
        acts.iter_mut().for_each(|act| act.faults.truncate(act.faults.len().div_ceil(8)));
    }
    if list {
        for act in &acts {
            act.faults.iter().for_each(|fault| println!("{} {fault:?}", act.name));
        }
        return Ok(None);
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let faults: usize = acts.iter().map(|act| act.faults.len()).sum();
    println!("seed {seed}: {faults} faults of {} kinds, in {}", acts.len(), dir.display());
    // What is dropped here ends its processes.
    let table = tokio::select! {
        table = run(Options { seed, dir, rate, links, acts }) => table?,
        _ = terminate.recv() => anyhow::bail!("told to stop"),
        _ = interrupt.recv() => anyhow::bail!("told to stop"),
    };
    println!("\n{table}");
    let text = serde_json::to_string_pretty(&table.to_json())?;
    std::fs::write(&out, text).with_context(|| out.display().to_string())?;
    println!("written to {}", out.display());
    Ok(Some(table))
}
