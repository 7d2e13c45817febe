//! The queue's database, alone: how fast payments become durable, beside the disk's own rate and a
//! bare insert of the same rows, and how fast they leave again.
//!
//! Medians of three rounds; every round has a new database. 64 clients enqueue payments of 1 KiB,
//! each of an account of its own; the bare insert writes the same rows of the same tables, 64 to a
//! transaction, on one connection.

use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cluster::Database;
use gateway::config::{PostgresConfig, QueueConfig, StoreConfig};
use gateway::store::{
    Begun, Claim, Claimed, Class, DekClass, ENC_V, Ending, Idempotency, ItemFacts, NewDek,
    NewPayment, OrdKey, Outcome, Parking, Priority, Sealed, Store, Taker,
};
use rustix::fs::fdatasync;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::{figure, ms};

/// One body, two types of connection.
macro_rules! insert_batches {
    ($db:ident, $database:ty, $numbered:expr, $run:expr) => {{
        let values = |before, columns| values(before, columns, $numbered);
        let [items, keys, lanes] = [
            values(
                "INSERT INTO saf_item (id, tenant, kind, target, reference, ord_key, prio, queued, \
                    needs_pin, created_at, expires_at, updated_at, enc_v, dek_id, nonce, ct)",
                16,
            ),
            values("INSERT INTO idem_key (scope, key_hash, fp, item_id, expires_at)", 5),
            values(
                "INSERT INTO saf_lane (ord_key, target, head_seq, head_prio, leased, lease_owner, \
                    lease_token, leased_at, lease_until)",
                9,
            ),
        ];
        let (begun, mut rows) = (Instant::now(), 0_i64);
        while begun.elapsed() < $run {
            let batch: Vec<NewPayment> = (0..BATCH).map(|_| payment(1, None)).collect();
            let mut transaction = $db.begin().await?;
            let mut insert = sqlx::query::<$database>(AssertSqlSafe(items.as_str()));
            for payment in &batch {
                let (facts, payload) = (&payment.facts, payment.payload.as_ref());
                let sealed = payload.context("no payload")?;
                insert = insert
                    .bind(facts.id)
                    .bind(&facts.tenant)
                    .bind(&facts.kind)
                    .bind(&facts.target)
                    .bind(&facts.reference)
                    .bind(facts.ord_key.0.to_vec())
                    .bind(facts.prio.rank())
                    .bind(false)
                    .bind(false)
                    .bind(facts.created_at)
                    .bind(facts.expires_at)
                    .bind(facts.created_at)
                    .bind(ENC_V)
                    .bind(sealed.dek_id)
                    .bind(sealed.nonce.to_vec())
                    .bind(sealed.bytes.clone());
            }
            insert.execute(&mut *transaction).await?;
            let mut insert = sqlx::query::<$database>(AssertSqlSafe(keys.as_str()));
            for payment in &batch {
                let key = &payment.idempotency;
                insert = insert
                    .bind(&key.scope)
                    .bind(key.key_hash.to_vec())
                    .bind(key.fp.to_vec())
                    .bind(payment.facts.id)
                    .bind(key.expires_at);
            }
            insert.execute(&mut *transaction).await?;
            let mut insert = sqlx::query::<$database>(AssertSqlSafe(lanes.as_str()));
            for payment in &batch {
                rows += 1;
                insert = insert
                    .bind(payment.facts.ord_key.0.to_vec())
                    .bind(&payment.facts.target)
                    .bind(rows)
                    .bind(payment.facts.prio.rank())
                    .bind(true)
                    .bind(&payment.owner)
                    .bind(rows)
                    .bind(1_i64)
                    .bind(2_i64);
            }
            insert.execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        rows as f64 / begun.elapsed().as_secs_f64()
    }};
}

/// Prints a table and gives the figures.
pub(crate) async fn measure(seconds: u64) -> anyhow::Result<Vec<Value>> {
    let run = Duration::from_secs(seconds.div_ceil(3));
    println!(
        "\nthe queue's database: {CLIENTS} clients, payments of {PAYLOAD} bytes, {ROUNDS} rounds of \
         {run:?}"
    );
    let mut figures = Vec::new();
    for place in [Place::Sqlite, Place::Postgres] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(Round::measure(place, run).await.with_context(|| place.to_string())?);
        }
        let median = |of: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let floors = json!({
            "fdatasync_per_s": median(|round| round.syncs),
            "bare_insert_per_s": median(|round| round.bare),
            "p50_ms": median(|round| round.p50),
            "p99_ms": median(|round| round.p99),
        });
        let (per_s, ratio_min) = (median(|round| round.enqueued), 0.8);
        let target = if place == Place::Sqlite { 2_000.0 } else { 4_000.0 };
        figures.push(at_least(&format!("enqueue_{place}_per_s"), per_s, "1/s", target, floors));
        let ratio = median(|round| round.enqueued / round.bare);
        let named = format!("enqueue_{place}_ratio");
        figures.push(at_least(&named, ratio, "ratio", ratio_min, Value::Null));
        let p99 = median(|round| round.p99);
        figures.push(at_most(&format!("enqueue_{place}_p99_ms"), p99, "ms", 60.0, Value::Null));
    }
    let mut claims: f64 = 0.0;
    for (name, accounts) in [("hot_account", 1), ("many_accounts", 4_000)] {
        let mut parts = serde_json::Map::new();
        let mut slowest = f64::MAX;
        for place in [Place::Sqlite, Place::Postgres] {
            let drained = drain(place, accounts).await.with_context(|| place.to_string())?;
            parts.insert(format!("{place}_per_s"), json!(drained.per_s));
            parts.insert(format!("{place}_claim_p50_ms"), json!(drained.claim_ms));
            slowest = slowest.min(drained.per_s);
            claims = claims.max(drained.claim_ms);
        }
        let named = format!("drain_{name}_per_s");
        figures.push(at_least(&named, slowest, "1/s", 1_000.0, parts.into()));
    }
    figures.push(at_most("claim_ms", claims, "ms", 20.0, Value::Null));
    Ok(figures)
}

