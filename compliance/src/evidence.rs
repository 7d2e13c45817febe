//! An evidence pack: files for an assessor, and a manifest under the signature of the audit key.
//!
//! ```json
//! {"format":"tollgate-evidence/1","created":"2026-11-26T18:00:00.123Z",
//!  "files":[{"name":"audit.json","bytes":1729,"sha256":"…"}],
//!  "signature":"tollgate/evidence/0193…\n10\nCsUY…=\nkey tollgate+…\ninterval 0\n\n— tollgate Gis8…\n"}
//! ```
//!
//! `signature` is a checkpoint as the log has them: its origin names the pack, its size is the number of
//! files, and its root is that of the RFC 6962 tree whose entries are the SHA-256 of the files' lines in the
//! form of `sha256sum`: `<digest>  <name>\n`. So a name is under the signature as a digest is.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::verify::trust::{Judged, Trust};
use crate::verify::{key_reports, read_error};
use crate::{
    Checkpoint, Finding, Frontier, Hash, KeyReport, SignedNote, Verdict, VerifierKey, VerifyError,
};

/// The file that names all others.
pub const MANIFEST: &str = "manifest.json";

/// One file of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackFile {
    /// In the pack's directory.
    pub name: String,
    /// How long it is.
    pub bytes: u64,
    /// In lower-case hex.
    pub sha256: String,
}

impl PackFile {
    /// A file with these contents.
    #[must_use]
    pub fn of(name: &str, contents: &[u8]) -> Self {
        let sha256 = hex::encode(Sha256::digest(contents));
        Self { name: name.into(), bytes: contents.len() as u64, sha256 }
    }

    fn entry(&self) -> Hash {
        Hash(Sha256::digest(format!("{}  {}\n", self.sha256, self.name)).into())
    }
}

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    created: Timestamp,
    files: Vec<PackFile>,
    signature: String,
    /// Why nobody has signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsigned: Option<String>,
}

impl Manifest {
    /// The manifest of these files under a note over [`pack_checkpoint`]; with why nobody has signed it, when
    /// nobody has.
    #[must_use]
    pub fn new(
        id: Uuid,
        files: Vec<PackFile>,
        note: &SignedNote,
        unsigned: Option<String>,
    ) -> Self {
        let created = created(id).unwrap_or(Timestamp::UNIX_EPOCH);
        Self {
            format: FORMAT.into(),
            created,
            files: in_order(files),
            signature: note.note(),
            unsigned,
        }
    }
}

/// What is signed: the pack `id`, a UUID of version 7, of a deployment, and its files in the order of names.
#[must_use]
pub fn pack_checkpoint(
    deployment: &str,
    id: Uuid,
    files: &[PackFile],
    keys: Vec<VerifierKey>,
) -> Checkpoint {
    let mut tree = Frontier::default();
    for file in in_order(files.to_vec()) {
        tree.push(file.entry());
    }
    let origin = format!("{deployment}/{KIND}/{id}");
    Checkpoint { origin, size: tree.size(), root: tree.root(), keys, interval_s: 0 }
}

/// The pack's directory, for a path that is one with a manifest, or that manifest.
#[must_use]
pub fn pack_at(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return path.join(MANIFEST).symlink_metadata().is_ok().then(|| path.to_owned());
    }
    let is_manifest = path.file_name().is_some_and(|name| name == MANIFEST);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    is_manifest.then(|| dir.to_owned())
}

/// What was found in a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// The worst of the findings.
    pub verdict: Verdict,
    /// Tampered ones first.
    pub findings: Vec<Finding>,
    /// Which pack: `<deployment>/evidence/<id>`.
    pub pack: Option<String>,
    /// When it was made, as its id says.
    pub created: Option<Timestamp>,
    /// How many files it names.
    pub files: usize,
    /// Whose signatures counted.
    pub keys: Vec<KeyReport>,
    /// Whether a key was given: otherwise a pack that was made anew with another key passes.
    pub is_pinned: bool,
}

impl fmt::Display for PackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pack = self.pack.as_deref().unwrap_or("an unnamed pack");
        let created = self.created.map(|time| format!(" of {time}")).unwrap_or_default();
        writeln!(f, "evidence {pack}{created}")?;
        for key in &self.keys {
            let how = if key.is_pinned { "given" } else { "from the files" };
            writeln!(f, "key {} ({how}), sha256 {}", key.key, key.fingerprint)?;
        }
        if !self.is_pinned {
            let told = "no key was given: compare the fingerprint, or a pack made anew with another \
                        key passes";
            writeln!(f, "{told}")?;
        }
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        write!(f, "{}: {} files", self.verdict, self.files)
    }
}

