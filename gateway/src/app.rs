//! Config -> App: the one place that knows every part.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use compliance::{EventType, Label, Listener as AuditListener, Outcome, Resource, ResourceType};
use hsm_adapter::client::TokenLink;
use hsm_adapter::protocol::{PinKey, Recipe};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::admin::{self, Admin};
use crate::audit::{
    AuditDesk, AuditLayer, AuditLog, AuditUnavailable, Checkpoints, Keeper, record_refusals,
};
use crate::breaker_desk::BreakerDesk;
use crate::checkpoint_key::{CheckpointKey, digests};
use crate::config::{BillerConfig, Config, HsmConfig, ListenerConfig, NamedLink};
use crate::edge::{Listener, Registry, TlsError, TlsSource};
use crate::guard::Guard;
use crate::key_watch::KeyWatch;
use crate::links::Role;
use crate::links::backend::{Backend, BackendOptions};
use crate::links::breaker::{Breaker, Pace};
use crate::links::limit::LimitOptions;
use crate::links::pool::{Endpoint, Member, Pool, PoolOptions};
use crate::links::retry::RetryConfig;
use crate::links::token::{Hsm, HsmLink, audited};
use crate::officers::Officers;
use crate::relay::biller::Biller;
use crate::relay::keys::{KeyLives, Keys};
use crate::relay::policy::Route;
use crate::relay::{Relay, TokenKeys};
use crate::routes::{self, Authority, Gateway};
use crate::siem::Sinks;
use crate::store::Store;
use crate::telemetry::metrics::{Metrics, set_expiries};

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
    checkpoints: Checkpoints<CheckpointKey>,
    keeper: Keeper,
    sinks: Sinks,
    key_watches: Vec<KeyWatch>,
    /// Our certificates towards the billers: name and end, seconds since 1970.
    expiries: Vec<(String, i64)>,
}

