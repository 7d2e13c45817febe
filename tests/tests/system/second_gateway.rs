//! What the gateway stands on is taken or taken away: its database by a second gateway or another
//! process, its audit log by an accident.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::acquirer::Payment;
use harness::billing::Fault;
use harness::world::{Process, Wanted, World};
use reqwest::Method;
use tokio::time::{Instant, sleep};

use crate::support::{
    ANSWER_MAX, Counter, assert_paid_once, assert_refused, effects_by_bill, text, until,
};

/// Another process that holds the database's write lock; dropped, it lets go.
struct Intruder(Child);

impl Intruder {
    fn locks(database: &Path) -> Self {
        let script = "import sqlite3, sys\n\
                      db = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)\n\
                      db.execute('BEGIN EXCLUSIVE')\n\
                      print('locked', flush=True)\n\
                      sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "locked");
        Self(child)
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `tollgate serve` beside the world's own, with another configuration, until it ends. Its
/// success and what it said.
async fn second(world: &World, edit: impl FnOnce(&mut toml::Table)) -> (bool, String) {
    let text = std::fs::read_to_string(world.config()).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    table["data"]["listen"] = "127.0.0.1:0".into();
    table["admin"]["listen"] = "127.0.0.1:0".into();
    edit(&mut table);
    let (config, log) = (world.dir().join("second.toml"), world.dir().join("second.log"));
    std::fs::write(&config, toml::to_string(&table).unwrap()).unwrap();
    let arguments = ["serve".as_ref(), "--config".as_ref(), config.as_os_str()];
    let mut process = Process::start("tollgate", &arguments, &log).unwrap();
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(status) = process.ended().unwrap() {
            return (status.success(), std::fs::read_to_string(&log).unwrap());
        }
        assert!(Instant::now() < limit, "it runs:\n{}", process.last_lines());
        sleep(Duration::from_millis(20)).await;
    }
}

async fn readiness(world: &World) -> (u16, serde_json::Value) {
    let monitor = world.admin("monitor").unwrap();
    let answer = monitor.send(Method::GET, "/readyz", &[], Vec::new()).await.unwrap();
    (answer.status.as_u16(), answer.json())
}

#[tokio::test]
async fn a_second_gateway_on_the_same_files_refuses_to_start_and_harms_nobody() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let (database, audit) = (world.dir().join("data/tollgate.sqlite"), world.dir().join("audit"));
    let (database, audit) = (database.display().to_string(), audit.display().to_string());
    let other_audit = world.dir().join("audit-2").display().to_string();

    let same_database = second(&world, |table| table["audit"]["dir"] = other_audit.into()).await;
    let same_audit = second(&world, |_| {}).await;
    let answer = counter.pay("key", &counter.body(&Payment::of("pln", "bill").by_card())).await;

    assert!(!same_database.0 && !same_audit.0);
    assert!(
        same_database.1.contains(&database) && same_database.1.contains("store.path"),
        "{}",
        same_database.1
    );
    assert!(
        same_audit.1.contains(&audit) && same_audit.1.contains("audit.dir"),
        "{}",
        same_audit.1
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(readiness(&world).await.0, 200);
}

#[tokio::test]
async fn a_locked_database_stops_payments_in_time_and_nothing_else() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let bodies: Vec<(String, Vec<u8>)> = ["pln", "telkom"]
        .into_iter()
        .map(|biller| (biller.to_owned(), counter.body(&Payment::of(biller, biller).by_card())))
        .collect();
    let intruder = Intruder::locks(&world.dir().join("data/tollgate.sqlite"));

    let mut paying = tokio::task::JoinSet::new();
    for (key, body) in bodies.clone() {
        let counter = counter.clone();
        paying.spawn(async move { counter.pay(&key, &body).await });
    }
    let mut macs = 0;
    while !paying.is_empty() {
        let made = counter.client.generate_mac("zak.acquirer-a", b"message").await.unwrap();
        assert!(counter.acquirer.mac(b"message").starts_with(&made.mac));
        macs += 1;
        if let Some(answer) = paying.try_join_next() {
            assert_refused(&answer.unwrap(), "overloaded");
        }
    }
    drop(intruder);

    assert!(macs > 100, "{macs} MACs in the meantime");
    for (key, body) in bodies {
        until(&key, ANSWER_MAX, async || counter.pay(&key, &body).await.status == 200).await;
    }
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(effects_by_bill(&ledger).len(), 2);
}

