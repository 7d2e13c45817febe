//! The form of a checkpoint: C2SP tlog-checkpoint, of which the text under a signed note is one.

use crate::error::Failure;

/// A text in the form of a checkpoint: origin, tree size, root hash, and lines of whatever else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckpointText<'t>(&'t [u8]);

/// The longest text that is signed.
pub(crate) const CHECKPOINT_BYTES_MAX: usize = 2048;

impl<'t> CheckpointText<'t> {
    /// Errors: `CheckpointRefused`, which names the rule and nothing of the text.
    pub(crate) fn parse(bytes: &'t [u8]) -> Result<Self, Failure> {
        match rule_broken(bytes) {
            None => Ok(Self(bytes)),
            Some(rule) => Err(Failure::CheckpointRefused(rule.into())),
        }
    }

    pub(crate) fn bytes(self) -> &'t [u8] {
        self.0
    }
}

fn rule_broken(bytes: &[u8]) -> Option<&'static str> {
    if bytes.len() > CHECKPOINT_BYTES_MAX {
        return Some("it has more than 2048 bytes");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return Some("it is not UTF-8") };
    let Some(text) = text.strip_suffix('\n') else { return Some("it does not end with a line") };
    let lines: Vec<&str> = text.split('\n').collect();
    // What follows an empty line would be the signatures of a note.
    if lines.iter().any(|line| line.is_empty()) {
        return Some("it has an empty line");
    }
    if lines.iter().any(|line| line.contains(char::is_control)) {
        return Some("it has control characters");
    }
    let [origin, size, root, ..] = lines[..] else { return Some("it has fewer than three lines") };
    if origin.contains(|letter: char| letter.is_whitespace() || letter == '+') {
        return Some("its first line is no origin: no space and no '+' stand in one");
    }
    if size.parse::<u64>().map_or(true, |number| number.to_string() != size) {
        return Some("its second line is no tree size");
    }
    if !is_hash(root.as_bytes()) {
        return Some("its third line is not the base64 of 32 bytes");
    }
    None
}

/// Whether this is the one base64 text (RFC 4648, section 4) of some 32 bytes: 43 letters and a pad;
/// the last letter stands for four bits, and the two below them are zero.
fn is_hash(text: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match text {
        [letters @ .., last, b'='] if letters.len() == 42 => {
            letters.iter().all(letter) && b"AEIMQUYcgkosw048".contains(last)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn a_checkpoint_has_an_origin_a_size_and_a_root_and_may_have_more() {
        let long = "x".repeat(CHECKPOINT_BYTES_MAX - "log.example\n0\n\n\n".len() - ROOT.len());
        for text in [
            format!("log.example/gateway-1\n0\n{ROOT}\n"),
            format!("log.example\n18446744073709551615\n{ROOT}\n"),
            format!("log.example\n42\n{ROOT}\ntime 2026-08-04T10:00:00Z + grün\n"),
            format!("log.example\n0\n{ROOT}\n{long}\n"),
        ] {
            assert!(CheckpointText::parse(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn nothing_else_is_one() {
        let long = "x".repeat(CHECKPOINT_BYTES_MAX);
        for (text, rule) in [
            (String::new(), "does not end"),
            ("\n".into(), "empty line"),
            (format!("log\n1\n{ROOT}"), "does not end"),
            (format!("log\n1\n{ROOT}\n\n"), "empty line"),
            (format!("log\n1\n{ROOT}\n\n- log AAAA\n"), "empty line"),
            (format!("log\n1\n{ROOT}\nmore\r\n"), "control"),
            (format!("log\n1\n{ROOT}\na\tb\n"), "control"),
            (format!("log\n1\n{ROOT}\n\u{85}\n"), "control"),
            (format!("log\n1\n{ROOT}\n\u{7f}\n"), "control"),
            ("log\n1\n".into(), "three lines"),
            (format!("\n1\n{ROOT}\n"), "empty line"),
            (format!("my log\n1\n{ROOT}\n"), "origin"),
            (format!("my\u{a0}log\n1\n{ROOT}\n"), "origin"),
            (format!("my+log\n1\n{ROOT}\n"), "origin"),
            (format!("log\n01\n{ROOT}\n"), "tree size"),
            (format!("log\n+1\n{ROOT}\n"), "tree size"),
            (format!("log\n-1\n{ROOT}\n"), "tree size"),
            (format!("log\n1 \n{ROOT}\n"), "tree size"),
            (format!("log\n0x1\n{ROOT}\n"), "tree size"),
            (format!("log\n18446744073709551616\n{ROOT}\n"), "tree size"),
            (format!("log\n1\n{}\n", &ROOT[1..]), "base64"),
            (format!("log\n1\nA{ROOT}\n"), "base64"),
            (format!("log\n1\n{}\n", ROOT.replace("U=", "V=")), "base64"),
            (format!("log\n1\n{}\n", ROOT.replace("U=", "==")), "base64"),
            (format!("log\n1\n{}\n", ROOT.replace('/', "_")), "base64"),
            (format!("log\n1\n{ROOT} \n"), "base64"),
            (format!("log\n1\n{ROOT}\n{long}\n"), "2048"),
        ] {
            let refused = CheckpointText::parse(text.as_bytes()).unwrap_err();
            assert!(refused.to_string().contains(rule), "{text:?}: {refused}");
        }
        let refused = CheckpointText::parse(b"log\xff\n1\n").unwrap_err();
        assert!(refused.to_string().contains("UTF-8"), "{refused}");
    }
}
