//! Keys in key blocks, asked of a real worker: the published vectors, blocks that another
//! implementation sealed, and blocks that are wrong in every way.

use harness::soft::kcv::{KeyAlgorithm as SoftAlgorithm, kcv_cmac, kcv_hmac, kcv_zeros};
use harness::soft::random::Random;
use harness::soft::tr31::{KeyBlock, Version, payload, seal};
use harness::vectors;
use harness::world::Wanted;
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, KeyFacts, Order};
use hsm_adapter::register::{
    Ibm3624Profile, KeyAlgorithm, KeyProfile, KeyState, MacProfile, MacUse,
};
use hsm_adapter::vocabulary::{
    Kcv, KcvMethod, KeyBlockText, KeyLabel, KeyRole, MacAlgorithm, MacPadding, PinBlockFormat, Pvki,
};
use softhsm::{PlannedKey, PlannedValue};

use crate::vectors_token::Token;

/// Every vector of tr31.json: what a role here uses is imported with the vector's check value, what
/// is not used is refused by its name, and what is malformed is refused.
#[tokio::test]
async fn every_vector_is_imported_or_refused_for_a_reason() {
    let vectors = vectors::load("tr31");
    let kbpks = vectors.iter().enumerate().map(|(at, v)| {
        kbpk(&format!("kbpk.{at}"), v.text("key_block").as_bytes()[0], v.hex("kbpk"), false)
    });
    let token = Token::of(Wanted { more_keys: kbpks.collect(), ..Wanted::default() }).await;
    let mut imported = 0;
    for (at, v) in vectors.iter().enumerate() {
        let text = v.text("key_block");
        let wanted = profile(&format!("key.{at}"), &text[5..7], &text[7..8], &text[8..9]);

        let answer = import(&token, at as u64 + 1, &format!("kbpk.{at}"), text, wanted).await;

        let id = v.text("id").trim_start_matches("tr31-");
        let reason = match id {
            "a001" | "a002" | "a015" | "a028" | "a029" => "usage K0 (key encryption",
            "a004" | "a009" | "a010" | "a025" => "needs a TDES key with `variant_blocks`",
            "a007" => "has the check value of key.4@1", // the same key once more
            "a016" => "usage B1 (DUKPT initial key)",
            "a017" => "usage D0 (data encryption)",
            "a019" => "usage E0 (EMV)",
            "a023" => "usage V0 (generic PIN verification",
            "a027" => "its MAC is wrong",
            "a030" => "length field",
            "a031" => "none of A, B, C, D",
            _ => {
                let facts = answer.unwrap_or_else(|error| panic!("{v}: {error:?}"));
                assert_eq!(facts.state, KeyState::Staged, "{v}");
                assert_eq!(facts.kcv, Some(expected_kcv(&text[7..8], &v.hex("key"))), "{v}");
                imported += 1;
                continue;
            }
        };
        let why = refusal(answer);
        assert!(why.contains(reason), "{v}: {why}");
    }
    assert_eq!((imported, vectors.len()), (14, 31));
    token.stop().await;
}

