//! A card number, a track, a PIN block and the rest are sent through every route and into every field that an
//! answer, an error or a person's word could carry further; then everything that is left is searched.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpStream;

use harness::acquirer::{Acquirer, Client, Payment};
use harness::soft::pin::PinFormat;
use harness::world::{Wanted, World};
use reqwest::Method;
use serde_json::json;

use crate::audit::{PAN, PIN, canaries, send, translation};
use crate::audit_trail::quickly;
use crate::canary::{Canaries, files_under};
use crate::support::until;

/// Track 2 of the card: number, end, service code, discretionary data.
const TRACK: &str = ";5186732198046537=29121010000098765432?";

#[tokio::test]
async fn no_secret_is_left_in_any_artefact_after_every_route_and_every_error() {
    let wanted = Wanted { edit: Some(Box::new(quickly)), ..Wanted::default() };
    let mut world = World::start_as(wanted).await.unwrap();
    let acquirer = Acquirer::a();
    let block = acquirer.pin_block(PIN, PAN, PinFormat::Iso0).unwrap();
    let canaries = canaries(&world)
        .bytes("PIN block", &hex::decode(&block).unwrap())
        .digits("track 2", TRACK.trim_matches([';', '?']).rsplit('=').next().unwrap());

    for name in ["acquirer-a", "acquirer-b", "terminal-1"] {
        data_routes(&world.client(name).unwrap(), &acquirer, &block).await;
    }
    for name in ["operator", "auditor", "monitor", "key-officer", "acquirer-a"] {
        admin_routes(&world.admin(name).unwrap(), &block).await;
    }
    what_is_no_request(&world);
    until("a segment is sealed", std::time::Duration::from_secs(20), async || {
        let found = compliance::segments(&world.dir().join("audit")).unwrap();
        found.iter().any(|segment| segment.is_sealed)
    })
    .await;

    let auditor = world.admin("auditor").unwrap();
    for format in ["jsonl", "syslog", "cef", "leef", "ocsf"] {
        let path = format!("/v1/audit/export?format={format}");
        let export = send(&auditor, Method::GET, &path, &[], "").await;
        assert!(export.body.len() > 10_000, "{format}");
        assert_eq!(canaries.found_in(&export.body), [""; 0], "{format}");
    }
    let monitor = world.admin("monitor").unwrap();
    for (client, path) in [(&monitor, "/metrics"), (&auditor, "/v1/audit/events?limit=1000")] {
        let answer = send(client, Method::GET, path, &[], "").await;
        assert_eq!(canaries.found_in(&answer.body), [""; 0], "{path}");
    }
    assert_eq!(left_in(&world, &canaries), [""; 0]);
    // The card's number is in the gateway's memory while it works; PIN, keys and the HSM's PIN never are.
    let gateway = world.gateway().unwrap().id();
    let in_memory: Vec<String> = found_in_memory(gateway, &canaries);
    let in_memory: Vec<&String> = in_memory
        .iter()
        .filter(|name| !["PAN", "PIN block", "track"].iter().any(|known| name.starts_with(known)))
        .collect();
    assert!(in_memory.is_empty(), "{in_memory:?}");
    let removed = world.audit().unwrap();
    let kinds = removed.iter().filter(|event| event["event"]["type"] == "dlp.pan_found");
    assert!(kinds.count() > 0, "the last line behind the types was never needed");
    world.stop_gateway().await.unwrap();
    assert_eq!(left_in(&world, &canaries), [""; 0]);
}

/// Planted where a sealed segment and a process hold it, it is found there.
#[tokio::test]
async fn a_planted_secret_is_found_in_a_sealed_segment_and_in_memory() {
    let world = World::start().await.unwrap();
    let canaries = canaries(&world);
    let planted = world.dir().join("audit/planted.jsonl.gz");
    let mut gz = flate2::write::GzEncoder::new(File::create(planted).unwrap(), Default::default());
    gz.write_all(format!("{{\"pan\":\"{PAN}\"}}\n").as_bytes()).unwrap();
    gz.finish().unwrap();

    let found = left_in(&world, &canaries);
    let own = found_in_memory(std::process::id(), &canaries);

    assert!(found.iter().any(|line| line.ends_with("PAN as bytes")), "{found:?}");
    assert!(own.iter().any(|name| name == "PAN as bytes"), "{own:?}");
}

