//! Changes of the demo's configuration that more than one story makes.

use toml::{Table, Value};

/// The `[client.grants]` of one client.
pub(crate) fn grants_of<'t>(table: &'t mut Table, id: &str) -> &'t mut Table {
    let clients = table["client"].as_array_mut().unwrap();
    let client = clients.iter_mut().find(|client| client["id"].as_str() == Some(id)).unwrap();
    client["grants"].as_table_mut().unwrap()
}

/// Lets a client have these MAC keys, for both operations.
pub(crate) fn grant_macs(grants: &mut Table, keys: &[String]) {
    for list in ["mac_generate", "mac_verify"] {
        let list = grants[list].as_array_mut().unwrap();
        list.extend(keys.iter().cloned().map(Value::String));
    }
}

/// Lets a client translate from each of these zones to each of those; a zone is a key and its
/// formats.
pub(crate) fn grant_translations(grants: &mut Table, from: &[Zone<'_>], to: &[Zone<'_>]) {
    let list = grants["translate"].as_array_mut().unwrap();
    for zone in from {
        let to = to.iter().map(zone_table).collect();
        let pair = [("from", zone_table(zone)), ("to", Value::Array(to))];
        list.push(Value::Table(
            pair.map(|(name, value)| (name.into(), value)).into_iter().collect(),
        ));
    }
}

/// A key and its formats.
pub(crate) type Zone<'a> = (&'a str, &'a [&'a str]);

fn zone_table((key, formats): &Zone<'_>) -> Value {
    let formats = formats.iter().map(|format| Value::String((*format).into())).collect();
    let zone = [("key", Value::String((*key).into())), ("formats", Value::Array(formats))];
    Value::Table(zone.map(|(name, value)| (name.into(), value)).into_iter().collect())
}
