//! The store, alone: rows go in and come out as bytes that nobody opens.

mod lanes;
mod idempotency;
mod durability;
mod pins;
mod guards;
mod looking;
mod key_changes;
pub(crate) mod breaker_orders;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};

use super::writer::{Batch, Order};
use super::*;

/// A store in a directory of its own, and a clock that moves by hand.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) queue: QueueConfig,
}

pub(crate) const LEASE: Duration = Duration::from_secs(30);

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(QueueConfig::default()).await
    }

    pub(crate) async fn with(queue: QueueConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual();
        let config = StoreConfig::at(directory.path().join("tollgate.db"));
        let store = Store::open_at(&config, &queue, clock.clone()).await.unwrap();
        // Sealed rows refer to a data key: number 1.
        let (class, wrapped) = (DekClass::Record, vec![1; 40]);
        let not_after = i64::MAX;
        store.insert_dek(NewDek { class, kek_version: 1, wrapped, not_after }).await.unwrap();
        Self { store, clock, directory, queue }
    }

    /// What a killed gateway would leave on the disk, opened by the next one.
    pub(crate) async fn after_a_crash(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for file in ["tollgate.db", "tollgate.db-wal", "tollgate.db.lock"] {
            let from = self.directory.path().join(file);
            if from.exists() {
                std::fs::copy(from, directory.path().join(file)).unwrap();
            }
        }
        let (clock, queue) = (self.clock.clone(), self.queue.clone());
        let config = StoreConfig::at(directory.path().join("tollgate.db"));
        let store = Store::open_at(&config, &queue, clock.clone()).await.unwrap();
        Self { store, clock, directory, queue }
    }

    /// A connection of somebody else.
    pub(crate) async fn intruder(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.store.path()).connect().await.unwrap()
    }

    pub(crate) async fn claim(&self, rows: u32) -> Vec<Claimed> {
        let (targets, owner) = (vec!["pln".to_owned()], "forwarder".to_owned());
        self.store.claim(Claim { targets, rows, owner, lease: LEASE }).await.unwrap()
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
    async fn held(&self) -> Vec<(String, i64)> {
        let held = "SELECT hold_reason, count(*) FROM saf_item WHERE state = 1 GROUP BY 1";
        sqlx::query_as(held).fetch_all(&mut self.intruder().await).await.unwrap()
    }

    async fn count(&self, table: &'static str) -> i64 {
        let mut db = self.intruder().await;
        let statement = match table {
            "saf_item" => "SELECT count(*) FROM saf_item",
            "saf_lane" => "SELECT count(*) FROM saf_lane",
            "idem_key" => "SELECT count(*) FROM idem_key",
            "saf_dek" => "SELECT count(*) FROM saf_dek",
            other => panic!("{other}"),
        };
        sqlx::query_scalar(statement).fetch_one(&mut db).await.unwrap()
    }

    fn new_payment(&self, lane: u8) -> NewPayment {
        new_payment(self.store.now(), lane)
    }
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
            kind: "payment".into(),
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
