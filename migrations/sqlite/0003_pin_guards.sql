-- What protects PINs and MACs from being guessed or replayed: counters, blocks, DUKPT counters.
-- A card is known here by a keyed hash of its number only. Times are epoch milliseconds, UTC.

-- The highest transaction counter of each DUKPT device that passed a check. A PIN block and the MAC
-- around it carry one KSN: each purpose counts for itself.
CREATE TABLE dukpt_device (
    key_label TEXT NOT NULL,
    purpose   TEXT NOT NULL CHECK (purpose IN ('pin', 'mac')),
    device    BLOB NOT NULL CHECK (length(device) BETWEEN 8 AND 12),
    counter   INTEGER NOT NULL CHECK (counter BETWEEN 1 AND 4294967295),
    -- the idempotent request that used this counter, and may come again
    holder    BLOB CHECK (length(holder) = 32),
    seen_at   INTEGER NOT NULL,
    PRIMARY KEY (key_label, purpose, device)
) STRICT, WITHOUT ROWID;

-- How often something happened in a short window and in a long one, both from their first event.
CREATE TABLE guard_window (
    rule        TEXT NOT NULL,
    subject     BLOB NOT NULL,
    short_since INTEGER NOT NULL,
    short_count INTEGER NOT NULL,
    long_since  INTEGER NOT NULL,
    long_count  INTEGER NOT NULL,
    -- somebody was told that it is over its limit
    told        INTEGER NOT NULL DEFAULT 0 CHECK (told IN (0, 1)),
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (rule, subject)
) STRICT, WITHOUT ROWID;

CREATE INDEX guard_window_expiry ON guard_window (expires_at);

-- PIN verifications of a card: how many began, and up to which one a right PIN has cleared them.
CREATE TABLE pan_tries (
    pan        BLOB PRIMARY KEY CHECK (length(pan) = 16),
    tries      INTEGER NOT NULL,
    cleared    INTEGER NOT NULL DEFAULT 0,
    expires_at INTEGER NOT NULL,
    CHECK (cleared <= tries)
) STRICT, WITHOUT ROWID;

CREATE INDEX pan_tries_expiry ON pan_tries (expires_at);

-- Keys that a counter took out of use.
CREATE TABLE guard_quarantine (
    scope      TEXT NOT NULL CHECK (scope IN ('pin', 'mac')),
    key_label  TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key_label)
) STRICT, WITHOUT ROWID;

-- Rows of the tables above, so that each has a bound that costs nothing to ask for.
CREATE TABLE guard_size (
    name TEXT PRIMARY KEY,
    size INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER dukpt_device_grows AFTER INSERT ON dukpt_device BEGIN
    INSERT INTO guard_size (name, size) VALUES (new.purpose || ' ' || new.key_label, 1)
    ON CONFLICT (name) DO UPDATE SET size = size + 1;
END;

CREATE TRIGGER guard_window_grows AFTER INSERT ON guard_window BEGIN
    INSERT INTO guard_size (name, size) VALUES ('window ' || new.rule, 1)
    ON CONFLICT (name) DO UPDATE SET size = size + 1;
END;

CREATE TRIGGER guard_window_shrinks AFTER DELETE ON guard_window BEGIN
    UPDATE guard_size SET size = size - 1 WHERE name = 'window ' || old.rule;
END;

CREATE TRIGGER pan_tries_grow AFTER INSERT ON pan_tries BEGIN
    INSERT INTO guard_size (name, size) VALUES ('pan_tries', 1)
    ON CONFLICT (name) DO UPDATE SET size = size + 1;
END;

CREATE TRIGGER pan_tries_shrink AFTER DELETE ON pan_tries BEGIN
    UPDATE guard_size SET size = size - 1 WHERE name = 'pan_tries';
END;
