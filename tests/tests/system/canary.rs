//! Finds a secret in whatever form a leak could take: raw bytes, hex, base64, packed digits.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Secrets to look for.
#[derive(Debug, Default)]
pub(crate) struct Canaries {
    forms: Vec<Form>,
    /// Places in `forms`, by the first bytes.
    by_start: HashMap<[u8; START], Vec<usize>>,
}

/// One secret in one form.
#[derive(Debug)]
pub(crate) struct Form {
    /// What it is, for the message: `pan as packed digits`.
    pub(crate) name: String,
    /// How it would look.
    pub(crate) bytes: Vec<u8>,
}

const START: usize = 5;

impl Canaries {
    /// A PAN or a PIN of enough digits not to occur by chance.
    pub(crate) fn digits(mut self, name: &str, digits: &str) -> Self {
        assert!(digits.len() >= 12, "{name}: {} digits occur by chance", digits.len());
        self.add(name, "packed digits", packed(digits));
        self.add(name, "packed digits, half a byte on", packed(&digits[1..]));
        self.bytes(name, digits.as_bytes())
    }

    /// A key, a PIN block, a MAC.
    pub(crate) fn bytes(mut self, name: &str, bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 8, "{name}: {} bytes occur by chance", bytes.len());
        self.add(name, "bytes", bytes.to_vec());
        self.add(name, "hex", hex::encode(bytes).into_bytes());
        self.add(name, "upper-case hex", hex::encode_upper(bytes).into_bytes());
        for before in 0..3 {
            let text = base64_within(before, bytes);
            self.add(name, "base64", text.clone().into_bytes());
            let url = text.replace('+', "-").replace('/', "_");
            if url != text {
                self.add(name, "base64url", url.into_bytes());
            }
        }
        self
    }

    fn add(&mut self, name: &str, form: &str, bytes: Vec<u8>) {
        let start = *bytes.first_chunk().unwrap();
        self.by_start.entry(start).or_default().push(self.forms.len());
        self.forms.push(Form { name: format!("{name} as {form}"), bytes });
    }

    /// Every form of every secret.
    pub(crate) fn forms(&self) -> &[Form] {
        &self.forms
    }

    /// The names of what stands in these bytes.
    pub(crate) fn found_in(&self, bytes: &[u8]) -> Vec<&str> {
        let mut found = Vec::new();
        for (at, start) in bytes.array_windows::<START>().enumerate() {
            for form in self.by_start.get(start).into_iter().flatten() {
                if bytes[at..].starts_with(&self.forms[*form].bytes) {
                    found.push(self.forms[*form].name.as_str());
                }
            }
        }
        found.dedup();
        found
    }

    /// What stands in the files of a world, by file; token, certificates and the biller's own
    /// journal are not looked at: keys and payments belong there.
    pub(crate) fn found_under(&self, world: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for path in files_under(world) {
            let bytes = std::fs::read(&path).unwrap();
            let names = self.found_in(&bytes);
            found.extend(names.iter().map(|name| format!("{}: {name}", path.display())));
        }
        found
    }
}

/// What the gateway writes: logs, audit, database with its write-ahead log.
pub(crate) fn files_under(world: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![world.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            if name == "token" || name == "pki" || name == "billing.journal" {
                continue;
            }
            if entry.file_type().unwrap().is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files
}

/// Two digits a byte; a last odd one is left out.
fn packed(digits: &str) -> Vec<u8> {
    hex::decode(&digits[..digits.len() / 2 * 2]).unwrap()
}

/// The characters that stand for `bytes` alone, in base64 of a text in which `before` bytes (modulo
/// three) come before them.
fn base64_within(before: usize, bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = |at: usize| {
        let byte = at.checked_sub(before * 8).and_then(|at| bytes.get(at / 8).map(|b| (b, at % 8)));
        byte.map_or(0, |(byte, at)| usize::from(byte >> (7 - at) & 1))
    };
    let whole = (before * 8).div_ceil(6)..(before + bytes.len()) * 8 / 6;
    let character = |at: usize| {
        let value = (0..6).fold(0, |value, step| value << 1 | bit(at * 6 + step));
        char::from(ALPHABET[value])
    };
    whole.map(character).collect()
}

#[test]
fn every_form_of_a_planted_secret_is_found_and_nothing_else() {
    let secret = [0xFB, 0xEF, 0xBE, 0x01, 0x02, 0x03, 0x04, 0x05, 0xFF];
    let canaries = Canaries::default().digits("pan", "4761737909457820").bytes("key", &secret);

    for form in canaries.forms() {
        let planted = [b"{\"x\":\"", form.bytes.as_slice(), b"\"}\n"].concat();
        assert!(canaries.found_in(&planted).contains(&form.name.as_str()), "{}", form.name);
    }
    // RFC 4648: `foobar` is Zm9vYmFy, and its inner `ooba` is what no neighbour changes.
    assert_eq!(base64_within(0, b"foobar"), "Zm9vYmFy");
    assert_eq!(base64_within(1, b"oobar"), "9vYmFy");
    assert_eq!(base64_within(2, b"obar"), "vYmFy");
    assert!(canaries.found_in(b"476173******7820 4761737909457821").is_empty());
}
