//! Logs of random shape: boots, segments, keys that change, times without the HSM, purges.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use compliance::*;
use flate2::{Compression, write::GzEncoder};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::forge::seq;
use crate::signer::Signer;

/// Seeded; SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From `start` to `end`, both among them.
    pub fn between(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end - start + 1)
    }

    pub fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    pub fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(u128::from(self.next()) << 64 | u128::from(self.next()))
    }
}

#[derive(Clone)]
pub struct Segment {
    pub boot: Uuid,
    pub number: u32,
    pub is_sealed: bool,
    /// Without line feeds.
    pub lines: Vec<Vec<u8>>,
    /// What stands behind the last line.
    pub rest: Vec<u8>,
}

#[derive(Clone)]
pub struct Log {
    /// In the order in which they were written.
    pub segments: Vec<Segment>,
    pub keys: Vec<VerifierKey>,
    /// Every note that a key has signed.
    pub notes: Vec<SignedNote>,
    /// Segments that were purged.
    pub purged: Vec<SegmentName>,
}

impl Log {
    pub fn boots(&self) -> Vec<Uuid> {
        let mut boots: Vec<Uuid> = self.segments.iter().map(|segment| segment.boot).collect();
        boots.dedup();
        boots
    }

    pub fn write(&self, dir: &Path) {
        for segment in &self.segments {
            let name = SegmentName { boot: segment.boot, number: segment.number };
            let mut bytes: Vec<u8> =
                segment.lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
            bytes.extend(&segment.rest);
            if segment.is_sealed {
                let file = File::create(dir.join(name.sealed())).unwrap();
                let mut encoder = GzEncoder::new(file, Compression::fast());
                encoder.write_all(&bytes).unwrap();
                encoder.finish().unwrap();
            } else {
                fs::write(dir.join(name.open()), bytes).unwrap();
            }
        }
    }

    /// The first key vouches for all, as long as the note that both have signed is here.
    pub fn trusted(&self) -> &[VerifierKey] {
        if self.purged.is_empty() { &self.keys[..1] } else { &self.keys }
    }

    /// The last note that was signed: what an auditor has kept.
    pub fn anchors(&self) -> Vec<SignedNote> {
        self.notes.last().cloned().into_iter().collect()
    }
}

struct Writer<'r> {
    random: &'r mut Random,
    signers: Vec<Signer>,
    /// The one that signs; before it the one that signs too.
    current: usize,
    is_overlap: bool,
    time: Timestamp,
    log: Log,
    is_hsm_away: bool,
}

/// A log. `is_fresh`: it may end in a boot without a signature so far.
pub fn log(random: &mut Random, is_fresh: bool) -> Log {
    let make = |random: &mut Random| {
        if random.one_in(2) { Signer::ed25519("tollgate") } else { Signer::ecdsa("tollgate") }
    };
    let signers: Vec<Signer> = (0..random.between(1, 3)).map(|_| make(random)).collect();
    let keys = signers.iter().map(Signer::key).collect();
    let log = Log { segments: Vec::new(), keys, notes: Vec::new(), purged: Vec::new() };
    let time = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut writer =
        Writer { random, signers, current: 0, is_overlap: false, time, log, is_hsm_away: false };
    let boots = writer.random.between(1, 4);
    let mut previous = None;
    for boot in 0..boots {
        previous = Some(writer.boot(previous, boot + 1 == boots));
    }
    if is_fresh && writer.random.one_in(3) {
        writer.short_boot(previous);
    }
    // Every key has signed together with the one before it.
    let used = writer.current + 1;
    writer.log.keys.truncate(used);
    writer.log
}

