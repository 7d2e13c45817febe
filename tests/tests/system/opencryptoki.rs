//! Mode `in_token` on a second real token, opencryptoki's soft token, which unwraps and wraps by
//! itself: no shim between. `make test-opencryptoki` installs, starts and initialises it.
//!
//! The token is the machine's own: every key that a test makes there is destroyed at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::soft::pin::{PinFormat, open_pin, seal_pin};
use harness::vectors::{self, Vector};
use harness::world::program;
use hsm_adapter::ceremony::Ceremony;
use hsm_adapter::client::{LinkError, LinkOptions, TokenLink};
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, LintReport, Message, Order, ProbeOutcome};
use hsm_adapter::register::{KeyProfile, KeyRegister};
use hsm_adapter::vocabulary::{
    KeyLabel, KeyName, KeyRole, MacAlgorithm, Mode, Pan, PinBlock, PinBlockFormat,
};
use hsm_adapter::worker::Probes;
use secrecy::SecretString;
use softhsm::PlannedKey;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::vector_keys::{MacCase, VectorKeys, macs};
use crate::vectors_token::{flipped, side};

/// Cells that can be served inside a token by PKCS#11.
const CELLS: [(usize, usize); 5] = [(0, 0), (3, 3), (4, 4), (0, 4), (4, 0)];

/// What opencryptoki 3.8.1 does although a token must not.
const RED: [&str; 9] = [
    "mechanism",
    "copy",
    "copy-with-decrypt",
    "read-unwrapped",
    "digest-key",
    "wrap-untrusted",
    "holds-allowed-mechanisms",
    "holds-copyable",
    "holds-unwrap-template",
];

fn from_script(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("no {name}: run make test-opencryptoki")).into()
}

/// One translation: a vector, and the side that its PIN goes out to.
struct Case {
    vector: Vector,
    outside: Vector,
    from: String,
    to: String,
}

/// The translation vectors between zone keys whose cells this mode serves. No vector goes from
/// format 3 to format 3: the first that comes in so goes out to the first key that gives it out.
fn translations(keys: &mut VectorKeys) -> Vec<Case> {
    let all: Vec<_> = vectors::load("pin_translation")
        .into_iter()
        .filter(|vector| !vector.has("error") && !vector.part("in").has("dukpt"))
        .collect();
    let format = |vector: &Vector, side: &str| vector.part(side).number("format");
    let first = |side: &str| all.iter().find(|vector| format(vector, side) == 3).unwrap();
    let mut pairs = vec![(first("in").clone(), first("out").part("out"))];
    for vector in &all {
        if CELLS.contains(&(format(vector, "in"), format(vector, "out"))) {
            pairs.push((vector.clone(), vector.part("out")));
        }
    }
    let mut cases = Vec::new();
    for (vector, outside) in pairs {
        let from = keys.zone(KeyRole::ZonePinIn, &vector.part("in"));
        let to = keys.zone(KeyRole::ZonePinOut, &outside);
        cases.push(Case { vector, outside, from, to });
    }
    for PlannedKey { profile, .. } in &mut keys.0 {
        profile.mode = Mode::InToken;
        profile.formats.retain(|format| *format != PinBlockFormat::Iso1);
    }
    cases
}

/// The MAC vectors of these algorithms, and their keys.
fn macs_of(algorithms: &[MacAlgorithm]) -> (Vec<MacCase>, Vec<PlannedKey>) {
    let mut keys = VectorKeys::default();
    let mut cases = macs(&mut keys);
    keys.0.retain(|key| key.profile.mac.is_some_and(|mac| algorithms.contains(&mac.algorithm)));
    cases.retain(|case| keys.0.iter().any(|key| key.profile.label.to_string() == case.key));
    (cases, keys.0)
}

/// Keys on the token, with the register that names them. Destroys them when it goes.
struct Keys {
    dir: TempDir,
    ceremony: Ceremony,
    profiles: Vec<KeyProfile>,
}

impl Keys {
    fn put(plan: Vec<PlannedKey>) -> Self {
        let pin = std::fs::read_to_string(from_script("TOLLGATE_TEST_PIN_FILE")).unwrap();
        let pin = SecretString::from(pin.trim_end().to_owned());
        let module = from_script("TOLLGATE_TEST_MODULE");
        let ceremony = Ceremony::open(&module, "tollgate-test", &pin).unwrap();
        let profiles: Vec<_> = plan.iter().map(|key| key.profile.clone()).collect();
        let dir = tempfile::Builder::new().prefix("tollgate-").tempdir().unwrap();
        let keys = Self { dir, ceremony, profiles };
        for PlannedKey { profile, value } in &plan {
            // What a test that was killed has left.
            keys.ceremony.destroy(profile).unwrap();
            keys.ceremony.danger_import_clear_key(profile, &value.as_ref().unwrap().0).unwrap();
        }
        let register = KeyRegister::new(keys.profiles.clone()).unwrap();
        std::fs::write(keys.register(), register.to_toml().unwrap()).unwrap();
        keys
    }

