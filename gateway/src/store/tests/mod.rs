//! The store, alone: rows go in and come out as bytes that nobody opens.

/// Each test twice: on SQLite, and on a real PostgreSQL server.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::store::tests::On::Sqlite).await;
            })*
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::store::tests::On::Postgres).await;
            })*
        }
    };
}

pub(crate) mod breaker_orders;
mod durability;
mod epoch;
mod guards;
mod idempotency;
mod key_changes;
mod lanes;
mod looking;
mod operators;
mod paused;
mod pins;
mod replay;
mod schema;
mod server;
mod settings;
mod several;
mod shredding;
mod unknown;
mod vanished;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use cluster::Database;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::db::{Db, Session, Sql, Value, query};
use super::order::Order;
use super::writer::Batch;
use super::*;

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Sqlite,
    Postgres,
}

/// A store in a database of its own, and a clock that moves by hand.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) queue: QueueConfig,
    /// Last: it is dropped when nobody is connected any more.
    server: Option<Arc<Database>>,
}

pub(crate) const LEASE: Duration = Duration::from_secs(30);

impl World {
    pub(crate) async fn new(on: On) -> Self {
        Self::with(on, QueueConfig::default()).await
    }

    pub(crate) async fn with(on: On, queue: QueueConfig) -> Self {
        let server = match on {
            On::Sqlite => None,
            On::Postgres => Some(Arc::new(Database::create().unwrap())),
        };
        let world = Self::open(tempfile::tempdir().unwrap(), Clock::manual(), queue, server).await;
        // Sealed rows refer to a data key: number 1.
        world.store.insert_dek(dek()).await.unwrap();
        world
    }

    async fn open(
        directory: tempfile::TempDir,
        clock: Clock,
        queue: QueueConfig,
        server: Option<Arc<Database>>,
    ) -> Self {
        let config = config_of(&directory, server.as_deref());
        let store = Store::open_at(&config, &queue, clock.clone()).await.unwrap();
        Self { store, clock, directory, queue, server }
    }

    /// What a killed gateway would leave, opened by the next one.
    pub(crate) async fn after_a_crash(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for file in ["tollgate.db", "tollgate.db-wal", "tollgate.db.lock"] {
            let from = self.directory.path().join(file);
            if from.exists() {
                std::fs::copy(from, directory.path().join(file)).unwrap();
            }
        }
        let (clock, queue) = (self.clock.clone(), self.queue.clone());
        let next = Self::open(directory, clock, queue, self.server.clone()).await;
        if next.server.is_some() {
            // Nobody knows that the other gateway is dead: its leases have to run out.
            next.clock.advance(LEASE);
        }
        next.store.recover(false).await.unwrap();
        next
    }

    /// For another store on the same database.
    fn config(&self) -> StoreConfig {
        config_of(&self.directory, self.server.as_deref())
    }

    /// A connection of somebody else.
    pub(in crate::store) async fn intruder(&self) -> Session {
        match &self.server {
            Some(server) => {
                let server = super::postgres::Server::of(&postgres_at(server)).unwrap();
                Session::Postgres(server.connect().await.unwrap())
            }
            None => Session::Sqlite(self.file_intruder().await),
        }
    }

    /// The same, of a file.
    pub(crate) async fn file_intruder(&self) -> SqliteConnection {
        let file = self.store.path().unwrap();
        SqliteConnectOptions::new().filename(file).connect().await.unwrap()
    }

    /// Somebody else's hand in the database, who minds neither what refers to what nor which words
    /// PostgreSQL knows.
    pub(crate) async fn tamper(&self, statement: &str) {
        match self.intruder().await {
            Session::Sqlite(mut file) => {
                let statement = format!("PRAGMA foreign_keys = OFF; {statement}");
                sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut file).await.unwrap();
            }
            Session::Postgres(mut server) => {
                let statement = statement
                    .replace("id = randomblob(16)", "id = gen_random_uuid()")
                    .replace("randomblob(", "substr(sha256(random()::text::bytea), 1, ");
                let statement = format!("SET session_replication_role = replica; {statement}");
                sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut server).await.unwrap();
            }
        }
    }

    /// Somebody else's hand in the database.
    pub(crate) async fn edit(&self, statement: &'static str, value: i64) {
        let mut db = self.intruder().await;
        query(statement).bind(value).execute(&mut db.db()).await.unwrap();
    }

    pub(crate) async fn claim(&self, rows: u32) -> Vec<Claimed> {
        let (target, owner) = ("pln".to_owned(), "forwarder".to_owned());
        self.store.claim(Claim { target, rows, owner, lease: LEASE }).await.unwrap()
    }

    pub(crate) async fn forward(&self, payment: NewPayment) -> Lease {
        let begun = self.store.begin(payment).await.unwrap();
        let Begun::Forward(lease) = begun else { panic!("{begun:?}") };
        lease
    }

    pub(crate) async fn queue(&self, payment: NewPayment) {
        let begun = self.store.begin(payment).await.unwrap();
        assert!(matches!(begun, Begun::Queued { .. }), "{begun:?}");
    }

    pub(crate) async fn view(&self, id: Uuid) -> PaymentView {
        self.store.payment(id, "acquirer-a").await.unwrap().unwrap()
    }

    async fn status(&self, id: Uuid) -> Status {
        self.view(id).await.status
    }

    /// Held payments by reason.
    pub(crate) async fn held(&self) -> Vec<(String, i64)> {
        let held = "
SELECT hold_reason, count(*) AS n FROM saf_item WHERE state = 1 GROUP BY 1";
        let rows = query(held).all(&mut self.intruder().await.db()).await.unwrap();
        rows.iter().map(|row| (row.get("hold_reason").unwrap(), row.get("n").unwrap())).collect()
    }

    async fn count(&self, table: &'static str) -> i64 {
        let statement = match table {
            "saf_item" => "SELECT count(*) FROM saf_item",
            "saf_lane" => "SELECT count(*) FROM saf_lane",
            "idem_key" => "SELECT count(*) FROM idem_key",
            "saf_dek" => "SELECT count(*) FROM saf_dek",
            other => panic!("{other}"),
        };
        query(statement).one(&mut self.intruder().await.db()).await.unwrap().value().unwrap()
    }

    fn new_payment(&self, lane: u8) -> NewPayment {
        new_payment(self.store.now(), lane)
    }
}

