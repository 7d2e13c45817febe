//! What someone would try who has read the verifier; and the program's own answers.

use std::fs;
use std::path::Path;
use std::process::Command;

use compliance::export::Format;
use compliance::{Options, SegmentName, Verdict, VerifierKey, prove, verify, write_set};
use serde_json::Value;

use crate::build::{self, Log, Random};
use crate::forge::{Notes, read, rehash, seal};
use crate::judge;

/// A log of at least two boots, nothing of it purged.
fn log(seed: u64) -> Log {
    let mut random = Random(seed);
    loop {
        let log = build::log(&mut random, false);
        if log.boots().len() > 1 && log.purged.is_empty() {
            return log;
        }
    }
}

fn written(log: &Log) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    dir
}

fn name(log: &Log, index: usize) -> String {
    let one = &log.segments[index];
    let name = SegmentName { boot: one.boot, number: one.number };
    if one.is_sealed { name.sealed() } else { name.open() }
}

#[test]
fn nothing_is_not_intact() {
    let dir = tempfile::tempdir().unwrap();
    let verdict = || judge(dir.path(), &[], Vec::new()).verdict;

    assert_eq!(verdict(), Verdict::Incomplete);
    let file = dir.path().join(SegmentName { boot: uuid::Uuid::nil(), number: 1 }.open());
    fs::write(&file, "").unwrap();
    assert_eq!(verdict(), Verdict::Incomplete);
    fs::write(&file, "{\"actor\":{\"id").unwrap();
    assert_eq!(verdict(), Verdict::Incomplete);
    fs::write(&file, "\n").unwrap();
    assert_eq!(verdict(), Verdict::Tampered);
    fs::write(&file, vec![b'{'; 1 << 20]).unwrap();
    assert_eq!(verdict(), Verdict::Tampered);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(verdict(), Verdict::Incomplete);
    fs::write(dir.path().join("notes.jsonl"), "{}\n").unwrap();
    assert_eq!(verdict(), Verdict::Incomplete);
    assert!(verify(&dir.path().join("absent"), Options::default()).is_err());
}

#[test]
fn an_export_of_nothing_is_not_intact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("export.jsonl");
    for (text, verdict) in [
        ("{\"end\":{\"streams\":[]}}\n", Verdict::Incomplete),
        ("{\"end\":{\"streams\":[]}}", Verdict::Incomplete),
        ("{\"end\":{}}\n", Verdict::Tampered),
        ("{\"export\":{}}\n{\"end\":{\"streams\":[]}}\n", Verdict::Tampered),
        ("{\"proof\":{}}\n", Verdict::Tampered),
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(judge(&path, &[], Vec::new()).verdict, verdict, "{text}");
        if !text.starts_with("{\"proof") {
            assert_eq!(judge(dir.path(), &[], Vec::new()).verdict, verdict, "{text}");
        }
    }
}

/// Rewritten as a whole by someone without the key, with notes that say nothing.
#[test]
fn a_note_of_no_record_covers_none() {
    let log = log(1);
    let last = log.segments.len() - 1;
    for size in [0, 1_000_000] {
        let mut edited = log.clone();
        edited.segments[last].lines.truncate(1);
        let line = edited.segments[last].lines.last_mut().unwrap();
        let signer = crate::signer::Signer::ed25519("tollgate");
        let mut record = read(line);
        let note = signer.sign(compliance::Checkpoint {
            origin: record["stream"].as_str().unwrap().into(),
            size,
            root: compliance::Frontier::default().root(),
            keys: vec![signer.key()],
            interval_s: 5,
        });
        record["checkpoint"] = note.to_base64().into();
        seal(&mut record);
        *line = record.to_string().into_bytes();
        let dir = tempfile::tempdir().unwrap();
        let alone = Log { segments: edited.segments[last..].to_vec(), ..edited };
        alone.write(dir.path());

        let report = judge(&dir.path().join(name(&alone, 0)), &[signer.key()], Vec::new());

        assert_ne!(report.verdict, Verdict::Intact, "{size}\n{report}");
    }
}

