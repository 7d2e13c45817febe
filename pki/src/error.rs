//! Why the authority did not do what it was asked to.

use std::path::PathBuf;

/// Names the thing, the place and the remedy; the cause follows as `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum PkiError {
    #[error("{} already holds an authority: open that one, or choose an empty directory", dir.display())]
    Exists { dir: PathBuf },
    #[error("{} holds no authority (there is no ca.key): create one there first", dir.display())]
    Missing { dir: PathBuf },
    #[error("could not {doing} {}: check that it exists and that this user may", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{} is not what this program writes: restore it, or create the authority anew", path.display())]
    Unreadable { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the authority's common name {name:?} is refused: give 1 to 64 characters")]
    CommonName { name: String },
    #[error(
        "the certificate name {name:?} is refused: give 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', \
         a letter or digit first, and not \"ca\""
    )]
    Name { name: String },
    #[error("the certificate {name:?} is refused: {why}")]
    Leaf { name: String, why: &'static str },
    #[error(
        "the times of a revocation list are refused: it must end after it begins, and begin after 1970"
    )]
    CrlTimes,
    #[error(
        "{} lists no serial number and no unexpired certificate named {wanted:?}: see its index.json",
        dir.display()
    )]
    Unknown { dir: PathBuf, wanted: String },
    #[error("{} lists {most} unexpired certificates, the most it holds: create a new authority", dir.display())]
    Full { dir: PathBuf, most: usize },
    #[error("could not {doing} {name:?}")]
    Certificate { doing: &'static str, name: String, source: rcgen::Error },
    #[error("the operating system gave no random serial number")]
    Random { source: getrandom::Error },
}
