//! The fault battery of `make chaos`: a world under steady load, and a thousand faults on both links.
//!
//! What is injected is drawn from a seed before anything starts. Every answer is checked: random
//! operations against software, payments against the biller's ledger when all faults are over.

mod plan; // which faults, in which order
mod wire; // random orders over the data API
mod books; // what clients were told, by act
mod customers; // the load, and who checks each answer
mod inject; // how a fault is made
mod table; // how it came out

pub use self::plan::{Act, Fault, Sent, plan};
pub use self::table::{Row, Table};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep};

use self::books::Books;
use self::customers::Customers;
use self::inject::Injector;
use crate::proxy::Proxy;
use crate::random_orders::RandomKeys;
use crate::soft::random::Random;
use crate::world::{Wanted, World, free_ports};

/// What a battery is.
#[derive(Debug)]
pub struct Options {
    /// All faults and all requests come from it.
    pub seed: u64,
    /// Where the world lives; made anew.
    pub dir: PathBuf,
    /// Requests a second.
    pub rate: u32,
    /// HSM links, 1 or 2.
    pub links: usize,
    /// The acts, in order.
    pub acts: Vec<Act>,
}

/// Runs the battery; prints a line an act.
///
/// # Errors
/// When the world itself breaks.
pub async fn run(options: Options) -> anyhow::Result<Table> {
    let Options { seed, dir, rate, links, acts } = options;
    let begun = Instant::now();
    let mut random = Random::of(seed);
    let keys = RandomKeys::of(&mut random)?;
    let [front] = free_ports()?;
    let mut world = prepare(dir, front, &keys, links)?;
    let front = ([127, 0, 0, 1], front).into();
    let proxy = Proxy::start(front, world.billing_address(), random.bits()).await?;
    world.start_billing().await?;
    world.start_gateway().await?;
    println!("gateway {}, billers behind {front}, {rate} requests/s", world.ports.data);

    let names = std::iter::once(QUIET).chain(acts.iter().map(|act| act.name));
    let books = Arc::new(Books::new(names));
    let customers = Arc::new(Customers::new(&world, keys, random.bits(), books.clone())?);
    let load = customers.clone().come(rate);
    sleep(if acts.len() > 5 { QUIET_FOR } else { QUIET_FOR / 5 }).await;
    let mut injector = Injector::new(&world, &proxy, &customers, links)?;
    for (number, act) in acts.iter().enumerate() {
        let row = number + 1;
        let act_begun = Instant::now();
        books.turn_to(row);
        let (mut injected, mut recovery) = (0, Duration::ZERO);
        for (number, fault) in act.faults.iter().enumerate() {
            let struck = injector.inject(fault).await.with_context(|| format!("{fault:?}"))?;
            injected += u64::from(struck);
            let is_last = number + 1 == act.faults.len();
            if fault.needs_rest() || is_last || injector.lost_a_worker() {
                let took = injector.recovery().await;
                if took > RECOVERY_SAID_FROM {
                    println!("  {:.1} s to recover from {fault:?}", took.as_secs_f64());
                }
                recovery = recovery.max(took);
                injector.workers_back(fault).await;
            }
        }
        books.injected(row, injected, recovery);
        let (seconds, at) = (act_begun.elapsed().as_secs_f64(), begun.elapsed().as_secs());
        println!("{at:>4} s  {:<24} {injected:>4} faults, {seconds:.1} s", act.name);
    }
    load.end().await;
    println!("{:>4} s  waiting for the queue to drain", begun.elapsed().as_secs());
    let ledger = books.settle(&world.billing_control()?, DRAIN_MAX).await?;
    let again = customers.ask_again(&ledger).await;
    world.stop_gateway().await.context("stopping the gateway")?;
    Ok(books.close(seed, begun.elapsed(), &ledger, &again))
}

fn prepare(dir: PathBuf, front: u16, keys: &RandomKeys, links: usize) -> anyhow::Result<World> {
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    let (translate, macs) = (keys.translate_grants(), keys.mac_labels());
    let grant = move |table: &mut toml::Table| {
        let clients = table.get_mut("client").and_then(toml::Value::as_array_mut);
        let grants = clients.and_then(|clients| clients.first_mut()?.get_mut("grants"));
        let Some(grants) = grants.and_then(toml::Value::as_table_mut) else { return };
        let mut more = |name: &str, values: Vec<toml::Value>| {
            if let Some(list) = grants.get_mut(name).and_then(toml::Value::as_array_mut) {
                list.extend(values);
            }
        };
        more("translate", translate);
        for name in ["mac_generate", "mac_verify"] {
            more(name, macs.iter().map(|label| label.as_str().into()).collect());
        }
    };
    let wanted = Wanted {
        dir: Some(dir),
        more_keys: keys.planned(),
        edit: Some(Box::new(grant)),
        shim: true,
        second_link: links > 1,
        biller_port: Some(front),
        ..Wanted::default()
    };
    World::prepare(wanted)
}

/// The row of the time before the first fault.
const QUIET: &str = "none";
const QUIET_FOR: Duration = Duration::from_secs(5);
const RECOVERY_SAID_FROM: Duration = Duration::from_secs(5);
const DRAIN_MAX: Duration = Duration::from_secs(60);
