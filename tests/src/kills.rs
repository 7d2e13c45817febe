//! Rounds of sudden deaths under load: the gateway at a random moment or at a point that the biller
//! shows, and its PostgreSQL server with it. What the clients were told decides.

mod table;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cluster::{Cluster, Stop};
use compliance::{Report, Verdict, verify};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::accounts::{Judgement, Payer};
use crate::acquirer::Client;
use crate::billing::{Control, Fault, Mode};
use crate::soft::random::Random;
use crate::world::{Wanted, World, postgres_at};

pub use table::{to_json, to_table};

/// Where the gateway keeps its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A file.
    Sqlite,
    /// A server of its own, restarted as after a crash in every round.
    Postgres,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the rows are.
    pub store: Store,
    /// Deaths.
    pub rounds: u32,
    /// The same seed chooses the same moments.
    pub seed: u64,
    /// Where the world lives; a temporary directory when absent.
    pub dir: Option<PathBuf>,
}

/// When the gateway dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// So many milliseconds into the round, whatever happens then.
    Random(u64),
    /// The biller has a request and has done nothing yet.
    BeforeEffect,
    /// The biller has paid and has not answered.
    AfterEffect,
    /// A client has been told 202.
    Acknowledged,
}

impl Moment {
    fn of(round: u32, random: &mut Random) -> Self {
        match round % 4 {
            0 => Self::Random(50 + random.between(0, 450) as u64),
            1 => Self::BeforeEffect,
            2 => Self::AfterEffect,
            _ => Self::Acknowledged,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Random(_) => "random",
            Self::BeforeEffect => "before the effect",
            Self::AfterEffect => "after the effect",
            Self::Acknowledged => "after a 202",
        }
    }
}

/// How the rounds came out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was run.
    pub options: Options,
    /// Deaths by moment.
    pub moments: BTreeMap<&'static str, u32>,
    /// What the ledger says against the clients.
    pub judged: Judgement,
    /// Payments at the biller.
    pub effects: usize,
    /// Orders that the biller had seen before.
    pub repeats: u64,
    /// Requests whose connection ended without an answer.
    pub unanswered: u32,
    /// Payments that a person must look at.
    pub held: u32,
    /// The longest from the start of a gateway until it was ready.
    pub ready_max: Duration,
    /// The longest that a client waited for an answer.
    pub answer_max: Duration,
    /// The audit log against the answers.
    pub trail: Trail,
    /// All of it.
    pub took: Duration,
}

/// The audit log after all deaths.
#[derive(Debug, Clone, Default)]
pub struct Trail {
    /// Its records.
    pub records: u64,
    /// Answers that came.
    pub answers: usize,
    /// Those without a record.
    pub unrecorded: Vec<String>,
    /// Deaths after which the chain was found to be changed.
    pub broken: u32,
    /// What the verifier said in the end; empty when it was intact.
    pub verdict: String,
}

impl Trail {
    /// Whether every answer has its record and the chain was whole after each death.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.unrecorded.is_empty() && self.broken == 0 && self.verdict.is_empty()
    }
}

impl Outcome {
    /// Whether nothing was lost, doubled, inverted, unrecorded or left to a person, and the deaths met
    /// payments.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.judged.is_clean() && self.held == 0 && self.unanswered > 0 && self.trail.is_whole()
    }
}

/// Runs the rounds.
///
/// # Errors
/// What did not start, a client that was told what no client should be, or a backlog that does not
/// drain: in words.
pub async fn run(options: Options) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let mut house = House::start(&options).await?;
    let load = Load::begin(&house.world)?;
    let (mut moments, mut ready_max) = (BTreeMap::new(), Duration::ZERO);
    let rounds = rounds(&options, &mut house, &load, &mut moments, &mut ready_max).await;
    let payers = load.end().await;
    // What a client was told is why nothing came of the rounds.
    let payers = match rounds {
        Ok(()) => payers?,
        Err(stopped) => return Err(payers.err().unwrap_or(stopped)),
    };
    let judged = house.drain(&payers, DRAIN).await?;
    let ledger = house.control.ledger().await?;
    ensure!(ledger.conflicts == 0, "a reference was sent again with other bytes");
    ensure!(ledger.mac_refused == 0, "a MAC of ours was wrong");
    let held = house.world.metric("tollgate_queue_depth{status=\"HELD\"").await? as u32;
    let trail = house.trail(&payers).await?;
    let unanswered = payers.iter().filter_map(|payer| payer.refused.get("unanswered"));
    Ok(Outcome {
        moments,
        judged,
        effects: ledger.effects.len(),
        repeats: ledger.duplicates_suppressed,
        unanswered: unanswered.sum(),
        held,
        ready_max,
        answer_max: payers.iter().map(|payer| payer.slowest).max().unwrap_or_default(),
        trail,
        took: begun.elapsed(),
        options,
    })
}

