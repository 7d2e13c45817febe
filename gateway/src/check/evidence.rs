//! `tollgate check --evidence`: what an assessor looks at, in files under the signature of the token's audit
//! key. It claims evidence, never compliance.
//!
//! No secret is in it: of secret files only the path, of keys only the check value. `tollgate-audit verify`
//! checks it offline.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use compliance::{
    CONTROLS, Checkpoint, MANIFEST, Manifest, PackFile, SignedNote, VerifierKey, pack_checkpoint,
};
use hsm_adapter::vocabulary::KeyName;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Row, certificates, inventory, settings, trail};
use crate::checkpoint_key::signature;
use crate::config::Config;
use crate::links::token::Hsm;

/// Every file of a pack beside its manifest.
pub const FILES: [&str; 11] = [
    AUDIT,
    CERTIFICATES,
    CHECK,
    CIPHERS,
    CONFIGURATION,
    CONTROL_MAP,
    KEYS,
    LINT,
    README,
    ROLES,
    SELF_TEST,
];

const AUDIT: &str = "audit.json";
const CERTIFICATES: &str = "certificates.json";
const CHECK: &str = "check.json";
const CIPHERS: &str = "ciphers.json";
const CONFIGURATION: &str = "configuration.json";
const CONTROL_MAP: &str = "controls.json";
const KEYS: &str = "keys.json";
const LINT: &str = "lint.json";
const README: &str = "readme.txt";
const ROLES: &str = "roles.json";
const SELF_TEST: &str = "self-test.json";

/// What a pack is about.
pub(super) struct Subject<'s> {
    pub(super) path: &'s Path,
    pub(super) config: &'s Config,
    /// None when the links could not even be started.
    pub(super) hsm: Option<&'s Hsm>,
    pub(super) rows: &'s [Row],
}

/// Makes the directory, or takes an empty one; from here on it is the owner's alone.
pub(super) fn prepare(dir: &Path) -> Result<(), String> {
    let told = |what: String| format!("{}: {what}", dir.display());
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(told(error.to_string())),
    }
    let mut inside = std::fs::read_dir(dir).map_err(|error| told(error.to_string()))?;
    if inside.next().is_some() {
        return Err(told("is not empty: name a new directory".into()));
    }
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))
        .map_err(|error| told(error.to_string()))
}

/// Writes the pack. An error also when it is there, and nobody has signed it.
pub(super) async fn write(dir: &Path, subject: &Subject<'_>) -> Result<String, String> {
    let mut files = Vec::new();
    for (name, contents) in collect(subject).await {
        put(dir, name, &contents).map_err(|why| format!("{name}: {why}"))?;
        files.push(PackFile::of(name, &contents));
    }
    let id = Uuid::now_v7();
    let (note, unsigned) = sign(subject, id, &files).await;
    let (count, origin) = (files.len(), note.checkpoint().origin.clone());
    let manifest = Manifest::new(id, files, &note, unsigned.clone());
    let manifest = serde_json::to_value(manifest).map_err(|error| error.to_string())?;
    put(dir, MANIFEST, &text_of(&manifest)).map_err(|why| format!("{MANIFEST}: {why}"))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| error.to_string())?;
    let told = format!("{}: {count} files, {origin}", dir.display());
    match unsigned {
        None => Ok(format!("{told}, signed")),
        Some(why) => Err(format!("{told}, unsigned: {why}")),
    }
}

async fn collect(subject: &Subject<'_>) -> Vec<(&'static str, Vec<u8>)> {
    let Subject { path, config, hsm, rows } = subject;
    let links = inventory::look(config, *hsm).await;
    let about = |links: Vec<Value>| json!({ "links": links });
    let values = [
        (AUDIT, trail::look(config).await),
        (CERTIFICATES, certificates::list(config)),
        (CHECK, json!({ "rows": rows })),
        (CIPHERS, certificates::offers(config)),
        (CONFIGURATION, settings::configuration(path, config)),
        (CONTROL_MAP, controls()),
        (KEYS, about(links.keys)),
        (LINT, about(links.lint)),
        (ROLES, settings::roles(config)),
        (SELF_TEST, about(links.self_test)),
    ];
    let texts = values.into_iter().map(|(name, value)| (name, text_of(&value)));
    texts.chain([(README, README_TEXT.as_bytes().to_vec())]).collect()
}

/// The controls, as they were compiled in.
fn controls() -> Value {
    let parsed = CONTROLS.map(|(name, text)| {
        let value = toml::from_str::<Value>(text);
        (name.to_owned(), value.unwrap_or_else(|error| json!({ "error": error.to_string() })))
    });
    json!({ "version": env!("CARGO_PKG_VERSION"), "controls": Map::from_iter(parsed) })
}

