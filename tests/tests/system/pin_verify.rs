//! PINs are verified by three methods, and guessing one is stopped before the token is asked.

use std::collections::BTreeSet;
use std::process::{Child, Command};
use std::time::Duration;

use harness::acquirer::{Answer, Client};
use harness::demo_keys::DemoKeys;
use harness::soft::ibm3624::Rule;
use harness::soft::mac::cmac_aes;
use harness::soft::pin::{PinFormat, encipher, seal_pin};
use harness::soft::pvv::pvv;
use harness::vectors;
use harness::world::{Wanted, World};
use hsm_adapter::register::{KeyAlgorithm, KeyProfile, MacProfile};
use hsm_adapter::vocabulary::{KeyLabel, KeyRole, MacAlgorithm, PinBlockFormat};
use serde_json::{Value, json};
use softhsm::{PlannedKey, PlannedValue};
use tokio::time::sleep;
use toml::Value as Toml;

use crate::support::query;
use crate::terminal::{PAN, PIN, PIN_CALLS, ask, refusal};
use crate::wanted::{grant_macs, grants_of};

const MAC_CALLS: &str = "tollgate_hsm_operations_total{operation=\"mac_verify\"";
const OTHER_PAN: &str = "4929123412341234";
const REFERENCE_KEY: [u8; 16] =
    *b"\x43\x57\x1a\x23\x5b\x6e\x7f\x91\x0e\x2c\x4a\x68\x86\xa4\xc2\xe0";

/// A PIN block of `zpk.acquirer-a`, iso0.
fn block(pan: &str, pin: &str) -> String {
    let key = DemoKeys::load().value("zpk.acquirer-a");
    seal_pin(PinFormat::Iso0, &key, pan, pin).map(hex::encode_upper).unwrap()
}

/// The body of a verification: the card's block, and what the issuer keeps of `kept`.
fn body(method: &str, pan: &str, pin: &str, kept: &str) -> Value {
    let mut body = json!({"pan": pan, "pin_block": block(pan, pin), "method": method,
        "from": {"key": "zpk.acquirer-a", "format": "iso0"}});
    let value = |label| DemoKeys::load().value(label);
    let fields = match method {
        "pvv" => {
            let pvv = pvv(&value("pvk.issuer"), pan, 1, kept).unwrap();
            json!({"key": "pvk.issuer", "pvki": 1, "pvv": pvv})
        }
        "ibm3624" => {
            let rule = Rule { table: "0123456789012345".into(), from: 0, digits: 16, pad: 'F' };
            let offset = rule.offset(&value("pvk.issuer-3624"), pan, kept).unwrap();
            json!({"key": "pvk.issuer-3624", "offset": offset})
        }
        _ => {
            let reference = seal_pin(PinFormat::Iso0, &REFERENCE_KEY, pan, kept).unwrap();
            json!({"key": "pin.reference", "reference": hex::encode_upper(reference)})
        }
    };
    body.as_object_mut().unwrap().extend(fields.as_object().cloned().unwrap());
    body
}

async fn verify(client: &Client, body: &Value) -> Answer {
    ask(client, "/v1/pin/verify", body).await
}

async fn verdict(client: &Client, pan: &str, pin: &str) -> Option<bool> {
    let answer = verify(client, &body("pvv", pan, pin, PIN)).await;
    if answer.status == 403 { None } else { answer.json()["verified"].as_bool() }
}

/// The demo's world with a reference key, other limits and what else a test changes.
async fn world(limits: &'static [(&'static str, i64)], keys: Vec<PlannedKey>) -> World {
    let labels: Vec<String> = keys.iter().map(|key| key.profile.label.to_string()).collect();
    let edit = move |table: &mut toml::Table| {
        for (key, value) in limits {
            table["limits"].as_table_mut().unwrap().insert((*key).into(), Toml::Integer(*value));
        }
        let grants = grants_of(table, "acquirer-a");
        grant_macs(grants, &labels);
        let with = grants["verify"][0]["with"].as_array_mut().unwrap();
        with.extend(["pin.reference".into(), "zpk.billing".into()]);
    };
    let (role, algorithm) = (KeyRole::PinReference, KeyAlgorithm::Tdes);
    let base = KeyProfile::new(KeyLabel::parse("pin.reference").unwrap(), role, algorithm);
    let profile = KeyProfile { formats: vec![PinBlockFormat::Iso0], ..base };
    let value = Some(PlannedValue(REFERENCE_KEY.to_vec().into()));
    let mut more_keys = vec![PlannedKey { profile, value }];
    more_keys.extend(keys);
    let wanted = Wanted { more_keys, edit: Some(Box::new(edit)), ..Wanted::default() };
    World::start_as(wanted).await.unwrap()
}