async fn rounds(
    options: &Options,
    house: &mut House,
    load: &Load,
    moments: &mut BTreeMap<&'static str, u32>,
    ready_max: &mut Duration,
) -> anyhow::Result<()> {
    let mut random = Random::of(options.seed);
    for round in 0..options.rounds {
        let moment = Moment::of(round, &mut random);
        stir(&house.control, &mut random, LEAD_IN_MS).await?;
        reach(moment, &house.control, load, &mut random)
            .await
            .with_context(|| format!("round {round}, {}", moment.name()))?;
        let ready = house.die_and_return(round, &mut random).await?;
        *ready_max = ready.max(*ready_max);
        *moments.entry(moment.name()).or_default() += 1;
        house.control.set_mode(Fault::always(Mode::Normal)).await?;
        load.acknowledged().await?;
        // Whoever dies with the same payment five times leaves it to a person: let it go first.
        house.drain(&load.now(), CATCH_UP).await?;
    }
    Ok(())
}

/// Waits until the moment has come, with the biller misbehaving as it must for it.
async fn reach(
    moment: Moment,
    control: &Control,
    load: &Load,
    random: &mut Random,
) -> anyhow::Result<()> {
    match moment {
        Moment::Random(after_ms) => stir(control, random, after_ms).await?,
        Moment::BeforeEffect => {
            control.set_mode(Fault { count: Some(1), ..Fault::slow(LONG) }).await?;
            taken(control).await?;
        }
        Moment::AfterEffect => {
            control.set_mode(Fault::next(Mode::HangAfter, 1)).await?;
            taken(control).await?;
            // It never answers, so there is time for its effect.
            sleep(Duration::from_millis(50)).await;
        }
        Moment::Acknowledged => {
            let told = load.told_pending.notified();
            control.set_mode(Fault::always(Mode::Fail)).await?;
            timeout(PATIENCE, told).await.context("nobody was told 202")?;
        }
    }
    Ok(())
}

/// So long the biller pays, is slow, and cuts connections before and after the effect, by turns.
async fn stir(control: &Control, random: &mut Random, for_ms: u64) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_millis(for_ms);
    while Instant::now() < until {
        let fault = match random.between(0, 4) {
            0 => Fault::next(Mode::CutBefore, 2),
            1 => Fault::next(Mode::CutAfter, 2),
            2 => Fault::slow(Duration::from_millis(60)),
            _ => Fault::always(Mode::Normal),
        };
        control.set_mode(fault).await?;
        sleep(Duration::from_millis(25)).await;
    }
    Ok(())
}

