//! Why the store did not answer, and whether asking again may help.

use std::path::PathBuf;
use std::sync::Arc;

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
    /// The file system or the file does not keep a setting that durability rests on.
    #[error(
        "{path} runs with {setting} = {found}, not {wanted}: move it to a local file system",
        path = .path.display()
    )]
    Setting {
        /// The database.
        path: PathBuf,
        /// The pragma.
        setting: &'static str,
        /// What SQLite says.
        found: String,
        /// What it must say.
        wanted: &'static str,
    },
    /// The schema is not one of ours.
    #[error(
        "cannot migrate {path}: restore a backup, or run the release that wrote it",
        path = .path.display()
    )]
    Migrate {
        /// The database.
        path: PathBuf,
        /// Which migration, and why.
        #[source]
        source: Arc<sqlx::migrate::MigrateError>,
    },
    /// The database does not work now: locked, full, gone. The same call may succeed later.
    #[error("the database is not available: {what}")]
    Unavailable {
        /// What is wrong with it.
        what: &'static str,
        /// SQLite's word, when it has spoken.
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
            Self::Unavailable { .. } | Self::Busy => true,
            Self::InstanceRunning { .. }
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
            Self::Busy => true,
            Self::Unavailable { what, .. } => *what == LOCKED,
            Self::InstanceRunning { .. }
            | Self::File { .. }
            | Self::Setting { .. }
            | Self::Migrate { .. }
            | Self::Refused(_)
            | Self::Foreign(_) => false,
        }
    }

    pub(super) fn unavailable(what: &'static str) -> Self {
        Self::Unavailable { what, source: None }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // The low byte is SQLite's primary result code, the rest refines it.
        let code = error
            .as_database_error()
            .and_then(|database| database.code())
            .and_then(|code| code.parse::<u32>().ok())
            .map(|code| code & 0xFF);
        let what = match code {
            Some(5 | 6) => LOCKED,
            Some(8) => "it is read-only",
            Some(10) => "its disk does not answer",
            Some(13) => "its disk is full",
            Some(14) => "its file cannot be opened",
            Some(11 | 26) => "its file is damaged: restore a backup",
            None if is_connection(&error) => "its connection is gone",
            Some(_) | None => return Self::Refused(Arc::new(error)),
        };
        Self::Unavailable { what, source: Some(Arc::new(error)) }
    }
}

/// A transaction takes its lock before it does anything.
const LOCKED: &str = "it is locked by another process";

fn is_connection(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed
            | sqlx::Error::Io(_)
    )
}

/// Answers within [`ANSWER_WITHIN`], whatever the database does.
pub(super) async fn within<T>(
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(ANSWER_WITHIN, call)
        .await
        .unwrap_or_else(|_| Err(StoreError::unavailable("it did not answer in time")))
}
