//! Why the store did not answer, and whether asking again may help.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;

use super::ANSWER_WITHIN;

/// Why the store did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Two gateways on one file would each count the other's leases as lost.
    #[error(
        "another gateway runs on {path}: stop it, or give this one its own file in store.path",
        path = .path.display()
    )]
    InstanceRunning {
        /// The database.
        path: PathBuf,
    },
    /// The configuration names no database, or two.
    #[error("{0}")]
    NoPlace(String),
    /// The file cannot be made, locked or read.
    #[error("cannot use {path}: {what}", path = .path.display())]
    File {
        /// The database or a file beside it.
        path: PathBuf,
        /// What was tried, and the remedy.
        what: &'static str,
        /// The operating system's word.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The database does not keep a setting that durability rests on.
    #[error("{place} runs with {setting} = {found}, not {wanted}: {}", remedy(setting))]
    Setting {
        /// The database.
        place: String,
        /// Its name there.
        setting: &'static str,
        /// What the database says.
        found: String,
        /// What it must say.
        wanted: &'static str,
    },
    /// The schema is not one of ours, or cannot be made so.
    #[error("cannot migrate {place}: {what}")]
    Migrate {
        /// The database.
        place: String,
        /// What is wrong, and the remedy.
        what: &'static str,
        /// Which migration, and why.
        #[source]
        source: Arc<MigrateError>,
    },
    /// The server cannot be reached or lets nobody in. The same call may succeed later.
    #[error("cannot connect to {place}: {what}")]
    Unreachable {
        /// The database.
        place: String,
        /// What is wrong, and where to look.
        what: &'static str,
        /// The server's word, or the system's.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The database does not work now: locked, full, gone. The same call may succeed later.
    #[error("the database is not available: {what}")]
    Unavailable {
        /// What is wrong with it.
        what: &'static str,
        /// The database's word, when it has spoken.
        #[source]
        source: Option<Arc<sqlx::Error>>,
    },
    /// The writer has as many orders waiting as it may. Nothing was done.
    #[error("the database writer is busy: store.writer_queue_max orders wait")]
    Busy,
    /// One statement was refused; its neighbours in the group were not touched.
    #[error("the database refused a statement")]
    Refused(#[source] Arc<sqlx::Error>),
    /// A row that we did not write.
    #[error("the database holds a row that is not ours: column {0}")]
    Foreign(&'static str),
}

impl StoreError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unavailable { .. } | Self::Busy => true,
            Self::InstanceRunning { .. }
            | Self::NoPlace(_)
            | Self::File { .. }
            | Self::Setting { .. }
            | Self::Migrate { .. }
            | Self::Refused(_)
            | Self::Foreign(_) => false,
        }
    }

    /// Whether the call certainly changed nothing, so that what must not happen twice may be tried
    /// again. Of a call that was not answered in time nobody knows.
    #[must_use]
    pub fn changed_nothing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Busy => true,
            Self::Unavailable { what, .. } => *what == LOCKED || *what == IN_THE_WAY,
            Self::InstanceRunning { .. }
            | Self::NoPlace(_)
            | Self::File { .. }
            | Self::Setting { .. }
            | Self::Migrate { .. }
            | Self::Refused(_)
            | Self::Foreign(_) => false,
        }
    }

    /// Whether the database, or a reader that came free, was waited for in vain.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(self, Self::Unavailable { what, .. } if *what == LATE)
    }

    /// Whether another writer's transaction undid this one, which may succeed at once.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            Self::Unavailable { what, .. } => *what == IN_THE_WAY,
            // PostgreSQL: a row that another has made since we looked for it.
            Self::Refused(error) => {
                let said = error.as_database_error();
                said.is_some_and(|said| {
                    said.is_unique_violation()
                        && said.try_downcast_ref::<PgDatabaseError>().is_some()
                })
            }
            Self::Busy
            | Self::Unreachable { .. }
            | Self::InstanceRunning { .. }
            | Self::NoPlace(_)
            | Self::File { .. }
            | Self::Setting { .. }
            | Self::Migrate { .. }
            | Self::Foreign(_) => false,
        }
    }

    pub(super) fn migrate(place: impl ToString, source: MigrateError) -> Self {
        let (place, what) = (place.to_string(), of_migrating(&source));
        Self::Migrate { place, what, source: source.into() }
    }

    pub(super) fn unreachable(place: &str, source: sqlx::Error) -> Self {
        let (place, what) = (place.to_owned(), of_connecting(&source));
        Self::Unreachable { place, what, source: source.into() }
    }

    pub(super) fn closed() -> Self {
        Self::unavailable("the store is closed")
    }

    pub(super) fn unavailable(what: &'static str) -> Self {
        Self::Unavailable { what, source: None }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let said = error.as_database_error();
        let what = match said {
            Some(said) => match said.try_downcast_ref::<PgDatabaseError>() {
                Some(said) => of_postgres(said.code()),
                None => said.code().and_then(|code| of_sqlite(&code)),
            },
            None => is_connection(&error).then_some("its connection is gone"),
        };
        match what {
            Some(what) => Self::Unavailable { what, source: Some(Arc::new(error)) },
            None => Self::Refused(Arc::new(error)),
        }
    }
}