impl App {
    /// Opens everything, in the order in which things depend on one another.
    ///
    /// # Errors
    /// The first thing that cannot be had, with its place and remedy.
    pub async fn build(config: &Config, config_path: &Path) -> anyhow::Result<Self> {
        let metrics = Metrics::install().context("installing the metrics recorder")?;
        let hsm = Arc::new(hsm(&config.hsm)?);
        let mut refused = Vec::new();
        for link in hsm.links() {
            let why = link.refused_at_start().await;
            refused.extend(why.map(|why| format!("the HSM link {}: {why}", link.name())));
        }
        if refused.len() == hsm.links().count() {
            bail!("{}", refused.join("; "));
        }
        refused.iter().for_each(|why| tracing::error!("{why}; the others serve"));
        let digests = digests(config_path, &hsm).await.context("reading what this process runs")?;
        let audit = AuditLog::open(&config.audit, &config.replica, Uuid::now_v7(), Some(digests))
            .context("opening the audit log")?;
        let sinks = Sinks::open(&config.audit, audit.clone());
        let sinks = sinks.context("reading how far the audit sinks have come")?;
        let label = config.audit.signing_key.clone();
        let key = CheckpointKey { hsm: Arc::clone(&hsm), label };
        let checkpoints = Checkpoints::new(audit.clone(), key, config.audit.checkpoint_s);
        let needed = sinks.needed();
        let is_needed = move |segment| needed.is_needed(segment);
        let keeper = Keeper::new(audit.clone(), &config.audit, is_needed);
        let store = Store::open(&config.store, &config.queue).await.context("opening the store")?;
        let lives = KeyLives { pin: config.queue.pin_life() };
        let keys = Keys::start(store.clone(), TokenKeys(Arc::clone(&hsm)), lives);
        let mut billers = HashMap::new();
        let mut expiries = Vec::new();
        for biller in &config.biller {
            let built = biller_link(biller, config.retry).with_context(|| biller.name.clone())?;
            let built = Arc::new(built);
            billers.insert(biller.name.clone(), built);
            let end = crate::check::end_of(&biller.certificate).map_err(anyhow::Error::msg)?;
            expiries.push((format!("biller.{}", biller.name), end));
        }
        for sink in &config.audit.sink {
            let end = crate::check::end_of(&sink.certificate).map_err(anyhow::Error::msg)?;
            expiries.push((format!("sink.{}", sink.name), end));
        }
        let guard = Guard::start(
            Arc::clone(&hsm),
            store.clone(),
            keys.clone(),
            audit.clone(),
            &config.limits,
        );
        let guard = Arc::new(guard.await.context("reading what is blocked")?);
        let relay = Relay::start(
            Arc::clone(&hsm),
            Arc::clone(&guard),
            store.clone(),
            keys,
            config.queue.clone(),
            audit.clone(),
            config.replica.clone(),
        );
        let relay = relay.await.context("looking at what the database has open")?;
        let relay = Arc::new(relay);
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
            guard,
            relay: Arc::clone(&relay),
            authority,
            request_max: Duration::from_millis(config.request_ms_max),
        };
        let key_watch = |link: &Arc<HsmLink>| {
            let every = Duration::from_secs(config.hsm.lint_s);
            let accepted = config.hsm.accepted_probes.clone();
            KeyWatch::new(Arc::clone(link), audit.clone(), every, accepted)
        };
        let key_watches = hsm.links().map(key_watch).collect();
        let officers = Arc::new(Officers::new(
            Arc::clone(&hsm),
            store.clone(),
            audit.clone(),
            config.officers,
        ));
        let mut breakers: Vec<Breaker> = breakers_of(hsm.pool());
        // In the order of the configuration, for people who look.
        let in_order = config.biller.iter().filter_map(|biller| billers.get(&biller.name));
        let in_order: Arc<[Arc<Biller>]> = in_order.cloned().collect();
        in_order.iter().for_each(|biller| breakers.extend(breakers_of(&biller.backends)));
        let breakers = BreakerDesk::start(breakers, store.clone(), audit.clone()).await;
        let breakers = Arc::new(breakers.context("reading the orders for breakers")?);
        let admin_state = Admin {
            hsm,
            relay,
            billers: in_order,
            officers,
            breakers,
            audit: audit.clone(),
            audit_desk: AuditDesk::new(audit.clone()),
            metrics,
        };
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
            checkpoints,
            keeper,
            sinks,
            key_watches,
            expiries,
        })
    }

    /// As [`run`](Self::run), with PIN translations that leave no record, so that the bench can say what
    /// auditing costs. No program that is shipped calls it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn danger_run_unaudited(
        self,
        stop: CancellationToken,
        reload: ReloadSignal,
    ) -> anyhow::Result<()> {
        self.run_with(stop, reload, &["/v1/pin/translate"]).await
    }

    /// Serves until `stop`, then drains: no new connection, requests in flight answered, payments
    /// in flight recorded, everything closed in the order in which things depend on one another.
    ///
    /// # Errors
    /// When a background task ended before its time: then everything drains as on `stop`.
    pub async fn run(self, stop: CancellationToken, reload: ReloadSignal) -> anyhow::Result<()> {
        self.run_with(stop, reload, &[]).await
    }

    async fn run_with(
        self,
        stop: CancellationToken,
        reload: ReloadSignal,
        unrecorded: &'static [&'static str],
    ) -> anyhow::Result<()> {
        let relay = Arc::clone(&self.gateway.relay);
        let background = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for (tls, listener) in self.tls.iter().zip(["data", "admin"]) {
            let audit = self.audit.clone();
            let heard =
                move |taken: Result<(), &TlsError>| record_rotation(&audit, listener, taken);
            tasks.spawn(named("tls", Arc::clone(tls).watch(background.clone(), heard)));
        }
        tasks.spawn(named("figures", self.admin_state.metrics.clone().upkeep(background.clone())));
        tasks.spawn(named("expiries", tell_expiries(self.expiries, background.clone())));
        for key_watch in self.key_watches {
            tasks.spawn(named("key watch", key_watch.watch(background.clone())));
        }
        // Until the last record that it can cover: it outlives the other tasks.
        let signing = CancellationToken::new();
        let checkpoints = tokio::spawn(self.checkpoints.keep(signing.clone()));
        tasks.spawn(named("audit files", self.keeper.keep(background.clone())));
        // Until the last record of all.
        let shipping = CancellationToken::new();
        let sinks = tokio::spawn(self.sinks.keep(shipping.clone()));
        monitor(&mut tasks, self.gateway.hsm.pool(), &background);
        for biller in self.admin_state.billers.iter() {
            monitor(&mut tasks, &biller.backends, &background);
        }
        // Before the first request, so that its record says where clear PINs were then.
        for link in self.gateway.hsm.links() {
            let (link, audit) = (Arc::clone(link), self.audit.clone());
            let told = tell_mode(&link, &audit, Vec::new()).await;
            tasks.spawn(named("modes", tell_modes(link, audit, told, background.clone())));
        }
        tasks.spawn(named("queue", Arc::clone(&relay).keep(background.clone())));
        let names = self.admin_state.billers.iter().map(|biller| biller.name.clone()).collect();
        tasks.spawn(named("paused", Arc::clone(&relay).tell_paused(names, background.clone())));
        let officers = Arc::clone(&self.admin_state.officers);
        tasks.spawn(named("officers", officers.keep(background.clone())));
        let (breakers, stopping) = (Arc::clone(&self.admin_state.breakers), background.clone());
        tasks.spawn(named("breakers", async move { breakers.keep(stopping).await }));
        for biller in self.admin_state.billers.iter() {
            let forwarder = Arc::clone(&relay).forward(Arc::clone(biller), background.clone());
            tasks.spawn(named("forwarder", forwarder));
        }
        let clients = Clients {
            config_path: self.config_path.clone(),
            registry: Arc::clone(&self.registry),
            authority: Arc::clone(&self.gateway.authority),
            audit: self.audit.clone(),
        };
        tasks.spawn(named("clients", clients.reload_on(reload, background.clone())));
        tracing::info!(
            data = %self.data.local_addr()?,
            admin = %self.admin.local_addr()?,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        let data_layer = AuditLayer::new(self.audit.clone(), AuditListener::Data, unrecorded);
        let data = routes::router(self.gateway.clone()).layer(data_layer);
        let admin_layer =
            AuditLayer::new(self.audit.clone(), AuditListener::Admin, admin::UNRECORDED);
        let admin = admin::router(self.admin_state.clone()).layer(admin_layer);
        let hsm = Arc::clone(&self.gateway.hsm);
        let Self { data: data_listener, admin: admin_listener, store, audit, .. } = self;
        let serving = async {
            tokio::join!(
                data_listener.serve(data, stop.clone()),
                admin_listener.serve(admin, stop.clone())
            );
        };
        let broken = serve_with(serving, &mut tasks, &stop).await;
        tracing::info!("drained; recording what is in flight");
        background.cancel();
        while tasks.join_next().await.is_some() {}
        relay.finish().await;
        if !audit.checkpoint_now().await {
            tracing::error!("the end of the audit log has no checkpoint; the next start covers it");
        }
        signing.cancel();
        let _ = checkpoints.await;
        hsm.stop().await;
        audit.close().await;
        shipping.cancel();
        let _ = sinks.await;
        store.close().await;
        tracing::info!("stopped");
        broken.map_or(Ok(()), |task| bail!("the background task {task} ended before its time"))
    }
}

