//! What keeps the queue in order while it waits: lost leases, ends of lives, old rows, figures.

use std::sync::Arc;
use std::time::Duration;

use hsm_adapter::worker::chain;
use metrics::{counter, gauge};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Relay;
use crate::links::jitter;
use crate::store::{Cell, HoldReason, PruneRule, Rescued, StoreError};
use crate::telemetry::metrics::{QUEUE_DEPTH, QUEUE_HELD, QUEUE_OLDEST, QUEUE_RESCUED};

impl Relay {
    /// Keeps the queue in order until `stop`: lost leases, expired payments, old rows, figures.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = 0u64;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(jitter(Duration::from_secs(5), 0.1)) => {}
            }
            rounds += 1;
            self.tell_alarms().await;
            self.look_at_epoch().await;
            if self.rollback.waits() {
                continue;
            }
            if let Err(error) = self.keep_once(rounds.is_multiple_of(60)).await {
                tracing::error!(error = chain(&error), "keeping the queue");
            }
        }
    }

    async fn keep_once(&self, prune: bool) -> Result<(), StoreError> {
        let rescued = self.store.rescue().await?;
        if rescued.any() {
            let Rescued { freed, held, failed } = rescued;
            tracing::warn!(freed, held, failed, "leases had run out");
            counter!(QUEUE_RESCUED).increment(u64::from(freed + held + failed));
        }
        self.store.expire().await?;
        if prune {
            let retention = i64::try_from(self.queue.retention().as_millis()).unwrap_or(i64::MAX);
            let rule = PruneRule { ended_before: self.store.now().saturating_sub(retention) };
            while self.store.prune(rule).await?.any() {}
        }
        self.show_figures().await
    }

    async fn show_figures(&self) -> Result<(), StoreError> {
        let stats = self.store.stats().await?;
        for depth in &stats.depth {
            let (status, priority) = (depth.status.name(), depth.priority.name());
            gauge!(QUEUE_DEPTH, "status" => status, "priority" => priority).set(depth.rows as f64);
        }
        gauge!(QUEUE_OLDEST).set(stats.oldest_ms.unwrap_or(0) as f64 / 1_000.0);
        let cells = self.store.queue_stats().await?.cells;
        for reason in HoldReason::ALL {
            let of = |cell: &&Cell| cell.hold_reason.as_deref() == Some(reason.name());
            let rows: u64 = cells.iter().filter(of).map(|cell| cell.rows).sum();
            gauge!(QUEUE_HELD, "reason" => reason.name()).set(rows as f64);
        }
        Ok(())
    }
}
