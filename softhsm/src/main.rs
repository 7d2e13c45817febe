//! `tollgate-token`: makes a disposable SoftHSM token. See the library.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use hsm_adapter::register::{KeyRegister, VendorTable};
use softhsm::{KeyReport, PlannedKey, TokenDirectory, TokenToolError, demo_plan, find_module};

#[derive(Parser)]
#[command(name = "tollgate-token", version, about = "Makes disposable SoftHSM tokens")]
struct Arguments {
    #[command(subcommand)]
    command: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Makes a token with the demo keys in a directory of its own; completes one that is there, and
    /// writes its key register anew.
    Init {
        #[command(flatten)]
        token: TokenArguments,
        /// The keys, as JSON; the demo keys when absent.
        #[arg(long)]
        plan: Option<PathBuf>,
        /// `[vendor]` of the key register, TOML; none when absent.
        #[arg(long)]
        vendor: Option<PathBuf>,
    },
    /// Makes more keys on a token that is there; its key register keeps what it has. The next version of
    /// an audit signing key: `[{"profile": {"label": "audit.signing", "version": 2, "state": "staged",
    /// "role": "audit-signing", "algorithm": "ec"}}]`.
    Add {
        #[command(flatten)]
        token: TokenArguments,
        /// The keys, as JSON.
        #[arg(long)]
        plan: PathBuf,
    },
}

#[derive(clap::Args)]
struct TokenArguments {
    /// The token's directory.
    #[arg(long)]
    dir: PathBuf,
    /// The token's label.
    #[arg(long, default_value = "tollgate-demo")]
    label: String,
    /// The PKCS#11 module; looked for in the usual places when absent.
    #[arg(long)]
    module: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate-token: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (Order::Init { token, .. } | Order::Add { token, .. }) = &arguments.command;
    let TokenArguments { dir, label, module, json } = token;
    let directory = TokenDirectory::new(dir)?;
    match arguments.command {
        Order::Init { .. } => directory.prepare()?,
        Order::Add { .. } => {}
    }
    // The module reads its configuration's path from the environment when it is loaded: start
    // again with the right one, never with the system's.
    if std::env::var_os("SOFTHSM2_CONF").as_deref() != Some(directory.configuration().as_os_str()) {
        let this = std::env::current_exe().context("finding this program")?;
        let error = Command::new(this)
            .args(std::env::args_os().skip(1))
            .env("SOFTHSM2_CONF", directory.configuration())
            .exec();
        return Err(error).context("starting again with this token's SOFTHSM2_CONF");
    }
    let module = module.clone().or_else(find_module).ok_or(TokenToolError::NoModule)?;
    let report = match &arguments.command {
        Order::Init { plan, vendor, .. } => {
            let plan = plan.as_deref().map_or_else(|| Ok(demo_plan()?), read)?;
            let vendor = match vendor {
                None => VendorTable::default(),
                Some(path) => KeyRegister::read(path)?.vendor().clone(),
            };
            directory.fill(&module, label, vendor, &plan)?
        }
        Order::Add { plan, .. } => directory.add(&module, label, &read(plan)?)?,
    };
    if *json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&directory, label, &report);
    }
    Ok(())
}

/// A plan of keys.
fn read(path: &Path) -> anyhow::Result<Vec<PlannedKey>> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

fn print(directory: &TokenDirectory, label: &str, report: &[KeyReport]) {
    println!("{:<26} {:<22} {:<10} {:<7} COMPARED WITH", "KEY", "ROLE", "ORIGIN", "KCV");
    for key in report {
        println!(
            "{:<26} {:<22} {:<10} {:<7} {}",
            key.key,
            key.role,
            key.origin,
            key.kcv.as_deref().unwrap_or("-"),
            key.compared.unwrap_or("-"),
        );
    }
    println!("\ntoken {label:?}: SOFTHSM2_CONF={}", directory.configuration().display());
    println!("key register: {}", directory.key_register().display());
}
