//! Whether a commit waits for the disk, as its own connection says inside of it.

use super::super::db::{Db, Sql};
use super::*;

/// The setting that the commit will be made under.
struct Durability<const COUNTER: bool>;

impl<const COUNTER: bool> Order for Durability<COUNTER> {
    type Answer = String;
    const RELAXED: bool = COUNTER;

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<String, StoreError> {
        query(SETTING).one(db).await?.value()
    }
}

const SETTING: Sql = Sql::Each {
    sqlite: "SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous",
    postgres: "SELECT current_setting('synchronous_commit')",
};

async fn a_payment_waits_for_the_disk_also_after_a_counter_that_did_not(on: On) {
    let world = World::new(on).await;
    let writer = &world.store.writer;

    let before = writer.ask(Durability::<false>).await.unwrap();
    let counter = writer.ask(Durability::<true>).await.unwrap();
    let after = writer.ask(Durability::<false>).await.unwrap();

    let (full, relaxed) = match on {
        On::Sqlite => ("2", "1"),
        On::Postgres => ("on", "off"),
    };
    assert_eq!((&*before, &*counter, &*after), (full, relaxed, full));
}

both! {
    a_payment_waits_for_the_disk_also_after_a_counter_that_did_not,
}
