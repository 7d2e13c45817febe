//! The promises of `siem`, against a receiver of our own that can be told to misbehave.

mod receiver;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use compliance::export::Format;
use compliance::{EventType, Label, Outcome, Resource, ResourceType, read, segments};
use pki::{Authority, Leaf};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::receiver::{Heard, Manner, Receiver};
use super::cursor::{CursorFile, Found};
use super::sink::Sink;
use super::{Needed, Sinks, try_out};
use crate::audit::AuditLog;
use crate::config::{AuditConfig, SinkConfig, WhenFull};

/// A log, certificates, and a receiver that is not there yet.
struct World {
    dir: tempfile::TempDir,
    config: AuditConfig,
    heard: Heard,
}

/// One run of log and sinks.
struct Running {
    log: AuditLog,
    sinks: Vec<Arc<Sink>>,
    needed: Needed,
    stop: CancellationToken,
    kept: JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = Authority::create(&dir.path().join("pki"), "Test CA").unwrap();
        let server = Leaf::server(["localhost"], ["127.0.0.1".parse().unwrap()]);
        authority.issue("siem", &server).unwrap();
        authority.issue("tollgate", &Leaf::client("spiffe://test/tollgate")).unwrap();
        let config = AuditConfig::at(dir.path().join("audit"));
        Self { dir, config, heard: Heard::default() }
    }

    fn pki(&self) -> std::path::PathBuf {
        self.dir.path().join("pki")
    }

    /// A sink at this address that confirms after a second.
    fn sink(&self, name: &str, address: SocketAddr) -> SinkConfig {
        let sink = SinkConfig::at(name, &address.to_string(), &self.pki());
        SinkConfig { confirm_s: 1, write_ms_max: 500, connect_ms_max: 500, ..sink }
    }

    async fn receiver(&self, address: Option<SocketAddr>, manner: Manner) -> Receiver {
        Receiver::start(&self.pki(), "siem", address, manner, &self.heard).await
    }

    fn run(&self) -> Running {
        self.run_with(Duration::from_secs(900))
    }

    fn run_with(&self, lag_max: Duration) -> Running {
        let log = AuditLog::open(&self.config, "gateway-1", Uuid::now_v7(), None).unwrap();
        let mut sinks = Sinks::open(&self.config, log.clone()).unwrap();
        sinks.lag_max = lag_max;
        let (all, needed, stop) = (sinks.sinks.clone(), sinks.needed(), CancellationToken::new());
        let kept = tokio::spawn(sinks.keep(stop.clone()));
        Running { log, sinks: all, needed, stop, kept }
    }

    fn cursor(&self, sink: &str) -> u64 {
        match CursorFile::new(&self.config.dir, sink).load().unwrap() {
            Found::Place(place) => place.seq,
            other @ (Found::Nothing | Found::Damaged) => panic!("{other:?}"),
        }
    }

    /// Boot and number of each record on disk, in order of the files.
    fn written(&self) -> Vec<(String, u64)> {
        let line = |line: &Value| {
            (line["boot"].as_str().unwrap().to_owned(), line["seq"].as_u64().unwrap())
        };
        lines(&self.config.dir).iter().map(line).collect()
    }

    /// Waits until everything on disk was heard, in order up to repeats.
    async fn all_heard(&self) {
        let heard = || self.heard.places().len() >= self.written().len();
        until("everything is heard", heard).await;
        assert_eq!(self.heard.places(), self.written());
    }
}

impl Running {
    /// Writes this many records, all at once.
    async fn write(&self, records: usize) {
        let mut receipts = Vec::new();
        for _ in 0..records {
            let on = Resource::new(ResourceType::Event, Label::new("of a test"));
            let event = self.log.own_event(EventType::AuditRead, Outcome::Success, on);
            receipts.push(self.log.submit(event).unwrap());
        }
        for receipt in receipts {
            receipt.await.unwrap();
        }
    }

    async fn stop(self) {
        self.log.close().await;
        self.stop.cancel();
        self.kept.await.unwrap();
    }

    /// As after SIGKILL: no drain, no farewell, no `audit.stop`.
    async fn kill(self) {
        self.kept.abort();
        let _ = self.kept.await;
        self.log.close().await;
    }

    fn trouble(&self) -> String {
        self.sinks[0].state().trouble.unwrap_or_default()
    }
}

