//! An operator's order for a breaker outlives the process, and has a form.

use super::*;

fn order(state: OrderedState, reason: &str) -> BreakerOrder {
    let (name, actor) = ("biller.pln".to_owned(), "operator-1".to_owned());
    BreakerOrder { name, state, actor, reason: reason.to_owned() }
}

#[tokio::test]
async fn the_last_order_for_a_breaker_holds_until_it_is_cleared() {
    let world = World::new().await;
    let (first, last) =
        (order(OrderedState::ForcedOpen, "maintenance"), order(OrderedState::Disabled, "wrong"));

    world.store.order_breaker(first).await.unwrap();
    world.store.order_breaker(last.clone()).await.unwrap();
    let world = world.after_a_crash().await;

    assert_eq!(world.store.breaker_orders().await.unwrap(), [last]);
    world.store.clear_breaker_order("biller.pln").await.unwrap();
    assert_eq!(world.store.breaker_orders().await.unwrap(), []);
}

#[tokio::test]
async fn an_order_needs_a_reason_of_a_bounded_length() {
    let world = World::new().await;

    for reason in [String::new(), "r".repeat(129)] {
        let order = order(OrderedState::ForcedOpen, &reason);
        assert!(world.store.order_breaker(order).await.is_err(), "{reason}");
    }

    assert_eq!(world.store.breaker_orders().await.unwrap(), []);
}
