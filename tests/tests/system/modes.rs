//! Modes `in_token` and `vendor`, over SoftHSM behind the shim, which gives it what it lacks; and
//! what is told when a token, or a rule, does not allow a mode.

use std::process::Output;
use std::time::Duration;

use harness::acquirer::PinSide;
use harness::demo_keys::DemoKeys;
use harness::soft::pin::{PinFormat, open_pin, seal_pin};
use harness::world::{Wanted, World, program};
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Message, Order, PinKey};
use hsm_adapter::register::KeyAlgorithm;
use hsm_adapter::vocabulary::{
    KeyLabel, KeyName, KeyRole, MacAlgorithm, Mode, Pan, PinBlock, PinBlockFormat,
};
use softhsm::PlannedKey;
use tokio::time::Instant;

use crate::support::Counter;
use crate::vector_keys::{MacCase, Translation, VectorKeys, macs, translations};
use crate::vectors_token::{Token, assert_block, flipped, side, without_text};

/// Cells that can be served inside a token by PKCS#11.
const IN_TOKEN: [(usize, usize); 5] = [(0, 0), (3, 3), (4, 4), (0, 4), (4, 0)];

const VENDOR: &str = r#"
[vendor.pin_translate]
mechanism = 0x80000201
parameter = "pin-translate-1"
cells = [
    ["iso0", "iso0"], ["iso0", "iso3"], ["iso0", "iso4"], ["iso1", "iso0"], ["iso1", "iso4"],
    ["iso3", "iso0"], ["iso3", "iso4"], ["iso4", "iso0"], ["iso4", "iso3"], ["iso4", "iso4"],
]
[vendor.retail_mac]
mechanism = 0x80000135
"#;

/// Zone keys get this mode; format 1 stays where it can be served.
fn set_mode(keys: &mut [PlannedKey], mode: Mode) {
    for PlannedKey { profile, .. } in keys {
        let derives = profile.role == KeyRole::BaseDerivation
            && profile.algorithm == KeyAlgorithm::Aes
            && mode == Mode::InToken;
        if derives || matches!(profile.role, KeyRole::ZonePinIn | KeyRole::ZonePinOut) {
            profile.mode = mode;
            if mode == Mode::InToken {
                profile.formats.retain(|format| *format != PinBlockFormat::Iso1);
            }
        }
    }
}

fn translation_order(case: &Translation) -> (String, Order) {
    let (inside, outside) = (case.vector.part("in"), case.vector.part("out"));
    let pan = inside.find("pan").unwrap_or_else(|| outside.text("pan")).to_owned();
    let order = Order::TranslatePin {
        pan: Pan::parse(&pan).unwrap(),
        block: PinBlock::new(inside.hex("block")).unwrap(),
        from: side(&case.from, &inside),
        to: side(&case.to, &outside),
    };
    (pan, order)
}

fn is_refused(answer: Result<Answer, LinkError>) -> bool {
    without_text(answer) == Err(LinkError::Answered(Failure::PinBlockRefused))
}

fn is_not_for_this(answer: Result<Answer, LinkError>) -> bool {
    without_text(answer) == Err(LinkError::Answered(Failure::KeyNotForThis(String::new())))
}

#[tokio::test]
async fn a_token_that_unwraps_serves_the_cells_of_its_mode_and_refuses_the_others() {
    let mut keys = VectorKeys::default();
    let cases = translations(&mut keys);
    set_mode(&mut keys.0, Mode::InToken);
    let wanted = Wanted { more_keys: keys.0, shim: true, ..Wanted::default() };
    let token = Token::of(wanted).await;

    let (mut served, mut unserved) = (0, 0);
    for case in &cases {
        let v = &case.vector;
        let (pan, order) = translation_order(case);
        let cell = (v.part("in").number("format"), v.part("out").number("format"));
        // The register steps of TDES DUKPT pass through the worker: a key of another mode.
        let steps = v.part("in").has("dukpt") && cell.0 == 0;

        let answer = token.ask(order).await;

        match v.find("error") {
            None if IN_TOKEN.contains(&cell) && !steps => {
                let Ok(Answer::Block { block, .. }) = answer else { panic!("{v}: {answer:?}") };
                assert_block(v, &pan, block.expose());
                served += 1;
            }
            // A block under another key or of a length that no PIN has; digits are not seen inside.
            Some("pin_block_invalid") => {
                let well = matches!(answer, Ok(Answer::Block { .. }));
                assert!(well || is_refused(answer), "{v}");
            }
            Some("pan_change") => assert!(answer.is_ok(), "{v}: {answer:?}"),
            None | Some(_) => {
                assert!(is_not_for_this(answer), "{v}");
                unserved += 1;
            }
        }
    }
    assert_eq!((served, unserved), (10, 14));
    token.link.stop().await;
}

