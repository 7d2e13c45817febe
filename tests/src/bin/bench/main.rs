//! `make bench`: CPU per operation of gateway and workers together, beside the floors of the same
//! run; then what takes too long for `make test`: random operations, refusals, their timing, a
//! million operations, links that fail. Benchmarks report; they assert nothing about time.
//!
//! Floors: TLS is a bare axum + tokio-rustls echo over the same mutual TLS with the same bodies, in
//! a process of its own; PKCS#11 is the same C_ calls in a loop on the same token objects. CPU is
//! user + system from the operating system. Ratio = CPU per operation / (TLS + PKCS#11 floor).
#![forbid(unsafe_code)]

mod audit;
mod backlog;
mod cpu;
mod endurance;
mod links;
mod orders;
mod random;
mod refusals;
mod secrecy;
mod store;
mod workers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::body::Bytes;
use clap::{Parser, Subcommand, ValueEnum};
use harness::acquirer::Acquirer;
use harness::load::{Report, Target, Until, drive};
use harness::mtls;
use harness::soft::pin::PinFormat;
use harness::world::{Process, World, children, program};
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use self::cpu::Cpu;

#[derive(Parser)]
#[command(about = "Measures the gateway beside its floors")]
struct Arguments {
    #[command(subcommand)]
    order: Option<Order>,
    /// One part instead of all.
    #[arg(long)]
    only: Option<Part>,
    /// Seconds for each measured run.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Where the figures go.
    #[arg(long, default_value = "var/bench.json")]
    out: PathBuf,
}

/// The parts of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Gateway and workers together, over TLS.
    Gateway,
    /// A worker alone, beside the raw PKCS#11 calls.
    Workers,
    /// A hundred thousand random operations, beside the same in software.
    Random,
    /// A hundred thousand PIN blocks that are none, over HTTPS.
    Refusals,
    /// Whether the time of a refusal tells what was wrong.
    Secrecy,
    /// A million operations on one worker: what they leave behind.
    Endurance,
    /// The queue's database: in and out.
    Store,
    /// A long queue whose biller comes back.
    Backlog,
    /// What the audit log costs, and how fast it verifies.
    Audit,
    /// Links that die, hang and come back, and what their layers cost.
    Links,
}

#[derive(Subcommand)]
enum Order {
    /// The TLS floor's server, started by the bench itself.
    Echo {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        pki: PathBuf,
    },
}

/// Keep-alive connections of each run.
const CONNECTIONS: usize = 32;