    fn register(&self) -> PathBuf {
        Path::join(self.dir.path(), "keys.toml")
    }

    /// One worker on them, starting.
    fn link(&self, probes: Probes, accepted: &[&str]) -> TokenLink {
        TokenLink::start(LinkOptions {
            name: "primary".into(),
            program: program("tollgate-hsm").unwrap(),
            module: from_script("TOLLGATE_TEST_MODULE"),
            token_label: "tollgate-test".into(),
            pin_file: from_script("TOLLGATE_TEST_PIN_FILE"),
            keys: self.register(),
            vendor_codes: Vec::new(),
            module_sha256: None,
            probes,
            accepted_probes: accepted.iter().map(|name| (*name).to_owned()).collect(),
            in_worker: false,
            environment: BTreeMap::new(),
            workers: 1,
            sessions: 1,
            in_flight_max: 16,
            start_limit: Duration::from_secs(15),
            lost_max: 2,
            lost_limit: Duration::from_secs(5),
            answer_limit: Duration::from_secs(2),
            restart_wait: Duration::from_millis(100),
            restart_wait_max: Duration::from_secs(2),
        })
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        for profile in &self.profiles {
            if let Err(error) = self.ceremony.destroy(profile) {
                eprintln!("{} stays on the token: {error}", profile.name());
            }
        }
    }
}

