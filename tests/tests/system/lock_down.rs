//! Somebody edits the token behind the gateway's back. At start nothing that is not as it must be
//! is taken; while orders run, the key that was edited is out of use and all others go on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use gateway::config::Config;
use harness::acquirer::Failure;
use harness::demo_keys::DemoKeys;
use harness::world::{Wanted, World, program};
use hsm_adapter::worker::probe_names;
use serde_json::Value;

use crate::support::{Counter, until};

/// A key that takes PIN blocks in, under TDES: it may only decipher.
const INBOUND: &str = "zpk.acquirer-a";
/// A key of which the token computes the check value.
const OUTBOUND: &str = "zpk.billing";

/// Runs a program of ours on this world's token.
fn on_token(world: &World, program: &Path, arguments: &[&str]) -> Output {
    let config = Config::load(&world.config()).unwrap().hsm;
    Command::new(program)
        .arg("--module")
        .arg(&config.module)
        .args(["--token-label", &config.token_label, "--pin-file"])
        .arg(&config.pin_file)
        .args(arguments)
        .env_clear()
        .envs(&config.environment)
        .output()
        .unwrap()
}

/// Edits the token as another process with the HSM PIN can.
fn edit(world: &World, arguments: &[&str]) {
    let program: PathBuf = program("tollgate").unwrap().with_file_name("examples/edit_token");
    let output = on_token(world, &program, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Puts a key's object on the token anew, with other attributes.
fn replace(world: &World, label: &str, value: &str, changes: &[&str]) {
    let object = format!("{label}@1");
    let mut arguments = vec!["--object", &object, "--value", value];
    arguments.extend(changes.iter().flat_map(|change| ["--set", change]));
    edit(world, &arguments);
}

/// A double-length key as the token has it, K1 K2 K1.
fn value(label: &str) -> String {
    let value = DemoKeys::load().value(label);
    hex::encode([&value[..], &value[..24 - value.len()]].concat())
}

/// Starts a worker as `--check` does. Why it refused.
fn worker(world: &World, arguments: &[&str]) -> Result<String, String> {
    let keys = world.dir().join("token/keys.toml");
    let arguments = [&["--check", "--keys", keys.to_str().unwrap()], arguments].concat();
    let output = on_token(world, &program("tollgate-hsm").unwrap(), &arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A token's objects, as they are on disk.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn prepared() -> World {
    World::prepare(Wanted::default()).unwrap()
}

/// A world whose keys are read back each second.
async fn watched() -> World {
    let edit = |table: &mut toml::Table| {
        table["hsm"].as_table_mut().unwrap().insert("lint_s".into(), 1.into());
    };
    World::start_as(Wanted { edit: Some(Box::new(edit)), ..Wanted::default() }).await.unwrap()
}

/// The rows of `tollgate check --json`.
fn check(world: &World) -> Vec<Value> {
    let output = Command::new(program("tollgate").unwrap())
        .args(["check", "--json", "--config"])
        .arg(world.config())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn rows<'r>(rows: &'r [Value], check: &str) -> Vec<&'r Value> {
    rows.iter().filter(|row| row["check"] == check).collect()
}

#[test]
fn every_attribute_set_but_the_right_one_is_refused_at_start() {
    let world = prepared();
    let key = value(INBOUND);
    let (tokens, kept) = (world.dir().join("token/tokens"), world.dir().join("token/kept"));
    copy(&tokens, &kept);
    replace(&world, INBOUND, &key, &[]);
    let as_it_was = worker(&world, &[]);
    assert!(as_it_was.is_ok(), "{as_it_was:?}");

    for change in [
        "WRAP=true",
        "ENCRYPT=true",
        "DECRYPT=false",
        "SIGN=true",
        "VERIFY=true",
        "UNWRAP=true",
        "DERIVE=true",
        "EXTRACTABLE=true",
        "SENSITIVE=false",
        "MODIFIABLE=true",
        "COPYABLE=true",
        "PRIVATE=false",
        "ALLOWED_MECHANISMS=DES3_CBC",
        "ALLOWED_MECHANISMS=both",
    ] {
        std::fs::remove_dir_all(&tokens).unwrap();
        copy(&kept, &tokens);
        replace(&world, INBOUND, &key, &[change]);

        let refused = worker(&world, &[]).unwrap_err();

        let name = change.split('=').next().unwrap();
        let told = format!("not locked down; other than its role wants: CKA_{name}\"");
        assert!(refused.contains(&told), "{change}: {refused}");
    }
}

#[test]
fn a_substituted_a_doubled_and_a_missing_key_are_refused_at_start() {
    for (arguments, told) in [
        (&["--value", "0123456789ABCDEFFEDCBA98765432100123456789ABCDEF"][..], "substituted?"),
        (&["--beside", "zpk.billing@1", "--value", &value(OUTBOUND)], "several objects"),
        (&[], "no object labelled"),
    ] {
        let world = prepared();
        edit(&world, &[&["--object", "zpk.billing@1"], arguments].concat());

        let refused = worker(&world, &[]).unwrap_err();

        assert!(refused.contains("key zpk.billing@1: ") && refused.contains(told), "{refused}");
    }
}

#[test]
fn two_zones_with_one_check_value_are_refused_at_start() {
    let world = prepared();
    let file = world.dir().join("token/keys.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut register: toml::Table = toml::from_str(&text).unwrap();
    let keys = register["key"].as_array_mut().unwrap();
    let mut twin = keys.iter().find(|key| key["label"].as_str() == Some(INBOUND)).unwrap().clone();
    twin["label"] = "zpk.acquirer-z".into();
    keys.push(twin);
    std::fs::write(&file, toml::to_string(&register).unwrap()).unwrap();

    let refused = worker(&world, &[]).unwrap_err();

    assert!(refused.contains("two zones with one key"), "{refused}");
    assert!(refused.contains("zpk.acquirer-a@1 and zpk.acquirer-z@1"), "{refused}");
}

#[test]
fn an_object_that_nobody_registered_is_told_and_one_that_reads_keys_out_is_refused() {
    let world = prepared();
    let stranger = ["--object", "zpk.acquirer-a@1", "--value", &value(INBOUND), "--beside"];
    edit(&world, &[&stranger[..], &["stranger"]].concat());

    let started = worker(&world, &[]);
    let told = check(&world);
    edit(&world, &[&stranger[..], &["reader", "--set", "WRAP=true"]].concat());
    let refused = worker(&world, &[]).unwrap_err();

    assert!(started.is_ok(), "{started:?}");
    let told = rows(&told, "key lint");
    let told = told.iter().find(|row| row["report"]["key"] == "stranger").unwrap();
    assert!(told["ok"] == true && told["report"]["role"].is_null(), "{told}");
    assert!(told["detail"].as_str().unwrap().contains("unregistered"), "{told}");
    assert!(refused.contains("reader") && refused.contains("may WRAP and DECRYPT"), "{refused}");
}

#[test]
fn a_module_with_another_digest_is_not_loaded() {
    let world = prepared();
    let right = worker(&world, &[]).unwrap();
    let digest = right.lines().find_map(|line| line.strip_prefix("module ")).unwrap();

    let pinned = worker(&world, &["--module-sha256", &digest.to_uppercase()]);
    let refused = worker(&world, &["--module-sha256", &"0".repeat(64)]).unwrap_err();

    assert!(pinned.is_ok(), "{pinned:?}");
    assert!(refused.contains(digest) && refused.contains("it was not loaded"), "{refused}");
}

#[test]
fn what_softhsm_does_although_it_must_not_is_refused_unless_it_is_accepted_by_name() {
    let world = prepared();
    let accepted = ["--accept-probe", "check-value", "--accept-probe", "digest-key"];

    let told = worker(&world, &[]).unwrap();
    let refused = worker(&world, &["--probes", "enforce"]).unwrap_err();
    let half = worker(&world, &[&["--probes", "enforce"], &accepted[..2]].concat()).unwrap_err();
    let started = worker(&world, &[&["--probes", "enforce"], &accepted[..]].concat());
    let unknown = worker(&world, &["--accept-probe", "everything"]).unwrap_err();

    for probe in probe_names() {
        let outcome = match probe {
            "check-value" | "digest-key" => "done",
            "read-unwrapped" => "not-tried", // no key of this world unwraps
            _ => "refused",
        };
        assert!(told.contains(&format!("probe  {probe}  {outcome}  ")), "{probe} in {told}");
    }
    assert!(
        refused.contains("check-value") && refused.contains("hsm.accepted_probes"),
        "{refused}"
    );
    assert!(half.contains("digest-key") && !half.contains("check-value"), "{half}");
    assert!(started.is_ok(), "{started:?}");
    assert!(unknown.contains("everything"), "{unknown}");
}

#[test]
fn the_lock_down_report_is_whole_and_nothing_is_left_behind() {
    let world = prepared();

    let told = check(&world);

    let keys = rows(&told, "key lint");
    assert_eq!(keys.len(), rows(&told, "key").len());
    let good = |row: &&&Value| row["report"]["deviations"].as_array().unwrap().is_empty();
    assert!(keys.iter().all(|row| good(&row) && row["ok"] == true), "{keys:#?}");
    let probes = rows(&told, "probe");
    let names: Vec<_> = probes.iter().map(|row| row["report"]["probe"].clone()).collect();
    assert_eq!(names, probe_names().collect::<Vec<_>>());
    assert_eq!(probes[0]["report"]["outcome"], "refused");
    let left: Vec<_> = rows(&told, "session objects").iter().map(|row| row["ok"].clone()).collect();
    assert_eq!(left, [true, true]);
    assert_eq!(rows(&told, "hsm module").len(), 1);
}

/// Whether a MAC key still makes MACs.
async fn makes_mac(counter: &Counter) -> Result<(), Failure> {
    counter.client.generate_mac("zak.acquirer-a", b"message").await.map(drop)
}

async fn translates(counter: &Counter, to: (&str, &str)) -> Result<(), Failure> {
    use harness::acquirer::PinSide;
    use harness::soft::pin::PinFormat;
    let pan = "4761737909457820";
    let block = counter.acquirer.pin_block("271828", pan, PinFormat::Iso0).unwrap();
    let from = PinSide { key: INBOUND, format: "iso0", ksn: None };
    let to = PinSide { key: to.0, format: to.1, ksn: None };
    counter.client.translate(pan, &block, from, to).await.map(drop)
}

/// The keys of this kind of event, in the order of the log.
fn told_of(world: &World, kind: &str) -> Vec<String> {
    let events = world.audit().unwrap();
    let events = events.iter().filter(|event| event["event"]["type"] == kind);
    events.map(|event| event["resource"]["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_key_that_is_edited_while_orders_run_is_quarantined_and_all_others_go_on() {
    let world = watched().await;
    let counter = Counter::a(&world);
    translates(&counter, (OUTBOUND, "iso0")).await.unwrap();

    replace(&world, OUTBOUND, "0123456789ABCDEFFEDCBA98765432100123456789ABCDEF", &[]);
    until("it is told", Duration::from_secs(10), async || {
        told_of(&world, "key.substitution") == ["zpk.billing@1"]
    })
    .await;
    let substituted = translates(&counter, (OUTBOUND, "iso0")).await.unwrap_err();
    let beside = translates(&counter, ("zpk.billing-aes", "iso4")).await;
    replace(
        &world,
        "zpk.billing-aes",
        &hex::encode(DemoKeys::load().value("zpk.billing-aes")),
        &["DECRYPT=true"],
    );
    until("it is told", Duration::from_secs(10), async || {
        told_of(&world, "key.quarantine") == ["zpk.billing-aes@1"]
    })
    .await;
    let edited = translates(&counter, ("zpk.billing-aes", "iso4")).await.unwrap_err();
    // The right key again: what was edited once waits for a person.
    replace(&world, OUTBOUND, &value(OUTBOUND), &[]);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let still = translates(&counter, (OUTBOUND, "iso0")).await.unwrap_err();

    assert!(beside.is_ok(), "{beside:?}");
    for refused in [substituted, edited, still] {
        assert_eq!(refused.slug().as_deref(), Some("not-allowed"), "{refused:?}");
    }
    for _ in 0..4 {
        makes_mac(&counter).await.unwrap();
    }
    assert_eq!(world.metric("tollgate_keys_quarantined{").await.unwrap(), 2.0);
    let deviating = r#"tollgate_key_lints_total{link="primary",outcome="deviating"}"#;
    assert!(world.metric(deviating).await.unwrap() >= 1.0);
    // Told once each, however often it is found.
    assert_eq!(told_of(&world, "key.substitution").len(), 1);
    assert_eq!(told_of(&world, "key.quarantine").len(), 1);
}

#[tokio::test]
async fn a_token_that_vanishes_while_its_keys_are_read_back_quarantines_none() {
    let world = watched().await;
    let counter = Counter::a(&world);
    let (token, away) = (world.dir().join("token"), world.dir().join("token-away"));

    std::fs::rename(&token, &away).unwrap();
    until("it is noticed", Duration::from_secs(10), async || makes_mac(&counter).await.is_err())
        .await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    std::fs::rename(&away, &token).unwrap();

    until("it is used again", Duration::from_secs(15), async || makes_mac(&counter).await.is_ok())
        .await;
    until("so are PIN keys", Duration::from_secs(15), async || {
        translates(&counter, (OUTBOUND, "iso0")).await.is_ok()
    })
    .await;
    assert_eq!(told_of(&world, "key.quarantine"), [""; 0]);
    assert_eq!(world.metric("tollgate_keys_quarantined{").await.unwrap(), 0.0);
}
