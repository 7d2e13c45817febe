//! The worker process: it alone holds the token's login, and a clear PIN can be in it alone.
//!
//! Start: harden, read register and HSM PIN, load the module, log in, find and lint the keys, prove
//! every operation by known answers, say hello. Then orders, until the gateway hangs up. The
//! module is never finalised: the process ends.

pub(crate) mod attributes;
mod change;
mod hardening;
pub(crate) mod keys;
mod known_answers;
mod lint;
#[cfg(test)]
mod own_token;
pub(crate) mod passing;
mod perform;
#[cfg(test)]
mod perform_tests;
mod probes;
pub(crate) mod raw;
pub(crate) mod recipes;
mod rewrite;
pub(crate) mod self_test;
mod serve;
#[cfg(test)]
mod signing_tests;
pub(crate) mod token;
pub(crate) mod traits;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use cryptoki::types::AuthPin;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use self::keys::KeyTrouble;
pub use self::probes::probe_names;
pub use self::raw::mechanism_type;
pub use self::self_test::SelfTestError;
pub use self::token::OpenError;
use crate::error::{CkrClass, Failure, TokenError, VendorCode, set_vendor_codes};
use crate::protocol::{self, Hello, ProbeOutcome, ProbeRow, Recipe};
use crate::register::{KeyRegister, RegisterError};

/// What the worker is told on its command line. The HSM PIN is never among it.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "tollgate-hsm", version, about = "Runs PIN and MAC operations on a PKCS#11 token")]
pub struct Options {
    /// The PKCS#11 module, by absolute path.
    #[arg(long)]
    pub module: PathBuf,
    /// The token's label.
    #[arg(long)]
    pub token_label: String,
    /// A file with the HSM PIN, mode 0600.
    #[arg(long)]
    pub pin_file: PathBuf,
    /// The key register.
    #[arg(long)]
    pub keys: PathBuf,
    /// Token sessions, one thread each.
    #[arg(long, default_value_t = 1)]
    pub sessions: u16,
    /// What a return code of the token's vendor means, as 0x80000001=transient; again for each code.
    #[arg(long = "vendor-code")]
    pub vendor_codes: Vec<VendorCode>,
    /// The module's SHA-256, hex: a module with another is not loaded.
    #[arg(long)]
    pub module_sha256: Option<String>,
    /// Whether a token that does what it must not is refused.
    #[arg(long, value_enum, default_value_t = Probes::Report)]
    pub probes: Probes,
    /// A negative probe that may fail all the same, by its name. May be repeated.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(probe_names()))]
    pub accept_probe: Vec<String>,
    /// Whether clear PINs may be in this process.
    #[arg(long, value_enum, default_value = "allowed")]
    pub in_worker: InWorker,
    /// Prove operations and keys, print what was proved, and exit.
    #[arg(long)]
    pub check: bool,
}

/// What a negative probe that succeeds leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Probes {
    /// A row of the report.
    Report,
    /// No start, unless the probe is accepted by its name.
    Enforce,
}

impl Probes {
    /// As the command line says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Enforce => "enforce",
        }
    }
}

/// Whether keys may have mode `in_worker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InWorker {
    /// They may.
    Allowed,
    /// A register with such a PIN key is refused.
    Refused,
}

/// The first frame: ready, or why not.
pub type Greeting = Result<Hello, StartFailure>;

/// Why a worker did not become ready.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct StartFailure {
    /// What to tell a person.
    pub why: String,
    /// Whether another start can help.
    pub kind: StartFailureKind,
}

/// What must happen before a worker can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum StartFailureKind {
    /// Time: the next start may succeed.
    Passing,
    /// A person at the token: a wrong HSM PIN, tried again, would lock it.
    Latched,
    /// A person at the configuration: the token is well, and cannot or may not do what it asks.
    Refused,
}