fn of_sqlite(code: &str) -> Option<&'static str> {
    // The low byte is the primary result code, the rest refines it.
    Some(match code.parse::<u32>().ok()? & 0xFF {
        5 | 6 => LOCKED,
        8 => "it is read-only",
        10 => "its disk does not answer",
        11 | 26 => "its file is damaged: restore a backup",
        13 => "its disk is full",
        14 => "its file cannot be opened",
        _ => return None,
    })
}

fn of_postgres(code: &str) -> Option<&'static str> {
    Some(match code {
        // Serialization, deadlock, a lock that did not come.
        "40001" | "40P01" | "55P03" => IN_THE_WAY,
        "25006" => "it is read-only",
        "53100" => "its disk is full",
        "53300" => "it has as many connections as it may",
        "57014" => LATE,
        "42501" => {
            "the role lacks rights: the owner of the schema must GRANT SELECT, INSERT, UPDATE, DELETE \
             ON ALL TABLES IN SCHEMA and GRANT USAGE ON ALL SEQUENCES IN SCHEMA to \
             store.postgres.user"
        }
        "42P01" | "42703" => "its schema is another release's: run the release that migrated it",
        "57P01" | "57P02" | "57P03" => "its server stops or starts",
        "58030" => "its disk does not answer",
        _ if code.starts_with("08") || code.starts_with("28") => "it lets nobody in",
        _ if code.starts_with("53") => "it is out of resources",
        "XX001" | "XX002" => "it is damaged: restore a backup",
        _ if code.starts_with("XX") => "its server failed inside: see the server's log",
        _ => return None,
    })
}

/// Each step of a migration is one transaction.
fn of_migrating(error: &MigrateError) -> &'static str {
    if matches!(
        error,
        MigrateError::VersionMissing(_)
            | MigrateError::VersionMismatch(_)
            | MigrateError::VersionNotPresent(_)
            | MigrateError::VersionTooOld(..)
            | MigrateError::VersionTooNew(..)
    ) {
        return "restore a backup, or run the release that wrote it";
    }
    let (MigrateError::Execute(failed) | MigrateError::ExecuteMigration(failed, _)) = error else {
        return STEP;
    };
    let code = failed.as_database_error().and_then(|said| said.code());
    match code.as_deref() {
        Some("42501") => "the role lacks rights: start once as the owner of the schema",
        // The lock around all steps.
        Some("55P03") if matches!(error, MigrateError::Execute(_)) => {
            "another gateway migrates: start again when its log says that it has"
        }
        Some("55P03") => {
            "somebody else's transaction is in the way: find it in pg_stat_activity, end it and start \
             again; nothing was changed"
        }
        _ => STEP,
    }
}

/// Of a step that failed.
const STEP: &str = "nothing was changed by the step that failed: mend the cause and start again";

fn of_connecting(error: &sqlx::Error) -> &'static str {
    let said =
        error.as_database_error().and_then(|said| said.try_downcast_ref::<PgDatabaseError>());
    if let Some(said) = said {
        return match said.code() {
            code if code.starts_with("28") => {
                "it does not let us in: see store.postgres.user, password_file and certificate, and its \
                 pg_hba.conf"
            }
            "42501" => "store.postgres.user may not: GRANT CONNECT ON DATABASE to it",
            "3D000" => "it has no such database: create it, or mend store.postgres.database",
            "53300" => "it has as many connections as it, or store.postgres.user, may have",
            code => of_postgres(code).unwrap_or("it refuses"),
        };
    }
    let io = if let sqlx::Error::Io(error) = error { Some(error.kind()) } else { None };
    if matches!(error, sqlx::Error::Configuration(_)) {
        "a file of store.postgres.ca, certificate or key is not what it must be"
    } else if matches!(error, sqlx::Error::Tls(_)) || io == Some(ErrorKind::InvalidData) {
        TLS
    } else if io == Some(ErrorKind::TimedOut) {
        "it does not answer: see store.postgres.host and port"
    } else {
        "nobody answers there: start it, or mend store.postgres.host and port"
    }
}

/// The name in a certificate, its authority, or no TLS at all: the source says which.
const TLS: &str = "TLS with it fails: it must show a certificate of store.postgres.ca for \
                   store.postgres.host";

/// A transaction takes its lock before it does anything.
const LOCKED: &str = "it is locked by another process";

/// By our clock or its own.
const LATE: &str = "it did not answer in time";

/// The transaction was undone as a whole.
const IN_THE_WAY: &str = "another writer was in the way";

fn remedy(setting: &str) -> &'static str {
    match setting {
        "fsync" | "full_page_writes" | "synchronous_commit" => "set it in postgresql.conf",
        "server_version_num" => "upgrade the server",
        "transaction_read_only" => {
            "name the primary in store.postgres.host, or set default_transaction_read_only = off"
        }
        _ => "move it to a local file system",
    }
}

fn is_connection(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed
            | sqlx::Error::Tls(_)
            | sqlx::Error::Io(_)
    )
}

/// Answers within [`ANSWER_WITHIN`], whatever the database does.
pub(super) async fn within<T>(
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    in_time(ANSWER_WITHIN, call).await
}

/// Answers within `limit`, whatever the database does.
pub(super) async fn in_time<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(StoreError::unavailable(LATE)))
}