/// Records anew where clear PINs may be, whenever what the link has proved is no longer `told`, and
/// once that a person must act before a worker can start.
async fn tell_modes(
    hsm: Arc<HsmLink>,
    audit: AuditLog,
    mut told: Vec<Recipe>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut latch_told = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        told = tell_mode(&hsm, &audit, told).await;
        let latched = hsm.workers().into_iter().find(|worker| worker.latched);
        latch_told = match latched {
            Some(worker) => latch_told || tell_latch(&hsm, &audit, worker.trouble).await,
            None => false,
        };
    }
}

/// Whether it is on record that no worker of the link starts any more.
async fn tell_latch(hsm: &HsmLink, audit: &AuditLog, trouble: Option<String>) -> bool {
    let on = Resource::new(ResourceType::HsmLink, Label::new(hsm.name()));
    let event = audit.own_event(EventType::HsmLogin, Outcome::Failure, on);
    let note = Label::new(&trouble.unwrap_or_default());
    audit.append(event.link(Label::new(hsm.name())).note(note)).await.is_ok()
}

/// What is told then. Recipes that could not be recorded are told at the next try.
async fn tell_mode(hsm: &HsmLink, audit: &AuditLog, told: Vec<Recipe>) -> Vec<Recipe> {
    let recipes = hsm.recipes();
    let Some(mode) = hsm.weakest_mode().filter(|_| recipes != told) else { return told };
    let on = Resource::new(ResourceType::HsmLink, Label::new(hsm.name()));
    let event = audit.own_event(EventType::HsmMode, Outcome::Success, on);
    match audit.append(event.link(Label::new(hsm.name())).mode(audited(mode))).await {
        Ok(_) => recipes,
        Err(AuditUnavailable) => {
            tracing::error!("the mode of the HSM link is not in the audit log");
            told
        }
    }
}

