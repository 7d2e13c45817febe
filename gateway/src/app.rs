//! Config -> App: the one place that knows every part.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use compliance::{
    Actor, Event, EventType, Label, Listener as AuditListener, Origin, Outcome, Resource,
    ResourceType,
};
use hsm_adapter::client::TokenLink;
use hsm_adapter::protocol::PinKey;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::admin::{self, Admin};
use crate::audit::{AuditLayer, AuditLog, record_refusals};
use crate::config::{BillerConfig, Config, HsmConfig, ListenerConfig};
use crate::edge::{Listener, Registry, TlsError, TlsSource};
use crate::links::backend::{BackendLink, BackendOptions};
use crate::links::breaker::Breaker;
use crate::links::token::HsmLink;
use crate::relay::biller::Biller;
use crate::relay::keys::{KeyLives, Keys};
use crate::relay::{Relay, TokenKeys};
use crate::routes::{self, Authority, Gateway};
use crate::store::Store;
use crate::telemetry::metrics::Metrics;

/// The gateway, bound and ready to run.
#[derive(Debug)]
pub struct App {
    config_path: PathBuf,
    data: Listener,
    admin: Listener,
    tls: Vec<Arc<TlsSource>>,
    gateway: Gateway,
    admin_state: Admin,
    registry: Arc<Registry>,
    store: Store,
    audit: AuditLog,
    billers: Vec<Arc<Biller>>,
}

impl App {
    /// Opens everything, in the order in which things depend on one another.
    ///
    /// # Errors
    /// The first thing that cannot be had, with its place and remedy.
    pub async fn build(config: &Config, config_path: &Path) -> anyhow::Result<Self> {
        let metrics = Metrics::install().context("installing the metrics recorder")?;
        let audit = AuditLog::open(&config.audit, &config.replica, Uuid::now_v7())
            .context("opening the audit log")?;
        let store = Store::open(&config.store, &config.queue).await.context("opening the store")?;
        let hsm = Arc::new(hsm_link(&config.hsm)?);
        let lives = KeyLives { pin: config.queue.pin_life() };
        let keys = Keys::start(store.clone(), TokenKeys(Arc::clone(&hsm)), lives);
        let mut billers = HashMap::new();
        for biller in &config.biller {
            let built = Arc::new(biller_link(biller).with_context(|| biller.name.clone())?);
            billers.insert(biller.name.clone(), built);
        }
        let relay = Arc::new(Relay::new(
            Arc::clone(&hsm),
            store.clone(),
            keys,
            config.queue.clone(),
            config.retry,
            audit.clone(),
            config.replica.clone(),
        ));
        let registry = Registry::new(&config.client, &config.limits).map_err(anyhow::Error::msg)?;
        let registry = Arc::new(registry);
        let tls = vec![
            TlsSource::load("data", &config.tls.data, config.data.http2)?,
            TlsSource::load("admin", &config.tls.admin, config.admin.http2)?,
        ];
        let refused = record_refusals(audit.clone());
        let bind = async |name, listener: &ListenerConfig, tls: &Arc<TlsSource>| {
            let (tls, registry) = (Arc::clone(tls), Arc::clone(&registry));
            Listener::bind(name, listener, &config.limits, tls, registry, Arc::clone(&refused))
                .await
                .with_context(|| format!("{name}.listen = {}", listener.listen))
        };
        let data = bind("data", &config.data, &tls[0]).await?;
        let admin = bind("admin", &config.admin, &tls[1]).await?;
        let authority = Arc::new(Authority::new(&config.client, billers.clone()));
        let gateway = Gateway {
            hsm: Arc::clone(&hsm),
            relay: Arc::clone(&relay),
            authority,
            request_max: Duration::from_millis(config.request_ms_max),
        };
        let admin_state = Admin { hsm, relay, audit: audit.clone(), metrics };
        Ok(Self {
            config_path: config_path.to_owned(),
            data,
            admin,
            tls,
            gateway,
            admin_state,
            registry,
            store,
            audit,
            billers: billers.into_values().collect(),
        })
    }

