//! A key's life: staged, active, retired, compromised; several workers on one register; kills.

use std::collections::HashMap;
use std::time::Duration;

use harness::soft::mac::{Padding, cmac_aes, retail_mac};
use harness::soft::random::Random;
use harness::soft::tr31::{KeyBlock, Version};
use harness::world::{Wanted, signal};
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, KeyFacts, Message, Order};
use hsm_adapter::register::{KeyProfile, KeyRegister, KeyState};
use hsm_adapter::vocabulary::{Kcv, KeyLabel, KeyName};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::key_blocks::{facts, import, kbpk, profile, refusal};
use crate::vectors_token::{Token, one_worker};

const MESSAGE: &[u8] = b"0200 and what follows it";

/// The protection key of these tests: made up.
const KBPK: [u8; 32] = [0x3C; 32];

async fn token() -> Token {
    let more_keys = vec![kbpk("kbpk.a", b'D', KBPK.to_vec(), false)];
    Token::of(Wanted { more_keys, ..Wanted::default() }).await
}

fn block(usage: &str, algorithm: char, mode: char, key: &[u8]) -> String {
    KeyBlock::new(Version::D, usage, algorithm, mode).wrap(&KBPK, key).unwrap()
}

fn cmac_key(label: &str, version: u32) -> KeyProfile {
    KeyProfile { version, ..profile(label, "M6", "A", "C") }
}

fn name(label: &str, version: Option<u32>) -> KeyName {
    KeyName { label: KeyLabel::parse(label).unwrap(), version }
}

async fn set(
    token: &Token,
    change: u64,
    (label, version): (&str, u32),
    state: KeyState,
    usable_until_s: Option<i64>,
) -> Result<KeyFacts, LinkError> {
    let key = name(label, Some(version));
    facts(token.ask(Order::SetKeyState { change, key, state, usable_until_s }).await)
}

async fn generate(token: &Token, key: KeyName) -> Result<(Vec<u8>, u32), Failure> {
    let message = Message(MESSAGE.to_vec());
    match token.ask(Order::GenerateMac { key, ksn: None, message, length: None }).await {
        Ok(Answer::Mac { mac, key_version, .. }) => Ok((mac.0.clone(), key_version)),
        Err(LinkError::Answered(failure)) => Err(failure),
        other => panic!("{other:?}"),
    }
}

async fn verify(token: &Token, key: KeyName, mac: &[u8]) -> Result<bool, Failure> {
    let message = Message(MESSAGE.to_vec());
    match token.ask(Order::VerifyMac { key, ksn: None, message, mac: Message(mac.to_vec()) }).await
    {
        Ok(Answer::Verified(verified)) => Ok(verified),
        Err(LinkError::Answered(failure)) => Err(failure),
        other => panic!("{other:?}"),
    }
}

fn not_for_this<T: std::fmt::Debug>(answer: Result<T, Failure>, why: &str) {
    match answer {
        Err(Failure::KeyNotForThis(text)) if text.contains(why) => {}
        other => panic!("{why}: {other:?}"),
    }
}

fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs() as i64
}