/// Keeps the expiry metric of certificates that stay as they are until a restart.
async fn tell_expiries(ends: Vec<(String, i64)>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(60));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        set_expiries(ends.iter().map(|(name, end)| (name.as_str(), *end)));
    }
}

/// A background task and the name under which its end is told.
async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Waits for `serving`, and cancels `stop` when a background task ends before it: without a
/// forwarder or a keeper a gateway takes payments that nobody looks after. Gives the task's name.
async fn serve_with(
    serving: impl Future<Output = ()>,
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> Option<&'static str> {
    let mut broken = None;
    tokio::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => return broken,
            Some(ended) = tasks.join_next(), if broken.is_none() => {
                // The panic hook has told the place of a panic.
                let task = ended.unwrap_or("that panicked");
                tracing::error!(task, "a background task ended before its time; stopping");
                broken = Some(task);
                stop.cancel();
            }
        }
    }
}

/// New certificates or revocation lists of a listener are an event, taken or not.
fn record_rotation(audit: &AuditLog, listener: &str, taken: Result<(), &TlsError>) {
    let on = Resource::new(ResourceType::Certificate, Label::new(listener));
    let outcome = if taken.is_ok() { Outcome::Success } else { Outcome::Failure };
    let event = audit.own_event(EventType::CertRotate, outcome, on);
    let event = match taken {
        Ok(()) => event,
        Err(error) => event.note(Label::new(&error.to_string())),
    };
    if audit.note(event).is_err() {
        tracing::error!(listener, "a change of TLS files is not in the audit log");
    }
}

/// A reload of the clients is an event, taken or not.
async fn record_change(audit: &AuditLog, taken: bool) -> Result<(), AuditUnavailable> {
    let what = Resource::new(ResourceType::Configuration, Label::new("clients"));
    let outcome = if taken { Outcome::Success } else { Outcome::Failure };
    audit.append(audit.own_event(EventType::ConfigChange, outcome, what)).await.map(drop)
}

/// Who may speak and for what, read again on a signal. A file that is refused changes nothing.
struct Clients {
    config_path: PathBuf,
    registry: Arc<Registry>,
    authority: Arc<Authority>,
    audit: AuditLog,
}

