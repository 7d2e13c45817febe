//! Payments sealed and opened over a real store, with a stand-in for the token.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hsm_adapter::client::LinkError;
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::{ClearDataKey, PinKey};
use hsm_adapter::vocabulary::{KeyLabel, KeyName, Pan, PinBlock, PinBlockFormat};

use super::idempotency::{IdempotencyKey, Request};
use super::keys::{
    DataKey, DataKeySource, KeyLives, KeySourceError, Keys, OpenError, SealingUnavailable,
};
use super::payment::{Due, Intake, PaymentError, PaymentOrder, Payments, Waiting, WaitingPin};
use super::policy::Route;
use super::sealing::Tampered;
use super::source_error;
use crate::links::token::HsmError;
use crate::store::tests::{On, World};
use crate::store::{
    Begun, Class, DekClass, ItemFacts, Lease, Outcome, Parked, Parking, Priority, Reversed,
    Settled, Status, TakingBack,
};
use crate::wire::Amount;

/// A token that can be away.
#[derive(Debug, Clone, Default)]
struct Token(Arc<TokenState>);

#[derive(Debug, Default)]
struct TokenState {
    away: AtomicBool,
    /// How often its KEK was changed.
    rotations: AtomicU32,
    keys: Mutex<HashMap<Vec<u8>, (u32, ClearDataKey)>>,
}

impl Token {
    fn answers(&self) -> Result<(), KeySourceError> {
        if self.0.away.load(Ordering::SeqCst) {
            return Err(KeySourceError::Unavailable("away".into()));
        }
        Ok(())
    }

    fn leave(&self) {
        self.0.away.store(true, Ordering::SeqCst);
    }

    /// The key under the active version of the KEK.
    fn wrap(&self, key: ClearDataKey) -> (Vec<u8>, u32) {
        let (mut wrapped, version) = (vec![0; 40], 3 + self.0.rotations.load(Ordering::SeqCst));
        getrandom::fill(&mut wrapped).unwrap();
        self.0.keys.lock().unwrap().insert(wrapped.clone(), (version, key));
        (wrapped, version)
    }

    fn come_back(&self) {
        self.0.away.store(false, Ordering::SeqCst);
    }
}

impl DataKeySource for Token {
    async fn make(&self) -> Result<DataKey, KeySourceError> {
        self.answers()?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        let clear = ClearDataKey::from_slice(&key).unwrap();
        let (wrapped, kek_version) = self.wrap(clear.clone());
        Ok(DataKey { clear, wrapped, kek_version })
    }

    async fn open(&self, wrapped: &[u8], version: u32) -> Result<ClearDataKey, KeySourceError> {
        self.answers()?;
        let keys = self.0.keys.lock().unwrap();
        let key = keys.get(wrapped).filter(|(under, _)| *under == version);
        key.map(|(_, key)| key.clone()).ok_or_else(|| KeySourceError::Refused("unknown".into()))
    }

    async fn rewrap(&self, wrapped: &[u8], version: u32) -> Result<(Vec<u8>, u32), KeySourceError> {
        Ok(self.wrap(self.open(wrapped, version).await?))
    }
}

/// A gateway's queue with its keys, over a token.
struct House {
    world: World,
    token: Token,
    keys: Keys,
    payments: Payments,
}

impl House {
    async fn new() -> Self {
        Self::on(On::Sqlite).await
    }

    async fn on(on: On) -> Self {
        let house = Self::over(World::new(on).await, Token::default());
        house.keys.obtain().await.unwrap();
        house
    }

    fn over(world: World, token: Token) -> Self {
        let lives = KeyLives { pin: world.queue.pin_life() };
        let keys = Keys::new(world.store.clone(), token.clone(), lives);
        let (store, queue) = (world.store.clone(), world.queue.clone());
        let payments = Payments::new(store, keys.clone(), queue, "gateway".into());
        Self { world, token, keys, payments }
    }

