//! What is in the repository and what is not: no key material, and pages that name the two commands.

use std::process::Command;

use crate::files::{none, paths, read, root};

/// Tests and demo make their own; one that was committed is burnt.
const KEY_MATERIAL: [&str; 8] = ["pem", "key", "p12", "pfx", "sqlite", "db", "db-wal", "db-shm"];
const PAGES: [&str; 2] = ["README.md", "CHANGELOG.md"];
const COMMANDS: [&str; 2] = ["make demo", "make test"];

fn key_material(paths: &[String]) -> Vec<String> {
    let ending = |path: &str| path.rsplit_once('.').map_or("", |(_, ending)| ending).to_lowercase();
    paths.iter().filter(|path| KEY_MATERIAL.contains(&ending(path).as_str())).cloned().collect()
}

fn missing_commands(page: &str, text: &str) -> Vec<String> {
    let missing = COMMANDS.iter().filter(|command| !text.contains(*command));
    missing.map(|command| format!("{page} does not name `{command}`")).collect()
}

/// What is under version control; in a tree without history everything that no build made.
fn kept() -> Vec<String> {
    if !root().join(".git").exists() {
        return paths("");
    }
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn no_key_material_is_under_version_control() {
    let paths = kept();

    let found = key_material(&paths);

    none(&found);
}

#[test]
fn key_material_is_found_by_its_ending() {
    let paths =
        ["pki/ca.PEM", "var/demo/tollgate.db", "hsm/keys.toml", "src/key.rs", "gateway.key"];

    let found = key_material(&paths.map(str::to_owned));

    assert_eq!(found, ["pki/ca.PEM", "var/demo/tollgate.db", "gateway.key"]);
}

#[test]
fn the_pages_name_the_two_commands() {
    let pages = PAGES.iter().filter(|page| root().join(page).exists());

    let found: Vec<String> = pages.flat_map(|page| missing_commands(page, &read(page))).collect();

    none(&found);
}

#[test]
fn a_page_without_a_command_is_found() {
    let found = missing_commands("README.md", "Run `make demo`.");

    assert_eq!(found, ["README.md does not name `make test`"]);
}
