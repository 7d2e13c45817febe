//! One token in one directory: configuration, objects, PIN files, key register.
//!
//! ```text
//! DIR/softhsm2.conf   the module's configuration: name it in SOFTHSM2_CONF
//! DIR/tokens/         the objects
//! DIR/user-pin        mode 0600
//! DIR/so-pin          mode 0600
//! DIR/keys.toml       the key register for the worker
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hsm_adapter::ceremony::{Ceremony, init_token};
use hsm_adapter::register::{KeyProfile, KeyRegister, VendorTable};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::TokenToolError;
use crate::plan::{PlannedKey, PlannedValue};

/// A directory that holds, or will hold, a token.
#[derive(Debug, Clone)]
pub struct TokenDirectory {
    dir: PathBuf,
}

/// What became of one key.
#[derive(Debug, Serialize)]
pub struct KeyReport {
    /// Label and version.
    pub key: String,
    /// Its one role.
    pub role: String,
    /// `imported`, `generated` or `kept`.
    pub origin: &'static str,
    /// The check value, where the key has one.
    pub kcv: Option<String>,
    /// How it was compared: `token` (computed from the object), `value` (from the clear value).
    pub compared: Option<&'static str>,
}

impl TokenDirectory {
    /// Nothing is touched yet. The path is made absolute, since the configuration names it.
    ///
    /// # Errors
    /// When the current directory is gone.
    pub fn new(dir: &Path) -> Result<Self, TokenToolError> {
        Ok(Self { dir: std::path::absolute(dir).map_err(|error| file_error(dir, error))? })
    }

    /// `SOFTHSM2_CONF` of this token.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    /// The HSM PIN.
    #[must_use]
    pub fn pin_file(&self) -> PathBuf {
        self.dir.join("user-pin")
    }

    /// The key register.
    #[must_use]
    pub fn key_register(&self) -> PathBuf {
        self.dir.join("keys.toml")
    }

    /// Makes directory, configuration and PINs where they are missing. Must come before the module
    /// is loaded with `SOFTHSM2_CONF` set to [`configuration`](Self::configuration).
    ///
    /// # Errors
    /// The file system's.
    pub fn prepare(&self) -> Result<(), TokenToolError> {
        let tokens = self.dir.join("tokens");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&tokens)
            .map_err(|error| file_error(&tokens, error))?;
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        write_secret(&self.configuration(), &text, true)?;
        for path in [self.pin_file(), self.dir.join("so-pin")] {
            write_secret(&path, &random_pin()?, false)?;
        }
        Ok(())
    }

    /// Makes the token and every key of the plan that is not there yet, compares check values and
    /// writes the register. Runs again at any time. `SOFTHSM2_CONF` must be set.
    ///
    /// # Errors
    /// Names the key or file.
    pub fn fill(
        &self,
        module: &Path,
        label: &str,
        vendor: VendorTable,
        plan: &[PlannedKey],
    ) -> Result<Vec<KeyReport>, TokenToolError> {
        let profiles = plan.iter().map(|key| key.profile.clone()).collect();
        let register = KeyRegister::with_vendor(vendor, profiles).map_err(TokenToolError::Plan)?;
        let user_pin = self.read_pin("user-pin")?;
        let empty = fs::read_dir(self.dir.join("tokens"))
            .map_err(|error| file_error(&self.dir, error))?
            .next()
            .is_none();
        if empty {
            init_token(module, label, &self.read_pin("so-pin")?, &user_pin)?;
        }
        let ceremony = Ceremony::open(module, label, &user_pin)?;
        let mut report = Vec::new();
        for profile in register.iter() {
            // The register's own profile: it knows its vendor mechanism.
            let planned = plan.iter().find(|key| key.profile.name() == profile.name());
            let value = planned.and_then(|key| key.value.as_ref());
            report.push(make(&ceremony, profile, value)?);
        }
        let text = register.to_toml().map_err(|error| TokenToolError::Plan(error.to_string()))?;
        write_secret(&self.key_register(), &text, true)?;
        Ok(report)
    }

    /// Makes more keys on a token that is there, and adds them to its register, which keeps what it has:
    /// another version of a key, staged, say. Runs again at any time: a key that the register has with
    /// the same profile stays as it is, in whatever state it is by now. Workers that run learn of them
    /// with the next change of keys. `SOFTHSM2_CONF` must be set.
    ///
    /// # Errors
    /// Names the key or file.
    pub fn add(
        &self,
        module: &Path,
        label: &str,
        plan: &[PlannedKey],
    ) -> Result<Vec<KeyReport>, TokenToolError> {
        let path = self.key_register();
        // The lock of the workers, who change the register too.
        let lock = self.dir.join("keys.toml.lock");
        let held = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(|error| file_error(&lock, error))?;
        held.lock().map_err(|error| file_error(&lock, error))?;
        let before = KeyRegister::read(&path)?;
        let mut profiles: Vec<KeyProfile> = before.iter().cloned().collect();
        for PlannedKey { profile, .. } in plan {
            match before.version(&profile.label, profile.version) {
                None => profiles.push(profile.clone()),
                Some(there) => same(there, profile)?,
            }
        }
        let after = before.changed(before.change(), profiles).map_err(TokenToolError::Plan)?;
        let ceremony = Ceremony::open(module, label, &self.read_pin("user-pin")?)?;
        let mut report = Vec::new();
        for PlannedKey { profile, value } in plan {
            // The register's own profile: it knows its vendor mechanism.
            let profile = after.version(&profile.label, profile.version).unwrap_or(profile);
            report.push(make(&ceremony, profile, value.as_ref())?);
        }
        let text = after.to_toml().map_err(|error| TokenToolError::Plan(error.to_string()))?;
        let new = self.dir.join("keys.toml.new");
        write_secret(&new, &text, true)?;
        fs::rename(&new, &path).map_err(|error| file_error(&path, error))?;
        Ok(report)
    }

    fn read_pin(&self, name: &str) -> Result<SecretString, TokenToolError> {
        let path = self.dir.join(name);
        let text = fs::read_to_string(&path).map_err(|error| file_error(&path, error))?;
        Ok(SecretString::from(text.trim_end()))
    }
}