/// One block of each usage, under AES and under TDES of both lengths, sealed by the soft
/// implementation with optional blocks in the header.
#[tokio::test]
async fn each_usage_comes_in_under_aes_and_under_tdes() {
    let mut cases = Random::fresh();
    let protections =
        [(b'D', cases.bytes(16)), (b'D', cases.bytes(24)), (b'D', cases.bytes(32))].into_iter();
    let protections: Vec<_> = protections
        .chain([(b'B', cases.tdes_key().to_vec()), (b'B', triple(&mut cases))])
        .collect();
    let kbpks = protections
        .iter()
        .enumerate()
        .map(|(at, (version, value))| kbpk(&format!("kbpk.{at}"), *version, value.clone(), false));
    let token = Token::of(Wanted { more_keys: kbpks.collect(), ..Wanted::default() }).await;
    let mut change = 0;
    for (at, (version, protection)) in protections.iter().enumerate() {
        for (usage, algorithm, mode) in [
            ("P0", 'T', 'D'),
            ("P0", 'T', 'E'),
            ("P0", 'A', 'B'),
            ("M1", 'T', 'C'),
            ("M3", 'T', 'V'),
            ("M6", 'T', 'G'),
            ("M6", 'A', 'C'),
            ("M7", 'H', 'C'),
            ("B0", 'T', 'X'),
            ("B0", 'A', 'X'),
            ("K1", 'A', 'D'),
            ("K1", 'T', 'B'),
            ("V1", 'T', 'V'),
            ("V2", 'T', 'C'),
        ] {
            if *version == b'B' && algorithm != 'T' {
                continue;
            }
            let key = if algorithm == 'T' { cases.tdes_key().to_vec() } else { cases.bytes(16) };
            let of = if *version == b'D' { Version::D } else { Version::B };
            let mut block = KeyBlock::new(of, usage, algorithm, mode);
            block.optional.push(("XY".into(), "private text".into()));
            if algorithm == 'H' {
                block.optional.push(("HM".into(), "21".into()));
            } else {
                let of = soft(algorithm);
                let kcv: [u8; 5] = kcv_cmac(of, &key).unwrap();
                block.optional.push(("KC".into(), format!("01{}", hex::encode_upper(kcv))));
            }
            let of = if *version == b'D' { SoftAlgorithm::Aes } else { SoftAlgorithm::Tdes };
            let kcv: [u8; 3] = kcv_cmac(of, protection).unwrap();
            block.optional.push(("KP".into(), format!("01{}", hex::encode_upper(kcv))));
            let text = block.wrap(protection, &key).unwrap();
            change += 1;
            let wanted =
                profile(&format!("key.{change}"), usage, &algorithm.to_string(), &mode.to_string());

            let facts = import(&token, change, &format!("kbpk.{at}"), &text, wanted).await;

            let facts = facts.unwrap_or_else(|error| panic!("{usage}{algorithm}{mode}: {error:?}"));
            assert_eq!(facts.kcv, Some(expected_kcv(&algorithm.to_string(), &key)));
        }
    }
    assert_eq!(change, 3 * 14 + 2 * 9);
    let text = std::fs::read_to_string(token.world.dir().join("token/keys.toml")).unwrap();
    assert_eq!(text.matches("exportability = \"trusted\"").count(), change as usize);
    token.stop().await;
}

/// The check values that kcv.json states, of keys as they stand on the token: zeros, CMAC, HMAC.
#[tokio::test]
async fn check_values_are_those_of_the_vectors_by_each_method() {
    let protection = vec![0x5A; 32];
    let more_keys = vec![kbpk("kbpk.0", b'D', protection.clone(), false)];
    let token = Token::of(Wanted { more_keys, ..Wanted::default() }).await;
    let (mut compared, mut change) = (0, 0);
    for v in vectors::load("kcv") {
        let key = v.hex("key");
        // Single DES is no key of ours.
        if key.len() < 16 {
            continue;
        }
        let (usage, letter, method) = match (v.text("key_algorithm"), v.text("method")) {
            ("TDES", "zeros") => ("V2", 'T', KcvMethod::Zeros),
            ("TDES", _) => ("M6", 'T', KcvMethod::Cmac),
            ("AES", "zeros") => ("P0", 'A', KcvMethod::Zeros),
            ("AES", _) => ("M6", 'A', KcvMethod::Cmac),
            _ => ("M7", 'H', KcvMethod::HmacSha256),
        };
        let mode = if usage == "P0" { 'E' } else { 'C' };
        let mut block = KeyBlock::new(Version::D, usage, letter, mode);
        if letter == 'H' {
            block.optional.push(("HM".into(), "21".into()));
        }
        let text = block.wrap(&protection, &key).unwrap();
        let stated = Kcv::parse(&v.text("kcv")[..6]).unwrap();
        let wanted = |label: &str, kcv| KeyProfile {
            kcv: Some(kcv),
            kcv_method: Some(method),
            ..profile(label, usage, &letter.to_string(), &mode.to_string())
        };
        change += 1;
        let label = format!("key.{change}");

        let other = Kcv::parse("000001").unwrap();
        let refused = import(&token, change, "kbpk.0", &text, wanted(&label, other)).await;
        let facts = import(&token, change, "kbpk.0", &text, wanted(&label, stated)).await;

        assert!(matches!(refused, Err(LinkError::Answered(Failure::KeySubstitution(_)))), "{v}");
        let facts = facts.unwrap_or_else(|error| panic!("{v}: {error:?}"));
        assert_eq!((facts.kcv, facts.kcv_from_token), (Some(stated), true), "{v}");
        compared += 1;
    }
    assert_eq!(compared, 13);
    token.stop().await;
}

