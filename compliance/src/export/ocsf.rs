//! OCSF 1.3.0: one JSON object of the class that the event type means.
//!
//! | what | where |
//! |---|---|
//! | who | `actor.user{uid, type, groups[].name}`, in 3002 and 3003 also `user.uid`; `unmapped.cert` |
//! | what | `metadata.event_code` (the event type) and `.uid`; `class_uid`, `activity_id` |
//! | when | `time` in milliseconds, `metadata.original_time` to the microsecond |
//! | result | `status_code` (the outcome), `status_detail` (the reason), `status_id` |
//! | from where | `src_endpoint`; in 2004 `evidences[0].src_endpoint`; in 5019 and 6002 `unmapped.src` |
//! | where | `device` or, in 3002, 3003, 4002, 6003, 6005, `dst_endpoint`: replica, boot, listener |
//! | on what | 2004, 6003 `resources[0]`; 3004 `entity`; 6005 `databucket`; else `unmapped.resource` |
//! | integrity | `metadata.sequence`, `unmapped{stream, prev_hash, hash}` |
//!
//! 6003 and 6005 ask for a source: the gateway's own events name `tollgate` there and no address.
//! 4002 asks for an HTTP status: 0 says that no answer was sent.

use super::class::{BY_METHOD, Class, Meaning, OTHER};
use super::fields::{Field, Room};
use super::record::Record;
use super::text::{self, Bound, Text};
use super::{PRODUCT, VENDOR, VERSION, syslog};

/// Appends one event.
pub(super) fn write(record: &Record<'_>, room: Room, out: &mut Vec<u8>) {
    let meaning = Meaning::of(&record.event.kind);
    let class = meaning.class;
    let activity = activity(record, meaning);
    let mut json = Json { out, room };
    json.out.push(b'{');
    json.number("class_uid", class.uid());
    json.number("category_uid", class.uid() / 1000);
    json.number("activity_id", activity);
    if activity == OTHER {
        json.text("activity_name", &record.event.kind, Field::EventType);
    }
    json.number("type_uid", class.uid() * 100 + u32::from(activity));
    json.number("severity_id", meaning.severity(&record.outcome).ocsf());
    json.number("status_id", status_id(record, meaning));
    json.text("status_code", &record.outcome, Field::Outcome);
    json.maybe("status_detail", record.reason.as_ref(), Field::Reason);
    json.number("time", record.time.as_millisecond());
    json.key("message");
    json.quoted(|out| syslog::sentence(record, out));
    metadata(record, class, &mut json);
    parties(record, class, &mut json);
    on_what(record, class, &mut json);
    unmapped(record, class, &mut json);
    json.close('}');
}

fn metadata(record: &Record<'_>, class: Class, json: &mut Json<'_>) {
    json.open("metadata", '{');
    json.word("version", "1.3.0");
    json.open("product", '{');
    json.word("name", PRODUCT);
    json.word("vendor_name", VENDOR);
    json.word("version", VERSION);
    json.close('}');
    json.word("log_name", "audit");
    json.text("event_code", &record.event.kind, Field::EventType);
    json.text("uid", &record.event.id, Field::EventId);
    json.key("original_time");
    json.quoted(|out| text::push_time(record.time, out));
    json.number("sequence", record.seq);
    json.maybe("correlation_uid", record.request_id.as_ref(), Field::RequestId);
    if has_host_profile(class) {
        json.key("profiles");
        json.out.extend_from_slice(b"[\"host\"]");
    }
    json.close('}');
}

