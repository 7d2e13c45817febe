//! The story that `make demo` tells, and the table that it ends with.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::acquirer::{Acquirer, Answer, Client, Payment};
use crate::load::Latencies;
use crate::world::{World, signal};

/// A world and what was told and done in it so far.
#[derive(Debug)]
pub struct Story<'w> {
    world: &'w mut World,
    payers: Vec<Payer>,
    told: Told,
    next: u64,
}

/// An acquirer with its client.
#[derive(Clone)]
struct Payer {
    acquirer: Arc<Acquirer>,
    client: Client,
}

impl fmt::Debug for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.acquirer.name())
    }
}

/// What clients were told.
#[derive(Debug, Default)]
struct Told {
    sent: u64,
    succeeded: u64,
    queued: u64,
    refused: u64,
    unexpected: Vec<String>,
    /// Bills of payments that were acknowledged: paid, or durable.
    acknowledged: Vec<String>,
    /// Payments that wait: their client and id.
    waiting: Vec<(Payer, String)>,
    latencies: Latencies,
}

/// How it came out.
#[derive(Debug, Clone)]
pub struct Table {
    sent: u64,
    succeeded: u64,
    queued: u64,
    drained: u64,
    refused: u64,
    lost: u64,
    duplicated: u64,
    pins_right: u64,
    workers_killed: u64,
    workers_at_end: u64,
    audit_events: u64,
    unexpected: Vec<String>,
    p50_ms: f64,
    p99_ms: f64,
    seconds: f64,
}

/// Payments at a time.
const AT_ONCE: usize = 16;
/// Good payments that close a breaker; the default of `probes`.
const PROBES: u64 = 3;