impl Writer<'_> {
    fn boot(&mut self, previous: Option<Head>, is_last: bool) -> Head {
        let boot = self.random.uuid();
        let stream = StreamId::new("tollgate", "gateway-1", boot).unwrap();
        let mut chain = Chain::new(stream, previous);
        self.append(&mut chain, EventType::AuditStart, boot, 1);
        let segments = self.random.between(1, 4) as u32;
        for number in 1..=segments {
            if number > 1 {
                self.append(&mut chain, EventType::AuditRotate, boot, number);
            }
            let mut asked: Option<SignedNote> = None;
            for _ in 0..self.random.between(2, 30) {
                match self.random.below(6) {
                    0 => asked = Some(self.note(&chain)),
                    1 if asked.is_some() => self.checkpoint(&mut chain, boot, number, asked.take()),
                    _ => self.append(&mut chain, EventType::PinTranslate, boot, number),
                }
            }
            if self.random.one_in(3) {
                self.is_hsm_away = !self.is_hsm_away;
            }
        }
        if is_last {
            self.is_hsm_away = false;
            self.purge(&mut chain, boot, segments);
            let note = self.note(&chain);
            self.checkpoint(&mut chain, boot, segments, Some(note));
        } else if self.random.one_in(3) {
            // A crash within a record.
            let last = self.log.segments.last_mut().unwrap();
            let whole = last.lines.last().unwrap().clone();
            last.rest = whole[..self.random.below(whole.len())].to_vec();
        }
        let sealed = self.log.segments.len() - usize::from(is_last || self.random.one_in(2));
        for segment in &mut self.log.segments[..sealed] {
            segment.is_sealed = segment.rest.is_empty();
        }
        self.time += SignedDuration::from_secs(self.random.between(1, 100_000) as i64);
        chain.head().clone()
    }

    fn short_boot(&mut self, previous: Option<Head>) {
        let boot = self.random.uuid();
        let stream = StreamId::new("tollgate", "gateway-1", boot).unwrap();
        let mut chain = Chain::new(stream, previous);
        for _ in 0..self.random.between(1, 4) {
            self.append(&mut chain, EventType::AuditStart, boot, 1);
        }
    }

    /// Takes the oldest segments away, and says so.
    fn purge(&mut self, chain: &mut Chain, boot: Uuid, number: u32) {
        let older = self.log.segments.iter().filter(|segment| segment.boot != boot).count();
        if older == 0 || !self.random.one_in(3) {
            return;
        }
        let count = self.random.between(1, older);
        for segment in self.log.segments.drain(..count).collect::<Vec<_>>() {
            let name = SegmentName { boot: segment.boot, number: segment.number };
            self.log.purged.push(name);
            let kind = EventType::AuditRetentionPurge;
            let event = self.event(kind, boot, Label::new(&name.to_string()));
            let seqs = [segment.lines.first(), segment.lines.last()].map(|line| seq(line.unwrap()));
            let event = event.note(Label::new(&format!("{}-{}", seqs[0], seqs[1])));
            self.put(chain, event, boot, number);
        }
    }

    fn append(&mut self, chain: &mut Chain, kind: EventType, boot: Uuid, number: u32) {
        let id = Label::new("zpk.billing@1");
        let event = self.event(kind, boot, id);
        self.put(chain, event, boot, number);
    }

    fn event(&mut self, kind: EventType, boot: Uuid, id: Label) -> Event {
        self.time += SignedDuration::from_micros(self.random.between(0, 2_000_000) as i64);
        let host = Host::new(Label::new("gateway-1"), boot);
        Event::new(
            Actor::client(Label::new("acquirer-a")),
            kind,
            self.time,
            Outcome::Success,
            Origin::remote(&host, "127.0.0.1:50000".parse().unwrap(), Listener::Data),
            Resource::new(ResourceType::Key, id),
        )
        .note(Label::new("say \"why\" \\ here"))
    }

    fn note(&mut self, chain: &Chain) -> SignedNote {
        let is_changing = !self.is_hsm_away
            && !self.is_overlap
            && self.current + 1 < self.signers.len()
            && self.random.one_in(4);
        if is_changing {
            self.current += 1;
            self.is_overlap = true;
        }
        let from = self.current - usize::from(self.is_overlap);
        let keys = self.signers[from..=self.current].iter().map(Signer::key).collect();
        let head = chain.head();
        let checkpoint = Checkpoint {
            origin: head.stream.to_string(),
            size: head.seq,
            root: chain.root(),
            keys,
            interval_s: 5,
        };
        if self.is_hsm_away {
            return SignedNote::unsigned(checkpoint);
        }
        self.signers[from..=self.current]
            .iter()
            .fold(SignedNote::unsigned(checkpoint), |note, signer| signer.sign_too(note))
    }

    fn checkpoint(&mut self, chain: &mut Chain, boot: Uuid, number: u32, note: Option<SignedNote>) {
        let note = note.unwrap();
        if note.is_signed() {
            self.is_overlap &= note.checkpoint().keys.len() < 2;
            self.log.notes.push(note.clone());
        }
        let event = self.event(EventType::AuditCheckpoint, boot, Label::new("stream"));
        self.put(chain, event.checkpoint(note), boot, number);
    }

    fn put(&mut self, chain: &mut Chain, event: Event, boot: Uuid, number: u32) {
        let mut line = Vec::new();
        chain.append(event, &mut line);
        line.pop();
        let last = self.log.segments.last_mut();
        match last.filter(|last| last.boot == boot && last.number == number) {
            Some(last) => last.lines.push(line),
            None => self.log.segments.push(Segment {
                boot,
                number,
                is_sealed: false,
                lines: vec![line],
                rest: Vec::new(),
            }),
        }
    }
}
