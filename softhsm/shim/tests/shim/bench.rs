//! A token in a directory of its own, and a process of its own: a module reads its environment once
//! in the life of a process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use serde_json::Value;

const DIR: &str = "SOFTHSM_SHIM_TEST_DIR";
const PIN: &str = "12345678";

/// A logged-in session on a token behind the shim.
pub(crate) struct Bench {
    pub(crate) session: Session,
    dir: PathBuf,
    context: Pkcs11,
    slot: Slot,
}

/// Runs `body` of the test with this path in a process of its own.
#[track_caller]
pub(crate) fn alone(test: &str, body: impl FnOnce(&Bench)) {
    if let Some(status) = child(test, body) {
        assert!(status.success(), "{test}: {status}");
    }
}

/// How the process of the test ended; `None` inside it.
#[track_caller]
pub(crate) fn child(test: &str, body: impl FnOnce(&Bench)) -> Option<ExitStatus> {
    if let Some(dir) = std::env::var_os(DIR) {
        body(&Bench::open(Path::new(&dir)));
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("tokens")).unwrap();
    let configuration = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        path("tokens").display()
    );
    std::fs::write(path("softhsm2.conf"), configuration).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(DIR, dir.path())
        .env("SOFTHSM2_CONF", path("softhsm2.conf"))
        .env("TOLLGATE_SHIM_TARGET", softhsm())
        .env("TOLLGATE_SHIM_CONTROL", path("control"))
        .env("TOLLGATE_SHIM_COUNTS", path("counts"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if let Some(status) = process.try_wait().unwrap() {
            return Some(status);
        }
        pause(100);
    }
    process.kill().unwrap();
    process.wait().unwrap();
    panic!("{test} does not end");
}

#[expect(clippy::disallowed_methods, reason = "there is no runtime here whose time to pause")]
pub(crate) fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// The usual places.
fn softhsm() -> PathBuf {
    let places = ["/usr/lib/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/lib64/softhsm"];
    let mut paths = places.iter().map(|place| Path::new(place).join("libsofthsm2.so"));
    paths.find(|path| path.exists()).expect("SoftHSM is installed: softhsm/install.sh")
}

/// Beside this program, or one folder up.
fn shim() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let mut paths = this.ancestors().skip(1).take(2).map(|dir| dir.join("libsofthsm_shim.so"));
    paths.find(|path| path.is_file()).expect("the shim is built: cargo build --workspace")
}

impl Bench {
    fn open(dir: &Path) -> Self {
        let context = Pkcs11::new(shim()).unwrap();
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let slots = context.get_slots_with_token().unwrap();
        let pin = AuthPin::new(PIN.into());
        let is_made = |slot: &_| context.get_token_info(*slot).unwrap().token_initialized();
        let slot = match slots.iter().copied().find(is_made) {
            Some(slot) => slot,
            None => {
                context.init_token(slots[0], &pin, "shim").unwrap();
                let slot = context.get_slots_with_token().unwrap();
                let slot = slot.into_iter().find(is_made).unwrap();
                let officer = context.open_rw_session(slot).unwrap();
                officer.login(UserType::So, Some(&pin)).unwrap();
                officer.init_pin(&pin).unwrap();
                slot
            }
        };
        let session = context.open_rw_session(slot).unwrap();
        session.login(UserType::User, Some(&pin)).unwrap();
        Self { session, dir: dir.to_owned(), context, slot }
    }

