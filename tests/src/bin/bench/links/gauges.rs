//! The gateway's own figures, read while a load runs.

use std::time::Duration;

use anyhow::ensure;
use harness::acquirer::Client;
use harness::world::{World, sum_of};
use reqwest::Method;
use tokio::time::{Instant, sleep};

/// `/metrics`, over one kept connection.
pub(crate) struct Gauges(Client);

/// One scrape.
pub(crate) struct Scrape(String);

impl Gauges {
    pub(crate) fn of(world: &World) -> anyhow::Result<Self> {
        Ok(Self(world.admin("monitor")?))
    }

    pub(crate) async fn read(&self) -> anyhow::Result<Scrape> {
        let answer = self.0.send(Method::GET, "/metrics", &[], Vec::new()).await?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.status);
        Ok(Scrape(String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// How long after `since` the breaker is seen not to be closed; `None` when it is not within
    /// [`PATIENCE`].
    pub(crate) async fn opened(
        &self,
        breaker: &str,
        since: Instant,
    ) -> anyhow::Result<Option<Duration>> {
        let line = format!("tollgate_breaker_state{{name=\"{breaker}\",state=\"closed\"}}");
        loop {
            let scrape = self.read().await?;
            ensure!(scrape.0.contains(&line), "no {line}");
            if scrape.sum(&line) == 0.0 {
                return Ok(Some(since.elapsed()));
            }
            if since.elapsed() > PATIENCE {
                return Ok(None);
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Scrape {
    /// The sum of the lines that begin so; 0 when there is none.
    pub(crate) fn sum(&self, start: &str) -> f64 {
        sum_of(&self.0, start)
    }
}

/// How long a change is waited for: longer than from one heartbeat of a healthy member to the next.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(20);
