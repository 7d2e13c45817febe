//! What an attacker may do to a log, and that the verifier finds it.
//!
//! `TOLLGATE_MUTATIONS` edits (1,000 when it is not set) and a tenth as many clean logs.

#![allow(unreachable_pub, reason = "modules of one test")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod attacks;
mod build;
mod edits;
mod exports;
mod forge;
#[path = "../support/signer.rs"]
mod signer;

use std::path::Path;

use build::Random;
use compliance::{Options, Report, SignedNote, Verdict, VerifierKey, verify};

fn mutations() -> usize {
    let text = std::env::var("TOLLGATE_MUTATIONS").ok();
    text.map_or(1_000, |text| text.parse().expect("TOLLGATE_MUTATIONS is a number"))
}

fn seed() -> u64 {
    let text = std::env::var("TOLLGATE_MUTATIONS_SEED").ok();
    text.map_or(1, |text| text.parse().expect("TOLLGATE_MUTATIONS_SEED is a number"))
}

fn judge(path: &Path, keys: &[VerifierKey], anchors: Vec<SignedNote>) -> Report {
    verify(path, Options { keys: keys.to_vec(), anchors, ..Options::default() }).unwrap()
}

#[test]
fn every_edit_of_a_log_is_found_and_named() {
    let mut random = Random(seed());
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    let all = mutations() * 3 / 4;
    let mut done = 0;
    while done < all {
        let log = build::log(&mut random, false);
        for _ in 0..10 {
            let state = random.0;
            let Some(edit) = edits::edit(&log, &mut random) else { continue };
            let dir = tempfile::tempdir().unwrap();
            edit.log.write(dir.path());
            (edit.files)(dir.path());

            // All: an edit may take away the note in which one key vouches for the next.
            let report = judge(dir.path(), &log.keys, edit.anchors.clone());

            let context = || {
                format!("{} (random {state}), expected {:?}\n{report}", edit.name, edit.expected)
            };
            assert_ne!(report.verdict, Verdict::Intact, "{}", context());
            if let Some(expected) = &edit.expected {
                assert!(expected.is_met(&report), "{}", context());
            }
            *counts.entry(edit.name).or_default() += 1;
            done += 1;
        }
    }
    println!("{counts:#?}");
    assert!(counts.len() >= edits::KINDS || all < 500, "{counts:?}");
}

#[test]
fn every_edit_of_an_export_is_found() {
    let mut random = Random(seed() ^ 0xE);
    let all = mutations() / 4;
    let mut done = 0;
    while done < all {
        let log = build::log(&mut random, false);
        let dir = tempfile::tempdir().unwrap();
        log.write(dir.path());
        let export = exports::export(dir.path(), &log, &mut random);
        for _ in 0..10 {
            let state = random.0;
            let Some(edit) = exports::edit(&export, &mut random) else { continue };
            let path = dir.path().join("export");
            std::fs::write(&path, &edit.bytes).unwrap();

            let report = judge(&path, &log.keys, Vec::new());

            let context = || format!("{} (random {state}) {:?}\n{report}", edit.name, edit.seq);
            assert_ne!(report.verdict, Verdict::Intact, "{}", context());
            if let Some(seq) = edit.seq {
                assert_eq!(report.first().unwrap().seq, Some(seq), "{}", context());
            }
            done += 1;
        }
    }
}

#[test]
fn nothing_is_found_in_what_nobody_has_changed() {
    let mut random = Random(seed() ^ 0xC);
    for _ in 0..(mutations() / 10).max(1) {
        let state = random.0;
        let log = build::log(&mut random, true);
        let dir = tempfile::tempdir().unwrap();
        log.write(dir.path());
        let last = log.keys.last().unwrap().clone();

        for keys in [log.trusted(), &[last], &log.keys, &[]] {
            let report = judge(dir.path(), keys, log.anchors());
            assert_eq!(report.verdict, Verdict::Intact, "random {state}\n{report}");
            assert_eq!(report.anchors.met, 1, "random {state}\n{report}");
        }
        exports::clean(dir.path(), &log, &mut random, state);
    }
}
