//! Copies of each audit record to the systems that watch: syslog over mutual TLS (RFC 5425), at least once.
//!
//! The spool of every sink is the audit log itself: a sink has a place in it and reads behind the writer, so
//! nothing is written twice and nothing is sent that is not durable. One task a sink, with a connection and
//! limits of its own: a receiver that hangs costs no other one and no request. Records come again after
//! each break, in order up to these repeats; `ship` says what counts as confirmed.
//!
//! A sink that is new begins with the first record of this start. What was before is for `tollgate audit export`.

mod watch; // who has fallen behind, and what follows
mod sink; // one sink as others see it
mod ship; // its task
mod connection; // mutual TLS, limits
mod trail; // the records behind the writer
mod cursor; // its place on disk

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use compliance::{EventType, Label, Outcome, Resource, ResourceType, SegmentName};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::cursor::{CursorFile, Found};
use self::ship::Shipper;
use self::sink::Sink;
use self::trail::{Place, Streams};
use self::watch::Watch;
use crate::audit::AuditLog;
use crate::config::{AuditConfig, SinkConfig, WhenFull};

pub use self::connection::{ConnectError, try_out};

/// Every sink of this process.
#[derive(Debug)]
pub struct Sinks {
    log: AuditLog,
    sinks: Vec<Arc<Sink>>,
    streams: Streams,
    lag_max: Duration,
}

/// What sinks still need of the audit files. Clones see the same.
#[derive(Debug, Clone)]
pub struct Needed {
    sinks: Vec<Arc<Sink>>,
    streams: Streams,
}

impl Sinks {
    /// Finds the place of each sink, and makes one for those that are new. Blocks on the disk.
    ///
    /// # Errors
    /// When a place cannot be read or written, or the audit files cannot be listed.
    pub fn open(config: &AuditConfig, log: AuditLog) -> io::Result<Self> {
        let dirs: Arc<[PathBuf]> = Arc::new([config.dir.clone()]);
        let running = log.stream().clone();
        let mut found = Vec::new();
        for sink in &config.sink {
            let cursor = CursorFile::new(&config.dir, &sink.name);
            found.push((sink, cursor.load()?, cursor));
        }
        // A damaged place may stand for any record: then all that is there is sent.
        let wanted = found.iter().map(|(_, found, _)| match found {
            Found::Nothing => running.boot(),
            Found::Place(place) => place.stream.boot(),
            Found::Damaged => uuid::Uuid::nil(),
        });
        let wanted: Vec<_> = wanted.collect();
        let streams = Streams::find(dirs, running.boot(), &wanted);
        let mut sinks = Vec::new();
        for (sink, found, cursor) in found {
            let (place, is_new) = match found {
                Found::Place(place) => (place, false),
                Found::Nothing => (Place { stream: running.clone(), seq: 0 }, true),
                Found::Damaged => (nowhere(&running), false),
            };
            let (at, is_known) = streams.locate(place)?;
            if is_new {
                // From here on also after a crash before the first record is confirmed.
                cursor.save(&at.place)?;
            }
            let this = Sink::new(sink.clone(), cursor, at);
            if !is_known {
                this.lost(
                    "its place is in no stream that is there: it begins with the oldest record",
                );
            }
            sinks.push(Arc::new(this));
        }
        Ok(Self { log, sinks, streams, lag_max: LAG_MAX })
    }

    /// What is still needed.
    #[must_use]
    pub fn needed(&self) -> Needed {
        Needed { sinks: self.sinks.clone(), streams: self.streams.clone() }
    }

    /// Sends and watches until `stop`; then writes what is durable, within a few seconds.
    pub async fn keep(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for sink in &self.sinks {
            tell_choice(&self.log, &sink.config).await;
            let durable = self.log.durable();
            let (sink, streams) = (Arc::clone(sink), self.streams.clone());
            tasks.spawn(ship(sink, streams, durable, stop.clone()));
        }
        let watch = Watch::new(self.log, self.sinks, self.streams, self.lag_max);
        watch.keep(stop).await;
        while tasks.join_next().await.is_some() {}
    }
}

impl Needed {
    /// The oldest segment that some sink may still read; all before it, in order of the streams, may go. `None`
    /// when there is no sink.
    #[must_use]
    pub fn from(&self) -> Option<SegmentName> {
        let first = |sink: &Arc<Sink>| sink.state().saved.segment;
        self.sinks.iter().map(first).min_by_key(|name| self.streams.order(*name))
    }

    /// Whether some sink may still read this segment. Streams before the oldest place are never read.
    #[must_use]
    pub fn is_needed(&self, segment: SegmentName) -> bool {
        let (Some(at), Some(from)) = (self.streams.order(segment), self.from()) else {
            return false;
        };
        self.streams.order(from).is_none_or(|from| from <= at)
    }
}

/// A task that panics is a bug of ours: it begins anew at what is confirmed, and the lag tells of it.
async fn ship(
    sink: Arc<Sink>,
    streams: Streams,
    durable: tokio::sync::watch::Receiver<u64>,
    stop: CancellationToken,
) {
    loop {
        let shipper = Shipper::new(Arc::clone(&sink), streams.clone(), durable.clone());
        if tokio::spawn(shipper.ship(stop.clone())).await.is_ok() {
            return;
        }
        sink.failed("its task panicked");
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(REST_AFTER_PANIC) => {}
        }
    }
}

/// That a full spool stops nothing is a choice that each start records.
async fn tell_choice(log: &AuditLog, sink: &SinkConfig) {
    if sink.when_full == WhenFull::Block {
        return;
    }
    let name = format!("audit.sink.{}", sink.name);
    let on = Resource::new(ResourceType::Configuration, Label::new(&name));
    let event = log.own_event(EventType::ConfigChange, Outcome::Success, on);
    if log.append(event.note(Label::new("when_full = alarm_only"))).await.is_err() {
        tracing::error!(sink = sink.name, "when_full = alarm_only is not in the audit log");
    }
}

/// A place in no stream: the oldest record that is there comes next.
fn nowhere(running: &compliance::StreamId) -> Place {
    let text = format!("{}/none/{}", running.deployment(), uuid::Uuid::nil());
    let stream = text.parse().unwrap_or_else(|_| running.clone());
    Place { stream, seq: 0 }
}

/// More is an alarm.
const LAG_MAX: Duration = Duration::from_secs(15 * 60);
const REST_AFTER_PANIC: Duration = Duration::from_secs(1);