async fn data_routes(client: &Client, acquirer: &Acquirer, block: &str) {
    let good = translation(block);
    let verify = json!({"pan": PAN, "pin_block": block,
        "from": {"key": "zpk.acquirer-a", "format": "iso0"},
        "method": "pvv", "key": "pvk.issuer", "pvki": 1, "pvv": "1234"});
    let reference = json!({"pan": PAN, "pin_block": block,
        "from": {"key": "zpk.acquirer-a", "format": "iso0"},
        "method": "ibm3624", "key": "pvk.issuer-3624", "offset": "1234"});
    let mac = json!({"key": "zak.acquirer-a", "message": hex::encode(TRACK)});
    let check =
        json!({"key": "zak.acquirer-a", "message": hex::encode(TRACK), "mac": "0011223344556677"});
    let routes = [
        ("/v1/pin/translate", good.clone()),
        ("/v1/pin/verify", verify.to_string()),
        ("/v1/pin/verify", reference.to_string()),
        ("/v1/mac/generate", mac.to_string()),
        ("/v1/mac/verify", check.to_string()),
    ];
    for (path, body) in &routes {
        for body in spoiled(body) {
            send(client, Method::POST, path, &[], &body).await;
        }
        // The header's lines, the path and the query are the client's own text too.
        let text = format!("{PAN} {TRACK}");
        for name in ["user-agent", "x-request-id", "traceparent", "request-timeout", "content-type"]
        {
            send(client, Method::POST, path, &[(name, &text)], body).await;
        }
        send(client, Method::POST, &format!("{path}?pan={PAN}&track={PAN}%3D2912"), &[], body)
            .await;
        send(client, Method::PUT, &format!("{path}/{PAN}"), &[], body).await;
    }
    for card in [true, false] {
        let payment = Payment::of("pln", &format!("bill-{card}"));
        let payment = if card { payment.by_card() } else { payment };
        let body = acquirer.payment_body(&payment).unwrap();
        let text = String::from_utf8(body).unwrap();
        for body in spoiled(&text) {
            let mac = acquirer.mac_header(body.as_bytes());
            for key in [format!("\"{PAN}-{}\"", body.len()), PAN.to_owned()] {
                let headers = [("idempotency-key", key.as_str()), ("tollgate-mac", mac.as_str())];
                send(client, Method::POST, "/v1/payments", &headers, &body).await;
            }
            let wrong = [("idempotency-key", "\"w\""), ("tollgate-mac", PAN)];
            send(client, Method::POST, "/v1/payments", &wrong, &body).await;
        }
    }
    for path in [format!("/v1/payments/{PAN}"), format!("/{PAN}"), format!("/v1/{PAN}/x?{PAN}")] {
        send(client, Method::GET, &path, &[], "").await;
    }
}

/// A body as it is, and with secrets where they do not belong or cut in their middle.
fn spoiled(body: &str) -> Vec<String> {
    vec![
        body.to_owned(),
        body[..body.len() / 2].to_owned(),
        body.replacen('{', &format!("{{\"{PAN}\":1,"), 1),
        body.replacen('{', &format!("{{\"track\":\"{TRACK}\","), 1),
        body.replace("zpk.acquirer-a", PAN).replace("zak.acquirer-a", PAN),
        body.replace("\"iso0\"", &format!("\"{PAN}\"")),
        format!("{body}{PAN}"),
        format!("{TRACK}{body}"),
        format!("{{\"pan\":\"{}{PAN}\"}}", " ".repeat(100_000)),
    ]
}

async fn admin_routes(client: &Client, block: &str) {
    let reason = json!({ "reason": format!("card {PAN}, {TRACK}, 5186-7321-9804-6537, 5186 7321 9804 6537") });
    let reason = reason.to_string();
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let import =
        json!({"label": "zak.acquirer-b", "kbpk": "kek.acquirer-a", "block": block, "reason": PAN});
    let posts = [
        (format!("/v1/queue/{id}/hold"), reason.clone()),
        (format!("/v1/queue/{PAN}/cancel"), reason.clone()),
        (format!("/v1/queue/targets/{PAN}/pause"), reason.clone()),
        ("/v1/queue/targets/pln/pause".into(), reason.clone()),
        ("/v1/queue/targets/pln/resume".into(), reason.clone()),
        ("/v1/queue/rollback/acknowledge".into(), reason.clone()),
        ("/v1/breakers/hsm/force-open".into(), reason.clone()),
        ("/v1/breakers/hsm/reset".into(), reason.clone()),
        (format!("/v1/breakers/{PAN}/reset"), reason.clone()),
        ("/v1/keys/import".into(), import.to_string()),
        (format!("/v1/keys/{PAN}/activate"), reason.clone()),
    ];
    for (path, body) in posts {
        send(client, Method::POST, &path, &[], &body).await;
    }
    for path in [
        "/healthz",
        "/readyz",
        "/v1/links",
        "/v1/breakers",
        "/v1/keys",
        "/v1/keys/changes",
        "/v1/audit",
        "/openapi.json",
        "/v1/queue/stats",
        "/v1/queue/targets",
    ] {
        send(client, Method::GET, path, &[("user-agent", TRACK)], "").await;
    }
    for path in [
        format!("/v1/queue?biller={PAN}"),
        format!("/v1/queue?{PAN}=1"),
        format!("/v1/queue/{PAN}"),
        format!("/v1/audit/events?actor={PAN}&resource=5186-7321-9804-6537"),
        format!("/v1/audit/events?{PAN}=1"),
        format!("/v1/audit/export?format={PAN}"),
        format!("/{PAN}"),
    ] {
        send(client, Method::GET, &path, &[], "").await;
    }
}

/// A card number where TLS should begin.
fn what_is_no_request(world: &World) {
    for text in [format!("GET /{PAN} HTTP/1.1\r\n\r\n"), TRACK.into(), PAN.repeat(100)] {
        let mut stream = TcpStream::connect(world.data_address()).unwrap();
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 64]);
    }
}

/// What stands in files, also inside of compressed ones.
fn left_in(world: &World, canaries: &Canaries) -> Vec<String> {
    let mut found = canaries.found_under(world.dir());
    for path in files_under(world.dir()) {
        if path.extension().is_some_and(|extension| extension == "gz") {
            let mut bytes = Vec::new();
            compliance::read(&path).unwrap().read_to_end(&mut bytes).unwrap();
            let names = canaries.found_in(&bytes);
            found.extend(names.iter().map(|name| format!("{}: {name}", path.display())));
        }
    }
    found
}

/// What stands in the memory that a process can write, as a core would show it.
fn found_in_memory(process: u32, canaries: &Canaries) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let (from, to) = range.unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // A page that went meanwhile, or was never there.
        if memory.seek(SeekFrom::Start(from)).is_ok() && memory.read_exact(&mut bytes).is_ok() {
            found.extend(canaries.found_in(&bytes).into_iter().map(str::to_owned));
        }
    }
    found.sort();
    found.dedup();
    found
}
