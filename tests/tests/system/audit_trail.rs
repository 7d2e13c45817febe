//! The trail as an auditor sees it: it verifies offline, can be searched and taken home, and tells of itself.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use harness::acquirer::Payment;
use harness::world::{Link, Wanted, World, program};
use reqwest::Method;
use serde_json::{Value, json};

use crate::key_officers::both;
use crate::support::{Counter, text, until};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn tollgate_audit(arguments: &[&str]) -> Output {
    Command::new(program("tollgate-audit").unwrap()).args(arguments).output().unwrap()
}

/// The report and the exit code of `tollgate-audit verify --json`.
pub(crate) fn verify(path: &Path, more: &[&str]) -> (Value, i32) {
    let path = path.display().to_string();
    let output = tollgate_audit(&[&["verify", &path, "--json"], more].concat());
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (report, output.status.code().unwrap())
}

async fn ask(world: &World, who: &str, path: &str) -> harness::acquirer::Answer {
    world.admin(who).unwrap().send(Method::GET, path, &[], Vec::new()).await.unwrap()
}

/// The key to verify with, from the admin API, once there is a signed checkpoint.
pub(crate) async fn vkey(world: &World) -> String {
    let mut key = String::new();
    until("a signed checkpoint", PATIENCE, async || {
        let status = ask(world, "auditor", "/v1/audit").await.json();
        key = status["keys"][0]["vkey"].as_str().unwrap_or_default().to_owned();
        !key.is_empty()
    })
    .await;
    key
}

/// Checkpoints and segments come soon.
pub(crate) fn quickly(config: &mut toml::Table) {
    let audit = config["audit"].as_table_mut().unwrap();
    audit.insert("checkpoint_s".into(), 1.into());
    audit.insert("segment_bytes_max".into(), 65_536.into());
}

async fn world() -> World {
    let wanted = Wanted { edit: Some(Box::new(quickly)), ..Wanted::default() };
    World::start_as(wanted).await.unwrap()
}

#[tokio::test]
async fn the_log_verifies_while_it_grows_after_a_kill_and_after_a_stop() {
    let mut world = world().await;
    let counter = Counter::a(&world);
    let pay = async |counter: &Counter, bill: &str| {
        assert_eq!(counter.pay(bill, &counter.body(&Payment::of("pdam", bill))).await.status, 200);
    };
    for bill in 0..100 {
        pay(&counter, &format!("bill-{bill}")).await;
    }
    let (key, audit) = (vkey(&world).await, world.dir().join("audit"));

    let (running, running_code) = verify(&audit, &["--vkey", &key]);
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    pay(&Counter::a(&world), "after").await;
    until("old segments are sealed", PATIENCE, async || {
        let found = compliance::segments(&audit).unwrap();
        found.iter().filter(|segment| segment.is_sealed).count() > 1
    })
    .await;
    let killed = verify(&audit, &["--vkey", &key]);
    world.stop_gateway().await.unwrap();
    let stopped = verify(&audit, &["--vkey", &key]);
    let unpinned = verify(&audit, &[]);
    // As the keeper does after ninety days.
    std::fs::create_dir(audit.join("archive")).unwrap();
    let old = compliance::segments(&audit).unwrap().remove(0);
    compliance::move_to(&old, &audit.join("archive")).unwrap();
    let (archived, archived_code) = verify(&audit, &["--vkey", &key]);

    assert_eq!((archived_code, &archived["records"]), (0, &stopped.0["records"]), "{archived}");
    assert_eq!(running_code, 0, "{running}");
    assert_eq!((killed.1, stopped.1, unpinned.1), (0, 0, 0), "{killed:?} {stopped:?}");
    let records = world.audit_records().unwrap();
    assert_eq!(stopped.0["records"], records.len(), "{stopped:?}");
    let kinds: Vec<_> =
        records.iter().filter_map(|record| record["event"]["type"].as_str()).collect();
    for kind in ["audit.start", "audit.rotate", "audit.checkpoint", "audit.recovered"] {
        assert!(kinds.contains(&kind), "{kind}");
    }
    assert_eq!(kinds.last(), Some(&"audit.stop"));
    let start = &records[0];
    for digest in ["configuration", "keys", "program"] {
        assert_eq!(start["digests"][digest].as_str().map(str::len), Some(64), "{start}");
    }
}

