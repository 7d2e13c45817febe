//! The queue's KEK is changed while payments wait and others come: every data key goes under the new
//! version, and the old one ends when nothing is under it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::acquirer::Payment;
use harness::world::{Wanted, World};
use hsm_adapter::register::KeyState;
use serde_json::{Value, json};
use softhsm::PlannedKey;

use crate::key_officers::both;
use crate::support::{Counter, assert_paid_once, post, query, text, until};

const KEK: &str = "queue.kek";

/// The rows are looked at every half minute, on a busy machine a little later.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(60);

/// A second version, made in the token and staged.
fn staged(keys: &mut Vec<PlannedKey>) {
    let kek = keys.iter().find(|key| key.profile.label.as_str() == KEK).unwrap();
    let mut second = kek.clone();
    second.profile.version = 2;
    second.profile.state = KeyState::Staged;
    keys.push(second);
}

async fn end_the_first(world: &World) -> Value {
    let officer = world.admin("key-officer").unwrap();
    let body = json!({ "version": 1, "reason": "no longer needed" });
    post(&officer, &format!("/v1/keys/{KEK}/compromise"), &body).await.json()
}

fn under(world: &World, version: u32) -> String {
    let rows = "SELECT count(*) FROM saf_dek WHERE wrapped IS NOT NULL AND kek_version =";
    query(world, &format!("{rows} {version}"))
}

#[tokio::test]
async fn a_new_kek_takes_all_data_keys_over_under_load_and_a_kill_and_the_old_one_ends() {
    let wanted = Wanted { edit_keys: Some(Box::new(staged)), ..Wanted::default() };
    let mut world = World::start_as(wanted).await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();
    let mut waiting = Vec::new();
    for bill in 0..20 {
        let bill = format!("before-{bill}");
        let answer = counter.pay(&bill, &counter.body(&Payment::of("pdam", &bill))).await;
        waiting.push(text(&answer, "id"));
    }
    let while_active = end_the_first(&world).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (counter, stop) = (counter.clone(), Arc::clone(&stop));
        async move {
            let mut taken = Vec::new();
            for bill in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                let bill = format!("meanwhile-{bill}");
                let answer = counter.pay(&bill, &counter.body(&Payment::of("pdam", &bill))).await;
                assert_eq!(answer.status, 202, "{answer:?}");
                taken.push(text(&answer, "id"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            taken
        }
    });

    let activation = json!({ "version": 2, "reason": "yearly change" });
    let activated = both(&world, &format!("/v1/keys/{KEK}/activate"), &activation).await;
    let too_soon = end_the_first(&world).await;
    until("all are under the new one", TAKEN_OVER_WITHIN, async || under(&world, 1) == "0").await;
    stop.store(true, Ordering::Relaxed);
    waiting.extend(load.await.unwrap());
    let ended = end_the_first(&world).await;
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    let counter = Counter::a(&world);
    world.start_billing().await.unwrap();
    for id in &waiting {
        until("paid", Duration::from_secs(30), async || counter.status(id).await == "SUCCESS")
            .await;
    }

    assert_eq!(text(&activated, "state"), "applied", "{activated:?}");
    for refused in [while_active, too_soon] {
        assert_eq!(refused["state"], "refused", "{refused}");
        assert!(refused["error"].as_str().unwrap().contains("data keys of the queue"), "{refused}");
    }
    assert_eq!(ended["state"], "applied", "{ended}");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), waiting.len());
    let held = "SELECT count(*) FROM saf_item WHERE state = 1";
    assert_eq!((under(&world, 1), query(&world, held)), ("0".to_owned(), "0".to_owned()));
}
