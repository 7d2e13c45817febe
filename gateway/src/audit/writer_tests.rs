//! The writer on a real disk, and on one that fails or hangs when told to.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        mpsc::{Sender, channel},
    },
};

use compliance::{SegmentName, StreamId};
use serde_json::Value;
use uuid::Uuid;

use super::super::{
    log::{AuditLog, AuditOpenError, AuditUnavailable},
    previous::Previous,
};
use super::*;
use crate::config::AuditConfig;

/// Every record below a directory, in the order of the files and lines.
pub(crate) fn records(dir: &Path) -> Vec<Value> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn event(log: &AuditLog, id: &str) -> Event {
    let resource = Resource::new(ResourceType::Key, Label::new(id));
    let origin = Origin::inside(log.host());
    let now = Timestamp::now();
    Event::new(Actor::system(), EventType::MacVerify, now, Outcome::Success, origin, resource)
}

fn open(dir: &Path) -> AuditLog {
    AuditLog::open(&AuditConfig::at(dir.into()), "gateway-1", Uuid::now_v7(), None).unwrap()
}

/// The one file that is open now.
fn newest(dir: &Path) -> PathBuf {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .max()
        .unwrap()
}

async fn until_healthy(log: &AuditLog) {
    for _ in 0..400 {
        if log.is_healthy() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the log did not recover");
}

fn kinds(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["event"]["type"].as_str().unwrap()).collect()
}

fn sequence(records: &[Value]) -> Vec<u64> {
    records.iter().map(|record| record["seq"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_record_is_in_the_file_when_its_append_returns() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());

    let number = log.append(event(&log, "zak.acquirer-a")).await;

    assert_eq!(number, Ok(2));
    let records = records(dir.path());
    assert_eq!(kinds(&records), ["audit.start", "mac.verify"]);
    assert_eq!(records[1]["resource"]["id"], "zak.acquirer-a");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_numbered_without_gaps_and_each_learns_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());

    let appends: Vec<_> = (0..1_000)
        .map(|i| {
            let log = log.clone();
            tokio::spawn(async move { log.append(event(&log, &format!("k{i}"))).await })
        })
        .collect();
    let mut numbers = Vec::new();
    for append in appends {
        numbers.push(append.await.unwrap().unwrap());
    }
    log.close().await;

    let records = records(dir.path());
    assert_eq!(sequence(&records), (1..=1_002).collect::<Vec<_>>());
    for (i, number) in numbers.iter().enumerate() {
        let record = &records[usize::try_from(*number).unwrap() - 1];
        assert_eq!(record["resource"]["id"], format!("k{i}"));
    }
}

#[tokio::test]
async fn the_file_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("audit");

    let log = open(&below);

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&below), 0o700);
    assert_eq!(mode(&newest(&below)), 0o600);
    log.close().await;
}

#[tokio::test]
async fn two_gateways_cannot_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let config = AuditConfig::at(dir.path().into());

    let second = AuditLog::open(&config, "gateway-2", Uuid::now_v7(), None);
    first.close().await;
    let after = AuditLog::open(&config, "gateway-2", Uuid::now_v7(), None);

    assert!(matches!(second, Err(AuditOpenError::Shared { .. })), "{second:?}");
    assert!(after.is_ok(), "{after:?}");
}

#[tokio::test]
async fn closing_says_so_and_ends_appends() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());

    log.close().await;
    let late = log.append(event(&log, "k")).await;

    assert_eq!(late, Err(AuditUnavailable));
    assert_eq!(kinds(&records(dir.path())), ["audit.start", "audit.stop"]);
}

#[tokio::test]
async fn a_full_segment_is_followed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig { segment_bytes_max: 1_300, ..AuditConfig::at(dir.path().into()) };
    let log = AuditLog::open(&config, "gateway-1", Uuid::now_v7(), None).unwrap();

    for i in 0..5 {
        log.append(event(&log, &format!("k{i}"))).await.unwrap();
    }
    log.close().await;

    let files = compliance::segments(dir.path()).unwrap();
    let records = records(dir.path());
    assert!(files.len() > 2, "{files:?}");
    assert_eq!(sequence(&records), (1..=records.len() as u64).collect::<Vec<_>>());
    let rotations = records.iter().filter(|record| record["event"]["type"] == "audit.rotate");
    assert!(
        rotations.clone().count() == files.len() - 1
            && rotations.clone().all(|one| one["frontier"].is_string())
    );
}

/// Whatever is done to the file, the next append refuses, and the log goes on in a new file whose
/// first record is the failure.
async fn is_noticed(tamper: impl Fn(&Path), cause: &str) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(event(&log, "before")).await.unwrap();
    let file = newest(dir.path());

    tamper(&file);
    let refused = log.append(event(&log, "lost")).await;
    until_healthy(&log).await;
    let after = log.append(event(&log, "after")).await;
    log.close().await;

    assert_eq!(refused, Err(AuditUnavailable));
    assert_eq!(after, Ok(5));
    let text = fs::read_to_string(newest(dir.path())).unwrap();
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (first, second) = (lines.next().unwrap(), lines.next().unwrap());
    assert_eq!((&first["event"]["type"], &first["seq"]), (&"audit.rotate".into(), &3.into()));
    assert_eq!(second["event"]["type"], "audit.failure");
    let told = second["resource"]["id"].as_str().unwrap();
    assert!(told.starts_with(&format!("{cause} from 20")) && told.contains(" to 20"), "{told}");
}

