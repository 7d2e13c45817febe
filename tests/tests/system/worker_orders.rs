//! Orders that come to nothing by their own fault cost nobody else a worker.

use std::time::Duration;

use hsm_adapter::client::LinkError;
use hsm_adapter::error::{CkrClass, Failure};
use hsm_adapter::protocol::{Answer, Order};
use hsm_adapter::vocabulary::KeyLabel;
use tokio::time::Instant;

use crate::vector_keys::VectorKeys;
use crate::vectors_token::Token;

#[tokio::test]
async fn a_worker_that_is_given_a_bad_wrapped_key_blames_the_order_and_lives_on() {
    let token = Token::with(VectorKeys::default()).await;
    let kek = || KeyLabel::parse("queue.kek").unwrap().into();
    let before = token.link.status();
    let Ok(Answer::DataKey { wrapped, .. }) = token.ask(Order::MakeDataKey { kek: kek() }).await
    else {
        panic!("no data key")
    };
    let mut bad = wrapped.clone();
    bad[20] ^= 1;

    let refused = token.ask(Order::OpenDataKey { kek: kek(), wrapped: bad }).await;
    let opened = token.ask(Order::OpenDataKey { kek: kek(), wrapped }).await;

    let Err(LinkError::Answered(Failure::Token { class: CkrClass::Caller, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(opened, Ok(Answer::OpenedDataKey(_))), "{opened:?}");
    assert_eq!(token.link.status()[0].pid, before[0].pid);
    token.stop().await;
}

#[tokio::test]
async fn a_worker_is_not_ended_for_orders_that_had_hardly_any_time() {
    let token = Token::with(VectorKeys::default()).await;
    let before = token.link.status();
    let hasty = || token.link.call(&Order::SelfTest, Instant::now() + Duration::from_millis(1));

    let outcomes = tokio::join!(hasty(), hasty(), hasty());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answered = token.ask(Order::SelfTest).await;

    // On a busy machine the worker's word comes before our own clock's.
    let hasty = [LinkError::TimedOut, LinkError::Answered(Failure::Expired)];
    assert!(hasty.contains(&outcomes.2.1.unwrap_err()));
    assert!(answered.is_ok(), "{answered:?}");
    assert_eq!(token.link.status()[0].pid, before[0].pid);
    token.stop().await;
}
