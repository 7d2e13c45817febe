//! What `tollgate-pki` prints, and how it fails.

use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate-pki"))
        .args(["--dir"])
        .arg(dir)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn init_demo_prints_a_table_of_all_certificates() {
    let dir = tempfile::tempdir().unwrap();

    let output = run(dir.path(), &["init", "--demo"]);

    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(table.lines().count(), 14, "a head, twelve certificates, the list:\n{table}");
    assert!(table.starts_with("NAME"), "{table}");
    assert!(table.contains("spiffe://tollgate.test/key-officer"), "{table}");
    assert!(table.contains("revocation list 1, next update"), "{table}");
}

#[test]
fn issue_revoke_and_crl_speak_json_about_their_own_certificates() {
    let dir = tempfile::tempdir().unwrap();
    json(&run(dir.path(), &["init", "--json"]));

    let issued = json(&run(dir.path(), &["issue", "a", "--uri", "spiffe://x/a", "--json"]));
    json(&run(dir.path(), &["issue", "b", "--dns", "localhost", "--ip", "::1", "--json"]));
    let revoked = json(&run(dir.path(), &["revoke", "a", "--json"]));
    let list = json(&run(dir.path(), &["crl", "--crl-days", "2", "--json"]));

    let certificates = issued["certificates"].as_object().unwrap();
    let (serial, certificate) = certificates.iter().next().unwrap();
    assert_eq!(certificates.len(), 1);
    assert_eq!(certificate["uri"], "spiffe://x/a");
    assert!(certificate["revoked_at"].is_null());
    assert!(revoked["certificates"][serial]["revoked_at"].is_string());
    assert_eq!(list["crl"]["number"], 3);
    assert_eq!(list["certificates"].as_object().unwrap().len(), 1);
}

#[test]
fn failures_name_the_place_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().display().to_string();

    let early = run(dir.path(), &["crl"]);
    run(dir.path(), &["init"]);
    let again = run(dir.path(), &["init"]);
    let unknown = run(dir.path(), &["revoke", "nobody"]);
    let purposeless = run(dir.path(), &["issue", "a"]);

    for (output, remedy) in
        [(&early, "create one there first"), (&again, "open that one"), (&unknown, "index.json")]
    {
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&place) && error.contains(remedy), "{error}");
    }
    assert_eq!(purposeless.status.code(), Some(2));
    assert!(text(&purposeless.stderr).contains("--uri"), "{}", text(&purposeless.stderr));
}
