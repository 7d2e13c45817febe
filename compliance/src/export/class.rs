//! What an event type means to others: its OCSF class and activity, and how grave it is.
//!
//! Classes and activities are those of OCSF 1.3.0. That release has no Application Error (6008, new
//! in 1.4.0), so a control that failed is a finding.

/// A class of OCSF 1.3.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    EventLog,
    DetectionFinding,
    Authentication,
    AuthorizeSession,
    EntityManagement,
    HttpActivity,
    ConfigStateChange,
    ApplicationLifecycle,
    ApiActivity,
    DatastoreActivity,
}

impl Class {
    /// `class_uid`. The category is its first digit.
    pub(super) const fn uid(self) -> u32 {
        match self {
            Self::EventLog => 1008,
            Self::DetectionFinding => 2004,
            Self::Authentication => 3002,
            Self::AuthorizeSession => 3003,
            Self::EntityManagement => 3004,
            Self::HttpActivity => 4002,
            Self::ConfigStateChange => 5019,
            Self::ApplicationLifecycle => 6002,
            Self::ApiActivity => 6003,
            Self::DatastoreActivity => 6005,
        }
    }
}

/// How grave, in five steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// It went as asked.
    Informational,
    /// It did not, for a reason of daily life: `failure`, `abandoned`.
    Low,
    /// It was not allowed: `denied`. Also an outcome that this version does not know.
    Medium,
    /// The gateway could not (`error`), or a pattern is suspect.
    High,
    /// Keys, the log, the database or a control are in doubt, whatever the outcome.
    Critical,
}

impl Severity {
    /// RFC 5424, 6.2.1: informational, notice, warning, error, critical.
    pub(super) const fn syslog(self) -> u8 {
        match self {
            Self::Informational => 6,
            Self::Low => 5,
            Self::Medium => 4,
            Self::High => 3,
            Self::Critical => 2,
        }
    }

    /// 0 to 10, of CEF (0-3 low, 4-6 medium, 7-8 high, 9-10 very high) and LEEF.
    pub(super) const fn of_ten(self) -> u8 {
        match self {
            Self::Informational => 1,
            Self::Low => 3,
            Self::Medium => 5,
            Self::High => 8,
            Self::Critical => 10,
        }
    }

    /// `severity_id` of OCSF.
    pub(super) const fn ocsf(self) -> u8 {
        match self {
            Self::Informational => 1,
            Self::Low => 2,
            Self::Medium => 3,
            Self::High => 4,
            Self::Critical => 5,
        }
    }
}

/// What an event type means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) class: Class,
    /// `activity_id` in its class. 0: the HTTP method, where the resource names one. 99: none of
    /// the class's; the event type is the activity's name.
    pub(super) activity: u8,
    /// At least so grave.
    least: Severity,
}

impl Meaning {
    /// What the type means. One that this version does not know is an API activity without a name
    /// of its own (6003, 99): that class has a place for each of the six fields.
    pub(super) fn of(event_type: &str) -> Self {
        known(event_type).unwrap_or(Self {
            class: Class::ApiActivity,
            activity: OTHER,
            least: Severity::Informational,
        })
    }

    /// How grave it is with this outcome.
    pub(super) fn severity(self, outcome: &str) -> Severity {
        let severity = match outcome {
            "success" => Severity::Informational,
            "failure" | "abandoned" => Severity::Low,
            "error" => Severity::High,
            _ => Severity::Medium,
        };
        severity.max(self.least)
    }
}