    /// The same token in another process, which runs the body of this test.
    pub(crate) fn again(&self, test: &str) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let status = command
            .args([test, "--exact", "--nocapture"])
            .env("SOFTHSM_SHIM_TEST_AGAIN", "yes")
            .status()
            .unwrap();
        assert!(status.success(), "{test} again: {status}");
    }

    pub(crate) fn is_again() -> bool {
        std::env::var_os("SOFTHSM_SHIM_TEST_AGAIN").is_some()
    }

    /// Another session of this process.
    pub(crate) fn second_session(&self) -> Result<Session, Error> {
        self.context.open_rw_session(self.slot)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the control file; every call from now on sees it.
    pub(crate) fn control(&self, text: &str) {
        std::fs::write(self.dir.join("new"), text).unwrap();
        std::fs::rename(self.dir.join("new"), self.dir.join("control")).unwrap();
        pause(10);
    }

    /// How often this process called each function.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let file = self.dir.join(format!("counts.{}", std::process::id()));
        let bytes = std::fs::read(file).unwrap();
        let entry = |entry: &[u8]| {
            let name = entry[..24].split(|byte| *byte == 0).next().unwrap();
            let count = u64::from_ne_bytes(entry[24..].try_into().unwrap());
            (String::from_utf8(name.to_vec()).unwrap(), count)
        };
        bytes.chunks_exact(32).map(entry).collect()
    }

    /// A session key of this type: private, sensitive, and of the attributes that are given.
    pub(crate) fn key(&self, kind: KeyType, value: &[u8], more: &[Attribute]) -> ObjectHandle {
        self.try_key(kind, value, more).unwrap()
    }

    pub(crate) fn try_key(
        &self,
        kind: KeyType,
        value: &[u8],
        more: &[Attribute],
    ) -> Result<ObjectHandle, Error> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(kind),
            Attribute::Value(value.to_vec()),
            Attribute::Private(true),
            Attribute::Sensitive(true),
        ];
        let has = |kind| more.iter().any(|one| one.attribute_type() == kind);
        let uses: [fn(bool) -> Attribute; 7] = [
            Attribute::Encrypt,
            Attribute::Decrypt,
            Attribute::Sign,
            Attribute::Verify,
            Attribute::Wrap,
            Attribute::Unwrap,
            Attribute::Derive,
        ];
        for attribute in uses.map(|usage| usage(false)) {
            if !has(attribute.attribute_type()) {
                template.push(attribute);
            }
        }
        if !more.iter().any(|one| matches!(one, Attribute::Token(_))) {
            template.push(Attribute::Token(false));
        }
        template.extend_from_slice(more);
        self.session.create_object(&template)
    }

    /// A TDES key K1 K2 K1 or an AES key, as long as the value says.
    pub(crate) fn cipher_key(&self, value: &[u8], tdes: bool, more: &[Attribute]) -> ObjectHandle {
        match (tdes, value.len()) {
            (true, 16) => self.key(KeyType::DES3, &[value, &value[..8]].concat(), more),
            (true, _) => self.key(KeyType::DES3, value, more),
            (false, _) => self.key(KeyType::AES, value, more),
        }
    }
}

/// The code of a refusal.
#[track_caller]
pub(crate) fn code<T>(outcome: Result<T, Error>) -> RvError {
    match outcome {
        Err(Error::Pkcs11(rv, _)) => rv,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was not refused"),
    }
}

/// A mechanism by number, with its parameter.
pub(crate) fn numbered<T>(number: u64, parameter: Option<&T>) -> Mechanism<'_> {
    Mechanism::VendorDefined(VendorDefinedMechanism::new(mechanism_type(number), parameter))
}

/// The mechanism type with this number.
pub(crate) fn mechanism_type(number: u64) -> MechanismType {
    // SAFETY: `MechanismType` is `repr(transparent)` over the number, and any number is one.
    unsafe { std::mem::transmute::<u64, MechanismType>(number) }
}

/// The object of a PIN: eight or sixteen bytes that can be wrapped and nothing else.
pub(crate) fn pin_object(length: Option<u64>) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
    ];
    template.extend(length.map(|length| Attribute::ValueLen(length.into())));
    template
}

/// The vectors of a file.
pub(crate) fn vectors(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors").join(file);
    let root: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    root["vectors"].as_array().unwrap().clone()
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

pub(crate) fn xor(left: &[u8], right: &[u8]) -> Vec<u8> {
    left.iter().zip(right).map(|(left, right)| left ^ right).collect()
}

/// What a PAN lends to a block: for format 4 sixteen bytes, else eight.
pub(crate) fn pan_field(format: u64, pan: &str) -> Vec<u8> {
    let text = match format {
        4 => format!("{:X}{pan:0<31}", pan.len() - 12),
        1 => "0".repeat(16),
        _ => format!("0000{}", &pan[pan.len() - 13..pan.len() - 1]),
    };
    hex::decode(text).unwrap()
}
