//! Changes of keys under dual control, through the admin API and the command line: two officers
//! bring a key into use and take it out again, one alone does not.

use std::process::Output;
use std::time::Duration;

use harness::acquirer::{Answer, Client};
use harness::demo_keys::DemoKeys;
use harness::soft::kcv::{KeyAlgorithm, kcv_cmac};
use harness::soft::mac::cmac_aes;
use harness::soft::tr31::{KeyBlock, Version};
use harness::world::{World, signal};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{get, post, text, tollgate, until};

const KEK: &str = "kek.acquirer-a";
pub(crate) const LABEL: &str = "zak.acquirer-b";

/// The key that these stories import: made up.
const KEY: [u8; 16] = *b"officers' key 02";

#[tokio::test]
async fn two_officers_bring_a_key_into_use_and_every_step_is_on_record() {
    let mut world = World::start().await.unwrap();
    let (first, second) = officers(&world);
    let acquirer = world.client("acquirer-b").unwrap();
    let old = acquirer.generate_mac(LABEL, b"before").await.unwrap();

    let proposed = post(&first, "/v1/keys/import", &import(&block(), Some(&kcv()))).await;
    assert_eq!((proposed.status.as_u16(), text(&proposed, "state")), (202, "proposed".into()));
    let number = proposed.json()["change"].as_i64().unwrap();
    let unknown = decide(&second, number, "bless").await;
    assert_eq!((unknown.status.as_u16(), unknown.slug().as_deref()), (404, Some("not-found")));
    let alone = decide(&first, number, "approve").await;
    assert_eq!((alone.status.as_u16(), alone.slug().as_deref()), (403, Some("not-allowed")));
    assert_eq!(versions(&first).await, ["1 active"], "nothing happened on the token");
    let imported = decide(&second, number, "approve").await;
    assert_eq!((imported.status.as_u16(), text(&imported, "state")), (200, "applied".into()));
    let key = &imported.json()["key"];
    assert_eq!((&key["state"], &key["kcv"]), (&json!("staged"), &json!(kcv())), "{key}");
    assert_eq!(acquirer.generate_mac(LABEL, b"m").await.unwrap().key_version, 1);

    let activation = json!({"version": 2, "reason": "yearly change", "overlap_s": 3600});
    let activated = both(&world, &format!("/v1/keys/{LABEL}/activate"), &activation).await;

    assert_eq!(text(&activated, "state"), "applied", "{activated:?}");
    let made = acquirer.generate_mac(LABEL, b"after").await.unwrap();
    let expected = hex::encode_upper(&cmac_aes(&KEY, b"after").unwrap()[..8]);
    assert_eq!((made.key_version, made.mac), (2, expected));
    assert!(verifies(&acquirer, b"before", &old.mac, 1).await, "the overlap");
    let anew = json!({"key": LABEL, "version": 1, "message": "00"});
    assert_eq!(post(&acquirer, "/v1/mac/generate", &anew).await.status, 403);
    world.stop_gateway().await.unwrap();
    world.start_gateway().await.unwrap();
    assert_eq!(versions(&second).await, ["1 retired", "2 active"]);
    let steps = key_events(&world);
    let step = |kind: &str, reason: &str, outcome: &str, actor: &str, proposer: &str| {
        let fields = [kind, reason, outcome, actor, proposer, "zak.acquirer-b@2"];
        fields.map(str::to_owned)
    };
    let (one, two) = ("key-officer", "key-officer-2");
    assert_eq!(
        steps.iter().map(Step::fields).collect::<Vec<_>>(),
        [
            step("key.change", "proposed", "success", one, ""),
            step("key.change", "not-allowed", "denied", one, one),
            step("key.import", "", "success", two, one),
            step("key.change", "approved", "success", two, one),
            step("key.change", "proposed", "success", one, ""),
            step("key.activate", "", "success", two, one),
            step("key.change", "approved", "success", two, one),
        ]
    );
    assert!(steps.iter().all(|step| !step.0["note"].is_null()), "{steps:?}");
    assert_eq!(steps[2].0["approver"], two);
    assert_eq!(steps[5].0["note"], "yearly change");
}