    /// The next boot, over the same token.
    async fn after_a_crash(&self) -> Self {
        Self::over(self.world.after_a_crash().await, self.token.clone())
    }

    async fn begin(
        &self,
        key: &str,
        pin: Option<&WaitingPin>,
        route: Route,
    ) -> Result<(ItemFacts, Begun), PaymentError> {
        let key = IdempotencyKey::parse(&format!("\"{key}\"")).unwrap();
        let (method, path, body) = ("POST", "/v1/payments", b"{}".as_slice());
        let request = Request { scope: "acquirer-a", key: &key, method, path, body };
        let (tenant, biller, order) = ("acquirer-a", "pln", &order());
        let priority = Priority::Normal;
        let intake = Intake { tenant, biller, order, pin, priority, route, request };
        self.payments.begin(intake).await
    }

    async fn forward(&self, key: &str, pin: Option<&WaitingPin>) -> (ItemFacts, Lease) {
        match self.begin(key, pin, MAY_WAIT).await.unwrap() {
            (facts, Begun::Forward(lease)) => (facts, lease),
            (_, other) => panic!("{other:?}"),
        }
    }

    /// Puts one payment into the queue.
    async fn queue(&self, key: &str, pin: Option<&WaitingPin>) -> ItemFacts {
        let (facts, lease) = self.forward(key, pin).await;
        let parked = self.payments.wait(&lease, &facts, pause(), pin).await.unwrap();
        assert_eq!(parked, Parked::Waiting);
        facts
    }

    async fn claim(&self) -> Vec<Due> {
        let mut due = self.payments.claim("pln".into(), 10).await.unwrap();
        due.extend(self.payments.claim("pdam".into(), 10).await.unwrap());
        due
    }

    async fn deks(&self, class: DekClass) -> usize {
        self.world.store.deks(class).await.unwrap().len()
    }

    fn advance(&self, seconds: u64) {
        self.world.clock.advance(Duration::from_secs(seconds));
    }
}

const MAY_WAIT: Route =
    Route { store: true, store_pin: true, deduplicates: true, enquiry: false, reversal: false };

const PAN: &str = "4111111111111111";
const BILL: &str = "BILL-CANARY-7781";
const BLOCK: [u8; 16] = *b"PIN-BLOCK-CANARY";

fn order() -> PaymentOrder {
    PaymentOrder {
        bill_id: BILL.into(),
        customer_id: "customer-1".into(),
        amount: Amount::parse("127000.00", "IDR").unwrap(),
        pan: Some(Pan::parse(PAN).unwrap()),
    }
}

fn pin() -> WaitingPin {
    let label = KeyLabel::parse("zpk.billing-aes").unwrap();
    let key = PinKey {
        key: KeyName { label, version: Some(2) },
        format: PinBlockFormat::Iso4,
        ksn: None,
    };
    WaitingPin { key, block: PinBlock::new(BLOCK.to_vec()).unwrap() }
}

fn pause() -> Parking {
    let (retry_in, class) = (Duration::ZERO, Class::NotSent);
    Parking { retry_in, class, code: None, counts: true, pin: None }
}

mod payments {
    use super::*;

    #[tokio::test]
    async fn a_payment_waits_and_comes_back_as_it_was() {
        let house = House::new().await;
        let facts = house.queue("k1", Some(&pin())).await;

        let due = house.claim().await.remove(0);

        assert_eq!(due.what, Waiting::Payment(order(), Some(pin()), true));
        assert_eq!(due.facts, facts);
        assert_eq!((due.attempts, due.doubt.sent_unknown), (1, false));
    }

