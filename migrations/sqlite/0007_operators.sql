-- The operators' hand on the queue: billers that are paused, decisions that wait for a second
-- operator, payments that were given up and may be tried again. Times are epoch milliseconds, UTC.

-- A biller that is paused gets nothing, from any replica. The row stays after its end and says whose
-- word was the last.
CREATE TABLE saf_control (
    target TEXT PRIMARY KEY CHECK (length(target) BETWEEN 1 AND 128),
    paused INTEGER NOT NULL CHECK (paused IN (0, 1)),
    actor  TEXT NOT NULL CHECK (length(actor) BETWEEN 1 AND 128),
    reason TEXT NOT NULL CHECK (length(reason) BETWEEN 1 AND 128),
    at     INTEGER NOT NULL
) STRICT;

-- What one operator wants done with a payment that may have been made, until another one says so too.
CREATE TABLE saf_decision (
    item_seq      INTEGER PRIMARY KEY REFERENCES saf_item ON DELETE CASCADE,
    action        TEXT NOT NULL CHECK (action IN ('release', 'retry', 'cancel', 'settle')),
    -- of a settlement: what was found out
    outcome       TEXT CHECK (outcome IN ('paid', 'failed')),
    response_code TEXT,
    actor         TEXT NOT NULL CHECK (length(actor) BETWEEN 1 AND 128),
    reason        TEXT NOT NULL CHECK (length(reason) BETWEEN 1 AND 128),
    at            INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    CHECK ((action = 'settle') = (outcome IS NOT NULL)),
    CHECK ((action = 'settle') = (response_code IS NOT NULL))
) STRICT;

-- The sealed payload of a payment that failed because its attempts were used up. An open row has its
-- own; a row that has ended has none, so that setting it open again by hand sends nothing.
CREATE TABLE saf_dead_letter (
    item_seq INTEGER PRIMARY KEY REFERENCES saf_item ON DELETE CASCADE,
    dek_id   INTEGER NOT NULL REFERENCES saf_dek,
    nonce    BLOB NOT NULL,
    ct       BLOB NOT NULL
) STRICT;

CREATE INDEX saf_dead_letter_dek ON saf_dead_letter (dek_id);

-- What a person did to a payment: who, whose proposal it was, and why.
ALTER TABLE saf_attempt ADD COLUMN actor TEXT;
ALTER TABLE saf_attempt ADD COLUMN proposer TEXT;
ALTER TABLE saf_attempt ADD COLUMN reason TEXT;
