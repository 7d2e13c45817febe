use super::*;
use crate::testing::Signer;

fn checkpoint(keys: Vec<VerifierKey>) -> Checkpoint {
    let origin = "tollgate/gateway-1/01890a5d-ac96-774b-bcce-b302099a8057".into();
    Checkpoint { origin, size: 4711, root: Hash([7; 32]), keys, interval_s: 5 }
}

#[test]
fn a_note_comes_back_as_it_was_and_is_verified_with_both_kinds_of_keys() {
    for signer in [Signer::ed25519("tollgate"), Signer::ecdsa("tollgate")] {
        let note = signer.sign(checkpoint(vec![signer.key()]));

        let read = SignedNote::from_base64(&note.to_base64()).unwrap();

        assert_eq!(read, note);
        assert_eq!(read.signed_by([&signer.key()]), Signed::ByOne);
        assert_eq!(signer.key().to_string().parse::<VerifierKey>().unwrap(), signer.key());
    }
}

#[test]
fn another_text_another_key_and_two_signatures_in_one_name_are_noticed() {
    for make in [Signer::ed25519, Signer::ecdsa] {
        let (signer, other) = (make("tollgate"), make("tollgate"));
        let note = signer.sign(checkpoint(vec![]));
        let edited = note.note().replace("4711", "4712");

        assert_eq!(SignedNote::parse(&edited).unwrap().signed_by([&signer.key()]), Signed::Wrong);
        assert_eq!(note.signed_by([&other.key()]), Signed::ByOthers);
        assert_eq!(note.signed_by([&other.key(), &signer.key()]), Signed::ByOne);
        assert_eq!(
            SignedNote::unsigned(checkpoint(vec![])).signed_by([&signer.key()]),
            Signed::ByNobody
        );
        let twice = note.clone().signed(&signer.key(), vec![1]);
        assert_eq!(twice.signed_by([&signer.key()]), Signed::Wrong);
    }
}

#[test]
fn each_bit_of_a_signed_note_counts() {
    let signer = Signer::ed25519("tollgate");
    let note = signer.sign(checkpoint(vec![signer.key()])).note();
    for at in 0..note.len() {
        let mut edited = note.clone().into_bytes();
        edited[at] ^= 1;
        let Ok(edited) = String::from_utf8(edited) else { continue };
        if let Ok(read) = SignedNote::parse(&edited) {
            assert_ne!(read.signed_by([&signer.key()]), Signed::ByOne, "{edited}");
        }
    }
}

#[test]
fn what_is_spelled_otherwise_is_no_note() {
    let signer = Signer::ecdsa("tollgate");
    let note = signer.sign(checkpoint(vec![signer.key()])).note();
    for edited in [
        note.replace("4711", "04711"),
        note.replace("4711", "+4711"),
        note.replace("interval 5", "interval 05"),
        note.replace("\n\n", "\n"),
        note.replace('\n', "\r\n"),
        note.replace('\u{2014}', "-"),
        note.trim_end().into(),
        format!("{note}\n"),
        note.replace("interval 5\n", "interval 5\ninterval 5\n"),
        note.replace("interval", "unknown"),
    ] {
        assert!(SignedNote::parse(&edited).is_err(), "{edited}");
    }
    for key in ["", "tollgate", "tollgate+00000000+AQ==", "a b+00000000+AQ=="] {
        assert!(key.parse::<VerifierKey>().is_err(), "{key}");
    }
}

#[test]
fn a_key_of_the_specification_has_its_id() {
    // The example of c2sp.org/signed-note: a vkey of type Ed25519.
    let text = "example.com/foo+530cdd2e+Abt7Y+W6Y8mlnu8Zx2BJkKGjlv6cWb5FUVBjgYHzHMoR";
    if let Ok(key) = text.parse::<VerifierKey>() {
        assert_eq!(key.to_string(), text);
    }
}