/// State and end move on after a key is made; nothing else does.
fn same(there: &KeyProfile, planned: &KeyProfile) -> Result<(), TokenToolError> {
    let (state, usable_until_s) = (there.state, there.usable_until_s);
    let vendor = there.vendor.clone();
    if *there == (KeyProfile { state, usable_until_s, vendor, ..planned.clone() }) {
        return Ok(());
    }
    Err(TokenToolError::Key { key: there.name(), why: "is there with another profile".into() })
}

fn make(
    ceremony: &Ceremony,
    profile: &KeyProfile,
    value: Option<&PlannedValue>,
) -> Result<KeyReport, TokenToolError> {
    let there = ceremony.exists(profile)?;
    let mut compared = None;
    if let (Some(value), Some(stated), Some(method)) = (value, profile.kcv, profile.kcv_method) {
        let found = ceremony.check_value(profile.algorithm, method, &value.0)?;
        compare(profile, &found.to_string(), &stated.to_string())?;
        compared = Some("value");
    }
    let origin = match value {
        _ if there => "kept",
        Some(value) => {
            ceremony.danger_import_clear_key(profile, &value.0)?;
            "imported"
        }
        None => {
            ceremony.generate(profile)?;
            "generated"
        }
    };
    if let (Some(found), Some(stated)) = (ceremony.check_value_on_token(profile)?, profile.kcv) {
        compare(profile, &found.to_string(), &stated.to_string())?;
        compared = Some("token");
    }
    Ok(KeyReport {
        key: format!("{}@{}", profile.label, profile.version),
        role: profile.role.to_string(),
        origin,
        kcv: profile.kcv.map(|kcv| kcv.to_string()),
        compared,
    })
}

fn compare(profile: &KeyProfile, found: &str, stated: &str) -> Result<(), TokenToolError> {
    if found == stated {
        return Ok(());
    }
    let key = format!("{}@{}", profile.label, profile.version);
    Err(TokenToolError::CheckValue { key, found: found.into(), stated: stated.into() })
}

/// The SoftHSM module of this machine: where Debian, Fedora and Homebrew put it.
#[must_use]
pub fn find_module() -> Option<PathBuf> {
    [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/lib64/softhsm/libsofthsm2.so",
        "/opt/homebrew/lib/softhsm/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
    ]
    .into_iter()
    .map(PathBuf::from)
    .find(|path| path.exists())
}

/// Eight random digits.
fn random_pin() -> Result<SecretString, TokenToolError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| TokenToolError::Plan(error.to_string()))?;
    let pin: u64 = u64::from_le_bytes(bytes) % 100_000_000;
    Ok(SecretString::from(format!("{pin:08}")))
}

trait Content {
    fn bytes(&self) -> &[u8];
}

impl Content for String {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Content for SecretString {
    fn bytes(&self) -> &[u8] {
        self.expose_secret().as_bytes()
    }
}

/// Mode 0600. An existing file is kept unless `replace`.
fn write_secret(path: &Path, text: &impl Content, replace: bool) -> Result<(), TokenToolError> {
    if path.exists() && !replace {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| file_error(path, error))?;
    file.write_all(text.bytes()).map_err(|error| file_error(path, error))
}

fn file_error(path: &Path, error: std::io::Error) -> TokenToolError {
    TokenToolError::File { path: path.display().to_string(), why: error.to_string() }
}
