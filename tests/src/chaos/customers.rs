//! The load: random operations and payments at a steady rate, and the check of every answer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Method;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::books::{Books, DEADLINE, Ended, Told};
use super::wire;
use crate::acquirer::{Acquirer, Answer, Client, Payment};
use crate::billing::LedgerReport;
use crate::random_orders::{Question, RandomKeys, Reply, Verdict};
use crate::soft::random::Random;
use crate::world::World;

/// Everybody who asks.
pub(super) struct Customers {
    keys: RandomKeys,
    random: Mutex<Random>,
    payers: [(Acquirer, Client); 2],
    books: Arc<Books>,
    next: AtomicU64,
    places: Arc<Semaphore>,
    /// By bill.
    refused: Mutex<HashMap<String, Refusal>>,
}

/// A payment that was refused: who sent what, and the slug.
struct Refusal {
    payer: usize,
    body: Vec<u8>,
    slug: String,
}

/// Customers that come until they are told not to.
pub(super) struct Load {
    stop: oneshot::Sender<()>,
    coming: JoinHandle<()>,
    places: Arc<Semaphore>,
}

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(15);
/// Requests under way; more would mean that nothing is answered at all.
const PLACES: u32 = 3_000;

impl Customers {
    pub(super) fn new(
        world: &World,
        keys: RandomKeys,
        seed: u64,
        books: Arc<Books>,
    ) -> anyhow::Result<Self> {
        let payer = |acquirer: Acquirer| {
            let client = world.client(acquirer.name())?;
            anyhow::Ok((acquirer, client))
        };
        let payers = [payer(Acquirer::a())?, payer(Acquirer::b())?];
        let places = Arc::new(Semaphore::new(PLACES as usize));
        let random = Mutex::new(Random::of(seed));
        let (next, refused) = (AtomicU64::new(0), Mutex::default());
        Ok(Self { keys, random, payers, books, next, places, refused })
    }

    /// So many requests a second from now on, whether the earlier ones are answered or not.
    pub(super) fn come(self: Arc<Self>, rate: u32) -> Load {
        let (stop, mut stopped) = oneshot::channel();
        let places = self.places.clone();
        let coming = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            for number in 0_u64.. {
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = &mut stopped => return,
                }
                let Ok(place) = self.places.clone().acquire_owned().await else { return };
                let customers = self.clone();
                tokio::spawn(async move {
                    match number % 4 {
                        0 => customers.pay("pln").await,
                        1 => customers.pay("telkom").await,
                        _ => customers.ask().await,
                    };
                    drop(place);
                });
            }
        });
        Load { stop, coming, places }
    }

    /// One random operation; whether it was answered rightly.
    pub(super) async fn ask(&self) -> bool {
        let row = self.books.row();
        let question = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            self.keys.question(&mut random)
        };
        let asked = question.and_then(|question| {
            let (path, body) = wire::request_of(&question.order)?;
            Ok((question, path, body))
        });
        let (question, path, body) = match asked {
            Ok(asked) => asked,
            Err(error) => {
                self.books.enter(row, Ended::Odd(format!("not asked: {error:#}")), Duration::ZERO);
                return false;
            }
        };
        let (answer, took) = send(&self.payers[0].1, path, &[], body).await;
        let ended = match answer {
            Ok(answer) => judge(&question, &answer),
            Err(why) => Ended::Unanswered(why),
        };
        let is_right = matches!(ended, Ended::Right);
        self.books.enter(row, ended, took);
        is_right
    }

    /// One payment under a key of its own; whether it was made at once.
    pub(super) async fn pay(&self, biller: &str) -> bool {
        let row = self.books.row();
        let number = self.next.fetch_add(1, Relaxed);
        let payer = (number / 4) as usize % 2;
        let (acquirer, client) = &self.payers[payer];
        let bill = format!("chaos-{number}-{biller}");
        let payment = Payment::of(biller, &bill);
        let payment = if (number / 2).is_multiple_of(2) { payment.by_card() } else { payment };
        let Ok(body) = acquirer.payment_body(&payment) else { return false };
        let (key, mac) = (format!("\"{bill}\""), acquirer.mac_header(&body));
        let headers = [("Idempotency-Key", &*key), ("Tollgate-Mac", &*mac)];
        let (answer, took) = send(client, "/v1/payments", &headers, body.clone()).await;
        let (told, ended) = match &answer {
            Ok(answer) => told_by(answer, acquirer, biller, &bill),
            Err(why) => (Told::Nothing, Ended::Unanswered(format!("{bill}: {why}"))),
        };
        if let (Told::Refused, Ok(answer)) = (told, answer) {
            let slug = answer.slug().unwrap_or_default();
            self.refused().insert(bill.clone(), Refusal { payer, body, slug });
        }
        self.books.enter_bill(row, bill, told);
        self.books.enter(row, ended, took);
        told == Told::Paid
    }

    /// What a client hears who was refused and whose payment is made all the same, when he asks
    /// again under the same key.
    pub(super) async fn ask_again(&self, ledger: &LedgerReport) -> HashMap<String, String> {
        let mut said = HashMap::new();
        for bill in self.books.refused_and_paid(ledger) {
            let Some(Refusal { payer, body, slug }) = self.refused().remove(&bill) else {
                continue;
            };
            let (acquirer, client) = &self.payers[payer];
            let answer = match client.pay(acquirer, &bill, body).await {
                Ok(answer) => format!("{} {}", answer.status, answer.json()["status"]),
                Err(error) => error.to_string(),
            };
            said.insert(bill, format!("503 {slug}, and under the same key now {answer}"));
        }
        said
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<String, Refusal>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Nobody comes any more, and everybody is answered.
    pub(super) async fn end(self) {
        // Errors say that it has ended already.
        let _ = self.stop.send(());
        let _ = self.coming.await;
        let _ = self.places.acquire_many(PLACES).await;
    }
}