/// What is inside is the same PIN, whatever its length; what is no block of its key is refused but
/// for one in 28; and no object outlives its operation.
#[tokio::test]
async fn pins_of_every_length_pass_inside_the_token_and_nothing_of_them_stays() {
    let mut keys = VectorKeys::default();
    let cases = translations(&mut keys);
    set_mode(&mut keys.0, Mode::InToken);
    let wanted = Wanted { more_keys: keys.0, shim: true, ..Wanted::default() };
    let token = Token::of(wanted).await;
    let good = cases.iter().filter(|case| !case.vector.has("error"));
    let before = token.world.shim_counts().unwrap();

    let (mut passed, mut refused, mut wrong) = (0, 0, 0);
    for case in good {
        let v = &case.vector;
        let (inside, outside) = (v.part("in"), v.part("out"));
        let cell = (inside.number("format"), outside.number("format"));
        if !IN_TOKEN.contains(&cell) || inside.has("dukpt") {
            continue;
        }
        let [from, to]: [PinFormat; 2] =
            [cell.0, cell.1].map(|format| format!("iso{format}").parse().unwrap());
        for length in 4..=12 {
            let (pan, pin) = ("4761737909457820", &"907182736450"[..length]);
            let block = seal_pin(from, &inside.hex("key"), pan, pin).unwrap();
            let order = |block: Vec<u8>| Order::TranslatePin {
                pan: Pan::parse(pan).unwrap(),
                block: PinBlock::new(block).unwrap(),
                from: side(&case.from, &inside),
                to: side(&case.to, &outside),
            };

            let answer = token.ask(order(block.clone())).await;
            let garbled = token.ask(order(flipped(&block, length))).await;

            let Ok(Answer::Block { block, .. }) = answer else { panic!("{v}: {answer:?}") };
            let opened = open_pin(to, &outside.hex("key"), pan, block.expose());
            assert_eq!(opened.as_deref(), Ok(pin), "{v}, {length} digits");
            passed += 1;
            if is_refused(garbled) { refused += 1 } else { wrong += 1 }
        }
    }
    let after = token.world.shim_counts().unwrap();
    let made = |name: &str| after[name] - before.get(name).copied().unwrap_or(0);

    assert_eq!(passed, 72);
    assert!(refused >= 60, "{refused} refused, {wrong} not");
    // Two objects a translation: the length and the PIN.
    assert_eq!(made("UnwrapKey"), 4 * passed);
    assert_eq!(made("DestroyObject"), 4 * passed);
    token.link.stop().await;
}

#[tokio::test]
async fn a_vendors_mechanisms_translate_and_make_macs_as_the_vectors_say() {
    let mut keys = VectorKeys::default();
    let cases = translations(&mut keys);
    let all = macs(&mut keys);
    let retail =
        |key: &PlannedKey| key.profile.mac.is_some_and(|mac| mac.algorithm == MacAlgorithm::Retail);
    set_mode(&mut keys.0, Mode::Vendor);
    for key in keys.0.iter_mut().filter(|key| retail(key)) {
        key.profile.mode = Mode::Vendor;
    }
    let labels: Vec<String> =
        keys.0.iter().filter(|key| retail(key)).map(|key| key.profile.label.to_string()).collect();
    let (vendor, shim) = (VENDOR.to_owned(), true);
    let token = Token::of(Wanted { more_keys: keys.0, shim, vendor, ..Wanted::default() }).await;

    let mut translated = 0;
    for case in cases.iter().filter(|case| !case.vector.part("in").has("dukpt")) {
        let v = &case.vector;
        let (pan, order) = translation_order(case);
        let answer = token.ask(order).await;
        match v.find("error") {
            None => {
                let Ok(Answer::Block { block, .. }) = answer else { panic!("{v}: {answer:?}") };
                assert_block(v, &pan, block.expose());
                translated += 1;
            }
            Some("pan_change") => assert!(answer.is_ok(), "{v}: {answer:?}"),
            Some("pin_block_invalid") => assert!(is_refused(answer), "{v}"),
            Some(_) => assert!(is_not_for_this(answer), "{v}"),
        }
    }
    let mut made = 0;
    for MacCase { vector: v, key } in all.iter().filter(|case| labels.contains(&case.key)) {
        let key = || KeyName::from(KeyLabel::parse(key).unwrap());
        let (message, mac) = (v.hex("message"), v.hex("mac"));
        let verify = |mac| Order::VerifyMac {
            key: key(),
            ksn: None,
            message: Message(message.clone()),
            mac: Message(mac),
        };
        let order = Order::GenerateMac {
            key: key(),
            ksn: None,
            message: Message(message.clone()),
            length: None,
        };
        let answer = token.ask(order).await;
        let Ok(Answer::Mac { mac: found, .. }) = answer else { panic!("{v}: {answer:?}") };
        assert_eq!(hex::encode_upper(&found.0), v.text("mac"), "{v}");
        let wrong = flipped(&mac, made);
        assert!(matches!(token.ask(verify(mac)).await, Ok(Answer::Verified(true))), "{v}");
        assert!(matches!(token.ask(verify(wrong)).await, Ok(Answer::Verified(false))), "{v}");
        made += 1;
    }

    assert_eq!(translated, 16);
    assert!(made >= 10, "{made}");
    token.link.stop().await;
}