/// The types of this version and of the catalogue's plan, DSS 10.2.1.1 to .7 and 10.7.
fn known(event_type: &str) -> Option<Meaning> {
    let (class, activity) = match event_type {
        "pin.translate" | "pin.verify" => (Class::ApiActivity, OTHER),
        "mac.generate" | "payment.accept" => (Class::ApiActivity, 1), // create
        "mac.verify" => (Class::ApiActivity, OTHER),
        "payment.read" | "admin.read" | "data.view" => (Class::ApiActivity, 2), // read

        "queue.enqueue" => (Class::DatastoreActivity, 6), // create
        "queue.expire" | "queue.purge" => (Class::DatastoreActivity, 7), // delete
        "queue.claim" | "queue.deliver" | "queue.hold" | "queue.reverse" | "queue.release"
        | "queue.retry" | "queue.cancel" | "queue.settle" | "queue.withdraw" | "queue.pause"
        | "queue.resume" => (Class::DatastoreActivity, 2), // update

        "config.change" | "hsm.mode" | "breaker.force" | "schema.migrate" => {
            (Class::ConfigStateChange, 1) // log
        }
        "breaker.transition" => (Class::ApplicationLifecycle, OTHER),
        "link.reset" => (Class::ApplicationLifecycle, 5), // restart

        "hsm.login" | "tls.reject" | "authn.fail" => (Class::Authentication, 1), // logon
        "hsm.logout" => (Class::Authentication, 2),                              // logoff
        "authz.deny" => (Class::AuthorizeSession, OTHER),

        "key.import" => (Class::EntityManagement, 1), // create
        "key.change" | "client.change" | "role.change" | "cert.rotate" | "crl.update"
        | "block.applied" | "approval.request" | "approval.grant" | "approval.deny"
        | "approval.expire" => (Class::EntityManagement, 3), // update
        "key.destroy" => (Class::EntityManagement, 4), // delete
        "key.compromise" => (Class::EntityManagement, 9), // disable
        "key.activate" => (Class::EntityManagement, 10),
        "key.retire" => (Class::EntityManagement, 11), // deactivate
        "key.quarantine" => (Class::EntityManagement, 12), // suspend

        "limit.exceeded" | "http.reject" | "request.malformed" => (Class::HttpActivity, BY_METHOD),

        "pin.codebook_suspect"
        | "pin.sanity_burst"
        | "mac.guess_suspect"
        | "dukpt.replay"
        | "hsm.probe"
        | "hsm.not_approved"
        | "key.substitution"
        | "key.attr_drift"
        | "queue.rollback"
        | "state_rollback"
        | "dlp.pan_found"
        | "time.skew"
        | "control.fail" => {
            (Class::DetectionFinding, 1) // create
        }
        "queue.acknowledge" => (Class::DetectionFinding, 2), // update
        "control.recover" => (Class::DetectionFinding, 3),   // close

        "audit.retention_purge" => (Class::EventLog, 2), // delete
        "audit.export" => (Class::EventLog, 3),
        "audit.rotate" => (Class::EventLog, 5),
        "audit.start" => (Class::EventLog, 6),
        "audit.stop" => (Class::EventLog, 7),
        "audit.recovered" => (Class::EventLog, 8), // restart
        "audit.failure" | "audit.checkpoint" | "audit.read" | "audit.verify" => {
            (Class::EventLog, OTHER)
        }
        _ => return None,
    };
    let least = match event_type {
        "audit.failure" | "key.compromise" | "key.substitution" | "key.attr_drift"
        | "queue.rollback" | "state_rollback" | "dlp.pan_found" | "control.fail" => {
            Severity::Critical
        }
        "queue.acknowledge" | "control.recover" => Severity::Informational,
        "audit.recovered" | "key.quarantine" => Severity::High,
        _ if class == Class::DetectionFinding => Severity::High,
        _ => Severity::Informational,
    };
    Some(Meaning { class, activity, least })
}

/// `activity_id`: none of the class's.
pub(super) const OTHER: u8 = 99;
/// `activity_id` of an HTTP activity: told by its method.
pub(super) const BY_METHOD: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventType, Outcome};

    #[test]
    fn every_event_type_has_a_class_of_its_own_choice() {
        for event in EventType::ALL {
            assert!(known(event.as_str()).is_some(), "{event}: choose its class");
        }
    }

    #[test]
    fn an_unknown_event_type_is_an_api_activity() {
        let meaning = Meaning::of("tea.time");

        assert_eq!((meaning.class.uid(), meaning.activity), (6003, 99));
        assert_eq!(meaning.severity("success"), Severity::Informational);
        assert_eq!(meaning.severity("tepid"), Severity::Medium);
    }

    #[test]
    fn the_outcome_makes_the_severity_and_the_type_may_raise_it() {
        let of = |event: EventType| {
            let severity =
                |outcome: &Outcome| Meaning::of(event.as_str()).severity(outcome.as_str()).syslog();
            Outcome::ALL.iter().map(severity).collect::<Vec<_>>()
        };

        // success, failure, denied, error, abandoned
        assert_eq!(of(EventType::PinTranslate), [6, 5, 4, 3, 5]);
        assert_eq!(of(EventType::DukptReplay), [3, 3, 3, 3, 3]);
        assert_eq!(of(EventType::KeyCompromise), [2, 2, 2, 2, 2]);
    }
}