#[tokio::test]
async fn a_change_in_the_files_is_named() {
    let mut world = world().await;
    let counter = Counter::a(&world);
    for bill in 0..5 {
        let bill = format!("bill-{bill}");
        counter.pay(&bill, &counter.body(&Payment::of("pdam", &bill))).await;
    }
    let key = vkey(&world).await;
    world.stop_gateway().await.unwrap();
    let audit = world.dir().join("audit");
    let segment = compliance::segments(&audit).unwrap().remove(0);
    let whole = std::fs::read_to_string(&segment.path).unwrap();
    let accepted = whole.lines().find(|line| line.contains("payment.accept")).unwrap();
    let edited = accepted.replace("acquirer-a", "acquirer-b");

    std::fs::write(&segment.path, whole.replace(accepted, &edited)).unwrap();
    let (report, code) = verify(&audit, &["--vkey", &key]);
    std::fs::write(&segment.path, whole.replace(&format!("{accepted}\n"), "")).unwrap();
    let (_, dropped) = verify(&audit, &["--vkey", &key]);

    let seq = serde_json::from_str::<Value>(accepted).unwrap()["seq"].clone();
    assert_eq!((code, dropped), (1, 1), "{report}");
    assert!(report.to_string().contains(&format!("\"seq\":{seq}")), "{report}");
}

#[tokio::test]
async fn an_auditor_searches_and_takes_home_what_others_may_not_see() {
    let world = world().await;
    let counter = Counter::a(&world);
    let answer = counter.pay("one", &counter.body(&Payment::of("pdam", "one"))).await;
    let (request, payment) = (answer.header("x-request-id").unwrap(), text(&answer, "id"));
    let key = vkey(&world).await;

    let by_request =
        ask(&world, "auditor", &format!("/v1/audit/events?request_id={request}")).await.json();
    let by_payment =
        ask(&world, "auditor", &format!("/v1/audit/events?resource={payment}&actor=acquirer-a"))
            .await
            .json();
    let none = ask(&world, "auditor", "/v1/audit/events?actor=acquirer-a&event=pin.*").await.json();
    let wrong = ask(&world, "auditor", "/v1/audit/events?pan=4111").await;
    let exported = ask(&world, "auditor", "/v1/audit/export").await;
    let file = world.dir().join("export.jsonl");
    std::fs::write(&file, &exported.body).unwrap();
    let verified = verify(&file, &["--vkey", &key]);

    assert_eq!(by_request["records"][0]["request_id"], *request);
    assert_eq!(by_request["records"][0], by_payment["records"][0]);
    assert_eq!((&none["records"], &none["next"]), (&serde_json::json!([]), &Value::Null));
    assert_eq!(wrong.status, 400);
    assert_eq!((exported.status.as_u16(), verified.1), (200, 0), "{verified:?}");
    for who in ["operator", "monitor", "key-officer", "acquirer-a"] {
        for path in ["/v1/audit", "/v1/audit/events", "/v1/audit/export"] {
            assert_eq!(ask(&world, who, path).await.status, 403, "{who} {path}");
        }
    }
    let events = world.audit().unwrap();
    let readings: Vec<&Value> = events
        .iter()
        .filter(|event| event["actor"]["id"] == "auditor" && event["outcome"] == "success")
        .collect();
    assert!(readings.iter().any(|event| event["event"]["type"] == "audit.export"), "{readings:?}");
    let note = format!("request_id={request}");
    assert!(readings.iter().any(|event| event["note"] == *note), "{readings:?}");
    let denied = events.iter().filter(|event| event["event"]["type"] == "authz.deny").count();
    assert!(denied >= 9, "{denied}");
}

