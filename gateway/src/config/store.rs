//! `[store]`: the database, a file of our own or a PostgreSQL server, and how it is written.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::within;

/// The `[store]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The SQLite file; made with mode 0600 when absent, in a directory that exists, on a local
    /// file system. For one gateway. No default: this or `[store.postgres]`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The PostgreSQL database that several gateways share.
    #[serde(default)]
    pub postgres: Option<PostgresConfig>,
    /// Connections that read. Default 4.
    #[serde(default = "readers")]
    pub readers: u32,
    /// Orders that may wait for the writer before `busy` is answered. Default 4 096.
    #[serde(default = "writer_queue_max")]
    pub writer_queue_max: u32,
    /// Orders committed together at most. Default 256.
    #[serde(default = "group_rows_max")]
    pub group_rows_max: u32,
}

/// The `[store.postgres]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// The server's name, or the directory of its Unix socket. No default.
    pub host: String,
    /// Its port. Default 5432.
    #[serde(default = "port")]
    pub port: u16,
    /// The database. Default `tollgate`.
    #[serde(default = "tollgate")]
    pub database: String,
    /// The role. It needs no right to make tables once the schema is there. Default `tollgate`.
    #[serde(default = "tollgate")]
    pub user: String,
    /// The file with the role's password, if it has one.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The authority of the server's certificate. Needed with a host name: the connection is TLS,
    /// and the name is checked.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Our certificate, where the server asks for one.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// Its key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Connections that write; each commits a group of its own. Default 2.
    #[serde(default = "writers")]
    pub writers: u32,
}

/// Where the rows are.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In a file of our own.
    Sqlite(&'a Path),
    /// In a database that others share.
    Postgres(&'a PostgresConfig),
}

impl PostgresConfig {
    /// Defaults around a server.
    #[must_use]
    pub fn at(host: impl Into<String>, database: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            port: port(),
            database: database.into(),
            user: tollgate(),
            password_file: None,
            ca: None,
            certificate: None,
            key: None,
            writers: writers(),
        }
    }

    /// Whether the server is reached through a socket of this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.host.starts_with('/')
    }

    fn check(&self) -> Result<(), String> {
        if self.host.is_empty() || self.host.contains("://") {
            return Err(format!(
                "store.postgres.host = {:?}: must be a host name or the directory of a socket",
                self.host
            ));
        }
        if self.ca.is_none() && !self.is_local() {
            return Err(
                "store.postgres.ca: is needed with a host name; the connection is TLS".into()
            );
        }
        if self.certificate.is_some() != self.key.is_some() {
            return Err("store.postgres.certificate and key: must be given together".into());
        }
        within("store.postgres.writers", self.writers, 1..=8)
    }
}

impl StoreConfig {
    /// Defaults around a file.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::nowhere() }
    }

    /// Defaults around a server.
    #[must_use]
    pub fn on(postgres: PostgresConfig) -> Self {
        Self { postgres: Some(postgres), ..Self::nowhere() }
    }

    fn nowhere() -> Self {
        Self {
            path: None,
            postgres: None,
            readers: readers(),
            writer_queue_max: writer_queue_max(),
            group_rows_max: group_rows_max(),
        }
    }

    /// Where the rows are.
    ///
    /// # Errors
    /// Not in exactly one place.
    pub fn place(&self) -> Result<Place<'_>, String> {
        match (&self.path, &self.postgres) {
            (Some(path), None) => Ok(Place::Sqlite(path)),
            (None, Some(postgres)) => Ok(Place::Postgres(postgres)),
            (None, None) => Err("store: needs path (SQLite) or [store.postgres]".into()),
            (Some(_), Some(_)) => Err("store: has both path and [store.postgres]; keep one".into()),
        }
    }

    /// Whether every value is within its bounds.
    ///
    /// # Errors
    /// Names the first key that is not, its value and the bounds.
    pub fn check(&self) -> Result<(), String> {
        match self.place()? {
            Place::Sqlite(path) if path.file_name().is_none() => {
                return Err(format!("store.path = {path:?}: must name a file"));
            }
            Place::Sqlite(_) => {}
            Place::Postgres(postgres) => postgres.check()?,
        }
        within("store.readers", self.readers, 1..=64)?;
        within("store.writer_queue_max", self.writer_queue_max, 16..=65_536)?;
        within("store.group_rows_max", self.group_rows_max, 1..=1_024)
    }
}

fn port() -> u16 {
    5_432
}

fn tollgate() -> String {
    "tollgate".into()
}

fn writers() -> u32 {
    2
}

fn readers() -> u32 {
    4
}

fn writer_queue_max() -> u32 {
    4_096
}

fn group_rows_max() -> u32 {
    256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_all_that_must_be_said() {
        let config: StoreConfig = toml::from_str("path = \"var/tollgate.db\"").unwrap();

        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.group_rows_max, 256);
    }

    #[test]
    fn a_directory_a_missing_path_and_no_readers_are_refused() {
        let directory: StoreConfig = toml::from_str("path = \"/\"").unwrap();
        let deaf: StoreConfig = toml::from_str("path = \"a.db\"\nreaders = 0").unwrap();

        assert!(directory.check().unwrap_err().starts_with("store.path"));
        assert_eq!(deaf.check().unwrap_err(), "store.readers = 0: must be from 1 to 64");
    }

    #[test]
    fn the_rows_are_in_one_place() {
        let config = |text: &str| toml::from_str::<StoreConfig>(text).unwrap();
        let server = "[postgres]\nhost = \"db.internal\"";

        let socket = config("[postgres]\nhost = \"/run/postgresql\"");
        let verified = config(&format!("{server}\nca = \"ca.crt\""));

        assert_eq!((socket.check(), verified.check()), (Ok(()), Ok(())));
        for (text, why) in [
            ("readers = 2", "needs path"),
            (&format!("path = \"a.db\"\n{server}"), "both"),
            (server, "store.postgres.ca"),
            (&format!("{server}\nca = \"a\"\nkey = \"k\""), "together"),
            ("[postgres]\nhost = \"postgres://db\"", "must be a host name"),
        ] {
            assert!(config(text).check().unwrap_err().contains(why), "{text}");
        }
    }
}
