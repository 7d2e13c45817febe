//! `gateway/gateway.toml` is the reference: it loads, it names every key, and each default that it
//! shows is the one that holds.

use std::fs;

use gateway::config::Config;

use crate::code::code;
use crate::files::read;

const REFERENCE: &str = "gateway/gateway.toml";

/// Where the fields of each configuration type stand. A section that repeats another's keys, such as
/// `[admin]`, need not list them again.
const SECTIONS: &[(&str, &str)] = &[
    ("Config", ""),
    ("TlsPair", "tls"),
    ("ProbeConfig", "probe"),
    ("ListenerConfig", "data"),
    ("TlsConfig", "tls.data"),
    ("LimitsConfig", "limits"),
    ("HsmConfig", "hsm"),
    ("FurtherLinkConfig", "hsm.link"),
    ("HealthConfig", "hsm.health"),
    ("WaiverConfig", "hsm.in_worker_waiver"),
    ("OfficersConfig", "officers"),
    ("RetryConfig", "hsm.retry"),
    ("BreakerConfig", "hsm.breaker"),
    ("StoreConfig", "store"),
    ("PostgresConfig", "store.postgres"),
    ("QueueConfig", "queue"),
    ("AuditConfig", "audit"),
    ("SinkConfig", "audit.sink"),
    ("BillerConfig", "biller"),
    ("ClientConfig", "client"),
    ("Grants", "client.grants"),
    ("TranslateGrant", "client.grants.translate"),
    ("VerifyGrant", "client.grants.verify"),
    ("ZoneGrant", "client.grants.translate.from"),
    ("PaymentGrant", "client.grants.payments"),
];

/// The reference with its comments taken in: the defaults, and the examples if asked for.
fn spelled_out(reference: &str, examples: bool) -> String {
    let line = |line: &str| {
        let example = line.strip_prefix("# Example: ").filter(|_| examples);
        let default = line.strip_prefix("# ").filter(|line| is_setting(line));
        format!("{}\n", example.or(default).unwrap_or(line))
    };
    reference.lines().map(line).collect()
}

/// `key = value`, and not a sentence that holds an equals sign.
fn is_setting(line: &str) -> bool {
    let key = line.split_once(" = ").map_or("", |(key, _)| key);
    !key.is_empty()
        && key.bytes().all(|c| c.is_ascii_lowercase() || c == b'_' || c.is_ascii_digit())
}

/// Reads a configuration as the gateway does, from a file.
fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    fs::write(&path, text).unwrap();
    Config::load(&path).map_err(|error| error.to_string())
}

/// What differs once the reference's defaults are written out.
fn false_defaults(reference: &str) -> Result<Vec<String>, String> {
    let (silent, written) = (load(reference)?, load(&spelled_out(reference, false))?);
    let (silent, written) = (format!("{silent:#?}"), format!("{written:#?}"));
    let pairs = silent.lines().zip(written.lines());
    let mut found: Vec<String> = pairs
        .filter(|(silent, written)| silent != written)
        .map(|(silent, written)| format!("{} holds, not {}", silent.trim(), written.trim()))
        .collect();
    if silent.lines().count() != written.lines().count() {
        found.push("a list or an option differs".into());
    }
    Ok(found)
}

/// The types in a source that are read from the configuration, each with its fields.
fn sections(source: &str) -> Vec<(String, Vec<String>)> {
    let text = code(source).text;
    let name = |line: &str| line.split([' ', ':', '<']).next().unwrap_or("").to_owned();
    let mut found = Vec::new();
    let (mut derived, mut open) = (false, None);
    for line in text.lines() {
        if let Some(list) = line.strip_prefix("#[derive(") {
            derived = list.contains("Deserialize");
        } else if let Some(rest) = line.strip_prefix("pub struct ").filter(|_| derived) {
            open = Some((name(rest), Vec::new()));
        } else if let Some(rest) = line.strip_prefix("    pub ") {
            open.as_mut().into_iter().for_each(|(_, fields)| fields.push(name(rest)));
        } else if line.starts_with('}') {
            derived = false;
            found.extend(open.take());
        }
    }
    found
}

/// Keys that the types have and the reference does not.
fn unnamed(reference: &str, sources: &[String]) -> Vec<String> {
    let all: toml::Value = toml::from_str(&spelled_out(reference, true)).unwrap();
    let mut found = Vec::new();
    for (name, fields) in sources.iter().flat_map(|source| sections(source)) {
        let Some((_, section)) = SECTIONS.iter().find(|(kind, _)| *kind == name) else {
            found.push(format!("{name} has no row in tidy/reference.rs"));
            continue;
        };
        let mut keys = section.split('.').filter(|key| !key.is_empty());
        // Of a list the first entry is the one that explains.
        let table = keys.try_fold(&all, |at, key| {
            let at = at.get(key)?;
            at.as_array().map_or(Some(at), |list| list.first())
        });
        let missing = |field: &&String| table.and_then(|table| table.get(field.as_str())).is_none();
        found.extend(fields.iter().filter(missing).map(|field| format!("[{section}] {field}")));
    }
    found
}

fn config_sources() -> Vec<String> {
    let config = crate::files::texts("gateway/src/config", &[".rs"]);
    let owned = ["retry.rs", "breaker/config.rs", "health.rs"];
    let owned = owned.map(|file| read(&format!("gateway/src/links/{file}")));
    config.into_iter().map(|file| file.text).chain(owned).collect()
}

#[test]
fn the_reference_configuration_loads_and_its_defaults_hold() {
    let reference = read(REFERENCE);

    let found = false_defaults(&reference);

    assert_eq!(found, Ok(Vec::new()));
}

#[test]
fn a_false_default_and_an_unknown_key_are_found() {
    let reference = read(REFERENCE);
    let wrong = reference.replace("# workers = 2", "# workers = 3");
    let unknown = reference.replace("# workers = 2", "# worker_processes = 2");

    assert_eq!(false_defaults(&wrong), Ok(vec!["workers: 2, holds, not workers: 3,".into()]));
    assert!(false_defaults(&unknown).unwrap_err().contains("worker_processes"));
}

#[test]
fn the_examples_of_the_reference_are_accepted() {
    let reference = read(REFERENCE);

    let spelled_out = spelled_out(&reference, true);
    let both = load(&spelled_out).unwrap_err();
    assert!(both.contains("store: has both path and [store.postgres]"), "{both}");
    // The rows are in one place.
    let file = "path = \"/var/lib/tollgate/store/tollgate.db\"\n";
    let loaded = load(&spelled_out.replacen(file, "", 1)).unwrap();

    assert!(loaded.hsm.worker.is_some() && loaded.hsm.in_worker_waiver.is_some());
}

#[test]
fn the_reference_names_every_key() {
    let reference = read(REFERENCE);

    let found = unnamed(&reference, &config_sources());

    crate::files::none(&found);
}

#[test]
fn a_key_that_the_reference_does_not_name_is_found() {
    let reference = read(REFERENCE).replace("# readers = 4\n", "");
    let source = "#[derive(Deserialize)]\npub struct New {\n    pub key: u8,\n}\n".to_owned();

    let found = unnamed(&reference, &config_sources());

    assert_eq!(found, ["[store] readers"]);
    assert_eq!(unnamed(&reference, &[source]), ["New has no row in tidy/reference.rs"]);
}

#[test]
fn every_section_row_is_about_a_type_that_exists() {
    let mut found: Vec<String> =
        config_sources().iter().flat_map(|source| sections(source)).map(|(name, _)| name).collect();
    let mut rows: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();

    found.sort_unstable();
    rows.sort_unstable();

    assert_eq!(found, rows);
}
