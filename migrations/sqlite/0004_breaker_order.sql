-- Breakers that an operator keeps open or out of use, until a reset: a restart and the other
-- replicas keep them so. Times are epoch milliseconds, UTC.

CREATE TABLE breaker_order (
    name   TEXT PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 128),
    state  TEXT NOT NULL CHECK (state IN ('forced_open', 'disabled')),
    actor  TEXT NOT NULL CHECK (length(actor) BETWEEN 1 AND 128),
    reason TEXT NOT NULL CHECK (length(reason) BETWEEN 1 AND 128),
    set_at INTEGER NOT NULL
) STRICT;
