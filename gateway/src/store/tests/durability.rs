//! Groups, crashes, locks, full disks.

use super::super::db::Db;
use super::super::sqlite::MIGRATIONS;
use super::*;

async fn sixty_four_clients_at_once_leave_one_durable_row_for_each_key(on: On) {
    let world = World::new(on).await;
    let payments: Vec<_> = (0..256).map(|n| world.new_payment(n as u8)).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..64 {
        let (store, mine) = (world.store.clone(), payments.clone());
        tasks.spawn(async move {
            // Four clients send each payment: the same key from four sides.
            for payment in mine.into_iter().skip(client % 16).step_by(16) {
                let mut copy = new_payment(payment.facts.created_at, 0);
                copy.facts.ord_key = payment.facts.ord_key;
                copy.idempotency = payment.idempotency;
                store.begin(copy).await.unwrap();
            }
        });
    }
    tasks.join_all().await;

    let world = world.after_a_crash().await;

    assert_eq!((world.count("saf_item").await, world.count("idem_key").await), (256, 256));
}

async fn a_crash_loses_nothing_and_the_next_start_frees_its_leases(on: On) {
    let world = World::new(on).await;
    let (sent, waiting, ended) = (world.new_payment(1), world.new_payment(1), world.new_payment(2));
    world.forward(sent.clone()).await;
    world.queue(waiting.clone()).await;
    let lease = world.forward(ended.clone()).await;
    world.store.complete(&lease, done()).await.unwrap();

    let world = world.after_a_crash().await;
    world.clock.advance(Duration::from_secs(2));
    let claimed = world.claim(10).await;

    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].facts, sent.facts);
    assert!(claimed[0].sent_unknown);
    assert_eq!(world.status(waiting.facts.id).await, Status::Pending);
    assert_eq!(world.status(ended.facts.id).await, Status::Success);
}

/// Nobody closes the store: it is dropped with orders in flight.
/// Its rests were counted on a clock that has been set back since.
#[tokio::test]
async fn a_restart_keeps_nothing_resting_for_longer_than_an_hour() {
    let world = World::new(On::Sqlite).await;
    let mut payment = world.new_payment(1);
    payment.facts.expires_at += 3_600_000;
    let lease = world.forward(payment).await;
    world.store.release(&lease, parking(Class::NotSent)).await.unwrap();
    let later = query("UPDATE saf_lane SET next_at = next_at + 864000000");
    later.execute(&mut world.intruder().await.db()).await.unwrap();

    let world = world.after_a_crash().await;
    let before = world.claim(1).await.len();
    world.clock.advance(Duration::from_secs(3_601));
    let after = world.claim(1).await.len();

    assert_eq!((before, after), (0, 1));
}

#[tokio::test]
async fn a_store_that_was_dropped_opens_again() {
    let World { store, clock, directory, queue, .. } = World::new(On::Sqlite).await;
    let payment = new_payment(store.now(), 1);
    let id = payment.facts.id;
    store.begin(payment).await.unwrap();
    drop(store);

    let config = StoreConfig::at(directory.path().join("tollgate.db"));
    let mut store = Store::open_at(&config, &queue, clock.clone()).await;
    for _ in 0..100 {
        if store.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        store = Store::open_at(&config, &queue, clock.clone()).await;
    }

    let store = store.unwrap();
    store.recover(false).await.unwrap();
    let view = store.payment(id, "acquirer-a").await.unwrap();
    assert_eq!(view.unwrap().status, Status::Pending);
}

#[tokio::test]
async fn a_second_gateway_on_the_file_is_refused_until_the_first_is_gone() {
    let world = World::new(On::Sqlite).await;
    let config = StoreConfig::at(world.store.path().unwrap());

    let refused = Store::open(&config, &world.queue).await.unwrap_err();
    world.store.close().await;
    let after = Store::open(&config, &world.queue).await;

    assert!(matches!(refused, StoreError::InstanceRunning { .. }));
    let text = refused.to_string();
    assert!(text.contains("tollgate.db") && text.contains("store.path"), "{text}");
    assert!(after.is_ok(), "{after:?}");
    let closed = world.store.begin(world.new_payment(1)).await.unwrap_err();
    assert!(closed.is_transient(), "{closed}");
}