    /// Its key was pruned, the payment was not: neither we nor the biller take it for another one.
    #[tokio::test]
    async fn a_request_has_one_reference_for_ever_and_no_two_requests_share_one() {
        let house = House::new().await;
        let reference = |key: &str, body: &[u8], scope: &str| {
            let key = IdempotencyKey::parse(&format!("\"{key}\"")).unwrap();
            let request = Request { scope, key: &key, method: "POST", path: "/v1/payments", body };
            request.reference(&house.keys).unwrap()
        };

        let first = reference("k1", b"{}", "acquirer-a");

        assert_eq!(first.get_version_num(), 8);
        assert_eq!(reference("k1", b"{}", "acquirer-a"), first);
        for other in [
            reference("k2", b"{}", "acquirer-a"),
            reference("k1", b"{ }", "acquirer-a"),
            reference("k1", b"{}", "acquirer-b"),
        ] {
            assert_ne!(other, first);
        }
    }

    #[tokio::test]
    async fn a_payment_is_taken_back_in_its_own_lane_before_all_others() {
        let house = House::new().await;
        let route = Route { deduplicates: false, reversal: true, ..MAY_WAIT };
        let (facts, begun) = house.begin("k1", None, route).await.unwrap();
        let Begun::Forward(lease) = begun else { panic!() };
        house.world.store.begin_send(&lease, false).await.unwrap();
        let reversal = house.payments.reversal(&facts, &order()).unwrap();
        let ending = house.payments.ending(&facts, Outcome::Failed, "68", (200, b"{}")).unwrap();
        let taking = TakingBack { ending, reversal };

        let reversed = house.world.store.reverse(&lease, taking).await.unwrap();
        let due = house.claim().await.remove(0);

        assert_eq!(reversed, Reversed::Queued);
        let Waiting::Reversal(taken_back) = due.what else { panic!("{:?}", due.what) };
        assert_eq!(taken_back.original, facts.reference);
        assert_eq!((taken_back.bill_id, taken_back.amount), (BILL.into(), order().amount));
        assert_eq!((due.facts.ord_key, due.facts.prio), (facts.ord_key, Priority::Critical));
        assert_ne!(due.facts.reference, facts.reference);
    }

    #[tokio::test]
    async fn the_same_key_gets_the_same_answer_byte_for_byte() {
        let house = House::new().await;
        let (facts, lease) = house.forward("k1", None).await;
        let body = br#"{"id":"1","status":"SUCCESS"}"#;
        let settled =
            house.payments.finish(&lease, &facts, Outcome::Done, "00", (200, body)).await.unwrap();

        let (_, again) = house.begin("k1", None, MAY_WAIT).await.unwrap();

        assert_eq!(settled, Settled::Recorded);
        let Begun::Replay { facts, status, answer: Some(answer) } = again else { panic!() };
        assert_eq!(status, Status::Success);
        let replayed = house.payments.replay(&facts, &answer).await.unwrap();
        assert_eq!(replayed, (200, body.to_vec()));
    }

    /// A PIN without `store_pin`: forward now, or not at all.
    #[tokio::test]
    async fn a_payment_whose_pin_may_not_be_stored_may_not_wait() {
        let house = House::new().await;
        let route = Route { store_pin: false, ..MAY_WAIT };
        let (facts, begun) = house.begin("k1", Some(&pin()), route).await.unwrap();
        let Begun::Forward(lease) = begun else { panic!() };

        let (_, behind) = house.begin("k2", Some(&pin()), route).await.unwrap();
        let parked = house.payments.wait(&lease, &facts, pause(), None).await.unwrap();

        assert_eq!(behind, Begun::Busy);
        assert_eq!(parked, Parked::Failed);
        assert_eq!(house.deks(DekClass::Pin).await, 0);
    }

    #[tokio::test]
    async fn a_payment_with_a_pin_lives_no_longer_than_its_block_may() {
        let house = House::new().await;
        let facts = house.queue("k1", Some(&pin())).await;
        house.advance(900);

        let claimed = house.claim().await;

        assert_eq!(facts.expires_at - facts.created_at, 900_000);
        assert!(claimed.is_empty());
        let view = house.world.view(facts.id).await;
        assert_eq!(view.status, Status::Expired);
    }

