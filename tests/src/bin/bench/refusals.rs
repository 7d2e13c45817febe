//! A hundred thousand PIN blocks that are none, over HTTPS: how many forms the refusal has.
//!
//! A form is status and body, but for the request's id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use harness::bad_blocks::{Fault, block};
use harness::demo_keys::DemoKeys;
use harness::load::{Target, Until, drive};
use harness::soft::pin::PinFormat;
use harness::soft::random::Random;
use harness::world::World;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::{CONNECTIONS, figure};

/// For each of the two formats.
const BLOCKS: usize = 50_000;

pub(crate) async fn measure() -> anyhow::Result<Vec<Value>> {
    println!("\nPIN blocks that are none, over HTTPS: {} of each format", BLOCKS);
    let world = World::start().await?;
    let forms = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let mut broken = 0;
    for (client, key, format) in [
        ("acquirer-a", "zpk.acquirer-a", PinFormat::Iso0),
        ("acquirer-b", "zpk.acquirer-b", PinFormat::Iso4),
    ] {
        let bodies = bodies(key, format)?;
        let request = move |number: u64| {
            let mut request = Request::new(Full::new(bodies[number as usize % BLOCKS].clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = Uri::from_static("/v1/pin/translate");
            let headers = request.headers_mut();
            headers.insert(HOST, HeaderValue::from_static("localhost"));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            request
        };
        let seen = Arc::clone(&forms);
        let accept = move |status: StatusCode, body: &Bytes| {
            let form = form(status, body);
            let mut seen = seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *seen.entry(form).or_default() += 1;
            status == StatusCode::UNPROCESSABLE_ENTITY
        };
        let target = Target::new(&world.pki(), client, world.data_address())?;
        let report =
            drive(&target, CONNECTIONS, Until::Count(BLOCKS as u64), request, accept).await;
        println!("{format}: {report}");
        broken += report.broken;
    }
    let forms = forms.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for (form, count) in forms.iter().take(5) {
        println!("{count:>7} x {form}");
    }
    let met = forms.len() == 1 && broken == 0;
    let answered: u64 = forms.values().sum();
    Ok(vec![
        figure("refusals", answered as f64, "1", None, None),
        figure("refusal_forms", forms.len() as f64, "1", None, Some((1.0, met))),
    ])
}

/// Requests of every fault, cards and PINs at random.
fn bodies(key: &str, format: PinFormat) -> anyhow::Result<Vec<Bytes>> {
    let (mut random, value) = (Random::fresh(), DemoKeys::load().value(key));
    let to = match format {
        PinFormat::Iso4 => json!({"key": "zpk.billing-aes", "format": "iso4"}),
        PinFormat::Iso0 | PinFormat::Iso1 | PinFormat::Iso3 => {
            json!({"key": "zpk.billing", "format": "iso0"})
        }
    };
    let mut bodies = Vec::with_capacity(BLOCKS);
    for _ in 0..BLOCKS {
        let (fault, pan) = (random.pick(&Fault::ALL), random.pan());
        let block = block(&mut random, Some(fault), format, &value, &pan)?;
        let body = json!({"pan": pan, "pin_block": hex::encode_upper(block),
            "from": {"key": key, "format": format.to_string()}, "to": to});
        bodies.push(Bytes::from(body.to_string()));
    }
    Ok(bodies)
}

fn form(status: StatusCode, body: &Bytes) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(mut json) => {
            json["request_id"].take();
            format!("{status} {json}")
        }
        Err(_) => format!("{status}, no JSON"),
    }
}
