//! A client does not wait for its answer: what was refused is counted and on record all the same,
//! and what it was told last stays true.

use std::time::Duration;

use harness::demo_keys::DemoKeys;
use harness::soft::pin::{PinFormat, seal_pin};
use harness::world::{Wanted, World};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::until;
use crate::terminal::{PAN, PIN, ask, refusal};

const RECORDED: Duration = Duration::from_secs(5);

/// A token that takes half a second for a PIN block, and what a test changes.
async fn slow_world(limits: &'static [(&'static str, i64)]) -> World {
    let edit = move |table: &mut toml::Table| {
        for (key, value) in limits {
            table["limits"].as_table_mut().unwrap().insert((*key).into(), (*value).into());
        }
    };
    let wanted = Wanted { shim: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    world.shim_control("Decrypt delay 500").await.unwrap();
    world
}

fn find(world: &World, kind: &str, found: impl Fn(&Value) -> bool) -> Option<Value> {
    let events = world.audit().unwrap();
    events.into_iter().find(|event| event["event"]["type"] == kind && found(event))
}

/// Or whoever hangs up learns from the time that it takes, and is never stopped.
#[tokio::test]
async fn bad_pin_blocks_of_a_client_that_hangs_up_are_counted() {
    let world = slow_world(&[("malformed_blocks_per_minute", 2)]).await;
    let client = world.client("acquirer-a").unwrap();
    let key = DemoKeys::load().value("zpk.acquirer-a");
    let good = hex::encode(seal_pin(PinFormat::Iso0, &key, PAN, PIN).unwrap());
    let body = |block: &str| {
        json!({"pan": PAN, "pin_block": block,
            "from": {"key": "zpk.acquirer-a", "format": "iso0"},
            "to": {"key": "zpk.billing", "format": "iso0"}})
    };

    for bad in 0..3u8 {
        let bad = body(&hex::encode([bad; 8]));
        let asked = ask(&client, "/v1/pin/translate", &bad);
        assert!(timeout(Duration::from_millis(250), asked).await.is_err());
    }

    until("the third one takes the key out of use", RECORDED, async || {
        find(&world, "pin.sanity_burst", |_| true).is_some()
    })
    .await;
    let after = ask(&client, "/v1/pin/translate", &body(&good)).await;
    assert_eq!(refusal(&after), (403, "not-allowed".into()));
}