impl<'w> Story<'w> {
    /// # Errors
    /// When a certificate cannot be read.
    pub fn new(world: &'w mut World) -> anyhow::Result<Self> {
        let payers = [Acquirer::a(), Acquirer::b()].map(|acquirer| {
            let client = world.client(acquirer.name())?;
            anyhow::Ok(Payer { acquirer: Arc::new(acquirer), client })
        });
        let payers = payers.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Self { world, payers, told: Told::default(), next: 0 })
    }

    /// All three acts, and the comparison.
    ///
    /// # Errors
    /// When the world itself breaks.
    pub async fn tell(mut self) -> anyhow::Result<Table> {
        let begun = Instant::now();
        println!("1  paying 300 bills at three billers, with and without PIN");
        self.pay(300, &["pln", "pdam", "telkom"], Expected::Paid).await?;

        println!("2  the biller is killed; 120 payments go on arriving");
        self.world.kill_billing();
        self.pay(120, &["pln", "pdam"], Expected::Queued).await?;
        self.pay(12, &["telkom"], Expected::Refused).await?;
        println!("   the biller comes back; waiting for the queue to drain");
        self.world.start_billing().await?;
        let drained = self.drain().await?;
        self.wait_for("telkom").await?;

        println!("3  three HSM workers are killed while 600 payments are made");
        let workers_killed = self.pay_while_workers_die(600).await?;

        println!("   comparing what clients were told with what the biller did");
        let mut table = self.compare().await?;
        table.drained = drained;
        table.workers_killed = workers_killed;
        table.seconds = begun.elapsed().as_secs_f64();
        Ok(table)
    }

    async fn pay(
        &mut self,
        count: u64,
        billers: &[&str],
        expected: Expected,
    ) -> anyhow::Result<()> {
        let mut running = JoinSet::new();
        for _ in 0..count {
            if running.len() == AT_ONCE
                && let Some(paid) = running.join_next().await
            {
                self.told.hear(paid?, expected);
            }
            running.spawn(self.next_payment(billers));
        }
        while let Some(paid) = running.join_next().await {
            self.told.hear(paid?, expected);
        }
        Ok(())
    }

    /// One payment, by the acquirers in turn, every second one with a PIN where the biller's
    /// policy lets the PIN take the same way.
    fn next_payment(&mut self, billers: &[&str]) -> impl Future<Output = Paid> + use<> {
        let number = self.next;
        self.next += 1;
        let payer = self.payers[number as usize % self.payers.len()].clone();
        let biller = billers[(number / 2) as usize % billers.len()].to_owned();
        let bill = format!("bill-{number}");
        let mut payment = Payment::of(&biller, &bill);
        if biller == "pln" {
            payment = payment.by_card();
        }
        async move {
            let begun = Instant::now();
            let answer = match payer.acquirer.payment_body(&payment) {
                Ok(body) => payer
                    .client
                    .pay(&payer.acquirer, &format!("demo-{number}"), body)
                    .await
                    .map_err(|error| error.to_string()),
                Err(error) => Err(format!("{error:?}")),
            };
            Paid { payer, bill, answer, took: begun.elapsed() }
        }
    }

    async fn drain(&mut self) -> anyhow::Result<u64> {
        let limit = Instant::now() + Duration::from_secs(30);
        let mut drained = 0;
        for (payer, id) in std::mem::take(&mut self.told.waiting) {
            loop {
                let answer = payer.client.payment(&id).await?;
                match answer.json()["status"].as_str() {
                    Some("SUCCESS") => {
                        drained += 1;
                        break;
                    }
                    Some("PENDING" | "PROCESSING") => {
                        ensure!(Instant::now() < limit, "the queue does not drain: {id} waits");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    other => {
                        self.told.unexpected.push(format!("payment {id} ended as {other:?}"));
                        break;
                    }
                }
            }
        }
        Ok(drained)
    }

    /// A biller that stores nothing is asked again only when its breaker has rested, by one payment
    /// after another at first.
    async fn wait_for(&mut self, biller: &str) -> anyhow::Result<()> {
        let limit = Instant::now() + Duration::from_secs(10);
        let wanted = self.told.succeeded + PROBES;
        loop {
            let paid = self.next_payment(&[biller]).await;
            self.told.hear(paid, Expected::PaidOrRefused);
            if self.told.succeeded >= wanted {
                return Ok(());
            }
            ensure!(Instant::now() < limit, "{biller} does not come back");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn pay_while_workers_die(&mut self, count: u64) -> anyhow::Result<u64> {
        let gateway = self.world.gateway().context("no gateway")?.id();
        let killer = tokio::spawn(kill_workers(gateway, 3));
        let begun = Instant::now();
        self.pay(count, &["pln", "pdam", "telkom"], Expected::Paid).await?;
        // The load goes on until the last worker was killed and another batch has passed.
        while !killer.is_finished() && begun.elapsed() < Duration::from_secs(20) {
            self.pay(50, &["pln", "pdam", "telkom"], Expected::Paid).await?;
        }
        self.pay(50, &["pln", "pdam", "telkom"], Expected::Paid).await?;
        killer.await?
    }

    async fn compare(self) -> anyhow::Result<Table> {
        let Self { world, told, .. } = self;
        let ledger = world.billing_control()?.ledger().await?;
        let mut effects: HashMap<&str, u64> = HashMap::new();
        for effect in &ledger.effects {
            *effects.entry(&effect.bill_id).or_default() += 1;
        }
        let lost = told.acknowledged.iter().filter(|bill| !effects.contains_key(bill.as_str()));
        let duplicated: u64 = effects.values().map(|times| times - 1).sum();
        let limit = Instant::now() + Duration::from_secs(5);
        while world.workers().len() < 2 && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let workers = world.workers().len() as u64;
        Ok(Table {
            sent: told.sent,
            succeeded: told.succeeded,
            queued: told.queued,
            drained: 0,
            refused: told.refused,
            lost: lost.count() as u64,
            duplicated,
            pins_right: ledger.effects.iter().filter(|effect| effect.pin_seen).count() as u64,
            workers_killed: 0,
            workers_at_end: workers,
            audit_events: world.audit()?.len() as u64,
            unexpected: told.unexpected,
            p50_ms: told.latencies.quantile(0.5).as_secs_f64() * 1000.0,
            p99_ms: told.latencies.quantile(0.99).as_secs_f64() * 1000.0,
            seconds: 0.0,
        })
    }
}

/// Kills `count` workers of the gateway, one after another, each once its link has two again.
async fn kill_workers(gateway: u32, count: u64) -> anyhow::Result<u64> {
    for _ in 0..count {
        let limit = Instant::now() + Duration::from_secs(10);
        let victim = loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let workers = crate::world::children(gateway);
            if let [victim, _, ..] = workers[..] {
                break victim;
            }
            ensure!(Instant::now() < limit, "a killed worker was not replaced");
        };
        signal(victim, Signal::KILL)?;
    }
    Ok(count)
}

/// What a client should hear now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Paid,
    Queued,
    Refused,
    PaidOrRefused,
}

