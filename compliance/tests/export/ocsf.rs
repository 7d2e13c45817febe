//! OCSF 1.3.0: JSON, without a key that stands twice, and with what the schema's release asks of
//! each class (`requirement: required`, and its `at_least_one` and `just_one`).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{Found, insert_new};

/// JSON in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("what an event holds")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Strict, E> {
                Ok(Strict(number.into()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Strict, E> {
                Ok(Strict(number.into()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Strict, E> {
                Ok(Strict(text.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
                let mut list = Vec::new();
                while let Some(Strict(member)) = seq.next_element()? {
                    list.push(member);
                }
                Ok(Strict(list.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut object = Map::new();
                while let Some((key, Strict(value))) = map.next_entry::<String, _>()? {
                    if object.insert(key.clone(), value).is_some() {
                        return Err(Error::custom(format!("{key} stands twice")));
                    }
                }
                Ok(Strict(object.into()))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

pub(crate) fn parse(text: &str) -> Value {
    let Strict(event) = serde_json::from_str(text).unwrap();
    check(&event);
    event
}

/// The base event's requirements and the class's.
fn check(event: &Value) {
    let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("{key}: {event}"));
    let class = number("class_uid");
    assert_eq!(number("category_uid"), class / 1000);
    assert_eq!(number("type_uid"), class * 100 + number("activity_id"));
    assert!((1..=5).contains(&number("severity_id")));
    assert!(event["time"].is_u64());
    assert_eq!(event["metadata"]["version"], "1.3.0");
    assert_eq!(event["metadata"]["product"]["vendor_name"], "Tollgate");
    if number("activity_id") == 99 {
        assert_eq!(event["activity_name"], event["metadata"]["event_code"]);
    }
    let (required, activities): (&[&str], &[u64]) = match class {
        1008 => (&["/log_name", "/actor/user/uid", "/device/type_id"], &[2, 3, 5, 6, 7, 8, 99]),
        2004 => (&["/finding_info/title", "/finding_info/uid", "/resources/0/uid"], &[1, 2, 3]),
        3002 => (&["/user/uid", "/dst_endpoint/hostname"], &[1, 2]),
        3003 => (&["/user/uid", "/privileges/0"], &[99]),
        3004 => (&["/entity/uid"], &[1, 3, 4, 9, 10, 11, 12]),
        4002 => (
            &["/dst_endpoint/hostname", "/http_request", "/http_response/code"],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8],
        ),
        5019 => (&["/device/type_id", "/device/hostname"], &[1]),
        6002 => (&["/app/name", "/app/vendor_name"], &[5, 99]),
        6003 => (&["/actor/user/uid", "/api/operation", "/src_endpoint"], &[1, 2, 99]),
        6005 => (
            &["/actor/user/uid", "/src_endpoint", "/databucket/type_id", "/databucket/uid"],
            &[2, 6, 7],
        ),
        other => panic!("class {other}"),
    };
    for pointer in required {
        assert!(event.pointer(pointer).is_some(), "{class} needs {pointer}: {event}");
    }
    assert!(activities.contains(&number("activity_id")), "{class}: {event}");
    // The host profile lends `actor` and `device` to these; the others have their own or none.
    let lent = [2004, 3003, 3004, 4002, 6002].contains(&class);
    assert_eq!(event["metadata"].get("profiles").is_some(), lent, "{class}");
    assert!(event.get("device").is_none() || ![6003, 6005].contains(&class));
    let endpoint = event.get("src_endpoint");
    assert!(endpoint.is_none_or(|endpoint| {
        ["ip", "svc_name"].iter().any(|key| endpoint.get(*key).is_some())
    }));
}

/// The record's values.
pub(crate) fn read(text: &str) -> Found {
    let event = parse(text);
    let class = event["class_uid"].as_u64().unwrap();
    let resource = match class {
        2004 | 6003 => "/resources/0",
        3004 => "/entity",
        6005 => "/databucket",
        _ => "/unmapped/resource",
    };
    let resource_uid = match class {
        1008 | 3002 | 3003 | 4002 | 5019 | 6002 => "/unmapped/resource/uid".to_owned(),
        _ => format!("{resource}/uid"),
    };
    let src = match class {
        2004 => "/evidences/0/src_endpoint",
        5019 | 6002 => "/unmapped/src",
        _ => "/src_endpoint",
    };
    let place = if event.get("device").is_some() { "/device" } else { "/dst_endpoint" };
    let of_class = [
        ("resourceType", format!("{resource}/type")),
        ("resource", resource_uid),
        ("srcIp", format!("{src}/ip")),
        ("srcPort", format!("{src}/port")),
        ("replica", format!("{place}/hostname")),
        ("boot", format!("{place}/instance_uid")),
        ("listener", format!("{place}/interface_name")),
    ];
    let of_all = PLACES.iter().map(|(name, pointer)| (*name, (*pointer).to_owned()));
    let mut found = Found::new();
    for (name, pointer) in of_class.into_iter().chain(of_all) {
        match event.pointer(&pointer) {
            None => {}
            Some(Value::String(text)) => insert_new(&mut found, name, vec![text.clone()]),
            Some(number) => insert_new(&mut found, name, vec![number.to_string()]),
        }
    }
    if let Some(groups) = event.pointer("/actor/user/groups") {
        let names = groups.as_array().unwrap().iter();
        let names = names.map(|group| group["name"].as_str().unwrap().to_owned());
        insert_new(&mut found, "roles", names.collect());
    }
    let time: jiff::Timestamp = found["time"][0].parse().unwrap();
    assert_eq!(event["time"], time.as_millisecond());
    // What stands in a second place is the same there.
    let same = |pointer: &str, name: &str| {
        let there = event.pointer(pointer).map(|value| value.as_str().unwrap());
        assert!(there.is_none_or(|there| [there] == found[name][..]), "{pointer}");
    };
    same("/user/uid", "actor");
    same("/privileges/0", "resource");
    same("/api/operation", "eventType");
    same("/api/request/uid", "requestId");
    same("/http_request/uid", "requestId");
    same("/finding_info/uid", "eventId");
    found
}

const PLACES: &[(&str, &str)] = &[
    ("actor", "/actor/user/uid"),
    ("actorType", "/actor/user/type"),
    ("certSerial", "/unmapped/cert/serial"),
    ("certIssuer", "/unmapped/cert/issuer"),
    ("certSpki", "/unmapped/cert/spki_sha256"),
    ("eventType", "/metadata/event_code"),
    ("eventId", "/metadata/uid"),
    ("time", "/metadata/original_time"),
    ("seq", "/metadata/sequence"),
    ("outcome", "/status_code"),
    ("reason", "/status_detail"),
    ("requestId", "/metadata/correlation_uid"),
    ("service", "/unmapped/service"),
    ("protocol", "/unmapped/protocol"),
    ("panLast4", "/unmapped/pan_last4"),
    ("mode", "/unmapped/mode"),
    ("link", "/unmapped/link"),
    ("status", "/unmapped/status"),
    ("proposer", "/unmapped/proposer"),
    ("approver", "/unmapped/approver"),
    ("note", "/unmapped/note"),
    ("stream", "/unmapped/stream"),
    ("prevHash", "/unmapped/prev_hash"),
    ("hash", "/unmapped/hash"),
    ("checkpoint", "/unmapped/checkpoint"),
    ("previousStream", "/unmapped/previous/stream"),
    ("previousSeq", "/unmapped/previous/seq"),
    ("previousHash", "/unmapped/previous/hash"),
    ("queueStore", "/unmapped/queue/store"),
    ("queueEpoch", "/unmapped/queue/epoch"),
    ("queueItemSeq", "/unmapped/queue/item_seq"),
    ("queueDepth", "/unmapped/queue/depth"),
    ("digestConfiguration", "/unmapped/digests/configuration"),
    ("digestKeys", "/unmapped/digests/keys"),
    ("digestProgram", "/unmapped/digests/program"),
];
