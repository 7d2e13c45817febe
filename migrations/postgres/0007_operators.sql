-- The operators' hand on the queue: billers that are paused, decisions that wait for a second
-- operator, payments that were given up and may be tried again. Times are epoch milliseconds, UTC.
-- The twin of sqlite/0007.

-- A biller that is paused gets nothing, from any replica. The row stays after its end and says whose
-- word was the last.
CREATE TABLE saf_control (
    target text PRIMARY KEY CHECK (length(target) BETWEEN 1 AND 128),
    paused boolean NOT NULL,
    actor  text NOT NULL CHECK (length(actor) BETWEEN 1 AND 128),
    reason text NOT NULL CHECK (length(reason) BETWEEN 1 AND 128),
    at     bigint NOT NULL
);

-- What one operator wants done with a payment that may have been made, until another one says so too.
CREATE TABLE saf_decision (
    item_seq      bigint PRIMARY KEY REFERENCES saf_item ON DELETE CASCADE,
    action        text NOT NULL CHECK (action IN ('release', 'retry', 'cancel', 'settle')),
    -- of a settlement: what was found out
    outcome       text CHECK (outcome IN ('paid', 'failed')),
    response_code text,
    actor         text NOT NULL CHECK (length(actor) BETWEEN 1 AND 128),
    reason        text NOT NULL CHECK (length(reason) BETWEEN 1 AND 128),
    at            bigint NOT NULL,
    expires_at    bigint NOT NULL,
    CHECK ((action = 'settle') = (outcome IS NOT NULL)),
    CHECK ((action = 'settle') = (response_code IS NOT NULL))
);

-- The sealed payload of a payment that failed because its attempts were used up. An open row has its
-- own; a row that has ended has none, so that setting it open again by hand sends nothing.
CREATE TABLE saf_dead_letter (
    item_seq bigint PRIMARY KEY REFERENCES saf_item ON DELETE CASCADE,
    dek_id   bigint NOT NULL REFERENCES saf_dek,
    nonce    bytea NOT NULL,
    ct       bytea NOT NULL
);

CREATE INDEX saf_dead_letter_dek ON saf_dead_letter (dek_id);

-- What a person did to a payment: who, whose proposal it was, and why.
ALTER TABLE saf_attempt ADD COLUMN actor text;
ALTER TABLE saf_attempt ADD COLUMN proposer text;
ALTER TABLE saf_attempt ADD COLUMN reason text;
