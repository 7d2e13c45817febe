//! Records, and what a reader must find of them.

use serde_json::{Value, json};

use crate::Found;

/// A record with every field, of this type.
pub(crate) fn full(event_type: &str) -> Value {
    json!({
        "actor": {
            "cert": {"issuer": "CN=Tollgate Test CA,O=Example", "serial": "7f3a", "spki_sha256": "0f".repeat(32)},
            "id": "acquirer-a", "roles": ["operator", "auditor", "monitor", "key-officer"], "type": "admin",
        },
        "approver": "officer-b",
        "boot": "01890a5d-ac96-774b-bcce-b302099a8057",
        "checkpoint": "dG9sbGdhdGUvZ2F0ZXdheS0xCjQyCg==",
        "digests": {"configuration": "01".repeat(32), "keys": "02".repeat(32), "program": "03".repeat(32)},
        "event": {"id": "0192f0c1-7c1e-7d30-9c57-1f1b2a3c4d5e", "type": event_type},
        "frontier": "AAAA",
        "hash": "ab".repeat(32),
        "link": "hsm-1",
        "listener": "data",
        "mode": "in_worker",
        "note": "asked for by ticket 7",
        "outcome": "denied",
        "pan_last4": "1111",
        "prev_hash": "cd".repeat(32),
        "previous": {"hash": "ef".repeat(32), "seq": 41, "stream": "tollgate/gateway-1/0189-old"},
        "proposer": "officer-a",
        "protocol": "https",
        "queue": {"depth": 3, "epoch": 7, "item_seq": 12, "store": "5b0c"},
        "reason": "not-allowed",
        "replica": "gateway-1",
        "request_id": "req-1",
        "resource": {"id": "POST /v1/pin/translate", "type": "route"},
        "seq": u64::MAX,
        "service": "pin",
        "src": {"ip": "2001:db8::1", "port": 65535},
        "status": 403,
        "stream": "tollgate/gateway-1/01890a5d-ac96-774b-bcce-b302099a8057",
        "time": "2026-03-01T12:00:00.123456Z",
    })
}

/// A record with what every record has.
pub(crate) fn smallest(event_type: &str) -> Value {
    json!({
        "actor": {"id": "tollgate", "type": "system"},
        "boot": "01890a5d-ac96-774b-bcce-b302099a8057",
        "event": {"id": "0192f0c1-7c1e-7d30-9c57-1f1b2a3c4d5e", "type": event_type},
        "hash": "ab".repeat(32),
        "outcome": "success",
        "prev_hash": "00".repeat(32),
        "replica": "gateway-1",
        "resource": {"id": "gateway-1", "type": "audit-stream"},
        "seq": 1,
        "stream": "tollgate/gateway-1/01890a5d-ac96-774b-bcce-b302099a8057",
        "time": "1970-01-01T00:00:00.000001Z",
    })
}

/// The stored line.
pub(crate) fn line(record: &Value) -> String {
    record.to_string()
}

/// What a reader must find: every value but the frontier.
pub(crate) fn found(record: &Value) -> Found {
    let mut found = Found::new();
    for (name, pointer) in POINTERS.iter().chain(NUMBERS) {
        let values = match record.pointer(pointer) {
            None => continue,
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(list)) => {
                list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
            }
            Some(number) => vec![number.as_u64().unwrap().to_string()],
        };
        found.insert((*name).to_owned(), values);
    }
    found
}

/// Puts a text where one of [`POINTERS`] points; as roles, in front of another.
pub(crate) fn put(record: &mut Value, pointer: &str, text: &str) {
    let place = record.pointer_mut(pointer).unwrap();
    *place = if place.is_array() { json!([text, "auditor"]) } else { json!(text) };
}

/// Every field that holds text, but for the time: its name for readers, and where it stands.
pub(crate) const POINTERS: &[(&str, &str)] = &[
    ("actor", "/actor/id"),
    ("actorType", "/actor/type"),
    ("roles", "/actor/roles"),
    ("certSerial", "/actor/cert/serial"),
    ("certIssuer", "/actor/cert/issuer"),
    ("certSpki", "/actor/cert/spki_sha256"),
    ("eventType", "/event/type"),
    ("eventId", "/event/id"),
    ("outcome", "/outcome"),
    ("reason", "/reason"),
    ("srcIp", "/src/ip"),
    ("listener", "/listener"),
    ("replica", "/replica"),
    ("boot", "/boot"),
    ("requestId", "/request_id"),
    ("resourceType", "/resource/type"),
    ("resource", "/resource/id"),
    ("service", "/service"),
    ("protocol", "/protocol"),
    ("panLast4", "/pan_last4"),
    ("mode", "/mode"),
    ("link", "/link"),
    ("proposer", "/proposer"),
    ("approver", "/approver"),
    ("note", "/note"),
    ("stream", "/stream"),
    ("prevHash", "/prev_hash"),
    ("hash", "/hash"),
    ("checkpoint", "/checkpoint"),
    ("previousStream", "/previous/stream"),
    ("previousHash", "/previous/hash"),
    ("queueStore", "/queue/store"),
    ("digestConfiguration", "/digests/configuration"),
    ("digestKeys", "/digests/keys"),
    ("digestProgram", "/digests/program"),
];

const NUMBERS: &[(&str, &str)] = &[
    ("time", "/time"),
    ("seq", "/seq"),
    ("srcPort", "/src/port"),
    ("status", "/status"),
    ("previousSeq", "/previous/seq"),
    ("queueEpoch", "/queue/epoch"),
    ("queueItemSeq", "/queue/item_seq"),
    ("queueDepth", "/queue/depth"),
];
