//! `tollgate check` with several links: whose module is pinned, how long each worker may take, whether
//! a backup would ever serve.

use std::process::Command;

use harness::world::{Link, Wanted, World, program};
use serde_json::Value;

/// The rows of `tollgate check --json` with this name.
fn check(world: &World, name: &str) -> Vec<Value> {
    let output = Command::new(program("tollgate").unwrap())
        .args(["check", "--json", "--config"])
        .arg(world.config())
        .output()
        .unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    rows.into_iter().filter(|row| row["check"] == name).collect()
}

fn detail(row: &Value) -> &str {
    row["detail"].as_str().unwrap()
}

fn edit(world: &World, edit: impl FnOnce(&mut toml::Table)) {
    let mut table = toml::from_str(&std::fs::read_to_string(world.config()).unwrap()).unwrap();
    edit(&mut table);
    std::fs::write(world.config(), toml::to_string(&table).unwrap()).unwrap();
}

#[test]
fn a_link_with_a_module_of_its_own_is_pinned_by_its_own_digest_alone() {
    let world = World::prepare(Wanted { second_link: true, ..Wanted::default() }).unwrap();
    let loaded = check(&world, "hsm module");
    let digest = detail(&loaded[0]).split_whitespace().nth(3).unwrap().to_owned();
    edit(&world, |table| {
        table["hsm"].as_table_mut().unwrap().insert("module_sha256".into(), digest.into());
    });

    let pinned = check(&world, "hsm module");

    let told = pinned.iter().map(|row| detail(row).contains("(as pinned)")).collect::<Vec<_>>();
    assert_eq!(told, [true, false], "{pinned:?}");
    assert!(detail(&pinned[1]).starts_with("backup: "), "{pinned:?}");
}

/// Each start is well within its limit; all of them together are not.
#[tokio::test]
async fn each_worker_and_each_question_has_a_time_of_its_own() {
    let edit = |table: &mut toml::Table| {
        let hsm = table["hsm"].as_table_mut().unwrap();
        hsm.insert("workers".into(), 4.into());
        hsm.insert("start_ms_max".into(), 4_000.into());
    };
    let wanted = Wanted { shim: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::prepare(wanted).unwrap();
    world.shim_control("Initialize delay 1500").await.unwrap();

    let workers = check(&world, "hsm worker");

    assert_eq!(workers.len(), 4);
    assert!(workers.iter().all(|row| row["ok"] == true), "{workers:?}");
}

#[test]
fn a_backup_that_would_never_serve_is_red() {
    let world = World::prepare(Wanted { second_link: true, ..Wanted::default() }).unwrap();
    let good = check(&world, "keys");
    let register = Link::Backup.token(world.dir()).join("keys.toml");
    let text = std::fs::read_to_string(&register).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    let keys = table["key"].as_array_mut().unwrap();
    // A key whose check value the token does not tell is believed as the register has it.
    let key = keys.iter_mut().find(|key| key["label"].as_str() == Some("zpk.acquirer-a")).unwrap();
    key["kcv"] = "A1B2C3".into();
    std::fs::write(&register, toml::to_string(&table).unwrap()).unwrap();

    let red = check(&world, "keys");

    assert_eq!(good.len(), 1, "{good:?}");
    assert!(good[0]["ok"] == true && detail(&good[0]) == "backup: the keys of primary");
    assert!(red.iter().all(|row| row["ok"] == false) && !red.is_empty(), "{red:?}");
    let told = "backup: would never serve: zpk.acquirer-a@1 has check value ";
    assert!(detail(&red[0]).starts_with(told), "{red:?}");
}
