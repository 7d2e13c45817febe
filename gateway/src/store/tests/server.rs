//! PostgreSQL servers that are away, full, read-only, unsafe, or not whom we think: each is refused
//! in words that name the remedy.

use std::path::Path;

use cluster::{Cluster, Stop};
use pki::{Authority, Leaf};

use super::*;

/// A server and an empty database in it.
struct Server {
    cluster: Cluster,
    database: String,
}

impl Server {
    fn start() -> Self {
        let cluster = Cluster::start().unwrap();
        let database = cluster.database().unwrap();
        Self { cluster, database }
    }

    /// The same, with these settings.
    fn with(settings: &[&str]) -> Self {
        let mut this = Self::start();
        this.cluster.configure(settings);
        this.restart();
        this
    }

    fn restart(&mut self) {
        self.cluster.stop(Stop::Fast).unwrap();
        self.cluster.run().unwrap();
    }

    fn config(&self, user: &str) -> StoreConfig {
        let host = self.cluster.socket().display().to_string();
        StoreConfig::on(PostgresConfig {
            user: user.to_owned(),
            ..PostgresConfig::at(host, &self.database)
        })
    }

    fn execute(&self, sql: &str) {
        self.cluster.execute(&self.database, sql).unwrap();
    }
}

async fn open(config: &StoreConfig) -> Result<Store, StoreError> {
    Store::open(config, &QueueConfig::default()).await
}

