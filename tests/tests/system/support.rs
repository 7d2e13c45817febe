//! What several stories share: an acquirer at a gateway, patience with a bound, and the general
//! rule of every story, that no bill is paid twice and none that was acknowledged is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};
use std::time::Duration;

use harness::acquirer::{Acquirer, Answer, Client, Payment};
use harness::billing::LedgerReport;
use harness::proxy::Proxy;
use harness::world::{Wanted, World, free_ports, program};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// No answer of any story may take longer: attempts at a biller end after 2.5 s, waits for the
/// database after 5 s.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(8);

/// An acquirer and its way to one gateway.
#[derive(Debug, Clone)]
pub(crate) struct Counter {
    pub(crate) acquirer: Acquirer,
    pub(crate) client: Client,
}

impl Counter {
    pub(crate) fn a(world: &World) -> Self {
        Self { acquirer: Acquirer::a(), client: world.client("acquirer-a").unwrap() }
    }

    pub(crate) fn b(world: &World) -> Self {
        Self { acquirer: Acquirer::b(), client: world.client("acquirer-b").unwrap() }
    }

    /// The bytes of a payment. Made once for all repeats: a PIN block has fresh filler each time.
    pub(crate) fn body(&self, payment: &Payment) -> Vec<u8> {
        self.acquirer.payment_body(payment).unwrap()
    }

    /// Pays, and is answered in time.
    pub(crate) async fn pay(&self, key: &str, body: &[u8]) -> Answer {
        let begun = Instant::now();
        let answer = self.client.pay(&self.acquirer, key, body.to_vec()).await.unwrap();
        assert!(begun.elapsed() < ANSWER_MAX, "{key} took {:?}: {answer:?}", begun.elapsed());
        answer
    }

    /// What the gateway says of a payment.
    pub(crate) async fn status(&self, id: &str) -> String {
        let answer = self.client.payment(id).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        text(&answer, "status")
    }
}

/// GET, without a header of its own.
pub(crate) async fn get(client: &Client, path: &str) -> Answer {
    client.send(Method::GET, path, &[], Vec::new()).await.unwrap()
}

/// POST of a JSON body, without a header of its own.
pub(crate) async fn post(client: &Client, path: &str, body: &Value) -> Answer {
    client.send(Method::POST, path, &[], body.to_string().into_bytes()).await.unwrap()
}

/// A world in which telkom's first URL leads through the proxy; `more` edits telkom and the whole
/// configuration.
pub(crate) async fn telkom_behind_proxy(
    more: impl FnOnce(&mut toml::Table) + Send + 'static,
) -> (World, Proxy) {
    let [port] = free_ports::<1>().unwrap();
    let edit = move |table: &mut toml::Table| {
        more(table);
        let through = format!("https://127.0.0.1:{port}/");
        telkom(table).insert("urls".into(), toml::Value::Array(vec![through.into()]));
    };
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    let mut world = World::prepare(wanted).unwrap();
    let listen = ([127, 0, 0, 1], port).into();
    let proxy = Proxy::start(listen, world.billing_address(), 7).await.unwrap();
    world.start_billing().await.unwrap();
    world.start_gateway().await.unwrap();
    (world, proxy)
}

/// telkom's table of a configuration.
pub(crate) fn telkom(table: &mut toml::Table) -> &mut toml::Table {
    let billers = table["biller"].as_array_mut().unwrap();
    let telkom = billers.iter_mut().find(|it| it["name"].as_str() == Some("telkom"));
    telkom.unwrap().as_table_mut().unwrap()
}

/// A command of `tollgate` as the client of a running gateway, with somebody's certificate.
pub(crate) async fn tollgate(world: &World, name: &str, arguments: &[&str]) -> Output {
    let pki = world.pki();
    let mut command = tokio::process::Command::new(program("tollgate").unwrap());
    command.args(arguments).arg("--config").arg(world.config());
    command.arg("--certificate").arg(pki.join(format!("{name}.crt")));
    command.arg("--key").arg(pki.join(format!("{name}.key")));
    command.kill_on_drop(true).output().await.unwrap()
}

/// What a command printed that did what it should.
pub(crate) fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A text of an answer's body.
pub(crate) fn text(answer: &Answer, field: &str) -> String {
    answer.json()[field].as_str().unwrap_or_else(|| panic!("no {field}: {answer:?}")).to_owned()
}

/// A refusal by its slug, which says when to return.
pub(crate) fn assert_refused(answer: &Answer, slug: &str) {
    assert_eq!((answer.status.as_u16(), answer.slug().as_deref()), (503, Some(slug)), "{answer:?}");
    let wait: Option<u64> = answer.header("retry-after").and_then(|text| text.parse().ok());
    assert!(wait.is_some_and(|seconds| (1..=300).contains(&seconds)), "{answer:?}");
}

/// Looks again and again until it is so.
pub(crate) async fn until(what: &str, patience: Duration, mut look: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + patience;
    while !look().await {
        assert!(Instant::now() < limit, "not within {patience:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// How often each bill was paid.
pub(crate) fn effects_by_bill(ledger: &LedgerReport) -> BTreeMap<String, usize> {
    let mut bills = BTreeMap::new();
    for effect in &ledger.effects {
        *bills.entry(effect.bill_id.clone()).or_default() += 1;
    }
    bills
}

/// No bill was paid twice, and no reference stands twice.
pub(crate) fn assert_paid_once(ledger: &LedgerReport) {
    let twice: Vec<_> =
        effects_by_bill(ledger).into_iter().filter(|(_, times)| *times > 1).collect();
    assert!(twice.is_empty(), "paid more than once: {twice:?}");
    let references: BTreeSet<_> = ledger.effects.iter().map(|effect| effect.reference).collect();
    assert_eq!(references.len(), ledger.effects.len());
    assert_eq!(ledger.conflicts, 0, "a reference was sent again with other bytes");
    assert_eq!(ledger.mac_refused, 0, "a MAC of ours was wrong");
}

/// The first column of a read-only query on the gateway's database, one line a row.
pub(crate) fn query(world: &World, sql: &str) -> String {
    let script = "import sqlite3, sys\n\
                  db = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True, timeout=5)\n\
                  print('\\n'.join(str(row[0]) for row in db.execute(sys.argv[2])))";
    let database = world.dir().join("data/tollgate.sqlite");
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(database)
        .arg(sql)
        .output()
        .expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether a process with this id is there and no zombie.
pub(crate) fn lives(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).is_some_and(|state| state != 'Z')
}
