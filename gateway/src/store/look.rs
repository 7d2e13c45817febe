//! Looks at a database without changing a byte of it or beside it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::StoreError;
use super::sqlite::{MIGRATIONS, PATIENCE, failed};

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The last migration that was applied; 0 for an empty file.
    pub schema: i64,
    /// Migrations that opening the store will apply.
    pub pending: usize,
    /// Whether it keeps a write-ahead log already.
    pub write_ahead: bool,
    /// SQLite's own check: its first complaint, or `ok`. `None` for a file too large to look through.
    pub check: Option<String>,
}

/// `None` when there is no file yet.
pub(super) async fn look(path: &Path) -> Result<Option<Seen>, StoreError> {
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| {
        let bytes = file.metadata()?.len();
        file.take(20).read_to_end(&mut head)?;
        Ok(bytes)
    });
    let bytes = match read {
        Ok(0) => return Ok(Some(Seen { pending: MIGRATIONS.iter().count(), ..EMPTY })),
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, "it must be readable")(error)),
    };
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let logged = std::fs::metadata(&log).is_ok();
    let mut db = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        // Even a reader would make the log's files, as whoever runs this: without one there is
        // nothing to read in it, and nobody writes.
        .immutable(!logged)
        .busy_timeout(PATIENCE)
        .disable_statement_logging()
        .connect()
        .await?;
    let known = "SELECT count(*) FROM sqlite_schema WHERE name = '_sqlx_migrations'";
    let applied: BTreeMap<i64, Vec<u8>> =
        match sqlx::query_scalar::<_, i64>(known).fetch_one(&mut db).await? {
            0 => BTreeMap::new(),
            _ => sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success")
                .fetch_all(&mut db)
                .await?
                .into_iter()
                .collect(),
        };
    let mut pending = 0;
    let mut foreign: Vec<i64> = applied.keys().copied().collect();
    for ours in MIGRATIONS.iter() {
        foreign.retain(|version| *version != ours.version);
        match applied.get(&ours.version) {
            None => pending += 1,
            Some(checksum) if **checksum == *ours.checksum => {}
            Some(_) => foreign.push(ours.version),
        }
    }
    if let Some(version) = foreign.first() {
        let source = sqlx::migrate::MigrateError::VersionMismatch(*version);
        return Err(StoreError::migrate(path.display(), source));
    }
    let check = if bytes <= CHECKED_BYTES_MAX {
        Some(sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut db).await?)
    } else {
        None
    };
    // To its end: a connection that is only dropped closes later, on a thread of its own, and keeps
    // the log's files in use until then.
    db.close().await?;
    let schema = applied.keys().next_back().copied().unwrap_or(0);
    Ok(Some(Seen { schema, pending, write_ahead: head.get(18..) == Some(&[2, 2]), check }))
}

const EMPTY: Seen = Seen { schema: 0, pending: 0, write_ahead: false, check: None };

/// Half a second's reading.
const CHECKED_BYTES_MAX: u64 = 256 * 1024 * 1024;
