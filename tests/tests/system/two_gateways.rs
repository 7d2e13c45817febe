//! Two gateways on one PostgreSQL database: they share the work, and each takes over from the
//! other.

use std::time::Duration;

use cluster::Database;
use harness::accounts::{Judgement, Payer};
use harness::acquirer::{Client, Payment};
use harness::billing::Fault;
use harness::world::{Wanted, World};

use crate::support::{Counter, assert_paid_once, effects_by_bill, text, until};

const PATIENCE: Duration = Duration::from_secs(10);
/// A lease of a dead gateway runs out after 5 s, is found within 5 s more, and rests a second.
const DRAIN: Duration = Duration::from_secs(40);
const DELIVERED: &str = "tollgate_queue_forwarded_total{outcome=\"success\"}";

/// Both gateways. The database comes last: it goes when nobody is connected any more.
struct Two {
    first: World,
    second: World,
    _database: Database,
}

impl Two {
    async fn start() -> Self {
        let database = Database::create().unwrap();
        let short = |table: &mut toml::Table| table["queue"]["lease_s"] = 5.into();
        let wanted = Wanted { edit: Some(Box::new(short)), ..Wanted::on(&database) };
        let first = World::start_as(wanted).await.unwrap();
        let second = first.start_beside().await.unwrap();
        Self { first, second, _database: database }
    }

    fn clients(&self) -> [Client; 2] {
        [&self.first, &self.second].map(|world| world.client("acquirer-a").unwrap())
    }

    /// `count` accounts pay `each` times while the biller is away, every second time at the other
    /// gateway. All of it waits.
    async fn backlog(&mut self, count: u32, each: u32) -> Vec<Payer> {
        self.first.kill_billing();
        let clients = self.clients();
        let mut payers = Vec::new();
        for number in 0..count {
            let mut payer =
                Payer::new(["pln", "pdam"][number as usize % 2], &format!("account-{number}"));
            for turn in 0..each {
                let at = &clients[(number + turn) as usize % 2];
                let answer = payer.pay(std::slice::from_ref(at), PATIENCE).await.unwrap();
                assert_eq!(answer.status, 202, "{answer:?}");
            }
            payers.push(payer);
        }
        payers
    }

    async fn biller_returns(&mut self, delay: Duration) {
        self.first.start_billing().await.unwrap();
        self.first.billing_control().unwrap().set_mode(Fault::slow(delay)).await.unwrap();
    }

    async fn effects(&self) -> usize {
        self.first.billing_control().unwrap().ledger().await.unwrap().effects.len()
    }

    async fn assert_all_paid_in_order(&self, payers: &[Payer]) {
        let total: u32 = payers.iter().map(|payer| payer.acknowledged).sum();
        until("all is paid", DRAIN, async || self.effects().await >= total as usize).await;
        let ledger = self.first.billing_control().unwrap().ledger().await.unwrap();
        let judged = Judgement::of(payers, &ledger);
        assert!(judged.is_clean(), "{judged:?}");
        assert_eq!((ledger.effects.len(), ledger.conflicts), (total as usize, 0));
    }
}

#[tokio::test]
async fn two_gateways_share_a_backlog_and_keep_each_account_in_order() {
    let mut two = Two::start().await;
    let payers = two.backlog(12, 6).await;

    two.biller_returns(Duration::from_millis(10)).await;

    two.assert_all_paid_in_order(&payers).await;
    let shares =
        [two.first.metric(DELIVERED).await.unwrap(), two.second.metric(DELIVERED).await.unwrap()];
    assert!(shares.iter().all(|share| *share > 0.0), "{shares:?}");
}

#[tokio::test]
async fn one_key_at_both_gateways_at_once_is_one_payment() {
    let two = Two::start().await;
    let (here, there) = (Counter::a(&two.first), Counter::a(&two.second));

    for number in 0..20 {
        let bill = format!("bill-{number}");
        let body = here.body(&Payment::of(["pln", "telkom"][number % 2], &bill));
        let (one, other) = tokio::join!(here.pay(&bill, &body), there.pay(&bill, &body));
        let mut ids = Vec::new();
        for answer in [&one, &other] {
            match answer.status.as_u16() {
                200 | 202 => ids.push(text(answer, "id")),
                409 => assert_eq!(answer.slug().as_deref(), Some("request-in-progress")),
                _ => panic!("{answer:?}"),
            }
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "{one:?} {other:?}");
    }

    let ledger = two.first.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(effects_by_bill(&ledger).len(), 20);
}

#[tokio::test]
async fn a_repeat_at_the_other_gateway_is_the_same_answer_and_another_body_is_refused() {
    let two = Two::start().await;
    let (here, there) = (Counter::a(&two.first), Counter::a(&two.second));
    let body = here.body(&Payment::of("pln", "bill").by_card());
    let other = here.body(&Payment::of("pln", "other"));

    let paid = here.pay("key", &body).await;
    let again = there.pay("key", &body).await;
    let reused = there.pay("key", &other).await;
    let seen = there.client.payment(&text(&paid, "id")).await.unwrap();

    assert_eq!((paid.status.as_u16(), again.status.as_u16()), (200, 200), "{paid:?} {again:?}");
    assert_eq!(paid.body, again.body);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert!(there.acquirer.proves(&again));
    assert_eq!(reused.slug().as_deref(), Some("idempotency-key-reused"));
    assert_eq!(text(&seen, "status"), "SUCCESS");
    assert_eq!(two.effects().await, 1);
}

/// Whichever of the two is killed: what it had in its hands is found when its lease is over.
#[tokio::test]
async fn a_gateway_that_is_killed_while_it_drains_leaves_the_rest_to_the_other() {
    for victim in [0, 1] {
        let mut two = Two::start().await;
        let payers = two.backlog(8, 5).await;
        two.biller_returns(Duration::from_millis(40)).await;
        until("some are paid", PATIENCE, async || two.effects().await >= 5).await;

        if victim == 0 {
            two.first.kill_gateway();
        } else {
            two.second.kill_gateway();
        }
        let left = 40 - two.effects().await;

        assert!(left > 10, "{left}: killed too late");
        two.assert_all_paid_in_order(&payers).await;
    }
}
