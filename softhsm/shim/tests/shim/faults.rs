//! The control file and the counters.

use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc;
use std::time::Duration;

use cryptoki::error::RvError;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType};

use crate::bench::{Bench, alone, child, code, pause};

const AES: [u8; 16] = [7; 16];

fn encrypt(bench: &Bench) -> impl Fn() -> Result<Vec<u8>, cryptoki::error::Error> + '_ {
    let uses = [Attribute::Encrypt(true), Attribute::Decrypt(true), Attribute::Sign(true)];
    let key = bench.key(KeyType::AES, &AES, &uses);
    move || bench.session.encrypt(&Mechanism::AesEcb, key, &[1; 16])
}

#[test]
fn a_failure_comes_so_often_as_it_is_told_and_leaves_the_session_well() {
    alone("faults::a_failure_comes_so_often_as_it_is_told_and_leaves_the_session_well", |bench| {
        let encrypt = encrypt(bench);
        let right = encrypt().unwrap();

        bench.control("Encrypt fail 0x32 2\n");
        let failures = [encrypt(), encrypt()].map(code);
        let healed = encrypt().unwrap();
        bench.control("Encrypt failafter 0x30 3\nGenerateRandom fail 0x80000001");
        let good = [encrypt(), encrypt(), encrypt()].map(|outcome| outcome.unwrap());
        let then = [encrypt(), encrypt()].map(code);
        let vendor = code(bench.session.generate_random_vec(8));
        std::fs::remove_file(bench.path("control")).unwrap();
        pause(10);

        assert_eq!(failures, [RvError::DeviceRemoved; 2]);
        assert_eq!(healed, right);
        assert_eq!(good, [right.clone(), right.clone(), right.clone()]);
        assert_eq!(then, [RvError::DeviceError; 2]);
        assert_eq!(vendor, RvError::VendorDefined(0x8000_0001));
        assert_eq!(encrypt().unwrap(), right, "no file, no faults");
    });
}

#[test]
fn every_function_fails_by_a_star() {
    alone("faults::every_function_fails_by_a_star", |bench| {
        let encrypt = encrypt(bench);

        bench.control("* fail 0xE1 1");
        let first = code(bench.session.get_session_info());
        let healed = encrypt();
        bench.control("* fail 0xE1");
        let always = [code(encrypt()), code(bench.session.generate_random_vec(1))];
        let session = code(bench.second_session());
        bench.control("");

        assert_eq!(first, RvError::TokenNotRecognized);
        assert!(healed.is_ok());
        assert_eq!(always, [RvError::TokenNotRecognized; 2]);
        assert_eq!(session, RvError::TokenNotRecognized);
    });
}

#[test]
fn a_delay_is_as_long_as_it_is_told_and_once_for_each_call() {
    alone("faults::a_delay_is_as_long_as_it_is_told_and_once_for_each_call", |bench| {
        let encrypt = encrypt(bench);
        bench.control("Encrypt delay 300");

        let begun = std::time::SystemTime::now();
        encrypt().unwrap();
        let lasted = begun.elapsed().unwrap();

        assert!(lasted >= Duration::from_millis(300), "{lasted:?}");
        assert!(lasted < Duration::from_millis(590), "{lasted:?}");
    });
}

#[test]
fn one_bit_of_an_output_is_flipped() {
    alone("faults::one_bit_of_an_output_is_flipped", |bench| {
        let encrypt = encrypt(bench);
        let right = encrypt().unwrap();
        let key = bench.key(
            KeyType::GENERIC_SECRET,
            &[1; 32],
            &[Attribute::Sign(true), Attribute::Extractable(true), Attribute::Label(b"A".to_vec())],
        );
        let sign = || bench.session.sign(&Mechanism::Sha256Hmac, key, b"message").unwrap();
        let mac = sign();
        let label = || bench.session.get_attributes(key, &[AttributeType::Label]).unwrap();

        bench.control("Encrypt flip 1\nSign flip\nGetAttributeValue flip");
        let outputs = [encrypt().unwrap(), encrypt().unwrap()];
        let wrong_mac = sign();
        let wrong_label = label();
        bench.control("");

        let mut flipped = right.clone();
        flipped[0] ^= 1;
        assert_eq!(outputs, [flipped, right]);
        let bits: u32 = mac.iter().zip(&wrong_mac).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(bits, 1);
        assert_eq!(wrong_label, [Attribute::Label(b"@".to_vec())]);
        assert_eq!(label(), [Attribute::Label(b"A".to_vec())]);
    });
}

#[test]
fn a_call_that_hangs_stays_away_while_others_work() {
    alone("faults::a_call_that_hangs_stays_away_while_others_work", |bench| {
        let other = bench.second_session().unwrap();
        bench.control("GenerateRandom hang");
        let (done, wait) = mpsc::channel();

        std::thread::spawn(move || {
            let _ = other.generate_random_vec(8);
            done.send(()).unwrap();
        });

        let waited = wait.recv_timeout(Duration::from_millis(600));
        assert_eq!(waited, Err(mpsc::RecvTimeoutError::Timeout));
        assert!(encrypt(bench)().is_ok());
    });
}

#[test]
fn a_crash_is_signal_11() {
    let ended = child("faults::a_crash_is_signal_11", |bench| {
        bench.control("GenerateRandom crash");
        let _ = bench.session.generate_random_vec(8);
    });

    if let Some(status) = ended {
        assert_eq!(status.signal(), Some(11), "{status}");
    }
}

#[test]
fn a_control_file_that_makes_no_sense_ends_the_process() {
    let ended = child("faults::a_control_file_that_makes_no_sense_ends_the_process", |bench| {
        bench.control("C_Sign hang");
        let _ = bench.session.generate_random_vec(8);
    });

    if let Some(status) = ended {
        assert_eq!(status.signal(), Some(6), "{status}");
    }
}

#[test]
fn calls_are_counted_and_questions_for_a_length_are_not() {
    alone("faults::calls_are_counted_and_questions_for_a_length_are_not", |bench| {
        let encrypt = encrypt(bench);
        let before = bench.counts();

        bench.control("Encrypt fail 0x30 1");
        let _ = encrypt();
        encrypt().unwrap();
        bench.session.generate_random_vec(8).unwrap();

        let after = bench.counts();
        let more: Vec<_> = after
            .iter()
            .filter(|(name, count)| before[*name] != **count)
            .map(|(name, count)| (name.as_str(), count - before[name]))
            .collect();
        assert_eq!(more, [("Encrypt", 2), ("EncryptInit", 2), ("GenerateRandom", 1)]);
        assert_eq!((before["Initialize"], before["Finalize"]), (1, 0));
    });
}