#[tokio::main]
async fn main() -> ExitCode {
    mtls::install_provider();
    let arguments = Arguments::parse();
    let outcome = match &arguments.order {
        Some(Order::Echo { listen, pki }) => echo(*listen, pki).await,
        None => measure(&arguments).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One operation of the data API with its right answer.
struct Subject {
    name: &'static str,
    path: &'static str,
    body: Bytes,
    /// A text that only a right answer holds.
    accepted: &'static str,
    /// Which PKCS#11 floor.
    floor: &'static str,
}

fn subjects() -> anyhow::Result<Vec<Subject>> {
    let acquirer = Acquirer::a();
    let pan = "4761737909457820";
    let refused = |error| anyhow::anyhow!("{error:?}");
    let block = acquirer.pin_block("1234", pan, PinFormat::Iso0).map_err(refused)?;
    let message = hex::encode_upper([0x5A; 64]);
    let mac = acquirer.mac(&[0x5A; 64]);
    let key = "zak.acquirer-a";
    let subject = |name, path, body: Value, accepted, floor| {
        let body = Bytes::from(body.to_string());
        Subject { name, path, body, accepted, floor }
    };
    Ok(vec![
        subject(
            "translate",
            "/v1/pin/translate",
            json!({"pan": pan, "pin_block": block,
                "from": {"key": "zpk.acquirer-a", "format": "iso0"},
                "to": {"key": "zpk.billing", "format": "iso0"}}),
            "\"pin_block\"",
            "translate",
        ),
        subject(
            "mac_generate",
            "/v1/mac/generate",
            json!({"key": key, "message": message}),
            "\"mac\"",
            "retail_mac",
        ),
        subject(
            "mac_verify",
            "/v1/mac/verify",
            json!({"key": key, "message": message, "mac": mac}),
            "\"verified\":true",
            "retail_mac",
        ),
    ])
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = |part| arguments.only.is_none_or(|only| only == part);
    let mut figures = Vec::new();
    if wanted(Part::Gateway) {
        figures.extend(gateway(arguments).await?);
    }
    if wanted(Part::Workers) {
        figures.extend(workers::measure(arguments.seconds).await?);
    }
    if wanted(Part::Random) {
        figures.extend(random::measure().await?);
    }
    if wanted(Part::Refusals) {
        figures.extend(refusals::measure().await?);
    }
    if wanted(Part::Secrecy) {
        figures.extend(secrecy::measure().await?);
    }
    if wanted(Part::Endurance) {
        figures.extend(endurance::measure().await?);
    }
    if wanted(Part::Backlog) {
        figures.extend(backlog::measure().await?);
    }
    if wanted(Part::Store) {
        figures.extend(store::measure(arguments.seconds).await?);
    }
    if wanted(Part::Audit) {
        figures.extend(audit::measure(arguments.seconds).await?);
    }
    if wanted(Part::Links) {
        figures.extend(links::measure(arguments.seconds).await?);
    }
    write(&arguments.out, figures)
}

async fn gateway(arguments: &Arguments) -> anyhow::Result<Vec<Value>> {
    let subjects = subjects()?;
    let run = Duration::from_secs(arguments.seconds);
    println!("starting a world ({} s for each run, {CONNECTIONS} connections)", run.as_secs());
    let world = World::start().await?;
    let gateway = world.gateway().context("no gateway")?.id();
    let floors = pkcs11_floors(&world, arguments.seconds as f64 / 2.0)?;
    let echo = EchoServer::start(&world).await?;
    let mut figures = Vec::new();
    println!(
        "\n{:<13} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>8} {:>8} {:>8}",
        "CPU us",
        "all",
        "gateway",
        "audit",
        "workers",
        "TLS",
        "PKCS#11",
        "ratio",
        "per s",
        "p50 ms",
        "p99 ms"
    );
    for subject in &subjects {
        let target = Target::new(&world.pki(), "acquirer-a", world.data_address())?;
        drive_one(&target, subject, Duration::from_secs(1), true).await;
        let before = Cpu::of(gateway)?;
        let report = drive_one(&target, subject, run, true).await;
        let parts = Cpu::of(gateway)?.per_operation(&before, report.requests);
        let cpu = parts.total();
        ensure!(
            report.ok == report.requests,
            "{}: not every answer was right: {report}",
            subject.name
        );

        let target = Target::new(&world.pki(), "acquirer-a", echo.address)?;
        drive_one(&target, subject, Duration::from_secs(1), false).await;
        let before = Cpu::of(echo.process.id())?;
        let floor = drive_one(&target, subject, run, false).await;
        let tls = Cpu::of(echo.process.id())?.per_operation(&before, floor.requests).total();

        let p11 = floors[subject.floor].as_f64().context("the PKCS#11 floor")?;
        let ratio = cpu / (tls + p11);
        let (p50, p99) = (ms(report.p50), ms(report.p99));
        println!(
            "{:<13} {cpu:>8.1} {:>8.1} {:>8.1} {:>8.1} {tls:>8.1} {p11:>8.1} {ratio:>6.2} {:>8.0} \
             {p50:>8.2} {p99:>8.2}",
            subject.name, parts.gateway, parts.audit, parts.workers, report.per_s
        );
        let target = (subject.name == "translate").then_some(1.6);
        figures.push(figure(
            &format!("{}_cpu_ratio", subject.name),
            ratio,
            "ratio",
            Some(json!({"tls_us": tls, "pkcs11_us": p11, "cpu_us": cpu})),
            target.map(|target| (target, ratio <= target)),
        ));
        for (layer, value) in
            [("gateway", parts.gateway), ("audit", parts.audit), ("workers", parts.workers)]
        {
            let name = format!("{}_layers_cpu_us.{layer}", subject.name);
            figures.push(figure(&name, value, "us", None, None));
        }
        figures.push(figure(&format!("{}_per_s", subject.name), report.per_s, "1/s", None, None));
        figures.push(figure(&format!("{}_p50_ms", subject.name), p50, "ms", None, None));
        figures.push(figure(&format!("{}_p99_ms", subject.name), p99, "ms", None, None));
    }
    let rss = rss_at_200(&world, gateway).await?;
    println!("\nresident memory of gateway and workers at 200 open connections: {rss:.1} MiB");
    let met = Some((80.0, rss <= 80.0));
    figures.push(figure("rss_200_connections_mib", rss, "MiB", None, met));
    Ok(figures)
}

fn figure(
    name: &str,
    value: f64,
    unit: &str,
    floor: Option<Value>,
    target: Option<(f64, bool)>,
) -> Value {
    let mut figure = json!({"name": name, "value": value, "unit": unit});
    if let Some(floor) = floor {
        figure["floor"] = floor;
    }
    if let Some((target, met)) = target {
        figure["target"] = json!(target);
        figure["met"] = json!(met);
    }
    figure
}

fn write(out: &Path, figures: Vec<Value>) -> anyhow::Result<()> {
    let said = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let text = json!({
        "commit": said("git", &["rev-parse", "--short", "HEAD"]),
        "machine": {
            "cores": std::thread::available_parallelism().map(usize::from).unwrap_or(0),
            "model": model.map(str::trim),
        },
        "figures": figures,
    });
    if let Some(dir) = out.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(out, serde_json::to_string_pretty(&text)?)?;
    println!("figures: {}", out.display());
    Ok(())
}

async fn drive_one(target: &Target, subject: &Subject, run: Duration, checked: bool) -> Report {
    drive_over(CONNECTIONS, target, subject, run, checked).await
}

async fn drive_over(
    connections: usize,
    target: &Target,
    subject: &Subject,
    run: Duration,
    checked: bool,
) -> Report {
    let (path, body, accepted) = (subject.path, subject.body.clone(), subject.accepted);
    let request = move |_| {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = hyper::Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert("host", hyper::header::HeaderValue::from_static("localhost"));
        headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
        request
    };
    let accept = move |status: hyper::StatusCode, body: &Bytes| {
        status == 200
            && (!checked || body.windows(accepted.len()).any(|at| at == accepted.as_bytes()))
    };
    drive(target, connections, Until::Elapsed(run), request, accept).await
}

fn hsm_section(world: &World) -> anyhow::Result<toml::Value> {
    let mut table: toml::Table = toml::from_str(&std::fs::read_to_string(world.config())?)?;
    table.remove("hsm").context("no section hsm")
}

fn pkcs11_floors(world: &World, seconds: f64) -> anyhow::Result<Value> {
    let hsm = hsm_section(world)?;
    let text = |key: &str| hsm[key].as_str().context("hsm section").map(str::to_owned);
    let output = std::process::Command::new(program("examples/pkcs11_floor")?)
        .args(["--module", &text("module")?, "--token-label", &text("token_label")?])
        .args(["--pin-file", &text("pin_file")?, "--seconds", &seconds.to_string()])
        .args(["--only", "translate", "--only", "retail_mac"])
        .env("SOFTHSM2_CONF", hsm["environment"]["SOFTHSM2_CONF"].as_str().unwrap_or_default())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The TLS floor in a process of its own.
struct EchoServer {
    process: Process,
    address: SocketAddr,
}

impl EchoServer {
    async fn start(world: &World) -> anyhow::Result<Self> {
        let port = world.ports.data.checked_add(17_000).context("port")?;
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let (listen, pki) = (address.to_string(), world.pki());
        let arguments = [
            "echo".as_ref(),
            "--listen".as_ref(),
            listen.as_ref(),
            "--pki".as_ref(),
            pki.as_os_str(),
        ];
        let process = Process::start("bench", &arguments, &world.dir().join("echo.log"))?;
        for _ in 0..500 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Ok(Self { process, address });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("the echo server does not listen:\n{}", process.last_lines())
    }
}

/// Bare axum over tokio-rustls: answers each body with itself.
async fn echo(listen: SocketAddr, pki: &Path) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(mtls::server_config(pki, "gateway")?));
    let listener = TcpListener::bind(listen).await?;
    let body = |body: Bytes| async move { body };
    let router = axum::Router::new().fallback(axum::routing::post(body));
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper_util::service::TowerToHyperService::new(router);
            let io = hyper_util::rt::TokioIo::new(stream);
            // A client that goes away ends its own connection only.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}

async fn rss_at_200(world: &World, gateway: u32) -> anyhow::Result<f64> {
    let subjects = subjects()?;
    let subject = &subjects[0];
    let target = Target::new(&world.pki(), "acquirer-a", world.data_address())?;
    let (path, body) = (subject.path, subject.body.clone());
    let load = tokio::spawn(async move {
        let request = move |_| {
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = hyper::Method::POST;
            *request.uri_mut() = hyper::Uri::from_static(path);
            let headers = request.headers_mut();
            let json = hyper::header::HeaderValue::from_static("application/json");
            headers.insert("host", hyper::header::HeaderValue::from_static("localhost"));
            headers.insert("content-type", json);
            request
        };
        drive(&target, 200, Until::Elapsed(Duration::from_secs(4)), request, |_, _| true).await
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut kib = 0.0;
    for id in std::iter::once(gateway).chain(children(gateway)) {
        kib += rss_kib(id)?;
    }
    load.await?;
    Ok(kib / 1024.0)
}

/// Resident memory of one process.
fn rss_kib(id: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?;
    Ok(number.parse()?)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