    /// I7: whoever reads the disk reads no PAN, no bill, no PIN block.
    #[tokio::test]
    async fn nothing_on_the_disk_can_be_read() {
        let house = House::new().await;
        house.queue("k1", Some(&pin())).await;
        let (facts, lease) = {
            let due = house.claim().await.remove(0);
            (due.facts, due.lease)
        };
        let answer = (200, BILL.as_bytes());
        house.payments.finish(&lease, &facts, Outcome::Done, "00", answer).await.unwrap();
        house.queue("k2", Some(&pin())).await;

        let mut read = Vec::new();
        for file in ["tollgate.db", "tollgate.db-wal"] {
            read.extend(std::fs::read(house.world.directory.path().join(file)).unwrap());
        }

        let found = |needle: &[u8]| read.windows(needle.len()).any(|window| window == needle);
        assert!(found(b"acquirer-a"), "the search works");
        let numbers = BLOCK.map(|byte| byte.to_string()).join(",");
        for canary in [PAN.as_bytes(), BILL.as_bytes(), &BLOCK, numbers.as_bytes(), b"customer-1"] {
            assert!(!found(canary), "{}", String::from_utf8_lossy(canary));
        }
        for (_, key) in house.token.0.keys.lock().unwrap().values() {
            assert!(!found(key.expose()), "a clear data key");
        }
    }

    /// I8, on the rows themselves: each column of the associated data, and the sealed ones.
    #[tokio::test]
    async fn a_row_that_was_changed_is_held_and_never_sent() {
        for change in [
            "tenant = 'acquirer-b'",
            "kind = 'reversal'",
            "target = 'pdam'",
            "reference = 'other'",
            "id = randomblob(16)",
            "ord_key = randomblob(16)",
            "prio = 0",
            "created_at = created_at - 1",
            "expires_at = expires_at + 1",
            "enc_v = 2",
            "dek_id = (SELECT max(dek_id) FROM saf_dek WHERE class = 'record')",
            "dek_id = 999",
            "nonce = randomblob(12)",
            "ct = pin_ct, nonce = pin_nonce, dek_id = pin_dek_id",
            "pin_ct = ct, pin_nonce = nonce, pin_dek_id = dek_id",
            "pin_nonce = randomblob(12)",
            "ct = (SELECT ct FROM saf_item WHERE seq > 1), nonce = (SELECT nonce FROM saf_item WHERE seq > 1)",
        ] {
            for on in [On::Sqlite, On::Postgres] {
                is_held_after(on, change).await;
            }
        }
    }

    async fn is_held_after(on: On, change: &str) {
        let house = House::on(on).await;
        house.queue("k1", Some(&pin())).await;
        house.begin("k2", Some(&pin()), MAY_WAIT).await.unwrap();
        house.world.tamper(&format!("UPDATE saf_item SET {change} WHERE seq = 1")).await;

        let due = house.claim().await;

        assert!(due.is_empty(), "{on:?}: {change}");
        assert_eq!(house.world.held().await, [("tampered".to_owned(), 1)], "{on:?}: {change}");
        let alarms = house.world.store.take_alarms();
        assert_eq!(alarms.len(), 1, "{on:?}: {change}");
    }

    #[tokio::test]
    async fn an_answer_moved_to_another_key_does_not_open() {
        let house = House::new().await;
        for key in ["k1", "k2"] {
            let (facts, lease) = house.forward(key, None).await;
            let answer = (200, key.as_bytes());
            house.payments.finish(&lease, &facts, Outcome::Done, "00", answer).await.unwrap();
        }
        let mut intruder = house.world.file_intruder().await;
        sqlx::query(
            "UPDATE saf_item SET (res_nonce, res_ct) =
             (SELECT res_nonce, res_ct FROM saf_item WHERE seq = 2)",
        )
        .execute(&mut intruder)
        .await
        .unwrap();

        let (_, again) = house.begin("k1", None, MAY_WAIT).await.unwrap();

        let Begun::Replay { facts, answer: Some(answer), .. } = again else { panic!() };
        let opened = house.payments.replay(&facts, &answer).await;
        assert!(matches!(opened, Err(OpenError::Tampered(Tampered))), "{opened:?}");
    }
}

