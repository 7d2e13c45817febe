//! Every return code of PKCS#11 2.40, given by a real module to a real worker: its class, and what
//! worker and link do about it (the table of ARCHITECTURE.md).

use std::collections::BTreeMap;
use std::time::Duration;

use gateway::config::Config;
use harness::acquirer::Acquirer;
use harness::soft::pin::PinFormat;
use harness::world::{Wanted, World, program};
use hsm_adapter::client::{LinkError, LinkOptions, TokenLink};
use hsm_adapter::error::CkrClass::{
    Answer as Mismatch, Benign, Caller, Configuration, Permanent, Refind, Relogin, Restart,
    Transient,
};
use hsm_adapter::error::{CkrClass, Failure, VendorCode};
use hsm_adapter::protocol::{Answer, Message, Order, PinKey};
use hsm_adapter::vocabulary::{KeyLabel, Pan, PinBlock, PinBlockFormat};
use tokio::time::{Instant, sleep};

use crate::support::until;

/// From the standard's header file, with the class that each has by the design.
const CODES: [(u64, CkrClass); 95] = [
    (0x001, Transient),     // CANCEL
    (0x002, Transient),     // HOST_MEMORY
    (0x003, Restart),       // SLOT_ID_INVALID
    (0x005, Restart),       // GENERAL_ERROR
    (0x006, Restart),       // FUNCTION_FAILED
    (0x007, Configuration), // ARGUMENTS_BAD
    (0x008, Restart),       // NO_EVENT
    (0x009, Restart),       // NEED_TO_CREATE_THREADS
    (0x00A, Restart),       // CANT_LOCK
    (0x010, Configuration), // ATTRIBUTE_READ_ONLY
    (0x011, Configuration), // ATTRIBUTE_SENSITIVE
    (0x012, Configuration), // ATTRIBUTE_TYPE_INVALID
    (0x013, Configuration), // ATTRIBUTE_VALUE_INVALID
    (0x01B, Configuration), // ACTION_PROHIBITED
    (0x020, Caller),        // DATA_INVALID
    (0x021, Caller),        // DATA_LEN_RANGE
    (0x030, Restart),       // DEVICE_ERROR
    (0x031, Transient),     // DEVICE_MEMORY
    (0x032, Restart),       // DEVICE_REMOVED
    (0x040, Caller),        // ENCRYPTED_DATA_INVALID
    (0x041, Caller),        // ENCRYPTED_DATA_LEN_RANGE
    (0x050, Transient),     // FUNCTION_CANCELED
    (0x051, Configuration), // FUNCTION_NOT_PARALLEL
    (0x054, Configuration), // FUNCTION_NOT_SUPPORTED
    (0x060, Refind),        // KEY_HANDLE_INVALID
    (0x062, Configuration), // KEY_SIZE_RANGE
    (0x063, Configuration), // KEY_TYPE_INCONSISTENT
    (0x064, Configuration), // KEY_NOT_NEEDED
    (0x065, Configuration), // KEY_CHANGED
    (0x066, Configuration), // KEY_NEEDED
    (0x067, Configuration), // KEY_INDIGESTIBLE
    (0x068, Configuration), // KEY_FUNCTION_NOT_PERMITTED
    (0x069, Configuration), // KEY_NOT_WRAPPABLE
    (0x06A, Configuration), // KEY_UNEXTRACTABLE
    (0x070, Configuration), // MECHANISM_INVALID
    (0x071, Configuration), // MECHANISM_PARAM_INVALID
    (0x082, Refind),        // OBJECT_HANDLE_INVALID
    (0x090, Transient),     // OPERATION_ACTIVE
    (0x091, Transient),     // OPERATION_NOT_INITIALIZED
    (0x0A0, Permanent),     // PIN_INCORRECT
    (0x0A1, Permanent),     // PIN_INVALID
    (0x0A2, Permanent),     // PIN_LEN_RANGE
    (0x0A3, Permanent),     // PIN_EXPIRED
    (0x0A4, Permanent),     // PIN_LOCKED
    (0x0B0, Transient),     // SESSION_CLOSED
    (0x0B1, Transient),     // SESSION_COUNT
    (0x0B3, Transient),     // SESSION_HANDLE_INVALID
    (0x0B4, Configuration), // SESSION_PARALLEL_NOT_SUPPORTED
    (0x0B5, Configuration), // SESSION_READ_ONLY
    (0x0B6, Configuration), // SESSION_EXISTS
    (0x0B7, Configuration), // SESSION_READ_ONLY_EXISTS
    (0x0B8, Restart),       // SESSION_READ_WRITE_SO_EXISTS
    (0x0C0, Mismatch),      // SIGNATURE_INVALID
    (0x0C1, Mismatch),      // SIGNATURE_LEN_RANGE
    (0x0D0, Configuration), // TEMPLATE_INCOMPLETE
    (0x0D1, Configuration), // TEMPLATE_INCONSISTENT
    (0x0E0, Restart),       // TOKEN_NOT_PRESENT
    (0x0E1, Restart),       // TOKEN_NOT_RECOGNIZED
    (0x0E2, Configuration), // TOKEN_WRITE_PROTECTED
    (0x0F0, Refind),        // UNWRAPPING_KEY_HANDLE_INVALID
    (0x0F1, Configuration), // UNWRAPPING_KEY_SIZE_RANGE
    (0x0F2, Configuration), // UNWRAPPING_KEY_TYPE_INCONSISTENT
    (0x100, Benign),        // USER_ALREADY_LOGGED_IN
    (0x101, Relogin),       // USER_NOT_LOGGED_IN
    (0x102, Permanent),     // USER_PIN_NOT_INITIALIZED
    (0x103, Configuration), // USER_TYPE_INVALID
    (0x104, Restart),       // USER_ANOTHER_ALREADY_LOGGED_IN
    (0x105, Restart),       // USER_TOO_MANY_TYPES
    (0x110, Caller),        // WRAPPED_KEY_INVALID
    (0x112, Caller),        // WRAPPED_KEY_LEN_RANGE
    (0x113, Refind),        // WRAPPING_KEY_HANDLE_INVALID
    (0x114, Configuration), // WRAPPING_KEY_SIZE_RANGE
    (0x115, Configuration), // WRAPPING_KEY_TYPE_INCONSISTENT
    (0x120, Configuration), // RANDOM_SEED_NOT_SUPPORTED
    (0x121, Restart),       // RANDOM_NO_RNG
    (0x130, Configuration), // DOMAIN_PARAMS_INVALID
    (0x140, Configuration), // CURVE_NOT_SUPPORTED
    (0x150, Caller),        // BUFFER_TOO_SMALL
    (0x160, Configuration), // SAVED_STATE_INVALID
    (0x170, Configuration), // INFORMATION_SENSITIVE
    (0x180, Configuration), // STATE_UNSAVEABLE
    (0x190, Restart),       // CRYPTOKI_NOT_INITIALIZED
    (0x191, Benign),        // CRYPTOKI_ALREADY_INITIALIZED
    (0x1A0, Restart),       // MUTEX_BAD
    (0x1A1, Restart),       // MUTEX_NOT_LOCKED
    (0x1B0, Permanent),     // NEW_PIN_MODE
    (0x1B1, Permanent),     // NEXT_OTP
    (0x1B5, Configuration), // EXCEEDED_MAX_ITERATIONS
    (0x1B6, Permanent),     // FIPS_SELF_TEST_FAILED
    (0x1B7, Permanent),     // LIBRARY_LOAD_FAILED
    (0x1B8, Permanent),     // PIN_TOO_WEAK
    (0x1B9, Configuration), // PUBLIC_KEY_INVALID
    (0x200, Restart),       // FUNCTION_REJECTED
    (0x1FF, Restart),       // a code that no standard names
    (0x8000_0007, Restart), // a vendor's, of which nothing is said
];