fn at_least(name: &str, value: f64, unit: &str, target: f64, parts: Value) -> Value {
    row(name, value, unit, (target, value >= target), parts)
}

fn at_most(name: &str, value: f64, unit: &str, target: f64, parts: Value) -> Value {
    row(name, value, unit, (target, value <= target), parts)
}

fn row(name: &str, value: f64, unit: &str, met: (f64, bool), parts: Value) -> Value {
    let word = if met.1 { "met" } else { "missed" };
    let told = if parts.is_null() { String::new() } else { parts.to_string() };
    println!("{name:<25} {value:>9.2} {unit:<5} {:>7} {word:<6} {told}", met.0);
    figure(name, value, unit, (!parts.is_null()).then_some(parts), Some(met))
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Sqlite,
    Postgres,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

/// A database of its own.
struct House {
    directory: tempfile::TempDir,
    server: Option<Database>,
}

impl House {
    fn new(place: Place) -> anyhow::Result<Self> {
        let server = (place == Place::Postgres).then(Database::create).transpose()?;
        Ok(Self { directory: tempfile::tempdir()?, server })
    }

    fn config(&self) -> StoreConfig {
        match &self.server {
            Some(server) => StoreConfig::on(PostgresConfig {
                user: cluster::USER.to_owned(),
                ..PostgresConfig::at(server.socket.display().to_string(), &server.name)
            }),
            None => StoreConfig::at(self.directory.path().join("tollgate.db")),
        }
    }

    async fn open(&self) -> anyhow::Result<Store> {
        let queue = QueueConfig { rows_max: 1_000_000, ..QueueConfig::default() };
        let store = Store::open(&self.config(), &queue).await?;
        let (class, wrapped) = (DekClass::Record, vec![1; 40]);
        store.insert_dek(NewDek { class, kek_version: 1, wrapped, not_after: i64::MAX }).await?;
        Ok(store)
    }
}

struct Round {
    syncs: f64,
    bare: f64,
    enqueued: f64,
    p50: f64,
    p99: f64,
}

impl Round {
    async fn measure(place: Place, run: Duration) -> anyhow::Result<Self> {
        let syncs = syncs_per_s(Duration::from_millis(500))?;
        let bare = bare_insert(place, run).await?;
        let (enqueued, mut took) = enqueue(place, run).await?;
        took.sort();
        let at = |share: f64| ms(took[((took.len() - 1) as f64 * share) as usize]);
        Ok(Self { syncs, bare, enqueued, p50: at(0.5), p99: at(0.99) })
    }
}

/// How often the disk makes 8 KiB durable.
fn syncs_per_s(run: Duration) -> anyhow::Result<f64> {
    let mut file: File = tempfile::tempfile()?;
    let (begun, mut syncs) = (Instant::now(), 0);
    while begun.elapsed() < run {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[syncs as u8; 8_192])?;
        fdatasync(&file)?;
        syncs += 1;
    }
    Ok(f64::from(syncs) / begun.elapsed().as_secs_f64())
}

async fn enqueue(place: Place, run: Duration) -> anyhow::Result<(f64, Vec<Duration>)> {
    let house = House::new(place)?;
    let store = house.open().await?;
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let store = store.clone();
        clients.spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < run {
                let payment = payment(store.now(), None);
                let asked = Instant::now();
                let begun = store.begin(payment).await?;
                ensure!(matches!(begun, Begun::Forward(_)), "{begun:?}");
                took.push(asked.elapsed());
            }
            anyhow::Ok(took)
        });
    }
    let mut took = Vec::new();
    while let Some(client) = clients.join_next().await {
        took.extend(client??);
    }
    let per_s = took.len() as f64 / begun.elapsed().as_secs_f64();
    store.close().await;
    Ok((per_s, took))
}