#[tokio::test]
async fn each_method_knows_the_right_pin_from_a_wrong_one() {
    let world = world(&[], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();

    for method in ["pvv", "ibm3624", "reference"] {
        for (pin, kept) in
            [("4711", "4711"), ("0000", "0000"), ("123456", "123456"), ("4711", "4712")]
        {
            let answer = verify(&client, &body(method, PAN, pin, kept)).await;

            assert_eq!(answer.json(), json!({"verified": pin == kept}), "{method} {pin} {kept}");
        }
        // Another card's block.
        let mut crossed = body(method, PAN, PIN, PIN);
        crossed["pin_block"] = json!(block(OTHER_PAN, PIN));
        assert_eq!(refusal(&verify(&client, &crossed).await), (422, "pin-block-refused".into()));
    }
    let audit = world.audit().unwrap();
    let events: Vec<_> =
        audit.iter().filter(|event| event["event"]["type"] == "pin.verify").collect();
    assert_eq!(events.len(), 15);
    assert!(events.iter().any(|event| event["reason"] == "pin-wrong"));
    assert!(events.iter().all(|event| event["pan_last4"] == "7820"));
}

#[tokio::test]
async fn fields_of_another_method_keys_and_zones_that_are_not_granted_are_refused() {
    let world = world(&[], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();
    let changed = |method, field: &str, value: Value| {
        let mut body = body(method, PAN, PIN, PIN);
        body[field] = value;
        body
    };

    for (body, field) in [
        (changed("pvv", "offset", json!("1234")), "offset"),
        (changed("pvv", "table", json!("0123456789012345")), "table"),
        (changed("ibm3624", "pvki", json!(1)), "pvki"),
        (changed("ibm3624", "decimalisation_table", json!("0123456789012345")), "decimalisation"),
        (changed("reference", "pvv", json!("1234")), "pvv"),
        (changed("pvv", "pvki", json!(7)), "pvki"),
        (changed("pvv", "method", json!("cvv")), "method"),
    ] {
        let answer = verify(&client, &body).await;
        assert_eq!(refusal(&answer), (400, "malformed-request".into()), "{body}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(field), "{answer:?}");
    }
    let zone = |key: &str, format: &str| json!({"key": key, "format": format});
    for body in [
        changed("pvv", "key", json!("pvk.nobody")),
        changed("pvv", "key", json!("zpk.billing")),
        changed("pvv", "key", json!("pvk.issuer-3624")),
        changed("pvv", "version", json!(9)),
        changed("pvv", "from", zone("zpk.acquirer-b", "iso4")),
        changed("pvv", "from", zone("zpk.acquirer-a", "iso4")),
    ] {
        assert_eq!(refusal(&verify(&client, &body).await), (403, "not-allowed".into()), "{body}");
    }
    let other = world.client("acquirer-b").unwrap();
    let answer = verify(&other, &body("pvv", PAN, PIN, PIN)).await;
    assert_eq!(refusal(&answer), (403, "not-allowed".into()));
}

#[tokio::test]
async fn every_invalid_block_of_the_vectors_is_refused_in_one_form() {
    let world = world(&[], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();
    let key = DemoKeys::load().value("zpk.acquirer-a");
    let mut forms = BTreeSet::new();
    for v in vectors::load("pinblock_invalid") {
        let format: PinFormat = format!("iso{}", v.number("format")).parse().unwrap();
        if format == PinFormat::Iso4 {
            continue;
        }
        let (pan, clear) = (v.find("pan").unwrap_or(PAN), v.hex("clear_block"));
        // A block of no size that a cipher takes goes as it is.
        let block = encipher(format, &key, pan, &clear).unwrap_or(clear);
        let mut body = body("pvv", PAN, PIN, PIN);
        body["pan"] = json!(pan);
        body["pin_block"] = json!(hex::encode(block));
        body["from"]["format"] = json!(format.to_string());

        let answer = verify(&client, &body).await;

        assert_eq!(refusal(&answer), (422, "pin-block-refused".into()), "{v}");
        let mut form = answer.json();
        form["request_id"].take();
        forms.insert(form.to_string());
    }

    assert_eq!(forms.len(), 1, "{forms:#?}");
    assert_eq!(verdict(&client, PAN, PIN).await, Some(true));
}

#[tokio::test]
async fn the_sixth_wrong_pin_in_a_row_makes_no_hsm_call_also_after_a_kill() {
    let mut world = world(&[("pan_failures_max", 5)], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();
    // Four failures, and a success that forgets them.
    for _ in 0..4 {
        assert_eq!(verdict(&client, PAN, "9999").await, Some(false));
    }
    assert_eq!(verdict(&client, PAN, PIN).await, Some(true));
    for _ in 0..5 {
        assert_eq!(verdict(&client, PAN, "9999").await, Some(false));
    }

    let asked = world.metric(PIN_CALLS).await.unwrap();
    let sixth = verify(&client, &body("ibm3624", PAN, PIN, PIN)).await;

    assert_eq!(refusal(&sixth), (403, "not-allowed".into()));
    assert_eq!(world.metric(PIN_CALLS).await.unwrap(), asked);
    assert_eq!(world.metric("tollgate_blocked_total{scope=\"pan\"}").await.unwrap(), 1.0);
    assert_eq!(verdict(&client, OTHER_PAN, PIN).await, Some(true), "another card");
    // The same card to a PIN block and a PVV: only digits that neither holds are others.
    let alias = format!("9{}5", &PAN[1..PAN.len() - 1]);
    assert_ne!(alias, PAN);
    assert_eq!(block(&alias, PIN), block(PAN, PIN));
    assert_eq!(verdict(&client, &alias, PIN).await, None);
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    let client = world.client("acquirer-a").unwrap();
    assert_eq!(verdict(&client, PAN, PIN).await, None);
    let audit = world.audit().unwrap();
    assert_eq!(audit.iter().filter(|event| event["reason"] == "blocked").count(), 3);
}

#[tokio::test]
async fn guesses_at_once_make_as_many_calls_as_the_limit() {
    let world = world(&[("pan_failures_max", 5)], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();

    let asked = (0..40).map(|guess| {
        let client = client.clone();
        tokio::spawn(async move { verdict(&client, PAN, &format!("{:04}", 5_000 + guess)).await })
    });
    let mut told = Vec::new();
    for verdict in asked.collect::<Vec<_>>() {
        told.push(verdict.await.unwrap());
    }

    assert_eq!(told.iter().filter(|one| **one == Some(false)).count(), 5);
    assert_eq!(told.iter().filter(|one| one.is_none()).count(), 35);
    let line = "tollgate_hsm_operations_total{operation=\"pin_verify\"";
    assert_eq!(world.metric(line).await.unwrap(), 5.0);
}

#[tokio::test]
async fn a_client_that_verifies_too_much_is_told_to_wait() {
    let world = world(&[("client_verifies_per_minute", 3)], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();
    for _ in 0..3 {
        assert_eq!(verdict(&client, PAN, PIN).await, Some(true));
    }

    let answer = verify(&client, &body("pvv", PAN, PIN, PIN)).await;

    assert_eq!(refusal(&answer), (429, "too-many-requests".into()));
    let wait: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(answer.header("ratelimit"), None, "counters of PINs are not shown");
}

async fn translate(client: &Client, pan: &str, block: &str) -> (u16, String) {
    let body = json!({"pan": pan, "pin_block": block,
        "from": {"key": "zpk.acquirer-a", "format": "iso0"},
        "to": {"key": "zpk.billing", "format": "iso0"}});
    refusal(&ask(client, "/v1/pin/translate", &body).await)
}

#[tokio::test]
async fn the_eleventh_translation_of_a_card_within_an_hour_is_refused() {
    let mut world = world(&[("pan_translations_per_hour", 10)], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();
    for pin in 0..10 {
        assert_eq!(translate(&client, PAN, &block(PAN, &format!("{pin:04}"))).await.0, 200);
    }

    let asked = world.metric(PIN_CALLS).await.unwrap();
    for _ in 0..3 {
        let refused = translate(&client, PAN, &block(PAN, PIN)).await;
        assert_eq!(refused, (403, "not-allowed".into()));
    }

    assert_eq!(world.metric(PIN_CALLS).await.unwrap(), asked);
    assert_eq!(translate(&client, OTHER_PAN, &block(OTHER_PAN, PIN)).await.0, 200);
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    let client = world.client("acquirer-a").unwrap();
    assert_eq!(translate(&client, PAN, &block(PAN, PIN)).await.0, 403);
    let audit = world.audit().unwrap();
    let suspects =
        audit.iter().filter(|event| event["event"]["type"] == "pin.codebook_suspect").count();
    assert_eq!(suspects, 1, "told once");
}

#[tokio::test]
async fn a_burst_of_bad_blocks_takes_their_key_out_of_use() {
    let mut world = world(&[("malformed_blocks_per_minute", 4)], Vec::new()).await;
    let client = world.client("acquirer-a").unwrap();
    for bad in 0..5u8 {
        let refused = translate(&client, PAN, &hex::encode([bad; 8])).await;
        assert_eq!(refused, (422, "pin-block-refused".into()));
    }

    assert_eq!(translate(&client, PAN, &block(PAN, PIN)).await, (403, "not-allowed".into()));
    assert_eq!(verdict(&client, PAN, PIN).await, None);
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    let client = world.client("acquirer-a").unwrap();
    assert_eq!(translate(&client, PAN, &block(PAN, PIN)).await, (403, "not-allowed".into()));
    let audit = world.audit().unwrap();
    assert!(audit.iter().any(|event| event["event"]["type"] == "pin.sanity_burst"));
    assert_eq!(audit.iter().filter(|event| event["reason"] == "quarantined").count(), 3);
}

/// A key of MACs of four bytes.
fn short_mac_key(value: [u8; 16]) -> PlannedKey {
    let (role, algorithm) = (KeyRole::Mac, KeyAlgorithm::Aes);
    let base = KeyProfile::new(KeyLabel::parse("zak.short").unwrap(), role, algorithm);
    let mac = MacProfile {
        algorithm: MacAlgorithm::Cmac,
        padding: None,
        length: 4,
        length_min: None,
        empty_message: false,
    };
    let profile = KeyProfile { mac: Some(mac), ..base };
    PlannedKey { profile, value: Some(PlannedValue(value.to_vec().into())) }
}

#[tokio::test]
async fn guesses_at_short_macs_have_a_budget_that_a_kill_does_not_renew() {
    let value = [0x3C; 16];
    let key = short_mac_key(value);
    let mut world = world(&[("mac_failures_max", 3)], vec![key]).await;
    let right = hex::encode(&cmac_aes(&value, b"message").unwrap()[..4]);
    let client = world.client("acquirer-a").unwrap();
    for _ in 0..5 {
        assert!(client.verify_mac("zak.short", b"message", &right).await.unwrap(), "costs nothing");
    }
    for _ in 0..3 {
        assert!(!client.verify_mac("zak.short", b"message", "00000000").await.unwrap());
    }
    assert!(client.verify_mac("zak.short", b"message", &right).await.unwrap(), "within its budget");
    world.kill_gateway();
    world.start_gateway().await.unwrap();

    let client = world.client("acquirer-a").unwrap();
    assert!(!client.verify_mac("zak.short", b"message", "00000001").await.unwrap());
    let asked = world.metric(MAC_CALLS).await.unwrap();
    let after = client.verify_mac("zak.short", b"message", &right).await;

    let body = json!({"key": "zak.short", "message": hex::encode("message"), "mac": right});
    assert!(after.is_err());
    let answer = ask(&client, "/v1/mac/verify", &body).await;
    assert_eq!(refusal(&answer), (403, "not-allowed".into()));
    assert_eq!(world.metric(MAC_CALLS).await.unwrap(), asked);
    let audit = world.audit().unwrap();
    assert!(audit.iter().any(|event| event["event"]["type"] == "mac.guess_suspect"));
}

/// A right MAC is counted as a guess until it is known to be right. A database that is away just then
/// costs time, and neither the answer nor the key's budget.
#[tokio::test]
async fn a_right_short_mac_is_right_also_when_the_database_is_away_for_a_while() {
    let value = [0x3C; 16];
    let label = ["zak.short".to_owned()];
    let wanted = Wanted {
        shim: true,
        more_keys: vec![short_mac_key(value)],
        edit: Some(Box::new(move |table| grant_macs(grants_of(table, "acquirer-a"), &label))),
        ..Wanted::default()
    };
    let world = World::start_as(wanted).await.unwrap();
    let client = world.client("acquirer-a").unwrap();
    let right = hex::encode(&cmac_aes(&value, b"message").unwrap()[..4]);
    assert!(client.verify_mac("zak.short", b"message", &right).await.unwrap());
    world.shim_control("Sign delay 700\nEncrypt delay 700").await.unwrap();

    let asked = client.clone();
    let answer =
        tokio::spawn(async move { asked.verify_mac("zak.short", b"message", &right).await });
    // It is counted, and with the token.
    sleep(Duration::from_millis(250)).await;
    let locked = lock_database(&world, "6");
    let answer = answer.await.unwrap();
    assert!(locked.wait_with_output().unwrap().status.success());

    assert!(answer.unwrap());
    let counted = "SELECT long_count FROM guard_window WHERE rule = 'mac-failure-life'";
    assert_eq!(query(&world, counted), "0");
}

/// Another process writes to the gateway's database for some seconds.
fn lock_database(world: &World, seconds: &str) -> Child {
    let script = "import sqlite3, sys, time\n\
                  db = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
                  db.execute('BEGIN IMMEDIATE')\n\
                  time.sleep(float(sys.argv[2]))";
    let database = world.dir().join("data/tollgate.sqlite");
    Command::new("python3").args(["-c", script]).arg(database).arg(seconds).spawn().unwrap()
}
