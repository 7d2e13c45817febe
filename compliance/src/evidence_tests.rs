use std::fs;

use tempfile::TempDir;

use super::*;
use crate::testing::Signer;

const NAMES: [&str; 3] = ["audit.json", "keys.json", "readme.txt"];

fn files() -> Vec<PackFile> {
    NAMES.map(|name| PackFile::of(name, contents(name).as_bytes())).to_vec()
}

fn contents(name: &str) -> String {
    format!("{{\"of\":\"{name}\"}}\n")
}

fn write_manifest(dir: &Path, manifest: &Manifest) {
    fs::write(dir.join(MANIFEST), serde_json::to_string_pretty(manifest).unwrap()).unwrap();
}

fn signed(by: &Signer, id: Uuid, files: Vec<PackFile>) -> Manifest {
    let note = by.sign(pack_checkpoint("tollgate", id, &files, vec![by.key()]));
    Manifest::new(id, files, &note, None)
}

fn pack(by: &Signer) -> (TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    for name in NAMES {
        fs::write(dir.path().join(name), contents(name)).unwrap();
    }
    let manifest = signed(by, Uuid::now_v7(), files());
    write_manifest(dir.path(), &manifest);
    (dir, manifest)
}

/// The verdict, and the file that is named first.
fn judged(dir: &TempDir, keys: &[VerifierKey]) -> (Verdict, Option<String>) {
    let report = verify_pack(dir.path(), keys).unwrap();
    (report.verdict, report.findings.first().and_then(|finding| finding.file.clone()))
}

fn tampered_in(name: &str) -> (Verdict, Option<String>) {
    (Verdict::Tampered, Some(name.into()))
}

#[test]
fn a_pack_is_intact_with_both_kinds_of_keys_pinned_or_not() {
    for signer in [Signer::ed25519("tollgate"), Signer::ecdsa("tollgate")] {
        let (dir, manifest) = pack(&signer);

        let pinned = verify_pack(dir.path(), &[signer.key()]).unwrap();
        let unpinned = verify_pack(dir.path(), &[]).unwrap();

        assert_eq!((pinned.verdict, unpinned.verdict), (Verdict::Intact, Verdict::Intact));
        assert!(pinned.is_pinned && !unpinned.is_pinned);
        assert_eq!((pinned.files, pinned.created), (3, Some(manifest.created)));
        assert!(unpinned.to_string().contains("no key was given"), "{unpinned}");
    }
}

#[test]
fn a_pack_is_known_by_its_directory_and_by_its_manifest() {
    let (dir, _) = pack(&Signer::ed25519("tollgate"));

    assert_eq!(pack_at(dir.path()).as_deref(), Some(dir.path()));
    assert_eq!(pack_at(&dir.path().join(MANIFEST)).as_deref(), Some(dir.path()));
    assert_eq!(pack_at(&dir.path().join("keys.json")), None);
    fs::remove_file(dir.path().join(MANIFEST)).unwrap();
    assert_eq!(pack_at(dir.path()), None);
}

#[test]
fn each_bit_of_each_file_counts() {
    let signer = Signer::ed25519("tollgate");
    let (dir, _) = pack(&signer);
    for name in NAMES {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut edited = whole.clone();
            edited[at] ^= 1;
            fs::write(&path, &edited).unwrap();

            assert_eq!(judged(&dir, &[signer.key()]), tampered_in(name), "{name} {at}");
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn no_byte_of_the_manifest_can_be_changed_but_for_its_layout() {
    let signer = Signer::ed25519("tollgate");
    let (dir, manifest) = pack(&signer);
    let path = dir.path().join(MANIFEST);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut edited = whole.clone();
            edited[at] ^= 1 << bit;
            fs::write(&path, &edited).unwrap();
            let is_same =
                serde_json::from_slice::<Manifest>(&edited).is_ok_and(|it| it == manifest);

            let (verdict, _) = judged(&dir, &[signer.key()]);

            assert_eq!(verdict == Verdict::Intact, is_same, "{at} {bit}");
        }
    }
}

#[test]
fn an_added_a_missing_a_linked_and_a_swapped_file_are_named() {
    let signer = Signer::ecdsa("tollgate");
    let keys = [signer.key()];

    let (added, _) = pack(&signer);
    fs::write(added.path().join("more.json"), "{}").unwrap();
    let (missing, _) = pack(&signer);
    fs::remove_file(missing.path().join("keys.json")).unwrap();
    let (linked, _) = pack(&signer);
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), contents("keys.json")).unwrap();
    fs::remove_file(linked.path().join("keys.json")).unwrap();
    std::os::unix::fs::symlink(outside.path(), linked.path().join("keys.json")).unwrap();
    let (swapped, _) = pack(&signer);
    fs::write(swapped.path().join("keys.json"), contents("audit.json")).unwrap();
    fs::write(swapped.path().join("audit.json"), contents("keys.json")).unwrap();

    assert_eq!(judged(&added, &keys), tampered_in("more.json"));
    assert_eq!(judged(&missing, &keys), (Verdict::Incomplete, Some("keys.json".into())));
    assert_eq!(judged(&linked, &keys), tampered_in("keys.json"));
    assert_eq!(judged(&swapped, &keys), tampered_in("audit.json"));
}