fn of_class(wanted: CkrClass) -> impl Iterator<Item = u64> {
    CODES.into_iter().filter(move |(_, class)| *class == wanted).map(|(code, _)| code)
}

/// A token behind the shim.
struct Bench {
    world: World,
    options: LinkOptions,
}

impl Bench {
    fn new(workers: usize) -> Self {
        let world = World::prepare(Wanted { shim: true, ..Wanted::default() }).unwrap();
        let config = Config::load(&world.config()).unwrap();
        let mut options = config.hsm.links().unwrap().remove(0).options;
        options.program = program("tollgate-hsm").unwrap();
        options.workers = workers;
        Self { world, options }
    }

    async fn control(&self, text: &str) {
        self.world.shim_control(text).await.unwrap();
    }

    /// How often a function was called since `before`.
    fn more<const N: usize>(&self, before: &BTreeMap<String, u64>, names: [&str; N]) -> [u64; N] {
        let now = self.world.shim_counts().unwrap();
        names.map(|name| now[name] - before.get(name).copied().unwrap_or_default())
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        self.world.shim_counts().unwrap_or_default()
    }

    fn start(&self) -> TokenLink {
        TokenLink::start(self.options.clone())
    }

    async fn ready(&self) -> TokenLink {
        let link = self.start();
        up(&link).await;
        link
    }

    /// The first order opens the session of its thread.
    async fn ready_with_session(&self) -> TokenLink {
        let link = self.ready().await;
        assert!(ask(&link, &mac()).await.is_ok());
        link
    }
}