/// A register that is edited by hand while a worker is replaced: two workers, one label, two keys.
#[tokio::test]
async fn a_label_with_two_check_values_closes_the_link_until_it_has_one_again() {
    let world = World::start().await.unwrap();
    let (first, _) = officers(&world);
    let acquirer = world.client("acquirer-b").unwrap();
    let status = async || {
        let body = json!({"key": LABEL, "message": "00"});
        post(&acquirer, "/v1/mac/generate", &body).await.status.as_u16()
    };
    let kcv = DemoKeys::load().key("zpk.acquirer-a").kcv.clone().unwrap();
    let register = world.dir().join("token/keys.toml");
    let good = std::fs::read_to_string(&register).unwrap();
    let other = good.replace(&kcv, "A1B2C3");
    assert_ne!(other, good);

    std::fs::write(&register, other).unwrap();
    signal(world.workers()[0], Signal::KILL).unwrap();
    until("the link is closed", Duration::from_secs(20), async || status().await == 503).await;

    let listed = first.send(Method::GET, "/v1/keys", &[], Vec::new()).await.unwrap();
    assert_eq!(listed.status, 200, "officers see what to put right: {listed:?}");
    std::fs::write(&register, good).unwrap();
    for worker in world.workers() {
        signal(worker, Signal::KILL).unwrap();
    }
    until("the link is open again", Duration::from_secs(30), async || status().await == 200).await;
    let events = world.audit().unwrap();
    let told = |event: &Value| {
        event["event"]["type"] == "key.substitution"
            && event["resource"]["id"] == "zpk.acquirer-a@1"
    };
    assert!(events.iter().any(told));
}