#[tokio::test]
async fn the_command_line_exports_every_format() {
    let world = world().await;
    let counter = Counter::a(&world);
    let payment = counter.pay("one", &counter.body(&Payment::of("pdam", "one"))).await;
    let (payment, key) = (text(&payment, "id"), vkey(&world).await);
    let (config, pki) = (world.dir().join("gateway.toml").display().to_string(), world.pki());
    let [certificate, private, ca] =
        ["auditor.crt", "auditor.key", "ca.crt"].map(|name| pki.join(name).display().to_string());
    let access =
        ["--config", &config, "--certificate", &certificate, "--key", &private, "--ca", &ca];
    let tollgate = |arguments: &[&str]| {
        let all = [&["audit"], arguments, &access].concat();
        Command::new(program("tollgate").unwrap()).args(all).output().unwrap()
    };

    let jsonl = world.dir().join("out.jsonl").display().to_string();
    let exported = tollgate(&["export", "--format", "jsonl", "--out", &jsonl]);
    let verified = verify(Path::new(&jsonl), &["--vkey", &key]);
    let again = tollgate(&["export", "--format", "jsonl", "--out", &jsonl]);
    let status = tollgate(&["status"]);
    let found = tollgate(&["search", "--event", "payment.accept"]);

    assert!(exported.status.success(), "{exported:?}");
    assert_eq!(verified.1, 0, "{verified:?}");
    assert!(!again.status.success(), "a file is never overwritten");
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(&key), "{status}");
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("payment.accept") && found.contains("acquirer-a"), "{found}");
    for (format, sign) in [
        ("syslog", "tollgate@32473"),
        ("cef", "CEF:0|Tollgate"),
        ("leef", "LEEF:2.0|"),
        ("ocsf", "class_uid"),
    ] {
        let output = tollgate(&["export", "--format", format]);
        let text = String::from_utf8(output.stdout).unwrap();
        let accepted: Vec<_> = text.lines().filter(|line| line.contains(&payment)).collect();
        assert_eq!(accepted.len(), 1, "{format}: {text}");
        assert!(accepted[0].contains(sign), "{format}: {}", accepted[0]);
    }
    let refused = tollgate(&["export", "--format", "xml"]);
    assert_eq!(refused.status.code(), Some(2));
}

/// What a control says of itself: whether it failed and works again.
fn controls(world: &World, control: &str) -> Vec<String> {
    let events = world.audit().unwrap().into_iter();
    let events = events.filter(|event| event["resource"]["id"] == control);
    events
        .filter_map(|event| event["event"]["type"].as_str().map(str::to_owned))
        .filter(|kind| kind.starts_with("control."))
        .collect()
}

#[tokio::test]
async fn while_the_hsm_is_away_checkpoints_go_on_unsigned_and_the_next_one_covers_them() {
    let edit = Some(Box::new(quickly) as Box<_>);
    let wanted = Wanted { shim: true, edit, ..Wanted::default() };
    let mut world = World::start_as(wanted).await.unwrap();
    let key = vkey(&world).await;
    let unsigned = || {
        let records = world.audit_records().unwrap();
        let notes = records.iter().filter(|one| one["event"]["type"] == "audit.checkpoint");
        notes.filter(|one| one["reason"] == "hsm-unavailable").count()
    };

    world.shim_control("* fail 0x30").await.unwrap();
    until("unsigned checkpoints", PATIENCE, async || {
        unsigned() >= 3 && !controls(&world, "checkpoints").is_empty()
    })
    .await;
    let failed = controls(&world, "checkpoints");
    let metric = world.metric("tollgate_audit_checkpoint_signed").await.unwrap();
    world.shim_control("").await.unwrap();
    until("signed again", PATIENCE, async || controls(&world, "checkpoints").len() == 2).await;
    world.stop_gateway().await.unwrap();
    let (report, code) = verify(&world.dir().join("audit"), &["--vkey", &key]);

    assert_eq!((&failed[..], metric.to_bits()), (&["control.fail".to_owned()][..], 0f64.to_bits()));
    assert_eq!(controls(&world, "checkpoints")[1], "control.recover");
    assert_eq!(code, 0, "{report}");
}

