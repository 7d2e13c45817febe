//! What someone can do who has the disk and not the key: write every hash anew.

use compliance::{Checkpoint, Frontier, Hash, SignedNote};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::build::Log;
use crate::signer::Signer;

/// What becomes of notes that do not fit any more.
#[derive(Clone, Copy)]
pub enum Notes<'s> {
    Keep,
    Strip,
    Sign(&'s Signer),
    /// All of them, also those that fit.
    SignAll(&'s Signer),
}

pub fn read(line: &[u8]) -> Value {
    serde_json::from_slice(line).unwrap()
}

pub fn seq(line: &[u8]) -> u64 {
    read(line)["seq"].as_u64().unwrap()
}

/// Numbers and chains all records anew, from the first that was changed on, across boots, with the trees
/// that rotations carry.
pub fn rehash(log: &mut Log, notes: Notes<'_>) {
    let mut before: Option<(String, u64, Hash)> = None;
    let mut roots: Vec<Hash> = Vec::new();
    let mut tree = Frontier::default();
    let mut note_size = 0;
    for segment in &mut log.segments {
        for line in &mut segment.lines {
            let mut record = read(line);
            let stream = record["stream"].as_str().unwrap().to_owned();
            let is_next = before.as_ref().is_some_and(|(name, ..)| *name == stream);
            if !is_next {
                (tree, note_size) = (Frontier::default(), 0);
                let start = record.get("frontier").and_then(Value::as_str);
                if let Some(start) = start.and_then(Frontier::parse) {
                    tree = start;
                }
                roots = vec![Hash::ZERO; tree.size() as usize];
                roots.push(tree.root());
                if let (Some((name, seq, hash)), Some(previous)) =
                    (&before, record.get_mut("previous"))
                {
                    previous["stream"] = name.as_str().into();
                    previous["seq"] = (*seq).into();
                    previous["hash"] = hash.to_string().into();
                }
            }
            let seq = tree.size() + 1;
            record["seq"] = seq.into();
            if let Some((_, _, hash)) = before.as_ref().filter(|_| is_next) {
                record["prev_hash"] = hash.to_string().into();
            }
            if record.get("frontier").is_some() {
                record["frontier"] = tree.to_text().into();
            }
            if let Some(text) = record.get("checkpoint").and_then(Value::as_str) {
                let note = SignedNote::from_base64(text).unwrap();
                let said = note.checkpoint().clone();
                let fits = said.size < seq
                    && said.size >= note_size
                    && roots[said.size as usize] == said.root;
                let new = Checkpoint { size: seq - 1, root: tree.root(), ..said.clone() };
                let note = match notes {
                    Notes::SignAll(signer) => {
                        Some(signer.sign(Checkpoint { keys: vec![signer.key()], ..new }))
                    }
                    _ if fits => None,
                    Notes::Keep => None,
                    Notes::Strip => Some(SignedNote::unsigned(new)),
                    Notes::Sign(signer) => {
                        Some(signer.sign(Checkpoint { keys: vec![signer.key()], ..new }))
                    }
                };
                note_size = note.as_ref().map_or(said.size, |note| note.checkpoint().size);
                if let Some(note) = note {
                    record["checkpoint"] = note.to_base64().into();
                }
            }
            let hash = seal(&mut record);
            *line = record.to_string().into_bytes();
            tree.push(hash);
            roots.push(tree.root());
            before = Some((stream, seq, hash));
        }
    }
}

/// Gives a record its hash, in code of its own.
pub fn seal(record: &mut Value) -> Hash {
    record.as_object_mut().unwrap().remove("hash");
    let before = hex::decode(record["prev_hash"].as_str().unwrap()).unwrap();
    let mut hash = Sha256::new();
    hash.update(b"tollgate-audit/1");
    hash.update([0]);
    hash.update(before);
    hash.update(record.to_string());
    let hash = Hash(hash.finalize().into());
    record["hash"] = hash.to_string().into();
    hash
}
