//! Keys that are added to a token: another version of an audit signing key, for its rollover.
#![cfg(test)]

use std::path::Path;
use std::process::Command;

use hsm_adapter::register::{KeyAlgorithm, KeyProfile, KeyRegister, KeyState};
use hsm_adapter::vocabulary::{KeyLabel, KeyRole};
use softhsm::PlannedKey;
use tempfile::TempDir;

/// What `tollgate-token` printed as JSON, or its error.
fn token(home: &Path, command: &str, plan: &[PlannedKey]) -> Result<serde_json::Value, String> {
    let file = home.join("plan.json");
    std::fs::write(&file, serde_json::to_vec(plan).unwrap()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate-token"))
        .args([command, "--json", "--plan"])
        .arg(&file)
        .arg("--dir")
        .arg(home.join("token"))
        .env_remove("SOFTHSM2_CONF")
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn audit(version: u32, state: KeyState, algorithm: KeyAlgorithm) -> PlannedKey {
    let label = KeyLabel::parse("audit.signing").unwrap();
    let key = KeyProfile::new(label, KeyRole::AuditSigning, algorithm);
    PlannedKey { profile: KeyProfile { version, state, ..key }, value: None }
}

/// `version state` of each key.
fn states(home: &Path) -> Vec<String> {
    let register = KeyRegister::read(&home.join("token/keys.toml")).unwrap();
    register.iter().map(|key| format!("{} {}", key.version, key.state)).collect()
}

#[test]
fn another_version_is_added_staged_and_what_is_there_stays() {
    use KeyAlgorithm::{Ec, Ed25519};
    use KeyState::{Active, Staged};
    let home = TempDir::new().unwrap();
    token(home.path(), "init", &[audit(1, Active, Ec)]).unwrap();

    let added = token(home.path(), "add", &[audit(2, Staged, Ec)]).unwrap();

    assert_eq!(added[0]["key"], "audit.signing@2");
    assert_eq!(added[0]["origin"], "generated");
    assert_eq!(states(home.path()), ["1 active", "2 staged"]);

    // As a worker leaves it after the activation.
    let path = home.path().join("token/keys.toml");
    let register = KeyRegister::read(&path).unwrap();
    let moved = register.iter().cloned().map(|key| {
        let state = if key.version == 1 { KeyState::Retired } else { Active };
        KeyProfile { state, ..key }
    });
    let register = register.changed(7, moved.collect()).unwrap();
    std::fs::write(&path, register.to_toml().unwrap()).unwrap();
    let again = token(home.path(), "add", &[audit(2, Staged, Ec)]).unwrap();
    let third = token(home.path(), "add", &[audit(3, Staged, Ed25519)]).unwrap();

    assert_eq!((&again[0]["origin"], &third[0]["origin"]), (&"kept".into(), &"generated".into()));
    assert_eq!(states(home.path()), ["1 retired", "2 active", "3 staged"]);
    assert_eq!(KeyRegister::read(&path).unwrap().change(), 7);
}

#[test]
fn a_key_that_does_not_go_with_those_that_are_there_is_refused_and_changes_nothing() {
    use KeyAlgorithm::{Ec, Ed25519};
    use KeyState::{Active, Staged};
    let home = TempDir::new().unwrap();
    let nowhere = token(home.path(), "add", &[audit(1, Active, Ec)]).unwrap_err();
    token(home.path(), "init", &[audit(1, Active, Ec)]).unwrap();

    let second = token(home.path(), "add", &[audit(2, Active, Ec)]).unwrap_err();
    let another = token(home.path(), "add", &[audit(1, Active, Ed25519)]).unwrap_err();
    let kek = KeyProfile { role: KeyRole::QueueKek, ..audit(2, Staged, Ed25519).profile };
    let wrong = token(home.path(), "add", &[PlannedKey { profile: kek, value: None }]).unwrap_err();

    assert!(nowhere.contains("keys.toml"), "{nowhere}");
    assert!(second.contains("2 active versions"), "{second}");
    assert!(
        another.contains("audit.signing@1") && another.contains("another profile"),
        "{another}"
    );
    assert!(wrong.contains("does not go with this algorithm"), "{wrong}");
    assert_eq!(states(home.path()), ["1 active"]);
}