#[test]
fn a_purge_that_nobody_has_signed_excuses_nothing() {
    for seed in 0..20 {
        let log = log(seed);
        let (mut edited, last) = (log.clone(), log.segments.len() - 1);
        let gone = edited.segments.remove(0);
        let gone = SegmentName { boot: gone.boot, number: gone.number };
        // At the end, where no signature lies, and chained as it should be.
        let before = read(edited.segments[last - 1].lines.last().unwrap());
        let mut purge = before.clone();
        let record = purge.as_object_mut().unwrap();
        record.retain(|name, _| !["checkpoint", "previous", "frontier"].contains(&name.as_str()));
        purge["event"]["type"] = "audit.retention_purge".into();
        purge["resource"]["id"] = gone.to_string().into();
        purge["note"] = "1-1000000".into();
        purge["seq"] = (before["seq"].as_u64().unwrap() + 1).into();
        purge["prev_hash"] = before["hash"].clone();
        seal(&mut purge);
        edited.segments[last - 1].lines.push(purge.to_string().into_bytes());

        let report = judge(written(&edited).path(), &log.keys, Vec::new());

        assert_eq!(report.verdict, Verdict::Incomplete, "{seed}\n{report}");
    }
}

#[test]
fn streams_that_follow_each_other_in_a_circle_are_refused() {
    let log = log(3);
    let mut edited = log.clone();
    let boots = log.boots();
    let last = read(log.segments.last().unwrap().lines.last().unwrap());
    let first = &mut edited.segments[0].lines[0];
    let mut record = read(first);
    record["previous"] = serde_json::json!({
        "hash": last["hash"], "seq": last["seq"], "stream": last["stream"],
    });
    seal(&mut record);
    *first = record.to_string().into_bytes();
    // `previous` of the first is not rewritten: nothing stands before it.
    rehash(&mut edited, Notes::Strip);

    let report = judge(written(&edited).path(), &log.keys, Vec::new());

    assert_eq!(report.verdict, Verdict::Tampered, "{boots:?}\n{report}");
}