impl Clients {
    async fn reload_on(self, mut signal: ReloadSignal, stop: CancellationToken) {
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                asked = signal.recv() => asked,
            };
            if asked.is_none() {
                // Nobody can ask any more.
                return stop.cancelled().await;
            }
            let reloaded = self.reload();
            if record_change(&self.audit, reloaded.is_ok()).await.is_err() {
                tracing::error!("the reload of the clients is not in the audit log");
            }
            match reloaded {
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

fn breakers_of<E: Endpoint>(pool: &Pool<E>) -> Vec<Breaker> {
    pool.members().iter().map(|member| member.breaker().clone()).collect()
}

/// One task a member.
fn monitor<E: Endpoint>(
    tasks: &mut JoinSet<&'static str>,
    pool: &Arc<Pool<E>>,
    stop: &CancellationToken,
) {
    for at in 0..pool.members().len() {
        let watch = Arc::clone(pool).monitor(at, stop.clone());
        tasks.spawn(named("health", watch));
    }
}

/// Starts the workers of every link.
///
/// # Errors
/// When the worker program cannot be named.
pub(crate) fn hsm(config: &HsmConfig) -> anyhow::Result<Hsm> {
    let attempt_max = Duration::from_millis(config.attempt_ms_max);
    let alone = config.link.is_empty();
    let pace = Pace::of_attempt(fair(attempt_max, config.retry, alone));
    let mut members = Vec::new();
    for NamedLink { role, options } in config.links().map_err(anyhow::Error::msg)? {
        // As many as the configuration names, for as long as the process lives.
        let name: &'static str = options.name.clone().leak();
        let breaker = match members.is_empty() {
            true => "hsm".to_owned(),
            false => format!("hsm.{name}"),
        };
        let link = Arc::new(HsmLink::new(name, TokenLink::start(options)));
        // Several serve only when their keys were compared and every approved change is made on them.
        link.set_distrusted(!alone);
        let breaker = Breaker::new(breaker, config.breaker, pace);
        members.push(Member::new(link, role, breaker, hsm_limit(config)));
    }
    let ramp = Duration::from_secs(config.ramp_s);
    let health = config.health;
    let options = PoolOptions { link: "hsm", retry: config.retry, attempt_max, ramp, health };
    Ok(Hsm::new(Arc::new(Pool::new(options, members)), config.queue_kek.clone()))
}

/// What an attempt gets while a client waits: half of the whole time when somebody else could still be
/// asked.
fn fair(attempt_max: Duration, retry: RetryConfig, alone: bool) -> Duration {
    attempt_max.min(if alone { retry.total_max() } else { retry.total_max() / 2 })
}

/// What stands before one HSM link. Of the orders that its workers take, a quarter is kept for what is
/// vital.
fn hsm_limit(config: &HsmConfig) -> LimitOptions {
    let bounded = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).max(1);
    LimitOptions {
        max: bounded(config.workers * config.in_flight_max * 3 / 4),
        min: bounded(config.workers * usize::from(config.sessions)),
        waiting_max: config.waiting_max,
        wait_max: Duration::from_millis(config.wait_ms_max),
        queue_max: Some(Duration::from_millis(config.queue_ms_max)),
    }
}

fn biller_link(config: &BillerConfig, retry: RetryConfig) -> anyhow::Result<Biller> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let mut identity = read(&config.certificate)?;
    identity.push(b'\n');
    identity.extend(zeroize::Zeroizing::new(read(&config.key)?).iter());
    let options = BackendOptions {
        biller: config.name.clone(),
        ca: read(&config.ca)?,
        identity,
        connect_max: Duration::from_millis(config.connect_ms_max),
        health_path: config.health_path.clone(),
        idle_min: config.connections_idle_min,
        idle_max: config.connections_max as usize,
        idle_for: Duration::from_secs(config.connection_idle_s),
    };
    let attempt_max = Duration::from_millis(config.attempt_ms_max);
    let alone = config.urls.len() + config.backup_urls.len() == 1;
    let pace = Pace::of_attempt(fair(attempt_max, retry, alone));
    let limit = LimitOptions {
        max: config.connections_max,
        min: 1,
        waiting_max: config.waiting_max,
        wait_max: Duration::from_millis(config.wait_ms_max),
        queue_max: None,
    };
    let primaries = config.urls.iter().map(|url| (url, Role::Primary));
    let backups = config.backup_urls.iter().map(|url| (url, Role::Backup));
    let mut members = Vec::new();
    for (url, role) in primaries.chain(backups) {
        let name = match members.len() {
            0 => format!("biller.{}", config.name),
            more => format!("biller.{}.{}", config.name, more + 1),
        };
        let url = url.parse().with_context(|| format!("url {url}"))?;
        let breaker = Breaker::new(name.clone(), config.breaker, pace);
        let backend = Backend::new(name, url, &options).map_err(anyhow::Error::msg)?;
        members.push(Member::new(Arc::new(backend), role, breaker, limit));
    }
    let ramp = Duration::from_secs(config.ramp_s);
    let health = config.health;
    let options = PoolOptions { link: "backend", retry, attempt_max, ramp, health };
    let pin = config.pin_key.clone().zip(config.pin_format);
    Ok(Biller {
        name: config.name.clone(),
        backends: Arc::new(Pool::new(options, members)),
        mac_key: config.mac_key.clone(),
        pin: pin.map(|(key, format)| PinKey { key: key.into(), format, ksn: None }),
        route: Route {
            store: config.store,
            store_pin: config.store_pin,
            deduplicates: config.deduplicates,
            enquiry: config.enquiry,
            reversal: config.reversal,
        },
    })
}

/// A signal to read clients and certificates again.
pub type ReloadSignal = tokio::sync::mpsc::Receiver<()>;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_background_task_that_ends_or_panics_stops_the_gateway_and_is_named() {
        for (panics, told) in [(false, "forwarder"), (true, "that panicked")] {
            let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
            let going_on = stop.clone();
            tasks.spawn(named("queue", async move { going_on.cancelled().await }));
            tasks.spawn(named("forwarder", async move { assert!(!panics) }));

            let broken = serve_with(stop.cancelled(), &mut tasks, &stop).await;

            assert_eq!(broken, Some(told));
        }
    }
}
