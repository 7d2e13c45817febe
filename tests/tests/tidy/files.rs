//! The repository's files, as the tests see them.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file.
#[derive(Debug)]
pub(crate) struct File {
    /// From the root, with `/`.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// One file of the repository.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The paths of all files below a folder of the root, in order; what builds and runs make is left
/// out.
pub(crate) fn paths(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                if !MADE.contains(&name.as_str()) {
                    open.push(entry.path());
                }
            } else {
                let path = entry.path();
                let path = path.strip_prefix(root()).unwrap().to_str().unwrap();
                found.push(path.trim_start_matches("./").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The text files below a folder of the root whose names end so.
pub(crate) fn texts(folder: &str, endings: &[&str]) -> Vec<File> {
    let mut paths = paths(folder);
    paths.retain(|path| endings.iter().any(|ending| path.ends_with(ending)));
    assert!(!paths.is_empty(), "no {endings:?} below {folder:?}: the check would check nothing");
    paths.into_iter().map(|path| File { text: read(&path), path }).collect()
}

/// The packages of the workspace, by folder.
pub(crate) fn packages() -> Vec<String> {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

/// Fails with every finding, one a line.
#[track_caller]
pub(crate) fn none(findings: &[String]) {
    assert!(findings.is_empty(), "{} found:\n{}", findings.len(), findings.join("\n"));
}

const MADE: [&str; 3] = [".git", "target", "var"];
