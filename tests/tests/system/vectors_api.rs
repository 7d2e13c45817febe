//! Every known answer, asked of the running gateway over mutual TLS.

use harness::acquirer::PinSide;
use harness::vectors::Vector;
use harness::world::{Wanted, World, program};
use hsm_adapter::vocabulary::KeyRole;
use reqwest::Method;
use serde_json::json;

use crate::vector_keys::{MacCase, Translation, VectorKeys, macs, translations};
use crate::vectors_token::{assert_block, flipped};
use crate::wanted::{Zone, grant_macs, grant_translations, grants_of};

#[tokio::test]
async fn every_zone_key_translation_is_answered_as_its_vector_says() {
    let mut keys = VectorKeys::default();
    let mut cases = translations(&mut keys);
    let world = all_that_can_be_granted(keys).await;
    let client = world.client("acquirer-a").unwrap();

    // A DUKPT key is granted to no zone client: `dukpt` tells its story.
    let mut translated = 0;
    cases.retain(|case| !case.vector.part("in").has("dukpt"));
    for Translation { vector: v, from, to } in &cases {
        let (inside, outside) = (v.part("in"), v.part("out"));
        let pan = inside.find("pan").unwrap_or_else(|| outside.text("pan"));
        let (from_format, to_format) = (format_of(&inside), format_of(&outside));
        let from = PinSide { key: from, format: &from_format, ksn: None };
        let to = PinSide { key: to, format: &to_format, ksn: None };

        let answer = client.translate(pan, inside.text("block"), from, to).await;

        let refusal = answer.as_ref().err().and_then(harness::acquirer::Failure::slug);
        match v.find("error") {
            None => {
                let answer = answer.unwrap_or_else(|failure| panic!("{v}: {failure}"));
                assert_eq!(
                    (answer.format.as_str(), answer.key.as_str()),
                    (to.format, to.key),
                    "{v}"
                );
                assert_eq!(answer.key_version, 1, "{v}");
                assert_block(v, pan, &hex::decode(answer.pin_block).unwrap());
                translated += 1;
            }
            Some("format_not_allowed" | "key_format_mismatch") => {
                assert_eq!(refusal.as_deref(), Some("not-allowed"), "{v}");
            }
            Some("pin_block_invalid") => {
                assert_eq!(refusal.as_deref(), Some("pin-block-refused"), "{v}");
            }
            // A second PAN has no place in the request: the next test.
            Some("pan_change") => {}
            Some(other) => panic!("{v}: error {other}"),
        }
    }
    assert_eq!((translated, cases.len()), (16, 24));
}

/// The API has one PAN; wherever a second is put, the request is malformed.
#[tokio::test]
async fn a_change_of_the_pan_cannot_be_asked_for() {
    let mut keys = VectorKeys::default();
    let mut cases = translations(&mut keys);
    cases.retain(|case| case.vector.find("error") == Some("pan_change"));
    assert_eq!(cases.len(), 2);
    let world = all_that_can_be_granted(keys).await;
    let client = world.client("acquirer-a").unwrap();

    for Translation { vector: v, from, to } in &cases {
        let (inside, outside) = (v.part("in"), v.part("out"));
        let (pan, other) = (inside.text("pan"), outside.text("pan"));
        let body = json!({"pan": pan, "pin_block": inside.text("block"),
            "from": {"key": from, "format": format_of(&inside)},
            "to": {"key": to, "format": format_of(&outside)}});
        for place in ["/to_pan", "/new_pan", "/to/pan", "/from/pan"] {
            let mut body = body.clone();
            let (parent, name) = place.rsplit_once('/').unwrap();
            body.pointer_mut(parent).unwrap()[name] = json!(other);

            let bytes = body.to_string().into_bytes();
            let answer = client.send(Method::POST, "/v1/pin/translate", &[], bytes).await.unwrap();

            assert_eq!(answer.status, 400, "{v} {place}");
            assert_eq!(answer.slug().as_deref(), Some("malformed-request"), "{v} {place}");
            let named = format!("unknown field {}", place[1..].replace('/', "."));
            assert_eq!(answer.json()["detail"], named, "{v}");
        }
    }
}

#[tokio::test]
async fn a_translation_to_format_1_cannot_be_granted() {
    let edit = |table: &mut toml::Table| {
        let to = [("zpk.billing", ["iso1"].as_slice())];
        let grants = grants_of(table, "acquirer-a");
        grant_translations(grants, &[("zpk.acquirer-a", &["iso0"])], &to);
    };
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::prepare(wanted).unwrap();

    let mut command = tokio::process::Command::new(program("tollgate").unwrap());
    let output = command.arg("serve").arg("--config").arg(world.config()).output().await.unwrap();

    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("acquirer-a") && text.contains("PCI PIN 3-3"), "{text}");
}

#[tokio::test]
async fn every_mac_is_made_and_verified_as_its_vector_says() {
    let mut keys = VectorKeys::default();
    let cases = macs(&mut keys);
    let world = all_that_can_be_granted(keys).await;
    let client = world.client("acquirer-a").unwrap();

    for (at, MacCase { vector: v, key }) in cases.iter().enumerate() {
        let (message, mac) = (v.hex("message"), v.hex("mac"));
        let verify = async |message: Vec<u8>, mac: &[u8]| {
            let verified = client.verify_mac(key, &message, &hex::encode(mac)).await;
            verified.unwrap_or_else(|failure| panic!("{v}: {failure}"))
        };

        let made = client.generate_mac(key, &message).await;

        let made = made.unwrap_or_else(|failure| panic!("{v}: {failure}"));
        assert_eq!((made.mac.as_str(), made.key_version), (v.text("mac"), 1), "{v}");
        assert!(verify(message.clone(), &mac).await, "{v}");
        assert!(!verify(message.clone(), &flipped(&mac, at)).await, "{v}: a bit of the MAC");
        if !message.is_empty() {
            assert!(!verify(flipped(&message, at), &mac).await, "{v}: a bit of the message");
        }
    }
    assert_eq!(cases.len(), 73);
}

/// A world in which `acquirer-a` may do with these keys whatever a configuration can say: every
/// inbound format, every outbound format but 1, also those that are not of the key's cipher.
async fn all_that_can_be_granted(keys: VectorKeys) -> World {
    let labels = |role: KeyRole| -> Vec<String> {
        let of_role = keys.0.iter().filter(|key| key.profile.role == role);
        of_role.map(|key| key.profile.label.to_string()).collect()
    };
    let (from, to) = (labels(KeyRole::ZonePinIn), labels(KeyRole::ZonePinOut));
    let macs = labels(KeyRole::Mac);
    let edit = move |table: &mut toml::Table| {
        let grants = grants_of(table, "acquirer-a");
        grant_macs(grants, &macs);
        let from: Vec<Zone<'_>> = from.iter().map(|key| (key.as_str(), INBOUND)).collect();
        let to: Vec<Zone<'_>> = to.iter().map(|key| (key.as_str(), OUTBOUND)).collect();
        grant_translations(grants, &from, &to);
    };
    let wanted = Wanted { more_keys: keys.0, edit: Some(Box::new(edit)), ..Wanted::default() };
    World::start_as(wanted).await.unwrap()
}

fn format_of(side: &Vector) -> String {
    format!("iso{}", side.number("format"))
}

const INBOUND: &[&str] = &["iso0", "iso1", "iso3", "iso4"];
const OUTBOUND: &[&str] = &["iso0", "iso3", "iso4"];