#[tokio::test]
async fn a_deleted_file_is_noticed() {
    is_noticed(|file| fs::remove_file(file).unwrap(), "deleted").await;
}

#[tokio::test]
async fn a_replaced_file_is_noticed() {
    let replace = |file: &Path| {
        let copy = file.with_extension("copy");
        fs::copy(file, &copy).unwrap();
        fs::rename(copy, file).unwrap();
    };

    is_noticed(replace, "replaced").await;
}

#[tokio::test]
async fn a_cut_file_is_noticed() {
    let cut = |file: &Path| {
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(10).unwrap();
    };

    is_noticed(cut, "resized").await;
}

#[tokio::test]
async fn a_deleted_file_is_noticed_while_nobody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());

    fs::remove_file(newest(dir.path())).unwrap();
    // Found, told in a new file, healthy again: within two looks.
    for _ in 0..200 {
        if newest_or_none(dir.path()).is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    until_healthy(&log).await;
    log.close().await;

    assert_eq!(kinds(&records(dir.path())), ["audit.rotate", "audit.failure", "audit.stop"]);
}

fn newest_or_none(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "jsonl")).max()
}

/// A disk that does what the test says: keeps lines, refuses them, or waits for a word first.
#[derive(Clone, Default)]
struct Puppet(Arc<Mutex<Strings>>);

#[derive(Default)]
struct Strings {
    kept: Vec<u8>,
    appends: usize,
    refuses: bool,
    is_full: bool,
    has_no_room: bool,
    waits: Option<std::sync::mpsc::Receiver<()>>,
}

impl Store for Puppet {
    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        let waits = self.0.lock().unwrap().waits.take();
        if let Some(word) = waits {
            let _ = word.recv();
        }
        let mut strings = self.0.lock().unwrap();
        if strings.refuses {
            return Err(StoreError::Write(std::io::ErrorKind::StorageFull.into()));
        }
        strings.appends += 1;
        strings.kept.extend_from_slice(lines);
        Ok(())
    }

    fn verify(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.0.lock().unwrap().is_full
    }

    fn renew(&mut self) -> Result<bool, StoreError> {
        let mut strings = self.0.lock().unwrap();
        if strings.has_no_room {
            return Err(StoreError::DiskFull);
        }
        strings.is_full = false;
        Ok(true)
    }

    fn name(&self) -> SegmentName {
        SegmentName { boot: Uuid::nil(), number: 1 }
    }
}

impl Puppet {
    fn log(&self, stall_ms_max: u64) -> AuditLog {
        let config = AuditConfig { stall_ms_max, ..AuditConfig::at("nowhere".into()) };
        let host = Host::new(Label::new("gateway-1"), Uuid::now_v7());
        let stream = StreamId::new("tollgate", "gateway-1", Uuid::nil()).unwrap();
        AuditLog::start(self.clone(), &config, host, stream, Previous::default(), None).unwrap()
    }

    /// The next append waits until something is sent.
    fn hang(&self) -> Sender<()> {
        let (word, waits) = channel();
        self.0.lock().unwrap().waits = Some(waits);
        word
    }

    fn refuse(&self, refuses: bool) {
        self.0.lock().unwrap().refuses = refuses;
    }