/// Blocks whose MAC is right and whose content is not, and blocks under other keys.
#[tokio::test]
async fn what_a_right_mac_covers_is_checked_too() {
    let mut cases = Random::fresh();
    let (strong, weak, tdes) = (cases.bytes(32), cases.bytes(16), cases.tdes_key().to_vec());
    let more_keys = vec![
        kbpk("kbpk.strong", b'D', strong.clone(), false),
        kbpk("kbpk.weak", b'D', weak.clone(), false),
        kbpk("kbpk.tdes", b'B', tdes.clone(), false),
    ];
    let token = Token::of(Wanted { more_keys, ..Wanted::default() }).await;
    let block = |usage: &str, algorithm| KeyBlock::new(Version::D, usage, algorithm, 'C');
    let cmac = || profile("key.a", "M6", "A", "C");
    let with_kc = |id: &str, data: &str| {
        let mut block = block("M6", 'A');
        block.optional.push((id.into(), data.into()));
        block.wrap(&strong, &[7; 16]).unwrap()
    };
    let sealed = |payload: &[u8]| {
        let header = block("M6", 'A').header(payload.len()).unwrap();
        seal(Version::D, &strong, &header, payload).unwrap()
    };
    let good = block("M6", 'A').wrap(&strong, &[7; 16]).unwrap();
    let changed = good.replacen("00E", "00S", 1);
    let long = block("M6", 'A').wrap(&weak, &[7; 32]).unwrap();
    let bits = |bits: u16| [&bits.to_be_bytes()[..], &[7; 30]].concat();
    let triple =
        KeyBlock::new(Version::B, "V2", 'T', 'C').wrap(&tdes, &triple(&mut cases)).unwrap();
    let single = payload(&[0x31; 8], 16).unwrap();
    let single_header = KeyBlock::new(Version::D, "V2", 'T', 'C').header(single.len()).unwrap();
    let single = seal(Version::D, &strong, &single_header, &single).unwrap();
    let pvv = || profile("key.a", "V2", "T", "C");
    let register = || std::fs::read(token.world.dir().join("token/keys.toml")).unwrap();
    let before = register();

    for (kbpk, text, wanted, reason) in [
        ("kbpk.weak", good.as_str(), cmac(), "MAC is wrong"),
        ("kbpk.tdes", &good, cmac(), "version D needs an AES key"),
        ("kbpk.strong", &changed, cmac(), "MAC is wrong"),
        ("kbpk.weak", &long, cmac(), "weaker than the key"),
        ("kbpk.tdes", &triple, pvv(), "weaker than the key"),
        ("kbpk.strong", &triple, pvv(), "version B needs a TDES key"),
        ("kbpk.strong", &with_kc("KC", "010102030405"), cmac(), "its KC block states"),
        ("kbpk.strong", &with_kc("KP", "010102030405"), cmac(), "its KP block states"),
        ("kbpk.strong", &sealed(&bits(64)), cmac(), "a length that its algorithm"),
        ("kbpk.strong", &sealed(&bits(129)), cmac(), "a length that its algorithm"),
        ("kbpk.strong", &sealed(&bits(256)), cmac(), "cut short"),
        ("kbpk.strong", &sealed(&[&[0, 128][..], &[7; 62]].concat()), cmac(), "padding"),
        ("kbpk.strong", &single, pvv(), "single DES"),
        ("kbpk.strong", &good, profile("key.a", "P0", "A", "D"), "does not make a zone-pin-in"),
        ("kbpk.strong", &good, profile("key.a", "M6", "T", "C"), "another algorithm"),
    ] {
        let why = refusal(import(&token, 1, kbpk, text, wanted).await);

        assert!(why.contains(reason), "{reason}: {why}");
        assert_eq!(register(), before, "{reason}");
    }
    // The KEK of the queue opens no block, and nor does a key that is not there.
    let queue = import(&token, 1, "queue.kek", &good, cmac()).await;
    assert!(matches!(queue, Err(LinkError::Answered(Failure::KeyNotForThis(_)))), "{queue:?}");
    let none = import(&token, 1, "kbpk.none", &good, cmac()).await;
    assert!(matches!(none, Err(LinkError::Answered(Failure::UnknownKey))), "{none:?}");
    assert!(import(&token, 1, "kbpk.strong", &good, cmac()).await.is_ok());
    token.stop().await;
}

