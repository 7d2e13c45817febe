//! `make demo` and `make run`: the whole product on loopback, on a token that may be thrown away.
//!
//! The demo sends real payments, takes the biller away and brings it back, kills HSM workers under
//! load, and compares what clients were told with what the biller did. Exit 0 only when nothing is
//! lost, nothing is made twice, and everything else came as expected.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use harness::demo::{Story, Table};
use harness::world::{Ports, Wanted, World};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Tollgate's demo world")]
struct Arguments {
    #[command(subcommand)]
    order: Order,
    /// Where the world lives; made anew at each start.
    #[arg(long, default_value = "var/demo", global = true)]
    dir: PathBuf,
    /// Data, admin and billing ports become this one and the two after it.
    #[arg(long, env = "TOLLGATE_DEMO_PORT_BASE", global = true)]
    port_base: Option<u16>,
}

#[derive(Subcommand, Clone, Copy)]
enum Order {
    /// Plays the story, prints one table, cleans up.
    Play,
    /// Leaves the world running until SIGTERM or Ctrl-C.
    Run,
}

#[tokio::main]
async fn main() -> ExitCode {
    harness::mtls::install_provider();
    let arguments = Arguments::parse();
    let outcome = match arguments.order {
        Order::Play => play(&arguments).await,
        Order::Run => run(&arguments).await.map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("demo: not everything came as expected; see the table");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play(arguments: &Arguments) -> anyhow::Result<bool> {
    println!("making a token, a CA and a database under {}", arguments.dir.display());
    let mut world = start(arguments).await?;
    println!("gateway, two HSM workers and the billing simulator are up");
    let table = Story::new(&mut world)?.tell().await?;
    world.stop_gateway().await.context("stopping the gateway")?;
    print(&table, &arguments.dir)?;
    Ok(table.as_expected())
}

fn print(table: &Table, dir: &Path) -> anyhow::Result<()> {
    println!("\n{table}");
    println!("Files to look at:");
    for (file, what) in [
        ("gateway.toml", "the configuration that this ran with"),
        ("gateway.log", "what the gateway and its workers said"),
        ("audit/", "one event for each answer, as JSON lines"),
        ("data/billing.journal", "what the biller did"),
        ("token/keys.toml", "what each key of the token is for"),
        ("demo.json", "this table, for scripts"),
    ] {
        println!("  {:<36} {what}", dir.join(file).display());
    }
    let text = serde_json::to_string_pretty(&table.to_json())?;
    std::fs::write(dir.join("demo.json"), text)?;
    Ok(())
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut world = start(arguments).await?;
    let file = arguments.dir.join("world.json");
    let pids = json!({
        "world": std::process::id(),
        "gateway": world.gateway().map(|process| process.id()),
        "billing": world.billing().map(|process| process.id()),
        "workers": world.workers(),
    });
    let Ports { data, admin, billing } = world.ports;
    let text = json!({ "data": data, "admin": admin, "billing": billing, "pids": pids });
    std::fs::write(&file, serde_json::to_string_pretty(&text)?)?;
    let pki = world.pki();
    let pki = pki.display();
    println!("data API    https://127.0.0.1:{data}");
    println!("admin API   https://127.0.0.1:{admin}   (/healthz /readyz /metrics /openapi.json)");
    println!("biller      https://127.0.0.1:{billing}   (/control /control/ledger)");
    println!("processes   {}", file.display());
    println!("\nTry a MAC:\n");
    println!(
        "curl --cacert {pki}/ca.crt --cert {pki}/acquirer-a.crt --key {pki}/acquirer-a.key \\\n  \
         -H 'Content-Type: application/json' \\\n  \
         -d '{{\"key\":\"zak.acquirer-a\",\"message\":\"48656C6C6F\"}}' \\\n  \
         https://127.0.0.1:{data}/v1/mac/generate"
    );
    println!("\nCtrl-C or SIGTERM ends it.");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    println!("stopping");
    world.stop_gateway().await?;
    std::fs::remove_file(&file).context("removing world.json")
}

async fn start(arguments: &Arguments) -> anyhow::Result<World> {
    let dir = &arguments.dir;
    let ports = match arguments.port_base {
        None => Ports { data: 8443, admin: 9443, billing: 8082 },
        Some(base) => {
            let next = |step| base.checked_add(step).context("TOLLGATE_DEMO_PORT_BASE: too high");
            Ports { data: base, admin: next(1)?, billing: next(2)? }
        }
    };
    for port in [ports.data, ports.admin, ports.billing] {
        std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| {
            format!(
                "port {port} is taken: end what listens there (var/demo/world.json names a world \
                 that runs), or move the demo with TOLLGATE_DEMO_PORT_BASE"
            )
        })?;
    }
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    let wanted = Wanted { dir: Some(dir.clone()), ports: Some(ports), ..Wanted::default() };
    World::start_as(wanted).await
}