    fn records(&self) -> Vec<Value> {
        let kept = self.0.lock().unwrap().kept.clone();
        let text = String::from_utf8(kept).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn records_that_come_during_a_sync_share_the_next_one() {
    let disk = Puppet::default();
    let log = disk.log(5_000);
    let word = disk.hang();
    let first = log.submit(event(&log, "first")).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;

    let others: Vec<_> = (0..100).map(|_| log.submit(event(&log, "other")).unwrap()).collect();
    let before = disk.0.lock().unwrap().appends;
    word.send(()).unwrap();
    first.await.unwrap();
    for other in others {
        other.await.unwrap();
    }

    // The start, the first alone, then the hundred.
    assert_eq!(before, 1);
    assert_eq!(disk.0.lock().unwrap().appends, 3);
    assert_eq!(sequence(&disk.records()), (1..=102).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_disk_refuses_until_there_is_room_and_numbers_go_on() {
    let disk = Puppet::default();
    let log = disk.log(5_000);
    log.append(event(&log, "before")).await.unwrap();

    disk.refuse(true);
    let refused = log.append(event(&log, "lost")).await;
    let at_once = log.submit(event(&log, "not queued")).map(drop);
    tokio::time::sleep(LOOK_PERIOD * 3).await;
    let still = log.is_healthy();
    disk.refuse(false);
    until_healthy(&log).await;
    log.append(event(&log, "after")).await.unwrap();

    assert_eq!(refused, Err(AuditUnavailable));
    assert_eq!(at_once, Err(AuditUnavailable));
    assert!(!still);
    let records = disk.records();
    assert_eq!(
        kinds(&records),
        ["audit.start", "mac.verify", "audit.rotate", "audit.failure", "mac.verify"]
    );
    assert_eq!(sequence(&records), [1, 2, 3, 4, 5]);
    assert!(records[3]["resource"]["id"].as_str().unwrap().starts_with("write from 20"));
}

#[tokio::test]
async fn a_hanging_disk_withholds_the_answer_and_the_stall_is_on_record() {
    let disk = Puppet::default();
    let log = disk.log(100);
    let word = disk.hang();

    let withheld = log.append(event(&log, "late")).await;
    let healthy = log.is_healthy();
    word.send(()).unwrap();
    until_healthy(&log).await;

    assert_eq!(withheld, Err(AuditUnavailable));
    assert!(!healthy);
    let records = disk.records();
    assert_eq!(kinds(&records), ["audit.start", "mac.verify", "audit.failure"]);
    assert!(records[2]["resource"]["id"].as_str().unwrap().starts_with("stalled from 20"));
}

#[tokio::test]
async fn a_disk_without_room_for_the_next_file_still_takes_the_failure() {
    let disk = Puppet::default();
    let log = disk.log(5_000);
    log.append(event(&log, "before")).await.unwrap();

    {
        let mut strings = disk.0.lock().unwrap();
        (strings.is_full, strings.has_no_room) = (true, true);
    }
    let refused = log.append(event(&log, "lost")).await;
    let told = disk.records();
    disk.0.lock().unwrap().has_no_room = false;
    until_healthy(&log).await;
    log.append(event(&log, "after")).await.unwrap();

    assert_eq!(refused, Err(AuditUnavailable));
    assert_eq!(kinds(&told), ["audit.start", "mac.verify", "audit.failure"]);
    assert!(told[2]["resource"]["id"].as_str().unwrap().starts_with("disk-full from 20"));
    let records = disk.records();
    assert_eq!(kinds(&records)[3..], ["audit.rotate", "audit.failure", "mac.verify"]);
    assert!(records[4]["resource"]["id"].as_str().unwrap().contains(" to 20"));
}

#[tokio::test]
async fn a_card_number_in_a_text_is_taken_out_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());

    let first = log.append(event(&log, "k")).await.unwrap();
    let one = event(&log, "4111111111111111");
    let id = one.id().to_string();
    let second = log.append(one).await.unwrap();
    let third = log.append(event(&log, "k")).await.unwrap();

    assert_eq!((first, second, third), (2, 3, 5));
    let records = records(dir.path());
    assert_eq!(records[2]["resource"]["id"], "[pan removed]");
    assert_eq!(records[3]["event"]["type"], "dlp.pan_found");
    assert_eq!(records[3]["resource"]["id"], id);
}

#[tokio::test]
async fn a_boot_follows_the_one_before_and_says_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    first.close().await;
    let closed = records(dir.path());
    let second = open(dir.path());
    second.append(event(&second, "k")).await.unwrap();
    // As a crash leaves it: no stop, and half a line.
    let file = newest(dir.path());
    let ended = fs::read_to_string(&file).unwrap();
    second.close().await;
    fs::write(&file, ended.clone() + "{\"actor\":").unwrap();

    let third = open(dir.path());
    third.close().await;

    let last: Value = serde_json::from_str(ended.lines().last().unwrap()).unwrap();
    let start: Value = serde_json::from_str(ended.lines().next().unwrap()).unwrap();
    assert_eq!(start["previous"]["hash"], closed[1]["hash"]);
    assert_eq!(start["previous"]["seq"], 2);
    let text = fs::read_to_string(newest(dir.path())).unwrap();
    let third: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(third[0]["previous"]["hash"], last["hash"]);
    assert_eq!(kinds(&third), ["audit.start", "audit.recovered", "audit.stop"]);
    assert_eq!(third[1]["note"], "ended at 2 without audit.stop");
}

/// Well before the time: and not before a second has passed, however many records come.
#[tokio::test]
async fn many_records_ask_for_a_checkpoint_before_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig {
        checkpoint_s: 60,
        checkpoint_records: 100,
        ..AuditConfig::at(dir.path().into())
    };
    let log = AuditLog::open(&config, "gateway-1", Uuid::now_v7(), None).unwrap();
    let mut due = log.shared().due.clone();

    for _ in 0..98 {
        log.append(event(&log, "k")).await.unwrap();
    }
    tokio::time::sleep(SIGN_REST + LOOK_PERIOD * 2).await;
    let below = due.has_changed().unwrap();
    for _ in 0..10 {
        log.append(event(&log, "k")).await.unwrap();
    }
    due.changed().await.unwrap();
    let asked = due.borrow_and_update().unwrap();
    log.close().await;

    assert!(!below, "99 records are not 100");
    assert!((100..=109).contains(&asked.size), "{}", asked.size);
}