/// Verifies the pack in a directory: every digest, no file too many or too few, root and signature.
///
/// # Errors
/// [`VerifyError`] when a file cannot be read; what is wrong with the pack is in the report.
pub fn verify_pack(dir: &Path, keys: &[VerifierKey]) -> Result<PackReport, VerifyError> {
    let path = dir.join(MANIFEST);
    let mut findings = Vec::new();
    let mut trust = Trust::new(keys);
    let (mut pack, mut files, mut made) = (None, 0, None);
    match read_manifest(&path)? {
        Err(what) => findings.push(tampered(MANIFEST, what)),
        Ok((manifest, note)) => {
            pack = Some(note.checkpoint().origin.clone());
            made = Some(manifest.created);
            files = manifest.files.len();
            findings.extend(look_at_files(dir, &manifest.files)?);
            findings.extend(what_is_wrong(&manifest, &note));
            findings.extend(signature(&manifest, &note, &mut trust));
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
    Ok(PackReport {
        verdict: findings.first().map_or(Verdict::Intact, |finding| finding.verdict),
        findings,
        pack,
        created: made,
        files,
        keys: key_reports(&trust),
        is_pinned: trust.is_pinned(),
    })
}

type Read = Result<(Manifest, SignedNote), String>;

fn read_manifest(path: &Path) -> Result<Read, VerifyError> {
    use io::Read as _;
    let file = File::open(path).map_err(read_error(path))?;
    let mut text = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut text).map_err(read_error(path))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Ok(Err("longer than any manifest".into()));
    }
    let manifest = match serde_json::from_slice::<Manifest>(&text) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Err(format!("is no manifest: {error}"))),
    };
    Ok(match SignedNote::parse(&manifest.signature) {
        Ok(note) => Ok((manifest, note)),
        Err(error) => Err(format!("its signature is no note: {error}")),
    })
}

/// Every file is as the manifest names it, and there is no other.
fn look_at_files(dir: &Path, files: &[PackFile]) -> Result<Vec<Finding>, VerifyError> {
    let mut findings = Vec::new();
    let mut left: BTreeSet<String> = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(read_error(dir))? {
        let name = entry.map_err(read_error(dir))?.file_name();
        left.insert(name.to_string_lossy().into_owned());
    }
    left.remove(MANIFEST);
    for file in files {
        if !is_plain(&file.name) {
            findings.push(tampered(MANIFEST, format!("{:?} is no name of a file", file.name)));
        } else if !left.remove(&file.name) {
            let finding = Finding::incomplete("a file that the manifest names is not there");
            findings.push(in_file(finding, &file.name));
        } else if let Some(what) = differs(&dir.join(&file.name), file)? {
            findings.push(tampered(&file.name, what));
        }
    }
    findings
        .extend(left.iter().map(|name| tampered(name, "a file that the manifest does not name")));
    Ok(findings)
}

fn differs(path: &Path, file: &PackFile) -> Result<Option<&'static str>, VerifyError> {
    let is_file = std::fs::symlink_metadata(path).map_err(read_error(path))?.is_file();
    if !is_file {
        return Ok(Some("is a link or a directory, and no file"));
    }
    let (hash, bytes) = Hash::of_file(path).map_err(read_error(path))?;
    let is_same = bytes == file.bytes && hash.to_string() == file.sha256;
    Ok((!is_same).then_some("its digest is not that of the manifest"))
}

/// Whether the manifest says what its note says.
fn what_is_wrong(manifest: &Manifest, note: &SignedNote) -> Option<Finding> {
    let said = note.checkpoint();
    let mut origin = said.origin.rsplitn(3, '/');
    let id = origin.next().and_then(|id| id.parse::<Uuid>().ok());
    let (kind, deployment) = (origin.next(), origin.next().unwrap_or_default());
    let what = if manifest.format != FORMAT {
        "another format"
    } else if kind != Some(KIND) {
        "its note is not of an evidence pack"
    } else if id.and_then(created) != Some(manifest.created) {
        "its time is not that of its note"
    } else if !manifest.files.is_sorted_by(|one, other| one.name < other.name) {
        "its files are not in the order of their names"
    } else {
        let id = id.unwrap_or_default();
        let keys = said.keys.clone();
        let made = pack_checkpoint(deployment, id, &manifest.files, keys);
        if made == *said {
            return None;
        }
        "its files are not those that its note has the root of"
    };
    Some(tampered(MANIFEST, what))
}

fn signature(manifest: &Manifest, note: &SignedNote, trust: &mut Trust) -> Option<Finding> {
    let judged = trust.judge(note);
    if judged != Judged::Unsigned && manifest.unsigned.is_some() {
        return Some(tampered(MANIFEST, "it is signed and says that it is not"));
    }
    let finding = match judged {
        Judged::Trusted => return None,
        Judged::Wrong => Finding::tampered("the signature is wrong"),
        Judged::Unvouched => Finding::tampered("it is signed by none of the keys that count"),
        Judged::Unsigned => {
            let why = manifest.unsigned.as_deref().unwrap_or("it does not say why");
            Finding::incomplete(format!("nobody has signed it: {why}"))
        }
    };
    Some(in_file(finding, MANIFEST))
}

fn tampered(name: &str, what: impl Into<String>) -> Finding {
    in_file(Finding::tampered(what), name)
}

fn in_file(finding: Finding, name: &str) -> Finding {
    Finding { file: Some(name.into()), ..finding }
}

fn in_order(mut files: Vec<PackFile>) -> Vec<PackFile> {
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    name.bytes().all(plain) && !name.starts_with('.') && !name.is_empty() && name != MANIFEST
}

/// When an id was made, to the millisecond.
fn created(id: Uuid) -> Option<Timestamp> {
    let (seconds, nanoseconds) =
        id.get_timestamp().filter(|_| id.get_version_num() == 7)?.to_unix();
    let milliseconds = i64::try_from(seconds).ok()?.checked_mul(1_000)?;
    Timestamp::from_millisecond(milliseconds.checked_add(i64::from(nanoseconds / 1_000_000))?).ok()
}

const FORMAT: &str = "tollgate-evidence/1";
/// The second part of the origin; no replica has this name.
const KIND: &str = "evidence";
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
