//! Writes a log of 1,000,000 records with signed checkpoints, verifies it, and tells as JSON how long that
//! took and how much memory it needed: `cargo run --release -p compliance --example million [plain|gzip] [records]`.

#[path = "../tests/support/signer.rs"]
#[expect(dead_code, reason = "one of its keys is enough here")]
#[expect(clippy::unwrap_used, reason = "made for tests")]
mod signer;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use compliance::*;
use flate2::{Compression, write::GzEncoder};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use signer::Signer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let is_sealed = arguments.next().as_deref() == Some("gzip");
    let records = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let signer = Signer::ecdsa("tollgate");
    let bytes = write(dir.path(), records, is_sealed, &signer)?;

    let mut report = None;
    let options = Options { keys: vec![signer.key()], ..Options::default() };
    let took = time(|| report = Some(verify(dir.path(), options)));

    let report = report.ok_or("no report")??;
    eprintln!("{report}");
    let told = serde_json::json!({
        "records": report.records,
        "record_bytes": bytes / report.records,
        "seconds": took.as_secs_f64(),
        "peak_kib": peak_kib()?,
        "intact": report.verdict == Verdict::Intact,
    });
    println!("{told}");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "measures real time, outside any runtime")]
fn time(work: impl FnOnce()) -> Duration {
    let start = std::time::Instant::now();
    work();
    start.elapsed()
}

/// The most memory that this process has held.
fn peak_kib() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.ok_or_else(|| io::Error::other("/proc/self/status without VmHWM"))
}

/// One boot; a checkpoint every 1,000 records, a segment every 64 MiB. Gives the bytes of all lines.
fn write(dir: &Path, records: u64, is_sealed: bool, signer: &Signer) -> io::Result<u64> {
    let boot = Uuid::now_v7();
    let stream = StreamId::new("tollgate", "gateway-1", boot).map_err(io::Error::other)?;
    let host = Host::new(Label::new("gateway-1"), boot);
    let mut chain = Chain::new(stream, None);
    let mut time: Timestamp = "2026-01-01T00:00:00Z".parse().map_err(io::Error::other)?;
    let (mut written, mut number) = (0, 0);
    while chain.head().seq < records {
        number += 1;
        let name = SegmentName { boot, number };
        let name = if is_sealed { name.sealed() } else { name.open() };
        let file = BufWriter::new(File::create(dir.join(name))?);
        let mut out: Box<dyn Write> = if is_sealed {
            Box::new(GzEncoder::new(file, Compression::fast()))
        } else {
            Box::new(file)
        };
        let (mut lines, mut size) = (Vec::new(), 0);
        while size < SEGMENT_BYTES && chain.head().seq < records {
            time += SignedDuration::from_micros(1_000);
            let seq = chain.head().seq + 1;
            let kind = match seq {
                _ if seq.is_multiple_of(1_000) || seq == records => EventType::AuditCheckpoint,
                _ if size == 0 && number > 1 => EventType::AuditRotate,
                _ => EventType::PinTranslate,
            };
            let mut event = event(kind, time, &host);
            if kind == EventType::AuditCheckpoint {
                event = event.checkpoint(signer.sign(Checkpoint {
                    origin: chain.head().stream.to_string(),
                    size: chain.head().seq,
                    root: chain.root(),
                    keys: vec![signer.key()],
                    interval_s: 5,
                }));
            }
            lines.clear();
            chain.append(event, &mut lines);
            out.write_all(&lines)?;
            size += lines.len() as u64;
        }
        out.flush()?;
        written += size;
    }
    Ok(written)
}

fn event(kind: EventType, time: Timestamp, host: &Host) -> Event {
    let issuer = Label::new("CN=Tollgate clients,O=Acquirer A");
    let serial = "41:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff";
    let actor = Actor::client(Label::new("acquirer-a"));
    let actor = match CertificateId::new(serial, issuer, SpkiSha256::new([7; 32])) {
        Ok(certificate) => actor.with_certificate(certificate),
        Err(_) => actor,
    };
    let peer = ([10, 1, 2, 3], 50_000).into();
    Event::new(
        actor,
        kind,
        time,
        Outcome::Success,
        Origin::remote(host, peer, Listener::Data),
        Resource::new(ResourceType::Key, Label::new("zpk.billing@1")),
    )
    .request_id(Label::new("01890a5d-ac96-774b-bcce-b302099a8057"))
    .service(Service::Pin)
    .protocol(Protocol::Https)
    .mode(Mode::InToken)
    .link(Label::new("hsm-1"))
}

const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
