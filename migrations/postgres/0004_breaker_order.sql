-- Breakers that an operator keeps open or out of use, until a reset: a restart and the other
-- replicas keep them so. Times are epoch milliseconds, UTC.
-- The twin of sqlite/0004.

CREATE TABLE breaker_order (
    name   text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 128),
    state  text NOT NULL CHECK (state IN ('forced_open', 'disabled')),
    actor  text NOT NULL CHECK (length(actor) BETWEEN 1 AND 128),
    reason text NOT NULL CHECK (length(reason) BETWEEN 1 AND 128),
    set_at bigint NOT NULL
);