/// Who, from where, and where.
fn parties(record: &Record<'_>, class: Class, json: &mut Json<'_>) {
    let actor = &record.actor;
    json.open("actor", '{');
    json.open("user", '{');
    json.text("uid", &actor.id, Field::Actor);
    json.text("type", &actor.kind, Field::ActorType);
    json.number("type_id", user_type(&actor.kind));
    if !actor.roles.is_empty() {
        json.open("groups", '[');
        for (count, role) in actor.roles.iter().enumerate() {
            json.open_member('{');
            if count == ROLES {
                json.word("name", text::CUT);
                json.close('}');
                break;
            }
            json.text("name", role, Field::Roles);
            json.close('}');
        }
        json.close(']');
    }
    json.close('}');
    json.close('}');
    if matches!(class, Class::Authentication | Class::AuthorizeSession) {
        json.open("user", '{');
        json.text("uid", &actor.id, Field::Actor);
        json.close('}');
    }
    match class {
        Class::DetectionFinding => {
            if record.src.is_some() {
                json.open("evidences", '[');
                json.open_member('{');
                source(record, "src_endpoint", json);
                json.close('}');
                json.close(']');
            }
        }
        Class::ConfigStateChange | Class::ApplicationLifecycle => {} // in `unmapped`
        Class::ApiActivity | Class::DatastoreActivity if record.src.is_none() => {
            json.open("src_endpoint", '{');
            json.word("svc_name", "tollgate");
            json.close('}');
        }
        Class::ApiActivity
        | Class::DatastoreActivity
        | Class::EventLog
        | Class::Authentication
        | Class::AuthorizeSession
        | Class::EntityManagement
        | Class::HttpActivity => source(record, "src_endpoint", json),
    }
    let is_endpoint = matches!(
        class,
        Class::Authentication
            | Class::AuthorizeSession
            | Class::HttpActivity
            | Class::ApiActivity
            | Class::DatastoreActivity
    );
    json.open(if is_endpoint { "dst_endpoint" } else { "device" }, '{');
    json.number("type_id", SERVER);
    json.text("hostname", &record.replica, Field::Replica);
    json.text("instance_uid", &record.boot, Field::Boot);
    json.maybe("interface_name", record.listener.as_ref(), Field::Listener);
    json.close('}');
}

fn source(record: &Record<'_>, key: &str, json: &mut Json<'_>) {
    if let Some(src) = &record.src {
        json.open(key, '{');
        json.text("ip", &src.ip, Field::SrcIp);
        if let Some(port) = src.port {
            json.number("port", port);
        }
        json.close('}');
    }
}

/// What the class asks for of the thing, and of its own.
fn on_what(record: &Record<'_>, class: Class, json: &mut Json<'_>) {
    match class {
        Class::ApiActivity => {
            json.open("api", '{');
            json.text("operation", &record.event.kind, Field::EventType);
            if let Some(request_id) = &record.request_id {
                json.open("request", '{');
                json.text("uid", request_id, Field::RequestId);
                json.close('}');
            }
            if let Some(status) = record.status {
                json.open("response", '{');
                json.number("code", status);
                json.close('}');
            }
            json.close('}');
            resources(record, json);
        }
        Class::DetectionFinding => {
            json.open("finding_info", '{');
            json.text("title", &record.event.kind, Field::EventType);
            json.text("uid", &record.event.id, Field::EventId);
            json.close('}');
            resources(record, json);
        }
        Class::EntityManagement => {
            json.open("entity", '{');
            resource(record, json);
            json.close('}');
        }
        Class::DatastoreActivity => {
            json.open("databucket", '{');
            json.number("type_id", OTHER);
            resource(record, json);
            json.close('}');
        }
        Class::HttpActivity => {
            json.open("http_request", '{');
            if let Some((method, _)) = method(record) {
                json.word("http_method", method);
            }
            json.maybe("uid", record.request_id.as_ref(), Field::RequestId);
            json.close('}');
            json.open("http_response", '{');
            json.number("code", record.status.unwrap_or(0));
            json.close('}');
        }
        Class::AuthorizeSession => {
            json.open("privileges", '[');
            json.member();
            json.string(&record.resource.id, Field::Resource);
            json.close(']');
        }
        Class::ApplicationLifecycle => {
            json.open("app", '{');
            json.word("name", PRODUCT);
            json.word("vendor_name", VENDOR);
            json.word("version", VERSION);
            json.close('}');
        }
        Class::EventLog => json.word("log_name", "audit"),
        Class::Authentication | Class::ConfigStateChange => {}
    }
}