/// SoftHSM has no C_UnwrapKey by DES3_CBC: keys of mode `in_token` can be made, and are not served.
#[tokio::test]
async fn a_token_that_cannot_unwrap_is_refused_with_what_it_answered_and_what_to_do() {
    let edit_keys = |keys: &mut Vec<PlannedKey>| set_mode(keys, Mode::InToken);
    let wanted = Wanted { edit_keys: Some(Box::new(edit_keys)), ..Wanted::default() };
    let token = Token::starting(wanted);

    let limit = Instant::now() + Duration::from_secs(15);
    while !token.link.status()[0].latched {
        assert!(Instant::now() < limit, "{:?}", token.link.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let status = token.link.status().remove(0);
    let told = status.trouble.unwrap();
    assert!(status.refused && !status.ready);
    for part in ["translate iso0 to iso0 in mode in_token", "unwrap DES3_CBC", "MechanismInvalid"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(told.contains("give the keys another mode"), "{told}");
    token.link.stop().await;
}

/// Keys of two modes have no operation in common.
#[tokio::test]
async fn a_pair_of_two_modes_is_refused() {
    let edit_keys = |keys: &mut Vec<PlannedKey>| {
        let inbound = keys.iter_mut().filter(|key| key.profile.role == KeyRole::ZonePinIn);
        inbound.for_each(|key| set_mode(std::slice::from_mut(key), Mode::InToken));
    };
    let edit_keys = Some(Box::new(edit_keys) as _);
    let token = Token::of(Wanted { edit_keys, shim: true, ..Wanted::default() }).await;
    let key =
        |label, format| PinKey { key: KeyLabel::parse(label).unwrap().into(), format, ksn: None };

    let answer = token
        .ask(Order::TranslatePin {
            pan: Pan::parse("4761737909457820").unwrap(),
            block: PinBlock::new(vec![7; 8]).unwrap(),
            from: key("zpk.acquirer-a", PinBlockFormat::Iso0),
            to: key("zpk.billing", PinBlockFormat::Iso0),
        })
        .await;

    let Err(LinkError::Answered(Failure::KeyNotForThis(why))) = answer else {
        panic!("{answer:?}")
    };
    assert!(why.contains("in_token") && why.contains("in_worker"), "{why}");
    token.link.stop().await;
}

fn production(table: &mut toml::Table) {
    table.insert("environment".into(), "production".into());
}

async fn tollgate(world: &World, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program("tollgate").unwrap());
    command.args(arguments).arg("--config").arg(world.config()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(30), command.output());
    output.await.unwrap().unwrap()
}

#[tokio::test]
async fn production_refuses_a_key_with_clear_pins_in_the_worker_and_names_it() {
    let world =
        World::prepare(Wanted { edit: Some(Box::new(production)), ..Wanted::default() }).unwrap();

    let served = tollgate(&world, &["serve"]).await;
    let checked = tollgate(&world, &["check"]).await;

    let told = String::from_utf8(served.stderr).unwrap();
    let table = String::from_utf8(checked.stdout).unwrap();
    assert_eq!((served.status.code(), checked.status.code()), (Some(1), Some(1)), "{told}");
    for text in [&told, &table] {
        assert!(text.contains("has mode in_worker"), "{text}");
        assert!(text.contains("hsm.in_worker_waiver"), "{text}");
    }
    assert!(told.contains("key bdk.terminals@1"), "{told}");
    assert!(table.contains("RED  hsm worker"), "{table}");
}

#[tokio::test]
async fn production_takes_such_keys_with_a_waiver() {
    let edit = |table: &mut toml::Table| {
        production(table);
        let waiver: toml::Table =
            toml::from_str("name = \"Head\"\nreason = \"pilot\"\nuntil = \"2999-01-31\"").unwrap();
        let hsm = table.get_mut("hsm").unwrap().as_table_mut().unwrap();
        hsm.insert("in_worker_waiver".into(), waiver.into());
    };
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };

    World::start_as(wanted).await.unwrap();
}

/// The whole way with PINs inside the token alone: no waiver, and every place says so.
#[tokio::test]
async fn production_without_clear_pins_outside_the_token_needs_no_waiver_and_tells_its_mode() {
    let edit_keys = |keys: &mut Vec<PlannedKey>| {
        set_mode(keys, Mode::InToken);
        keys.retain(|key| key.profile.mode == Mode::InToken || !key.profile.carries_pins());
    };
    let world = World::start_as(Wanted {
        edit_keys: Some(Box::new(edit_keys)),
        edit: Some(Box::new(production)),
        shim: true,
        ..Wanted::default()
    })
    .await
    .unwrap();
    let counter = Counter::a(&world);
    let pan = "4761737909457820";
    let block = counter.acquirer.pin_block("271828", pan, PinFormat::Iso0).unwrap();

    let from = PinSide { key: "zpk.acquirer-a", format: "iso0", ksn: None };
    let to = PinSide { key: "zpk.billing-aes", format: "iso4", ksn: None };
    let translated = counter.client.translate(pan, &block, from, to).await.unwrap();
    let listed = tollgate(&world, &["links", "list"]).await;
    let json = tollgate(&world, &["links", "list", "--json"]).await;
    let checked = tollgate(&world, &["check"]).await;
    let monitor = world.admin("monitor").unwrap();
    let figures = monitor.send(reqwest::Method::GET, "/metrics", &[], Vec::new()).await.unwrap();

    let key = DemoKeys::load().value("zpk.billing-aes");
    let block = hex::decode(&translated.pin_block).unwrap();
    assert_eq!(open_pin(PinFormat::Iso4, &key, pan, &block).as_deref(), Ok("271828"));
    let figures = String::from_utf8(figures.body.to_vec()).unwrap();
    let counted = figures.lines().find(|line| {
        line.contains("operation=\"pin_translate\"") && line.contains("mode=\"in_token\"")
    });
    assert!(counted.is_some(), "{figures}");
    let table = String::from_utf8(listed.stdout).unwrap();
    assert!(table.contains("primary, clear PINs in_token, "), "{table}");
    assert!(table.contains("unwrap DES3_CBC, wrap AES_CBC padding"), "{table}");
    let links: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(links["links"][0]["mode"], "in_token");
    assert_eq!(links["links"][0]["workers"].as_array().unwrap().len(), 2);
    // The demo grants cells that no token can serve: each is named.
    let text = String::from_utf8(checked.stdout).unwrap();
    assert!(text.contains("iso0 to iso3 is not served in mode in_token"), "{text}");
    let events = world.audit().unwrap();
    let modes: Vec<_> =
        events.iter().filter(|event| event["event"]["type"] == "hsm.mode").collect();
    assert_eq!(modes.len(), 1, "{modes:?}");
    assert_eq!((&modes[0]["mode"], &modes[0]["link"]), (&"in_token".into(), &"primary".into()));
}

/// Links are for those who watch, not for clients.
#[tokio::test]
async fn links_are_for_admin_roles() {
    let world = World::start().await.unwrap();
    let ask = async |name: &str| {
        let client = world.admin(name).unwrap();
        client.send(reqwest::Method::GET, "/v1/links", &[], Vec::new()).await.unwrap()
    };

    let (operator, client) = (ask("operator").await, ask("acquirer-a").await);

    assert_eq!((operator.status.as_u16(), client.status.as_u16()), (200, 403));
    let link = &operator.json()["links"][0];
    assert_eq!((&link["mode"], &link["usable"]), (&"in_worker".into(), &true.into()));
    let recipes = link["recipes"].as_array().unwrap();
    let modes: Vec<_> = recipes.iter().map(|recipe| recipe["mode"].as_str().unwrap()).collect();
    assert!(modes.contains(&"in_worker") && !modes.contains(&"vendor"), "{modes:?}");
}