#[test]
fn a_damaged_compressed_file_is_tampered_and_bytes_after_its_end_are_seen() {
    for seed in 0..20 {
        let mut log = log(seed);
        log.segments[0].is_sealed = true;
        log.segments[0].rest.clear();
        let dir = written(&log);
        let path = dir.path().join(name(&log, 0));
        let bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        for edited in [
            bytes[..middle].to_vec(),
            [&bytes[..middle], &[bytes[middle] ^ 1], &bytes[middle + 1..]].concat(),
            [&bytes, &b"{}\n"[..]].concat(),
        ] {
            fs::write(&path, edited).unwrap();
            let report = judge(dir.path(), &log.keys, Vec::new());
            assert_eq!(report.verdict, Verdict::Tampered, "{seed}\n{report}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_link_is_read_as_what_it_leads_to() {
    let log = log(4);
    let dir = written(&log);
    let elsewhere = tempfile::tempdir().unwrap();
    let path = dir.path().join(name(&log, 0));
    let moved = elsewhere.path().join("moved");
    fs::rename(&path, &moved).unwrap();

    std::os::unix::fs::symlink(&moved, &path).unwrap();
    assert_eq!(judge(dir.path(), &log.keys, Vec::new()).verdict, Verdict::Intact);
    fs::remove_file(&moved).unwrap();
    assert_eq!(judge(dir.path(), &log.keys, Vec::new()).verdict, Verdict::Incomplete);
}

#[test]
fn a_wrong_signature_of_a_known_key_is_tampered_at_once() {
    let log = log(5);
    let mut edited = log.clone();
    'found: for segment in &mut edited.segments {
        for line in &mut segment.lines {
            let mut record = read(line);
            let Some(text) = record.get("checkpoint").and_then(Value::as_str) else { continue };
            let note = compliance::SignedNote::from_base64(text).unwrap();
            if !note.is_signed() {
                continue;
            }
            let unsigned = compliance::SignedNote::unsigned(note.checkpoint().clone());
            let forged = unsigned.signed(&log.keys[0], vec![7; 64]);
            record["checkpoint"] = forged.to_base64().into();
            *line = record.to_string().into_bytes();
            break 'found;
        }
    }
    rehash(&mut edited, Notes::Keep);

    let report = judge(written(&edited).path(), &log.keys, Vec::new());

    let first = report.first().unwrap();
    assert_eq!(first.what, "the signature of its checkpoint is wrong", "{report}");
}

#[test]
fn one_segment_and_one_part_of_a_stream_verify_alone() {
    for seed in 0..30 {
        let log = log(seed);
        let dir = written(&log);
        for index in 0..log.segments.len() {
            let report = judge(&dir.path().join(name(&log, index)), &log.keys, Vec::new());
            assert_ne!(report.verdict, Verdict::Tampered, "{seed}\n{report}");
            assert_eq!(report.records as usize, log.segments[index].lines.len());
        }
        let boot = *log.boots().last().unwrap();
        let last = log.segments.iter().filter(|one| one.boot == boot).cloned().collect();
        let alone = written(&Log { segments: last, ..log.clone() });
        let options = |range| Options { keys: log.keys.clone(), range, ..Options::default() };
        let report = verify(alone.path(), options(Some((2, 3)))).unwrap();
        assert_eq!(report.verdict, Verdict::Intact, "{seed}\n{report}");
        let report = verify(alone.path(), options(Some((2, 1_000)))).unwrap();
        assert_eq!(report.verdict, Verdict::Incomplete, "{seed}\n{report}");
        assert!(verify(dir.path(), options(Some((1, 1)))).is_err());
    }
}

#[test]
fn every_signed_record_is_proved_and_no_edited_proof_passes() {
    let mut random = Random(7);
    for seed in 0..10 {
        let log = log(seed);
        let dir = written(&log);
        let last = log.segments.len() - 1;
        let (segment, path) = (&log.segments[last], dir.path().join("proof.json"));
        let lines = &segment.lines;
        let record = read(&lines[random.below(lines.len() - 1)]);
        let event = record["event"]["id"].as_str().unwrap().parse().unwrap();

        let proof = prove(dir.path(), event, &log.keys).unwrap();

        fs::write(&path, &proof).unwrap();
        let report = judge(&path, &log.keys, Vec::new());
        assert_eq!(report.verdict, Verdict::Intact, "{report}");
        assert!(!judge(&path, &[], Vec::new()).is_pinned);
        let stranger = crate::signer::Signer::ecdsa("tollgate").key();
        assert_eq!(judge(&path, &[stranger], Vec::new()).verdict, Verdict::Tampered);
        for _ in 0..100 {
            let mut edited = proof.clone().into_bytes();
            let at = random.below(edited.len() - 1);
            edited[at] ^= 1 << random.below(8);
            fs::write(&path, &edited).unwrap();
            let report = judge(&path, &log.keys, Vec::new());
            assert_eq!(report.verdict, Verdict::Tampered, "byte {at}\n{report}");
        }
    }
    let dir = written(&log(1));
    assert!(prove(dir.path(), uuid::Uuid::nil(), &[]).is_err());
}

fn program(arguments: &[&str]) -> (i32, String) {
    let program = env!("CARGO_BIN_EXE_tollgate-audit");
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn the_program_ends_with_its_verdict() {
    let log = log(8);
    let dir = written(&log);
    let path = dir.path().to_str().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (keys, anchors, export) = (file("keys"), file("anchors"), file("export"));
    let text: Vec<String> = log.keys.iter().map(VerifierKey::to_string).collect();
    fs::write(&keys, text.join("\n")).unwrap();
    let line = log.segments.last().unwrap().lines.last().unwrap();
    fs::write(&anchors, [line, &b"\n"[..]].concat()).unwrap();

    let (code, said) = program(&["verify", path, "--vkey", &keys, "--anchors", &anchors]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = program(&["verify", path, "--json"]);
    assert_eq!(code, 0, "{said}");
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&json["verdict"], &json["is_pinned"]), (&"intact".into(), &false.into()));
    let (code, said) = program(&["export", path, "--out", &export]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(program(&["verify", &export, "--vkey", &keys]).0, 0);
    let id = read(line)["event"]["id"].as_str().unwrap().to_owned();
    assert_eq!(program(&["prove", path, "--event", &id]).0, 2);
    let first = &log.segments.last().unwrap().lines[0];
    let id = read(first)["event"]["id"].as_str().unwrap().to_owned();
    let proof = file("proof");
    assert_eq!(program(&["prove", path, "--event", &id, "--out", &proof]).0, 0);
    assert_eq!(program(&["verify", &proof, "--vkey", &keys]).0, 0);

    fs::write(&export, &fs::read(&export).unwrap()[1..]).unwrap();
    assert_eq!(program(&["verify", &export]).0, 1);
    fs::remove_file(dir.path().join(name(&log, 0))).unwrap();
    assert_eq!(program(&["verify", path]).0, 2);
    for wrong in [
        &["verify"][..],
        &["verify", "/nowhere"],
        &["verify", path, "--vkey", "x"],
        &["verify", path, "--from", "2"],
        &["other"],
    ] {
        assert_eq!(program(wrong).0, 3, "{wrong:?}");
    }
    assert_eq!(program(&["--help"]).0, 0);
}

/// Written by two exports at two times: each is judged by itself.
#[test]
fn a_directory_of_exports_is_one_verdict() {
    let log = log(9);
    let (dir, out) = (written(&log), tempfile::tempdir().unwrap());
    let export = |file: &str| {
        let mut bytes = Vec::new();
        write_set(dir.path(), Format::Jsonl, None, None, &mut bytes).unwrap();
        fs::write(out.path().join(file), bytes).unwrap();
    };
    export("one.jsonl");
    export("two.jsonl");

    assert_eq!(judge(out.path(), &log.keys, log.anchors()).verdict, Verdict::Intact);
    cut(&out.path().join("two.jsonl"));
    let report = judge(out.path(), &log.keys, log.anchors());
    assert_eq!(report.verdict, Verdict::Incomplete, "{report}");
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 2]).unwrap();
}

#[test]
fn an_older_export_ends_before_an_anchor() {
    for seed in 0..20 {
        let log = log(seed);
        let older = {
            let mut older = log.clone();
            older.segments.pop();
            let is_empty = older.segments.is_empty();
            if is_empty { continue } else { written(&older) }
        };
        let path = older.path().join("export");
        let mut bytes = Vec::new();
        write_set(older.path(), Format::Jsonl, None, None, &mut bytes).unwrap();
        fs::write(&path, bytes).unwrap();

        let report = judge(&path, &log.keys, log.anchors());

        assert_eq!(report.verdict, Verdict::Incomplete, "{seed}\n{report}");
    }
}

/// Segments 2 to the last of a stream whose first one was purged: the purge is no excuse for the others.
#[test]
fn a_purge_of_the_first_segment_does_not_excuse_the_last() {
    let mut random = Random(21);
    let mut seen = 0;
    while seen < 20 {
        let log = build::log(&mut random, false);
        let Some(last) = log.purged.last() else { continue };
        let edited = Log {
            segments: log.segments.iter().filter(|one| one.boot != last.boot).cloned().collect(),
            ..log.clone()
        };
        if edited.segments.len() == log.segments.len() {
            continue;
        }
        seen += 1;

        let report = judge(written(&edited).path(), &log.keys, Vec::new());

        assert_eq!(report.verdict, Verdict::Incomplete, "{report}");
    }
}