fn text_of(value: &Value) -> Vec<u8> {
    // Such a value always has a text.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

fn put(dir: &Path, name: &str, contents: &[u8]) -> std::io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
    file.write_all(contents)?;
    file.sync_all()
}

/// The note, and why it is unsigned when it is.
async fn sign(subject: &Subject<'_>, id: Uuid, files: &[PackFile]) -> (SignedNote, Option<String>) {
    let deployment = &subject.config.audit.deployment;
    let checkpoint = |keys| pack_checkpoint(deployment, id, files, keys);
    // Who signs is known only when it has signed: the first signatures tell the keys that the text names.
    let keys = match signatures(subject, &checkpoint(Vec::new())).await {
        Ok(made) => made.into_iter().map(|(key, _)| key).collect(),
        Err(why) => return (SignedNote::unsigned(checkpoint(Vec::new())), Some(why)),
    };
    let named = checkpoint(keys);
    match signatures(subject, &named).await {
        Ok(made) => {
            let known = made.into_iter().filter(|(key, _)| named.keys.contains(key));
            let note = known.fold(SignedNote::unsigned(named.clone()), |note, (key, made)| {
                note.signed(&key, made)
            });
            let why = (!note.is_signed()).then(|| "the audit key changed meanwhile".to_owned());
            (note, why)
        }
        Err(why) => (SignedNote::unsigned(named), Some(why)),
    }
}

/// One of each key; an error when there is none at all.
async fn signatures(
    subject: &Subject<'_>,
    checkpoint: &Checkpoint,
) -> Result<Vec<(VerifierKey, Vec<u8>)>, String> {
    let audit = &subject.config.audit;
    let (mut found, mut trouble) = (Vec::new(), "no HSM link answers".to_owned());
    // Also of a link whose keys were not compared: whom to trust is the verifier's to say.
    let links = subject.hsm.into_iter().flat_map(Hsm::links).filter(|link| link.is_up());
    for link in links {
        let (key, text) = (KeyName::from(audit.signing_key.clone()), checkpoint.text());
        let limit = Instant::now() + SIGN_MAX;
        let made = link.sign_checkpoint(key, text.into_bytes(), limit).await.map(signature);
        let made = made.map_err(|error| hsm_adapter::worker::chain(&error)).and_then(|made| {
            let key = VerifierKey::new(&audit.deployment, made.kind, made.public_key);
            Ok((key.map_err(|error| error.to_string())?, made.signature))
        });
        match made {
            Ok((key, _)) if found.iter().any(|(other, _)| *other == key) => {}
            Ok(made) => found.push(made),
            Err(why) => trouble = format!("{}: {why}", link.name()),
        }
    }
    if found.is_empty() { Err(trouble) } else { Ok(found) }
}

/// Nobody waits behind it.
const SIGN_MAX: Duration = Duration::from_secs(5);

const README_TEXT: &str = "These files are evidence of how one Tollgate gateway was configured and what its \
HSM, certificates and audit log showed when they were collected; they claim no compliance, which is the \
assessor's to judge of the operator's environment. Verify them with `tollgate-audit verify DIR --vkey KEY`, \
where KEY is the audit key as the operator has given it to you and not as it stands in these files.\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_or_an_empty_directory_is_taken_and_it_becomes_the_owners() {
        let outside = tempfile::tempdir().unwrap();
        let (new, empty) = (outside.path().join("new"), outside.path().join("empty"));
        std::fs::create_dir(&empty).unwrap();
        std::fs::set_permissions(&empty, Permissions::from_mode(0o755)).unwrap();

        assert_eq!(prepare(&new), Ok(()));
        assert_eq!(prepare(&empty), Ok(()));
        for dir in [&new, &empty] {
            assert_eq!(std::fs::metadata(dir).unwrap().permissions().mode() & 0o7777, 0o700);
        }
        put(&new, "a", b"b").unwrap();
        let mode = std::fs::metadata(new.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(prepare(&new).unwrap_err().contains("is not empty"));
        assert!(prepare(&new.join("a")).is_err());
        assert!(put(&new, "a", b"c").is_err(), "nothing is overwritten");
    }

    #[test]
    fn the_controls_are_compiled_in_whole() {
        let all = controls();

        for (standard, least) in [("pci-dss-4.0.1", 40), ("pci-pin-3.1", 20)] {
            let controls = all["controls"][standard]["control"].as_array().unwrap();
            assert!(controls.len() >= least, "{standard}: {}", controls.len());
        }
    }

    #[test]
    fn the_files_stand_in_the_order_of_the_manifest() {
        assert!(FILES.is_sorted() && !FILES.contains(&MANIFEST));
    }
}
