//! Opens the file: mode 0600, locked against a second gateway, at full durability, migrated.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
    SqliteSynchronous,
};

use super::db::{Readers, Session};
use super::{ANSWER_WITHIN, StoreError};

/// The schema, step by step.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// How long a statement waits for a lock: below our callers' patience, so that they hear SQLite's
/// own word.
pub(super) const PATIENCE: Duration = ANSWER_WITHIN.saturating_sub(Duration::from_secs(1));

/// Opens or makes the database: the file, the connection that writes, those that read, and the
/// lock. It is to be held as long as the writer lives; the kernel frees it with the process, so
/// that a crash leaves nothing behind that blocks the next start.
pub(super) async fn open(
    path: &Path,
    readers: u32,
) -> Result<(DatabaseFile, Session, Readers, File), StoreError> {
    let lock = lock(path)?;
    let file = DatabaseFile::prepare(path)?;
    let mut connection = file.connect().await?;
    MIGRATIONS
        .run(&mut connection)
        .await
        .map_err(|source| StoreError::migrate(path.display(), source))?;
    let readers = SqlitePoolOptions::new()
        .max_connections(readers)
        .acquire_timeout(ANSWER_WITHIN)
        .connect_lazy_with(file.options().read_only(true));
    Ok((file, Session::Sqlite(connection), Readers::Sqlite(readers), lock))
}

/// The file by name and by inode.
#[derive(Debug, Clone)]
pub(super) struct DatabaseFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl DatabaseFile {
    fn prepare(path: &Path) -> Result<Self, StoreError> {
        // SQLite would make the file with the mask's mode; the log files copy the file's.
        let made =
            private().open(path).map_err(failed(path, "its directory must exist and be ours"))?;
        for suffix in ["", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            match std::fs::set_permissions(&name, Permissions::from_mode(0o600)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(path, "its mode must be 0600: chown it to us")(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let found = made.metadata().map_err(failed(path, "its metadata must be readable"))?;
        Ok(Self { path: path.to_owned(), inode: (found.dev(), found.ino()) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// SQLite goes on writing into a file that was deleted or moved away. We do not.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match std::fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.inode => Ok(()),
            Ok(_) | Err(_) => Err(StoreError::unavailable(
                "its file was moved or deleted: put it back, or restart the gateway",
            )),
        }
    }

    /// The connection that writes, with its settings proved.
    pub(super) async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        let options = self
            .options()
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("secure_delete", "ON");
        let mut connection = options.connect().await?;
        self.prove(&mut connection).await?;
        Ok(connection)
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .foreign_keys(true)
            .busy_timeout(PATIENCE)
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging()
    }

    /// SQLite ignores a setting that it cannot keep; a payment must not rest on a wish.
    async fn prove(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let journal: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
        let synchronous: i64 =
            sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *connection).await?;
        let secure_delete: i64 =
            sqlx::query_scalar("PRAGMA secure_delete").fetch_one(&mut *connection).await?;
        let foreign_keys: i64 =
            sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&mut *connection).await?;
        for (setting, found, wanted) in [
            ("journal_mode", journal, "wal"),
            ("synchronous", synchronous.to_string(), "2"),
            ("secure_delete", secure_delete.to_string(), "1"),
            ("foreign_keys", foreign_keys.to_string(), "1"),
        ] {
            if found != wanted {
                return Err(StoreError::Setting {
                    place: self.path.display().to_string(),
                    setting,
                    found,
                    wanted,
                });
            }
        }
        Ok(())
    }
}

/// Takes the instance lock, in a file of its own: closing any handle of the database file itself
/// would drop SQLite's locks with it.
fn lock(database: &Path) -> Result<File, StoreError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file =
        private().open(&path).map_err(failed(&path, "its directory must exist and be ours"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::InstanceRunning { path: database.to_owned() })
        }
        Err(TryLockError::Error(error)) => {
            Err(failed(&path, "locking it failed: use a local file system")(error))
        }
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

pub(super) fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::File { path, what, source: Arc::new(error) }
}
