//! The task of one sink: connect, write what is durable, and count a record as confirmed when the connection that
//! it was written to has stood for `confirm_s` since.
//!
//! Syslog has no answers (RFC 5425 says so in 4.4), so a record that the receiver's kernel took and its program
//! never read looks like one that arrived. That is why a break sends again all that is not confirmed, and why
//! `confirm_s` is longer than a receiver keeps records in memory. Repeats are the receiver's to drop, by event
//! id or hash. What stays open: a receiver that hangs for longer than `confirm_s` and then dies loses what lay in
//! its kernel's buffer. Such a loss is a gap in `seq` there, and the files here still have the records.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::connection::connect;
use super::sink::Sink;
use super::trail::{Batch, Position, Streams, Trail};
use crate::links::jitter;

/// The state of the task.
#[derive(Debug)]
pub(super) struct Shipper {
    sink: Arc<Sink>,
    /// Away while it reads on a thread that may block.
    trail: Option<Trail>,
    durable: watch::Receiver<u64>,
    /// Read and not written.
    pending: Option<Batch>,
    /// Written and not confirmed.
    in_flight: VecDeque<Sent>,
    saved_at: Instant,
    back_off: Duration,
}

/// Records that were written within a moment.
#[derive(Debug)]
struct Sent {
    since: Instant,
    written: Instant,
    first: Option<Timestamp>,
    end: Position,
}

/// Why a connection is no more.
enum End {
    Stopped,
    Broken(String),
}

type Reader = ReadHalf<TlsStream<TcpStream>>;
type Writer = WriteHalf<TlsStream<TcpStream>>;

impl Shipper {
    /// Goes on behind what the sink has confirmed.
    pub(super) fn new(sink: Arc<Sink>, streams: Streams, durable: watch::Receiver<u64>) -> Self {
        let at = sink.state().confirmed;
        let trail = Some(Trail::new(streams, sink.config.format, at));
        Self {
            sink,
            trail,
            durable,
            pending: None,
            in_flight: VecDeque::new(),
            saved_at: Instant::now(),
            back_off: REST_MIN,
        }
    }

