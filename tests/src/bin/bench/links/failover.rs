//! A primary HSM link that dies or hangs beside a backup: who notices.

use std::time::Duration;

use harness::world::{Link, Wanted, World, signal};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use super::gauges::Gauges;
use super::{REQUEST_TIMEOUT, WARM_UP, edit, tell_of, translations};

/// What a hung primary costs.
pub(crate) struct Hung {
    /// 99 of 100 answers before the fault.
    pub(crate) healthy_p99: Duration,
    /// The same once the breaker is open.
    pub(crate) p99: Duration,
    /// Until it was; `None` when it was not, and the second p99 is of the time after the wait.
    pub(crate) opened: Option<Duration>,
    /// By how much the slowest request of the whole run exceeded its deadline.
    pub(crate) late: Duration,
    /// Requests that failed from the fault on.
    pub(crate) failed: usize,
}

/// How a primary is lost.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Death {
    /// Every call of it fails, for as long as is watched.
    Fails,
    /// Its workers are killed all at once.
    Killed,
}

/// Requests that are not answered with 200 from the loss of the primary on.
pub(crate) async fn dead(death: Death, lasts: Duration) -> anyhow::Result<usize> {
    // A world of its own for each: one that has come back has its whole share only after a while.
    let world = two_links().await?;
    let load = translations(&world).await?;
    let begun = Instant::now();
    sleep(WARM_UP).await;
    tell_of("two links, before", &load.during(begun, Instant::now()));

    let struck = Instant::now();
    match death {
        Death::Fails => world.shim_control("* fail 0x32").await?,
        Death::Killed => {
            for worker in world.workers_of(Link::Primary) {
                signal(worker, Signal::KILL)?;
            }
        }
    }
    sleep_until(struck + lasts).await;
    let lost = load.during(struck, Instant::now());
    tell_of(&format!("primary lost: {death:?}"), &lost);
    Ok(lost.failed())
}

/// The primary takes every call and never answers.
pub(crate) async fn hung(lasts: Duration) -> anyhow::Result<Hung> {
    let world = two_links().await?;
    let gauges = Gauges::of(&world)?;
    let load = translations(&world).await?;
    let begun = Instant::now();
    sleep(WARM_UP).await;
    let healthy = Instant::now();
    sleep(lasts).await;

    let struck = Instant::now();
    world.shim_control("* hang").await?;
    let opened = gauges.opened("hsm", struck).await?;
    let open = Instant::now();
    sleep(lasts).await;
    let ended = Instant::now();
    // Until the last answer is there, or late.
    sleep(REQUEST_TIMEOUT * 2).await;

    let (before, after) = (load.sent(healthy, struck), load.sent(open, ended));
    tell_of("two links, before", &before);
    tell_of("primary hangs", &load.during(struck, open));
    tell_of("its breaker is open", &after);
    let whole = load.during(begun, Instant::now()).latencies();
    Ok(Hung {
        healthy_p99: before.latencies().quantile(0.99),
        p99: after.latencies().quantile(0.99),
        opened,
        late: whole.max().saturating_sub(REQUEST_TIMEOUT),
        failed: load.during(struck, Instant::now()).failed(),
    })
}

async fn two_links() -> anyhow::Result<World> {
    let (shim, second_link) = (true, true);
    let edit = Some(Box::new(edit) as _);
    World::start_as(Wanted { shim, second_link, edit, ..Wanted::default() }).await
}