/// The biller has paid, and its answer cannot be recorded at once.
#[tokio::test]
async fn a_database_that_is_locked_for_a_moment_delays_the_record_of_a_payment() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let control = world.billing_control().unwrap();
    control.set_mode(Fault::slow(Duration::from_millis(1_500))).await.unwrap();
    let bodies: Vec<(String, Vec<u8>)> = ["pdam", "telkom"]
        .into_iter()
        .map(|biller| (biller.to_owned(), counter.body(&Payment::of(biller, biller))))
        .collect();

    let mut paying = tokio::task::JoinSet::new();
    for (key, body) in bodies.clone() {
        let counter = counter.clone();
        paying.spawn(async move { counter.pay(&key, &body).await });
    }
    sleep(Duration::from_millis(300)).await;
    let intruder = Intruder::locks(&world.dir().join("data/tollgate.sqlite"));
    sleep(Duration::from_millis(2_000)).await;
    drop(intruder);
    let answers = paying.join_all().await;

    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &*text(answer, "status")), (200, "SUCCESS"));
    }
    for (key, body) in &bodies {
        assert_eq!(counter.pay(key, body).await.header("idempotency-replayed"), Some("true"));
    }
    let ledger = control.ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 2);
}

/// However long the database is away, the client is answered in time, and its payment is found.
#[tokio::test]
async fn a_payment_that_cannot_be_recorded_is_answered_in_time_and_found_again() {
    fn impatient(table: &mut toml::Table) {
        table.insert("request_ms_max".into(), 3_000.into());
        table["queue"]["lease_s"] = 5.into();
    }
    let wanted = Wanted { edit: Some(Box::new(impatient)), ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    let counter = Counter::a(&world);
    let control = world.billing_control().unwrap();
    control.set_mode(Fault::slow(Duration::from_millis(1_500))).await.unwrap();
    let body = counter.body(&Payment::of("pdam", "bill"));

    let paying = tokio::spawn({
        let (counter, body) = (counter.clone(), body.clone());
        async move {
            let begun = Instant::now();
            (counter.pay("key", &body).await, begun.elapsed())
        }
    });
    sleep(Duration::from_millis(300)).await;
    let intruder = Intruder::locks(&world.dir().join("data/tollgate.sqlite"));
    let (answer, took) = paying.await.unwrap();
    drop(intruder);

    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (202, "PROCESSING"));
    assert!(took < Duration::from_millis(4_500), "{took:?}");
    let id = text(&answer, "id");
    until("paid", Duration::from_secs(20), async || counter.status(&id).await == "SUCCESS").await;
    let again = counter.pay("key", &body).await;
    assert_eq!((again.status.as_u16(), text(&again, "id")), (200, id));
    let ledger = control.ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 1);
}

#[tokio::test]
async fn without_its_audit_log_the_gateway_answers_nobody_until_it_can_write_again() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let (dir, away) = (world.dir().join("audit"), world.dir().join("audit-away"));
    let body = counter.body(&Payment::of("pln", "bill").by_card());

    std::fs::rename(&dir, &away).unwrap();
    until("not ready", Duration::from_secs(5), async || {
        let (status, parts) = readiness(&world).await;
        status == 503 && parts["audit"] == false && parts["hsm"] == true
    })
    .await;
    let payment = counter.pay("key", &body).await;
    let mac = counter.client.generate_mac("zak.acquirer-a", b"message").await.unwrap_err();
    let asked = world.billing_control().unwrap().ledger().await.unwrap().requests;
    std::fs::rename(&away, &dir).unwrap();
    until("ready", Duration::from_secs(5), async || readiness(&world).await.0 == 200).await;
    let paid = counter.pay("key", &body).await;

    assert_refused(&payment, "audit-unavailable");
    assert_eq!(mac.slug().as_deref(), Some("audit-unavailable"));
    assert_eq!(asked, 0, "no work begins without a record");
    assert_eq!(paid.status, 200, "{paid:?}");
    let failures = world.audit().unwrap();
    let failures = failures.iter().filter(|event| event.to_string().contains("audit.failure"));
    assert!(failures.count() > 0, "the failure itself is on record");
}

#[tokio::test]
async fn an_audit_file_that_is_deleted_is_noticed_and_followed_by_a_new_one() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let body = counter.body(&Payment::of("telkom", "bill").by_card());
    let files = || -> Vec<_> {
        let entries = std::fs::read_dir(world.dir().join("audit")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|it| it == "jsonl")).collect()
    };

    let deleted = files();
    for file in &deleted {
        std::fs::remove_file(file).unwrap();
    }
    // Whether or not the first answer was withheld, the payment is made once.
    let first = counter.pay("key", &body).await;
    until("paid", Duration::from_secs(5), async || counter.pay("key", &body).await.status == 200)
        .await;

    if first.status != 200 {
        assert_refused(&first, "audit-unavailable");
    }
    until("ready", Duration::from_secs(5), async || readiness(&world).await.0 == 200).await;
    let now = files();
    assert!(!now.is_empty() && now.iter().all(|file| !deleted.contains(file)), "{now:?}");
    let events = world.audit().unwrap();
    assert_eq!(events[0]["event"]["type"], "audit.rotate");
    assert_eq!(events[1]["event"]["type"], "audit.failure");
    assert_paid_once(&world.billing_control().unwrap().ledger().await.unwrap());
}