/// Also when the digests in the manifest go with the change: the root does not.
#[test]
fn a_manifest_that_goes_with_the_change_does_not_go_with_its_note() {
    let signer = Signer::ed25519("tollgate");
    let keys = [signer.key()];
    let with = |change: &dyn Fn(&Path, &mut Manifest)| {
        let (dir, mut manifest) = pack(&signer);
        change(dir.path(), &mut manifest);
        write_manifest(dir.path(), &manifest);
        judged(&dir, &keys)
    };

    let edited = with(&|dir, manifest| {
        fs::write(dir.join("keys.json"), "{}").unwrap();
        manifest.files[1] = PackFile::of("keys.json", b"{}");
    });
    let dropped = with(&|dir, manifest| {
        fs::remove_file(dir.join("keys.json")).unwrap();
        manifest.files.remove(1);
    });
    // The digests stay in their order; only the names change places.
    let renamed = with(&|dir, manifest| {
        fs::write(dir.join("keys.json"), contents("audit.json")).unwrap();
        fs::write(dir.join("audit.json"), contents("keys.json")).unwrap();
        let [one, other, _] = &mut manifest.files[..] else { panic!("three files") };
        std::mem::swap(&mut one.sha256, &mut other.sha256);
        std::mem::swap(&mut one.bytes, &mut other.bytes);
    });
    let reordered = with(&|_, manifest| manifest.files.swap(0, 1));
    let twice = with(&|_, manifest| manifest.files.insert(0, manifest.files[0].clone()));
    let outside = with(&|_, manifest| manifest.files[1].name = "../keys.json".into());
    let another_time = with(&|_, manifest| manifest.created = Timestamp::UNIX_EPOCH);
    let denied = with(&|_, manifest| manifest.unsigned = Some("the HSM is away".into()));

    for judged in [edited, dropped, renamed, reordered, outside, another_time, denied] {
        assert_eq!(judged, tampered_in(MANIFEST));
    }
    assert_eq!(twice.0, Verdict::Tampered);
}

#[test]
fn a_pack_that_another_key_has_signed_or_nobody_does_not_pass() {
    let (signer, other) = (Signer::ed25519("tollgate"), Signer::ed25519("tollgate"));
    let (dir, _) = pack(&other);
    let id = Uuid::now_v7();

    assert_eq!(judged(&dir, &[signer.key()]), tampered_in(MANIFEST));
    // Signed in the name of the given key by another one.
    let both = vec![signer.key()];
    let checkpoint = pack_checkpoint("tollgate", id, &files(), both);
    let forged = SignedNote::unsigned(checkpoint.clone()).signed(&signer.key(), vec![7; 64]);
    write_manifest(dir.path(), &Manifest::new(id, files(), &forged, None));
    assert_eq!(judged(&dir, &[signer.key()]), tampered_in(MANIFEST));
    let unsigned = SignedNote::unsigned(checkpoint);
    let manifest = Manifest::new(id, files(), &unsigned, Some("no HSM link is up".into()));
    write_manifest(dir.path(), &manifest);
    let report = verify_pack(dir.path(), &[signer.key()]).unwrap();
    assert_eq!(report.verdict, Verdict::Incomplete);
    assert!(report.to_string().contains("no HSM link is up"), "{report}");
    // And what was changed in it is found all the same.
    fs::write(dir.path().join("keys.json"), "{}").unwrap();
    assert_eq!(judged(&dir, &[signer.key()]), tampered_in("keys.json"));
}

#[test]
fn a_checkpoint_of_the_log_is_no_pack() {
    let signer = Signer::ed25519("tollgate");
    let (dir, _) = pack(&signer);
    let id = Uuid::now_v7();
    let of_pack = pack_checkpoint("tollgate", id, &files(), vec![signer.key()]);
    let origin = format!("tollgate/gateway-1/{id}");
    let note = signer.sign(Checkpoint { origin, ..of_pack });

    write_manifest(dir.path(), &Manifest::new(id, files(), &note, None));

    assert_eq!(judged(&dir, &[signer.key()]), tampered_in(MANIFEST));
}
