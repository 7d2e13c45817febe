//! Links that fail: what their layers cost while all is well, and what clients notice when a link
//! dies, hangs and comes back.
//!
//! 200 requests a second, in an open loop, against worlds whose breakers are the product's defaults.
//! The targets are those of the design; a figure says whether it meets its target, and asserts
//! nothing.

mod failover; // a primary that is lost beside a backup
mod gauges; // what /metrics says meanwhile
mod layers; // what a call costs beside the call
mod outage; // a link that is lost alone
mod paced; // the load
mod shed; // more than a link can do

use std::time::Duration;

use anyhow::Context as _;
use axum::body::Bytes;
use harness::load::Target;
use harness::world::World;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Uri};
use serde_json::{Value, json};

use self::failover::Death;
use self::outage::Outage;
use self::paced::{EVERY, Paced, Part};
use super::{figure, ms, subjects};

/// Prints a table and gives the figures.
pub(crate) async fn measure(seconds: u64) -> anyhow::Result<Vec<Value>> {
    let run = Duration::from_secs(seconds);
    println!("\nlinks that fail: a request each {EVERY:?}, faults of {run:?}");
    let layers = layers::measure().await?;
    // The token is gone, and its workers with it; it is there, and every call is an error.
    let gone = outage::hsm("0x32", run).await.context("the token's outage")?;
    let failing = outage::hsm("0x31", run).await.context("the token's failures")?;
    let storm = outage::biller(run * 15).await.context("the biller's outage")?;
    let lost = failover::dead(Death::Fails, run).await.context("a failing primary")?;
    let killed = failover::dead(Death::Killed, run).await.context("a killed primary")?;
    let hung = failover::hung(run * 5 / 4).await.context("a hung primary")?;
    let shed = shed::measure(run).await.context("overload")?;
    println!(
        "  overload: {} served, {} refused in p50 {:.1} ms, p99 {:.1} ms, {} otherwise",
        shed.served,
        shed.refusals,
        ms(shed.refused.quantile(0.5)),
        ms(shed.refused.quantile(0.99)),
        shed.other
    );

    let outages = [("token_gone", &gone), ("token_fails", &failing), ("biller", &storm.outage)];
    let worst = |of: fn(&Outage) -> f64| {
        let parts: serde_json::Map<_, _> =
            outages.iter().map(|(name, outage)| ((*name).to_owned(), json!(of(outage)))).collect();
        let worst = outages.iter().map(|(_, outage)| of(outage)).fold(0.0, f64::max);
        (worst, Value::from(parts))
    };
    let (open_s, open_parts) = worst(|outage| outage.open_s);
    let (recovery_s, recovery_parts) = worst(|outage| outage.recovery_s);
    let ratio = ms(hung.p99) / ms(hung.healthy_p99).max(f64::EPSILON);
    let opened = hung.opened.map(ms);
    println!("\n{:<22} {:>9} {:<5} {:>7}", "figure", "value", "unit", "target");
    Ok(vec![
        row("layers_cpu_us", layers.several.max(layers.single), "us", Some(3.0), {
            json!({"call_us": layers.direct, "two_and_a_backup_us": layers.several})
        }),
        row("layers_cpu_us_single", layers.several.min(layers.single), "us", None, Value::Null),
        row("breaker_open_s", open_s, "s", Some(1.0), open_parts),
        row("recovery_s", recovery_s, "s", Some(5.0), recovery_parts),
        row("failover_lost", (lost + killed) as f64, "1", Some(0.0), {
            json!({"failing": lost, "killed": killed})
        }),
        row("hung_link_p99_ratio", ratio, "ratio", Some(2.0), {
            json!({"healthy_ms": ms(hung.healthy_p99), "hung_ms": ms(hung.p99),
                "opened_ms": opened})
        }),
        row("late_max_ms", ms(hung.late), "ms", Some(50.0), Value::Null),
        row("hung_link_failed", hung.failed as f64, "1", None, Value::Null),
        row("shed_p99_ms", ms(shed.refused.quantile(0.99)), "ms", Some(50.0), {
            json!({"served": shed.served, "refused": shed.refusals, "other": shed.other})
        }),
        row("retry_amplification", storm.amplification, "ratio", Some(1.25), Value::Null),
        row("probes_per_s", storm.probes_per_s, "1/s", Some(1.0), Value::Null),
    ])
}

/// Prints one figure and what it is made of.
fn row(name: &str, value: f64, unit: &str, target: Option<f64>, parts: Value) -> Value {
    let met = target.map(|target| (target, value <= target));
    let (wanted, word) = match met {
        Some((target, met)) => (target.to_string(), if met { "met" } else { "missed" }),
        None => (String::new(), ""),
    };
    let told = if parts.is_null() { String::new() } else { parts.to_string() };
    println!("{name:<22} {value:>9.2} {unit:<5} {wanted:>7} {word:<6} {told}");
    figure(name, value, unit, (!parts.is_null()).then_some(parts), met)
}

/// Prints what became of the requests of one part of a run, and how long the answers took.
fn tell_of(what: &str, part: &Part) {
    let (requests, failed, why) = (part.requests(), part.failed(), part.failures());
    let latencies = part.latencies();
    let (p50, p99) = (ms(latencies.quantile(0.5)), ms(latencies.quantile(0.99)));
    println!(
        "  {what:<24} {requests:>6} requests, {failed:>6} failed, p50 {p50:>5.1} ms, p99 {p99:>7.1} \
         ms  {why}"
    );
}

/// The product's own breakers in place of the demo's impatient ones, and room for every payment.
fn edit(table: &mut toml::Table) {
    let mut sections: Vec<&mut toml::Table> = Vec::new();
    for (name, value) in table.iter_mut() {
        match (name.as_str(), value) {
            ("hsm", toml::Value::Table(hsm)) => sections.push(hsm),
            ("biller", toml::Value::Array(billers)) => {
                sections.extend(billers.iter_mut().filter_map(toml::Value::as_table_mut));
            }
            ("queue", toml::Value::Table(queue)) => {
                queue.insert("rows_max".into(), 1_000_000.into());
            }
            _ => {}
        }
    }
    for section in sections {
        section.remove("breaker");
    }
}

/// PIN translations, each of use for [`REQUEST_TIMEOUT`].
async fn translations(world: &World) -> anyhow::Result<Paced> {
    let target = Target::new(&world.pki(), "acquirer-a", world.data_address())?;
    let translate = subjects()?.swap_remove(0);
    let limit = HeaderValue::from(REQUEST_TIMEOUT.as_secs());
    let request = move |_| {
        let mut request = post(translate.path, translate.body.clone());
        request.headers_mut().insert("request-timeout", limit.clone());
        request
    };
    Paced::start(target, request).await
}

fn post(path: &'static str, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(path);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Until connections, estimates and caches are as they are under load.
const WARM_UP: Duration = Duration::from_secs(3);
