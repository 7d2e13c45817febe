//! The admin listener, and the programs that an operator runs beside a gateway.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use harness::world::{Wanted, World, program};
use jiff::{SignedDuration, Timestamp};
use pki::Authority;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

#[tokio::test]
async fn the_printed_document_is_the_served_one_and_names_every_path() {
    let world = World::start().await.unwrap();
    let printed = tollgate(&["openapi"]).await;

    let served = get(&world, "monitor", "/openapi.json").await;

    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(printed, served.json());
    assert_eq!(served.header("content-type"), Some("application/json"));
    let paths: Vec<&String> = printed["paths"].as_object().unwrap().keys().collect();
    let data = [
        "/v1/mac/generate",
        "/v1/mac/verify",
        "/v1/payments",
        "/v1/payments/{id}",
        "/v1/pin/translate",
        "/v1/pin/verify",
    ];
    assert_eq!(paths, data);
}

#[tokio::test]
async fn health_readiness_and_figures_are_for_every_admin_role_and_no_client() {
    let world = World::start().await.unwrap();

    for name in ["monitor", "operator", "auditor", "key-officer"] {
        let health = get(&world, name, "/healthz").await;
        let ready = get(&world, name, "/readyz").await;
        let figures = get(&world, name, "/metrics").await;

        assert_eq!(
            (health.status.as_u16(), health.body.as_ref()),
            (200, b"ok\n".as_slice()),
            "{name}"
        );
        let expected = serde_json::json!({"ready": true, "hsm": true, "hsm_mode": "in_worker",
            "queue": true, "store": true, "audit": true, "audit_sinks": true});
        assert_eq!((ready.status.as_u16(), ready.json()), (200, expected), "{name}");
        let text = String::from_utf8(figures.body.to_vec()).unwrap();
        assert!(text.contains("\ntollgate_audit_healthy 1\n"), "{text}");
        assert!(
            text.contains("\ntollgate_hsm_link_up{link=\"primary\",role=\"primary\"} 1\n"),
            "{text}"
        );
    }
    for name in ["acquirer-a", "terminal-1"] {
        for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
            let refused = get(&world, name, path).await;

            assert_eq!(refused.status, 403, "{name} {path}");
            assert_eq!(refused.slug().as_deref(), Some("not-allowed"), "{name} {path}");
        }
    }
}

#[tokio::test]
async fn a_probe_ends_with_0_while_the_gateway_is_up_and_with_1_when_it_is_not() {
    let mut world = World::prepare(Wanted::default()).unwrap();
    let config = world.config();

    let before = probe("live", &config).await;
    world.start_gateway().await.unwrap();
    let (live, ready) = (probe("live", &config).await, probe("ready", &config).await);
    world.stop_gateway().await.unwrap();
    let after = probe("ready", &config).await;

    assert_eq!([before.0, live.0, ready.0, after.0], [1, 0, 0, 1]);
    assert!(after.1.contains("/readyz"), "{}", after.1);
}

#[tokio::test]
async fn a_gateway_without_its_hsm_is_live_and_not_ready_and_tries_its_pin_once() {
    let mut world = World::prepare(Wanted::default()).unwrap();
    std::fs::write(world.dir().join("token/user-pin"), "00000000").unwrap();
    let starts = count_starts(&world);

    world.spawn_gateway().unwrap();
    let limit = Instant::now() + Duration::from_secs(10);
    while probe("live", &world.config()).await.0 != 0 {
        assert!(Instant::now() < limit, "{}", world.gateway().unwrap().last_lines());
    }
    let ready = probe("ready", &world.config()).await;
    // Longer than the waits between starts that a passing trouble would have.
    tokio::time::sleep(Duration::from_secs(1)).await;

    assert_eq!(ready.0, 1, "{}", ready.1);
    assert!(ready.1.contains("\"hsm\":false"), "{}", ready.1);
    assert_eq!(starts(), 1, "a second wrong PIN brings a real token nearer to its lock");
}