#[tokio::test]
async fn a_version_protects_then_verifies_until_its_time_then_does_nothing() {
    let token = token().await;
    let keys = [[1; 16], [2; 16]];
    let mac = |version: usize| cmac_aes(&keys[version - 1], MESSAGE).unwrap()[..8].to_vec();
    let (any, first, second) =
        (name("zak.t", None), name("zak.t", Some(1)), name("zak.t", Some(2)));

    // Staged: there, and used for nothing.
    let text = block("M6", 'A', 'C', &keys[0]);
    let staged = import(&token, 1, "kbpk.a", &text, cmac_key("zak.t", 1)).await.unwrap();
    assert_eq!(staged.state, KeyState::Staged);
    assert_eq!(generate(&token, any.clone()).await, Err(Failure::UnknownKey));
    not_for_this(generate(&token, first.clone()).await, "is staged");
    not_for_this(verify(&token, first.clone(), &mac(1)).await, "is staged");

    // Active: the one that is meant when none is named.
    set(&token, 2, ("zak.t", 1), KeyState::Active, None).await.unwrap();
    assert_eq!(generate(&token, any.clone()).await, Ok((mac(1), 1)));
    assert_eq!(verify(&token, any.clone(), &mac(1)).await, Ok(true));

    // Overlap: the old one verifies, and makes nothing new.
    let text = block("M6", 'A', 'C', &keys[1]);
    import(&token, 3, "kbpk.a", &text, cmac_key("zak.t", 2)).await.unwrap();
    let until = now_s() + 4;
    set(&token, 4, ("zak.t", 2), KeyState::Active, Some(until)).await.unwrap();
    assert_eq!(generate(&token, any.clone()).await, Ok((mac(2), 2)));
    assert_eq!(verify(&token, first.clone(), &mac(1)).await, Ok(true));
    assert_eq!(verify(&token, second.clone(), &mac(1)).await, Ok(false));
    not_for_this(generate(&token, first.clone()).await, "not active");
    while now_s() < until {
        sleep(Duration::from_millis(100)).await;
    }
    not_for_this(verify(&token, first.clone(), &mac(1)).await, "its time is over");

    // Compromised: nothing, and no way back.
    set(&token, 5, ("zak.t", 2), KeyState::Compromised, None).await.unwrap();
    not_for_this(verify(&token, second.clone(), &mac(2)).await, "is compromised");
    assert_eq!(generate(&token, any).await, Err(Failure::UnknownKey));
    assert_eq!(verify(&token, name("zak.t", Some(9)), &mac(2)).await, Err(Failure::UnknownKey));
    token.stop().await;
}

#[tokio::test]
async fn moves_that_are_none_are_refused_and_repeats_are_answered() {
    use KeyState::{Active, Compromised, Retired, Staged};
    let token = token().await;
    let import_of = |change, version: u32, byte| {
        let text = block("M6", 'A', 'C', &[byte; 16]);
        let token = &token;
        async move { import(token, change, "kbpk.a", &text, cmac_key("zak.t", version)).await }
    };
    import_of(1, 1, 1).await.unwrap();

    let refused = refusal(set(&token, 2, ("zak.t", 1), Retired, None).await);
    assert!(refused.contains("is staged, and does not become retired"), "{refused}");
    let unknown = set(&token, 2, ("zak.t", 7), Active, None).await;
    assert_eq!(unknown, Err(LinkError::Answered(Failure::UnknownKey)));
    set(&token, 2, ("zak.t", 1), Active, None).await.unwrap();
    let refused = refusal(set(&token, 3, ("zak.t", 1), Staged, None).await);
    assert!(refused.contains("is active, and does not become staged"), "{refused}");
    // A change that was made is not made again, whatever it says now.
    let repeated = set(&token, 2, ("zak.t", 1), Compromised, None).await.unwrap();
    assert_eq!(repeated.state, Active);
    let repeated = import_of(1, 1, 1).await.unwrap();
    assert_eq!(repeated.state, Active);
    // The same import under another number keeps the key as it is.
    let again = import_of(3, 1, 1).await.unwrap();
    assert_eq!(again.state, Active);
    // And so does the same move; one with another end is another move.
    let again = set(&token, 4, ("zak.t", 1), Active, None).await.unwrap();
    assert_eq!(again.state, Active);
    import_of(5, 2, 2).await.unwrap();
    let (end, another) = (now_s() + 60, now_s() + 120);
    set(&token, 6, ("zak.t", 2), Active, Some(end)).await.unwrap();
    set(&token, 7, ("zak.t", 2), Active, Some(end)).await.unwrap();
    let refused = refusal(set(&token, 8, ("zak.t", 2), Active, Some(another)).await);
    assert!(refused.contains("zak.t@2 is active, and does not become active"), "{refused}");
    set(&token, 8, ("zak.t", 2), Compromised, None).await.unwrap();
    let again = set(&token, 9, ("zak.t", 1), Retired, Some(end)).await.unwrap();
    assert_eq!((again.state, again.usable_until_s), (Retired, Some(end)));
    let refused = refusal(set(&token, 10, ("zak.t", 1), Retired, Some(another)).await);
    assert!(refused.contains("is retired, and does not become retired"), "{refused}");
    let refused = refusal(set(&token, 10, ("zak.t", 1), Active, None).await);
    assert!(refused.contains("is retired, and does not become active"), "{refused}");
    set(&token, 10, ("zak.t", 1), Compromised, None).await.unwrap();
    let refused = refusal(import_of(11, 1, 1).await);
    assert!(refused.contains("is compromised"), "{refused}");
    token.stop().await;
}