fn lines(dir: &Path) -> Vec<Value> {
    let mut all = Vec::new();
    for segment in segments(dir).unwrap() {
        let text = std::io::read_to_string(read(&segment.path).unwrap()).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        all.extend(whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    all
}

/// What was recorded of the controls of a sink: event, control.
fn controls(dir: &Path) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = |line: &Value| (text(&line["event"]["type"]), text(&line["resource"]["id"]));
    let all = lines(dir);
    all.iter().map(told).filter(|(kind, _)| kind.starts_with("control.")).collect()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < limit, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn told(kind: &str, control: &str) -> (String, String) {
    (kind.into(), control.into())
}

#[tokio::test]
async fn every_record_arrives_once_and_in_order_in_counted_octets_and_is_confirmed_later() {
    let mut world = World::new();
    let receiver = world.receiver(None, Manner::Reads).await;
    world.config.sink = vec![world.sink("siem", receiver.address)];
    let running = world.run();

    running.write(3_000).await;
    world.all_heard().await;

    // Arrived is not confirmed.
    assert_eq!(world.cursor("siem"), 0);
    assert_eq!(world.heard.messages().len(), world.written().len(), "no repeats");
    let message = &world.heard.messages()[0];
    assert!(message.starts_with("<108>1 20") || message.starts_with("<110>1 20"), "{message}");
    assert!(message.contains(" gateway-1 tollgate ") && message.contains(" audit.start [toll"));
    until("the place is on disk", || world.cursor("siem") == 3_001).await;
    assert_eq!(running.sinks[0].state().oldest, None);
    running.stop().await;
    // `audit.stop` too.
    world.all_heard().await;
}

#[tokio::test]
async fn what_a_crashing_receiver_forgets_and_what_a_break_cuts_off_comes_again() {
    let mut world = World::new();
    let mut receiver = world.receiver(None, Manner::Reads).await;
    let address = receiver.address;
    world.config.sink = vec![world.sink("siem", address)];
    let running = world.run();

    let mut forgotten = 0;
    for _ in 0..4 {
        running.write(700).await;
        until("something is heard", || world.heard.messages().len() > 10).await;
        receiver.end().await;
        forgotten += world.heard.forget(Duration::from_millis(900));
        running.write(300).await;
        sleep(Duration::from_millis(300)).await;
        receiver = world.receiver(Some(address), Manner::Reads).await;
    }

    assert!(forgotten > 500, "{forgotten}");
    let heard = || {
        let places = world.heard.places();
        world.written().iter().all(|place| places.contains(place))
    };
    until("everything is heard", heard).await;
    running.stop().await;
}

#[tokio::test]
async fn a_killed_gateway_goes_on_behind_what_is_confirmed_over_streams_and_torn_ends() {
    let mut world = World::new();
    world.config.segment_bytes_max = 65_536;
    let receiver = world.receiver(None, Manner::Reads).await;
    let address = receiver.address;
    world.config.sink = vec![world.sink("siem", address)];
    let first = world.run();
    first.write(200).await;
    until("confirmed", || world.cursor("siem") > 100).await;
    receiver.end().await;
    first.write(400).await;
    first.kill().await;
    let torn = segments(&world.config.dir).unwrap().last().unwrap().path.clone();
    let mut text = std::fs::read(&torn).unwrap();
    text.extend_from_slice(b"{\"actor\":{\"id\":\"tollg");
    std::fs::write(&torn, text).unwrap();

    // A start that the receiver never sees, too.
    let second = world.run();
    second.write(100).await;
    second.kill().await;
    // And sealing, meanwhile.
    for segment in segments(&world.config.dir).unwrap().iter().filter(|one| one.name.number < 3) {
        let done = std::process::Command::new("gzip").arg("-n").arg(&segment.path).status();
        assert!(done.unwrap().success());
    }
    let third = world.run();
    let (from, all) = (third.needed.from().unwrap(), segments(&world.config.dir).unwrap());
    assert!(all.iter().any(|segment| segment.name > from && segment.is_sealed), "{all:?}");
    let receiver = world.receiver(Some(address), Manner::Reads).await;
    third.write(100).await;

    // `.gz` sorts as its plain form, so the order on disk is still that of the streams.
    world.all_heard().await;
    let last = all.last().unwrap().name;
    until("caught up", || third.needed.from().is_some_and(|from| from >= last)).await;
    assert!(!third.needed.is_needed(all[0].name) && third.needed.is_needed(last));
    third.stop().await;
    drop(receiver);
}

/// The file is sealed and its plain name gone while a sink that is behind reads it.
#[tokio::test]
async fn sealing_under_a_reader_costs_no_record() {
    let mut world = World::new();
    world.config.segment_bytes_max = 65_536;
    let receiver = world.receiver(None, Manner::Reads).await;
    world.config.sink = vec![world.sink("siem", receiver.address)];
    let running = world.run();

    for _ in 0..6 {
        running.write(150).await;
        let all = segments(&world.config.dir).unwrap();
        for segment in all[..all.len() - 1].iter().filter(|segment| !segment.is_sealed) {
            let done = std::process::Command::new("gzip").arg("-n").arg(&segment.path).status();
            assert!(done.unwrap().success());
        }
    }

    world.all_heard().await;
    running.stop().await;
}

#[tokio::test]
async fn receivers_that_hang_are_left_and_cost_neither_others_nor_the_log() {
    let mut world = World::new();
    let good = world.receiver(None, Manner::Reads).await;
    let hangs = world.receiver(None, Manner::Hangs).await;
    let silent = world.receiver(None, Manner::Silent).await;
    // From TEST-NET-1 comes no answer at all, or a refusal: both are a receiver that is away.
    world.config.sink = vec![
        world.sink("hangs", hangs.address),
        world.sink("silent", silent.address),
        world.sink("dropped", ([192, 0, 2, 1], 6514).into()),
        world.sink("good", good.address),
    ];
    let running = world.run();

    let begun = Instant::now();
    running.write(8_000).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    world.all_heard().await;
    until("the others are given up", || {
        running.sinks[..3].iter().all(|sink| sink.state().trouble.is_some())
    })
    .await;
    let why = running.trouble();
    assert!(why.contains("accepts nothing") || why.contains("broke"), "{why}");
    until("the good one is confirmed", || world.cursor("good") == 8_001).await;
    for name in ["hangs", "silent", "dropped"] {
        assert_eq!(world.cursor(name), 0, "{name}");
    }
    let begun = Instant::now();
    running.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_lag_is_an_event_when_it_begins_and_when_it_is_over() {
    let mut world = World::new();
    let receiver = world.receiver(None, Manner::Reads).await;
    let address = receiver.address;
    receiver.end().await;
    world.config.sink = vec![world.sink("siem", address)];
    let running = world.run_with(Duration::from_secs(3));

    until("told", || !controls(&world.config.dir).is_empty()).await;
    assert_eq!(controls(&world.config.dir), [told("control.fail", "export.siem")]);
    assert!(running.log.is_healthy());
    let receiver = world.receiver(Some(address), Manner::Reads).await;
    until("told again", || controls(&world.config.dir).len() > 1).await;

    assert_eq!(controls(&world.config.dir)[1], told("control.recover", "export.siem"));
    running.stop().await;
    drop(receiver);
}

#[tokio::test]
async fn a_full_spool_blocks_new_work_but_no_record_and_heals() {
    let mut world = World::new();
    let receiver = world.receiver(None, Manner::Reads).await;
    let address = receiver.address;
    receiver.end().await;
    world.config.sink =
        vec![SinkConfig { spool_bytes_max: 100_000, ..world.sink("siem", address) }];
    let running = world.run();
    running.write(20).await;
    assert!(running.log.is_healthy());

    running.write(230).await;
    until("blocked", || !running.log.is_healthy()).await;
    running.write(10).await;

    let expected = [told("control.fail", "export.siem"), told("control.fail", "export.siem.full")];
    assert_eq!(controls(&world.config.dir), expected);
    let receiver = world.receiver(Some(address), Manner::Reads).await;
    until("healed", || running.log.is_healthy()).await;
    let over = || controls(&world.config.dir)[2..].to_vec();
    until("told", || over().len() == 2).await;
    let expected =
        [told("control.recover", "export.siem"), told("control.recover", "export.siem.full")];
    assert_eq!(over(), expected);
    running.stop().await;
    drop(receiver);
}

#[tokio::test]
async fn a_sink_that_only_alarms_blocks_nothing_and_its_choice_is_on_record() {
    let mut world = World::new();
    let receiver = world.receiver(None, Manner::Reads).await;
    let address = receiver.address;
    receiver.end().await;
    let sink = world.sink("siem", address);
    world.config.sink =
        vec![SinkConfig { spool_bytes_max: 50_000, when_full: WhenFull::AlarmOnly, ..sink }];
    let running = world.run();

    running.write(100).await;
    until("told", || controls(&world.config.dir).len() == 2).await;

    assert!(running.log.is_healthy());
    let all = lines(&world.config.dir);
    let choice = all.iter().find(|line| line["event"]["type"] == "config.change").unwrap();
    assert_eq!(choice["resource"]["id"], "audit.sink.siem");
    assert_eq!(choice["note"], "when_full = alarm_only");
    running.stop().await;
}

#[tokio::test]
async fn only_the_right_certificates_are_taken_on_both_sides() {
    let mut world = World::new();
    let other = world.dir.path().join("other");
    let mut authority = Authority::create(&other, "Other CA").unwrap();
    let server = Leaf::server(["localhost"], ["127.0.0.1".parse().unwrap()]);
    authority.issue("siem", &server).unwrap();
    authority.issue("tollgate", &Leaf::client("spiffe://test/tollgate")).unwrap();
    let good = world.receiver(None, Manner::Reads).await;
    let foreign = Receiver::start(&other, "siem", None, Manner::Reads, &world.heard).await;
    let sink = world.sink("ours-is-foreign", good.address);
    world.config.sink = vec![
        world.sink("foreign", foreign.address),
        SinkConfig { server_name: Some("siem.test".into()), ..world.sink("name", good.address) },
        SinkConfig {
            certificate: other.join("tollgate.crt"),
            key: other.join("tollgate.key"),
            ..sink
        },
    ];
    let running = world.run();
    running.write(50).await;
    sleep(Duration::from_secs(3)).await;

    assert_eq!(world.heard.messages(), Vec::<String>::new());
    for sink in &running.sinks {
        let (name, state) = (&sink.config.name, sink.state());
        assert!(state.trouble.is_some(), "{name}");
        assert_eq!(world.cursor(name), 0, "{name}");
        let seen = try_out(&sink.config).await.unwrap_err().to_string();
        assert!(seen.contains("handshake"), "{name}: {seen}");
    }
    try_out(&world.sink("good", good.address)).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn every_format_arrives_as_the_text_of_a_message() {
    for format in Format::ALL {
        let mut world = World::new();
        let receiver = world.receiver(None, Manner::Reads).await;
        let sink = world.sink("siem", receiver.address);
        world.config.sink = vec![SinkConfig { format: *format, ..sink }];
        let running = world.run();

        until("heard", || !world.heard.messages().is_empty()).await;

        let message = world.heard.messages().remove(0);
        let (_, text) = message.split_once(" audit.start ").unwrap();
        let begin = match format {
            Format::Jsonl => "- {\"actor\":{\"id\":",
            Format::Syslog => "[tollgate@32473 ",
            Format::Cef => "- CEF:0|",
            Format::Leef => "- LEEF:2.0|",
            Format::Ocsf => "- {\"class_uid\":",
        };
        assert!(text.starts_with(begin), "{message}");
        running.stop().await;
    }
}

/// A place that cannot be read is no reason to leave anything out.
#[tokio::test]
async fn a_damaged_place_begins_with_the_oldest_record() {
    let mut world = World::new();
    let receiver = world.receiver(None, Manner::Reads).await;
    world.run().stop().await;
    world.config.sink = vec![world.sink("siem", receiver.address)];
    std::fs::write(world.config.dir.join("sink-siem.cursor"), "?").unwrap();

    let running = world.run();

    world.all_heard().await;
    running.stop().await;
}

/// Ten times what a gateway writes: what waited for an hour is there within minutes.
#[tokio::test]
async fn a_backlog_is_sent_faster_than_it_grows() {
    let mut world = World::new();
    let receiver = world.receiver(None, Manner::Reads).await;
    let address = receiver.address;
    receiver.end().await;
    world.config.sink = vec![world.sink("siem", address)];
    let running = world.run();
    for _ in 0..5 {
        running.write(4_000).await;
    }

    let receiver = world.receiver(Some(address), Manner::Reads).await;
    // Most of them come later than this.
    until("the first is heard", || !world.heard.is_empty()).await;
    let (begun, before) = (Instant::now(), clock_gettime(ClockId::ProcessCPUTime));
    let limit = begun + Duration::from_secs(20);
    let left = (20_000 - world.heard.len()) as f64;
    while world.heard.len() < 20_000 {
        assert!(Instant::now() < limit, "{}", world.heard.len());
        sleep(Duration::from_millis(5)).await;
    }
    let (took, after) = (begun.elapsed(), clock_gettime(ClockId::ProcessCPUTime));
    let cpu = (after.tv_sec - before.tv_sec) as f64 + (after.tv_nsec - before.tv_nsec) as f64 / 1e9;
    let (rate, us) = (left / took.as_secs_f64(), cpu * 1e6 / left);
    println!("{rate:.0} records a second, {us:.1} us of CPU a record with those of the receiver");

    assert!(rate > 2_000.0, "{rate}");
    running.stop().await;
    drop(receiver);
}

/// What was before a sink is for an export.
#[tokio::test]
async fn a_new_sink_begins_with_this_start() {
    let mut world = World::new();
    let receiver = world.receiver(None, Manner::Reads).await;
    world.run().stop().await;
    let before = world.written().len();
    world.config.sink = vec![world.sink("siem", receiver.address)];

    let running = world.run();
    running.write(5).await;

    until("heard", || world.heard.places().len() >= 6).await;
    assert_eq!(world.heard.places(), world.written()[before..]);
    running.stop().await;
}
