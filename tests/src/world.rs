//! A whole world in one call: token, certificates, billing simulator and gateway, each a program
//! of its own on loopback, in a directory of its own. Any number of them run side by side.
//!
//! Dropping a world ends its processes, by their ids, and removes its directory.

mod config;
mod link;
mod process;
mod shim;

use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cluster::Database;
use pki::{Authority, Leaf, issue_demo};
use reqwest::Method;
use softhsm::{PlannedKey, demo_plan, find_module};
use tempfile::TempDir;
use tokio::time::Instant;

pub use self::link::Link;
pub use self::process::{Process, children, program, signal};
use crate::acquirer::Client;
use crate::billing::Control;

/// A change of the configuration before it is written.
pub type Edit = Box<dyn FnOnce(&mut toml::Table) + Send>;

/// A change of the planned keys before they are made.
pub type KeyEdit = Box<dyn FnOnce(&mut Vec<PlannedKey>) + Send>;

/// What a world is made of. `Default` is the demo's.
#[derive(Default)]
pub struct Wanted {
    /// Where it lives; a temporary directory when absent.
    pub dir: Option<PathBuf>,
    /// Data, admin and billing ports; free ones when absent.
    pub ports: Option<Ports>,
    /// Keys beside the demo's.
    pub more_keys: Vec<PlannedKey>,
    /// What becomes of all of them before they are made.
    pub edit_keys: Option<KeyEdit>,
    /// What the configuration has beside the demo's.
    pub edit: Option<Edit>,
    /// Whether the token is made and used through the fault shim.
    pub shim: bool,
    /// Whether there is a backup link: a second token with the same keys, and its workers.
    pub second_link: bool,
    /// The port that the configuration has for the billers: a proxy's. The simulator's when absent.
    pub biller_port: Option<u16>,
    /// `[vendor]` of the key register, TOML; none when empty.
    pub vendor: String,
    /// The PostgreSQL database that it keeps its rows in, see [`postgres_at`]; a SQLite file when
    /// absent.
    pub postgres: Option<toml::Table>,
}

impl Wanted {
    /// The demo's world on a database of a PostgreSQL server.
    #[must_use]
    pub fn on(database: &Database) -> Self {
        Self { postgres: Some(postgres_at(&database.socket, &database.name)), ..Self::default() }
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, ports, more_keys, edit_keys, edit, shim, second_link, .. } = self;
        let Self { biller_port, vendor, postgres, .. } = self;
        let mut parts = f.debug_struct("Wanted");
        parts.field("dir", dir).field("ports", ports).field("more_keys", more_keys);
        parts
            .field("edit_keys", &edit_keys.is_some())
            .field("edit", &edit.is_some())
            .field("shim", shim)
            .field("second_link", second_link)
            .field("biller_port", biller_port);
        parts.field("vendor", vendor).field("postgres", postgres).finish()
    }
}

/// Where a world listens, on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The data API.
    pub data: u16,
    /// The admin API.
    pub admin: u16,
    /// The billing simulator.
    pub billing: u16,
}

impl Ports {
    /// Ports that nothing listens on.
    ///
    /// # Errors
    /// When there are none.
    pub fn free() -> anyhow::Result<Self> {
        let [data, admin, billing] = free_ports()?;
        Ok(Self { data, admin, billing })
    }
}

/// A running world.
#[derive(Debug)]
pub struct World {
    dir: PathBuf,
    /// Where it listens.
    pub ports: Ports,
    gateway: Option<Process>,
    billing: Option<Process>,
    _temporary: Option<TempDir>,
}

