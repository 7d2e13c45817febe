//! Random operations: what the token answers, `soft` answers too.

use std::sync::Arc;

use harness::random_orders::{RandomKeys, compare};
use harness::soft::random::Random;

use crate::vector_keys::VectorKeys;
use crate::vectors_token::Token;

/// `make bench` compares a hundred thousand.
const CASES: usize = 2_000;

#[tokio::test]
async fn no_random_translation_or_mac_differs_from_software() {
    let mut random = Random::fresh();
    println!("{random}");
    let keys = RandomKeys::of(&mut random).unwrap();
    let Token { link, world } = Token::with(VectorKeys(keys.planned())).await;
    let link = Arc::new(link);

    let compared = compare(&link, &Arc::new(keys), &mut random, CASES).await.unwrap();

    assert_eq!(compared.differences, [""; 0], "{random}");
    assert_eq!(compared.cases(), CASES);
    assert!(compared.translated > 500 && compared.refused > 50 && compared.macs > 500);
    let token = Token { link: Arc::into_inner(link).unwrap(), world };
    token.stop_with_nothing_left().await;
}