/// Runs until the gateway hangs up. Standard input is the socket.
///
/// # Errors
/// Why the worker did not start, after it has told the gateway.
pub fn run(options: &Options) -> Result<(), WorkerError> {
    if options.check {
        let (token, keys, hello) = start(options)?;
        println!("{}\nmodule {}", hello.token, hello.module_sha256);
        for Recipe { operation, mode, calls } in hello.recipes {
            println!("proved  {operation}  {mode}  {calls}");
        }
        let session = token.session().map_err(OpenError::Token)?;
        for ProbeRow { probe, outcome, detail, .. } in
            probes::run(&session, &keys.register().modes()).map_err(OpenError::Token)?
        {
            println!("probe  {probe}  {}  {detail}", outcome.name());
        }
        return Ok(());
    }
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(WorkerError::Socket)?;
    let mut socket = UnixStream::from(socket);
    match start(options) {
        Ok((token, keys, hello)) => {
            greet(&mut socket, &Ok(hello))?;
            serve::serve(token, keys, socket, options.sessions)
        }
        Err(error) => {
            let failure = StartFailure { why: chain(&error), kind: error.kind() };
            // A gateway that has gone away needs no explanation.
            let _ = greet(&mut socket, &Err(failure));
            Err(error)
        }
    }
}

fn start(options: &Options) -> Result<(token::Token, keys::KeyTable, Hello), WorkerError> {
    hardening::harden()?;
    set_vendor_codes(&options.vendor_codes);
    let register = KeyRegister::read(&options.keys)?;
    if let (InWorker::Refused, Some(key)) = (options.in_worker, register.first_in_worker()) {
        return Err(WorkerError::InWorkerRefused { key: key.name() });
    }
    let pin = read_pin(&options.pin_file)?;
    let module_sha256 = digest(&options.module, options.module_sha256.as_deref())?;
    let token = token::Token::open(&options.module, &options.token_label, pin)?;
    let session = token.session().map_err(OpenError::Token)?;
    let keys = keys::KeyTable::load(&options.keys, register, &session)?
        .refusing_in_worker(options.in_worker == InWorker::Refused);
    lint::refuse_readers(&session, &keys.register())?;
    let recipes = self_test::all(&session, &keys)?;
    refuse_probes(options, &session, &keys)?;
    let hello = Hello {
        version: protocol::VERSION,
        sessions: options.sessions,
        token: token.description.clone(),
        module_sha256,
        recipes,
    };
    // The login lives as long as one session does: this one is never closed.
    std::mem::forget(session);
    Ok((token, keys, hello))
}

/// SHA-256 of the module's file, lower-case hex. Before it is loaded: loading it runs it.
fn digest(module: &Path, pinned: Option<&str>) -> Result<String, WorkerError> {
    let trouble = |why: String| WorkerError::Module { module: module.display().to_string(), why };
    let file = std::fs::read(module).map_err(|error| trouble(error.to_string()))?;
    let found = hex::encode(Sha256::digest(file));
    match pinned {
        Some(pinned) if !pinned.eq_ignore_ascii_case(&found) => Err(trouble(format!(
            "its SHA-256 is {found}, not {pinned} as configured; it was not loaded"
        ))),
        Some(_) | None => Ok(found),
    }
}

/// The token must refuse what the probes try, where that is enforced.
fn refuse_probes(
    options: &Options,
    session: &token::TokenSession,
    keys: &keys::KeyTable,
) -> Result<(), WorkerError> {
    if options.probes == Probes::Report {
        return Ok(());
    }
    let rows = probes::run(session, &keys.register().modes())
        .map_err(|error| WorkerError::Keys(error.into()))?;
    let red = |row: &ProbeRow| {
        row.outcome == ProbeOutcome::Done && !options.accept_probe.contains(&row.probe)
    };
    match rows.into_iter().find(red) {
        Some(ProbeRow { probe, about, detail, .. }) => {
            Err(WorkerError::Probe { probe, about, detail })
        }
        None => Ok(()),
    }
}

