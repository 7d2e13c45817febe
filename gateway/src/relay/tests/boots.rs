//! Gateways that come and go on one store, and the keys that each of them has ahead.

use std::collections::{HashMap, HashSet};

use super::*;

const HOUR: u64 = 3_600;

#[tokio::test]
async fn two_keys_are_always_ahead_and_carry_the_gateway_through_an_outage() {
    let house = House::new().await;
    let ahead = house.keys.figures().spares;
    let first = seal(&house);
    house.token.leave();

    let mut under = vec![first];
    let mut left = Vec::new();
    for _ in 0..5 {
        house.advance(HOUR);
        assert!(house.keys.obtain().await.is_err());
        under.push(seal(&house));
        left.push((house.keys.figures().spares, house.keys.figures().is_stretched()));
    }
    house.token.come_back();
    house.keys.obtain().await.unwrap();

    assert_eq!(ahead, 2);
    assert_eq!(left, [(1, false), (0, false), (0, false), (0, true), (0, true)]);
    let different: HashSet<i64> = under.iter().copied().collect();
    assert_eq!((different.len(), under[2] == under[5]), (3, true));
    let figures = house.keys.figures();
    assert_eq!((figures.spares, figures.is_stretched()), (2, false));
    assert!(!different.contains(&seal(&house)));
}

/// T13: the same nonce under the same key would open both records, and forge others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_boots_of_eight_gateways_no_two_share_a_key_and_no_record_a_nonce() {
    const BOOTS: usize = 13;
    const RECORDS: usize = 1_000;
    let (world, token) = (World::new(On::Sqlite).await, Token::default());
    let facts = crate::store::tests::new_payment(world.store.now(), 1).facts;
    let mut gateways = tokio::task::JoinSet::new();
    for gateway in 0..8 {
        let (store, token, facts) = (world.store.clone(), token.clone(), facts.clone());
        gateways.spawn(async move {
            let mut sealed = Vec::with_capacity(BOOTS * RECORDS);
            for boot in 0..BOOTS {
                let lives = KeyLives { pin: Duration::from_secs(900) };
                let keys = Keys::new(store.clone(), token.clone(), lives);
                // Of several at their first start one makes the index key, the others find it.
                while keys.obtain().await.is_err() {}
                for _ in 0..RECORDS {
                    let record = keys.seal_record(&facts, b"bill").unwrap();
                    sealed.push((gateway * BOOTS + boot, record.dek_id, record.nonce));
                }
            }
            sealed
        });
    }

    let sealed: Vec<_> = gateways.join_all().await.into_iter().flatten().collect();

    let pairs: HashSet<_> = sealed.iter().map(|(_, dek_id, nonce)| (dek_id, nonce)).collect();
    assert_eq!((sealed.len(), pairs.len()), (104_000, 104_000));
    let mut boots: HashMap<i64, HashSet<usize>> = HashMap::new();
    for (boot, dek_id, _) in &sealed {
        boots.entry(*dek_id).or_default().insert(*boot);
    }
    assert!(boots.values().all(|of_key| of_key.len() == 1));
    assert_eq!(boots.len(), 104);
}

/// T14: in the middle of it the gateway is killed, and the next one goes on.
#[tokio::test]
async fn a_new_kek_takes_every_data_key_over_and_leaves_what_they_seal_alone() {
    for on in [On::Sqlite, On::Postgres] {
        let house = House::on(on).await;
        let facts = house.queue("k1", None).await;
        for _ in 0..10 {
            house.advance(HOUR);
            house.keys.obtain().await.unwrap();
        }
        let unneeded = house.keys.rewrap_some().await;
        house.token.0.rotations.fetch_add(1, Ordering::SeqCst);

        assert!(house.keys.rewrap_some().await);
        let halfway = versions(&house).await;
        let next = house.after_a_crash().await;
        next.token.leave();
        let away = next.keys.rewrap_some().await;
        next.token.come_back();
        while next.keys.rewrap_some().await {}
        next.keys.obtain().await.unwrap();
        let due = next.claim().await;

        assert!(!unneeded && !away);
        assert!(halfway.contains(&3) && halfway.contains(&4), "{halfway:?}");
        assert!(versions(&next).await.iter().all(|version| *version == 4));
        assert_eq!(due[0].facts.id, facts.id);
        assert_eq!(due[0].what, Waiting::Payment(order(), None, false));
    }
}

/// The KEK's version of each data key, but the one that rows of the store's own tests refer to.
async fn versions(house: &House) -> Vec<u32> {
    let rows = house.world.store.oldest_wrapped_deks(100).await.unwrap();
    rows.iter().filter(|row| row.dek_id != 1).map(|row| row.kek_version).collect()
}

fn seal(house: &House) -> i64 {
    let facts = crate::store::tests::new_payment(house.world.store.now(), 1).facts;
    house.keys.seal_record(&facts, b"x").unwrap().dek_id
}
