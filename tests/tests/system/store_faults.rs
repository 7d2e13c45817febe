//! The disk under the database fills up, or its file is replaced: payments are refused in time,
//! the rest goes on, nothing is lost, and it is over when the cause is.

use std::time::Duration;

use harness::acquirer::{Answer, Payment};
use harness::world::{Wanted, World};
use reqwest::Method;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::{Counter, assert_paid_once, assert_refused, effects_by_bill, text, until};

const PATIENCE: Duration = Duration::from_secs(15);

async fn is_ready(world: &World, ready: bool) {
    let monitor = world.admin("monitor").unwrap();
    until(if ready { "ready" } else { "not ready" }, PATIENCE, async || {
        let answer = monitor.send(Method::GET, "/readyz", &[], Vec::new()).await.unwrap();
        (answer.status == 200) == ready
    })
    .await;
}

/// No file of the gateway may grow beyond so many bytes, as on a disk that is full.
fn limit_files(world: &World, bytes: Option<u64>) {
    let pid = Pid::from_raw(world.gateway().unwrap().id() as i32);
    prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

/// Pays new bills until one is refused; that one comes last.
async fn pay_until_refused(counter: &Counter) -> Vec<(String, Vec<u8>, Answer)> {
    let mut told = Vec::new();
    for number in 0..60 {
        let bill = format!("bill-{number}");
        let body = counter.body(&Payment::of("pln", &bill));
        let answer = counter.pay(&bill, &body).await;
        let refused = answer.status == 503;
        told.push((bill, body, answer));
        if refused {
            return told;
        }
    }
    panic!("the disk does not fill");
}

/// What was taken before is there when the file system takes writes again.
#[tokio::test]
async fn a_read_only_file_system_is_refused_at_the_start_and_named() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let body = counter.body(&Payment::of("pln", "bill-1"));
    let paid = counter.pay("k1", &body).await;
    world.stop_gateway().await.unwrap();
    let data = world.dir().join("data");
    // In a mount namespace of its own, which ends with it.
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let wrapper = ["unshare", "-Urm", "sh", "-c", script, data.to_str().unwrap()];

    let refused = world.start_gateway_under(&wrapper).await.unwrap_err().to_string();
    world.start_gateway().await.unwrap();
    let again = Counter::a(&world).pay("k1", &body).await;

    assert!(refused.to_lowercase().contains("read-only"), "{refused}");
    assert!(refused.contains("tollgate.sqlite"), "{refused}");
    assert_eq!((again.status, again.json()), (paid.status, paid.json()));
}

#[tokio::test]
async fn a_full_disk_refuses_payments_loses_none_and_is_over_when_there_is_room() {
    let mut world = World::prepare(Wanted::default()).unwrap();
    world.start_billing().await.unwrap();
    // A write beyond the limit is to fail and not to kill.
    world.start_gateway_under(&["env", "--ignore-signal=XFSZ"]).await.unwrap();
    let counter = Counter::a(&world);

    limit_files(&world, Some(48 * 1024));
    let told = pay_until_refused(&counter).await;
    is_ready(&world, false).await;
    let still = counter.pay("late", &counter.body(&Payment::of("pln", "late"))).await;
    let mac = counter.client.generate_mac("zak.acquirer-a", b"message").await;
    limit_files(&world, None);
    is_ready(&world, true).await;
    for (key, body, _) in &told {
        until(key, PATIENCE, async || counter.pay(key, body).await.status == 200).await;
    }

    let (refused, acknowledged) = told.split_last().unwrap();
    assert_refused(&refused.2, "overloaded");
    assert_refused(&still, "overloaded");
    assert!(mac.is_ok(), "{mac:?}");
    for (bill, _, answer) in acknowledged {
        assert!(["SUCCESS", "PENDING", "PROCESSING"].contains(&&*text(answer, "status")), "{bill}");
    }
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(effects_by_bill(&ledger).len(), told.len());
}

#[tokio::test]
async fn a_database_that_is_replaced_takes_no_payment_until_the_right_one_is_back() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let file = world.dir().join("data/tollgate.sqlite");
    let (right, body) = (world.dir().join("right"), counter.body(&Payment::of("pln", "bill")));
    let mac = async || counter.client.generate_mac("zak.acquirer-a", b"message").await.is_ok();

    std::fs::rename(&file, &right).unwrap();
    std::fs::copy(&right, &file).unwrap();
    let refused = counter.pay("key", &body).await;
    is_ready(&world, false).await;
    let answers = mac().await;
    std::fs::rename(&right, &file).unwrap();
    is_ready(&world, true).await;
    let paid = counter.pay("key", &body).await;

    assert_refused(&refused, "overloaded");
    assert!(answers);
    assert_eq!((paid.status.as_u16(), &*text(&paid, "status")), (200, "SUCCESS"));
    assert_paid_once(&world.billing_control().unwrap().ledger().await.unwrap());
}