async fn up(link: &TokenLink) {
    let limit = Instant::now() + Duration::from_secs(15);
    while !link.is_up() {
        assert!(Instant::now() < limit, "{:?}", link.status());
        sleep(Duration::from_millis(5)).await;
    }
}

fn pid(link: &TokenLink) -> Option<u32> {
    link.status()[0].pid
}

async fn ask(link: &TokenLink, order: &Order) -> Result<Answer, Failure> {
    match link.call(order, Instant::now() + Duration::from_secs(5)).await.1 {
        Ok(answer) => Ok(answer),
        Err(LinkError::Answered(failure)) => Err(failure),
        Err(error) => panic!("{error}"),
    }
}

/// One C_Sign.
fn mac() -> Order {
    let key = KeyLabel::parse("zak.acquirer-b").unwrap().into();
    Order::GenerateMac { key, ksn: None, message: Message(b"a message".to_vec()), length: None }
}

/// One C_Decrypt and one C_Encrypt.
fn translation() -> Order {
    let pan = "4761737909457820";
    let block = Acquirer::a().pin_block("271828", pan, PinFormat::Iso0).unwrap();
    let side = |label: &str| PinKey {
        key: KeyLabel::parse(label).unwrap().into(),
        format: PinBlockFormat::Iso0,
        ksn: None,
    };
    Order::TranslatePin {
        pan: Pan::parse(pan).unwrap(),
        block: PinBlock::new(hex::decode(block).unwrap()).unwrap(),
        from: side("zpk.acquirer-a"),
        to: side("zpk.billing"),
    }
}

#[track_caller]
fn assert_class(outcome: Result<Answer, Failure>, wanted: CkrClass, code: u64) {
    let Err(failure @ Failure::Token { class, .. }) = &outcome else {
        panic!("{code:#x}: {outcome:?}");
    };
    assert_eq!(*class, wanted, "{code:#x}: {failure}");
    let elsewhere = matches!(wanted, Transient | Refind | Relogin | Restart);
    assert_eq!(failure.is_transient(), elsewhere, "{code:#x}");
}

#[test]
fn every_code_stands_once_in_the_list() {
    let codes: BTreeMap<u64, CkrClass> = CODES.into_iter().collect();

    assert_eq!(codes.len(), CODES.len());
}

#[tokio::test]
async fn a_code_that_comes_once_is_cured_or_told_and_the_worker_stays() {
    let bench = Bench::new(1);
    let link = bench.ready_with_session().await;
    let worker = pid(&link);

    for (order, function) in [(mac(), "Sign"), (translation(), "Decrypt")] {
        for (code, class) in CODES {
            if class == Permanent {
                continue;
            }
            bench.control(&format!("{function} fail {code:#x} 1")).await;
            let before = bench.counts();
            let outcome = ask(&link, &order).await;
            let [calls, sessions, logins, finds] =
                bench.more(&before, [function, "OpenSession", "Login", "FindObjectsInit"]);

            match class {
                Transient | Relogin => {
                    assert!(outcome.is_ok(), "{code:#x}: {outcome:?}");
                    assert_eq!((calls, sessions, logins, finds), (2, 1, 1, 0), "{code:#x}");
                }
                Refind => {
                    assert!(outcome.is_ok(), "{code:#x}: {outcome:?}");
                    assert!(calls >= 2 && sessions == 1 && finds > 5, "{code:#x}: {finds}");
                }
                // The token has its known answers: it was the order.
                Restart => {
                    assert_class(outcome, Caller, code);
                    assert!(calls >= 2 && sessions == 1, "{code:#x}: {calls} {sessions}");
                }
                // It leaves the operation open; what meets that is cured by another session.
                Caller if function == "Decrypt" && code == 0x150 => {
                    assert!(outcome.is_ok(), "{outcome:?}");
                    assert_eq!((calls, sessions, finds), (2, 1, 0));
                }
                Caller if function == "Decrypt" => {
                    assert_eq!(outcome.unwrap_err(), Failure::PinBlockRefused, "{code:#x}");
                    assert_eq!((calls, sessions, finds), (1, 0, 0), "{code:#x}");
                }
                Configuration | Caller | Mismatch | Benign => {
                    assert_class(outcome, class, code);
                    assert_eq!((calls, sessions, finds), (1, 0, 0), "{code:#x}");
                }
                Permanent => unreachable!("left out above"),
            }
            assert!(ask(&link, &order).await.is_ok(), "{code:#x}: healed, and yet");
            assert_eq!((pid(&link), link.is_up()), (worker, true), "{code:#x}");
        }
    }
    link.stop().await;
}

