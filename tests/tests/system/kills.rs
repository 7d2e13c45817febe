//! A few rounds of `make kills`.

use harness::kills::{Options, Store, run};

async fn kills(store: Store, rounds: u32) {
    let outcome = run(Options { store, rounds, seed: 7, dir: None }).await.unwrap();

    assert!(outcome.judged.is_clean(), "{outcome:?}");
    assert_eq!(outcome.held, 0, "{outcome:?}");
    assert!(outcome.trail.is_whole() && outcome.trail.answers >= 10, "{:?}", outcome.trail);
    assert!(outcome.judged.acknowledged >= 10, "{outcome:?}");
}

#[tokio::test]
async fn a_gateway_that_dies_at_a_bad_moment_loses_doubles_and_reorders_nothing() {
    kills(Store::Sqlite, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_with_its_server_loses_doubles_and_reorders_nothing() {
    kills(Store::Postgres, 2).await;
}
