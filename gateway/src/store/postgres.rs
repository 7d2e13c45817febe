//! Opens a PostgreSQL database: settings that durability rests on proved, schema migrated.

use std::path::Path;
use std::time::Duration;

use hsm_adapter::worker::chain;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::db::{Readers, Session};
use super::{ANSWER_WITHIN, StoreError};
use crate::config::PostgresConfig;

/// The schema, step by step: the twins of SQLite's.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres");

/// Where one gateway tells the others that a lane may have become claimable.
pub(super) const CHANNEL: &str = "lanes_moved";

/// The server, and how to speak to it.
#[derive(Debug, Clone)]
pub(super) struct Server {
    options: Box<PgConnectOptions>,
    /// For people: `postgres host/database`.
    pub(super) name: String,
}

/// Connects, proves the server's settings and migrates.
pub(super) async fn open(
    config: &PostgresConfig,
    readers: u32,
) -> Result<(Server, Vec<Session>, Readers), StoreError> {
    let server = Server::of(config)?;
    let mut first = server.connect().await?;
    server.prove(&mut first).await?;
    server.migrate(&mut first).await?;
    let mut writers = vec![Session::Postgres(first)];
    while writers.len() < config.writers as usize {
        writers.push(Session::Postgres(server.connect().await?));
    }
    let readers = PgPoolOptions::new()
        .max_connections(readers)
        .acquire_timeout(ANSWER_WITHIN)
        // The pool's own test waits for ever for a host that has vanished. What fails here is closed
        // without a word to the server.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(async { answers(connection).await }))
        .after_release(|connection, _| Box::pin(async { answers(connection).await }))
        .connect_lazy_with((*server.options).clone());
    Ok((server, writers, Readers::Postgres(readers)))
}

/// What was seen of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSeen {
    /// `postgres host/database`.
    pub name: String,
    /// PostgreSQL's major version.
    pub version: u32,
    /// The last migration that was applied; 0 for an empty database.
    pub schema: i64,
    /// Migrations that opening the store will apply.
    pub pending: usize,
}

pub(super) async fn look(config: &PostgresConfig) -> Result<ServerSeen, StoreError> {
    let server = Server::of(config)?;
    let mut connection = server.connect().await?;
    server.prove(&mut connection).await?;
    let (schema, pending) = server.schema(&mut connection).await?;
    let version = connection.server_version_num().unwrap_or(0) / 10_000;
    Ok(ServerSeen { name: server.name, version, schema, pending })
}

impl Server {
    pub(super) fn of(config: &PostgresConfig) -> Result<Self, StoreError> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(config.port)
            .database(&config.database)
            .username(&config.user)
            .application_name("tollgate")
            .options([
                ("synchronous_commit", "on"),
                // Every statement has its index, and is planned once: what a plan is does not hang on
                // what the tables' statistics were when a queue was empty.
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                ("statement_timeout", "5s"),
                ("lock_timeout", "2s"),
                ("idle_in_transaction_session_timeout", "10s"),
            ])
            .statement_cache_capacity(512)
            .disable_statement_logging();
        options = if config.is_local() {
            options.socket(&config.host).ssl_mode(PgSslMode::Disable)
        } else {
            options.host(&config.host).ssl_mode(PgSslMode::VerifyFull)
        };
        if let Some(ca) = &config.ca {
            options = options.ssl_root_cert(ca);
        }
        if let (Some(certificate), Some(key)) = (&config.certificate, &config.key) {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        if let Some(file) = &config.password_file {
            options = options.password(password(file)?.trim_end_matches(['\r', '\n']));
        }
        let name = format!("postgres {}/{}", config.host, config.database);
        Ok(Self { options: Box::new(options), name })
    }