fn resources(record: &Record<'_>, json: &mut Json<'_>) {
    json.open("resources", '[');
    json.open_member('{');
    resource(record, json);
    json.close('}');
    json.close(']');
}

fn resource(record: &Record<'_>, json: &mut Json<'_>) {
    json.text("type", &record.resource.kind, Field::ResourceType);
    json.text("uid", &record.resource.id, Field::Resource);
}

/// The chain, and what OCSF has no place for, under the names of the stored record.
fn unmapped(record: &Record<'_>, class: Class, json: &mut Json<'_>) {
    json.open("unmapped", '{');
    json.maybe("stream", record.stream.as_ref(), Field::Stream);
    json.maybe("prev_hash", record.prev_hash.as_ref(), Field::PrevHash);
    json.maybe("hash", record.hash.as_ref(), Field::Hash);
    if matches!(class, Class::ConfigStateChange | Class::ApplicationLifecycle) {
        source(record, "src", json);
    }
    let is_mapped = matches!(
        class,
        Class::ApiActivity
            | Class::DetectionFinding
            | Class::EntityManagement
            | Class::DatastoreActivity
    );
    if !is_mapped {
        json.open("resource", '{');
        resource(record, json);
        json.close('}');
    }
    if let Some(cert) = &record.actor.cert {
        json.open("cert", '{');
        json.text("serial", &cert.serial, Field::CertSerial);
        json.text("issuer", &cert.issuer, Field::CertIssuer);
        json.maybe("spki_sha256", cert.spki_sha256.as_ref(), Field::CertSpki);
        json.close('}');
    }
    json.maybe("service", record.service.as_ref(), Field::Service);
    json.maybe("protocol", record.protocol.as_ref(), Field::Protocol);
    json.maybe("pan_last4", record.pan_last4.as_ref(), Field::PanLast4);
    json.maybe("mode", record.mode.as_ref(), Field::Mode);
    json.maybe("link", record.link.as_ref(), Field::Link);
    if let Some(status) = record.status {
        json.number("status", status);
    }
    json.maybe("proposer", record.proposer.as_ref(), Field::Proposer);
    json.maybe("approver", record.approver.as_ref(), Field::Approver);
    json.maybe("note", record.note.as_ref(), Field::Note);
    json.maybe("checkpoint", record.checkpoint.as_ref(), Field::Checkpoint);
    if let Some(previous) = &record.previous {
        json.open("previous", '{');
        json.text("stream", &previous.stream, Field::PreviousStream);
        json.number("seq", previous.seq);
        json.text("hash", &previous.hash, Field::PreviousHash);
        json.close('}');
    }
    if let Some(queue) = &record.queue {
        json.open("queue", '{');
        json.text("store", &queue.store, Field::QueueStore);
        json.number("epoch", queue.epoch);
        json.number("item_seq", queue.item_seq);
        json.number("depth", queue.depth);
        json.close('}');
    }
    if let Some(digests) = &record.digests {
        json.open("digests", '{');
        json.maybe("configuration", digests.configuration.as_ref(), Field::DigestConfiguration);
        json.maybe("keys", digests.keys.as_ref(), Field::DigestKeys);
        json.maybe("program", digests.program.as_ref(), Field::DigestProgram);
        json.close('}');
    }
    json.close('}');
}

/// `actor` and `device` are the `host` profile's in these classes, and their own in the others.
const fn has_host_profile(class: Class) -> bool {
    matches!(
        class,
        Class::DetectionFinding
            | Class::AuthorizeSession
            | Class::EntityManagement
            | Class::HttpActivity
            | Class::ApplicationLifecycle
    )
}

