//! Disposable PostgreSQL clusters: the real server, in a directory of its own, reached through a
//! socket there and through nothing else.
//!
//! A run of many tests shares one cluster, which `with-postgres` starts around it; each test has a
//! [`Database`] of its own. A test without a cluster around it starts one.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;
use uuid::Uuid;

/// Names the socket's directory of a running cluster.
pub const SHARED: &str = "TOLLGATE_TEST_POSTGRES";

/// The superuser of every cluster here. The socket's directory lets nobody else in.
pub const USER: &str = "tollgate";

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Neither on the path nor where Debian has it.
    #[error("no {0}: install PostgreSQL 15 or later (Debian: apt-get install postgresql)")]
    NoPostgres(&'static str),
    /// A directory, a process.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The operating system's word.
        source: io::Error,
    },
    /// One of PostgreSQL's programs.
    #[error("{program} failed: {said}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it wrote.
        said: String,
    },
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Connections are cut, the log is folded.
    Fast,
    /// As if it had crashed: the next start recovers from its log.
    Immediate,
}

/// A server of one's own. It ends with this value, and with the thread that started it.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    directory: TempDir,
    settings: Vec<String>,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    /// Makes and starts one: a second or two.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start: in its own words.
    pub fn start() -> Result<Self, ClusterError> {
        let programs = programs()?;
        let directory = tempfile::Builder::new()
            .prefix("tollgate-pg-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(system("a temporary directory"))?;
        if geteuid().is_root() {
            // The server refuses to run as root.
            std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY))
                .map_err(system("giving the cluster's directory to nobody"))?;
        }
        let (settings, port) = (Vec::new(), PORT);
        let mut cluster = Self { programs, directory, settings, port, server: None };
        let data = cluster.path("data");
        let mut initdb = cluster.unprivileged("initdb");
        initdb.arg("-D").arg(&data).args(["-U", USER, "-A", "trust", "-E", "UTF8"]);
        initdb.args(["--locale=C", "--no-sync", "--no-instructions"]);
        ran("initdb", &mut initdb)?;
        cluster.run()?;
        Ok(cluster)
    }

    /// Where its socket is: the host of a connection.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.directory.path()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Settings, `name=value`, for the next start: these and no others of earlier calls.
    pub fn configure(&mut self, settings: &[&str]) {
        self.settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
    }

    /// From the next start on it listens on this port of 127.0.0.1 too, and its socket has the
    /// port in its name.
    pub fn listen(&mut self, port: u16) {
        self.port = port;
    }

    /// Writes a file that the server owns beside its tables: a key, `pg_hba.conf`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), ClusterError> {
        let path = self.path("data").join(name);
        let written = || {
            std::fs::write(&path, contents)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            if geteuid().is_root() {
                std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY))?;
            }
            Ok(())
        };
        written().map_err(system(name))
    }

    /// Runs statements in a database. What they select, a line a row.
    ///
    /// # Errors
    /// As the server says.
    pub fn execute(&self, database: &str, sql: &str) -> Result<String, ClusterError> {
        let mut psql = self.command("psql");
        psql.args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        ran("psql", &mut psql)
    }

    /// Ends the server, if it runs.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop(&mut self, how: Stop) -> Result<(), ClusterError> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        let pid = i32::try_from(server.id()).ok().and_then(Pid::from_raw);
        // A server that has ended by itself takes no signal.
        let _ = pid.map(|pid| kill_process(pid, signal));
        server.wait().map(drop).map_err(system("waiting for the server's end"))
    }

    /// Starts the server again, with all that it had made durable.
    ///
    /// # Errors
    /// It does not start: in its own words.
    #[expect(clippy::disallowed_methods, reason = "the caller waits, on a thread of its own")]
    pub fn run(&mut self) -> Result<(), ClusterError> {
        let log = self.path("server.log");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(system("the server's log"))?;
        let mut server = self.unprivileged("postgres");
        server.arg("-D").arg(self.path("data")).arg("-k").arg(self.socket());
        let address =
            if self.port == PORT { "listen_addresses=" } else { "listen_addresses=127.0.0.1" };
        server.arg("-p").arg(self.port.to_string());
        let always = [address, "max_connections=300", "autovacuum_naptime=5s"];
        for setting in always.into_iter().chain(self.settings.iter().map(String::as_str)) {
            server.args(["-c", setting]);
        }
        let started = server.stdin(Stdio::null()).stdout(output.0).stderr(output.1).spawn();
        self.server = Some(started.map_err(system("starting the server"))?);
        let until = Instant::now() + START_MAX;
        loop {
            let asked = self.command("pg_isready").arg("-q").status();
            if asked.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            let ended = self
                .server
                .as_mut()
                .is_none_or(|server| server.try_wait().is_ok_and(|status| status.is_some()));
            if ended || Instant::now() > until {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(ClusterError::Program { program: "postgres", said });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A new, empty database in this cluster. It is dropped with the cluster.
    ///
    /// # Errors
    /// As the server says.
    pub fn database(&self) -> Result<String, ClusterError> {
        create(&self.programs, self.socket(), self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        client(&self.programs, self.socket(), self.port, program)
    }

    /// A program of the server's side: not as root, and not for longer than whoever started it.
    fn unprivileged(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]);
        if geteuid().is_root() {
            let nobody = NOBODY.to_string();
            command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
        }
        command.arg("--").arg(self.programs.join(program)).current_dir(self.directory.path());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing in it is worth a tidy end.
        let _ = self.stop(Stop::Immediate);
    }
}

/// A database of one's own, dropped with this value.
#[derive(Debug)]
pub struct Database {
    /// Where the socket is: the host of a connection.
    pub socket: PathBuf,
    /// Its name.
    pub name: String,
    /// The cluster, when it is not one that others use.
    own: Option<Cluster>,
}

impl Database {
    /// In the cluster that runs around the tests, or in one of its own.
    ///
    /// # Errors
    /// PostgreSQL is not installed or does not start.
    pub fn create() -> Result<Self, ClusterError> {
        match std::env::var_os(SHARED) {
            Some(socket) => {
                let socket = PathBuf::from(socket);
                let name = create(&programs()?, &socket, PORT)?;
                Ok(Self { socket, name, own: None })
            }
            None => {
                let cluster = Cluster::start()?;
                let name = cluster.database()?;
                Ok(Self { socket: cluster.socket().to_owned(), name, own: Some(cluster) })
            }
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.own.is_some() {
            return;
        }
        if let Ok(programs) = programs() {
            let mut drop = client(&programs, &self.socket, PORT, "dropdb");
            // What is left goes with the cluster.
            let _ = drop.args(["--force", "--if-exists", &self.name]).status();
        }
    }
}

fn create(programs: &Path, socket: &Path, port: u16) -> Result<String, ClusterError> {
    let name = format!("t{}", Uuid::now_v7().simple());
    ran("createdb", client(programs, socket, port, "createdb").arg(&name))?;
    Ok(name)
}

fn client(programs: &Path, socket: &Path, port: u16, program: &str) -> Command {
    let mut command = Command::new(programs.join(program));
    command.arg("-h").arg(socket).arg("-p").arg(port.to_string()).args(["-U", USER]);
    if program != "pg_isready" {
        command.arg("--no-password");
    }
    command
}

fn ran(program: &'static str, command: &mut Command) -> Result<String, ClusterError> {
    let output = command.output().map_err(system(program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ClusterError::Program { program, said })
}

/// Where PostgreSQL's programs are: on the path, or the newest where Debian has them.
fn programs() -> Result<PathBuf, ClusterError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    versions.sort();
    places.extend(versions.into_iter().rev().map(|(_, place)| place.join("bin")));
    let has = |place: &PathBuf| {
        ["initdb", "postgres", "createdb"].iter().all(|program| {
            place
                .join(program)
                .metadata()
                .is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
        })
    };
    places.into_iter().find(has).ok_or(ClusterError::NoPostgres("initdb"))
}

fn system(what: &str) -> impl FnOnce(io::Error) -> ClusterError {
    let what = what.to_owned();
    move |source| ClusterError::System { what, source }
}

/// PostgreSQL's own, which is in the name of a socket.
const PORT: u16 = 5_432;

/// `nobody`, everywhere.
const NOBODY: u32 = 65_534;

/// A start after a crash replays the log.
const START_MAX: Duration = Duration::from_secs(60);
