//! Events of a pattern of requests, beside the event of each request.

use compliance::{
    Actor, Event, EventType, Label, Origin, Outcome, PanLastFour, Resource, ResourceType, Service,
};
use hsm_adapter::vocabulary::Pan;

use super::Guard;

impl Guard {
    /// Records what this client's requests with this key suggest.
    pub(super) fn tell(&self, kind: EventType, client: &str, label: &str, pan: Option<&Pan>) {
        let (now, origin) = (jiff::Timestamp::now(), Origin::inside(self.audit.host()));
        let key = Resource::new(ResourceType::Key, Label::new(label));
        let actor = Actor::client(Label::new(client));
        let service = if kind == EventType::MacGuessSuspect { Service::Mac } else { Service::Pin };
        let mut event = Event::new(actor, kind, now, Outcome::Denied, origin, key).service(service);
        if let Some(last_four) = pan.and_then(|pan| PanLastFour::parse(&pan.last_four()).ok()) {
            event = event.pan_last4(last_four);
        }
        tracing::warn!(client, key = label, event = kind.as_str(), "a suspicious pattern");
        // The refusal itself is recorded before its answer leaves.
        if self.audit.note(event).is_err() {
            tracing::error!(event = kind.as_str(), "a suspicion is not on record");
        }
    }
}