/// Ten thousand blobs: none is imported, and no object is left on a session. The shim counts.
#[tokio::test]
async fn ten_thousand_malformed_blocks_leave_nothing() {
    let mut cases = Random::fresh();
    let (aes, tdes) = (cases.bytes(32), cases.tdes_key().to_vec());
    let more_keys = vec![
        kbpk("kbpk.aes", b'D', aes.clone(), false),
        kbpk("kbpk.tdes", b'B', tdes.clone(), false),
    ];
    let token = Token::of(Wanted { more_keys, shim: true, ..Wanted::default() }).await;
    let goods = [
        ("kbpk.aes", KeyBlock::new(Version::D, "P0", 'A', 'D').wrap(&aes, &[9; 16]).unwrap()),
        (
            "kbpk.tdes",
            KeyBlock::new(Version::B, "P0", 'T', 'D').wrap(&tdes, &cases.tdes_key()).unwrap(),
        ),
    ];
    let register = || std::fs::read(token.world.dir().join("token/keys.toml")).unwrap();
    let (before, objects_before) = (register(), objects(&token));

    for round in 0..10_000 {
        let (kbpk, good) = &goods[round % 2];
        let text = malformed(&mut cases, good);
        if text == *good {
            continue;
        }
        let wanted = profile("key.a", "P0", if round % 2 == 0 { "A" } else { "T" }, "D");

        let answer = import(&token, 1, kbpk, &text, wanted).await;

        let Err(LinkError::Answered(Failure::KeyBlockRefused(_))) = answer else {
            panic!("{text}: {answer:?}")
        };
    }

    assert_eq!(register(), before);
    assert_eq!(objects(&token), objects_before);
    for (kbpk, good) in &goods {
        let algorithm = &good[7..8];
        let label = format!("key.{}", algorithm.to_lowercase());
        let change = u64::from(algorithm == "T") + 1;
        assert!(
            import(&token, change, kbpk, good, profile(&label, "P0", algorithm, "D")).await.is_ok()
        );
    }
    assert_eq!(objects(&token), objects_before + 2, "the two keys, and nothing beside them");
    token.stop().await;
}

