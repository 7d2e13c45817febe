//! Terminals with a key for each transaction: their blocks are translated once, in growing order.

use std::collections::BTreeSet;

use harness::acquirer::{Answer, Client};
use harness::demo_keys::DemoKeys;
use harness::soft::pin::{PinFormat, open_pin};
use harness::world::{Wanted, World};
use hsm_adapter::register::{KeyAlgorithm, KeyProfile, MacProfile};
use hsm_adapter::vocabulary::{KeyLabel, KeyRole, MacAlgorithm, PinBlockFormat};
use reqwest::Method;
use serde_json::json;
use softhsm::{PlannedKey, PlannedValue};
use toml::Value as Toml;

use crate::terminal::{PAN, PIN, PIN_CALLS, Terminal, ask, mac, refusal};
use crate::wanted::grants_of;

const BOTH: [Terminal; 2] = [Terminal::Aes(1), Terminal::Tdes(1)];

/// The PIN that came out under `zpk.billing`.
fn pin_of(answer: &Answer, pan: &str) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let block = hex::decode(answer.json()["pin_block"].as_str().unwrap()).unwrap();
    open_pin(PinFormat::Iso0, &DemoKeys::load().value("zpk.billing"), pan, &block).unwrap()
}

fn refused() -> (u16, String) {
    (422, "pin-block-refused".into())
}

#[tokio::test]
async fn both_families_are_translated_and_the_answer_names_the_ksn() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();

    for terminal in BOTH {
        for counter in [1, 2, 3, 0x155] {
            let answer = terminal.translate(&client, counter).await;

            assert_eq!(pin_of(&answer, PAN), PIN, "{terminal:?} {counter}");
            assert_eq!(answer.json()["ksn"], terminal.ksn(counter));
        }
    }
}

#[tokio::test]
async fn stripped_leading_f_come_back_and_other_lengths_are_refused_by_name() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    let terminal = Terminal::Tdes(2);
    let with_ksn = async |counter, ksn: &str| {
        let block = terminal.block(counter, PAN, PIN);
        let body = json!({"pan": PAN, "pin_block": block,
            "from": {"key": terminal.bdk(), "format": "iso0", "ksn": ksn},
            "to": {"key": "zpk.billing", "format": "iso0"}});
        ask(&client, "/v1/pin/translate", &body).await
    };

    let whole = terminal.ksn(1);
    let stripped = with_ksn(1, whole.trim_start_matches('F')).await;
    let three = with_ksn(2, terminal.ksn(2).strip_prefix("FFF").unwrap()).await;

    assert_eq!((pin_of(&stripped, PAN).as_str(), pin_of(&three, PAN).as_str()), (PIN, PIN));
    assert_eq!(stripped.json()["ksn"], whole);
    for ksn in ["", "123456789012345", "FFFF9876000000400003F", "1234567812345678000000", "Z"] {
        let answer = with_ksn(3, ksn).await;
        assert_eq!(refusal(&answer), (400, "malformed-request".into()), "{ksn}");
        assert!(answer.json()["detail"].as_str().unwrap().starts_with("from.ksn: "), "{ksn}");
    }
}

#[tokio::test]
async fn a_counter_that_does_not_grow_is_refused_also_after_a_kill() {
    let mut world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    for terminal in BOTH {
        assert_eq!(terminal.translate(&client, 6).await.status, 200);

        for counter in [6, 5, 1] {
            let answer = terminal.translate(&client, counter).await;
            assert_eq!(refusal(&answer), refused(), "{terminal:?} {counter}");
        }
    }
    world.kill_gateway();
    world.start_gateway().await.unwrap();

    let client = world.client("terminal-1").unwrap();
    for terminal in BOTH {
        let asked = world.metric(PIN_CALLS).await.unwrap();
        assert_eq!(refusal(&terminal.translate(&client, 6).await), refused());
        assert_eq!(world.metric(PIN_CALLS).await.unwrap(), asked);
        assert_eq!(terminal.translate(&client, 8).await.status, 200);
    }
    // Another device has a counter of its own.
    assert_eq!(Terminal::Aes(9).translate(&client, 1).await.status, 200);
    let audit = world.audit().unwrap();
    let replays = audit.iter().filter(|event| event["event"]["type"] == "dukpt.replay");
    assert_eq!(replays.filter(|event| event["actor"]["id"] == "terminal-1").count(), 8);
}

#[tokio::test]
async fn of_many_requests_with_one_ksn_exactly_one_succeeds() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();

    for terminal in BOTH {
        let asked = (0..24).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { terminal.translate(&client, 3).await })
        });
        let mut good = 0;
        let mut refusals = BTreeSet::new();
        for answer in asked.collect::<Vec<_>>() {
            let answer = answer.await.unwrap();
            match answer.status.as_u16() {
                200 => good += 1,
                _ => drop(refusals.insert(refusal(&answer))),
            }
        }

        assert_eq!((good, refusals), (1, BTreeSet::from([refused()])), "{terminal:?}");
    }
}

