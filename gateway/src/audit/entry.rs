//! What a handler says about the event of its request. What it does not say, the layer reads from
//! the answer.

use std::sync::{Arc, Mutex, MutexGuard};

use axum::{extract::FromRequestParts, http::request::Parts};
use compliance::{EventType, Label, Mode, Outcome, PanLastFour, Reason, Resource, ResourceType};
use uuid::Uuid;

use crate::wire::problem::{Problem, Slug};

/// The id that the answer's header, a problem's body and the audit record share. Ours alone: none
/// is taken from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(pub Uuid);

/// A handle on the event of the running request. An extractor; clones speak of the same event, and
/// the last word counts.
#[derive(Clone, Debug, Default)]
pub struct AuditEntry(Arc<Mutex<Draft>>);

/// What was said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) kind: Option<EventType>,
    pub(super) resource: Option<Resource>,
    pub(super) outcome: Option<Outcome>,
    pub(super) reason: Option<Reason>,
    pub(super) pan_last4: Option<PanLastFour>,
    pub(super) mode: Option<Mode>,
    pub(super) link: Option<Label>,
    pub(super) proposer: Option<Label>,
    pub(super) note: Option<Label>,
}

impl AuditEntry {
    /// What is done here. Say it first, so that refusals carry it too.
    pub fn event(&self, kind: EventType) -> &Self {
        self.lock().kind = Some(kind);
        self
    }

    /// On what it is done.
    pub fn resource(&self, kind: ResourceType, id: &str) -> &Self {
        self.lock().resource = Some(Resource::new(kind, Label::new(id)));
        self
    }

    /// How it ended, when the status does not tell: `{"verified": false}` is a failure with 200.
    pub fn outcome(&self, outcome: Outcome) -> &Self {
        self.lock().outcome = Some(outcome);
        self
    }

    /// Why it ended so, when the problem does not tell.
    pub fn reason(&self, reason: Reason) -> &Self {
        self.lock().reason = Some(reason);
        self
    }

    /// The last four digits of the card number.
    pub fn pan_last4(&self, pan_last4: PanLastFour) -> &Self {
        self.lock().pan_last4 = Some(pan_last4);
        self
    }

    /// Where the clear PIN was.
    pub fn mode(&self, mode: Mode) -> &Self {
        self.lock().mode = Some(mode);
        self
    }

    /// The link that did the work.
    pub fn link(&self, link: &str) -> &Self {
        self.lock().link = Some(Label::new(link));
        self
    }

    /// Who proposed what is decided on.
    pub fn proposer(&self, proposer: &str) -> &Self {
        self.lock().proposer = Some(Label::new(proposer));
        self
    }

    /// Why, in the words of the person who asks.
    pub fn note(&self, note: &str) -> &Self {
        self.lock().note = Some(Label::new(note));
        self
    }

    pub(super) fn take(&self) -> Draft {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Draft> {
        // Each setter writes one field, so a draft is whole even after a panic.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<S: Sync> FromRequestParts<S> for AuditEntry {
    type Rejection = Problem;

    /// Outside the audit layer there is no entry, and nothing may run unrecorded: 500.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Problem::new(Slug::Internal))
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Problem;

    /// As for [`AuditEntry`].
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().copied().ok_or_else(|| Problem::new(Slug::Internal))
    }
}