/// The answer or why there is none, and how long it took.
async fn send(
    client: &Client,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> (Result<Answer, String>, Duration) {
    let deadline = DEADLINE.as_secs().to_string();
    let mut all = vec![("Request-Timeout", deadline.as_str())];
    all.extend(headers);
    let begun = Instant::now();
    let answer = timeout(PATIENCE, client.send(Method::POST, path, &all, body)).await;
    let answer = match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::from(error))),
        Err(_) => Err("silence".to_owned()),
    };
    (answer, begun.elapsed())
}

fn judge(question: &Question, answer: &Answer) -> Ended {
    let verdict = match (answer.status.as_u16(), answer.slug().as_deref()) {
        (200, _) => match wire::answer_of(&question.order, answer) {
            Ok(said) => question.judge(&Reply::Answer(&said)),
            Err(error) => return Ended::Wrong(format!("{question}: {error:#}")),
        },
        (422, Some("pin-block-refused")) => question.judge(&Reply::BlockRefused),
        _ => return other(answer, &question.to_string()),
    };
    match verdict {
        Verdict::Translated | Verdict::Refused | Verdict::Mac => Ended::Right,
        Verdict::Different => {
            let body = String::from_utf8_lossy(&answer.body);
            Ended::Wrong(format!("{question}: {} {body}", answer.status))
        }
    }
}

fn told_by(answer: &Answer, acquirer: &Acquirer, biller: &str, bill: &str) -> (Told, Ended) {
    let body = answer.json();
    let status = body["status"].as_str().unwrap_or_default();
    let proved = acquirer.proves(answer);
    let stores = biller == "pln";
    match (answer.status.as_u16(), status) {
        (200, "SUCCESS") if proved => (Told::Paid, Ended::Right),
        (202, "PENDING" | "PROCESSING") if proved && stores => (Told::Waits, Ended::Right),
        (202, "HELD") if proved && !stores => (Told::Held, Ended::Right),
        (202, "HELD") => (Told::Held, Ended::Odd(format!("{biller} holds, proved {proved}"))),
        (200 | 202, _) => {
            let text = String::from_utf8_lossy(&answer.body);
            let why = format!("{bill}: {} {text}, proved {proved}", answer.status);
            (Told::Nothing, Ended::Wrong(why))
        }
        // Its answer could not get a MAC: it says itself that the payment is kept.
        (503, _) if answer.json()["detail"].as_str().is_some_and(|it| it.contains("is kept")) => {
            (Told::Nothing, other(answer, bill))
        }
        (503 | 429, _) => (Told::Refused, other(answer, bill)),
        _ => (Told::Nothing, other(answer, bill)),
    }
}

/// 503 is an answer that a client can live with; another 5xx says too little; the rest is false,
/// because every request was a right one.
fn other(answer: &Answer, what: &str) -> Ended {
    let slug = answer.slug().unwrap_or_default();
    match answer.status.as_u16() {
        503 | 429 => Ended::Refused,
        status @ 500.. => Ended::Odd(format!("{status} {slug}")),
        status => Ended::Wrong(format!("{what}: {status} {slug}")),
    }
}