/// Versions A and C: nothing without the switch; with it, on a token that makes variants, the key;
/// and on SoftHSM, which does not, a sentence.
#[tokio::test]
async fn variant_blocks_want_a_switch_and_a_token_that_makes_variants() {
    let mut cases = Random::fresh();
    let protection = cases.tdes_key().to_vec();
    for (shim, wanted) in [(true, None), (false, Some("cannot make the key variants"))] {
        let more_keys = vec![
            kbpk("kbpk.variant", b'C', protection.clone(), true),
            kbpk("kbpk.derived", b'B', protection.clone(), false),
        ];
        let token = Token::of(Wanted { more_keys, shim, ..Wanted::default() }).await;
        for (version, change) in [(Version::A, 1), (Version::C, 2)] {
            let key = cases.tdes_key();
            let text = KeyBlock::new(version, "M3", 'T', 'C').wrap(&protection, &key).unwrap();
            let profile = || profile(&format!("key.{change}"), "M3", "T", "C");
            let mut bad = text.clone();
            let last = if bad.ends_with('0') { "1" } else { "0" };
            bad.replace_range(bad.len() - 1.., last);

            let off = import(&token, change, "kbpk.derived", &text, profile()).await;
            let broken = import(&token, change, "kbpk.variant", &bad, profile()).await;
            let answer = import(&token, change, "kbpk.variant", &text, profile()).await;

            assert!(refusal(off).contains("`variant_blocks` on, which is off"));
            match wanted {
                Some(reason) => {
                    let why = refusal(answer);
                    assert!(why.contains(reason), "{why}");
                }
                None => {
                    let why = refusal(broken);
                    assert!(why.contains("MAC is wrong"), "{why}");
                    assert_eq!(answer.unwrap().kcv, Some(expected_kcv("T", &key)));
                }
            }
        }
        // One key, one binding.
        let text = KeyBlock::new(Version::B, "M3", 'T', 'C');
        let text = text.wrap(&protection, &cases.tdes_key()).unwrap();
        let why = refusal(
            import(&token, 3, "kbpk.variant", &text, profile("key.3", "M3", "T", "C")).await,
        );
        assert!(why.contains("without `variant_blocks`"), "{why}");
        token.stop().await;
    }
}

/// Session and token objects made through the shim, less those destroyed.
fn objects(token: &Token) -> i64 {
    let counts = token.world.shim_counts().unwrap();
    let of = |name: &str| counts.get(name).copied().unwrap_or_default() as i64;
    of("CreateObject") + of("DeriveKey") + of("GenerateKey") + of("UnwrapKey") - of("DestroyObject")
}

/// A good block with something changed, cut or added; or printable noise.
fn malformed(cases: &mut Random, good: &str) -> String {
    let mut text = good.as_bytes().to_vec();
    let printable = |cases: &mut Random| cases.between(0x20, 0x7E) as u8;
    match cases.between(0, 5) {
        0 => {
            let at = cases.between(0, text.len() - 1);
            text[at] = printable(cases);
        }
        1 => {
            let at = cases.between(0, 15);
            text[at] = cases.pick(b"0123456789ABCDEHTPMKXVGN");
        }
        2 => {
            let at = cases.between(16, text.len() - 1);
            text[at] = cases.pick(b"0123456789ABCDEF");
        }
        3 => text.truncate(cases.between(16, text.len() - 1)),
        4 => {
            let many = cases.between(1, 40);
            text.extend(
                cases.bytes(many).iter().map(|byte| b"0123456789ABCDEF"[usize::from(byte % 16)]),
            );
            let length = format!("{:04}", text.len());
            text[1..5].copy_from_slice(length.as_bytes());
        }
        _ => {
            let many = cases.between(16, 200);
            text = (0..many).map(|_| printable(cases)).collect();
        }
    }
    String::from_utf8(text).unwrap()
}

fn triple(cases: &mut Random) -> Vec<u8> {
    [cases.tdes_key(), cases.tdes_key()].concat()[..24].to_vec()
}

fn soft(algorithm: char) -> SoftAlgorithm {
    if algorithm == 'A' { SoftAlgorithm::Aes } else { SoftAlgorithm::Tdes }
}

fn expected_kcv(algorithm: &str, key: &[u8]) -> Kcv {
    let bytes = match algorithm {
        "T" => kcv_zeros(SoftAlgorithm::Tdes, key).unwrap(),
        "A" => kcv_cmac(SoftAlgorithm::Aes, key).unwrap(),
        _ => kcv_hmac(key).unwrap(),
    };
    Kcv::from_left(&bytes).unwrap()
}