/// A file system of six megabytes holds one file with its reserve, and not two.
#[tokio::test]
async fn a_full_disk_is_on_record_before_it_is_mended_and_the_log_goes_on_by_itself() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: a small disk is mounted for it, which takes root");
        return;
    }
    let mut world =
        World::prepare(Wanted { edit: Some(Box::new(quickly)), ..Wanted::default() }).unwrap();
    world.start_billing().await.unwrap();
    let audit = world.dir().join("audit");
    std::fs::create_dir_all(&audit).unwrap();
    // In a mount namespace of its own, which ends with it.
    let mount = "mount -t tmpfs -o size=6m tmpfs \"$0\" && exec \"$@\"";
    let wrapper = ["unshare", "-m", "sh", "-c", mount, audit.to_str().unwrap()];
    world.start_gateway_under(&wrapper).await.unwrap();
    let pid = world.gateway().unwrap().id();
    let inside = Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(audit.strip_prefix("/").unwrap());
    let last = || {
        let segments = compliance::segments(&inside).unwrap();
        let text = std::fs::read_to_string(&segments.last().unwrap().path).unwrap();
        serde_json::from_str::<Value>(text.lines().last().unwrap()).unwrap()
    };
    let client = world.client("acquirer-a").unwrap();

    let mut refused = None;
    for _ in 0..400 {
        if let Err(answer) = client.generate_mac("zak.acquirer-a", b"message").await {
            refused = answer.slug();
            break;
        }
    }
    let told = last();
    let resized = Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-m"])
        .args(["mount", "-o", "remount,size=64m"])
        .arg(&audit)
        .status()
        .unwrap();
    until("the log works again", PATIENCE, async || {
        client.generate_mac("zak.acquirer-a", b"message").await.is_ok()
    })
    .await;
    let (report, code) = verify(&inside, &[]);

    assert_eq!(refused.as_deref(), Some("audit-unavailable"));
    assert_eq!(told["event"]["type"], "audit.failure", "{told}");
    assert!(told["resource"]["id"].as_str().unwrap().starts_with("disk-full from"), "{told}");
    assert!(resized.success());
    assert!(code == 0 || code == 2, "{report}");
    assert_eq!(
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["verdict"] == "tampered")
            .count(),
        0,
        "{report}"
    );
}

/// A new version of the audit key: both sign one note, so that who has either key verifies all of it.
#[tokio::test]
async fn a_new_audit_key_is_vouched_for_by_the_old_one() {
    let mut world = world().await;
    let old = vkey(&world).await;
    let plan = json!([{"profile": {"label": "audit.signing", "version": 2, "state": "staged",
        "role": "audit-signing", "algorithm": "ed25519"}}]);
    let file = world.dir().join("plan.json");
    std::fs::write(&file, plan.to_string()).unwrap();
    let added = Command::new(program("tollgate-token").unwrap())
        .args(["add", "--dir"])
        .arg(Link::Primary.token(world.dir()))
        .args(["--label", Link::Primary.token_label(), "--plan"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(added.status.success(), "{added:?}");

    let activation = json!({"version": 2, "reason": "yearly change", "overlap_s": 3600});
    let activated = both(&world, "/v1/keys/audit.signing/activate", &activation).await;
    let mut new = String::new();
    until("the new key signs alone", PATIENCE, async || {
        let keys = ask(&world, "auditor", "/v1/audit").await.json()["keys"].clone();
        new = keys[0]["vkey"].as_str().unwrap().to_owned();
        keys.as_array().unwrap().len() == 1 && new != old
    })
    .await;
    world.stop_gateway().await.unwrap();
    let audit = world.dir().join("audit");

    assert_eq!(text(&activated, "state"), "applied", "{activated:?}");
    for key in [&old, &new] {
        let (report, code) = verify(&audit, &["--vkey", key]);
        assert_eq!(code, 0, "{key}: {report}");
    }
    // The same key in another name has signed nothing.
    let other = old.replacen("tollgate+", "other+", 1);
    let (_, unknown) = verify(&audit, &["--vkey", &other]);
    assert_eq!(unknown, 1);
}
