//! What becomes of the files: complete segments are sealed, old ones go to the archive, and what nobody must
//! keep any more is purged, whole segments only, after the record that says so.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use compliance::{
    EventType, Index, Label, Options, Outcome, Resource, ResourceType, Segment, SegmentName,
    Verdict, move_to, purge, seal, segments, verify,
};
use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::log::AuditLog;
use crate::config::AuditConfig;

/// The task behind the writer's files.
#[derive(Clone)]
pub struct Keeper {
    log: AuditLog,
    /// Whether somebody still reads a segment where it is.
    is_needed: Arc<dyn Fn(SegmentName) -> bool + Send + Sync>,
    archive: PathBuf,
    hot_us: i64,
    kept_us: i64,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("archive", &self.archive).finish_non_exhaustive()
    }
}

/// A segment that nobody must keep any more.
struct Outdated {
    segment: Segment,
    index: Index,
}

impl Keeper {
    /// For the log of this process. What `is_needed` stays where it is, however old.
    pub fn new(
        log: AuditLog,
        config: &AuditConfig,
        is_needed: impl Fn(SegmentName) -> bool + Send + Sync + 'static,
    ) -> Self {
        let archive = config.archive();
        let (hot_us, kept_us) = (days_us(config.hot_days), days_us(config.retention_days));
        Self { log, is_needed: Arc::new(is_needed), archive, hot_us, kept_us }
    }

    /// Until `stop`. What fails is told, and tried again.
    pub async fn keep(self, stop: CancellationToken) {
        let mut rounds = 0u32;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(KEEP_REST) => {}
            }
            let (this, ages) = (self.clone(), rounds.is_multiple_of(AGES_EVERY));
            let kept = spawn_blocking(move || this.seal_and_archive(ages)).await;
            match kept.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(outdated) => self.purge(outdated).await,
                Err(error) => tracing::error!(%error, "keeping the audit log's files"),
            }
            rounds = rounds.wrapping_add(1);
        }
    }

    /// Gives what is older than must be kept, when it was asked for ages. A file that cannot be dealt with is
    /// told, and does not keep the others from it.
    fn seal_and_archive(&self, ages: bool) -> io::Result<Vec<Outdated>> {
        let dir = self.log.dir();
        for segment in segments(dir)? {
            if !segment.is_sealed && !self.log.is_current(segment.name) {
                told(&segment, "sealing", seal(&segment));
            }
        }
        if !ages {
            return Ok(Vec::new());
        }
        let now = Timestamp::now().as_microsecond();
        let is_older = |segment: &Segment, age_us: i64| match index_of(segment) {
            Ok(index) => index.first_seq > 0 && index.to_us < now - age_us,
            Err(error) => {
                told::<()>(segment, "reading the index of", Err(error));
                false
            }
        };
        for segment in sealed_in(dir)? {
            if is_older(&segment, self.hot_us) && !(self.is_needed)(segment.name) {
                let moved = std::fs::create_dir_all(&self.archive);
                told(&segment, "archiving", moved.and_then(|()| move_to(&segment, &self.archive)));
            }
        }
        let mut outdated = Vec::new();
        for place in [dir, &self.archive] {
            for segment in sealed_in(place)? {
                if is_older(&segment, self.kept_us) && !(self.is_needed)(segment.name) {
                    outdated.extend(told(&segment, "judging", self.outdated(segment.clone(), now)));
                }
            }
        }
        Ok(outdated.into_iter().flatten().collect())
    }

    /// The index says that it may go; only the records, whose chain holds, decide it: an index can be edited.
    fn outdated(&self, segment: Segment, now: i64) -> io::Result<Option<Outdated>> {
        let report = verify(&segment.path, Options::default()).map_err(io::Error::other)?;
        if report.verdict == Verdict::Tampered {
            let what = "its records are not as they were written: it is kept";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let index = Index::of(&segment)?;
        let is_old = index.first_seq > 0 && index.to_us < now - self.kept_us;
        Ok(is_old.then_some(Outdated { segment, index }))
    }

    /// The record comes first: what is gone without one was taken by somebody else.
    async fn purge(&self, outdated: Vec<Outdated>) {
        for Outdated { segment, index } in outdated {
            let name = segment.name.to_string();
            let on = Resource::new(ResourceType::AuditSegment, Label::new(&name));
            let event = self.log.own_event(EventType::AuditRetentionPurge, Outcome::Success, on);
            // The verifier excuses what these numbers name, and nothing else.
            let note = format!("{}-{}", index.first_seq, index.last_seq);
            let Ok(seq) = self.log.append(event.note(Label::new(&note))).await else { return };
            // Signed before it goes: until then the verifier would miss it.
            self.log.checkpoint_now().await;
            if !self.log.is_signed(seq) {
                return;
            }
            let purged = spawn_blocking(move || purge(&segment)).await;
            if let Err(error) = purged.unwrap_or_else(|error| Err(io::Error::other(error))) {
                tracing::error!(%error, segment = name, "purging a segment of the audit log");
            }
        }
    }
}

