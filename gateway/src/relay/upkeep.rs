//! What keeps the queue in order while it waits: lost leases, ends of lives, old rows, figures.

use std::sync::Arc;
use std::time::Duration;

use hsm_adapter::worker::chain;
use metrics::{counter, gauge};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Relay;
use crate::links::jitter;
use crate::store::{Cell, HoldReason, Priority, PruneRule, Rescued, Status, StoreError};
use crate::telemetry::metrics::{QUEUE_DEPTH, QUEUE_HELD, QUEUE_OLDEST, QUEUE_RESCUED};

impl Relay {
    /// Keeps the queue in order until `stop`: lost leases, expired payments, old rows, figures.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = 0u64;
        loop {
            // Also while nothing may leave: what is seen must not be what was.
            if let Err(error) = self.show_figures().await {
                tracing::error!(error = chain(&error), "the figures of the queue");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(jitter(Duration::from_secs(5), 0.1)) => {}
            }
            rounds += 1;
            self.tell_alarms().await;
            if !self.look_at_epoch().await || self.rollback.waits() {
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
        Ok(())
    }

    async fn show_figures(&self) -> Result<(), StoreError> {
        let cells = self.store.queue_stats().await?.cells;
        let rows = |of: &dyn Fn(&Cell) -> bool| {
            cells.iter().filter(|cell| of(cell)).map(|cell| cell.rows).sum::<u64>() as f64
        };
        // What there is none of is a figure too: it returns to 0.
        for status in [Status::Pending, Status::Processing, Status::Held] {
            for priority in Priority::ALL {
                gauge!(QUEUE_DEPTH, "status" => status.name(), "priority" => priority.name())
                    .set(rows(&|cell| cell.status == status && cell.priority == priority));
            }
        }
        let is_open = |cell: &&Cell| {
            matches!(cell.status, Status::Pending | Status::Processing | Status::Held)
        };
        self.rollback.note_depth(cells.iter().filter(is_open).map(|cell| cell.rows).sum());
        for reason in HoldReason::ALL.map(HoldReason::name) {
            gauge!(QUEUE_HELD, "reason" => reason)
                .set(rows(&|cell| cell.hold_reason.as_deref() == Some(reason)));
        }
        let waiting = cells.iter().filter(|cell| cell.status == Status::Pending);
        let oldest_ms = waiting.map(|cell| cell.oldest_ms).max().unwrap_or(0);
        gauge!(QUEUE_OLDEST).set(oldest_ms as f64 / 1_000.0);
        Ok(())
    }
}
