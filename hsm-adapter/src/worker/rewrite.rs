//! The register file, rewritten: by one process at a time, whole or not at all.
//!
//! `keys.toml.lock` beside it is locked while a change is made; the new text goes to
//! `keys.toml.new`, to the disk, and takes the old one's name. A worker that is killed in between
//! leaves the old file whole and the lock free. Comments in a file that a person wrote are lost.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::chain;
use crate::error::{CkrClass, Failure};
use crate::register::KeyRegister;

/// The right to change the register, until it is dropped.
pub(super) struct RegisterLock<'p> {
    path: &'p Path,
    _lock: File,
}

/// How often a lock that another worker holds is tried, 10 ms apart.
const LOCK_TRIES: u32 = 200;

impl<'p> RegisterLock<'p> {
    /// Waits two seconds at most. Errors: transient while another worker changes the register.
    pub(super) fn take(path: &'p Path) -> Result<Self, Failure> {
        let beside = beside(path, "lock");
        let lock = open(&beside, false).map_err(|error| trouble(&beside, &error))?;
        for _ in 0..LOCK_TRIES {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { path, _lock: lock }),
                Err(Errno::WOULDBLOCK | Errno::INTR) => rest(),
                Err(error) => return Err(trouble(&beside, &error.into())),
            }
        }
        Err(Failure::Token {
            function: "key register".into(),
            code: format!("{} is locked by another worker", beside.display()),
            class: CkrClass::Transient,
        })
    }

    pub(super) fn read(&self) -> Result<KeyRegister, Failure> {
        KeyRegister::read(self.path).map_err(|error| Failure::Token {
            function: "key register".into(),
            code: chain(&error),
            class: CkrClass::Configuration,
        })
    }

    /// Errors: then the old file is there as it was.
    pub(super) fn write(&self, register: &KeyRegister) -> Result<(), Failure> {
        let text = register.to_toml().map_err(|error| Failure::Token {
            function: "key register".into(),
            code: error.to_string(),
            class: CkrClass::Configuration,
        })?;
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = File::open(directory).map_err(|error| trouble(directory, &error))?;
        let new = beside(self.path, "new");
        let written = (|| {
            let mut file = open(&new, true)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(HEADING.as_bytes())?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, self.path)
        })();
        written.map_err(|error| trouble(self.path, &error))?;
        // The change has happened: what is left to doubt is whether it outlives a power failure.
        if let Err(error) = directory.sync_all() {
            tracing::error!(%error, "the directory of the key register is not on the disk");
        }
        Ok(())
    }
}

const HEADING: &str = "# The key register. tollgate-hsm rewrites it when keys are imported or change \
                       their state: comments are lost then.\n";

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn open(path: &Path, truncate: bool) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(truncate).mode(0o600).open(path)
}

fn trouble(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Token {
        function: "key register".into(),
        code: format!("{}: {error}", path.display()),
        class: CkrClass::Configuration,
    }
}

#[expect(clippy::disallowed_methods, reason = "a session thread: no runtime to hold up")]
fn rest() {
    std::thread::sleep(Duration::from_millis(10));
}