/// The index beside a sealed segment; one that is gone is made again.
fn index_of(segment: &Segment) -> io::Result<Index> {
    Index::read(segment).or_else(|_| {
        let index = Index::of(segment)?;
        index.write(segment)?;
        Ok(index)
    })
}

/// What was done to a segment, or what went wrong with it.
fn told<T>(segment: &Segment, what: &str, done: io::Result<T>) -> Option<T> {
    done.inspect_err(|error| {
        let path = segment.path.display();
        tracing::error!(%error, %path, "{what} a segment of the audit log");
    })
    .ok()
}

/// The sealed segments of this very directory.
fn sealed_in(dir: &Path) -> io::Result<Vec<Segment>> {
    match segments(dir) {
        Ok(found) => Ok(found
            .into_iter()
            .filter(|one| one.is_sealed && one.path.parent() == Some(dir))
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn days_us(days: u32) -> i64 {
    i64::from(days) * 86_400_000_000
}

const KEEP_REST: Duration = Duration::from_secs(5);
/// Reading the ages costs more: once an hour, and at the start.
const AGES_EVERY: u32 = 720;

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use compliance::SignatureType;

    use super::super::checkpoints::{CheckpointSignature, Checkpoints, Signs};
    use super::*;

    /// Signs as a token does.
    struct Key(Ed25519KeyPair);

    impl Key {
        fn new() -> Self {
            Self(Ed25519KeyPair::generate().unwrap())
        }
    }

    impl Signs for Key {
        async fn sign(
            &self,
            _: Option<u32>,
            text: String,
        ) -> Vec<Result<CheckpointSignature, String>> {
            vec![Ok(CheckpointSignature {
                kind: SignatureType::Ed25519,
                public_key: self.0.public_key().as_ref().to_vec(),
                signature: self.0.sign(text.as_bytes()).as_ref().to_vec(),
                version: 1,
            })]
        }
    }

    async fn log(dir: &Path) -> (AuditLog, AuditConfig) {
        let config = AuditConfig {
            segment_bytes_max: 3_000,
            hot_days: 90,
            retention_days: 365,
            ..AuditConfig::at(dir.into())
        };
        let log = AuditLog::open(&config, "gateway-1", Uuid::now_v7(), None).unwrap();
        (log, config)
    }

    async fn fill(log: &AuditLog, records: u32) {
        for at in 0..records {
            let on = Resource::new(ResourceType::Key, Label::new(&format!("k{at}")));
            log.append(log.own_event(EventType::MacVerify, Outcome::Success, on)).await.unwrap();
        }
    }

    fn names(dir: &Path) -> Vec<(SegmentName, bool)> {
        segments(dir).unwrap().into_iter().map(|one| (one.name, one.is_sealed)).collect()
    }

    #[tokio::test]
    async fn complete_segments_are_sealed_and_the_one_that_is_written_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (log, config) = log(dir.path()).await;
        fill(&log, 30).await;

        let outdated = Keeper::new(log.clone(), &config, |_| false).seal_and_archive(true).unwrap();

        let names = names(dir.path());
        let (last, sealed) = names.split_last().unwrap();
        assert!(sealed.len() > 3 && sealed.iter().all(|(_, is_sealed)| *is_sealed), "{names:?}");
        assert!(!last.1 && outdated.is_empty());
        fill(&log, 1).await;
        log.close().await;
    }

    #[tokio::test]
    async fn old_segments_go_to_the_archive_and_older_ones_are_purged_after_their_record() {
        let dir = tempfile::tempdir().unwrap();
        let (log, config) = log(dir.path()).await;
        fill(&log, 30).await;
        // As time goes by: a keeper for whom all of it is old.
        let old = Keeper { hot_us: -60_000_000, ..Keeper::new(log.clone(), &config, |_| false) };
        old.seal_and_archive(true).unwrap();
        let archived = sealed_in(&dir.path().join("archive")).unwrap();
        let older = Keeper { kept_us: -60_000_000, ..old };
        let spares = Keeper { is_needed: Arc::new(|_| true), ..older.clone() };
        assert!(spares.seal_and_archive(true).unwrap().is_empty());

        let outdated = older.seal_and_archive(true).unwrap();
        let number = outdated.len();
        older.purge(older.seal_and_archive(true).unwrap()).await;
        let unsigned = sealed_in(&dir.path().join("archive")).unwrap().len();
        let stop = CancellationToken::new();
        let checkpoints = Checkpoints::new(log.clone(), Key::new(), 5);
        let signing = tokio::spawn(checkpoints.keep(stop.clone()));
        older.purge(outdated).await;
        stop.cancel();
        signing.await.unwrap();
        log.close().await;

        assert!(unsigned >= number, "nothing goes whose record is not signed");

        assert!(number > 3 && archived.len() == number, "{archived:?}");
        assert_eq!(sealed_in(&dir.path().join("archive")).unwrap(), []);
        let left = names(dir.path());
        assert_eq!(left.iter().filter(|(_, is_sealed)| *is_sealed).count(), 0, "{left:?}");
        let records = super::super::writer::tests::records(dir.path());
        let purged: Vec<_> = records
            .iter()
            .filter(|record| record["event"]["type"] == "audit.retention_purge")
            .collect();
        // The records of the purge fill files themselves; those that are left name what is gone.
        assert!(!purged.is_empty());
        for record in purged {
            let name = record["resource"]["id"].as_str().unwrap();
            assert!(archived.iter().any(|one| one.name.to_string() == name), "{name}");
            assert!(record["note"].as_str().unwrap().contains('-'), "{record}");
        }
    }

    /// Whoever has the disk edits the index, or the records, to have them purged.
    #[tokio::test]
    async fn only_records_that_are_as_written_decide_what_is_purged() {
        let dir = tempfile::tempdir().unwrap();
        let (log, config) = log(dir.path()).await;
        fill(&log, 30).await;
        let keeper = Keeper::new(log.clone(), &config, |_| false);
        keeper.seal_and_archive(false).unwrap();
        let sealed = sealed_in(dir.path()).unwrap();
        let [edited, gone] = [&sealed[1], &sealed[2]];
        let mut index = Index::read(edited).unwrap();
        (index.from_us, index.to_us) = (0, 1);
        index.write(edited).unwrap();
        std::fs::remove_file(gone.path.with_file_name(format!("{}.idx", gone.name))).unwrap();

        let outdated = keeper.seal_and_archive(true).unwrap();

        assert!(outdated.is_empty());
        assert!(Index::read(gone).is_ok(), "it is made again");
        // All of it is old, and one segment is not as it was written: it stays.
        let archived = sealed_in(&keeper.archive).unwrap();
        let of_archived = archived.iter().find(|one| one.name == edited.name).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut of_archived.read().unwrap(), &mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap().replacen("\"k", "\"K", 1);
        let mut gz = flate2::write::GzEncoder::new(
            std::fs::File::create(&of_archived.path).unwrap(),
            flate2::Compression::fast(),
        );
        std::io::Write::write_all(&mut gz, text.as_bytes()).unwrap();
        gz.finish().unwrap();
        let older = Keeper { hot_us: -60_000_000, kept_us: -60_000_000, ..keeper };
        let outdated = older.seal_and_archive(true).unwrap();
        assert!(outdated.iter().all(|one| one.segment.name != edited.name));
        assert!(outdated.len() > 2, "{}", outdated.len());
        log.close().await;
    }
}