#[tokio::test]
async fn the_files_are_ours_alone() {
    let world = World::new(On::Sqlite).await;
    world.forward(world.new_payment(1)).await;

    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut path = world.store.path().unwrap().as_os_str().to_owned();
        path.push(suffix);
        let mode = std::fs::metadata(PathBuf::from(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig::at(directory.path().join("absent/tollgate.db"));

    let error = Store::open(&config, &QueueConfig::default()).await.unwrap_err();

    assert!(error.to_string().contains("absent/tollgate.db"), "{error}");
}

async fn a_bad_row_does_not_fail_its_neighbours(on: On) {
    let world = World::new(on).await;
    let stored = world.new_payment(1);
    world.forward(stored.clone()).await;
    let mut twice = world.new_payment(2);
    twice.facts.id = stored.facts.id;
    let (left, right) = (world.new_payment(3), world.new_payment(4));

    let (left, bad, right) =
        tokio::join!(world.store.begin(left), world.store.begin(twice), world.store.begin(right));

    assert!(matches!(left, Ok(Begun::Forward(_))), "{left:?}");
    assert!(matches!(bad, Err(StoreError::Refused(_))), "{bad:?}");
    assert!(matches!(right, Ok(Begun::Forward(_))), "{right:?}");
    assert_eq!(world.count("saf_item").await, 3);
}

#[tokio::test]
async fn a_locked_database_is_an_answer_and_not_a_hang() {
    let world = World::new(On::Sqlite).await;
    let mut intruder = world.file_intruder().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut intruder).await.unwrap();

    let locked = world.store.begin(world.new_payment(1)).await.unwrap_err();
    sqlx::query("ROLLBACK").execute(&mut intruder).await.unwrap();
    let after = world.store.begin(world.new_payment(1)).await;

    assert!(matches!(locked, StoreError::Unavailable { .. }), "{locked}");
    assert!(after.is_ok(), "{after:?}");
}

#[tokio::test]
async fn a_database_that_was_moved_away_takes_nothing_any_more() {
    let world = World::new(On::Sqlite).await;
    let away = world.directory.path().join("elsewhere.db");
    std::fs::rename(world.store.path().unwrap(), &away).unwrap();

    let gone = world.store.begin(world.new_payment(1)).await.unwrap_err();
    std::fs::rename(&away, world.store.path().unwrap()).unwrap();
    let back = world.store.begin(world.new_payment(1)).await;

    assert!(matches!(gone, StoreError::Unavailable { .. }), "{gone}");
    assert!(gone.to_string().contains("moved or deleted"), "{gone}");
    assert!(back.is_ok(), "{back:?}");
}

/// Lets the file grow no further, as a full disk would.
struct FillTheDisk;

impl Order for FillTheDisk {
    type Answer = ();

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<(), StoreError> {
        query("PRAGMA max_page_count = 1").execute(db).await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_payments_and_loses_none() {
    let world = World::new(On::Sqlite).await;
    let kept = world.new_payment(1);
    world.forward(kept.clone()).await;
    world.store.writer.ask(FillTheDisk).await.unwrap();
    let mut large = world.new_payment(2);
    large.payload = Some(sealed(&[7; 100_000]));

    let full = world.store.begin(large.clone()).await.unwrap_err();
    let room = world.store.begin(large).await;

    assert!(full.to_string().contains("disk is full"), "{full}");
    assert!(room.is_ok(), "{room:?}");
    assert_eq!(world.status(kept.facts.id).await, Status::Processing);
}

/// Takes longer than anybody waits.
struct Dawdle;

impl Order for Dawdle {
    type Answer = ();

    async fn run(&self, _: &mut Db<'_>, _: &mut Batch) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(())
    }
}

async fn a_writer_with_too_much_to_do_says_so_at_once(on: On) {
    let world = World::new(on).await;
    let mut config = world.config();
    if let Some(postgres) = &mut config.postgres {
        postgres.writers = 1;
    }
    config.writer_queue_max = 1;
    world.store.close().await;
    let store = Store::open(&config, &QueueConfig::default()).await.unwrap();
    let busy = tokio::spawn({
        let writer = store.writer.clone();
        async move { writer.ask(Dawdle).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;

    let (waits, refused) = tokio::join!(store.expire(), store.expire());

    assert!(waits.is_ok(), "{waits:?}");
    assert!(matches!(refused, Err(StoreError::Busy)), "{refused:?}");
    busy.await.unwrap().unwrap();
}

/// Its begin was committed in a group that took too long: nothing was sent under its lease.
#[tokio::test]
async fn a_payment_whose_caller_has_gone_is_withdrawn_and_its_key_is_free() {
    let world = World::new(On::Sqlite).await;
    let payment = world.new_payment(1);
    let patience = Duration::from_millis(100);
    let begin = tokio::time::timeout(patience, world.store.begin(payment.clone()));

    let (gone, slow) = tokio::join!(begin, world.store.writer.ask(Dawdle));
    slow.unwrap();
    world.store.expire().await.unwrap();

    assert!(gone.is_err());
    assert_eq!(world.status(payment.facts.id).await, Status::Failed);
    let facts = world.new_payment(1).facts;
    let again = world.store.begin(NewPayment { facts, ..payment }).await.unwrap();
    assert!(matches!(again, Begun::Forward(_)), "{again:?}");
}

#[tokio::test]
async fn a_claim_whose_caller_has_gone_waits_as_before() {
    let world = World::new(On::Sqlite).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;
    let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
    world.store.release(&lease, now).await.unwrap();
    let claim = tokio::time::timeout(Duration::from_millis(100), world.claim(1));

    let (gone, slow) = tokio::join!(claim, world.store.writer.ask(Dawdle));
    slow.unwrap();
    let claimed = world.claim(1).await;

    assert!(gone.is_err());
    assert_eq!((claimed.len(), claimed[0].sent_unknown), (1, false));
}

/// The names and bytes in a directory.
fn everything(directory: &std::path::Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn looking_changes_nothing_whether_the_store_is_open_closed_empty_or_absent() {
    let world = World::new(On::Sqlite).await;
    let path = world.store.path().unwrap().to_owned();
    let directory = world.directory.path();
    world.forward(world.new_payment(1)).await;

    let open = Store::look(&path).await.unwrap().unwrap();
    world.store.close().await;
    let before = everything(directory);
    let closed = Store::look(&path).await.unwrap().unwrap();
    let absent = Store::look(&directory.join("absent.db")).await.unwrap();
    let after = everything(directory);
    std::fs::write(directory.join("empty.db"), "").unwrap();
    let empty = Store::look(&directory.join("empty.db")).await.unwrap().unwrap();

    let schema = MIGRATIONS.iter().last().unwrap().version;
    assert_eq!(open, Seen { schema, pending: 0, write_ahead: true, check: Some("ok".into()) });
    assert_eq!((closed, absent), (open, None));
    assert!(before == after, "{:?}", after.keys());
    assert_eq!((empty.schema, empty.pending), (0, MIGRATIONS.iter().count()));
}

#[tokio::test]
async fn a_schema_of_another_release_is_seen_before_the_start() {
    let world = World::new(On::Sqlite).await;
    let later = "UPDATE _sqlx_migrations SET version = version + 98";
    sqlx::query(later).execute(&mut world.file_intruder().await).await.unwrap();

    let refused = Store::look(world.store.path().unwrap()).await.unwrap_err();

    assert!(matches!(refused, StoreError::Migrate { .. }), "{refused}");
}

#[tokio::test]
async fn a_store_that_takes_no_writes_says_so_before_a_payment_does_and_comes_back() {
    let world = World::new(On::Sqlite).await;
    let away = world.directory.path().join("elsewhere.db");
    let becomes = async |healthy: bool| {
        for _ in 0..80 {
            if world.store.is_healthy() == healthy {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    };

    let before = world.store.is_healthy();
    std::fs::rename(world.store.path().unwrap(), &away).unwrap();
    let told = becomes(false).await;
    std::fs::rename(&away, world.store.path().unwrap()).unwrap();
    let back = becomes(true).await;
    world.store.close().await;

    assert!(before && told && back, "{before} {told} {back}");
    assert!(!world.store.is_healthy(), "closed");
}

both! {
    sixty_four_clients_at_once_leave_one_durable_row_for_each_key,
    a_crash_loses_nothing_and_the_next_start_frees_its_leases,
    a_bad_row_does_not_fail_its_neighbours,
    a_writer_with_too_much_to_do_says_so_at_once,
}
