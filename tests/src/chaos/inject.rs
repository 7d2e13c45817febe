//! Makes faults, undoes them, and measures how long both links take to serve again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::customers::Customers;
use super::plan::{Fault, Sent};
use crate::billing::{Control, Fault as Misanswer, Mode};
use crate::proxy::{Behaviour, Proxy};
use crate::world::{Link, World, signal};

/// The hand on all that can be made to fail.
pub(super) struct Injector<'w> {
    world: &'w World,
    proxy: &'w Proxy,
    customers: &'w Arc<Customers>,
    billing: Control,
    links: &'static [Link],
    /// When the last fault ended.
    ended: Instant,
    /// The workers when it began.
    before: Vec<u32>,
    /// Those that must not be there any more.
    lost: Vec<u32>,
}

const WORKERS_OF_LINK: usize = 2;
/// A call that a fault waits for comes within this, or never.
const STRIKES_WITHIN: Duration = Duration::from_secs(2);
/// As long as it can take a worker to start again after many deaths, and to be ready.
const WORKERS_BACK_MAX: Duration = Duration::from_secs(6);
const NEXT_KILL_AFTER: Duration = Duration::from_millis(1_500);
/// What takes longer counts as this.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const PROBE_EVERY: Duration = Duration::from_millis(50);

impl<'w> Injector<'w> {
    pub(super) fn new(
        world: &'w World,
        proxy: &'w Proxy,
        customers: &'w Arc<Customers>,
        links: usize,
    ) -> anyhow::Result<Self> {
        let links = if links < 2 { &[Link::Primary][..] } else { &[Link::Primary, Link::Backup] };
        let billing = world.billing_control()?;
        Ok(Self {
            world,
            proxy,
            customers,
            billing,
            links,
            ended: Instant::now(),
            before: Vec::new(),
            lost: Vec::new(),
        })
    }

    /// Makes one fault and waits for its end. Whether it struck anything.
    ///
    /// # Errors
    /// A world that is broken by more than the fault.
    pub(super) async fn inject(&mut self, fault: &Fault) -> anyhow::Result<bool> {
        self.lost.clear();
        self.before = self.world.workers();
        let struck = match fault {
            Fault::Call { function, action, calls } => self.call(function, action, *calls).await?,
            Fault::Start { function, action } => self.start(function, action).await?,
            Fault::Signal { sent, all } => self.signal(*sent, *all).await,
            Fault::TokenAway { ms, killed } => self.token_away(*ms, *killed).await?,
            Fault::Network { behaviour, cut, ms, pause_ms } => {
                self.proxy.set(*behaviour);
                if *cut {
                    let _ = self.proxy.cut_existing();
                }
                milliseconds(*ms).await;
                self.proxy.set(Behaviour::default());
                milliseconds(pause_ms.unwrap_or_default()).await;
                true
            }
            Fault::Trap(trap) => {
                let mut sprung = self.proxy.arm(*trap);
                let struck = within(STRIKES_WITHIN, async || {
                    self.pay();
                    Ok(sprung.try_recv().is_ok())
                });
                let struck = struck.await?;
                self.proxy.disarm();
                struck
            }
            Fault::Biller(fault) => {
                self.billing.set_mode(*fault).await?;
                let struck = within(STRIKES_WITHIN, async || {
                    self.pay();
                    Ok(self.billing.fault().await?.mode == Mode::Normal)
                });
                let struck = struck.await?;
                self.billing.set_mode(Misanswer::always(Mode::Normal)).await?;
                struck
            }
            Fault::OneLink { rules, ms } => {
                self.world.shim_control_of(Link::Primary, rules).await?;
                milliseconds(*ms).await;
                self.world.shim_control_of(Link::Primary, "").await?;
                true
            }
            Fault::Both { rules, behaviour, ms } => {
                self.control(rules).await?;
                self.proxy.set(*behaviour);
                milliseconds(*ms).await;
                self.proxy.set(Behaviour::default());
                self.control("").await?;
                true
            }
        };
        self.ended = Instant::now();
        Ok(struck)
    }

    /// From the end of the last fault to the first time at which both a translation or MAC and a
    /// payment that cannot be stored succeed.
    pub(super) async fn recovery(&self) -> Duration {
        let mut probes = JoinSet::new();
        let (mut token, mut biller) = (None, None);
        let limit = self.ended + RECOVERY_MAX;
        while (token.is_none() || biller.is_none()) && Instant::now() < limit {
            for is_token in [true, false] {
                if if is_token { token } else { biller }.is_none() {
                    let customers = self.customers.clone();
                    probes.spawn(async move {
                        let is_well = match is_token {
                            true => customers.ask().await,
                            false => customers.pay("telkom").await,
                        };
                        (is_token, is_well.then(Instant::now))
                    });
                }
            }
            let next = Instant::now() + PROBE_EVERY;
            while let Ok(Some(Ok((is_token, at)))) = timeout_at(next, probes.join_next()).await {
                let well = if is_token { &mut token } else { &mut biller };
                *well = well.or(at);
            }
            sleep_until(next).await;
        }
        // The last are still answered, and entered.
        probes.detach_all();
        let at = token.unwrap_or(limit).max(biller.unwrap_or(limit));
        at.saturating_duration_since(self.ended)
    }

