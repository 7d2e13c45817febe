//! What auditing costs: the same translations through a gateway that records them, durably, and through one that
//! does not; and how fast a million records verify.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use harness::load::Target;
use harness::world::{Wanted, World, program};
use serde_json::{Value, json};

use crate::cpu::Cpu;
use crate::{CONNECTIONS, Subject, drive_over, figure, ms, subjects};

/// Each gateway is measured so often, in turns, so that a slow moment of the machine meets both.
const TURNS: usize = 5;

/// One gateway's medians.
struct Side {
    per_s: Vec<f64>,
    cpu_us: Vec<f64>,
    writer_us: Vec<f64>,
    p99_ms: Vec<f64>,
}

pub(crate) async fn measure(seconds: u64) -> anyhow::Result<Vec<Value>> {
    let mut figures = cost(seconds).await?;
    for (form, name) in [("plain", "verify_1m_records_s"), ("gzip", "verify_1m_sealed_records_s")] {
        let told = million(form)?;
        let (took, peak) = (told["seconds"].as_f64(), told["peak_kib"].as_f64());
        let (took, peak) = (took.context("seconds")?, peak.context("peak_kib")? / 1024.0);
        ensure!(told["intact"] == true, "the log of the bench does not verify: {told}");
        println!("verify, {form}: {took:.2} s for {} records, {peak:.1} MiB", told["records"]);
        let target = (form == "plain").then_some((10.0, took <= 10.0));
        figures.push(figure(name, took, "s", Some(told), target));
        let name = format!("verify_peak_mib.{form}");
        figures.push(figure(&name, peak, "MiB", None, Some((64.0, peak <= 64.0))));
    }
    Ok(figures)
}

async fn cost(seconds: u64) -> anyhow::Result<Vec<Value>> {
    let subjects = subjects()?;
    let translate = subjects.first().context("translate")?;
    let worker = program("tollgate-hsm")?.display().to_string();
    let edit = |table: &mut toml::Table| {
        if let Some(hsm) = table["hsm"].as_table_mut() {
            hsm.insert("worker".into(), worker.clone().into());
        }
    };
    let (audited, mut bare) = (World::start().await?, World::prepare(Wanted::default())?);
    rewrite(&bare, edit)?;
    let unaudited = program("examples/unaudited")?.display().to_string();
    // The wrapper gives the gateway's place in the arguments to the other program.
    bare.start_gateway_under(&["sh", "-c", "shift; exec \"$0\" \"$@\"", &unaudited]).await?;
    println!(
        "\n{:<12} {:>11} {:>9} {:>9} {:>9} {:>9}",
        "translate", "connections", "per s", "CPU us", "writer us", "p99 ms"
    );
    let mut figures = Vec::new();
    let run = Duration::from_secs(seconds);
    // Few connections show what one waits for; with many the machine is full, and work is what counts.
    for (connections, suffix) in [(CONNECTIONS, ".32_connections"), (4 * CONNECTIONS, "")] {
        let (mut with, mut without) = (Side::new(), Side::new());
        for turn in 0..=TURNS {
            for (world, side) in [(&audited, &mut with), (&bare, &mut without)] {
                // The first turn warms up.
                let run = if turn == 0 { Duration::from_secs(1) } else { run };
                side.turn(world, translate, connections, run, turn > 0).await?;
            }
        }
        for (name, side) in [("audited", &with), ("unaudited", &without)] {
            let [per_s, cpu_us, writer_us, p99_ms] =
                [&side.per_s, &side.cpu_us, &side.writer_us, &side.p99_ms].map(|all| median(all));
            println!(
                "{name:<12} {connections:>11} {per_s:>9.0} {cpu_us:>9.1} {writer_us:>9.1} {p99_ms:>9.2}"
            );
        }
        let ratio = median(&with.per_s) / median(&without.per_s);
        let cpu = median(&with.cpu_us) - median(&without.cpu_us);
        let p99 = median(&with.p99_ms) - median(&without.p99_ms);
        println!("audit: {cpu:.1} us CPU a request, throughput {ratio:.2}, p99 {p99:+.2} ms");
        let floor =
            json!({ "with_us": median(&with.cpu_us), "without_us": median(&without.cpu_us) });
        let named = |name: &str| format!("{name}{suffix}");
        figures.extend([
            figure(&named("audit_cpu_us"), cpu, "us", Some(floor), Some((15.0, cpu <= 15.0))),
            figure(
                &named("audit_throughput_ratio"),
                ratio,
                "ratio",
                None,
                Some((0.8, ratio >= 0.8)),
            ),
            figure(&named("audit_p99_added_ms"), p99, "ms", None, Some((5.0, p99 <= 5.0))),
        ]);
    }
    let [records, none] = [&audited, &bare].map(translations);
    ensure!(records? > 0 && none? == 0, "one gateway records translations, the other none");
    Ok(figures)
}

impl Side {
    fn new() -> Self {
        Self { per_s: Vec::new(), cpu_us: Vec::new(), writer_us: Vec::new(), p99_ms: Vec::new() }
    }

    async fn turn(
        &mut self,
        world: &World,
        subject: &Subject,
        connections: usize,
        run: Duration,
        counts: bool,
    ) -> anyhow::Result<()> {
        let gateway = world.gateway().context("no gateway")?.id();
        let target = Target::new(&world.pki(), "acquirer-a", world.data_address())?;
        let before = Cpu::of(gateway)?;
        let report = drive_over(connections, &target, subject, run, true).await;
        ensure!(report.ok == report.requests, "not every answer was right: {report}");
        if counts {
            let cpu = Cpu::of(gateway)?.per_operation(&before, report.requests);
            self.per_s.push(report.per_s);
            self.cpu_us.push(cpu.total());
            self.writer_us.push(cpu.audit);
            self.p99_ms.push(ms(report.p99));
        }
        Ok(())
    }
}

fn rewrite(world: &World, edit: impl FnOnce(&mut toml::Table)) -> anyhow::Result<()> {
    let mut table: toml::Table = std::fs::read_to_string(world.config())?.parse()?;
    edit(&mut table);
    Ok(std::fs::write(world.config(), toml::to_string(&table)?)?)
}

/// How many translations the gateway has on record.
fn translations(world: &World) -> anyhow::Result<usize> {
    let events = world.audit()?;
    Ok(events.iter().filter(|event| event["event"]["type"] == "pin.translate").count())
}

fn million(form: &str) -> anyhow::Result<Value> {
    let output = Command::new(program("examples/million")?).arg(form).output()?;
    ensure!(
        output.status.success(),
        "examples/million: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("examples/million printed no JSON")
}

fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