#[tokio::test]
async fn a_good_world_passes_every_check_with_and_without_a_gateway() {
    let mut world = World::prepare(Wanted::default()).unwrap();

    let before = check(&world).await;
    world.start_gateway().await.unwrap();
    let beside = check(&world).await;
    let table = tollgate_on(&["check"], &world.config()).await;

    for (code, rows) in [&before, &beside] {
        assert_eq!(*code, 0, "{rows:#?}");
        assert!(rows.iter().all(|row| row.ok), "{rows:#?}");
        let names: Vec<&str> = rows.iter().map(|row| row.check.as_str()).collect();
        for name in [
            "configuration",
            "tls data",
            "tls admin",
            "biller tls",
            "probe tls",
            "database",
            "hsm worker",
            "hsm mode",
            "key",
            "disk",
            "clock",
        ] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        let keys = rows.iter().filter(|row| row.check == "key");
        assert_eq!(keys.count(), 16);
    }
    let text = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.status.code(), Some(0), "{text}");
    assert_eq!(text.lines().count(), beside.1.len(), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok ")), "{text}");
    assert!(text.contains("zpk.acquirer-a@1  zone-pin-in  kcv BF1D3F"), "{text}");
}

#[tokio::test]
async fn a_missing_certificate_is_named() {
    let world = World::prepare(Wanted::default()).unwrap();
    let file = world.pki().join("gateway.crt");
    std::fs::remove_file(&file).unwrap();

    let red = red(&world).await;

    assert_eq!(
        red.iter().map(|row| row.check.as_str()).collect::<Vec<_>>(),
        ["tls data", "tls admin"]
    );
    assert!(red[0].detail.contains(file.to_str().unwrap()), "{red:?}");
}

#[tokio::test]
async fn an_expired_revocation_list_is_named() {
    let world = World::prepare(Wanted::default()).unwrap();
    let (now, day) = (Timestamp::now(), SignedDuration::from_hours(24));
    let authority = Authority::open(&world.pki()).unwrap();
    authority.write_crl_between(now - day * 2, now - day).unwrap();

    let red = red(&world).await;

    assert_eq!(
        red.iter().map(|row| row.check.as_str()).collect::<Vec<_>>(),
        ["tls data", "tls admin"]
    );
    assert!(red[0].detail.contains("data.crl"), "{red:?}");
}

#[tokio::test]
async fn a_wrong_hsm_pin_is_named_and_tried_once() {
    let world = World::prepare(Wanted::default()).unwrap();
    std::fs::write(world.dir().join("token/user-pin"), "00000000").unwrap();
    let starts = count_starts(&world);

    let red = red(&world).await;

    assert!(red.iter().all(|row| row.check == "hsm worker"), "{red:?}");
    assert!(red[0].detail.contains("PinIncorrect"), "{red:?}");
    assert!(red.iter().all(|row| !row.detail.contains("00000000")), "{red:?}");
    assert_eq!(starts(), 1, "a second wrong PIN brings a real token nearer to its lock");
}

#[tokio::test]
async fn a_key_that_a_client_may_use_and_that_is_not_there_is_named_with_the_client() {
    let world = World::prepare(Wanted::default()).unwrap();
    let text = std::fs::read_to_string(world.config()).unwrap();
    let verify = "mac_verify = [\"zak.acquirer-b\"]";
    let text = text.replace(verify, "mac_verify = [\"zak.absent\", \"zpk.billing\"]");
    std::fs::write(world.config(), text).unwrap();

    let red = red(&world).await;

    let told: Vec<_> = red.iter().map(|row| row.detail.as_str()).collect();
    let whose = "client \"acquirer-b\": mac_verify";
    let absent = format!("{whose} = \"zak.absent\": is not in the key register");
    assert_eq!(
        told,
        [absent, format!("{whose} = \"zpk.billing\": is no mac or base-derivation key")]
    );
}

#[tokio::test]
async fn a_billers_key_that_others_may_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::prepare(Wanted::default()).unwrap();
    let key = world.pki().join("tollgate.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();

    let red = red(&world).await;

    assert!(red.iter().all(|row| row.check == "biller tls"), "{red:?}");
    assert!(red[0].detail.contains("tollgate.key: is open to others (mode 0644)"), "{red:?}");
}