#[tokio::test]
async fn another_key_in_the_place_of_one_is_a_substitution_and_changes_nothing() {
    let token = token().await;
    let file = token.world.dir().join("token/keys.toml");
    let text = |byte: u8| block("M6", 'A', 'C', &[byte; 16]);
    let before = std::fs::read(&file).unwrap();
    import(&token, 1, "kbpk.a", &text(1), cmac_key("zak.t", 1)).await.unwrap();
    let zone = |byte: u8| block("P0", 'A', 'D', &[byte; 16]);
    let zone_key = || profile("zpk.t", "P0", "A", "D");
    import(&token, 2, "kbpk.a", &zone(5), zone_key()).await.unwrap();
    let after = std::fs::read(&file).unwrap();
    let substituted = |answer: Result<KeyFacts, LinkError>| {
        let Err(LinkError::Answered(Failure::KeySubstitution(why))) = answer else {
            panic!("{answer:?}")
        };
        why
    };

    // In the register, on the token, in the officer's mind: three places, one answer.
    let why = substituted(import(&token, 3, "kbpk.a", &text(2), cmac_key("zak.t", 1)).await);
    assert!(why.starts_with("zak.t@1 has check value "), "{why}");
    let kcv = Some(Kcv::parse("ABCDEF").unwrap());
    let method = Some(hsm_adapter::vocabulary::KcvMethod::Cmac);
    let expected = KeyProfile { kcv, kcv_method: method, ..cmac_key("zak.t", 2) };
    let why = substituted(import(&token, 3, "kbpk.a", &text(2), expected).await);
    assert!(why.ends_with("where ABCDEF is expected"), "{why}");
    // Two names for one key.
    for twin in [cmac_key("zak.t", 2), cmac_key("zak.other", 1)] {
        let why = refusal(import(&token, 3, "kbpk.a", &text(1), twin).await);
        assert!(why.contains("has the check value of zak.t@1"), "{why}");
    }
    let broken = KeyProfile { formats: Vec::new(), ..profile("zpk.u", "P0", "A", "D") };
    let why = refusal(import(&token, 3, "kbpk.a", &zone(6), broken).await);
    assert!(why.contains("needs `formats`"), "{why}");
    assert_eq!(std::fs::read(&file).unwrap(), after);

    // As a worker leaves it that was killed between token and register.
    std::fs::write(&file, &before).unwrap();
    let why = substituted(import(&token, 1, "kbpk.a", &text(2), cmac_key("zak.t", 1)).await);
    assert!(why.contains("\"zak.t@1\" on the token holds another key"), "{why}");
    substituted(import(&token, 1, "kbpk.a", &zone(6), zone_key()).await);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    import(&token, 1, "kbpk.a", &text(1), cmac_key("zak.t", 1)).await.unwrap();
    import(&token, 2, "kbpk.a", &zone(5), zone_key()).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), after);
    // And a worker that starts on it finds one object for each.
    let second = one_worker(&token.world).await;
    second.stop().await;
    token.stop().await;
}

#[tokio::test]
async fn a_retail_mac_key_comes_as_two_objects_and_half_a_mac_key_does_its_half() {
    let token = token().await;
    let mut cases = Random::fresh();
    let (both, half) = (cases.tdes_key(), cases.tdes_key());
    let text = block("M3", 'T', 'C', &both);
    import(&token, 1, "kbpk.a", &text, profile("zak.r", "M3", "T", "C")).await.unwrap();
    let text = block("M3", 'T', 'V', &half);
    import(&token, 2, "kbpk.a", &text, profile("zak.v", "M3", "T", "V")).await.unwrap();
    let whole = profile("zak.v2", "M3", "T", "C");
    let why = refusal(import(&token, 3, "kbpk.a", &text, whole).await);
    assert!(why.contains("its mode of use V allows less than a mac key does"), "{why}");
    set(&token, 3, ("zak.r", 1), KeyState::Active, None).await.unwrap();
    set(&token, 4, ("zak.v", 1), KeyState::Active, None).await.unwrap();
    let mac = |key: &[u8]| retail_mac(key, Padding::Method2, MESSAGE).unwrap().to_vec();

    assert_eq!(generate(&token, name("zak.r", None)).await, Ok((mac(&both), 1)));
    assert_eq!(verify(&token, name("zak.v", None), &mac(&half)).await, Ok(true));
    not_for_this(generate(&token, name("zak.v", None)).await, "makes no MACs");
    token.stop().await;
}