    /// Serves until `stop`, then drains: no new connection, requests in flight answered, payments
    /// in flight recorded, everything closed in the order in which things depend on one another.
    ///
    /// # Errors
    /// When the start cannot be recorded.
    pub async fn run(self, stop: CancellationToken, reload: ReloadSignal) -> anyhow::Result<()> {
        record(&self.audit, EventType::AuditStart).await?;
        let relay = Arc::clone(&self.gateway.relay);
        let background = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for tls in &self.tls {
            let failed = |error: &TlsError| tracing::error!(%error, "TLS files not taken");
            tasks.spawn(Arc::clone(tls).watch(background.clone(), failed));
        }
        tasks.spawn(self.admin_state.metrics.clone().upkeep(background.clone()));
        tasks.spawn(Arc::clone(&relay).keep(background.clone()));
        for biller in &self.billers {
            let forwarder = Arc::clone(&relay).forward(Arc::clone(biller), background.clone());
            tasks.spawn(forwarder);
        }
        let clients = Clients {
            config_path: self.config_path.clone(),
            registry: Arc::clone(&self.registry),
            authority: Arc::clone(&self.gateway.authority),
        };
        tasks.spawn(clients.reload_on(reload, background.clone()));
        tracing::info!(
            data = %self.data.local_addr()?,
            admin = %self.admin.local_addr()?,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        let data_layer = AuditLayer::new(self.audit.clone(), AuditListener::Data, &[]);
        let data = routes::router(self.gateway.clone()).layer(data_layer);
        let admin_layer =
            AuditLayer::new(self.audit.clone(), AuditListener::Admin, admin::UNRECORDED);
        let admin = admin::router(self.admin_state.clone()).layer(admin_layer);
        let Self { data: data_listener, admin: admin_listener, store, audit, .. } = self;
        tokio::join!(data_listener.serve(data, stop.clone()), admin_listener.serve(admin, stop));
        tracing::info!("drained; recording what is in flight");
        background.cancel();
        while tasks.join_next().await.is_some() {}
        relay.finish().await;
        record(&audit, EventType::AuditStop).await?;
        audit.close().await;
        store.close().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Start and stop of the log are events of it.
async fn record(audit: &AuditLog, kind: EventType) -> anyhow::Result<()> {
    let process = Resource::new(ResourceType::AuditStream, Label::new(env!("CARGO_PKG_VERSION")));
    let origin = Origin::inside(audit.host());
    let now = jiff::Timestamp::now();
    let event = Event::new(Actor::system(), kind, now, Outcome::Success, origin, process);
    audit.append(event).await.context("recording start or stop in the audit log")?;
    Ok(())
}

/// Who may speak and for what, read again on a signal. A file that is refused changes nothing.
struct Clients {
    config_path: PathBuf,
    registry: Arc<Registry>,
    authority: Arc<Authority>,
}

impl Clients {
    async fn reload_on(self, mut signal: ReloadSignal, stop: CancellationToken) {
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                asked = signal.recv() => asked,
            };
            if asked.is_none() {
                return;
            }
            match self.reload() {
                Ok(clients) => tracing::info!(clients, "clients read again"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "clients not taken"),
            }
        }
    }

    fn reload(&self) -> anyhow::Result<usize> {
        let config = Config::load(&self.config_path)?;
        // Grants first: a client that loses a right must not keep it while the registry changes.
        self.authority.replace(&config.client);
        self.registry.replace(&config.client, &config.limits).map_err(anyhow::Error::msg)?;
        Ok(config.client.len())
    }
}

/// Starts the workers of the link.
///
/// # Errors
/// When the worker program cannot be named.
pub(crate) fn hsm_link(config: &HsmConfig) -> anyhow::Result<HsmLink> {
    let link = TokenLink::start(config.link_options().map_err(anyhow::Error::msg)?);
    let breaker = Breaker::new("hsm", config.breaker);
    let attempt = Duration::from_millis(config.attempt_ms_max);
    Ok(HsmLink::new(link, breaker, config.retry, attempt, config.queue_kek.clone()))
}

fn biller_link(config: &BillerConfig) -> anyhow::Result<Biller> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let mut identity = read(&config.certificate)?;
    identity.push(b'\n');
    identity.extend(zeroize::Zeroizing::new(read(&config.key)?).iter());
    let options = BackendOptions {
        name: config.name.clone(),
        url: config.url.parse().with_context(|| format!("url {}", config.url))?,
        ca: read(&config.ca)?,
        identity,
        connect_max: Duration::from_millis(config.connect_ms_max),
        attempt_max: Duration::from_millis(config.attempt_ms_max),
    };
    let breaker = Breaker::new(format!("biller.{}", config.name), config.breaker);
    let pin = config.pin_key.clone().zip(config.pin_format);
    Ok(Biller {
        name: config.name.clone(),
        backend: BackendLink::new(options, breaker).map_err(anyhow::Error::msg)?,
        mac_key: config.mac_key.clone(),
        pin: pin.map(|(key, format)| PinKey { key: key.into(), format }),
        store: config.store,
        store_pin: config.store_pin,
    })
}

/// A signal to read clients and certificates again.
pub type ReloadSignal = tokio::sync::mpsc::Receiver<()>;