    /// Until `stop`, then what is durable is written once more.
    pub(super) async fn ship(mut self, stop: CancellationToken) {
        loop {
            // Also without a connection, so that its age is known.
            self.fill().await;
            let connected = tokio::select! {
                () = stop.cancelled() => break,
                connected = connect(&self.sink.config) => connected,
            };
            let why = match connected {
                Ok(stream) => {
                    self.sink.connected();
                    let (mut reader, mut writer) = split(stream);
                    match self.serve(&mut reader, &mut writer, &stop).await {
                        End::Stopped => {
                            self.drain(reader, writer).await;
                            break;
                        }
                        End::Broken(why) => why,
                    }
                }
                Err(error) => error.to_string(),
            };
            self.sink.failed(&why);
            self.rewind();
            let rest = jitter(self.back_off, 0.3);
            self.back_off = (self.back_off * 2).min(REST_MAX);
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(rest) => {}
            }
        }
        self.confirm();
        self.save().await;
    }

    async fn serve(
        &mut self,
        reader: &mut Reader,
        writer: &mut Writer,
        stop: &CancellationToken,
    ) -> End {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut rested, mut is_open) = ([0; 1024], Instant::now(), true);
        loop {
            self.fill().await;
            if let Some(batch) = self.pending.take_if(|_| Instant::now() >= rested) {
                if stop.is_cancelled() {
                    self.pending = Some(batch);
                    return End::Stopped;
                }
                let limit = self.sink.config.write_max();
                if let Err(why) = write(reader, writer, &batch.bytes, limit).await {
                    self.pending = Some(batch);
                    return End::Broken(why);
                }
                // Many records a write cost less than many writes.
                rested = Instant::now() + if batch.is_full { Duration::ZERO } else { GATHER };
                self.keep_track(batch);
                self.settle().await;
                continue;
            }
            tokio::select! {
                // In this order: what is confirmed was asked after the connection was looked at.
                biased;
                () = stop.cancelled() => return End::Stopped,
                seen = reader.read(&mut heard) => if let Some(why) = broken(seen) {
                    return End::Broken(why);
                },
                _ = ticks.tick() => self.settle().await,
                () = tokio::time::sleep_until(rested), if self.pending.is_some() => {}
                changed = self.durable.changed(), if is_open && self.pending.is_none() => {
                    is_open = changed.is_ok();
                }
            }
        }
    }

    /// The end of a good connection: all that is durable, and a farewell. The place stays at what is confirmed.
    async fn drain(&mut self, mut reader: Reader, mut writer: Writer) {
        let limit = self.sink.config.write_max();
        let farewell = async {
            self.fill().await;
            while let Some(batch) = self.pending.take() {
                write(&mut reader, &mut writer, &batch.bytes, limit).await?;
                self.keep_track(batch);
                self.fill().await;
            }
            writer.shutdown().await.map_err(|error| error.to_string())
        };
        if let Ok(Err(why)) = timeout(DRAIN_MAX, farewell).await {
            self.sink.failed(&why);
        }
    }

    /// Reads the next records unless there are some.
    async fn fill(&mut self) {
        if self.pending.is_some() {
            return;
        }
        let durable = *self.durable.borrow_and_update();
        let Some(mut trail) = self.trail.take() else { return };
        let read = tokio::task::spawn_blocking(move || {
            let batch = trail.next(durable);
            (trail, batch)
        });
        // A panic in there ends the task, which begins anew.
        let Ok((trail, batch)) = read.await else { panic!("reading the audit log panicked") };
        self.trail = Some(trail);
        match batch {
            Ok(batch) => {
                batch.trouble.iter().for_each(|why| self.sink.lost(why));
                self.pending = Some(batch).filter(|batch| batch.records > 0);
            }
            Err(error) => {
                self.sink.lost(&format!("reading the audit log: {error}"));
                sleep(REST_AFTER_ERROR).await;
            }
        }
        self.show_oldest();
    }

    fn keep_track(&mut self, batch: Batch) {
        let Batch { records, first, end, .. } = batch;
        self.sink.sent(records);
        let now = Instant::now();
        match self.in_flight.back_mut() {
            Some(last) if now - last.since < MOMENT => (last.written, last.end) = (now, end),
            _ => self.in_flight.push_back(Sent { since: now, written: now, first, end }),
        }
        self.show_oldest();
    }

    /// What has been written for long enough is confirmed.
    fn confirm(&mut self) {
        let confirm = self.sink.config.confirm();
        while let Some(sent) = self.in_flight.pop_front_if(|sent| sent.written.elapsed() >= confirm)
        {
            self.back_off = REST_MIN;
            self.sink.confirmed(sent.end);
        }
        self.show_oldest();
    }

    /// The look that is due now and then.
    async fn settle(&mut self) {
        self.confirm();
        if self.saved_at.elapsed() >= SAVE_PERIOD {
            self.save().await;
        }
    }

    /// After a break: all that is not confirmed is to be sent again.
    fn rewind(&mut self) {
        self.in_flight.clear();
        self.pending = None;
        if let Some(trail) = &mut self.trail {
            trail.rewind(self.sink.state().confirmed);
        }
    }

    fn show_oldest(&self) {
        let written = self.in_flight.front().map(|sent| sent.first);
        let read = || self.pending.as_ref().map(|batch| batch.first);
        self.sink.oldest(written.or_else(read).flatten());
    }

    /// Puts the place on disk, when it has moved.
    async fn save(&mut self) {
        let state = self.sink.state();
        self.saved_at = Instant::now();
        if state.saved == state.confirmed {
            return;
        }
        let (cursor, at) = (self.sink.cursor.clone(), state.confirmed);
        let (saved, at) = tokio::task::spawn_blocking(move || (cursor.save(&at.place), at))
            .await
            .unwrap_or_else(|panic| (Err(io::Error::other(panic)), state.saved));
        match saved {
            Ok(()) => self.sink.saved(at),
            Err(error) => tracing::error!(
                sink = self.sink.config.name,
                error = &error as &dyn std::error::Error,
                "the place of an audit sink is not on disk; a restart sends more again"
            ),
        }
    }
}

/// Writes, with an ear to the other side. The limit is for each part of it: a slow line is no hanging receiver.
async fn write(
    reader: &mut Reader,
    writer: &mut Writer,
    bytes: &[u8],
    limit: Duration,
) -> Result<(), String> {
    let mut heard = [0; 1024];
    let mut written = pin!(async {
        for part in bytes.chunks(PART_BYTES) {
            timeout(limit, writer.write_all(part)).await??;
        }
        timeout(limit, writer.flush()).await?
    });
    loop {
        tokio::select! {
            biased;
            seen = reader.read(&mut heard) => if let Some(why) = broken(seen) {
                return Err(why);
            },
            written = &mut written => return written.map_err(|error: io::Error| {
                let hangs = error.kind() == io::ErrorKind::TimedOut;
                let hangs = hangs.then(|| format!("it accepts nothing for {limit:?}"));
                hangs.unwrap_or_else(|| format!("writing: {error}"))
            }),
        }
    }
}

/// What the other side says: nothing, unless it goes.
fn broken(seen: io::Result<usize>) -> Option<String> {
    match seen {
        Ok(0) => Some("it closed the connection".into()),
        Ok(_) => None,
        Err(error) => Some(format!("the connection broke: {error}")),
    }
}

/// The first rest after a failure; each further one doubles.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(30);
/// After a disk that cannot be read.
const REST_AFTER_ERROR: Duration = Duration::from_secs(1);
/// How long records gather between two writes: short against a lag of a minute.
const GATHER: Duration = Duration::from_millis(50);
/// What must be accepted within `write_ms_max`.
const PART_BYTES: usize = 16 * 1024;
/// Writes within it are confirmed together.
const MOMENT: Duration = Duration::from_millis(100);
/// How often confirmations are looked for.
const TICK: Duration = Duration::from_millis(200);
/// How often the place goes to the disk at most: less often than records are confirmed, for the disk is the
/// writer's.
const SAVE_PERIOD: Duration = Duration::from_secs(2);
/// The end of a good connection.
const DRAIN_MAX: Duration = Duration::from_secs(3);