impl World {
    /// The demo's world, ready.
    ///
    /// # Errors
    /// What did not start, with the last lines of its log.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_as(Wanted::default()).await
    }

    /// A world as wanted, ready.
    ///
    /// # Errors
    /// What did not start, with the last lines of its log.
    pub async fn start_as(wanted: Wanted) -> anyhow::Result<Self> {
        let mut world = Self::prepare(wanted)?;
        world.start_billing().await?;
        world.start_gateway().await?;
        Ok(world)
    }

    /// Token, certificates and configuration; no process yet.
    ///
    /// # Errors
    /// What could not be made.
    pub fn prepare(wanted: Wanted) -> anyhow::Result<Self> {
        crate::mtls::install_provider();
        let temporary = match &wanted.dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("tollgate-").tempdir()?),
        };
        let dir = match (&wanted.dir, &temporary) {
            (Some(dir), _) => std::path::absolute(dir)?,
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => anyhow::bail!("a world needs a directory"),
        };
        std::fs::create_dir_all(dir.join("data")).with_context(|| dir.display().to_string())?;
        let ports = match wanted.ports {
            Some(ports) => ports,
            None => Ports::free()?,
        };
        let mut plan = demo_plan()?;
        plan.extend(wanted.more_keys);
        if let Some(edit) = wanted.edit_keys {
            edit(&mut plan);
        }
        link::make_token(&dir, Link::Primary, &plan, wanted.shim, &wanted.vendor)?;
        if wanted.second_link {
            link::make_token(&dir, Link::Backup, &plan, wanted.shim, &wanted.vendor)?;
        }
        let mut authority = Authority::create(&dir.join("pki"), "Tollgate demo CA")?;
        issue_demo(&mut authority)?;
        let mut table = config::table(&dir, ports, wanted.biller_port.unwrap_or(ports.billing))?;
        if wanted.shim {
            config::put_shim(&mut table, &dir)?;
        }
        if wanted.second_link {
            config::add_backup(&mut table, &dir, wanted.shim)?;
        }
        if let Some(postgres) = wanted.postgres {
            config::put_postgres(&mut table, postgres);
        }
        if let Some(edit) = wanted.edit {
            edit(&mut table);
        }
        std::fs::write(dir.join("gateway.toml"), toml::to_string(&table)?)?;
        Ok(Self { dir, ports, gateway: None, billing: None, _temporary: temporary })
    }

    /// A second gateway, ready: the same database, token, certificates and biller; ports, audit log
    /// and workers of its own. Its directory is in this world's.
    ///
    /// # Errors
    /// With the last lines of its log.
    pub async fn start_beside(&self) -> anyhow::Result<Self> {
        let ports = Ports { billing: self.ports.billing, ..Ports::free()? };
        let dir = self.dir.join(format!("gateway-{}", ports.data));
        std::fs::create_dir(&dir)?;
        std::os::unix::fs::symlink(self.pki(), dir.join("pki"))?;
        let mut table: toml::Table = toml::from_str(&std::fs::read_to_string(self.config())?)?;
        config::move_to(&mut table, &dir, ports);
        std::fs::write(dir.join("gateway.toml"), toml::to_string(&table)?)?;
        let mut world = Self { dir, ports, gateway: None, billing: None, _temporary: None };
        world.start_gateway().await?;
        Ok(world)
    }

    /// Starts the gateway and waits until it is ready.
    ///
    /// # Errors
    /// With the last lines of its log.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        self.start_gateway_under(&[]).await
    }

    /// The same through a program that becomes the gateway: `env`, with arguments of its own.
    ///
    /// # Errors
    /// With the last lines of its log.
    pub async fn start_gateway_under(&mut self, wrapper: &[&str]) -> anyhow::Result<()> {
        self.spawn_under(wrapper)?;
        self.wait_ready(Duration::from_secs(30)).await
    }

    /// Starts the gateway and waits for nothing.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn spawn_gateway(&mut self) -> anyhow::Result<()> {
        self.spawn_under(&[])
    }

    fn spawn_under(&mut self, wrapper: &[&str]) -> anyhow::Result<()> {
        let (config, log) = (self.config(), self.dir.join("gateway.log"));
        let arguments = ["serve".as_ref(), "--config".as_ref(), config.as_os_str()];
        self.gateway = Some(Process::start_under(wrapper, "tollgate", &arguments, &log)?);
        Ok(())
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it does not within `patience`, or the gateway has ended.
    pub async fn wait_ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let monitor = self.admin("monitor")?;
        let limit = Instant::now() + patience;
        loop {
            let answer = monitor.send(Method::GET, "/readyz", &[], Vec::new()).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            let gateway = self.gateway.as_mut().context("no gateway runs")?;
            if let Some(status) = gateway.ended()? {
                anyhow::bail!("the gateway ended ({status}):\n{}", gateway.last_lines());
            }
            ensure!(Instant::now() < limit, "not ready in time:\n{}", gateway.last_lines());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the billing simulator: on the same port and journal as before.
    ///
    /// # Errors
    /// With the last lines of its log.
    pub async fn start_billing(&mut self) -> anyhow::Result<()> {
        let listen = self.billing_address().to_string();
        let (pki, journal) = (self.pki(), self.dir.join("data/billing.journal"));
        let arguments = [
            "--listen".as_ref(),
            listen.as_ref(),
            "--pki".as_ref(),
            pki.as_os_str(),
            "--journal".as_ref(),
            journal.as_os_str(),
        ];
        let mut process = Process::start("billing", &arguments, &self.dir.join("billing.log"))?;
        let limit = Instant::now() + Duration::from_secs(10);
        while tokio::net::TcpStream::connect(self.billing_address()).await.is_err() {
            if let Some(status) = process.ended()? {
                anyhow::bail!("the biller ended ({status}):\n{}", process.last_lines());
            }
            ensure!(Instant::now() < limit, "the biller does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.billing = Some(process);
        Ok(())
    }

    /// SIGKILL to the biller.
    pub fn kill_billing(&mut self) {
        self.billing = None;
    }

    /// SIGKILL to the gateway. Its workers see their socket end and follow.
    pub fn kill_gateway(&mut self) {
        self.gateway = None;
    }

    /// SIGTERM to the gateway, and the wait for its end.
    ///
    /// # Errors
    /// When it does not end well in time.
    pub async fn stop_gateway(&mut self) -> anyhow::Result<()> {
        let mut gateway = self.gateway.take().context("no gateway runs")?;
        gateway.terminate()?;
        let limit = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = gateway.ended()? {
                ensure!(status.success(), "{status}:\n{}", gateway.last_lines());
                return Ok(());
            }
            ensure!(Instant::now() < limit, "it does not stop:\n{}", gateway.last_lines());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The gateway's process.
    #[must_use]
    pub fn gateway(&self) -> Option<&Process> {
        self.gateway.as_ref()
    }

    /// The biller's process.
    #[must_use]
    pub fn billing(&self) -> Option<&Process> {
        self.billing.as_ref()
    }

    /// The ids of the HSM workers that run now.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        self.gateway.as_ref().map(Process::children).unwrap_or_default()
    }

    /// The ids of the HSM workers of one link that run now.
    #[must_use]
    pub fn workers_of(&self, link: Link) -> Vec<u32> {
        let mut workers = self.workers();
        workers.retain(|id| link.is_of(*id));
        workers
    }

    /// A client of the data API with this certificate.
    ///
    /// # Errors
    /// When there is no such certificate.
    pub fn client(&self, name: &str) -> anyhow::Result<Client> {
        Client::new(&self.pki(), name, &self.data_url())
    }

    /// A client of the admin API with this certificate.
    ///
    /// # Errors
    /// When there is no such certificate.
    pub fn admin(&self, name: &str) -> anyhow::Result<Client> {
        Client::new(&self.pki(), name, &format!("https://127.0.0.1:{}", self.ports.admin))
    }

    /// A hand on the biller.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn billing_control(&self) -> anyhow::Result<Control> {
        Control::new(&self.pki(), "operator", self.billing_address())
    }

    /// A new client certificate in `pki/`.
    ///
    /// # Errors
    /// When the authority refuses.
    pub fn issue(&self, name: &str, leaf: &Leaf) -> anyhow::Result<()> {
        Authority::open(&self.pki())?.issue(name, leaf)?;
        Ok(())
    }

    /// Revokes every certificate of this name and writes the list.
    ///
    /// # Errors
    /// When there is none.
    pub fn revoke(&self, name: &str) -> anyhow::Result<()> {
        Ok(Authority::open(&self.pki())?.revoke(name)?)
    }

    /// Every event of the audit log, in order of the files, but for the checkpoints, which come by time.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn audit(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut events = self.audit_records()?;
        events.retain(|event| event["event"]["type"] != "audit.checkpoint");
        Ok(events)
    }

    /// Every whole line of the audit log, in order of the files.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn audit_records(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut records = Vec::new();
        for segment in compliance::segments(&self.dir.join("audit"))? {
            let mut text = String::new();
            segment.read()?.read_to_string(&mut text)?;
            // What has no end yet is being written.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in whole.lines() {
                records.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
            }
        }
        Ok(records)
    }

    /// The value of one metric line, 0 when it is not there.
    ///
    /// # Errors
    /// When the admin listener does not answer.
    pub async fn metric(&self, line_start: &str) -> anyhow::Result<f64> {
        let answer = self.admin("monitor")?.send(Method::GET, "/metrics", &[], Vec::new()).await?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.status);
        let text = String::from_utf8_lossy(&answer.body);
        Ok(sum_of(&text, line_start))
    }

    /// `https://127.0.0.1:<data>`.
    #[must_use]
    pub fn data_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.data)
    }

    /// Where the data API listens.
    #[must_use]
    pub fn data_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.data).into()
    }

    /// Where the billing simulator listens.
    #[must_use]
    pub fn billing_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports.billing).into()
    }

    /// Certificates: `<name>.crt`, `<name>.key`, `ca.crt`, `crl.pem`.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// `gateway.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("gateway.toml")
    }

    /// Everything of this world.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// `[store.postgres]` for a database of a server with this socket, as its superuser.
#[must_use]
pub fn postgres_at(socket: &Path, database: &str) -> toml::Table {
    toml::Table::from_iter([
        ("host".into(), socket.display().to_string().into()),
        ("database".into(), database.into()),
        ("user".into(), cluster::USER.into()),
    ])
}

fn module() -> anyhow::Result<PathBuf> {
    find_module().context("SoftHSM is not installed: run softhsm/install.sh")
}

/// The sum of the lines of `metrics` that begin so; 0 when there is none.
#[must_use]
pub fn sum_of(metrics: &str, line_start: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(line_start));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, |sum, n| sum + n)
}

/// Ports that nothing listens on, below the range from which the kernel takes its own. Each process
/// looks in a place of its own, so that worlds that start at once do not meet.
///
/// # Errors
/// When there are none.
pub fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut free = Vec::new();
    for _ in 0..3000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id().wrapping_mul(31)).wrapping_add(step) % 17_000;
        let port = 15_000 + offset as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            free.push(port);
        }
        if let Ok(free) = <[u16; N]>::try_from(&free[..]) {
            return Ok(free);
        }
    }
    anyhow::bail!("no free ports between 15000 and 32000")
}