    /// A connection that writes.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        let connecting = PgConnection::connect_with(&self.options);
        let connected = timeout(CONNECT_MAX, connecting).await;
        connected
            .unwrap_or_else(|late| Err(sqlx::Error::Io(late.into())))
            .map_err(|error| StoreError::unreachable(&self.name, error))
    }

    /// What the server is, and what its operator may have switched off.
    async fn prove(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let version = connection.server_version_num().unwrap_or(0);
        if version < VERSION_MIN {
            return Err(StoreError::Setting {
                place: self.name.clone(),
                setting: "server_version_num",
                found: version.to_string(),
                wanted: "150000 or later",
            });
        }
        for (setting, accepted) in [
            ("fsync", ["on"].as_slice()),
            ("full_page_writes", &["on"]),
            ("synchronous_commit", &["on", "remote_apply"]),
            // On a standby, too.
            ("transaction_read_only", &["off"]),
        ] {
            let found: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(setting)
                .fetch_one(&mut *connection)
                .await?;
            if !accepted.contains(&found.as_str()) {
                return Err(StoreError::Setting {
                    place: self.name.clone(),
                    setting,
                    found,
                    wanted: accepted[0],
                });
            }
        }
        Ok(())
    }

    /// The last migration that was applied, and how many of ours are missing.
    async fn schema(&self, connection: &mut PgConnection) -> Result<(i64, usize), StoreError> {
        let failed = |source| StoreError::migrate(&self.name, source);
        let known: Option<String> = sqlx::query_scalar("SELECT to_regclass($1)::text")
            .bind(TABLE)
            .fetch_one(&mut *connection)
            .await?;
        let applied = match known {
            Some(_) => match connection.list_applied_migrations(TABLE).await {
                Err(MigrateError::Execute(refused)) => return Err(refused.into()),
                applied => applied.map_err(failed)?,
            },
            None => Vec::new(),
        };
        for one in &applied {
            let ours = MIGRATIONS.iter().find(|ours| ours.version == one.version);
            if ours.is_none_or(|ours| ours.checksum != one.checksum) {
                return Err(failed(MigrateError::VersionMismatch(one.version)));
            }
        }
        let pending = MIGRATIONS.iter().count() - applied.len();
        Ok((applied.iter().map(|one| one.version).max().unwrap_or(0), pending))
    }

    /// Applies what is missing. A role that may make no tables needs nothing to be missing.
    async fn migrate(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let (from, pending) = self.schema(connection).await?;
        if pending == 0 {
            return Ok(());
        }
        let to = MIGRATIONS.iter().map(|one| one.version).max();
        tracing::info!(database = self.name, from, to, "waiting to migrate");
        // Of several gateways that start at once, one migrates and the others wait.
        sqlx::raw_sql("SET statement_timeout = 0; SET lock_timeout = '30s'")
            .execute(&mut *connection)
            .await?;
        let ran = MIGRATIONS.run(&mut *connection).await;
        ran.map_err(|source| StoreError::migrate(&self.name, source))?;
        tracing::info!(database = self.name, from, to, "migrated");
        sqlx::raw_sql("RESET statement_timeout; RESET lock_timeout").execute(connection).await?;
        Ok(())
    }

    /// Wakes whoever waits when another gateway says so, as long as it is polled.
    pub(super) async fn listen(&self, wake: &Notify) {
        loop {
            let listening = async {
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(CONNECT_MAX)
                    .connect_lazy_with((*self.options).clone());
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen(CHANNEL).await?;
                loop {
                    match timeout(QUIET_MAX, listener.recv()).await {
                        Ok(told) => {
                            told?;
                            wake.notify_waiters();
                        }
                        // Nothing moves, or the host has vanished.
                        Err(_) => {
                            let asked = timeout(PING_MAX, listener.execute("SELECT 1")).await;
                            asked.map_err(|late| sqlx::Error::Io(late.into()))??;
                        }
                    }
                }
            };
            let ended: Result<(), sqlx::Error> = listening.await;
            if let Err(error) = ended {
                let error = chain(&error);
                tracing::warn!(error, "not told what other gateways queue; polling goes on");
            }
            tokio::time::sleep(RELISTEN).await;
        }
    }
}

/// Whether it answers now: an error when it does not.
async fn answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let answer = timeout(PING_MAX, connection.ping()).await;
    answer.unwrap_or_else(|late| Err(sqlx::Error::Io(late.into()))).map(|()| true)
}

fn password(file: &Path) -> Result<zeroize::Zeroizing<String>, StoreError> {
    std::fs::read_to_string(file)
        .map(zeroize::Zeroizing::new)
        .map_err(super::sqlite::failed(file, "it must hold the database role's password"))
}

/// Where sqlx keeps what it has applied.
const TABLE: &str = "_sqlx_migrations";

/// 15.0.
const VERSION_MIN: u32 = 150_000;

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// The longest silence before the server is asked whether it is there.
const QUIET_MAX: Duration = Duration::from_secs(30);

/// How long an idle connection may take to say that it is there.
const PING_MAX: Duration = Duration::from_secs(1);

/// The pause before listening again.
const RELISTEN: Duration = Duration::from_secs(1);
