//! A server whose host has vanished: nothing is refused, nothing is answered, for ever.

use std::path::PathBuf;
use std::sync::Mutex;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;

/// A wire to the server, which can be cut without either end being told.
struct Wire {
    directory: tempfile::TempDir,
    cut: Arc<Mutex<CancellationToken>>,
    /// It ends with the runtime of the test.
    _task: JoinSet<()>,
}

impl Wire {
    fn to(server: &Database) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = format!(".s.PGSQL.{}", PostgresConfig::at("", "").port);
        let listener = UnixListener::bind(directory.path().join(&name)).unwrap();
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let mut task = JoinSet::new();
        task.spawn(serve(listener, server.socket.join(name), Arc::clone(&cut)));
        Self { directory, cut, _task: task }
    }

    fn cut(&self) {
        self.cut.lock().unwrap().cancel();
    }

    /// For new connections: what was cut stays so.
    fn mend(&self) {
        *self.cut.lock().unwrap() = CancellationToken::new();
    }

    fn config(&self, server: &Database) -> StoreConfig {
        let there = postgres_at(server);
        let host = self.directory.path().display().to_string();
        StoreConfig::on(PostgresConfig { host, writers: 2, ..there })
    }
}

async fn serve(listener: UnixListener, server: PathBuf, cut: Arc<Mutex<CancellationToken>>) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let (server, cut) = (server.clone(), cut.lock().unwrap().clone());
        connections.spawn(async move {
            let carry = async {
                let mut server = UnixStream::connect(server).await.unwrap();
                let ended = tokio::io::copy_bidirectional(&mut client, &mut server);
                // Kept open by whoever does not carry any more.
                tokio::select! {
                    biased;
                    () = cut.cancelled() => Some(server),
                    _ = ended => None,
                }
            };
            if cut.is_cancelled() || carry.await.is_some() {
                std::future::pending::<()>().await;
            }
        });
    }
}

/// How long each of many calls took; all of them fail, and may succeed later.
async fn fail_in_time(store: &Store) {
    let mut calls = JoinSet::new();
    for number in 0..12 {
        let store = store.clone();
        calls.spawn(async move {
            let begun = Instant::now();
            let error = match number % 3 {
                0 => store.insert_dek(dek()).await.unwrap_err(),
                1 => store.raise_epoch(None, None).await.unwrap_err(),
                _ => store.queue_stats().await.unwrap_err(),
            };
            (error, begun.elapsed())
        });
    }
    while let Some(called) = calls.join_next().await {
        let (error, took) = called.unwrap();
        assert!(error.is_transient(), "{error}");
        assert!(took < ANSWER_WITHIN + Duration::from_secs(1), "{error} {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_vanishes_costs_callers_a_few_seconds_and_is_found_again() {
    let server = Database::create().unwrap();
    let wire = Wire::to(&server);
    let store = Store::open(&wire.config(&server), &QueueConfig::default()).await.unwrap();
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        readers.spawn(async move { store.queue_stats().await.unwrap() });
    }
    readers.join_all().await;

    wire.cut();
    fail_in_time(&store).await;
    fail_in_time(&store).await;
    wire.mend();
    let mended = Instant::now();
    while store.insert_dek(dek()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while store.raise_epoch(None, None).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while store.queue_stats().await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = mended.elapsed();

    assert!(took < Duration::from_secs(15), "{took:?}");
    for _ in 0..20 {
        store.insert_dek(dek()).await.unwrap();
    }
    let mut readers = JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        readers.spawn(async move { store.queue_stats().await.unwrap() });
    }
    readers.join_all().await;
    store.close().await;
}

#[tokio::test]
async fn a_store_is_closed_also_when_its_host_has_vanished() {
    let server = Database::create().unwrap();
    let wire = Wire::to(&server);
    let store = Store::open(&wire.config(&server), &QueueConfig::default()).await.unwrap();
    store.queue_stats().await.unwrap();

    wire.cut();
    let asked = tokio::join!(store.insert_dek(dek()), store.queue_stats());
    let begun = Instant::now();
    store.close().await;
    let took = begun.elapsed();

    assert!(asked.0.is_err() && asked.1.is_err());
    assert!(took < CLOSED_WITHIN + Duration::from_secs(1), "{took:?}");
}
