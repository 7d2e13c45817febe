//! Connections that never sent a request, or sent what is none. The attacker chooses how many there
//! are, so at most a hundred a second are recorded one by one; the metric counts every one of them.

use std::{sync::Arc, time::Duration};

use compliance::{
    Actor, Event, EventType, Label, Listener, Origin, Outcome, Reason, Resource, ResourceType,
};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{layer::certificate_id, log::AuditLog};
use crate::edge::{OnRefused, Refusal, gcra::Gcra};

/// Records what a listener refuses: `Listener::bind(.., record_refusals(log))`.
pub fn record_refusals(log: AuditLog) -> OnRefused {
    let sample = Gcra::new(RECORDS_PER_S, Duration::from_secs(1), RECORDS_PER_S);
    Arc::new(move |refusal| {
        if sample.spend(Instant::now()).is_ok() && log.note(event(&log, &refusal)).is_err() {
            tracing::warn!(
                reason = refusal.reason,
                address = %refusal.address,
                "a refused connection is not on record"
            );
        }
    })
}

fn event(log: &AuditLog, refusal: &Refusal) -> Event {
    let listener = Listener::ALL.iter().copied().find(|l| l.as_str() == refusal.listener);
    let origin = match listener {
        Some(listener) => Origin::remote(log.host(), refusal.address, listener),
        None => Origin::inside(log.host()),
    };
    let actor = match &refusal.peer {
        Some((uri, facts)) => {
            let actor = Actor::client(Label::new(uri));
            match certificate_id(facts) {
                Some(certificate) => actor.with_certificate(certificate),
                None => actor,
            }
        }
        None => Actor::unknown(),
    };
    let (kind, reason) = classify(refusal.reason);
    // The record's reasons are few; the exact one stands beside the listener's name.
    let resource = Label::new(&format!("{}: {}", refusal.listener, refusal.reason));
    let resource = Resource::new(ResourceType::Listener, resource);
    Event::new(actor, kind, Timestamp::now(), Outcome::Denied, origin, resource).reason(reason)
}

fn classify(reason: &str) -> (EventType, Reason) {
    let reason = match reason {
        "address-blocked" | "address-connections" | "address-connect-rate" => {
            return (EventType::LimitExceeded, Reason::TooManyRequests);
        }
        "not-http" => return (EventType::HttpReject, Reason::MalformedRequest),
        "no-certificate" => Reason::CertificateMissing,
        "certificate-expired" => Reason::CertificateExpired,
        "certificate-revoked" => Reason::CertificateRevoked,
        "no-longer-accepted" => Reason::NotAllowed,
        _ if reason.starts_with("san-") => Reason::CertificateUnnamed,
        _ if reason.starts_with("certificate-") || reason.starts_with("crl-") => {
            Reason::CertificateUntrusted
        }
        "unknown-issuer" | "chain-too-long" | "key-not-pinned" => Reason::CertificateUntrusted,
        _ => Reason::Handshake,
    };
    (EventType::TlsReject, reason)
}

const RECORDS_PER_S: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuditConfig;

    #[tokio::test]
    async fn a_flood_of_refusals_is_sampled() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(
            &AuditConfig::at(dir.path().into()),
            "gateway-1",
            uuid::Uuid::now_v7(),
            None,
        )
        .unwrap();
        let refused = record_refusals(log.clone());

        for _ in 0..1_000 {
            let address = "192.0.2.1:4000".parse().unwrap();
            refused(Refusal { listener: "data", address, reason: "not-tls", peer: None });
        }
        log.close().await;

        let records = super::super::writer::tests::records(dir.path());
        let rejects: Vec<_> =
            records.iter().filter(|record| record["event"]["type"] == "tls.reject").collect();
        assert!((100..200).contains(&rejects.len()), "{}", rejects.len());
        assert_eq!(rejects[0]["reason"], "handshake");
        assert_eq!(rejects[0]["resource"]["id"], "data: not-tls");
        assert_eq!(rejects[0]["src"]["ip"], "192.0.2.1");
    }

    #[test]
    fn each_refusal_finds_its_reason() {
        for (reason, expected) in [
            ("san-count", Reason::CertificateUnnamed),
            ("certificate-revoked", Reason::CertificateRevoked),
            ("certificate-key", Reason::CertificateUntrusted),
            ("handshake-timeout", Reason::Handshake),
        ] {
            assert_eq!(classify(reason), (EventType::TlsReject, expected));
        }
        assert_eq!(classify("address-blocked").0, EventType::LimitExceeded);
        assert_eq!(classify("not-http").0, EventType::HttpReject);
    }
}