#[tokio::test]
async fn a_check_makes_no_database() {
    let world = World::prepare(Wanted::default()).unwrap();

    let (code, rows) = check(&world).await;

    assert_eq!(code, 0, "{rows:?}");
    assert!(rows.iter().any(|row| row.detail.ends_with("will be made")), "{rows:?}");
    assert_eq!(std::fs::read_dir(world.dir().join("data")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_key_that_is_not_on_the_token_is_named() {
    let world = World::prepare(Wanted::default()).unwrap();
    let file = world.dir().join("token/keys.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let key = r#"[[key]]
label = "zpk.absent"
role = "zone-pin-in"
algorithm = "aes"
formats = ["iso4"]
"#;
    std::fs::write(&file, format!("{text}\n{key}")).unwrap();

    let red = red(&world).await;

    assert!(red.iter().all(|row| row.check == "hsm worker"), "{red:?}");
    assert!(red[0].detail.contains("zpk.absent@1"), "{red:?}");
}

#[tokio::test]
async fn an_unknown_configuration_key_is_named_with_its_line() {
    let world = World::prepare(Wanted::default()).unwrap();
    let text = std::fs::read_to_string(world.config()).unwrap();
    let text = text.replacen("[hsm]\n", "[hsm]\nsesions = 4\n", 1);
    let line = text.lines().position(|line| line == "sesions = 4").unwrap() + 1;
    std::fs::write(world.config(), text).unwrap();

    let red = red(&world).await;

    assert_eq!(red.len(), 1, "{red:?}");
    assert_eq!(red[0].check, "configuration");
    let wanted = [format!("line {line}"), "sesions".into(), "gateway.toml".into()];
    assert!(wanted.iter().all(|text| red[0].detail.contains(text)), "{red:?}");
}

/// A row of `tollgate check --json`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    check: String,
    ok: bool,
    detail: String,
    /// What the key lint found.
    #[serde(default, rename = "report")]
    _report: serde_json::Value,
}

async fn check(world: &World) -> (i32, Vec<Row>) {
    let output = tollgate_on(&["check", "--json"], &world.config()).await;
    let rows = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code().unwrap(), rows)
}

/// The rows that are not good, of a check that must end with 1.
async fn red(world: &World) -> Vec<Row> {
    let (code, rows) = check(world).await;
    let red: Vec<Row> = rows.into_iter().filter(|row| !row.ok).collect();
    assert_eq!((code, red.is_empty()), (1, false), "{red:?}");
    red
}

async fn probe(what: &str, config: &Path) -> (i32, String) {
    let output = tollgate_on(&["probe", what], config).await;
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

async fn tollgate_on(arguments: &[&str], config: &Path) -> Output {
    let arguments = [arguments, &["--config", config.to_str().unwrap()]].concat();
    tollgate(&arguments).await
}

async fn tollgate(arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program("tollgate").unwrap());
    command.args(arguments).kill_on_drop(true).output().await.unwrap()
}

async fn get(world: &World, name: &str, path: &str) -> harness::acquirer::Answer {
    world.admin(name).unwrap().send(Method::GET, path, &[], Vec::new()).await.unwrap()
}

/// Puts a counter before the worker program: every start is one login with the HSM PIN.
fn count_starts(world: &World) -> impl Fn() -> usize + use<> {
    let (script, count) = (world.dir().join("counted-worker"), world.dir().join("worker-starts"));
    let worker = program("tollgate-hsm").unwrap();
    let text =
        format!("#!/bin/sh\necho start >> {}\nexec {} \"$@\"\n", count.display(), worker.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    let config = std::fs::read_to_string(world.config()).unwrap();
    let named = format!("[hsm]\nworker = \"{}\"\n", script.display());
    std::fs::write(world.config(), config.replacen("[hsm]\n", &named, 1)).unwrap();
    move || std::fs::read_to_string(&count).unwrap_or_default().lines().count()
}
