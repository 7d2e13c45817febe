//! One event, and its line of JSON.
//!
//! Absent fields are left out; the order of the others never changes.

use std::num::NonZeroU64;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::{
    Actor, EventType, Label, Mode, Origin, Outcome, PanLastFour, Protocol, Reason, Resource,
    Service,
};

/// What happened, once. Built from the six fields of PCI DSS 10.2.2; the rest is added.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    event: Kind,
    #[serde(serialize_with = "microseconds")]
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<NonZeroU64>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    actor: Actor,
    #[serde(flatten)]
    origin: Origin,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<Label>,
    resource: Resource,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Service>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pan_last4: Option<PanLastFour>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<HttpStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proposer: Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approver: Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<Label>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: EventType,
    id: Uuid,
}

impl Event {
    /// Who, what, when, outcome, origin, on what. The event's id is drawn here (UUIDv7).
    #[must_use]
    pub fn new(
        who: Actor,
        what: EventType,
        when: Timestamp,
        outcome: Outcome,
        origin: Origin,
        on_what: Resource,
    ) -> Self {
        Self {
            event: Kind { kind: what, id: Uuid::now_v7() },
            time: when,
            seq: None,
            outcome,
            reason: None,
            actor: who,
            origin,
            request_id: None,
            resource: on_what,
            service: None,
            protocol: None,
            pan_last4: None,
            mode: None,
            link: None,
            status: None,
            proposer: None,
            approver: None,
            note: None,
        }
    }

    /// Why it ended so.
    #[must_use]
    pub fn reason(self, reason: Reason) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// The id that the answer carries too.
    #[must_use]
    pub fn request_id(self, request_id: Label) -> Self {
        Self { request_id: Some(request_id), ..self }
    }

    /// The part of the gateway that was asked.
    #[must_use]
    pub fn service(self, service: Service) -> Self {
        Self { service: Some(service), ..self }
    }

    /// How it was asked.
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), ..self }
    }

    /// The last four digits of the card number, where one was part of the request.
    #[must_use]
    pub fn pan_last4(self, pan_last4: PanLastFour) -> Self {
        Self { pan_last4: Some(pan_last4), ..self }
    }

    /// How the PIN was translated.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode: Some(mode), ..self }
    }

    /// The HSM or backend link that did the work.
    #[must_use]
    pub fn link(self, link: Label) -> Self {
        Self { link: Some(link), ..self }
    }

    /// The HTTP status answered.
    #[must_use]
    pub fn status(self, status: HttpStatus) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Who asked for a change that needs a second person.
    #[must_use]
    pub fn proposer(self, proposer: Label) -> Self {
        Self { proposer: Some(proposer), ..self }
    }

    /// The second person.
    #[must_use]
    pub fn approver(self, approver: Label) -> Self {
        Self { approver: Some(approver), ..self }
    }

    /// Why, in the words of the person who acted.
    #[must_use]
    pub fn note(self, note: Label) -> Self {
        Self { note: Some(note), ..self }
    }

    /// The place in the stream, from 1 without gaps. Given by the writer when it appends.
    pub fn set_seq(&mut self, seq: NonZeroU64) {
        self.seq = Some(seq);
    }

    /// The event's own id.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.event.id
    }

    /// What happened.
    #[must_use]
    pub const fn kind(&self) -> EventType {
        self.event.kind
    }

    /// How it ended.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// One JSON object and a line feed: ASCII, at most 2 KiB.
    #[must_use]
    pub fn to_json_line(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(LINE_BYTES);
        // Every field writes a string, a number or an object with fixed keys, into memory.
        serde_json::to_writer(&mut line, self).expect("such values always have a JSON form");
        line.push(b'\n');
        line
    }
}

/// An HTTP status code, 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HttpStatus(u16);

impl HttpStatus {
    /// None outside 100 to 599.
    #[must_use]
    pub const fn new(code: u16) -> Option<Self> {
        if code >= 100 && code < 600 { Some(Self(code)) } else { None }
    }
}

fn microseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

/// Most lines fit.
const LINE_BYTES: usize = 768;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertificateId, Host, Listener, ResourceType, Role, SpkiSha256};

    fn host(replica: &str) -> Host {
        Host::new(Label::new(replica), Uuid::nil())
    }

    fn full(text: &str) -> Event {
        let certificate =
            CertificateId::new(&"7f".repeat(16), Label::new(text), SpkiSha256::new([1; 32]));
        let peer = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
        let mut event = Event::new(
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
        .note(Label::new(text));
        event.set_seq(NonZeroU64::MAX);
        event
    }

    #[test]
    fn a_full_event_is_written_in_this_form_and_order() {
        let event = full("x");

        let line = String::from_utf8(event.to_json_line()).unwrap();

        let expected = format!(
            concat!(
                r#"{{"event":{{"type":"request.malformed","id":"{id}"}},"#,
                r#""time":"2026-03-01T12:00:00.123456Z","seq":18446744073709551615,"#,
                r#""outcome":"abandoned","reason":"idempotency-key-reused","#,
                r#""actor":{{"id":"x","type":"admin","#,
                r#""roles":["operator","auditor","monitor","key-officer"],"#,
                r#""cert":{{"serial":"{serial}","issuer":"x","spki_sha256":"{spki}"}}}},"#,
                r#""src":{{"ip":"2001:db8:1111:2222:3333:4444:5555:6666","port":65535}},"#,
                r#""listener":"iso8583","replica":"x","#,
                r#""boot":"00000000-0000-0000-0000-000000000000","request_id":"x","#,
                r#""resource":{{"type":"configuration","id":"x"}},"service":"payment","#,
                r#""protocol":"iso8583","pan_last4":"1111","mode":"in_worker","link":"x","#,
                r#""status":503,"proposer":"x","approver":"x","note":"x"}}"#,
                "\n"
            ),
            id = event.id(),
            serial = "7f".repeat(16),
            spki = "01".repeat(32),
        );
        assert_eq!(line, expected);
        assert_eq!(event.id().get_version_num(), 7);
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

        let json: serde_json::Value = serde_json::from_slice(&event.to_json_line()).unwrap();

        assert_eq!(json["actor"], serde_json::json!({"id": "tollgate", "type": "system"}));
        assert_eq!(json["event"]["type"], "audit.start");
        assert_eq!(json["time"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(json["outcome"], "success");
        assert_eq!(json["replica"], "gateway-1");
        assert_eq!(json["resource"]["type"], "audit-stream");
        assert_eq!(json.as_object().unwrap().len(), 7, "and the boot id: {json}");
    }

    #[test]
    fn the_longest_event_keeps_its_bound_and_its_one_line() {
        let line = full(&"\"\\\n\u{1f4b3}".repeat(100)).to_json_line();

        assert!(line.len() <= 2048, "{}", line.len());
        assert!(line.is_ascii());
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn a_card_number_given_for_every_text_appears_nowhere() {
        let line = String::from_utf8(full("4111111111111111").to_json_line()).unwrap();

        assert!(!line.contains("4111"), "{line}");
        assert_eq!(line.matches("[pan removed]").count(), 9);
    }

    #[test]
    fn a_pin_is_no_http_status() {
        assert_eq!(HttpStatus::new(1234), None);
        assert_eq!(HttpStatus::new(99), None);
        assert!(HttpStatus::new(100).is_some() && HttpStatus::new(599).is_some());
    }
}