fn activity(record: &Record<'_>, meaning: Meaning) -> u8 {
    if meaning.class == Class::HttpActivity && meaning.activity == BY_METHOD {
        return method(record).map_or(0, |(_, activity)| activity);
    }
    meaning.activity
}

/// A route is named by method and path.
fn method(record: &Record<'_>) -> Option<(&'static str, u8)> {
    let (method, _) = record.resource.id.split_once(' ')?;
    METHODS.iter().copied().find(|(name, _)| *name == method)
}

/// Success and failure; of a finding, new, in progress and resolved.
fn status_id(record: &Record<'_>, meaning: Meaning) -> u8 {
    if meaning.class == Class::DetectionFinding {
        return match meaning.activity {
            1 => 1,
            2 => 2,
            _ => 4,
        };
    }
    match &*record.outcome {
        "success" => 1,
        "failure" | "denied" | "error" | "abandoned" => 2,
        _ => OTHER,
    }
}

fn user_type(actor_type: &str) -> u8 {
    match actor_type {
        "client" => 1,
        "admin" => 2,
        "system" => 3,
        "unknown" => 0,
        _ => OTHER,
    }
}

/// Writes JSON members in the order of the calls.
struct Json<'o> {
    out: &'o mut Vec<u8>,
    room: Room,
}

impl Json<'_> {
    /// Before a member of an array, or a key.
    fn member(&mut self) {
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.out.push(b',');
        }
    }

    /// `key` is ours and needs no escapes, as do all keys and words.
    fn key(&mut self, key: &str) {
        self.member();
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn open(&mut self, key: &str, bracket: char) {
        self.key(key);
        text::push_char(bracket, self.out);
    }

    fn open_member(&mut self, bracket: char) {
        self.member();
        text::push_char(bracket, self.out);
    }

    fn close(&mut self, bracket: char) {
        text::push_char(bracket, self.out);
    }

    fn number(&mut self, key: &str, number: impl Into<i128>) {
        self.key(key);
        text::push_number(number, self.out);
    }

    fn word(&mut self, key: &str, word: &str) {
        self.key(key);
        self.quoted(|out| out.extend_from_slice(word.as_bytes()));
    }

    fn text(&mut self, key: &str, text: &str, field: Field) {
        self.key(key);
        self.string(text, field);
    }

    fn maybe(&mut self, key: &str, text: Option<&Text<'_>>, field: Field) {
        if let Some(text) = text {
            self.text(key, text, field);
        }
    }

    fn string(&mut self, text: &str, field: Field) {
        let bound: Bound = self.room.of(field);
        self.quoted(|out| text::cut(out, text, bound, |_, character, out| escaped(character, out)));
    }

    /// What `write` writes is graphic ASCII without `"` and `\`, or escaped.
    fn quoted(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.out.push(b'"');
        write(self.out);
        self.out.push(b'"');
    }
}

/// RFC 8259, 7. What hides is escaped too, so that the line can be shown.
fn escaped(character: char, out: &mut Vec<u8>) {
    match character {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        // All of these are below 65536.
        _ if text::is_hidden(character) => {
            out.extend_from_slice(b"\\u");
            for shift in [12, 8, 4, 0] {
                let digit = u32::from(character) >> shift & 15;
                out.extend(char::from_digit(digit, 16).map(|digit| digit as u8));
            }
        }
        _ => text::push_char(character, out),
    }
}

/// Methods and the `activity_id` of HTTP Activity.
const METHODS: [(&str, u8); 8] = [
    ("CONNECT", 1),
    ("DELETE", 2),
    ("GET", 3),
    ("HEAD", 4),
    ("OPTIONS", 5),
    ("POST", 6),
    ("PUT", 7),
    ("TRACE", 8),
];
/// `type_id` of a device.
const SERVER: u8 = 1;
const ROLES: usize = 8;