mod boots; // many of them, and keys made ahead

mod key_life {
    use super::*;

    #[tokio::test]
    async fn a_gateway_that_starts_without_its_token_seals_nothing() {
        let (world, token) = (World::new(On::Sqlite).await, Token::default());
        token.leave();
        let house = House::over(world, token);

        let obtained = house.keys.obtain().await;
        let refused = house.begin("k1", None, MAY_WAIT).await;
        house.token.come_back();
        house.keys.obtain().await.unwrap();

        assert!(obtained.is_err());
        assert!(matches!(refused, Err(PaymentError::Sealing(SealingUnavailable))), "{refused:?}");
        assert!(house.keys.ready());
        assert!(house.begin("k1", None, MAY_WAIT).await.is_ok());
    }

    /// The moment when the queue is needed most.
    #[tokio::test]
    async fn a_gateway_that_runs_goes_on_sealing_without_its_token_for_a_day_under_one_key() {
        let house = House::new().await;
        house.keys.obtain().await.unwrap();
        house.token.leave();

        let mut ready = Vec::new();
        for hours in [1, 22, 2] {
            house.advance(hours * 3_600);
            let _ = house.keys.obtain().await;
            ready.push(house.keys.ready());
        }
        let refused = house.keys.seal_record(&facts(&house), b"x");

        assert_eq!(ready, [true, true, false]);
        assert_eq!(refused.unwrap_err(), SealingUnavailable);
        house.token.come_back();
        house.keys.obtain().await.unwrap();
        assert!(house.keys.ready());
    }

    #[tokio::test]
    async fn the_key_changes_every_hour_and_the_next_is_ready_before() {
        let house = House::new().await;
        let first = house.keys.seal_record(&facts(&house), b"x").unwrap();
        house.keys.obtain().await.unwrap();
        house.token.leave();
        house.advance(3_599);
        let same = house.keys.seal_record(&facts(&house), b"x").unwrap();
        house.advance(1);

        let second = house.keys.seal_record(&facts(&house), b"x").unwrap();

        assert_eq!(first.dek_id, same.dek_id);
        assert_ne!(first.dek_id, second.dek_id);
        assert_ne!(first.nonce, same.nonce);
    }

    #[tokio::test]
    async fn the_next_boot_opens_what_the_last_one_sealed_and_seals_under_its_own_key() {
        let house = House::new().await;
        let facts = house.queue("k1", Some(&pin())).await;
        let old = house.keys.seal_record(&facts, b"x").unwrap();

        let next = house.after_a_crash().await;
        next.keys.obtain().await.unwrap();
        let due = next.claim().await;

        assert_eq!(due[0].what, Waiting::Payment(order(), Some(pin()), true));
        let new = next.keys.seal_record(&facts, b"x").unwrap();
        assert_ne!(old.dek_id, new.dek_id);
        let lane = next.keys.ord_key(&[b"pln", b"customer-1", BILL.as_bytes()]).unwrap();
        assert_eq!(lane, facts.ord_key, "a bill keeps its lane");
    }

    #[tokio::test]
    async fn a_payment_whose_key_cannot_be_had_now_waits_without_harm() {
        let house = House::new().await;
        let facts = house.queue("k1", None).await;
        let next = house.after_a_crash().await;
        next.token.leave();

        let without = next.claim().await;
        next.token.come_back();
        next.advance(5);
        let with = next.claim().await;

        assert!(without.is_empty());
        assert_eq!(with[0].facts.id, facts.id);
        assert!(!with[0].doubt.sent_unknown);
    }