/// Up, or why not.
async fn started(link: &TokenLink) -> Result<(), String> {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let status = link.status().remove(0);
        match status.trouble {
            _ if status.ready => return Ok(()),
            Some(why) if status.refused || Instant::now() > limit => return Err(why),
            Some(_) | None => {}
        }
        assert!(Instant::now() < limit + Duration::from_secs(1), "the worker says nothing");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ask(link: &TokenLink, order: Order) -> Result<Answer, LinkError> {
    link.call(&order, Instant::now() + Duration::from_secs(5)).await.1
}

async fn lint(link: &TokenLink) -> LintReport {
    match ask(link, Order::Lint).await {
        Ok(Answer::Lint(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs the daemon pkcsslotd and the token directory of the machine: make test-opencryptoki"]
async fn pins_pass_inside_the_token_in_every_cell_and_what_is_no_block_is_refused() {
    let mut plan = VectorKeys::default();
    let cases = translations(&mut plan);
    let keys = Keys::put(plan.0);
    let link = keys.link(Probes::Report, &[]);
    started(&link).await.unwrap();

    let recipes = link.recipes().unwrap();
    let (mut passed, mut refused, mut unseen) = (0, 0, 0);
    let mut cells = BTreeSet::new();
    for Case { vector: v, outside, from: from_key, to: to_key } in &cases {
        let inside = v.part("in");
        let cell = (inside.number("format"), outside.number("format"));
        let [from, to]: [PinFormat; 2] =
            [cell.0, cell.1].map(|format| format!("iso{format}").parse().unwrap());
        let order = |pan: &str, block: Vec<u8>| Order::TranslatePin {
            pan: Pan::parse(pan).unwrap(),
            block: PinBlock::new(block).unwrap(),
            from: side(from_key, &inside),
            to: side(to_key, outside),
        };
        let pan = inside.text("pan");

        let answer = ask(&link, order(pan, inside.hex("block"))).await;

        let Ok(Answer::Block { block, .. }) = answer else { panic!("{v}: {answer:?}") };
        let pin = open_pin(to, &outside.hex("key"), pan, block.expose());
        assert_eq!(pin.as_deref(), Ok(v.text("clear_pin")), "{v}");
        if cell.1 == 0 {
            assert_eq!(hex::encode_upper(block.expose()), outside.text("block"), "{v}");
        }
        for length in 4..=12 {
            let pin = &"907182736450"[..length];
            let block = seal_pin(from, &inside.hex("key"), pan, pin).unwrap();

            let answer = ask(&link, order(pan, block.clone())).await;
            let garbled = ask(&link, order(pan, flipped(&block, length))).await;

            let Ok(Answer::Block { block, .. }) = answer else { panic!("{v}: {answer:?}") };
            let opened = open_pin(to, &outside.hex("key"), pan, block.expose());
            assert_eq!(opened.as_deref(), Ok(pin), "{v}, {length} digits");
            passed += 1;
            match garbled {
                Err(LinkError::Answered(Failure::PinBlockRefused)) => refused += 1,
                Ok(Answer::Block { .. }) => unseen += 1,
                other => panic!("{v}: {other:?}"),
            }
        }
        cells.insert(cell);
    }
    let report = lint(&link).await;
    link.stop().await;

    assert_eq!(cells, BTreeSet::from(CELLS));
    assert_eq!(passed, 9 * cases.len());
    // A block of another key has a good first byte once in 28 times.
    assert!(unseen * 8 < refused, "{refused} refused, {unseen} not");
    for (from, to) in CELLS {
        let name = format!("translate iso{from} to iso{to}");
        let recipe = recipes.iter().find(|recipe| recipe.operation == name);
        assert_eq!(recipe.map(|recipe| recipe.mode), Some(Mode::InToken), "{name}: {recipes:?}");
    }
    assert_eq!(report.session_objects, 0);
}

#[tokio::test]
#[ignore = "needs the daemon pkcsslotd and the token directory of the machine: make test-opencryptoki"]
async fn macs_are_as_the_vectors_say() {
    use MacAlgorithm::{CbcMac, HmacSha256, Retail};
    let (cases, plan) = macs_of(&[CbcMac, HmacSha256, Retail]);
    let keys = Keys::put(plan);
    let link = keys.link(Probes::Report, &[]);
    started(&link).await.unwrap();

    for (at, MacCase { vector: v, key }) in cases.iter().enumerate() {
        let key = || KeyName::from(KeyLabel::parse(key).unwrap());
        let (message, mac) = (v.hex("message"), v.hex("mac"));
        let verify = |mac| Order::VerifyMac {
            key: key(),
            ksn: None,
            message: Message(message.clone()),
            mac: Message(mac),
        };
        let (text, length) = (Message(message.clone()), None);

        let made =
            ask(&link, Order::GenerateMac { key: key(), ksn: None, message: text, length }).await;
        let good = ask(&link, verify(mac.clone())).await;
        let bad = ask(&link, verify(flipped(&mac, at))).await;

        let Ok(Answer::Mac { mac: found, .. }) = made else { panic!("{v}: {made:?}") };
        assert_eq!(hex::encode_upper(&found.0), v.text("mac"), "{v}");
        assert!(matches!(good, Ok(Answer::Verified(true))), "{v}: {good:?}");
        assert!(matches!(bad, Ok(Answer::Verified(false))), "{v}: {bad:?}");
    }
    let report = lint(&link).await;
    link.stop().await;
    assert_eq!(cases.len(), 47);
    assert_eq!(report.session_objects, 0);
}

#[tokio::test]
#[ignore = "needs the daemon pkcsslotd and the token directory of the machine: make test-opencryptoki"]
async fn what_the_token_lacks_is_refused_at_start_where_a_key_asks_for_it() {
    let (_, mut plan) = macs_of(&[MacAlgorithm::Cmac]);
    plan.truncate(1);
    let keys = Keys::put(plan);
    let link = keys.link(Probes::Report, &[]);

    let refused = started(&link).await.unwrap_err();

    link.stop().await;
    assert!(refused.contains("CMAC") && refused.contains("this token lacks"), "{refused}");
}

#[tokio::test]
#[ignore = "needs the daemon pkcsslotd and the token directory of the machine: make test-opencryptoki"]
async fn what_the_token_does_although_it_must_not_is_told_and_accepted_by_name_alone() {
    let mut plan = VectorKeys::default();
    translations(&mut plan);
    let keys = Keys::put(plan.0);

    let link = keys.link(Probes::Enforce, &RED);
    started(&link).await.unwrap();
    let report = lint(&link).await;
    link.stop().await;
    let link = keys.link(Probes::Enforce, &RED[..RED.len() - 1]);
    let refused = started(&link).await.unwrap_err();
    link.stop().await;

    let mut done = Vec::new();
    for row in &report.probes {
        println!("probe  {}  {}  {}", row.probe, row.outcome.name(), row.detail);
        if row.outcome == ProbeOutcome::Done {
            done.push(row.probe.as_str());
        }
    }
    assert_eq!(done, RED);
    assert!(refused.contains("CKA_UNWRAP_TEMPLATE"), "{refused}");
    let deviating = report.keys.iter().filter(|key| !key.deviations.is_empty()).count();
    assert_eq!((deviating, report.session_objects), (0, 0));
}
