//! The closed lists of the audit trail. What is not in a list cannot be written.
//!
//! Names are part of the export format: one may be added, none may change its meaning.

use std::fmt;

use serde::{Serialize, Serializer};

/// An enum whose variants are written under these names.
macro_rules! closed {
    ($(#[$about:meta])* $list:ident { $($variant:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $list { $(#[doc = concat!("Written `", $name, "`.")] $variant,)+ }

        impl $list {
            /// Every member, in the order of the list.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name that is written.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl fmt::Display for $list {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $list {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

closed! {
    /// What happened.
    EventType {
        // DSS 10.2.1.1: access to card data
        PinTranslate = "pin.translate",
        PinVerify = "pin.verify",
        MacGenerate = "mac.generate",
        MacVerify = "mac.verify",
        PaymentAccept = "payment.accept",
        PaymentRead = "payment.read",
        QueueDeliver = "queue.deliver",
        QueueHold = "queue.hold",
        QueueExpire = "queue.expire",
        QueueReverse = "queue.reverse",
        QueueRelease = "queue.release",
        QueueRetry = "queue.retry",
        QueueCancel = "queue.cancel",
        QueueSettle = "queue.settle",
        QueueWithdraw = "queue.withdraw",
        QueuePause = "queue.pause",
        QueueResume = "queue.resume",
        // the database is an old copy, and an operator has seen it
        QueueRollback = "queue.rollback",
        QueueAcknowledge = "queue.acknowledge",
        // DSS 10.2.1.2: administration
        AdminRead = "admin.read",
        ConfigChange = "config.change",
        HsmLogin = "hsm.login",
        HsmMode = "hsm.mode",
        HsmProbe = "hsm.probe",
        BreakerForce = "breaker.force",
        BreakerTransition = "breaker.transition",
        LinkReset = "link.reset",
        // DSS 10.2.1.7, PCI PIN 6 and 32: the life of a key; `key.change` is a step of its approval
        KeyImport = "key.import",
        KeyActivate = "key.activate",
        KeyRetire = "key.retire",
        KeyCompromise = "key.compromise",
        KeyChange = "key.change",
        KeyQuarantine = "key.quarantine",
        KeySubstitution = "key.substitution",
        // DSS 10.2.1.4: invalid access
        TlsReject = "tls.reject",
        AuthzDeny = "authz.deny",
        LimitExceeded = "limit.exceeded",
        HttpReject = "http.reject",
        RequestMalformed = "request.malformed",
        // what a pattern of requests suggests
        PinCodebookSuspect = "pin.codebook_suspect",
        PinSanityBurst = "pin.sanity_burst",
        MacGuessSuspect = "mac.guess_suspect",
        DukptReplay = "dukpt.replay",
        // a card number in a text: it was taken out
        DlpPanFound = "dlp.pan_found",
        // DSS 10.2.1.3: access to the log
        AuditRead = "audit.read",
        AuditExport = "audit.export",
        // DSS 10.2.1.5: credentials
        CertRotate = "cert.rotate",
        // DSS 10.2.1.6: the life of the log
        AuditStart = "audit.start",
        AuditStop = "audit.stop",
        AuditRotate = "audit.rotate",
        AuditCheckpoint = "audit.checkpoint",
        AuditFailure = "audit.failure",
        AuditRecovered = "audit.recovered",
        AuditRetentionPurge = "audit.retention_purge",
        // DSS 10.7: a control that failed, and works again
        ControlFail = "control.fail",
        ControlRecover = "control.recover",
    }
}

closed! {
    /// How it ended. `abandoned`: the client hung up before its answer.
    Outcome {
        Success = "success",
        Failure = "failure",
        Denied = "denied",
        Error = "error",
        Abandoned = "abandoned",
    }
}

closed! {
    /// Why it ended so.
    Reason {
        // the problems of the data API
        MalformedRequest = "malformed-request",
        NotAllowed = "not-allowed",
        UnknownPayment = "unknown-payment",
        RequestInProgress = "request-in-progress",
        PinBlockRefused = "pin-block-refused",
        MacRefused = "mac-refused",
        IdempotencyKeyReused = "idempotency-key-reused",
        TooManyRequests = "too-many-requests",
        HsmUnavailable = "hsm-unavailable",
        BackendUnavailable = "backend-unavailable",
        QueueFull = "queue-full",
        AuditUnavailable = "audit-unavailable",
        Overloaded = "overloaded",
        // operations: `refused` is all that a PIN failure tells
        Refused = "refused",
        PinWrong = "pin-wrong",
        Blocked = "blocked",
        Quarantined = "quarantined",
        LimiterUnavailable = "limiter-unavailable",
        MacWrong = "mac-wrong",
        ClientGone = "client-gone",
        // TLS
        Handshake = "handshake",
        CertificateMissing = "certificate-missing",
        CertificateUntrusted = "certificate-untrusted",
        CertificateExpired = "certificate-expired",
        CertificateRevoked = "certificate-revoked",
        CertificateUnnamed = "certificate-unnamed",
        UnknownClient = "unknown-client",
        // HTTP
        UnknownRoute = "unknown-route",
        MethodNotAllowed = "method-not-allowed",
        UnsupportedMediaType = "unsupported-media-type",
        // queue
        BackendRefused = "backend-refused",
        OutcomeUnknown = "outcome-unknown",
        AttemptsSpent = "attempts-spent",
        Expired = "expired",
        NotInThisState = "not-in-this-state",
        Tampered = "tampered",
        RolledBack = "rolled-back",
        // the steps of a key's change or of an operator's decision; the others are `refused` and `expired`
        Proposed = "proposed",
        Approved = "approved",
        Withdrawn = "withdrawn",
    }
}

closed! {
    /// What kind of party acted. `unknown`: it never proved who it is.
    ActorType {
        Client = "client",
        Admin = "admin",
        System = "system",
        Unknown = "unknown",
    }
}

closed! {
    /// A role on the admin listener.
    Role {
        Operator = "operator",
        Auditor = "auditor",
        Monitor = "monitor",
        KeyOfficer = "key-officer",
    }
}

closed! {
    /// The socket that a request came through.
    Listener {
        Data = "data",
        Iso8583 = "iso8583",
        Admin = "admin",
    }
}

closed! {
    /// The affected kind of thing.
    ResourceType {
        Key = "key",
        Client = "client",
        Payment = "payment",
        Queue = "queue",
        Route = "route",
        Listener = "listener",
        HsmLink = "hsm-link",
        Breaker = "breaker",
        Configuration = "configuration",
        AuditStream = "audit-stream",
        AuditSegment = "audit-segment",
        AuditSink = "audit-sink",
        Certificate = "certificate",
        Event = "event",
    }
}

closed! {
    /// The part of the gateway that was asked.
    Service {
        Pin = "pin",
        Mac = "mac",
        Payment = "payment",
        Queue = "queue",
        Admin = "admin",
        Audit = "audit",
        Keys = "keys",
    }
}

closed! {
    /// How the request was spoken. Always inside TLS.
    Protocol {
        Https = "https",
        Iso8583 = "iso8583",
    }
}

closed! {
    /// How a PIN is translated.
    Mode {
        InToken = "in_token",
        Vendor = "vendor",
        InWorker = "in_worker",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_written_in_its_own_words() {
        let names: Vec<_> = EventType::ALL.iter().map(|event| event.as_str()).collect();

        let expected = "pin.translate pin.verify mac.generate mac.verify payment.accept \
            payment.read queue.deliver queue.hold queue.expire queue.reverse \
            queue.release queue.retry queue.cancel queue.settle queue.withdraw queue.pause \
            queue.resume queue.rollback queue.acknowledge \
            admin.read config.change hsm.login hsm.mode hsm.probe breaker.force breaker.transition \
            link.reset key.import key.activate key.retire key.compromise \
            key.change key.quarantine key.substitution tls.reject authz.deny limit.exceeded \
            http.reject request.malformed pin.codebook_suspect pin.sanity_burst mac.guess_suspect \
            dukpt.replay dlp.pan_found audit.read audit.export cert.rotate audit.start audit.stop \
            audit.rotate audit.checkpoint audit.failure audit.recovered audit.retention_purge \
            control.fail control.recover";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn every_problem_of_the_data_api_is_a_reason() {
        let slugs = "malformed-request not-allowed unknown-payment request-in-progress \
            pin-block-refused mac-refused idempotency-key-reused too-many-requests hsm-unavailable \
            backend-unavailable queue-full audit-unavailable overloaded";

        for slug in slugs.split(' ') {
            assert!(Reason::ALL.iter().any(|reason| reason.as_str() == slug), "{slug}");
        }
    }

    #[test]
    fn no_name_stands_twice_and_none_needs_escaping() {
        fn check<T: Copy>(list: &[T], name: fn(T) -> &'static str) {
            let mut names: Vec<_> = list.iter().map(|&one| name(one)).collect();
            let fits = |byte: u8| byte.is_ascii_lowercase() || b"0123456789.-_".contains(&byte);
            assert!(
                names.iter().all(|name| !name.is_empty() && name.bytes().all(fits)),
                "{names:?}"
            );
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{names:?}");
        }

        check(EventType::ALL, EventType::as_str);
        check(Outcome::ALL, Outcome::as_str);
        check(Reason::ALL, Reason::as_str);
        check(ActorType::ALL, ActorType::as_str);
        check(Role::ALL, Role::as_str);
        check(Listener::ALL, Listener::as_str);
        check(ResourceType::ALL, ResourceType::as_str);
        check(Service::ALL, Service::as_str);
        check(Protocol::ALL, Protocol::as_str);
        check(Mode::ALL, Mode::as_str);
    }
}
