//! The pack for an assessor: whole, signed by the token, without a secret, and verified by its files alone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use gateway::check::evidence::FILES;
use harness::acquirer::Payment;
use harness::demo_keys::DemoKeys;
use harness::world::{Wanted, World, program};
use serde_json::Value;

use crate::audit_trail::{verify, vkey};
use crate::canary::Canaries;
use crate::support::Counter;

/// `tollgate check --evidence DIR`.
async fn collect(world: &World, dir: &Path) -> Output {
    let mut command = tokio::process::Command::new(program("tollgate").unwrap());
    command.args(["check", "--json", "--config"]).arg(world.config()).arg("--evidence").arg(dir);
    command.kill_on_drop(true).output().await.unwrap()
}

fn read(dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The row of the pack itself.
fn told(output: &Output) -> Value {
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    rows.into_iter().find(|row| row["check"] == "evidence").expect("a row of the evidence")
}

/// What must be in no file: the HSM PIN, the demo's keys, and the private keys beside the certificates.
fn secrets(world: &World) -> Canaries {
    let pin = std::fs::read_to_string(world.dir().join("token/user-pin")).unwrap();
    let mut canaries = Canaries::default().bytes("HSM PIN", pin.trim_end().as_bytes());
    let keys = DemoKeys::load();
    for key in keys.iter() {
        canaries = canaries.bytes(&key.label, &keys.value(&key.label));
    }
    for name in ["gateway", "monitor", "auditor"] {
        let pem = std::fs::read_to_string(world.pki().join(format!("{name}.key"))).unwrap();
        // Any of its lines would be a part of the key; the last one may be short.
        for line in pem.lines().filter(|line| !line.starts_with("-----") && line.len() >= 32) {
            canaries = canaries.bytes(&format!("{name}.key"), line.as_bytes());
        }
    }
    canaries
}

#[tokio::test]
async fn the_pack_is_whole_verifies_and_a_changed_byte_is_named() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    counter.pay("one", &counter.body(&Payment::of("pdam", "one"))).await;
    let (key, dir) = (vkey(&world).await, world.dir().join("evidence"));

    let output = collect(&world, &dir).await;
    let again = collect(&world, &dir).await;
    let (report, code) = verify(&dir, &["--vkey", &key]);
    let by_manifest = verify(&dir.join("manifest.json"), &["--vkey", &key]);
    let unpinned = verify(&dir, &[]);

    assert!(output.status.success(), "{output:?}");
    assert_eq!((code, by_manifest.1, unpinned.1), (0, 0, 0), "{report}");
    assert_eq!((report["files"].as_u64(), report["is_pinned"].as_bool()), (Some(11), Some(true)));
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(told(&again)["detail"].as_str().unwrap().contains("is not empty"), "{again:?}");

    // Every file, for the owner alone.
    assert_eq!(mode(&dir), 0o700);
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected: Vec<&str> = FILES.into_iter().chain(["manifest.json"]).collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert!(names.iter().all(|name| mode(&dir.join(name)) == 0o600));
    let readme = std::fs::read_to_string(dir.join("readme.txt")).unwrap();
    assert!(readme.contains("claim no compliance"), "{readme}");
    assert_contents(&dir);

    // No secret.
    let canaries = secrets(&world);
    for name in &names {
        let text = std::fs::read(dir.join(name)).unwrap();
        assert!(canaries.found_in(&text).is_empty(), "{name}: {:?}", canaries.found_in(&text));
        assert!(!String::from_utf8_lossy(&text).contains("PRIVATE KEY"), "{name}");
    }

    // One byte.
    let path = dir.join("keys.json");
    let mut keys = std::fs::read(&path).unwrap();
    let at = keys.len() / 2;
    keys[at] ^= 1;
    std::fs::write(&path, keys).unwrap();
    let (report, code) = verify(&dir, &["--vkey", &key]);
    assert_eq!((code, report["findings"][0]["file"].as_str()), (1, Some("keys.json")), "{report}");
}

fn assert_contents(dir: &Path) {
    let configuration = read(dir, "configuration.json");
    assert_eq!(configuration["environment"], "demo");
    assert_eq!(configuration["file"]["sha256"].as_str().map(str::len), Some(64));
    assert_eq!(configuration["program"]["sha256"].as_str().map(str::len), Some(64));
    let keys = read(dir, "keys.json");
    let listed = keys["links"][0]["keys"].as_array().unwrap();
    let audit_key = listed.iter().find(|key| key["label"] == "audit.signing").unwrap();
    assert_eq!(
        (&audit_key["state"], &audit_key["role"]),
        (&"active".into(), &"audit-signing".into())
    );
    assert!(listed.iter().any(|key| key["kcv"].as_str().is_some_and(|kcv| kcv.len() == 6)));
    let recipes = &read(dir, "self-test.json")["links"][0]["recipes"];
    assert!(!recipes.as_array().unwrap().is_empty(), "{recipes}");
    let lint = &read(dir, "lint.json")["links"][0]["workers"][0];
    assert!(!lint["probes"].as_array().unwrap().is_empty(), "{lint}");
    let certificates = read(dir, "certificates.json");
    let files = certificates["files"].as_array().unwrap();
    assert!(files.iter().all(|file| file["error"].is_null()), "{certificates}");
    let lists = files.iter().filter(|file| file["revocation_lists"][0]["next_update"].is_string());
    assert_eq!(lists.count(), 2, "{certificates}");
    let offers = &read(dir, "ciphers.json")["listeners"];
    for at in 0..2 {
        assert_eq!(offers[at]["offers"]["versions"], serde_json::json!(["TLSv1_3"]), "{offers}");
    }
    let roles = read(dir, "roles.json");
    let clients = roles["clients"].as_array().unwrap();
    let acquirer = clients.iter().find(|client| client["id"] == "acquirer-a").unwrap();
    assert_eq!(acquirer["grants"]["payments"]["mac_key"], "zak.acquirer-a", "{acquirer}");
    let routes = roles["admin_routes"].as_array().unwrap();
    assert!(routes.iter().any(|route| {
        route["path"] == "/v1/audit/export" && route["roles"] == serde_json::json!(["auditor"])
    }));
    let controls = read(dir, "controls.json");
    assert_eq!(controls["controls"]["pci-pin-3.1"]["standard"], "PCI PIN", "{controls}");
    let audit = read(dir, "audit.json");
    assert_eq!(audit["verified"]["verdict"], "intact", "{audit}");
    let stream = &audit["streams"][0];
    assert!(stream["last_seq"].as_u64() > Some(1), "{audit}");
    assert!(stream["signed"]["note"].as_str().unwrap().contains("\u{2014} "), "{audit}");
    let rows = read(dir, "check.json")["rows"].as_array().unwrap().len();
    assert!(rows > 10, "{rows}");
}

#[tokio::test]
async fn without_its_hsm_the_pack_is_there_and_unsigned() {
    let edit = |table: &mut toml::Table| {
        table["hsm"].as_table_mut().unwrap().insert("token_label".into(), "no-such-token".into());
    };
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::prepare(wanted).unwrap();
    let dir = world.dir().join("evidence");

    let output = collect(&world, &dir).await;
    let (report, code) = verify(&dir, &[]);

    assert_eq!((output.status.code(), code), (Some(1), 2), "{report}");
    let row = told(&output);
    assert!(row["ok"] == false && row["detail"].as_str().unwrap().contains("unsigned: "), "{row}");
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("nobody has signed"));
    assert!(FILES.iter().all(|name| dir.join(name).is_file()));
}
