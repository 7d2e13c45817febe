//! The audit event: who, what, when, outcome, origin, on what (PCI DSS 10.2.2).
//!
//! An event cannot be made without these six, and cannot hold what must never reach a disk: its
//! fields are closed lists, numbers, fixed forms, and [`Label`]s, which are short, printable and
//! searched for card numbers. There is no field for free text, for bytes, or for a PIN.
//!
//! ```
//! use compliance::*;
//!
//! let host = Host::new(Label::new("gateway-1"), uuid::Uuid::now_v7());
//! let event = Event::new(
//!     Actor::client(Label::new("acquirer-a")),
//!     EventType::PinTranslate,
//!     jiff::Timestamp::now(),
//!     Outcome::Success,
//!     Origin::remote(&host, "127.0.0.1:50000".parse().unwrap(), Listener::Data),
//!     Resource::new(ResourceType::Key, Label::new("zpk.billing@1")),
//! )
//! .service(Service::Pin)
//! .protocol(Protocol::Https)
//! .pan_last4(PanLastFour::parse("1111").unwrap());
//!
//! let stream = StreamId::new("tollgate", "gateway-1", uuid::Uuid::now_v7()).unwrap();
//! let (mut chain, mut lines) = (Chain::new(stream, None), Vec::new());
//! chain.append(event, &mut lines);
//! assert_eq!(lines.last(), Some(&b'\n'));
//! ```
//!
//! A card number is no last four, and text is no label:
//!
//! ```compile_fail,E0308
//! # use compliance::*;
//! fn keep(event: Event, pan: &str) -> Event {
//!     event.pan_last4(pan)
//! }
//! ```
//!
//! ```compile_fail,E0308
//! # use compliance::*;
//! fn keep(event: Event, pin: &str) -> Event {
//!     event.request_id(pin)
//! }
//! ```
//!
//! Bytes have no way in, neither as they are nor as a label:
//!
//! ```compile_fail,E0308
//! # use compliance::*;
//! fn keep(pin_block: &[u8]) -> Resource {
//!     Resource::new(ResourceType::Key, pin_block)
//! }
//! ```
//!
//! ```compile_fail,E0308
//! # use compliance::*;
//! fn keep(event: Event, pin_block: [u8; 8]) -> Event {
//!     event.link(Label::new(&pin_block))
//! }
//! ```
//!
//! And none of the six can be left out:
//!
//! ```compile_fail,E0061
//! # use compliance::*;
//! fn nobody(origin: Origin, resource: Resource) -> Event {
//!     let now = jiff::Timestamp::now();
//!     Event::new(EventType::MacVerify, now, Outcome::Success, origin, resource)
//! }
//! ```
#![forbid(unsafe_code)]

mod event; // the six fields, and what may stand beside them
mod parties; // who, from where, on what
mod state; // what a process runs, and how old its database is
mod catalogue; // the closed lists, with the names that are written
mod label; // short printable text from outside, searched for card numbers
mod masked_pan; // the last four digits, and nothing else
mod chain; // a record's place: number, hash, stream
mod merkle; // the tree over the hashes
mod note; // checkpoints: size and root, signed
mod segments; // the files
mod canonical; // the one spelling of a record
mod sealing; // a complete segment: compressed, with an index
pub mod search; // records by what they say
pub mod export; // a stored record as syslog, CEF, LEEF and OCSF
mod export_set; // a range of a log, that verifies by itself
mod verify; // whether a log is as it was written
mod evidence; // files for an assessor, under one signature
mod controls; // which requirement is met by what, and shown by what

pub use canonical::{Members, NotCanonical};
pub use catalogue::{
    ActorType, EventType, Listener, Mode, Outcome, Protocol, Reason, ResourceType, Role, Service,
};
pub use chain::{Chain, Hash, Head, NotAStream, StreamId};
pub use controls::CONTROLS;
pub use event::{Event, HttpStatus, RECORD_BYTES_MAX};
pub use evidence::{
    MANIFEST, Manifest, PackFile, PackReport, pack_at, pack_checkpoint, verify_pack,
};
pub use export_set::{ExportError, Exported, Summary, write_set};
pub use label::Label;
pub use masked_pan::{NotFourDigits, PanLastFour};
pub use merkle::{Frontier, is_included};
pub use note::{Checkpoint, NotANote, SignatureType, Signed, SignedNote, VerifierKey};
pub use parties::{Actor, CertificateId, Host, NotASerial, Origin, Resource, SpkiSha256};
pub use sealing::{Index, move_to, purge, seal};
pub use segments::{ARCHIVE, Segment, SegmentName, read, segments};
pub use state::{Digests, QueueState};
pub use verify::{
    Anchored, Earlier, Finding, KeyReport, NotAnchors, Options, Report, StreamReport, Verdict,
    VerifyError,
    proof::{ProveError, prove},
    read_anchors, verify,
};

#[cfg(test)]
extern crate self as compliance;
#[cfg(test)]
#[path = "../tests/support/signer.rs"]
mod testing;
