//! Two databases, one schema.

use super::super::{postgres, sqlite};
use super::*;

/// Each table's columns, from the database itself.
async fn columns(on: On) -> Vec<(String, String)> {
    let world = World::new(on).await;
    let statement = match on {
        On::Sqlite => {
            "SELECT t.name AS t, c.name AS c FROM sqlite_schema t JOIN pragma_table_info(t.name) c
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' ORDER BY 1, 2"
        }
        On::Postgres => {
            "SELECT table_name::text AS t, column_name::text AS c FROM information_schema.columns
             WHERE table_schema = 'public' ORDER BY 1, 2"
        }
    };
    let rows = query(statement).all(&mut world.intruder().await.db()).await.unwrap();
    let mut columns: Vec<_> =
        rows.iter().map(|row| (row.get("t").unwrap(), row.get("c").unwrap())).collect();
    columns.retain(|(table, _): &(String, String)| table != "_sqlx_migrations");
    columns.sort();
    columns
}

#[tokio::test]
async fn both_have_the_same_tables_and_columns() {
    let (sqlite, postgres) = (columns(On::Sqlite).await, columns(On::Postgres).await);

    assert!(sqlite.len() > 80, "{sqlite:?}");
    assert_eq!(sqlite, postgres);
}

#[test]
fn every_migration_has_its_twin() {
    let steps = |migrations: &sqlx::migrate::Migrator| {
        let step = |one: &sqlx::migrate::Migration| (one.version, one.description.to_string());
        migrations.iter().map(step).collect::<Vec<_>>()
    };

    assert_eq!(steps(&sqlite::MIGRATIONS), steps(&postgres::MIGRATIONS));
}

/// A gateway of the last release has left its file: nothing in it is lost by the step to this one.
#[tokio::test]
async fn a_file_of_the_last_release_keeps_its_keys_and_their_answers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut db = options.connect().await.unwrap();
    for step in sqlite::MIGRATIONS.iter().filter(|step| step.version < 6) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(step.sql.as_str())).execute(&mut db).await.unwrap();
    }
    sqlx::raw_sql(
        "INSERT INTO saf_dek VALUES (1, 'record', 1, x'01', 0, 9, NULL);
         INSERT INTO saf_item (id, tenant, kind, target, reference, ord_key, prio, state, queued,
             needs_pin, last_code, created_at, expires_at, updated_at, terminal_at, enc_v)
         VALUES (zeroblob(16), 'acquirer-a', 'payment', 'pln', 'r', zeroblob(16), 2, 2, 1, 0, '00',
             0, 9, 0, 1, 1);
         INSERT INTO idem_key VALUES ('acquirer-a', zeroblob(32), zeroblob(32), 1, 1,
             zeroblob(12), x'5A', 9);",
    )
    .execute(&mut db)
    .await
    .unwrap();

    let last = sqlite::MIGRATIONS.iter().find(|step| step.version == 6).unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(last.sql.as_str())).execute(&mut db).await.unwrap();

    let kept: (Vec<u8>, Vec<u8>, i64) =
        sqlx::query_as("SELECT k.item_id, i.res_ct, i.res_dek_id FROM idem_key k JOIN saf_item i ON i.id = k.item_id")
            .fetch_one(&mut db)
            .await
            .unwrap();
    assert_eq!(kept, (vec![0; 16], vec![0x5A], 1));
}
