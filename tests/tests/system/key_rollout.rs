//! A change of a key reaches every link once and in one order, whoever was away, refused or was killed
//! meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::world::{Link, Wanted, World};
use serde_json::{Value, json};

use crate::key_officers::{LABEL, block, both, import, versions};
use crate::support::{get, post, text, until};
use crate::two_links::{BACK_WITHIN, backup_goes_away, two_links, usable};

/// `version state` of every version of the label, as the link's register has it.
fn on(world: &World, link: Link) -> Vec<String> {
    let register = std::fs::read_to_string(link.token(world.dir()).join("keys.toml")).unwrap();
    let register: toml::Table = toml::from_str(&register).unwrap();
    let keys = register["key"].as_array().unwrap();
    let ours = keys.iter().filter(|key| key["label"].as_str() == Some(LABEL));
    ours.map(|key| {
        let version = key.get("version").and_then(toml::Value::as_integer).unwrap_or(1);
        let state = key.get("state").and_then(toml::Value::as_str).unwrap_or("active");
        format!("{version} {state}")
    })
    .collect()
}

/// How many changes are in each state.
async fn states(world: &World) -> BTreeMap<String, usize> {
    let changes = get(&world.admin("auditor").unwrap(), "/v1/keys/changes").await.json();
    let mut states = BTreeMap::new();
    for change in changes["changes"].as_array().unwrap() {
        *states.entry(change["state"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    states
}

async fn compromise(world: &World, version: u32) -> Value {
    let body = json!({"version": version, "reason": "lost laptop"});
    let officer = world.admin("key-officer").unwrap();
    post(&officer, &format!("/v1/keys/{LABEL}/compromise"), &body).await.json()
}

#[tokio::test]
async fn a_link_that_was_away_gets_what_it_missed_in_order_also_after_a_restart() {
    let mut world = two_links().await;
    backup_goes_away(&world).await;

    let imported = both(&world, "/v1/keys/import", &import(&block(), None)).await;
    let activation = json!({"version": 2, "reason": "yearly"});
    let activated = both(&world, &format!("/v1/keys/{LABEL}/activate"), &activation).await;
    let compromised = compromise(&world, 2).await;
    let meanwhile = [Link::Primary, Link::Backup].map(|link| on(&world, link));
    world.stop_gateway().await.unwrap();
    world.start_gateway().await.unwrap();
    until("the primary serves", BACK_WITHIN, async || usable(&world, "primary").await).await;
    let after_restart = states(&world).await;
    world.shim_control_of(Link::Backup, "").await.unwrap();
    until("the backup has caught up", Duration::from_secs(20), async || {
        usable(&world, "backup").await
    })
    .await;

    // In force at once where a link is there; done when it is everywhere.
    for change in [imported.json(), activated.json(), compromised] {
        assert_eq!(change["state"], "approved", "{change}");
    }
    assert_eq!(meanwhile, [vec!["1 retired", "2 compromised"], vec!["1 active"]]);
    assert_eq!(after_restart, BTreeMap::from([("approved".to_owned(), 3)]));
    for link in [Link::Primary, Link::Backup] {
        assert_eq!(on(&world, link), ["1 retired", "2 compromised"]);
    }
    until("all are applied", BACK_WITHIN, async || {
        states(&world).await == BTreeMap::from([("applied".to_owned(), 3)])
    })
    .await;
    let events = world.audit().unwrap();
    for kind in ["key.import", "key.activate", "key.compromise"] {
        let told = events.iter().filter(|event| event["event"]["type"] == kind);
        let outcomes: Vec<_> = told.map(|event| event["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["success"], "{kind}");
    }
}

#[tokio::test]
async fn a_backup_that_lacks_a_key_keeps_nobody_from_taking_it_out_of_use() {
    let mut world = World::prepare(Wanted { second_link: true, ..Wanted::default() }).unwrap();
    let register = Link::Backup.token(world.dir()).join("keys.toml");
    let mut table: toml::Table =
        toml::from_str(&std::fs::read_to_string(&register).unwrap()).unwrap();
    let keys = table["key"].as_array_mut().unwrap();
    keys.retain(|key| key["label"].as_str() != Some(LABEL));
    std::fs::write(&register, toml::to_string(&table).unwrap()).unwrap();
    world.start_billing().await.unwrap();
    world.start_gateway().await.unwrap();
    until("the primary serves", BACK_WITHIN, async || usable(&world, "primary").await).await;
    let acquirer = world.client("acquirer-b").unwrap();
    let before = acquirer.generate_mac(LABEL, b"m").await.unwrap();

    let compromised = compromise(&world, 1).await;

    assert_eq!(before.key_version, 1);
    // Where there is no such key there is nothing to take out of use.
    assert_eq!(compromised["state"], "applied", "{compromised}");
    assert_eq!(on(&world, Link::Primary), ["1 compromised"]);
    let anew = json!({"key": LABEL, "message": "00"});
    assert_eq!(post(&acquirer, "/v1/mac/generate", &anew).await.status, 403);
    assert!(!usable(&world, "backup").await);
    let retired =
        both(&world, "/v1/keys/zak.acquirer-c/retire", &json!({"version": 1, "reason": "yearly"}))
            .await;
    assert_eq!(retired.json()["key"]["state"], "retired", "{retired:?}");
}

#[tokio::test]
async fn what_a_backup_refuses_is_made_nowhere_and_both_links_serve_on() {
    let world = two_links().await;
    // CKR_ATTRIBUTE_VALUE_INVALID.
    world.shim_control_of(Link::Backup, "CreateObject fail 0x13").await.unwrap();

    let refused = both(&world, "/v1/keys/import", &import(&block(), None)).await;

    world.shim_control_of(Link::Backup, "").await.unwrap();
    assert_eq!(text(&refused, "state"), "refused", "{refused:?}");
    let why = text(&refused, "error");
    assert!(why.starts_with("backup: "), "{why}");
    for link in [Link::Primary, Link::Backup] {
        assert_eq!(on(&world, link), ["1 active"]);
    }
    assert_eq!(versions(&world.admin("monitor").unwrap()).await, ["1 active"]);
    assert!(usable(&world, "primary").await && usable(&world, "backup").await);
}
