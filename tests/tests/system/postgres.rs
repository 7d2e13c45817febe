//! The PostgreSQL server under the gateway crashes, is away or takes no writes: clients are told so
//! in time, nothing is lost, and it is over when the server is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use cluster::{Cluster, Stop};
use harness::accounts::{Judgement, Payer};
use harness::acquirer::Payment;
use harness::world::{Wanted, World, postgres_at};
use reqwest::Method;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{ANSWER_MAX, Counter, assert_paid_once, assert_refused, until};

const PATIENCE: Duration = Duration::from_secs(40);
/// After the server is back.
const READY: Duration = Duration::from_secs(5);

/// A world on a server of its own. The gateway goes first.
struct House {
    world: World,
    server: Cluster,
    database: String,
}

impl House {
    /// Everything but the gateway runs.
    async fn prepare() -> Self {
        let server = Cluster::start().unwrap();
        let database = server.database().unwrap();
        let postgres = Some(postgres_at(server.socket(), &database));
        let short = |table: &mut toml::Table| table["queue"]["lease_s"] = 5.into();
        let wanted = Wanted { postgres, edit: Some(Box::new(short)), ..Wanted::default() };
        let mut world = World::prepare(wanted).unwrap();
        world.start_billing().await.unwrap();
        Self { world, server, database }
    }

    async fn start() -> Self {
        let mut house = Self::prepare().await;
        house.world.start_gateway().await.unwrap();
        house
    }

    async fn readiness(&self) -> u16 {
        let monitor = self.world.admin("monitor").unwrap();
        let answer = monitor.send(Method::GET, "/readyz", &[], Vec::new()).await.unwrap();
        answer.status.as_u16()
    }
}

/// The server's own thread is the test's: it may be blocked while the clients go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_under_load_costs_no_payment_and_five_seconds_at_most() {
    let mut house = House::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut paying = JoinSet::new();
    for number in 0..8 {
        let at = [house.world.client("acquirer-a").unwrap()];
        let (mut payer, stop) = (Payer::new("pln", &format!("account-{number}")), stop.clone());
        paying.spawn(async move {
            while !stop.load(SeqCst) {
                payer.pay(&at, PATIENCE).await.unwrap();
            }
            payer
        });
    }

    let mut ready = Vec::new();
    for outage_ms in [0, 3_000, 7_000] {
        sleep(Duration::from_millis(700)).await;
        house.server.stop(Stop::Immediate).unwrap();
        sleep(Duration::from_millis(outage_ms)).await;
        house.server.run().unwrap();
        let begun = Instant::now();
        until("ready", PATIENCE, async || house.readiness().await == 200).await;
        ready.push(begun.elapsed());
    }
    stop.store(true, SeqCst);
    let payers = paying.join_all().await;
    let control = house.world.billing_control().unwrap();
    until("all is paid", PATIENCE, async || {
        Judgement::of(&payers, &control.ledger().await.unwrap()).lost.is_empty()
    })
    .await;

    assert!(ready.iter().all(|took| *took <= READY), "{ready:?}");
    let judged = Judgement::of(&payers, &control.ledger().await.unwrap());
    assert!(judged.is_clean(), "{judged:?}");
    for payer in &payers {
        assert!(payer.slowest < ANSWER_MAX, "{payer:?}");
        // Nobody was left without an answer, and nobody was told that the bank is at fault.
        let told: Vec<&str> = payer.refused.keys().map(String::as_str).collect();
        let expected = ["overloaded", "request-in-progress"];
        assert!(told.iter().all(|slug| expected.contains(slug)), "{told:?}");
    }
    assert!(payers.iter().any(|payer| !payer.refused.is_empty()), "the crashes met no payment");
}

#[tokio::test]
async fn a_gateway_does_not_start_without_its_server_and_says_where_it_looked() {
    let mut house = House::prepare().await;
    house.server.stop(Stop::Fast).unwrap();

    let refused = house.world.start_gateway().await.unwrap_err().to_string();
    house.server.run().unwrap();
    house.world.start_gateway().await.unwrap();

    assert!(refused.contains(&house.database), "{refused}");
    assert!(refused.contains("store.postgres.host"), "{refused}");
}

/// As it is when a primary becomes a standby.
#[tokio::test]
async fn a_server_that_takes_no_writes_refuses_payments_until_it_does() {
    let house = House::start().await;
    let counter = Counter::a(&house.world);
    let body = counter.body(&Payment::of("pln", "bill").by_card());
    let execute = |sql: &str| house.server.execute(&house.database, sql).unwrap();

    execute("ALTER SYSTEM SET default_transaction_read_only = on");
    execute("SELECT pg_reload_conf()");
    until("not ready", Duration::from_secs(10), async || house.readiness().await == 503).await;
    let refused = counter.pay("key", &body).await;
    let mac = counter.client.generate_mac("zak.acquirer-a", b"message").await;
    let asked = house.world.billing_control().unwrap().ledger().await.unwrap().requests;
    execute("ALTER SYSTEM RESET default_transaction_read_only");
    execute("SELECT pg_reload_conf()");
    until("ready", Duration::from_secs(10), async || house.readiness().await == 200).await;
    let paid = counter.pay("key", &body).await;

    assert_refused(&refused, "overloaded");
    assert!(mac.is_ok(), "{mac:?}");
    assert_eq!((asked, paid.status.as_u16()), (0, 200), "{paid:?}");
    assert_paid_once(&house.world.billing_control().unwrap().ledger().await.unwrap());
}
