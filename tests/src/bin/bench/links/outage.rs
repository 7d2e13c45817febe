//! A link that dies for a while and has no other beside it: how soon its breaker opens, how soon
//! traffic comes back, and how much is asked of a dead biller meanwhile.

use std::time::Duration;

use anyhow::Context as _;
use axum::body::Bytes;
use harness::acquirer::{Acquirer, Payment};
use harness::load::Target;
use harness::world::{Wanted, World};
use http_body_util::Full;
use hyper::Request;
use hyper::header::HeaderValue;
use tokio::time::{Instant, sleep, sleep_until};

use super::gauges::{Gauges, PATIENCE};
use super::paced::Paced;
use super::{WARM_UP, edit, post, tell_of, translations};

/// One outage.
pub(crate) struct Outage {
    /// Until the breaker was seen open; [`PATIENCE`] when it was not.
    pub(crate) open_s: f64,
    /// From the end of the fault to a success that a second without a failure follows.
    pub(crate) recovery_s: f64,
}

/// What a dead biller is asked.
pub(crate) struct Storm {
    pub(crate) outage: Outage,
    /// Attempts for each request.
    pub(crate) amplification: f64,
    /// Heartbeats a second while the breaker is open.
    pub(crate) probes_per_s: f64,
}

impl Outage {
    fn of(open: Option<Duration>, recovery: Option<Duration>) -> Self {
        let seconds = |known: Option<Duration>| known.unwrap_or(PATIENCE).as_secs_f64();
        Self { open_s: seconds(open), recovery_s: seconds(recovery) }
    }
}

/// Every call of the only token fails with this code for so long.
pub(crate) async fn hsm(code: &str, lasts: Duration) -> anyhow::Result<Outage> {
    let wanted = Wanted { shim: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await?;
    let gauges = Gauges::of(&world)?;
    let load = translations(&world).await?;
    let begun = Instant::now();
    sleep(WARM_UP).await;
    tell_of("HSM link, before", &load.during(begun, Instant::now()));

    let struck = Instant::now();
    world.shim_control(&format!("* fail {code}")).await?;
    let open = gauges.opened("hsm", struck).await?;
    sleep_until(struck + lasts).await;
    let healed = Instant::now();
    world.shim_control("").await?;
    let recovery = load.recovery(healed, PATIENCE).await;

    tell_of(&format!("every call fails, {code}"), &load.during(struck, healed));
    tell_of("HSM link back", &load.during(healed, Instant::now()));
    Ok(Outage::of(open, recovery))
}

/// The biller is killed and started again after so long, under payments that nobody stores.
pub(crate) async fn biller(lasts: Duration) -> anyhow::Result<Storm> {
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    let mut world = World::start_as(wanted).await?;
    let gauges = Gauges::of(&world)?;
    let load = payments(&world).await?;
    let begun = Instant::now();
    sleep(WARM_UP).await;
    tell_of("biller, before", &load.during(begun, Instant::now()));

    let before = gauges.read().await?;
    let struck = Instant::now();
    world.kill_billing();
    let open = gauges.opened("biller.telkom", struck).await?;
    let (opened, at_open) = (Instant::now(), gauges.read().await?);
    sleep_until(struck + lasts).await;
    let (after, probed) = (gauges.read().await?, opened.elapsed());
    let ended = Instant::now();
    world.start_billing().await.context("the biller's second start")?;
    let healed = Instant::now();
    let recovery = load.recovery(healed, PATIENCE).await;

    let dead = load.during(struck, ended);
    tell_of("biller dead", &dead);
    tell_of("biller back", &load.during(healed, Instant::now()));
    let requests = dead.requests() as f64;
    let again = after.sum(AGAIN) - before.sum(AGAIN);
    let probes = after.sum(HEARTBEATS) - at_open.sum(HEARTBEATS);
    Ok(Storm {
        outage: Outage::of(open, recovery),
        amplification: (requests + again) / requests,
        probes_per_s: probes / probed.as_secs_f64(),
    })
}

/// Payments by bill to the biller whose payments are not stored.
async fn payments(world: &World) -> anyhow::Result<Paced> {
    let acquirer = Acquirer::a();
    let target = Target::new(&world.pki(), acquirer.name(), world.data_address())?;
    Paced::start(target, move |number| payment(&acquirer, number)).await
}

fn payment(acquirer: &Acquirer, number: u64) -> Request<Full<Bytes>> {
    let bill = format!("bench-{number}");
    // A payment without a card has no PIN that could be refused.
    let body = acquirer.payment_body(&Payment::of("telkom", &bill)).unwrap_or_default();
    let (key, mac) = (format!("\"{bill}\""), acquirer.mac_header(&body));
    let mut request = post("/v1/payments", body.into());
    for (name, value) in [("idempotency-key", key), ("tollgate-mac", mac)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            request.headers_mut().insert(name, value);
        }
    }
    request
}

const AGAIN: &str = "tollgate_retry_attempts_total{link=\"backend\",outcome=\"again\"}";
const HEARTBEATS: &str = "tollgate_heartbeats_total{name=\"biller.telkom\"";
