//! Two tokens with the same keys: one dies or hangs and no client notices; keys change on both; a
//! link that missed a change does not serve until it has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use harness::acquirer::{Answer, Client};
use harness::world::{Link, Wanted, World, signal};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{get, until};

const LABEL: &str = "zak.acquirer-b";
/// What each request allows itself, as its header says.
const ALLOWED: Duration = Duration::from_secs(3);
/// A worker whose start hangs is killed after five seconds.
pub(crate) const BACK_WITHIN: Duration = Duration::from_secs(15);

pub(crate) async fn two_links() -> World {
    let edit = |table: &mut toml::Table| {
        // The product's own rests.
        table["hsm"].as_table_mut().unwrap().remove("breaker");
    };
    let wanted =
        Wanted { shim: true, second_link: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    until("the backup link serves", BACK_WITHIN, async || usable(&world, "backup").await).await;
    world
}

/// A link as the admin API shows it.
pub(crate) async fn link(world: &World, name: &str) -> Value {
    let answer = get(&world.admin("monitor").unwrap(), "/v1/links").await.json();
    let links = answer["links"].as_array().unwrap();
    links.iter().find(|link| link["name"] == name).unwrap().clone()
}

pub(crate) async fn usable(world: &World, name: &str) -> bool {
    link(world, name).await["usable"] == true
}

/// The primary's module does so until it is seen and for some time more, then it is well again.
async fn primary_does(world: &World, what: &str, longer: Duration) {
    world.shim_control_of(Link::Primary, what).await.unwrap();
    until("it is seen", BACK_WITHIN, async || !usable(world, "primary").await).await;
    sleep(longer).await;
    world.shim_control_of(Link::Primary, "").await.unwrap();
    until("it is back", BACK_WITHIN, async || usable(world, "primary").await).await;
}

async fn post(client: &Client, path: &str, body: &Value) -> Answer {
    let allowed = ALLOWED.as_secs().to_string();
    let headers = [("Request-Timeout", allowed.as_str())];
    client.send(Method::POST, path, &headers, body.to_string().into_bytes()).await.unwrap()
}

async fn mac(client: &Client) -> Answer {
    post(client, "/v1/mac/generate", &json!({"key": LABEL, "message": "00"})).await
}

/// Clients that ask for MACs, one after the other, until told to stop.
struct Askers {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<(Duration, Answer)>>,
}

impl Askers {
    fn begin(world: &World) -> Self {
        let (stop, mut clients) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for _ in 0..8 {
            let (client, stop) = (world.client("acquirer-b").unwrap(), Arc::clone(&stop));
            clients.spawn(async move {
                let mut seen = Vec::new();
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    let answer = mac(&client).await;
                    seen.push((begun.elapsed(), answer));
                    sleep(Duration::from_millis(5)).await;
                }
                seen
            });
        }
        Self { stop, clients }
    }

    /// Every answer was the right one, and none came late. How many there were.
    async fn end(self) -> usize {
        self.stop.store(true, Relaxed);
        let seen: Vec<_> = self.clients.join_all().await.into_iter().flatten().collect();
        let right = seen[0].1.json()["mac"].clone();
        for (took, answer) in &seen {
            assert_eq!(answer.status, 200, "after {took:?}: {}", answer.json());
            assert_eq!(answer.json()["mac"], right);
            assert!(*took < ALLOWED + Duration::from_secs(1), "{took:?}");
        }
        seen.len()
    }
}

#[tokio::test]
async fn a_primary_link_that_dies_is_taken_over_from_at_once_and_serves_again_when_it_is_back() {
    let world = two_links().await;
    let backup_signed = || {
        let counts = world.shim_counts_of(Link::Backup).unwrap();
        counts.get("SignInit").copied().unwrap_or(0)
    };
    let askers = Askers::begin(&world);
    sleep(Duration::from_millis(300)).await;
    let before = backup_signed();

    primary_does(&world, "* fail 0x32", Duration::from_millis(500)).await;
    for worker in world.workers_of(Link::Primary) {
        // One that is starting may be gone.
        let _ = signal(worker, Signal::KILL);
    }
    sleep(Duration::from_millis(500)).await;

    let answered = askers.end().await as u64;
    let by_backup = backup_signed() - before;
    assert!(answered > 100 && by_backup > answered / 10, "{by_backup} of {answered}");
    let up = world.metric("tollgate_hsm_link_up{link=\"backup\",role=\"backup\"}").await.unwrap();
    assert!(up > 0.5);
}

#[tokio::test]
async fn a_primary_link_that_hangs_costs_nobody_his_deadline() {
    let world = two_links().await;
    let askers = Askers::begin(&world);
    sleep(Duration::from_millis(300)).await;

    primary_does(&world, "* hang", Duration::from_secs(1)).await;

    assert!(askers.end().await > 100);
}