/// Waits until a request has met the fault.
async fn taken(control: &Control) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while control.fault().await?.mode != Mode::Normal {
        ensure!(Instant::now() < until, "no payment came to the biller");
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// A gateway, its biller, and its server if it has one. The gateway goes first.
struct House {
    world: World,
    control: Control,
    server: Option<Cluster>,
    /// Deaths after which the audit log's chain did not hold.
    broken: u32,
}

impl House {
    async fn start(options: &Options) -> anyhow::Result<Self> {
        let server = match options.store {
            Store::Sqlite => None,
            Store::Postgres => Some(Cluster::start()?),
        };
        let postgres = match &server {
            Some(server) => Some(postgres_at(server.socket(), &server.database()?)),
            None => None,
        };
        let edit = |table: &mut toml::Table| {
            if let Some(audit) = table["audit"].as_table_mut() {
                audit.insert("checkpoint_s".into(), 1.into());
            }
            table["queue"]["lease_s"] = 5.into();
            if let Some(queue) = table["queue"].as_table_mut() {
                queue.insert("wait_ms_max".into(), 2_000.into());
            }
        };
        let dir = options.dir.clone();
        let wanted = Wanted { dir, postgres, edit: Some(Box::new(edit)), ..Wanted::default() };
        let world = World::start_as(wanted).await?;
        let control = world.billing_control()?;
        Ok(Self { world, control, server, broken: 0 })
    }

    /// Ends the gateway, and its server in each second round first, by force. How long the
    /// gateway took from its start until it was ready.
    async fn die_and_return(
        &mut self,
        round: u32,
        random: &mut Random,
    ) -> anyhow::Result<Duration> {
        match &mut self.server {
            Some(server) if round.is_multiple_of(2) => {
                server.stop(Stop::Immediate)?;
                sleep(Duration::from_millis(random.between(0, 100) as u64)).await;
                self.world.kill_gateway();
                server.run()?;
            }
            Some(server) => {
                self.world.kill_gateway();
                server.stop(Stop::Immediate)?;
                server.run()?;
            }
            None => self.world.kill_gateway(),
        }
        if self.verdict()?.verdict == Verdict::Tampered {
            self.broken += 1;
        }
        let begun = Instant::now();
        self.world.start_gateway().await?;
        Ok(begun.elapsed())
    }

    fn verdict(&self) -> anyhow::Result<Report> {
        Ok(verify(&self.world.dir().join("audit"), compliance::Options::default())?)
    }

    /// Holds the audit log against what the payers were answered.
    async fn trail(&mut self, payers: &[Payer]) -> anyhow::Result<Trail> {
        // Its end is signed.
        self.world.stop_gateway().await?;
        let report = self.verdict()?;
        let records = self.world.audit_records()?;
        let recorded: HashSet<&str> =
            records.iter().filter_map(|record| record["request_id"].as_str()).collect();
        let mut trail = Trail { records: report.records, broken: self.broken, ..Trail::default() };
        for payer in payers {
            let answers = payer.answers.lock().unwrap_or_else(PoisonError::into_inner);
            trail.answers += answers.len();
            let unrecorded = answers.iter().filter(|id| !recorded.contains(id.as_str()));
            trail.unrecorded.extend(unrecorded.cloned());
        }
        if report.verdict != Verdict::Intact {
            trail.verdict = report.to_string();
        }
        Ok(trail)
    }

    /// Waits until all that was acknowledged is paid, or nothing was for this long.
    async fn drain(&self, payers: &[Payer], patience: Duration) -> anyhow::Result<Judgement> {
        let (mut left, mut until) = (usize::MAX, Instant::now() + patience);
        loop {
            let judged = Judgement::of(payers, &self.control.ledger().await?);
            if judged.lost.is_empty() || Instant::now() > until {
                return Ok(judged);
            }
            if judged.lost.len() < left {
                (left, until) = (judged.lost.len(), Instant::now() + patience);
            }
            sleep(Duration::from_millis(250)).await;
        }
    }
}

/// Clients that pay and pay.
struct Load {
    stop: Arc<AtomicBool>,
    told_pending: Arc<Notify>,
    told: Arc<Notify>,
    /// As they were after their last acknowledgement.
    latest: Arc<Mutex<BTreeMap<usize, Payer>>>,
    payers: JoinSet<anyhow::Result<Payer>>,
}

impl Load {
    fn begin(world: &World) -> anyhow::Result<Self> {
        let (stop, told, told_pending) =
            (Arc::<AtomicBool>::default(), Arc::<Notify>::default(), Arc::<Notify>::default());
        let latest = Arc::<Mutex<BTreeMap<usize, Payer>>>::default();
        let mut payers = JoinSet::new();
        for number in 0..PAYERS {
            let mut payer = Payer::new(["pln", "pdam"][number % 2], &format!("account-{number}"));
            let at: [Client; 1] = [world.client("acquirer-a")?];
            let (stop, told, pending) = (stop.clone(), told.clone(), told_pending.clone());
            let latest = latest.clone();
            payers.spawn(async move {
                while !stop.load(SeqCst) {
                    let waits = payer.pay(&at, PATIENCE).await?.status == 202;
                    if waits {
                        pending.notify_waiters();
                    }
                    latest
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(number, payer.clone());
                    told.notify_waiters();
                    // An account whose lease has to run out is not to pile up thousands.
                    sleep(if waits { 10 * PAUSE } else { PAUSE }).await;
                }
                Ok(payer)
            });
        }
        Ok(Self { stop, told_pending, told, latest, payers })
    }

    /// What was acknowledged until now.
    fn now(&self) -> Vec<Payer> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.values().cloned().collect()
    }

    /// Waits for the next acknowledgement.
    async fn acknowledged(&self) -> anyhow::Result<()> {
        timeout(PATIENCE, self.told.notified()).await.context("nobody was acknowledged")
    }

    async fn end(self) -> anyhow::Result<Vec<Payer>> {
        self.stop.store(true, SeqCst);
        self.payers.join_all().await.into_iter().collect()
    }
}

const PAYERS: usize = 10;
/// Between an acknowledgement and the account's next payment.
const PAUSE: Duration = Duration::from_millis(30);
/// Load before each moment.
const LEAD_IN_MS: u64 = 500;
/// A start, with a server's recovery before it.
const PATIENCE: Duration = Duration::from_secs(40);
/// Long enough to die in.
const LONG: Duration = Duration::from_millis(1_500);
/// On SQLite a start frees what the dead gateway had; on PostgreSQL it takes a lease.
const CATCH_UP: Duration = Duration::from_secs(3);
const DRAIN: Duration = Duration::from_secs(30);
