use super::*;
use crate::{
    CertificateId, Chain, Checkpoint, Host, Listener, Members, ResourceType, Role, SpkiSha256,
};

fn host(replica: &str) -> Host {
    Host::new(Label::new(replica), Uuid::nil())
}

fn full(text: &str) -> Event {
    let certificate =
        CertificateId::new(&"7f".repeat(16), Label::new(text), SpkiSha256::new([1; 32]));
    let peer = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
    Event::new(
        Actor::admin(Label::new(text), Role::ALL.iter().copied())
            .with_certificate(certificate.unwrap()),
        EventType::RequestMalformed,
        "2026-03-01T12:00:00.123456789Z".parse().unwrap(),
        Outcome::Abandoned,
        Origin::remote(&host(text), peer, Listener::Iso8583),
        Resource::new(ResourceType::Configuration, Label::new(text)),
    )
    .reason(Reason::IdempotencyKeyReused)
    .request_id(Label::new(text))
    .service(Service::Payment)
    .protocol(Protocol::Iso8583)
    .pan_last4(PanLastFour::parse("1111").unwrap())
    .mode(Mode::InWorker)
    .link(Label::new(text))
    .status(HttpStatus::new(503).unwrap())
    .proposer(Label::new(text))
    .approver(Label::new(text))
    .note(Label::new(text))
}

fn stream() -> StreamId {
    StreamId::new("tollgate", "gateway-1", Uuid::nil()).unwrap()
}

/// As the only record of its stream.
fn record(event: Event) -> String {
    let mut lines = Vec::new();
    Chain::new(stream(), None).append(event, &mut lines);
    String::from_utf8(lines).unwrap()
}

#[test]
fn a_full_event_is_written_in_this_form_and_order() {
    let event = full("x");

    let line = record(event.clone());

    let expected = format!(
        concat!(
            r#"{{"actor":{{"cert":{{"issuer":"x","serial":"{serial}","spki_sha256":"{spki}"}},"#,
            r#""id":"x","roles":["operator","auditor","monitor","key-officer"],"type":"admin"}},"#,
            r#""approver":"x","boot":"00000000-0000-0000-0000-000000000000","#,
            r#""event":{{"id":"{id}","type":"request.malformed"}},"#,
            r#""link":"x","listener":"iso8583","mode":"in_worker","note":"x","#,
            r#""outcome":"abandoned","pan_last4":"1111","prev_hash":"{zero}","proposer":"x","#,
            r#""protocol":"iso8583","reason":"idempotency-key-reused","replica":"x","#,
            r#""request_id":"x","resource":{{"id":"x","type":"configuration"}},"seq":1,"#,
            r#""service":"payment","#,
            r#""src":{{"ip":"2001:db8:1111:2222:3333:4444:5555:6666","port":65535}},"#,
            r#""status":503,"#,
            r#""stream":"tollgate/gateway-1/00000000-0000-0000-0000-000000000000","#,
            r#""time":"2026-03-01T12:00:00.123456Z"}}"#,
        ),
        id = event.id(),
        serial = "7f".repeat(16),
        spki = "01".repeat(32),
        zero = "0".repeat(64),
    );
    let hash = Hash::ZERO.next(&[expected.as_bytes()]);
    let whole = expected.replace(r#","link""#, &format!(r#","hash":"{hash}","link""#));
    assert_eq!(line, whole + "\n");
    assert_eq!(event.id().get_version_num(), 7);
}

#[test]
fn a_record_is_canonical_json() {
    let checkpoint = Checkpoint {
        origin: stream().to_string(),
        size: 1,
        root: Hash([1; 32]),
        keys: Vec::new(),
        interval_s: 5,
    };
    let digests = Digests { configuration: Hash([2; 32]), keys: None, program: Hash([3; 32]) };
    let queue = QueueState { depth: 1, epoch: 2, item_seq: 3, store: Uuid::nil() };
    let head = Head { hash: Hash([4; 32]), seq: 9, stream: stream() };
    let event = full("x").checkpoint(SignedNote::unsigned(checkpoint)).digests(digests);
    let mut lines = Vec::new();

    Chain::new(stream(), Some(head)).append(event.queue(queue), &mut lines);

    let line = lines.strip_suffix(b"\n").unwrap();
    Members::default().read(line).unwrap();
    // An independent writer that sorts: the same bytes.
    let json: serde_json::Value = serde_json::from_slice(line).unwrap();
    assert_eq!(json.to_string().as_bytes(), line);
    assert!(json["previous"]["seq"] == 9 && json["queue"]["epoch"] == 2);
}

#[test]
fn the_smallest_event_still_holds_the_six_fields() {
    let event = Event::new(
        Actor::system(),
        EventType::AuditStart,
        Timestamp::UNIX_EPOCH,
        Outcome::Success,
        Origin::inside(&host("gateway-1")),
        Resource::new(ResourceType::AuditStream, Label::new("gateway-1")),
    );

    let json: serde_json::Value = serde_json::from_str(&record(event)).unwrap();

    assert_eq!(json["actor"], serde_json::json!({"id": "tollgate", "type": "system"}));
    assert_eq!(json["event"]["type"], "audit.start");
    assert_eq!(json["time"], "1970-01-01T00:00:00.000000Z");
    assert_eq!(json["outcome"], "success");
    assert_eq!(json["replica"], "gateway-1");
    assert_eq!(json["resource"]["type"], "audit-stream");
    assert_eq!(json.as_object().unwrap().len(), 11, "boot id, stream, seq and hashes: {json}");
}

#[test]
fn the_longest_event_keeps_its_bound_and_its_one_line() {
    let line = record(full(&"\"\\\n\u{1f4b3}".repeat(100)));

    assert!(line.len() <= 2560, "{}", line.len());
    assert!(line.is_ascii());
    assert_eq!(line.matches('\n').count(), 1);
}

#[test]
fn a_card_number_given_for_every_text_appears_nowhere() {
    assert!(full("4111111111111111").held_a_pan() && !full("x").held_a_pan());
    let line = record(full("4111111111111111"));

    assert!(!line.contains("4111"), "{line}");
    assert_eq!(line.matches("[pan removed]").count(), 9);
}

#[test]
fn a_pin_is_no_http_status() {
    assert_eq!(HttpStatus::new(1234), None);
    assert_eq!(HttpStatus::new(99), None);
    assert!(HttpStatus::new(100).is_some() && HttpStatus::new(599).is_some());
}