#[tokio::test]
async fn a_block_that_fails_its_checks_spends_no_counter() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    for terminal in BOTH {
        // The block of another transaction: another key.
        let body = json!({"pan": PAN, "pin_block": terminal.block(9, PAN, PIN),
            "from": terminal.from(4), "to": {"key": "zpk.billing", "format": "iso0"}});

        assert_eq!(refusal(&ask(&client, "/v1/pin/translate", &body).await), refused());
        assert_eq!(terminal.translate(&client, 4).await.status, 200, "{terminal:?}");
    }
}

#[tokio::test]
async fn keys_and_ksns_that_do_not_go_together_are_not_allowed() {
    let world = World::start().await.unwrap();
    let (terminal, zone) =
        (world.client("terminal-1").unwrap(), world.client("acquirer-a").unwrap());
    let [aes, tdes] = BOTH;
    let to = json!({"key": "zpk.billing", "format": "iso0"});
    let ask = async |client: &Client, block: String, from: serde_json::Value| {
        let body = json!({"pan": PAN, "pin_block": block, "from": from, "to": to});
        refusal(&ask(client, "/v1/pin/translate", &body).await)
    };
    let forbidden = (403, "not-allowed".to_owned());

    for (from, block) in [
        // No KSN, and a format of the other family.
        (json!({"key": aes.bdk(), "format": "iso4"}), aes.block(1, PAN, PIN)),
        (json!({"key": tdes.bdk(), "format": "iso4", "ksn": tdes.ksn(1)}), aes.block(1, PAN, PIN)),
        (json!({"key": aes.bdk(), "format": "iso0", "ksn": aes.ksn(1)}), tdes.block(1, PAN, PIN)),
        // No such version, and a key that this client does not have.
        (
            json!({"key": aes.bdk(), "version": 7, "format": "iso4", "ksn": aes.ksn(1)}),
            aes.block(1, PAN, PIN),
        ),
        (json!({"key": "zpk.acquirer-a", "format": "iso0"}), tdes.block(1, PAN, PIN)),
    ] {
        assert_eq!(ask(&terminal, block, from.clone()).await, forbidden, "{from}");
    }
    let with_ksn = json!({"key": "zpk.acquirer-a", "format": "iso0", "ksn": tdes.ksn(1)});
    assert_eq!(ask(&zone, tdes.block(1, PAN, PIN), with_ksn).await, forbidden);
    // A KSN of the other family is one more thing that is wrong with the block.
    let crossed = json!({"key": aes.bdk(), "format": "iso4", "ksn": tdes.ksn(1)});
    assert_eq!(ask(&terminal, aes.block(1, PAN, PIN), crossed).await, refused());
    assert_eq!(aes.translate(&terminal, 1).await.status, 200);
}

#[tokio::test]
async fn pans_of_8_to_19_digits_are_taken() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    let mut counters = (1..0x400u32).filter(|counter| counter.count_ones() <= 10);
    for digits in 7..=20 {
        for terminal in BOTH {
            let counter = counters.next().unwrap();
            let pan = &"47617379094578201234"[..digits];
            let block =
                terminal.block(counter, if (8..=19).contains(&digits) { pan } else { PAN }, PIN);
            let body = json!({"pan": pan, "pin_block": block, "from": terminal.from(counter),
                "to": {"key": "zpk.billing", "format": "iso0"}});

            let answer = ask(&client, "/v1/pin/translate", &body).await;

            if (8..=19).contains(&digits) {
                assert_eq!(pin_of(&answer, pan), PIN, "{terminal:?} {digits}");
            } else {
                assert_eq!(refusal(&answer), (400, "malformed-request".into()), "{digits}");
            }
        }
    }
}

fn payment(terminal: Terminal, counter: u32, bill: &str) -> Vec<u8> {
    let body = json!({"biller": "telkom", "bill_id": bill, "customer_id": "c-1",
        "amount": {"value": "127000.00", "currency": "IDR"}, "pan": PAN,
        "pin_block": terminal.block(counter, PAN, PIN), "pin": terminal.from(counter)});
    body.to_string().into_bytes()
}

async fn pay(client: &Client, key: &str, body: &[u8]) -> Answer {
    let key = format!("\"{key}\"");
    let headers = [("Idempotency-Key", key.as_str())];
    client.send(Method::POST, "/v1/payments", &headers, body.to_vec()).await.unwrap()
}

#[tokio::test]
async fn a_terminal_pays_without_a_mac_and_a_repeat_gets_the_stored_answer() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    for terminal in BOTH {
        let body = payment(terminal, 1, &format!("{}-1", terminal.bdk()));
        let key = format!("key {}", terminal.bdk());

        let first = pay(&client, &key, &body).await;
        let again = pay(&client, &key, &body).await;
        let other = pay(&client, "another key", &payment(terminal, 1, "another")).await;

        assert_eq!((first.status.as_u16(), &first.json()["status"]), (200, &json!("SUCCESS")));
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!(refusal(&other), refused());
    }
}

