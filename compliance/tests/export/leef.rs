//! IBM Log Event Extended Format, 2.0: a header of six fields, each with a `|` behind it, the last
//! of which names the delimiter; then attributes.

use crate::{Found, decoded, insert_new, percent_decoded};

/// The event id, and the attributes as they are written.
pub(crate) fn parse(text: &str) -> (String, Vec<(String, String)>) {
    let fields: Vec<&str> = text.splitn(7, '|').collect();
    let [leef, vendor, product, version, event_id, delimiter, attributes] = fields[..] else {
        panic!("a header of six fields: {text}");
    };
    assert_eq!([leef, vendor, product], ["LEEF:2.0", "Tollgate", "Tollgate"]);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert_eq!(delimiter, "x09", "a tab");
    let pair = |attribute: &str| {
        let (name, value) = attribute.split_once('=').unwrap();
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(!value.contains('\\'), "looks like an escape: {value}");
        (name.to_owned(), value.to_owned())
    };
    (event_id.to_owned(), attributes.split('\t').map(pair).collect())
}

/// The record's values, and no header that another value forged.
pub(crate) fn read(text: &str) -> Found {
    let (event_id, attributes) = parse(text);
    let event_type = percent_decoded(&event_id);
    let mut found = Found::from([("eventType".to_owned(), vec![event_type.clone()])]);
    for (name, value) in &attributes {
        let name = match name.as_str() {
            "usrName" => "actor",
            "role" => "roles",
            "action" => "outcome",
            "src" => "srcIp",
            other => other,
        };
        insert_new(&mut found, name, decoded(name, value));
    }
    let time = found["time"][0].clone();
    let milliseconds = format!("{}Z", &time[..time.len() - "456Z".len()]);
    assert_eq!(found.remove("devTime").unwrap(), [milliseconds]);
    assert_eq!(found.remove("devTimeFormat").unwrap(), ["yyyy-MM-dd'T'HH:mm:ss.SSSX"]);
    assert!((1..=10).contains(&found.remove("sev").unwrap()[0].parse::<u8>().unwrap()));
    assert_eq!(found.remove("cat").unwrap()[0], event_type.split('.').next().unwrap());
    found
}
