//! CPU of a worker for each operation, beside the raw PKCS#11 calls of the same operation.
//!
//! Worker and floor run at the same time, so that both share the cores with the same neighbours:
//! measured one after the other, the floor would have a core and its sibling for itself. One
//! worker with one session, 64 orders in flight.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gateway::config::Config;
use harness::world::{Wanted, World, program};
use hsm_adapter::client::{LinkError, TokenLink};
use hsm_adapter::protocol::{Answer, Order};
use serde_json::{Value, json};
use softhsm::PlannedKey;
use tokio::time::{Instant, sleep};

use super::cpu::Cpu;
use super::orders::{self, Subject};
use super::{figure, hsm_section};

/// Orders that one session has waiting: enough that it never rests.
const IN_FLIGHT: usize = 64;
/// What the issue of this figure asks for.
const TARGET: f64 = 1.25;

/// A token and one worker on it, without a gateway.
pub(crate) struct Bench {
    pub(crate) link: Arc<TokenLink>,
    pub(crate) world: World,
}

impl Bench {
    pub(crate) async fn start(more_keys: Vec<PlannedKey>) -> anyhow::Result<Self> {
        let world = World::prepare(Wanted { more_keys, ..Wanted::default() })?;
        let config = Config::load(&world.config())?;
        let mut options = config.hsm.links().map_err(anyhow::Error::msg)?.remove(0).options;
        options.program = program("tollgate-hsm")?;
        options.workers = 1;
        options.sessions = 1;
        let link = Arc::new(TokenLink::start(options));
        let limit = Instant::now() + Duration::from_secs(15);
        while !link.is_up() {
            ensure!(Instant::now() < limit, "the worker is not ready: {:?}", link.status());
            sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { link, world })
    }

    pub(crate) fn worker(&self) -> anyhow::Result<u32> {
        self.link.status().first().and_then(|worker| worker.pid).context("no worker")
    }

    pub(crate) async fn ask(&self, order: &Order) -> Result<Answer, LinkError> {
        self.link.call(order, Instant::now() + Duration::from_secs(10)).await.1
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let link = Arc::into_inner(self.link).context("the link is still in use")?;
        link.stop().await;
        Ok(())
    }
}

/// Prints a table and gives the figures.
pub(crate) async fn measure(seconds: u64) -> anyhow::Result<Vec<Value>> {
    let bench = Bench::start(orders::more_keys()?).await?;
    println!(
        "\n{:<22} {:>10} {:>10} {:>7} {:>9}",
        "worker CPU us", "worker", "PKCS#11", "ratio", "per s"
    );
    let mut figures = Vec::new();
    for subject in orders::subjects()? {
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(run(&bench, &subject, seconds as f64 / 3.0).await?);
        }
        runs.sort_by(|one, other| one.ratio().total_cmp(&other.ratio()));
        let run = &runs[1];
        let (name, ratio) = (subject.name, run.ratio());
        println!(
            "{name:<22} {:>10.1} {:>10.1} {ratio:>7.2} {:>9.0}",
            run.worker_us, run.floor_us, run.per_s
        );
        let floor = json!({"pkcs11_us": run.floor_us, "worker_us": run.worker_us});
        let met = Some((TARGET, ratio <= TARGET));
        figures.push(figure(&format!("{name}_worker_ratio"), ratio, "ratio", Some(floor), met));
    }
    bench.stop().await?;
    Ok(figures)
}

struct Run {
    worker_us: f64,
    floor_us: f64,
    per_s: f64,
}

impl Run {
    fn ratio(&self) -> f64 {
        self.worker_us / self.floor_us
    }
}

async fn run(bench: &Bench, subject: &Subject, seconds: f64) -> anyhow::Result<Run> {
    let hsm = hsm_section(&bench.world)?;
    let text = |key: &str| hsm[key].as_str().unwrap_or_default().to_owned();
    let floor = tokio::process::Command::new(program("examples/pkcs11_floor")?)
        .args(["--module", &text("module"), "--token-label", &text("token_label")])
        .args(["--pin-file", &text("pin_file"), "--seconds", &seconds.to_string()])
        .args(["--only", subject.floor])
        .env("SOFTHSM2_CONF", hsm["environment"]["SOFTHSM2_CONF"].as_str().unwrap_or_default())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let ended = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let order = Arc::new(subject.order.clone());
    let (before, started) = (Cpu::of_process(bench.worker()?)?, Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (link, order) = (Arc::clone(&bench.link), Arc::clone(&order));
        let (ended, done) = (Arc::clone(&ended), Arc::clone(&done));
        tasks.spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                let answer = link.call(&order, Instant::now() + Duration::from_secs(10)).await.1?;
                if let Answer::Verified(false) | Answer::PinVerified { verified: false, .. } =
                    answer
                {
                    bail!("a right value was not verified");
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    let output = floor.wait_with_output().await?;
    ended.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let floors: Value = serde_json::from_slice(&output.stdout)?;
    let floor_us = floors[subject.floor].as_f64().context("the floor's figure")?;
    let operations = done.load(Ordering::Relaxed);
    let worker_s = Cpu::of_process(bench.worker()?)? - before;
    let per_s = operations as f64 / started.elapsed().as_secs_f64();
    Ok(Run { worker_us: worker_s * 1e6 / operations as f64, floor_us, per_s })
}