/// The biller is away: nothing is stored, and the same request comes back with the same KSN.
#[tokio::test]
async fn a_payment_that_was_turned_away_may_come_again_with_its_ksn() {
    let mut world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    let body = payment(Terminal::Aes(3), 1, "bill-1");
    world.kill_billing();
    let away = pay(&client, "k", &body).await;
    world.start_billing().await.unwrap();

    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    let paid = loop {
        let answer = pay(&client, "k", &body).await;
        if answer.status == 200 || tokio::time::Instant::now() > limit {
            break answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };

    assert_eq!(refusal(&away), (503, "backend-unavailable".into()));
    assert_eq!(paid.json()["status"], "SUCCESS", "{paid:?}");
    let other = pay(&client, "k2", &payment(Terminal::Aes(3), 1, "bill-2")).await;
    assert_eq!(refusal(&other), refused());
}

#[tokio::test]
async fn one_payment_many_times_at_once_is_made_once() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    let body = payment(Terminal::Tdes(4), 1, "bill-1");

    let asked = (0..12).map(|_| {
        let (client, body) = (client.clone(), body.clone());
        tokio::spawn(async move { pay(&client, "k", &body).await.status.as_u16() })
    });
    let mut statuses = Vec::new();
    for status in asked.collect::<Vec<_>>() {
        statuses.push(status.await.unwrap());
    }

    assert!(statuses.contains(&200), "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 409)), "{statuses:?}");
}

#[tokio::test]
async fn a_mac_header_of_a_client_without_a_mac_key_is_refused() {
    let world = World::start().await.unwrap();
    let client = world.client("terminal-1").unwrap();
    let headers =
        [("Idempotency-Key", "\"k\""), ("Tollgate-Mac", "zak.acquirer-a:0011223344556677")];

    let body = payment(Terminal::Aes(5), 1, "bill-1");
    let answer = client.send(Method::POST, "/v1/payments", &headers, body).await.unwrap();

    assert_eq!(refusal(&answer), (422, "mac-refused".into()));
}

/// One transaction carries a PIN block and a MAC under one KSN; neither comes twice.
#[tokio::test]
async fn a_mac_under_a_ksn_is_right_once_and_its_pin_block_beside_it_too() {
    let bdk = vec![0x5A; 16];
    let key = bdk_with_mac(&bdk);
    let edit = |table: &mut toml::Table| {
        let grants = grants_of(table, "terminal-1");
        for list in ["mac_generate", "mac_verify"] {
            grants.insert(list.into(), Toml::Array(vec!["bdk.mac".into()]));
        }
    };
    let wanted = Wanted { more_keys: vec![key], edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    let client = world.client("terminal-1").unwrap();
    let ksn = Terminal::Aes(6).ksn(2);
    let verify = async |ksn: &str, mac: &str| {
        let body = json!({"key": "bdk.mac", "ksn": ksn, "message": "00112233", "mac": mac});
        let answer = ask(&client, "/v1/mac/verify", &body).await;
        answer.json()["verified"].as_bool().unwrap_or_else(|| panic!("{answer:?}"))
    };
    let right = mac(&bdk, &ksn, &[0x00, 0x11, 0x22, 0x33]);

    assert!(!verify(&ksn, "0000000000000000").await);
    assert!(verify(&ksn, &right).await);
    assert!(!verify(&ksn, &right).await, "the same KSN again");
    let body = json!({"key": "bdk.mac", "ksn": ksn, "message": "00"});
    let made = ask(&client, "/v1/mac/generate", &body).await;
    assert_eq!(made.status, 200, "the answer's MAC is of the same transaction: {made:?}");
    let older = Terminal::Aes(6).ksn(1);
    assert!(!verify(&older, &mac(&bdk, &older, &[0x00, 0x11, 0x22, 0x33])).await);
    let no_ksn = json!({"key": "bdk.mac", "message": "00", "mac": right});
    assert_eq!(refusal(&ask(&client, "/v1/mac/verify", &no_ksn).await).0, 403);
}

fn bdk_with_mac(value: &[u8]) -> PlannedKey {
    let (role, algorithm) = (KeyRole::BaseDerivation, KeyAlgorithm::Aes);
    let base = KeyProfile::new(KeyLabel::parse("bdk.mac").unwrap(), role, algorithm);
    let mac = MacProfile {
        algorithm: MacAlgorithm::Cmac,
        padding: None,
        length: 8,
        length_min: None,
        empty_message: false,
    };
    let profile = KeyProfile { mac: Some(mac), formats: vec![PinBlockFormat::Iso4], ..base };
    PlannedKey { profile, value: Some(PlannedValue(value.to_vec().into())) }
}
