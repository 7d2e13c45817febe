//! An operator's order for a breaker outlives the process, and has a form.

use super::super::db::Sql;
use super::*;

fn order(state: OrderedState, reason: &str) -> BreakerOrder {
    let (name, actor) = ("biller.pln".to_owned(), "operator-1".to_owned());
    BreakerOrder { name, state, actor, reason: reason.to_owned() }
}

async fn the_last_order_for_a_breaker_holds_until_it_is_cleared(on: On) {
    let world = World::new(on).await;
    let (first, last) =
        (order(OrderedState::ForcedOpen, "maintenance"), order(OrderedState::Disabled, "wrong"));

    world.store.order_breaker(first).await.unwrap();
    world.store.order_breaker(last.clone()).await.unwrap();
    let standing = StandingOrder { order: last, set_at: world.store.now() };
    let world = world.after_a_crash().await;

    assert_eq!(standing_orders(&world).await, [standing]);
    assert!(world.store.clear_breaker_order("biller.pln").await.unwrap());
    assert!(!world.store.clear_breaker_order("biller.pln").await.unwrap());
    assert_eq!(standing_orders(&world).await, []);
}

/// A later release may know more states than this one.
async fn an_order_of_a_foreign_state_is_named_and_hides_no_other(on: On) {
    let world = World::new(on).await;
    world.store.order_breaker(order(OrderedState::ForcedOpen, "maintenance")).await.unwrap();

    put_order(&world, "biller.pdam", "half_open").await;
    let orders = world.store.breaker_orders().await.unwrap();

    assert_eq!(orders.foreign, ["biller.pdam"]);
    assert_eq!(orders.standing.len(), 1);
    assert!(!orders.more);
}

async fn no_more_orders_are_read_than_a_gateway_can_have_breakers(on: On) {
    let world = World::new(on).await;
    let many = "
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1100)
        INSERT INTO breaker_order SELECT 'biller.' || i, 'disabled', 'a', 'r', 0 FROM n";
    query(many).execute(&mut world.intruder().await.db()).await.unwrap();

    let orders = world.store.breaker_orders().await.unwrap();

    assert_eq!((orders.standing.len(), orders.more), (1_024, true));
}

async fn an_order_needs_a_reason_of_a_bounded_length(on: On) {
    let world = World::new(on).await;

    for reason in [String::new(), "r".repeat(129)] {
        let order = order(OrderedState::ForcedOpen, &reason);
        assert!(world.store.order_breaker(order).await.is_err(), "{reason}");
    }

    assert_eq!(standing_orders(&world).await, []);
}

async fn standing_orders(world: &World) -> Vec<StandingOrder> {
    world.store.breaker_orders().await.unwrap().standing
}

/// A row that is not ours.
pub(crate) async fn put_order(world: &World, name: &str, state: &str) {
    let mut db = world.intruder().await;
    let unchecked = Sql::Each {
        sqlite: "PRAGMA ignore_check_constraints = ON",
        postgres: "ALTER TABLE breaker_order DROP CONSTRAINT breaker_order_state_check",
    };
    query(unchecked).execute(&mut db.db()).await.unwrap();
    let row = "INSERT INTO breaker_order VALUES ($1, $2, 'mallory', 'card 4111111111111111', 0)";
    query(row).bind(name).bind(state).execute(&mut db.db()).await.unwrap();
}

both! {
    the_last_order_for_a_breaker_holds_until_it_is_cleared,
    an_order_of_a_foreign_state_is_named_and_hides_no_other,
    no_more_orders_are_read_than_a_gateway_can_have_breakers,
    an_order_needs_a_reason_of_a_bounded_length,
}