/// So many payments of so many accounts, and their lanes.
async fn fill(db: &mut Db<'_>, payments: u32, accounts: u32) {
    let (id, ord_key) = match db {
        Db::Sqlite(_) => ("randomblob(16)", "CAST(printf('%016d', i % {}) AS BLOB)"),
        Db::Postgres(_) => {
            ("gen_random_uuid()", "convert_to(lpad((i % {})::text, 16, '0'), 'UTF8')")
        }
    };
    let ord_key = ord_key.replace("{}", &accounts.to_string());
    let items = format!(
        "
INSERT INTO saf_item (id, tenant, kind, target, reference, ord_key, prio, queued, needs_pin,
                      created_at, expires_at, updated_at, enc_v)
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {payments})
SELECT {id}, 'acquirer-a', 'payment', 'pln', CAST(i + {accounts} * 100000 AS text), {ord_key}, 2,
       TRUE, FALSE, 0, 1000000, 0, 1
FROM n"
    );
    for statement in [items, LANES.to_owned(), "ANALYZE".to_owned()] {
        query(Sql::Rows(statement.into())).execute(db).await.unwrap();
    }
}

/// The lanes of all open payments.
const LANES: &str = "
INSERT INTO saf_lane (ord_key, target, head_seq, head_prio)
SELECT ord_key, 'pln', min(seq), 2 FROM saf_item WHERE TRUE GROUP BY ord_key
ON CONFLICT (ord_key) DO NOTHING";

/// How the database means to do it.
async fn plan(on: On, statement: &Sql, values: Vec<Value>, db: &mut Db<'_>) -> String {
    let (sqlite, postgres) = match statement {
        Sql::Each { sqlite, postgres } => (*sqlite, *postgres),
        Sql::Both(text) => (*text, *text),
        Sql::Rows(_) => panic!("rows have no plan of their own"),
    };
    let (explain, column) = match on {
        On::Sqlite => (format!("EXPLAIN QUERY PLAN {sqlite}"), "detail"),
        On::Postgres => (format!("EXPLAIN {postgres}"), "QUERY PLAN"),
    };
    let mut query = query(Sql::Rows(explain.into()));
    for value in values {
        query = query.bind(value);
    }
    let lines = query.all(db).await.unwrap();
    lines.iter().map(|row| row.get::<String>(column).unwrap() + "\n").collect()
}

fn config_of(directory: &tempfile::TempDir, server: Option<&Database>) -> StoreConfig {
    match server {
        Some(server) => StoreConfig::on(postgres_at(server)),
        None => StoreConfig::at(directory.path().join("tollgate.db")),
    }
}

fn postgres_at(server: &Database) -> PostgresConfig {
    let host = server.socket.display().to_string();
    let user = cluster::USER.to_owned();
    PostgresConfig { user, ..PostgresConfig::at(host, &server.name) }
}

/// A payment of `lane` that may wait; its key is its own.
pub(crate) fn new_payment(now: i64, lane: u8) -> NewPayment {
    let id = Uuid::now_v7();
    let mut key_hash = [0; 32];
    key_hash[..16].copy_from_slice(id.as_bytes());
    NewPayment {
        facts: ItemFacts {
            id,
            tenant: "acquirer-a".into(),
            kind: PAYMENT.into(),
            target: "pln".into(),
            reference: id.to_string(),
            ord_key: OrdKey([lane; 16]),
            prio: Priority::Normal,
            created_at: now,
            expires_at: now + 3_600_000,
        },
        payload: Some(sealed(b"payload")),
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
        owner: "front".into(),
        lease: LEASE,
    }
}

fn dek() -> NewDek {
    NewDek { class: DekClass::Record, kek_version: 1, wrapped: vec![1; 40], not_after: i64::MAX }
}

fn sealed(bytes: &[u8]) -> Sealed {
    Sealed { enc_v: ENC_V, dek_id: 1, nonce: [9; 12], bytes: bytes.to_vec() }
}

fn done() -> Ending {
    Ending { outcome: Outcome::Done, code: "00".into(), answer: Some(sealed(b"answer")) }
}

fn parking(class: Class) -> Parking {
    let retry_in = Duration::from_secs(1);
    Parking { retry_in, class, code: Some("91".into()), counts: true, pin: None }
}