    /// A payment more, which may meet the fault.
    fn pay(&self) {
        let customers = self.customers.clone();
        tokio::spawn(async move { customers.pay("telkom").await });
    }

    /// Whether a worker has gone that was there before the fault.
    pub(super) fn lost_a_worker(&self) -> bool {
        let now = self.world.workers();
        self.before.iter().any(|id| !now.contains(id))
    }

    /// All workers, none of them lost; after a while without them all the same: those that remain
    /// are killed next.
    pub(super) async fn workers_back(&self, fault: &Fault) {
        let is_kill = matches!(fault, Fault::Signal { sent: Sent::Kill, .. });
        let limit = self.ended + if is_kill { NEXT_KILL_AFTER } else { WORKERS_BACK_MAX };
        while Instant::now() < limit {
            let workers = self.world.workers();
            if workers.len() == WORKERS_OF_LINK * self.links.len()
                && !workers.iter().any(|id| self.lost.contains(id))
            {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The rule stands until its function was called so often; a crash or hang until once, because
    /// new workers would meet it too.
    async fn call(&self, function: &str, action: &str, calls: u64) -> anyhow::Result<bool> {
        let before = self.calls_of(function);
        self.control(&format!("{function} {action} {calls}")).await?;
        let called = async || Ok(self.calls_of(function) >= before + calls);
        let struck = within(STRIKES_WITHIN, called).await?;
        self.control("").await?;
        Ok(struck)
    }

    async fn start(&mut self, function: &str, action: &str) -> anyhow::Result<bool> {
        let Some(worker) = self.world.workers().first().copied() else { return Ok(false) };
        self.control(&format!("{function} {action}")).await?;
        let before = self.calls_of(function);
        // It may have died of another fault.
        let _ = signal(worker, Signal::KILL);
        self.lost.push(worker);
        let starts = || self.world.workers().iter().any(|id| *id != worker);
        let called = async || Ok(self.calls_of(function) > before && starts());
        let struck = within(WORKERS_BACK_MAX, called).await?;
        sleep(Duration::from_millis(300)).await;
        self.control("").await?;
        Ok(struck)
    }

    async fn signal(&mut self, sent: Sent, all: bool) -> bool {
        let workers = self.world.workers();
        let victims = if all { &workers[..] } else { &workers[..workers.len().min(1)] };
        let first = if sent == Sent::Kill { Signal::KILL } else { Signal::STOP };
        let struck = victims.iter().filter(|id| signal(**id, first).is_ok()).count();
        if let Sent::Pause { ms } = sent {
            milliseconds(ms).await;
            let living = self.world.workers();
            for worker in victims.iter().filter(|id| living.contains(id)) {
                // It may have been killed for its silence.
                let _ = signal(*worker, Signal::CONT);
            }
        } else {
            self.lost.extend(victims);
        }
        struck > 0
    }

    /// The control file of every link's shim.
    async fn control(&self, rules: &str) -> anyhow::Result<()> {
        for link in self.links {
            self.world.shim_control_of(*link, rules).await?;
        }
        Ok(())
    }

    async fn token_away(&self, ms: u64, killed: bool) -> anyhow::Result<bool> {
        let tokens = self.links.iter().map(|link| link.token(self.world.dir()));
        let tokens: Vec<(PathBuf, PathBuf)> =
            tokens.map(|token| (token.with_extension("away"), token)).collect();
        for (away, token) in &tokens {
            std::fs::rename(token, away).context("taking the token away")?;
        }
        if killed {
            for worker in self.world.workers() {
                // It may have died of the token's loss.
                let _ = signal(worker, Signal::KILL);
            }
        }
        milliseconds(ms).await;
        for (away, token) in &tokens {
            std::fs::rename(away, token).context("bringing the token back")?;
        }
        Ok(true)
    }

    fn calls_of(&self, function: &str) -> u64 {
        let counts = self.links.iter().filter_map(|link| self.world.shim_counts_of(*link).ok());
        counts.filter_map(|counts| counts.get(function).copied()).sum()
    }
}

async fn milliseconds(ms: u64) {
    sleep(Duration::from_millis(ms)).await;
}

/// Whether it became so in time.
async fn within(
    patience: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let limit = Instant::now() + patience;
    while !look().await? {
        if Instant::now() > limit {
            return Ok(false);
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(true)
}