#[tokio::test]
async fn a_change_in_one_worker_reaches_the_other_when_it_reloads() {
    let token = token().await;
    let second = Token { link: one_worker(&token.world).await, world: token.world };
    let token = token.link;
    let first =
        async |order: Order| token.call(&order, Instant::now() + Duration::from_secs(5)).await.1;
    let text = block("M6", 'A', 'C', &[1; 16]);
    import(&second, 1, "kbpk.a", &text, cmac_key("zak.t", 1)).await.unwrap();
    set(&second, 2, ("zak.t", 1), KeyState::Active, None).await.unwrap();
    let key = name("zak.t", None);
    let mac = || Order::GenerateMac {
        key: key.clone(),
        ksn: None,
        message: Message(MESSAGE.to_vec()),
        length: None,
    };

    let before = first(mac()).await;
    let reloaded = first(Order::ReloadKeys).await;
    let after = first(mac()).await;

    assert!(matches!(before, Err(LinkError::Answered(Failure::UnknownKey))), "{before:?}");
    assert!(matches!(reloaded, Ok(Answer::Reloaded(2))), "{reloaded:?}");
    assert!(matches!(after, Ok(Answer::Mac { .. })), "{after:?}");
    // Each starts from the file: a change here does not undo the one over there.
    let key = name("zak.t", Some(1));
    let state = KeyState::Retired;
    let order = Order::SetKeyState { change: 3, key, state, usable_until_s: None };
    assert_eq!(facts(first(order).await).unwrap().state, KeyState::Retired);
    let order = Order::ImportKey {
        change: 3,
        kbpk: KeyLabel::parse("kbpk.a").unwrap().into(),
        block: hsm_adapter::vocabulary::KeyBlockText::parse(&text).unwrap(),
        profile: Box::new(cmac_key("zak.t", 1)),
    };
    assert_eq!(facts(second.ask(order).await).unwrap().state, KeyState::Retired);
    token.stop().await;
    second.stop().await;
}

/// A worker killed at any moment of a change leaves a register that reads, and an import that can be
/// repeated.
#[tokio::test]
async fn a_kill_in_the_middle_of_a_change_leaves_a_whole_register() {
    let token = token().await;
    let mut cases = Random::fresh();
    let mut keys: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut change = 0;
    for round in 0..4 {
        let pid = token.link.status()[0].pid.unwrap();
        let moment = Duration::from_millis(cases.between(5, 120) as u64);
        let kill = async {
            sleep(moment).await;
            signal(pid, Signal::KILL).unwrap();
        };
        let work = async {
            loop {
                let next = change + 1;
                let key = keys.entry(next).or_insert_with(|| cases.bytes(16)).clone();
                let text = block("M6", 'A', 'C', &key);
                let profile = cmac_key("zak.t", u32::try_from(next).unwrap());
                if import(&token, next, "kbpk.a", &text, profile).await.is_err() {
                    break;
                }
                change = next;
            }
        };
        tokio::join!(kill, work);

        let register = KeyRegister::read(&token.world.dir().join("token/keys.toml")).unwrap();
        let ours = register.iter().filter(|key| key.label.as_str() == "zak.t").count() as u64;
        assert!(ours == change || ours == change + 1, "round {round}: {ours} of {change}");
        assert_eq!(register.change(), ours, "round {round}");
        let limit = Instant::now() + Duration::from_secs(20);
        while !token.link.is_up() {
            assert!(Instant::now() < limit, "{:?}", token.link.status());
            sleep(Duration::from_millis(10)).await;
        }
        // The change that the kill cut off, once more.
        change += 1;
        let text = block("M6", 'A', 'C', &keys[&change]);
        let profile = cmac_key("zak.t", u32::try_from(change).unwrap());
        import(&token, change, "kbpk.a", &text, profile).await.unwrap();
    }
    token.stop().await;
}