fn read_pin(path: &Path) -> Result<AuthPin, WorkerError> {
    let trouble = |why: String| WorkerError::PinFile { path: path.display().to_string(), why };
    let mut file = File::open(path).map_err(|error| trouble(error.to_string()))?;
    let mode = file.metadata().map_err(|error| trouble(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        let remedy = format!("chmod 600 {}", path.display());
        return Err(trouble(format!(
            "its group or others may use it ({:o}); {remedy}",
            mode & 0o777
        )));
    }
    // One read into room enough: a buffer that grows leaves pieces of the PIN behind.
    let mut text = Zeroizing::new(String::with_capacity(4096));
    (&mut file).take(4096).read_to_string(&mut text).map_err(|error| trouble(error.to_string()))?;
    let pin = text.trim_end_matches(['\r', '\n']);
    if pin.is_empty() {
        return Err(trouble("it is empty".into()));
    }
    Ok(AuthPin::new(pin.into()))
}

fn greet(socket: &mut UnixStream, greeting: &Greeting) -> Result<(), WorkerError> {
    let mut frame = Vec::new();
    protocol::append_frame(&mut frame, greeting)
        .map_err(|error| WorkerError::Socket(std::io::Error::other(error)))?;
    socket.write_all(&frame).map_err(WorkerError::Socket)
}

/// An error with all of its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum WorkerError {
    #[error(transparent)]
    Hardening(#[from] hardening::HardeningError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("the HSM PIN file {path}: {why}")]
    PinFile { path: String, why: String },
    #[error("the PKCS#11 module {module}: {why}")]
    Module { module: String, why: String },
    #[error(
        "the token does what it must not: {about}: {detail}. Mend it, or accept the probe \
         {probe:?} as a risk in hsm.accepted_probes"
    )]
    Probe { probe: String, about: String, detail: String },
    #[error("opening the token")]
    Open(#[from] OpenError),
    #[error(
        "key {key} has mode in_worker: clear PINs would be in worker memory, which is refused in \
         production; give it mode in_token or vendor in the key register, or name in \
         hsm.in_worker_waiver who allows it, why, and until when"
    )]
    InWorkerRefused { key: String },
    #[error(transparent)]
    Keys(#[from] KeyTrouble),
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    #[error("the socket to the gateway")]
    Socket(#[source] std::io::Error),
}

impl WorkerError {
    /// Whether a person must act before another start can succeed, and where.
    fn kind(&self) -> StartFailureKind {
        let token = |error: &TokenError| match error.class() {
            CkrClass::Permanent => StartFailureKind::Latched,
            CkrClass::Transient
            | CkrClass::Refind
            | CkrClass::Relogin
            | CkrClass::Restart
            | CkrClass::Configuration
            | CkrClass::Caller
            | CkrClass::Answer
            | CkrClass::Benign => StartFailureKind::Passing,
        };
        match self {
            Self::Open(OpenError::Token(error)) | Self::Keys(KeyTrouble::Token(error)) => {
                token(error)
            }
            Self::InWorkerRefused { .. } | Self::Module { .. } | Self::Probe { .. } => {
                StartFailureKind::Refused
            }
            Self::SelfTest(
                SelfTestError::Failed {
                    why: Failure::Token { class: CkrClass::Permanent, .. },
                    ..
                }
                | SelfTestError::Signer {
                    why: Failure::Token { class: CkrClass::Permanent, .. },
                    ..
                },
            ) => StartFailureKind::Latched,
            Self::SelfTest(error) if error.is_final() => StartFailureKind::Refused,
            // A file or a key that a person puts right is taken at the next start.
            Self::Open(OpenError::Load { .. } | OpenError::NoToken { .. })
            | Self::Hardening(_)
            | Self::Register(_)
            | Self::PinFile { .. }
            | Self::Keys(_)
            | Self::SelfTest(_)
            | Self::Socket(_) => StartFailureKind::Passing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_pin_file_is_for_its_owner_alone() {
        let path = std::env::temp_dir().join(format!("tollgate-pin-{}", std::process::id()));
        std::fs::write(&path, "1234\n").unwrap();
        let read_as = |mode| {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read_pin(&path)
        };

        let open = [0o640, 0o604, 0o660].map(|mode| read_as(mode).map(drop));
        let good = [0o600, 0o400].map(|mode| read_as(mode).is_ok());
        std::fs::remove_file(&path).unwrap();

        for refused in open {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
        assert_eq!(good, [true, true]);
    }
}