#[tokio::test]
async fn an_order_says_on_record_which_link_ran_it() {
    let world = two_links().await;
    let counter = crate::support::Counter::a(&world);
    let translate = async || {
        let block = counter.acquirer.pin_block("271828", PAN, ISO0).unwrap();
        let from = harness::acquirer::PinSide { key: "zpk.acquirer-a", format: "iso0", ksn: None };
        let to = harness::acquirer::PinSide { key: "zpk.billing", format: "iso0", ksn: None };
        counter.client.translate(PAN, &block, from, to).await
    };

    translate().await.unwrap();
    world.shim_control_of(Link::Primary, "* fail 0x32").await.unwrap();
    until("it is seen", BACK_WITHIN, async || {
        // A call finds out; a heartbeat may be half a minute away.
        counter.client.generate_mac("zak.acquirer-a", b"who is there").await.unwrap();
        !usable(&world, "primary").await
    })
    .await;
    translate().await.unwrap();

    let events = world.audit().unwrap();
    let translations = events.iter().filter(|event| event["event"]["type"] == "pin.translate");
    let links: Vec<&str> = translations.map(|event| event["link"].as_str().unwrap()).collect();
    assert_eq!(links, ["primary", "backup"]);
}

const PAN: &str = "4761737909457820";
const ISO0: harness::soft::pin::PinFormat = harness::soft::pin::PinFormat::Iso0;

/// Its module fails until the shim is told otherwise.
pub(crate) async fn backup_goes_away(world: &World) {
    world.shim_control_of(Link::Backup, "* fail 0x32").await.unwrap();
    until("the backup is away", BACK_WITHIN, async || {
        let workers = link(world, "backup").await["workers"].as_array().unwrap().clone();
        workers.iter().all(|worker| worker["ready"] == false)
    })
    .await;
}

/// Retires a version by two officers: the change as it is then.
async fn retire(world: &World, label: &str) -> Answer {
    let (first, second) =
        (world.admin("key-officer").unwrap(), world.admin("key-officer-2").unwrap());
    let body = json!({"version": 1, "reason": "yearly"});
    let proposed = post(&first, &format!("/v1/keys/{label}/retire"), &body).await;
    assert_eq!(proposed.status, 202, "{proposed:?}");
    let path = format!("/v1/keys/changes/{}/approve", proposed.json()["change"]);
    post(&second, &path, &json!({"reason": "seen"})).await
}

fn is_retired(world: &World, link: Link, label: &str) -> bool {
    let register = std::fs::read_to_string(link.token(world.dir()).join("keys.toml")).unwrap();
    let register: toml::Table = toml::from_str(&register).unwrap();
    let keys = register["key"].as_array().unwrap();
    let key = keys.iter().find(|key| key["label"].as_str() == Some(label)).unwrap();
    key.get("state").and_then(toml::Value::as_str) == Some("retired")
}

#[tokio::test]
async fn a_key_changes_on_both_links_and_one_that_was_away_catches_up_before_it_serves() {
    let world = two_links().await;

    let changed = retire(&world, "zak.acquirer-c").await;
    assert_eq!((changed.status.as_u16(), changed.json()["state"].as_str()), (200, Some("applied")));
    let both = [Link::Primary, Link::Backup].map(|link| is_retired(&world, link, "zak.acquirer-c"));
    backup_goes_away(&world).await;
    let waits = retire(&world, "zak.acquirer-d").await;
    let number = waits.json()["change"].as_i64().unwrap();
    let distrusted = link(&world, "backup").await["distrusted"] == true;
    world.shim_control_of(Link::Backup, "").await.unwrap();
    until("it has caught up", Duration::from_secs(20), async || {
        usable(&world, "backup").await && is_retired(&world, Link::Backup, "zak.acquirer-d")
    })
    .await;

    assert_eq!(both, [true, true]);
    assert_eq!((waits.status.as_u16(), waits.json()["state"].as_str()), (202, Some("approved")));
    assert!(distrusted, "a link that missed a change");
    let log = std::fs::read_to_string(world.dir().join("gateway.log")).unwrap();
    let trusted = |line: &&str| line.contains("trusted now") && line.contains("\"backup\"");
    assert_eq!(log.lines().filter(trusted).count(), 2, "at the start, and when it has caught up");
    assert!(is_retired(&world, Link::Primary, "zak.acquirer-d"));
    until("the change is applied", BACK_WITHIN, async || {
        let changes = get(&world.admin("auditor").unwrap(), "/v1/keys/changes").await.json();
        let changes = changes["changes"].as_array().unwrap().clone();
        changes.iter().any(|change| change["change"] == number && change["state"] == "applied")
    })
    .await;
}

/// The same label, another key: whoever has it does not serve.
#[tokio::test]
async fn a_backup_with_another_key_under_a_label_is_never_used() {
    let other = "A1B2C3";
    let world = World::prepare(Wanted { second_link: true, ..Wanted::default() }).unwrap();
    let register = Link::Backup.token(world.dir()).join("keys.toml");
    let text = std::fs::read_to_string(&register).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    let keys = table["key"].as_array_mut().unwrap();
    // A key whose check value the token does not tell is believed as the register has it.
    let key = keys.iter_mut().find(|key| key["label"].as_str() == Some("zpk.acquirer-a")).unwrap();
    key["kcv"] = other.into();
    std::fs::write(&register, toml::to_string(&table).unwrap()).unwrap();
    let mut world = world;
    world.start_billing().await.unwrap();
    world.start_gateway().await.unwrap();

    until("both links are compared", BACK_WITHIN, async || {
        let events = world.audit().unwrap();
        events.iter().any(|event| event["event"]["type"] == "key.substitution")
    })
    .await;

    assert!(!usable(&world, "backup").await);
}
