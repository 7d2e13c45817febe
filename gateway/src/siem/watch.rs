//! Says how far each sink is behind: figures every second, an event when it is too far and when it is back, and
//! the stop of new work before the spool is full.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use compliance::{SegmentName, segments};
use jiff::Timestamp;
use metrics::{Gauge, gauge};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::sink::{Sink, State};
use super::trail::Streams;
use crate::audit::AuditLog;
use crate::config::WhenFull;
use crate::telemetry::metrics as figures;

/// The watch over every sink.
pub(super) struct Watch {
    log: AuditLog,
    watched: Vec<Watched>,
    streams: Streams,
    lag_max: Duration,
}

struct Watched {
    sink: Arc<Sink>,
    lag: Gauge,
    spool: Gauge,
    blocks: Gauge,
    is_behind: bool,
    is_full: bool,
}

/// Bytes of each segment that is there.
type Sizes = HashMap<SegmentName, u64>;

impl Watch {
    pub(super) fn new(
        log: AuditLog,
        sinks: Vec<Arc<Sink>>,
        streams: Streams,
        lag_max: Duration,
    ) -> Self {
        let watched = |sink: Arc<Sink>| {
            let name = || sink.config.name.clone();
            let lag = gauge!(figures::AUDIT_SINK_LAG, "sink" => name());
            let spool = gauge!(figures::AUDIT_SINK_SPOOL, "sink" => name());
            let blocks = gauge!(figures::AUDIT_SINK_BLOCKS, "sink" => name());
            Watched { sink, lag, spool, blocks, is_behind: false, is_full: false }
        };
        Self { log, watched: sinks.into_iter().map(watched).collect(), streams, lag_max }
    }

    /// Until `stop`. Without sinks there is nothing to do.
    pub(super) async fn keep(mut self, stop: CancellationToken) {
        if self.watched.is_empty() {
            return stop.cancelled().await;
        }
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let streams = self.streams.clone();
            let sizes = tokio::task::spawn_blocking(move || sizes(&streams)).await;
            match sizes.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                Ok(sizes) => self.look(&sizes).await,
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the audit files cannot be listed"
                ),
            }
        }
    }

    async fn look(&mut self, sizes: &Sizes) {
        let mut blocked = false;
        for watched in &mut self.watched {
            let state = watched.sink.state();
            let lag = lag(&state);
            let spool = spool(&state, &self.streams, sizes);
            watched.lag.set(lag.as_secs_f64());
            watched.spool.set(spool as f64);
            let share = spool as f64 / watched.sink.config.spool_bytes_max as f64;
            watched.tell(&self.log, lag, self.lag_max, share, state.trouble.as_deref()).await;
            let blocks = watched.is_full && watched.sink.config.when_full == WhenFull::Block;
            watched.blocks.set(f64::from(u8::from(blocks)));
            blocked |= blocks;
        }
        self.log.set_blocked(blocked);
    }
}

impl Watched {
    /// Each of the two is told when it begins and when it is over; what is over stays over for a while.
    async fn tell(
        &mut self,
        log: &AuditLog,
        lag: Duration,
        lag_max: Duration,
        share: f64,
        trouble: Option<&str>,
    ) {
        let control = format!("export.{}", self.sink.config.name);
        let told = format!("lag {} s, spool {:.0} %", lag.as_secs(), share * 100.0);
        let (behind, back) = (lag > lag_max || share > 0.5, lag < lag_max / 2 && share < 0.45);
        if behind && !self.is_behind {
            let why = trouble.map_or(told.clone(), |trouble| format!("{told}: {trouble}"));
            log.control(true, &control, None, &why).await;
        } else if back && self.is_behind {
            log.control(false, &control, None, &told).await;
        }
        self.is_behind = behind || (self.is_behind && !back);
        let (full, free) = (share >= 0.95, share < 0.9);
        let control = format!("{control}.full");
        if full && !self.is_full {
            let follows = match self.sink.config.when_full {
                WhenFull::Block => "new work is refused",
                WhenFull::AlarmOnly => "alarm only",
            };
            log.control(true, &control, None, &format!("{told}: {follows}")).await;
        } else if free && self.is_full {
            log.control(false, &control, None, &told).await;
        }
        self.is_full = full || (self.is_full && !free);
    }
}

/// The age of the oldest record that is not confirmed.
fn lag(state: &State) -> Duration {
    let age = state.oldest.map(|time| Timestamp::now().duration_since(time));
    age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default()
}

/// What is behind the sink's place, as large as it is on disk.
fn spool(state: &State, streams: &Streams, sizes: &Sizes) -> u64 {
    let at = streams.order(state.confirmed.segment);
    let needed = sizes.iter().filter(|(name, _)| streams.order(**name) >= at && at.is_some());
    let all: u64 = needed.map(|(_, bytes)| bytes).sum();
    // A sealed segment is smaller than what was read of it.
    let here = sizes.get(&state.confirmed.segment).copied().unwrap_or_default();
    all - state.confirmed.offset.min(here)
}

fn sizes(streams: &Streams) -> io::Result<Sizes> {
    let mut sizes = Sizes::new();
    for dir in streams.dirs() {
        for segment in segments(dir)? {
            // One that is gone meanwhile is not needed, or was sealed: the next look sees it.
            if let Ok(metadata) = std::fs::metadata(&segment.path) {
                sizes.insert(segment.name, metadata.len());
            }
        }
    }
    Ok(sizes)
}

const PERIOD: Duration = Duration::from_secs(1);