async fn becomes(store: &Store, healthy: bool) -> bool {
    for _ in 0..100 {
        if store.is_healthy() == healthy {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

#[tokio::test]
async fn a_server_that_is_away_is_named_with_the_setting_that_leads_to_it() {
    let mut server = Server::start();
    server.cluster.stop(Stop::Fast).unwrap();

    let away = open(&server.config(cluster::USER)).await.unwrap_err();
    server.cluster.run().unwrap();
    let back = open(&server.config(cluster::USER)).await;

    let text = away.to_string();
    assert!(text.contains(&server.database) && text.contains("store.postgres.host"), "{text}");
    assert!(away.is_transient() && away.changed_nothing());
    assert!(back.is_ok(), "{back:?}");
}

#[tokio::test]
async fn a_database_and_a_role_that_are_not_there_are_named() {
    let server = Server::start();
    let mut elsewhere = server.config(cluster::USER);
    elsewhere.postgres.as_mut().unwrap().database = "elsewhere".into();

    let database = open(&elsewhere).await.unwrap_err().to_string();
    let role = open(&server.config("nobody")).await.unwrap_err().to_string();

    assert!(database.contains("store.postgres.database"), "{database}");
    assert!(role.contains("store.postgres.user"), "{role}");
}

#[tokio::test]
async fn a_server_that_does_not_sync_is_refused() {
    for setting in ["fsync", "full_page_writes"] {
        let server = Server::with(&[&format!("{setting}=off")]);

        let refused = open(&server.config(cluster::USER)).await.unwrap_err();

        assert!(matches!(refused, StoreError::Setting { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains(setting) && text.contains("postgresql.conf"), "{text}");
    }
}

/// The role that runs is not the one that owns the schema.
#[tokio::test]
async fn a_role_without_rights_is_told_which_and_needs_no_more_than_those() {
    let server = Server::start();
    server.execute("CREATE ROLE gateway LOGIN");
    let config = server.config("gateway");

    let no_tables = open(&config).await.unwrap_err();
    open(&server.config(cluster::USER)).await.unwrap().close().await;
    let no_rights = open(&config).await.unwrap_err();
    server
        .execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO gateway");
    server.execute("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO gateway");
    let store = open(&config).await.unwrap();
    let served = store.insert_dek(dek()).await;
    server.execute("REVOKE INSERT ON saf_dek FROM gateway");
    let revoked = store.insert_dek(dek()).await.unwrap_err();
    server.execute("ALTER TABLE saf_dek RENAME TO saf_key");
    let other = store.insert_dek(dek()).await.unwrap_err();

    assert!(no_tables.to_string().contains("owner of the schema"), "{no_tables}");
    assert!(no_rights.to_string().contains("GRANT"), "{no_rights}");
    assert!(served.is_ok(), "{served:?}");
    assert!(revoked.to_string().contains("GRANT") && revoked.is_transient(), "{revoked}");
    assert!(other.to_string().contains("another release"), "{other}");
}

#[tokio::test]
async fn a_migration_that_fails_says_that_nothing_was_changed_and_what_to_mend() {
    let server = Server::start();
    server.execute("CREATE TABLE saf_item (stranger bigint)");
    let config = server.config(cluster::USER);

    let in_the_way = open(&config).await.unwrap_err().to_string();
    server.execute("DROP TABLE saf_item");
    open(&config).await.unwrap().close().await;
    server.execute("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1");
    let not_ours = open(&config).await.unwrap_err().to_string();

    assert!(in_the_way.contains("nothing was changed"), "{in_the_way}");
    assert!(!in_the_way.contains("backup"), "{in_the_way}");
    assert!(not_ours.contains("restore a backup"), "{not_ours}");
}

/// As a standby is.
#[tokio::test]
async fn a_server_that_takes_no_writes_is_refused_at_the_start() {
    let server = Server::with(&["default_transaction_read_only=on"]);

    let refused = open(&server.config(cluster::USER)).await.unwrap_err();

    assert!(matches!(refused, StoreError::Setting { .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("transaction_read_only") && text.contains("primary"), "{text}");
}

#[tokio::test]
async fn a_server_that_takes_no_writes_any_more_says_so_and_comes_back() {
    let server = Server::start();
    let store = open(&server.config(cluster::USER)).await.unwrap();
    let set = |value: &str| {
        let sql = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
        server.execute(&sql);
        server.execute("SELECT pg_reload_conf()");
    };

    set("on");
    let told = becomes(&store, false).await;
    let refused = store.insert_dek(dek()).await.unwrap_err();
    set("DEFAULT");
    let back = becomes(&store, true).await;
    let after = store.insert_dek(dek()).await;

    assert!(told && back, "{told} {back}");
    assert!(refused.to_string().contains("read-only"), "{refused}");
    assert!(after.is_ok(), "{after:?}");
}

/// A role with as many connections as its writers need, and none for its readers.
#[tokio::test]
async fn a_role_without_connections_left_is_answered_in_time_and_served_again() {
    let server = Server::start();
    server.execute("CREATE ROLE gateway LOGIN CONNECTION LIMIT 1");
    server.execute(&format!("ALTER DATABASE {} OWNER TO gateway", server.database));
    let config = server.config("gateway");
    let refused = open(&config).await.unwrap_err().to_string();
    server.execute("ALTER ROLE gateway CONNECTION LIMIT 2");
    let store = open(&config).await.unwrap();

    let begun = tokio::time::Instant::now();
    let reading = store.queue_stats().await.unwrap_err();
    let took = begun.elapsed();
    let writing = store.insert_dek(dek()).await;
    server.execute("ALTER ROLE gateway CONNECTION LIMIT 20");
    let served = store.queue_stats().await;

    assert!(refused.contains("as many connections"), "{refused}");
    assert!(reading.is_transient() && took < ANSWER_WITHIN * 2, "{reading} {took:?}");
    assert!(writing.is_ok(), "{writing:?}");
    assert!(served.is_ok(), "{served:?}");
}

/// Listens with TLS on 127.0.0.1 as `localhost`: three roles, each let in otherwise.
struct TlsServer {
    server: Server,
    port: u16,
    pki: tempfile::TempDir,
}

impl TlsServer {
    fn start() -> Self {
        let pki = tempfile::tempdir().unwrap();
        let mut authority = Authority::create(pki.path(), "Database CA").unwrap();
        authority.issue("server", &Leaf::server(["localhost"], [])).unwrap();
        authority.issue("client", &Leaf::client("spiffe://tollgate.test/gateway")).unwrap();
        let read = |name: &str| std::fs::read(pki.path().join(name)).unwrap();
        let mut server = Server::start();
        for role in ["plain", "certified"] {
            server.execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER"));
        }
        server.execute("CREATE ROLE secret LOGIN SUPERUSER PASSWORD 'correct horse'");
        let cluster = &mut server.cluster;
        for (name, from) in [("s.crt", "server.crt"), ("s.key", "server.key"), ("ca.crt", "ca.crt")]
        {
            cluster.write(name, &read(from)).unwrap();
        }
        let rules = "local all all trust\n\
                     hostssl all plain 127.0.0.1/32 trust\n\
                     hostssl all secret 127.0.0.1/32 scram-sha-256\n\
                     hostssl all certified 127.0.0.1/32 trust clientcert=verify-ca\n";
        cluster.write("pg_hba.conf", rules.as_bytes()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        cluster.listen(port);
        cluster.configure(&[
            "ssl=on",
            "ssl_cert_file=s.crt",
            "ssl_key_file=s.key",
            "ssl_ca_file=ca.crt",
        ]);
        server.restart();
        Self { server, port, pki }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pki.path().join(name)
    }

    fn config(&self, user: &str) -> PostgresConfig {
        PostgresConfig {
            port: self.port,
            user: user.to_owned(),
            ca: Some(self.path("ca.crt")),
            ..PostgresConfig::at("localhost", &self.server.database)
        }
    }
}

async fn refusal(config: PostgresConfig) -> String {
    let refused = open(&StoreConfig::on(config)).await.unwrap_err();
    let source = std::error::Error::source(&refused).map(ToString::to_string);
    format!("{refused} ({})", source.unwrap_or_default())
}

async fn opens(config: PostgresConfig) {
    let opened = open(&StoreConfig::on(config)).await;
    opened.unwrap().close().await;
}

#[tokio::test]
async fn a_server_is_known_by_its_certificate_and_we_by_ours_or_by_a_password() {
    let tls = TlsServer::start();
    let other = tempfile::tempdir().unwrap();
    Authority::create(other.path(), "Another CA").unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(tls.path(name), text).unwrap();
        Some(tls.path(name))
    };
    let (right, wrong) = (file("right", "correct horse\n"), file("wrong", "battery staple"));
    let ours = |config: PostgresConfig| PostgresConfig {
        certificate: Some(tls.path("client.crt")),
        key: Some(tls.path("client.key")),
        ..config
    };

    opens(tls.config("plain")).await;
    opens(ours(tls.config("certified"))).await;
    opens(PostgresConfig { password_file: right, ..tls.config("secret") }).await;

    let stranger = |ca: &Path| Some(ca.join("ca.crt"));
    for (config, remedy) in [
        (PostgresConfig { ca: stranger(other.path()), ..tls.config("plain") }, "store.postgres.ca"),
        (PostgresConfig { host: "127.0.0.1".into(), ..tls.config("plain") }, "store.postgres.host"),
        (tls.config("certified"), "certificate"),
        (tls.config("secret"), "password_file"),
        (PostgresConfig { password_file: wrong, ..tls.config("secret") }, "password_file"),
        (PostgresConfig { ca: Some(tls.path("absent")), ..tls.config("plain") }, "ca"),
        (
            PostgresConfig { password_file: Some(tls.path("absent")), ..tls.config("secret") },
            "password",
        ),
    ] {
        let text = refusal(config).await;
        assert!(text.contains(remedy), "{remedy}: {text}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_refused_by_name() {
    let mut tls = TlsServer::start();
    tls.server.cluster.configure(&["ssl=off"]);
    let rules = "local all all trust\nhost all all 127.0.0.1/32 trust\n";
    tls.server.cluster.write("pg_hba.conf", rules.as_bytes()).unwrap();
    tls.server.restart();

    let text = refusal(tls.config("plain")).await;

    assert!(text.contains("TLS") && text.contains("store.postgres"), "{text}");
}
