//! A SoftHSM token for one test. SoftHSM reads the name of its configuration once for each process,
//! so the test runs itself again with a token of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::types::AuthPin;
use secrecy::SecretString;

use super::token::Token;
use crate::ceremony::{Ceremony, init_token};

/// In the child: the directory that it may use.
const CHILD: &str = "TOLLGATE_TEST_TOKEN";
const PIN: &str = "87654321";
const LABEL: &str = "own";

/// Where distributions put SoftHSM.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
];

/// Runs `story` in a process with an empty token, and in a directory that is removed after it. `test`
/// is the path of the test that calls.
pub(super) fn with_own_token(test: &str, story: impl FnOnce(&Path)) {
    if let Some(home) = std::env::var_os(CHILD) {
        let pin = || SecretString::from(PIN);
        init_token(&module(), LABEL, &pin(), &pin()).unwrap();
        return story(Path::new(&home));
    }
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let conf = home.path().join("softhsm2.conf");
    std::fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).unwrap();

    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, home.path())
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .unwrap();

    let told = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && told.contains("1 passed"), "{told}\n{errors}");
}

pub(super) fn open() -> Token {
    Token::open(&module(), LABEL, AuthPin::new(PIN.into())).unwrap()
}

/// Opens the module in this process; a token is opened after it.
pub(super) fn ceremony() -> Ceremony {
    Ceremony::open(&module(), LABEL, &SecretString::from(PIN)).unwrap()
}

fn module() -> PathBuf {
    let module = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
    module.expect("run softhsm/install.sh")
}