/// A protection key for blocks of this version.
pub(crate) fn kbpk(label: &str, version: u8, value: Vec<u8>, variant_blocks: bool) -> PlannedKey {
    let algorithm = if value.len() == 32 || matches!(version, b'D' | b'E' | b'Z') {
        KeyAlgorithm::Aes
    } else {
        KeyAlgorithm::Tdes
    };
    let label = KeyLabel::parse(label).unwrap();
    let base = KeyProfile::new(label, KeyRole::KeyBlockProtection, algorithm);
    let profile = KeyProfile { variant_blocks, ..base };
    PlannedKey { profile, value: Some(PlannedValue(value.into())) }
}

/// What a key of this usage, algorithm and mode of use may be here.
pub(crate) fn profile(label: &str, usage: &str, algorithm: &str, mode: &str) -> KeyProfile {
    let role = match (usage, mode) {
        ("P0", "E") => KeyRole::ZonePinOut,
        ("M0" | "M1" | "M3" | "M6" | "M7", _) => KeyRole::Mac,
        ("B0", _) => KeyRole::BaseDerivation,
        ("K1", _) => KeyRole::KeyBlockProtection,
        ("V1", _) => KeyRole::PinVerification3624,
        ("V2", _) => KeyRole::PinVerificationPvv,
        _ => KeyRole::ZonePinIn,
    };
    let algorithm = match algorithm {
        "A" => KeyAlgorithm::Aes,
        "H" => KeyAlgorithm::Hmac,
        _ => KeyAlgorithm::Tdes,
    };
    let mut profile = KeyProfile::new(KeyLabel::parse(label).unwrap(), role, algorithm);
    if matches!(role, KeyRole::ZonePinIn | KeyRole::ZonePinOut) {
        let aes = algorithm == KeyAlgorithm::Aes;
        profile.formats = vec![if aes { PinBlockFormat::Iso4 } else { PinBlockFormat::Iso0 }];
    }
    if role == KeyRole::Mac {
        let algorithm = match usage {
            "M3" => MacAlgorithm::Retail,
            "M6" => MacAlgorithm::Cmac,
            "M7" => MacAlgorithm::HmacSha256,
            _ => MacAlgorithm::CbcMac,
        };
        let padded = matches!(algorithm, MacAlgorithm::Retail | MacAlgorithm::CbcMac);
        profile.mac = Some(MacProfile {
            algorithm,
            padding: padded.then_some(MacPadding::Two),
            length: 8,
            length_min: None,
            empty_message: false,
        });
        profile.mac_use = match mode {
            "G" => Some(MacUse::Generate),
            "V" => Some(MacUse::Verify),
            _ => None,
        };
    }
    if role == KeyRole::PinVerificationPvv {
        profile.pvki = vec![Pvki::try_from(1).unwrap()];
    }
    if role == KeyRole::PinVerification3624 {
        profile.ibm3624 = Some(Ibm3624Profile {
            decimalisation_table: "0123456789012345".into(),
            pan_offset: 0,
            pan_digits: 16,
            pad: 'F',
        });
    }
    profile
}

/// Asks for an import.
pub(crate) async fn import(
    token: &Token,
    change: u64,
    kbpk: &str,
    text: &str,
    profile: KeyProfile,
) -> Result<KeyFacts, LinkError> {
    let order = Order::ImportKey {
        change,
        kbpk: KeyLabel::parse(kbpk).unwrap().into(),
        block: KeyBlockText::parse(text).unwrap(),
        profile: Box::new(profile),
    };
    facts(token.ask(order).await)
}

/// The key that an order answered.
pub(crate) fn facts(answer: Result<Answer, LinkError>) -> Result<KeyFacts, LinkError> {
    let answer = answer?;
    let Answer::Key(facts) = answer else { panic!("{answer:?}") };
    Ok(*facts)
}

/// Why a block or a change was refused.
pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, LinkError>) -> String {
    match answer {
        Err(LinkError::Answered(
            Failure::KeyBlockRefused(why) | Failure::KeyChangeRefused(why),
        )) => why,
        other => panic!("{other:?}"),
    }
}