struct Paid {
    payer: Payer,
    bill: String,
    answer: Result<Answer, String>,
    took: Duration,
}

impl Told {
    fn hear(&mut self, paid: Paid, expected: Expected) {
        let Paid { payer, bill, answer, took } = paid;
        self.sent += 1;
        self.latencies.record(took);
        let (status, body) = match &answer {
            Ok(answer) => (answer.status.as_u16(), answer.json()),
            Err(error) => return self.unexpected.push(format!("{bill}: {error}")),
        };
        let proved = answer.as_ref().is_ok_and(|answer| payer.acquirer.proves(answer));
        let heard = match (status, body["status"].as_str()) {
            (200, Some("SUCCESS")) if proved => Some(Expected::Paid),
            (202, Some("PENDING")) if proved => Some(Expected::Queued),
            (503, _) if body["type"] == "/problems/backend-unavailable" => Some(Expected::Refused),
            _ => None,
        };
        match heard {
            Some(Expected::Paid) => {
                self.succeeded += 1;
                self.acknowledged.push(bill.clone());
            }
            Some(Expected::Queued) => {
                self.queued += 1;
                self.acknowledged.push(bill.clone());
                let id = body["id"].as_str().unwrap_or_default().to_owned();
                self.waiting.push((payer, id));
            }
            Some(Expected::Refused) => self.refused += 1,
            Some(Expected::PaidOrRefused) | None => {}
        }
        let either = [Some(Expected::Paid), Some(Expected::Refused)].contains(&heard);
        if heard != Some(expected) && !(expected == Expected::PaidOrRefused && either) {
            let text = format!("{bill}: {status} {} instead of {expected:?}", body["status"]);
            self.unexpected.push(text);
        }
    }
}

impl Table {
    /// Whether the story came out as it must.
    #[must_use]
    pub fn as_expected(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.unexpected.is_empty()
            && self.drained == self.queued
            && self.queued > 0
            && self.workers_killed >= 3
            && self.workers_at_end == 2
            && self.audit_events >= self.sent
    }

    /// For scripts.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows = self.rows();
        let rows = rows.into_iter().map(|(name, value, _)| (name.replace(' ', "_"), json!(value)));
        json!({
            "as_expected": self.as_expected(),
            "unexpected": self.unexpected,
            "rows": rows.collect::<serde_json::Map<_, _>>(),
        })
    }

    fn rows(&self) -> Vec<(&'static str, String, &'static str)> {
        let milliseconds = |value: f64| format!("{value:.1} ms");
        vec![
            ("payments sent", self.sent.to_string(), ""),
            (
                "succeeded at once",
                self.succeeded.to_string(),
                "the biller's final answer, MAC right",
            ),
            ("queued", self.queued.to_string(), "202 while the biller was away"),
            ("drained", self.drained.to_string(), "of the queued, when it was back"),
            ("refused", self.refused.to_string(), "503, not stored: this biller's policy"),
            ("lost", self.lost.to_string(), "acknowledged, and unknown to the biller"),
            ("duplicated", self.duplicated.to_string(), "made twice at the biller"),
            ("PINs right", self.pins_right.to_string(), "deciphered by an independent program"),
            ("worker kills survived", self.workers_killed.to_string(), "SIGKILL under load"),
            ("workers at the end", self.workers_at_end.to_string(), ""),
            ("audit events", self.audit_events.to_string(), "at least one for each answer"),
            ("unexpected", self.unexpected.len().to_string(), ""),
            ("p50", milliseconds(self.p50_ms), "a payment, client to biller and back"),
            ("p99", milliseconds(self.p99_ms), ""),
            ("story took", format!("{:.1} s", self.seconds), ""),
        ]
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value, note) in self.rows() {
            writeln!(f, "{name:<24} {value:>10}   {note}")?;
        }
        for text in self.unexpected.iter().take(10) {
            writeln!(f, "  unexpected: {text}")?;
        }
        Ok(())
    }
}