/// The same rows without anything around them.
async fn bare_insert(place: Place, run: Duration) -> anyhow::Result<f64> {
    let house = House::new(place)?;
    // Makes the tables.
    house.open().await?.close().await;
    let rows = match &house.server {
        None => {
            use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
            let mut db = SqliteConnectOptions::new()
                .filename(house.directory.path().join("tollgate.db"))
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .disable_statement_logging()
                .connect()
                .await?;
            insert_batches!(db, sqlx::Sqlite, false, run)
        }
        Some(server) => {
            let mut db = sqlx::postgres::PgConnectOptions::new_without_pgpass()
                .socket(&server.socket)
                .username(cluster::USER)
                .database(&server.name)
                .disable_statement_logging()
                .connect()
                .await?;
            insert_batches!(db, sqlx::Postgres, true, run)
        }
    };
    Ok(rows)
}

/// Each database's faster form.
fn values(before: &str, columns: usize, numbered: bool) -> String {
    let row = |row: usize| {
        let named =
            |column| if numbered { format!("${}", row * columns + column) } else { "?".into() };
        let columns = (1..=columns).map(named);
        format!("({})", columns.collect::<Vec<_>>().join(", "))
    };
    format!("{before} VALUES {}", (0..BATCH).map(row).collect::<Vec<_>>().join(", "))
}

struct Drained {
    per_s: f64,
    claim_ms: f64,
}

/// 10 000 payments of so many accounts leave, as fast as the database lets them.
async fn drain(place: Place, accounts: u32) -> anyhow::Result<Drained> {
    let house = House::new(place)?;
    let store = house.open().await?;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS as u32 {
        let store = store.clone();
        clients.spawn(async move {
            for number in (client..ITEMS).step_by(CLIENTS) {
                let begun = store.begin(payment(store.now(), Some(number % accounts))).await?;
                if let Begun::Forward(lease) = begun {
                    store
                        .release(
                            &lease,
                            Parking {
                                retry_in: Duration::ZERO,
                                class: Class::NotSent,
                                code: None,
                                counts: false,
                                pin: None,
                            },
                        )
                        .await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    let begun = Instant::now();
    let (mut left, mut claims) = (ITEMS as usize, Vec::new());
    while left > 0 {
        let asked = Instant::now();
        let claim = Claim {
            target: "pln".into(),
            rows: 50,
            owner: "bench".into(),
            lease: Duration::from_secs(30),
        };
        let claimed = store.claim(claim).await?;
        claims.push(asked.elapsed());
        ensure!(!claimed.is_empty(), "{left} left and nothing to claim");
        left -= complete(&store, claimed).await?;
    }
    let per_s = f64::from(ITEMS) / begun.elapsed().as_secs_f64();
    claims.sort();
    store.close().await;
    Ok(Drained { per_s, claim_ms: ms(claims[claims.len() / 2]) })
}

/// A sender for each lane, until the lane is empty.
async fn complete(store: &Store, claimed: Vec<Claimed>) -> anyhow::Result<usize> {
    let mut senders = JoinSet::new();
    for first in claimed {
        let store = store.clone();
        senders.spawn(async move {
            let (mut next, mut sent) = (Some(first), 0);
            while let Some(one) = next.take() {
                let answer = Some(sealed(128));
                let ending = Ending { outcome: Outcome::Done, code: "00".into(), answer };
                let taker = Taker { owner: "bench".into(), lease: Duration::from_secs(30) };
                next = store.complete_and_take(&one.lease, ending, taker).await?.1;
                sent += 1;
            }
            anyhow::Ok(sent)
        });
    }
    let mut sent = 0;
    while let Some(sender) = senders.join_next().await {
        sent += sender??;
    }
    Ok(sent)
}

fn payment(now: i64, account: Option<u32>) -> NewPayment {
    let id = Uuid::now_v7();
    let (mut key_hash, mut lane) = ([0; 32], [0; 16]);
    key_hash[..16].copy_from_slice(id.as_bytes());
    match account {
        Some(account) => lane[..4].copy_from_slice(&account.to_be_bytes()),
        None => lane.copy_from_slice(&random_lane()),
    }
    NewPayment {
        facts: ItemFacts {
            id,
            tenant: "acquirer-a".into(),
            kind: "payment".into(),
            target: "pln".into(),
            reference: id.to_string(),
            ord_key: OrdKey(lane),
            prio: Priority::Normal,
            created_at: now,
            expires_at: now + 86_400_000,
        },
        payload: Some(sealed(PAYLOAD)),
        needs_pin: false,
        pin: None,
        may_wait: true,
        is_marked: false,
        idempotency: Idempotency {
            scope: "acquirer-a".into(),
            key_hash,
            fp: [1; 32],
            expires_at: now + 86_400_000,
        },
        owner: "bench".into(),
        lease: Duration::from_secs(3_600),
    }
}

fn random_lane() -> [u8; 16] {
    let mut lane = [0; 16];
    // A lane that is not random is a lane all the same.
    let _ = getrandom::fill(&mut lane);
    lane
}

fn sealed(bytes: usize) -> Sealed {
    Sealed { enc_v: ENC_V, dek_id: 1, nonce: [9; 12], bytes: vec![0x5A; bytes] }
}

const CLIENTS: usize = 64;
const ROUNDS: usize = 3;
const PAYLOAD: usize = 1_024;
const BATCH: usize = 64;
const ITEMS: u32 = 10_000;
