//! What each package may depend on, and what must never be in the tree.

use std::process::Command;

use crate::files::{none, packages, read, root};

/// Only these packages depend on these: who talks to a token, and the module that tests put before it.
const ALONE: [(&str, [&str; 2]); 2] = [
    ("cryptoki", ["hsm-adapter", "softhsm-shim"]),
    ("cryptoki-sys", ["hsm-adapter", "softhsm-shim"]),
];

/// The package never depends on these, not even in its tests.
const NEVER: [(&str, &[&str]); 6] = [
    // The process that holds the token's login parses nothing from the network.
    ("hsm-adapter", &["gateway", "compliance", "axum", "sqlx", "reqwest", "hyper", "hyper-util"]),
    // What verifies the audit log is independent of what wrote it.
    ("compliance", &["gateway", "hsm-adapter", "softhsm", "pki"]),
    ("softhsm", &["gateway"]),
    // It emulates a device: what it computes must not be what the product computes.
    ("softhsm-shim", &["gateway", "hsm-adapter", "softhsm"]),
    ("pki", &["gateway"]),
    ("gateway", &["cryptoki", "cryptoki-sys"]),
];

/// The package needs these for its tests alone: production has its own token and authority.
const TESTS_ONLY: [(&str, &[&str]); 2] =
    [("gateway", &["softhsm", "pki"]), ("hsm-adapter", &["softhsm", "pki"])];

/// One crypto provider and one TLS library: see deny.toml.
const BANNED: [&str; 4] = ["ring", "openssl-sys", "openssl", "native-tls"];

/// Every dependency of the manifest that is over a border.
fn trespasses(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let package = manifest["package"]["name"].as_str().unwrap();
    let lists = |table: &[(&str, &[&str])], dependency: &str| {
        table.iter().any(|(name, list)| *name == package && list.contains(&dependency))
    };
    let mut found = Vec::new();
    for (kind, dependency) in dependencies(&manifest) {
        let why = if dependency == "tests" {
            "nobody imports the tests"
        } else if dependency == "softhsm-shim" {
            "nobody ships the shim"
        } else if lists(&NEVER, &dependency) {
            "never"
        } else if kind != "dev-dependencies" && lists(&TESTS_ONLY, &dependency) {
            "as a dev-dependency only"
        } else if ALONE
            .iter()
            .any(|(name, owners)| *name == dependency && !owners.contains(&package))
        {
            "only hsm-adapter and the shim do"
        } else {
            continue;
        };
        found.push(format!("{package}: {kind} has {dependency}: {why}"));
    }
    found
}

/// Kind and name of each dependency, by its true name and for every target.
fn dependencies(manifest: &toml::Table) -> Vec<(String, String)> {
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    let mut found = Vec::new();
    for table in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let listed = table.get(kind).and_then(toml::Value::as_table);
            for (key, value) in listed.into_iter().flatten() {
                let name = value.get("package").and_then(toml::Value::as_str).unwrap_or(key);
                found.push((kind.to_owned(), name.to_owned()));
            }
        }
    }
    found
}

/// Banned packages of a lock file. `ring` may stand there for one reason only: Cargo lists it when a
/// crate names a feature of it in case that it is on, as rustls-webpki does. That it is off is
/// what `cargo tree` proves, in the test below.
fn banned_in_lock(lock: &str) -> Vec<String> {
    let lock: toml::Table = lock.parse().unwrap();
    let mut found = Vec::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if BANNED[1..].contains(&name) {
            found.push(format!("Cargo.lock holds {name}"));
        }
        let needs = package.get("dependencies").and_then(toml::Value::as_array);
        let needs = needs.into_iter().flatten().filter_map(toml::Value::as_str);
        let ring = |need: &str| need.split(' ').next() == Some("ring");
        if needs.into_iter().any(ring) && name != "rustls-webpki" {
            found.push(format!("Cargo.lock: {name} needs ring"));
        }
    }
    found
}

/// Banned packages of `cargo tree --prefix none`.
fn banned_in_tree(tree: &str) -> Vec<String> {
    let lines = tree
        .lines()
        .filter(|line| line.split(' ').next().is_some_and(|name| BANNED.contains(&name)));
    lines.map(|line| format!("the build holds {line}")).collect()
}

#[test]
fn every_package_depends_only_on_what_is_open_to_it() {
    let manifests = packages().into_iter().map(|folder| read(&format!("{folder}/Cargo.toml")));

    let found: Vec<String> = manifests.flat_map(|manifest| trespasses(&manifest)).collect();

    none(&found);
}

#[test]
fn a_dependency_over_a_border_is_found_however_it_is_written() {
    for (package, text) in [
        ("gateway", "[dependencies]\ncryptoki.workspace = true"),
        ("tests", "[dependencies]\ncryptoki-sys = \"0.5\""),
        ("hsm-adapter", "[dev-dependencies]\nreqwest.workspace = true"),
        ("hsm-adapter", "[target.'cfg(unix)'.dependencies]\nweb = { package = \"axum\" }"),
        ("compliance", "[dev-dependencies]\npki.workspace = true"),
        ("softhsm", "[build-dependencies]\ngateway.workspace = true"),
        ("softhsm-shim", "[dependencies]\nhsm-adapter.workspace = true"),
        ("softhsm", "[dependencies]\nsofthsm-shim = { path = \"shim\" }"),
        ("gateway", "[dependencies]\npki.workspace = true"),
        ("pki", "[dev-dependencies]\ntests = { path = \"../tests\" }"),
    ] {
        let manifest = format!("[package]\nname = \"{package}\"\n{text}");

        let found = trespasses(&manifest);

        assert_eq!(found.len(), 1, "{manifest}: {found:?}");
    }
    none(&trespasses("[package]\nname = \"gateway\"\n[dev-dependencies]\npki.workspace = true"));
}

#[test]
fn the_lock_file_names_no_second_crypto_provider_or_tls_library() {
    let lock = read("Cargo.lock");

    let found = banned_in_lock(&lock);

    none(&found);
}

#[test]
fn a_banned_package_in_the_lock_file_is_found() {
    let lock = "[[package]]\nname = \"native-tls\"\n[[package]]\nname = \"quinn\"\n\
                dependencies = [\"ring 0.17.14\"]";

    let found = banned_in_lock(lock);

    assert_eq!(found, ["Cargo.lock holds native-tls", "Cargo.lock: quinn needs ring"]);
}

#[test]
fn no_feature_of_any_package_builds_a_second_crypto_provider_or_tls_library() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["tree", "--offline", "--locked", "--workspace", "--all-features"];

    let output = Command::new(cargo)
        .args(arguments)
        .args(["--edges", "normal,build,dev", "--prefix", "none"])
        .current_dir(root())
        .output()
        .unwrap();

    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(tree.contains("\naws-lc-rs v"), "not a tree: {tree}");
    none(&banned_in_tree(&tree));
}

#[test]
fn a_banned_package_in_the_build_is_found() {
    let tree = "gateway v0.1.0\nrustls v0.23.46\nring v0.17.14\nstring v1.0.0\nring v0.17.14 (*)";

    let found = banned_in_tree(tree);

    assert_eq!(found.len(), 2, "{found:?}");
}