#[tokio::test]
async fn a_retired_key_still_verifies_within_its_overlap_and_makes_nothing() {
    let world = World::start().await.unwrap();
    let acquirer = world.client("acquirer-b").unwrap();
    let old = acquirer.generate_mac(LABEL, b"m").await.unwrap();
    let path = format!("/v1/keys/{LABEL}/retire");

    let retired = both(&world, &path, &json!({"version": 1, "reason": "r", "overlap_s": 4})).await;

    assert_eq!(text(&retired, "state"), "applied", "{retired:?}");
    assert!(retired.json()["key"]["usable_until"].is_string(), "{retired:?}");
    let longer = json!({"version": 1, "reason": "r", "overlap_s": 3600});
    let longer = both(&world, &path, &longer).await;
    let told = (text(&longer, "state"), text(&longer, "error"));
    assert_eq!(told.0, "refused", "{told:?}");
    assert!(told.1.contains("is retired, and does not become retired"), "{told:?}");
    let made = post(&acquirer, "/v1/mac/generate", &json!({"key": LABEL, "message": "00"})).await;
    assert_eq!(made.status, 403);
    assert!(verifies(&acquirer, b"m", &old.mac, 1).await);
    until("the overlap ends", Duration::from_secs(10), async || {
        let body = verification(b"m", &old.mac, 1);
        post(&acquirer, "/v1/mac/verify", &body).await.status == 403
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_not_what_was_announced_is_refused_in_words() {
    let world = World::start().await.unwrap();
    let (first, _) = officers(&world);
    let kek = DemoKeys::load().value(KEK);
    let pin_key = KeyBlock::new(Version::D, "P0", 'A', 'B').wrap(&kek, &KEY).unwrap();
    let mut forged = block();
    let last = if forged.pop() == Some('0') { '1' } else { '0' };
    forged.push(last);

    // Another key for a version that is there.
    let mut taken = import(&block(), None);
    taken["profile"]["version"] = 1.into();

    for (body, told) in [
        (import(&block(), Some("000000")), "check value"),
        (taken, "check value"),
        (import(&pin_key, None), "P0"),
        (import(&forged, None), "key block"),
    ] {
        let refused = both(&world, "/v1/keys/import", &body).await;

        let (state, error) = (text(&refused, "state"), text(&refused, "error"));
        assert_eq!((refused.status.as_u16(), state.as_str()), (200, "refused"), "{refused:?}");
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(versions(&first).await, ["1 active"]);
    let failed = |event: &Step| event.kind() == "key.import" && event.0["outcome"] == "failure";
    let events = key_events(&world);
    assert_eq!(events.iter().filter(|event| failed(event)).count(), 4, "{events:?}");
    let substituted = events.iter().filter(|event| event.kind() == "key.substitution");
    assert_eq!(substituted.count(), 2, "{events:?}");
    let blocks = crate::support::query(&world, "SELECT count(block) FROM key_change");
    assert_eq!(blocks, "0", "a block outlived its change");
}

#[tokio::test]
async fn a_change_that_is_approved_while_the_hsm_is_away_is_made_when_it_is_back() {
    let mut world = World::start().await.unwrap();
    let (first, second) = officers(&world);
    let body = import(&block(), Some(&kcv()));
    let number = post(&first, "/v1/keys/import", &body).await.json()["change"].as_i64().unwrap();
    let (token, away) = (world.dir().join("token"), world.dir().join("token-away"));
    std::fs::rename(&token, &away).unwrap();
    for worker in world.workers() {
        signal(worker, Signal::KILL).unwrap();
    }
    until("the workers are gone", Duration::from_secs(10), async || {
        get(&first, "/v1/keys").await.status == 503
    })
    .await;

    let approved = decide(&second, number, "approve").await;

    assert_eq!((approved.status.as_u16(), text(&approved, "state")), (202, "approved".into()));
    // A gateway that starts anew in between forgets nothing.
    world.kill_gateway();
    std::fs::rename(&away, &token).unwrap();
    world.start_gateway().await.unwrap();
    until("the import is made", Duration::from_secs(20), async || {
        state_of(&first, number).await == "applied"
    })
    .await;
    assert_eq!(versions(&first).await, ["1 active", "2 staged"]);
    let events = key_events(&world);
    let made = events.iter().find(|event| event.kind() == "key.import").unwrap();
    let names = (&made.0["proposer"], &made.0["approver"]);
    assert_eq!(names, (&json!("key-officer"), &json!("key-officer-2")));
}

#[tokio::test]
async fn one_officer_takes_a_compromised_key_out_of_use_at_once_on_every_worker() {
    let world = World::start().await.unwrap();
    let (first, _) = officers(&world);
    let acquirer = world.client("acquirer-b").unwrap();
    let mac = acquirer.generate_mac(LABEL, b"m").await.unwrap().mac;
    let path = format!("/v1/keys/{LABEL}/compromise");

    let compromised = post(&first, &path, &json!({"version": 1, "reason": "lost laptop"})).await;

    assert_eq!((compromised.status.as_u16(), text(&compromised, "state")), (200, "applied".into()));
    for stopped in world.workers() {
        signal(stopped, Signal::STOP).unwrap();
        let refused = post(&acquirer, "/v1/mac/verify", &verification(b"m", &mac, 1)).await;
        // One that kept an order too long was replaced meanwhile.
        let _ = signal(stopped, Signal::CONT);
        // While its worker stands still an order may find nobody in time; it finds no yes.
        let told = (refused.status.as_u16(), refused.slug());
        assert!(
            matches!(
                (told.0, told.1.as_deref()),
                (403, Some("not-allowed")) | (503, Some("hsm-unavailable"))
            ),
            "{told:?}"
        );
    }
    let events = key_events(&world);
    let made = events.iter().find(|event| event.kind() == "key.compromise").unwrap();
    assert_eq!(
        (&made.0["actor"]["id"], &made.0["note"]),
        (&json!("key-officer"), &json!("lost laptop"))
    );
    assert!(made.0["approver"].is_null(), "{made:?}");
}

#[tokio::test]
async fn keys_are_listed_for_every_admin_role_and_changed_by_key_officers_alone() {
    let world = World::start().await.unwrap();
    let retire = json!({"version": 1, "reason": "r"});
    let retire_path = format!("/v1/keys/{LABEL}/retire");
    let (first, _) = officers(&world);
    let number = post(&first, &retire_path, &retire).await.json()["change"].as_i64().unwrap();

    for (name, list, changes) in [
        ("key-officer", 200, 200),
        ("auditor", 200, 200),
        ("operator", 200, 403),
        ("monitor", 200, 403),
        ("acquirer-b", 403, 403),
    ] {
        let client = world.admin(name).unwrap();
        assert_eq!(get(&client, "/v1/keys").await.status, list, "{name}");
        assert_eq!(get(&client, "/v1/keys/changes").await.status, changes, "{name}");
        if name == "key-officer" {
            continue;
        }
        for path in [
            "/v1/keys/import".to_owned(),
            retire_path.clone(),
            format!("/v1/keys/{LABEL}/activate"),
            format!("/v1/keys/{LABEL}/compromise"),
            format!("/v1/keys/changes/{number}/approve"),
            format!("/v1/keys/changes/{number}/refuse"),
            format!("/v1/keys/changes/{number}/withdraw"),
        ] {
            let refused = post(&client, &path, &retire).await;
            assert_eq!(refused.slug().as_deref(), Some("not-allowed"), "{name} {path}");
        }
    }
    let keys = get(&first, "/v1/keys").await.json();
    let keys = keys["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 16);
    let zone = keys.iter().find(|key| key["label"] == "zpk.acquirer-a").unwrap();
    let told = json!({"label": "zpk.acquirer-a", "version": 1, "state": "active",
        "role": "zone-pin-in", "algorithm": "tdes", "mode": "in_worker",
        "formats": ["iso0", "iso3", "iso1"], "kcv": "BF1D3F"});
    assert_eq!(*zone, told);
    assert_eq!(state_of(&first, number).await, "proposed");
}

#[tokio::test]
async fn a_proposal_ends_by_its_proposer_or_another_officer_and_bad_requests_name_the_field() {
    let world = World::start().await.unwrap();
    let (first, second) = officers(&world);
    let path = format!("/v1/keys/{LABEL}/retire");
    let propose = async || {
        let proposed = post(&first, &path, &json!({"version": 1, "reason": "r"})).await;
        proposed.json()["change"].as_i64().unwrap()
    };
    let (refused, withdrawn) = (propose().await, propose().await);

    assert_eq!(decide(&first, refused, "refuse").await.status, 403);
    assert_eq!(decide(&second, withdrawn, "withdraw").await.status, 403);
    assert_eq!(text(&decide(&second, refused, "refuse").await, "state"), "refused");
    assert_eq!(text(&decide(&first, withdrawn, "withdraw").await, "state"), "withdrawn");

    for (path, body, status, told) in [
        (
            format!("/v1/keys/changes/{refused}/approve"),
            json!({"reason": "r"}),
            400,
            "it is refused",
        ),
        ("/v1/keys/changes/99/approve".into(), json!({"reason": "r"}), 404, ""),
        ("/v1/keys/changes/1/approve".into(), json!({}), 400, "missing field reason"),
        (
            path.clone(),
            json!({"version": 1, "reason": "r", "force": true}),
            400,
            "unknown field force",
        ),
        (path.clone(), json!({"reason": "r"}), 400, "missing field version"),
        ("/v1/keys/ZAK/retire".into(), json!({"version": 1, "reason": "r"}), 400, "label: "),
        ("/v1/keys/import".into(), import("short", None), 400, "block: "),
    ] {
        let answer = post(&second, &path, &body).await;
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, status, "{path} {answer:?}");
        assert!(detail.contains(told), "{path} {detail}");
    }
    assert_eq!(versions(&first).await, ["1 active"]);
}

#[tokio::test]
async fn the_command_line_carries_a_key_from_its_block_to_its_use() {
    let world = World::start().await.unwrap();
    let (profile, file) = (world.dir().join("key.toml"), world.dir().join("key.block"));
    let key = format!(
        "[[key]]\nlabel = \"{LABEL}\"\nversion = 2\nrole = \"mac\"\nalgorithm = \"aes\"\n\
         kcv = \"{}\"\nkcv_method = \"cmac\"\nmac = {{ algorithm = \"cmac\", length = 8 }}\n",
        kcv()
    );
    std::fs::write(&profile, key).unwrap();
    std::fs::write(&file, format!("{}\n", block())).unwrap();
    let (profile, file) = (profile.to_str().unwrap(), file.to_str().unwrap());

    let import = ["import", "--profile", profile, "--block-file", file, "--under", KEK];
    let import = [import.as_slice(), &["--reason", "yearly"]].concat();
    let proposed = keys(&world, "key-officer", &import).await;
    let alone = keys(&world, "key-officer", &["approve", "1", "--reason", "mine"]).await;
    let approved =
        keys(&world, "key-officer-2", &["approve", "1", "--reason", "seen", "--json"]).await;
    let activate = ["activate", LABEL, "--version", "2", "--reason", "yearly"];
    let activate = [activate.as_slice(), &["--overlap-s", "60"]].concat();
    let activation = keys(&world, "key-officer", &activate).await;
    let activated = keys(&world, "key-officer-2", &["approve", "2", "--reason", "seen"]).await;
    let list = keys(&world, "monitor", &["list"]).await;
    let changes = keys(&world, "auditor", &["changes", "--json"]).await;
    let silent = keys(&world, "key-officer", &["retire", LABEL, "--version", "2"]).await;

    let good = |output: &Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout.clone()).unwrap()
    };
    assert!(good(&proposed).contains("proposed"), "{proposed:?}");
    assert_eq!(alone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("not-allowed"), "{alone:?}");
    let approved: Value = serde_json::from_str(&good(&approved)).unwrap();
    assert_eq!(approved[0]["key"]["kcv"], json!(kcv()));
    assert!(good(&activation).contains("proposed"));
    assert!(good(&activated).contains("applied"));
    let list = good(&list);
    assert!(list.starts_with("KEY  "), "{list}");
    let rows: Vec<Vec<&str>> =
        list.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert!(rows.contains(&vec![LABEL, "1", "retired"]), "{list}");
    assert!(rows.contains(&vec![LABEL, "2", "active"]), "{list}");
    let changes: Value = serde_json::from_str(&good(&changes)).unwrap();
    let states: Vec<&Value> =
        changes.as_array().unwrap().iter().map(|change| &change["state"]).collect();
    assert_eq!(states, ["applied", "applied"]);
    assert_eq!(silent.status.code(), Some(2), "a change needs a reason");
}

fn officers(world: &World) -> (Client, Client) {
    (world.admin("key-officer").unwrap(), world.admin("key-officer-2").unwrap())
}

/// The key under the demo's key block protection key.
pub(crate) fn block() -> String {
    let kek = DemoKeys::load().value(KEK);
    KeyBlock::new(Version::D, "M6", 'A', 'C').wrap(&kek, &KEY).unwrap()
}

fn kcv() -> String {
    hex::encode_upper(kcv_cmac::<3>(KeyAlgorithm::Aes, &KEY).unwrap())
}

pub(crate) fn import(block: &str, kcv: Option<&str>) -> Value {
    let mut profile = json!({"label": LABEL, "version": 2, "role": "mac", "algorithm": "aes",
        "mac": {"algorithm": "cmac", "length": 8}});
    if let Some(kcv) = kcv {
        profile["kcv"] = kcv.into();
        profile["kcv_method"] = "cmac".into();
    }
    json!({"profile": profile, "under": KEK, "block": block, "reason": "yearly"})
}

async fn decide(client: &Client, number: i64, decision: &str) -> Answer {
    let path = format!("/v1/keys/changes/{number}/{decision}");
    post(client, &path, &json!({"reason": "compared the check value"})).await
}

/// Proposed by one officer, approved by the other.
pub(crate) async fn both(world: &World, path: &str, body: &Value) -> Answer {
    let (first, second) = officers(world);
    let proposed = post(&first, path, body).await;
    assert_eq!(proposed.status, 202, "{proposed:?}");
    decide(&second, proposed.json()["change"].as_i64().unwrap(), "approve").await
}

/// `version state` of every version of the story's key.
pub(crate) async fn versions(client: &Client) -> Vec<String> {
    let answer = get(client, "/v1/keys").await.json();
    let keys = answer["keys"].as_array().unwrap();
    let ours = keys.iter().filter(|key| key["label"] == LABEL);
    ours.map(|key| format!("{} {}", key["version"], key["state"].as_str().unwrap())).collect()
}

async fn state_of(client: &Client, number: i64) -> String {
    let answer = get(client, "/v1/keys/changes").await.json();
    let changes = answer["changes"].as_array().unwrap();
    let ours = changes.iter().find(|change| change["change"] == number).unwrap();
    ours["state"].as_str().unwrap().to_owned()
}

fn verification(message: &[u8], mac: &str, version: u32) -> Value {
    json!({"key": LABEL, "version": version, "message": hex::encode_upper(message), "mac": mac})
}

async fn verifies(client: &Client, message: &[u8], mac: &str, version: u32) -> bool {
    let answer = post(client, "/v1/mac/verify", &verification(message, mac, version)).await;
    answer.json()["verified"] == true
}

/// One event of a key.
#[derive(Debug)]
struct Step(Value);

impl Step {
    fn kind(&self) -> &str {
        self.0["event"]["type"].as_str().unwrap()
    }

    fn fields(&self) -> [String; 6] {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let Self(event) = self;
        [
            &event["event"]["type"],
            &event["reason"],
            &event["outcome"],
            &event["actor"]["id"],
            &event["proposer"],
            &event["resource"]["id"],
        ]
        .map(text)
    }
}

fn key_events(world: &World) -> Vec<Step> {
    let events = world.audit().unwrap().into_iter().map(Step);
    events.filter(|event| event.kind().starts_with("key.")).collect()
}

async fn keys(world: &World, name: &str, arguments: &[&str]) -> Output {
    tollgate(world, name, &[&["keys"], arguments].concat()).await
}
