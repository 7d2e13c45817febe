//! The HSM links of a world: a token and a folder for the files of its shim each.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use softhsm::{PlannedKey, TokenDirectory};

use super::{module, program, shim};

/// One of the links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The one of every world.
    Primary,
    /// The one that a world has when it is wanted.
    Backup,
}

impl Link {
    /// The label of its token.
    #[must_use]
    pub fn token_label(self) -> &'static str {
        match self {
            Self::Primary => "tollgate-demo",
            Self::Backup => "tollgate-backup",
        }
    }

    /// The folder of its token.
    #[must_use]
    pub fn token(self, dir: &Path) -> PathBuf {
        match self {
            Self::Primary => dir.join("token"),
            Self::Backup => dir.join("token-backup"),
        }
    }

    /// Where its shim is controlled, and counts.
    pub(super) fn shim_folder(self, dir: &Path) -> PathBuf {
        match self {
            Self::Primary => dir.to_owned(),
            Self::Backup => dir.join("backup"),
        }
    }

    pub(super) fn token_directory(self, dir: &Path) -> anyhow::Result<TokenDirectory> {
        Ok(TokenDirectory::new(&self.token(dir))?)
    }

    /// Whether the process with this id was started as a worker of it.
    pub(super) fn is_of(self, worker: u32) -> bool {
        let command = std::fs::read(format!("/proc/{worker}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word == self.token_label().as_bytes())
    }
}

/// Makes the token of a link with the planned keys.
pub(super) fn make_token(
    dir: &Path,
    link: Link,
    plan: &[PlannedKey],
    behind_shim: bool,
    vendor: &str,
) -> anyhow::Result<()> {
    let file = dir.join("token-plan.json");
    std::fs::write(&file, serde_json::to_vec(plan)?)?;
    std::fs::create_dir_all(link.shim_folder(dir))?;
    let mut command = std::process::Command::new(program("tollgate-token")?);
    command.args(["init", "--label", link.token_label(), "--dir"]).arg(link.token(dir));
    let table = dir.join("vendor.toml");
    std::fs::write(&table, vendor)?;
    command.arg("--vendor").arg(&table);
    command.arg("--plan").arg(&file).env_remove("SOFTHSM2_CONF");
    if behind_shim {
        // Keys that are made through the shim can do what it emulates.
        command.arg("--module").arg(shim::path()?).env("TOLLGATE_SHIM_TARGET", module()?);
    }
    let output = command.output().context("running tollgate-token")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tollgate-token: {text}");
    std::fs::remove_file(&file)?;
    Ok(())
}