#[tokio::test]
async fn what_one_cure_does_not_cure_is_told_after_one() {
    let bench = Bench::new(1);
    let link = bench.ready_with_session().await;
    let worker = pid(&link);

    for class in [Transient, Relogin, Refind] {
        for code in of_class(class) {
            bench.control(&format!("Sign fail {code:#x}")).await;
            let before = bench.counts();
            let outcome = ask(&link, &mac()).await;
            let [calls, sessions] = bench.more(&before, ["Sign", "OpenSession"]);

            assert_class(outcome, class, code);
            assert_eq!((calls, sessions), (2, 1), "{code:#x}");
        }
    }
    // The session that was to cure does not open.
    bench.control("Sign fail 0xB3 1\nOpenSession fail 0xB1 1").await;
    let unopened = ask(&link, &mac()).await;
    bench.control("").await;

    let Err(Failure::Token { function, class: Transient, .. }) = unopened else {
        panic!("{unopened:?}")
    };
    assert_eq!(function, "OpenSession");
    assert!(ask(&link, &mac()).await.is_ok());
    assert_eq!(pid(&link), worker);
    link.stop().await;
}

#[tokio::test]
async fn a_token_without_its_known_answers_costs_the_worker_which_is_replaced() {
    let bench = Bench::new(1);

    for code in of_class(Restart) {
        let link = bench.ready().await;
        let worker = pid(&link);
        bench.control(&format!("Sign fail {code:#x}")).await;
        let outcome = ask(&link, &mac()).await;
        until("the worker has ended", Duration::from_secs(5), async || pid(&link) != worker).await;
        bench.control("").await;
        up(&link).await;

        assert_class(outcome, Restart, code);
        assert_ne!(pid(&link), worker, "{code:#x}");
        assert!(ask(&link, &mac()).await.is_ok(), "{code:#x}");
        link.stop().await;
    }
}

#[tokio::test]
async fn what_only_a_person_can_cure_latches() {
    let bench = Bench::new(1);

    for code in of_class(Permanent) {
        let link = bench.ready().await;
        bench.control(&format!("Sign fail {code:#x}")).await;
        let outcome = ask(&link, &mac()).await;
        let latched = async || link.status()[0].latched;
        until("it latches", Duration::from_secs(5), latched).await;
        bench.control("").await;
        let before = bench.counts();
        // Longer than the first rest of a worker that may start again.
        sleep(Duration::from_millis(300)).await;
        let [starts] = bench.more(&before, ["Initialize"]);

        assert_class(outcome, Permanent, code);
        assert_eq!((starts, link.is_up()), (0, false), "{code:#x}");
        link.stop().await;
    }
}

#[tokio::test]
async fn a_login_that_is_refused_for_good_is_tried_once_by_all_workers_together() {
    let bench = Bench::new(2);

    for code in of_class(Permanent) {
        bench.control(&format!("Login fail {code:#x}")).await;
        let before = bench.counts();
        let link = bench.start();
        let latched = async || link.status().iter().all(|worker| worker.latched);
        until("both latch", Duration::from_secs(5), latched).await;
        sleep(Duration::from_millis(200)).await;

        assert_eq!(bench.more(&before, ["Login"]), [1], "{code:#x}");
        link.stop().await;
    }
}

#[tokio::test]
async fn a_start_that_fails_in_passing_is_tried_again_and_a_benign_code_fails_nothing() {
    let bench = Bench::new(1);

    for faults in ["Login fail 0x30", "GetTokenInfo fail 0x5", "FindObjectsInit fail 0xB3"] {
        bench.control(faults).await;
        let link = bench.start();
        let told = async || link.status()[0].trouble.is_some();
        until("a first start has failed", Duration::from_secs(5), told).await;
        assert!(!link.status()[0].latched, "{faults}");
        bench.control("").await;
        up(&link).await;
        link.stop().await;
    }
    bench.control("Login fail 0x100\nInitialize fail 0x191").await;
    let link = bench.ready().await;
    assert!(ask(&link, &mac()).await.is_ok());
    link.stop().await;
}

#[tokio::test]
async fn a_vendors_code_means_what_the_configuration_says() {
    let mut bench = Bench::new(1);
    let (passing, wrong) = (0x8000_0001, 0x8000_0002);
    bench.options.vendor_codes = vec![
        VendorCode { code: passing, class: Transient },
        VendorCode { code: wrong, class: Configuration },
    ];
    let link = bench.ready().await;

    bench.control(&format!("Sign fail {passing:#x} 1")).await;
    let cured = ask(&link, &mac()).await;
    bench.control(&format!("Sign fail {wrong:#x} 1")).await;
    let told = ask(&link, &mac()).await;
    bench.control("").await;

    assert!(cured.is_ok(), "{cured:?}");
    assert_class(told, Configuration, wrong);
    link.stop().await;
}
