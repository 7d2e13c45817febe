//! More than a link can do: how soon a client is told that there is no room.

use std::time::Duration;

use axum::body::Bytes;
use harness::load::{Latencies, Target};
use harness::world::{Wanted, World};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What became of the requests.
pub(super) struct Shed {
    pub(super) served: u64,
    pub(super) other: u64,
    /// How long refusals took.
    pub(super) refused: Latencies,
    pub(super) refusals: u64,
}

/// Three times as many clients as the link takes orders, each asking again at once.
pub(super) async fn measure(run: Duration) -> anyhow::Result<Shed> {
    let edit = |table: &mut toml::Table| {
        super::edit(table);
        let Some(hsm) = table.get_mut("hsm").and_then(toml::Value::as_table_mut) else { return };
        for (key, value) in [("workers", 1), ("in_flight_max", 16), ("waiting_max", 12)] {
            hsm.insert(key.into(), value.into());
        }
    };
    let wanted = Wanted { shim: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await?;
    let target = Target::new(&world.pki(), "acquirer-a", world.data_address())?;
    // A token that takes ten milliseconds for a MAC: what a busy HSM is like.
    world.shim_control("Encrypt delay 5").await?;
    let body = Bytes::from_static(br#"{"key":"zak.acquirer-a","message":"00"}"#);
    let until = Instant::now() + run;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (mut connection, body) = (target.open().await?, body.clone());
        clients.spawn(async move {
            let mut seen = Vec::new();
            while Instant::now() < until {
                let begun = Instant::now();
                let request = super::post("/v1/mac/generate", body.clone());
                let Ok((status, _)) = connection.send(request).await else { break };
                seen.push((status.as_u16(), begun.elapsed()));
            }
            seen
        });
    }
    let mut shed = Shed { served: 0, other: 0, refused: Latencies::default(), refusals: 0 };
    for (status, took) in clients.join_all().await.into_iter().flatten() {
        match status {
            200 => shed.served += 1,
            503 => {
                shed.refusals += 1;
                shed.refused.record(took);
            }
            _ => shed.other += 1,
        }
    }
    Ok(shed)
}

const CLIENTS: usize = 48;
