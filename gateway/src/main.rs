//! `tollgate`: arguments, configuration, build, run, drain.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use gateway::app::App;
use gateway::audit_desk::{self, AuditCommand};
use gateway::config::Config;
use gateway::key_desk::{self, KeyCommand};
use gateway::operator::{Access, BreakerOrder};
use gateway::queue_desk::{self, QueueCommand};
use gateway::{check, operator, probe, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(name = "tollgate", version, about = "The Tollgate payment gateway")]
struct Arguments {
    #[command(subcommand)]
    order: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Runs the gateway.
    Serve {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Looks at everything that `serve` needs, one row a check. Exit 0 when all is well, else 1.
    Check {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Also collect signed evidence for an assessor in this directory, which must be new or empty.
        #[arg(long, value_name = "DIR")]
        evidence: Option<PathBuf>,
    },
    /// Asks a running gateway whether it is live or ready, over mutual TLS. Exit 0 when it is.
    Probe {
        /// What to ask.
        what: Question,
        #[command(flatten)]
        access: Access,
    },
    /// The token's keys, and their changes under dual control.
    #[command(subcommand)]
    Keys(KeyCommand),
    /// The payments that wait, and the billers that they wait for.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// The audit log: where it stands, a search, an export.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The HSM links and the breakers of a running gateway, over its admin API.
    Links {
        #[command(subcommand)]
        order: LinksOrder,
    },
    /// Prints the OpenAPI document.
    Openapi,
}

#[derive(Subcommand)]
enum LinksOrder {
    /// Workers, breakers, and what was proved in which mode.
    List {
        #[command(flatten)]
        access: Access,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Lets no call pass a breaker, until its reset.
    ForceOpen(BreakerOrder),
    /// Lets every call pass a breaker, until its reset.
    Disable(BreakerOrder),
    /// Closes a breaker and ends what was ordered.
    Reset(BreakerOrder),
}

#[derive(Clone, Copy, ValueEnum)]
enum Question {
    /// Whether the process answers.
    Live,
    /// Whether it can do its work.
    Ready,
}

#[tokio::main]
async fn main() -> ExitCode {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if provider.install_default().is_err() {
        eprintln!("tollgate: a crypto provider is installed already");
        return ExitCode::FAILURE;
    }
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.order {
        Order::Serve { config } => serve(config).await.map(|()| ExitCode::SUCCESS),
        Order::Check { config, json, evidence } => {
            Ok(check::run(&config, json, evidence.as_deref()).await)
        }
        Order::Probe { what, access } => {
            let path = match what {
                Question::Live => "/healthz",
                Question::Ready => "/readyz",
            };
            probe::ask(&access, path).await.map(|()| ExitCode::SUCCESS)
        }
        Order::Keys(command) => key_desk::run(&command).await.map(|()| ExitCode::SUCCESS),
        Order::Queue(command) => queue_desk::run(&command).await,
        Order::Audit(command) => audit_desk::run(&command).await.map(|()| ExitCode::SUCCESS),
        Order::Links { order } => {
            let told = match order {
                LinksOrder::List { access, json } => operator::list_links(&access, json).await?,
                LinksOrder::ForceOpen(order) => {
                    operator::order_breaker(&order, "force-open").await?
                }
                LinksOrder::Disable(order) => operator::order_breaker(&order, "disable").await?,
                LinksOrder::Reset(order) => operator::order_breaker(&order, "reset").await?,
            };
            print!("{told}");
            Ok(ExitCode::SUCCESS)
        }
        Order::Openapi => {
            println!("{}", gateway::openapi().to_pretty_json()?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn serve(path: PathBuf) -> anyhow::Result<()> {
    telemetry::logs::install("info")?;
    gateway::hardening::harden()?;
    let config = Config::load(&path)?;
    let app = App::build(&config, &path).await?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let (reload, asked) = tokio::sync::mpsc::channel(1);
    let stopping = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return stopping.cancel(),
                _ = interrupt.recv() => return stopping.cancel(),
                // A reload that is asked for already covers this one too.
                _ = hang_up.recv() => drop(reload.try_send(())),
            }
        }
    });
    app.run(stop, asked).await
}