    /// T11: logs and backups then hold noise.
    #[tokio::test]
    async fn a_pin_key_is_destroyed_when_no_block_of_its_window_can_be_alive() {
        let house = House::new().await;
        let facts = house.queue("k1", Some(&pin())).await;
        let sealed = house.keys.seal_pin(&facts, b"x").await.unwrap();
        assert_eq!(house.deks(DekClass::Pin).await, 1);

        house.advance(900 + 900 + 60);
        house.keys.destroy().await;
        let on_the_second = house.deks(DekClass::Pin).await;
        house.advance(1);
        house.keys.destroy().await;
        let still_refers = house.deks(DekClass::Pin).await;
        house.world.store.expire().await.unwrap();
        house.keys.destroy().await;

        assert_eq!((on_the_second, still_refers), (1, 1));
        assert_eq!(house.deks(DekClass::Pin).await, 0);
        let opened = house.keys.open_pin(&facts, &sealed).await;
        assert!(matches!(opened, Err(OpenError::Tampered(Tampered))), "{opened:?}");
    }

    #[tokio::test]
    async fn blocks_of_a_window_share_a_key_and_the_next_window_has_its_own() {
        let house = House::new().await;
        let facts = facts(&house);
        let first = house.keys.seal_pin(&facts, b"x").await.unwrap();
        house.advance(899);
        let second = house.keys.seal_pin(&facts, b"x").await.unwrap();
        house.advance(1);

        let third = house.keys.seal_pin(&facts, b"x").await.unwrap();

        assert_eq!(first.dek_id, second.dek_id);
        assert_ne!(first.dek_id, third.dek_id);
    }

    #[tokio::test]
    async fn hashes_keep_their_parts_apart_and_their_purposes_too() {
        let house = House::new().await;

        let lane = house.keys.ord_key(&[b"ab", b"c"]).unwrap();

        assert_eq!(lane, house.keys.ord_key(&[b"ab", b"c"]).unwrap());
        assert_ne!(lane, house.keys.ord_key(&[b"a", b"bc"]).unwrap());
        assert_ne!(lane.0, house.keys.fingerprint(&[b"ab", b"c"]).unwrap()[..16]);
    }

    /// `start` itself: ready without help, and again when the token comes late.
    #[tokio::test]
    async fn keys_come_by_themselves() {
        let (world, token) = (World::new(On::Sqlite).await, Token::default());
        token.leave();
        let lives = KeyLives { pin: world.queue.pin_life() };
        let keys = Keys::start(world.store.clone(), token.clone(), lives);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = keys.ready();

        token.come_back();
        let ready = async {
            while !keys.ready() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };

        assert!(!before);
        assert!(tokio::time::timeout(Duration::from_secs(10), ready).await.is_ok());
    }

    fn facts(house: &House) -> ItemFacts {
        crate::store::tests::new_payment(house.world.store.now(), 1).facts
    }
}

#[test]
fn only_a_token_that_is_well_can_call_a_wrapped_key_bad() {
    let token = |class| Failure::Token { function: "UnwrapKey".into(), code: "x".into(), class };
    let answered = |failure| HsmError::Link(LinkError::Answered(failure));

    let bad = source_error(answered(token(CkrClass::Caller)));

    assert!(matches!(bad, KeySourceError::Refused(_)));
    for error in [
        HsmError::NoneReady { retry_after: std::time::Duration::ZERO },
        HsmError::Link(LinkError::WrongAnswer),
        HsmError::Link(LinkError::TimedOut),
        answered(Failure::UnknownKey),
        answered(Failure::KeyNotForThis(String::new())),
        answered(Failure::Expired),
        answered(token(CkrClass::Restart)),
        answered(token(CkrClass::Permanent)),
        answered(token(CkrClass::Configuration)),
    ] {
        assert!(matches!(source_error(error), KeySourceError::Unavailable(_)));
    }
}
