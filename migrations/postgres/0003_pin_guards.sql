-- What protects PINs and MACs from being guessed or replayed: counters, blocks, DUKPT counters.
-- A card is known here by a keyed hash of its number only. Times are epoch milliseconds, UTC.
-- The twin of sqlite/0003.

-- The highest transaction counter of each DUKPT device that passed a check. A PIN block and the MAC
-- around it carry one KSN: each purpose counts for itself.
CREATE TABLE dukpt_device (
    key_label text NOT NULL,
    purpose   text NOT NULL CHECK (purpose IN ('pin', 'mac')),
    device    bytea NOT NULL CHECK (length(device) BETWEEN 8 AND 12),
    counter   bigint NOT NULL CHECK (counter BETWEEN 1 AND 4294967295),
    -- the idempotent request that used this counter, and may come again
    holder    bytea CHECK (length(holder) = 32),
    seen_at   bigint NOT NULL,
    PRIMARY KEY (key_label, purpose, device)
);

-- How often something happened in a short window and in a long one, both from their first event.
CREATE TABLE guard_window (
    rule        text NOT NULL,
    subject     bytea NOT NULL,
    short_since bigint NOT NULL,
    short_count bigint NOT NULL,
    long_since  bigint NOT NULL,
    long_count  bigint NOT NULL,
    -- somebody was told that it is over its limit
    told        boolean NOT NULL DEFAULT false,
    expires_at  bigint NOT NULL,
    PRIMARY KEY (rule, subject)
) WITH (fillfactor = 50);

CREATE INDEX guard_window_expiry ON guard_window (expires_at);

-- PIN verifications of a card: how many began, and up to which one a right PIN has cleared them.
CREATE TABLE pan_tries (
    pan        bytea PRIMARY KEY CHECK (length(pan) = 16),
    tries      bigint NOT NULL,
    cleared    bigint NOT NULL DEFAULT 0,
    expires_at bigint NOT NULL,
    CHECK (cleared <= tries)
);

CREATE INDEX pan_tries_expiry ON pan_tries (expires_at);

-- Keys that a counter took out of use.
CREATE TABLE guard_quarantine (
    scope      text NOT NULL CHECK (scope IN ('pin', 'mac')),
    key_label  text NOT NULL,
    expires_at bigint NOT NULL,
    PRIMARY KEY (scope, key_label)
);

-- Rows of the tables above, so that each has a bound that costs nothing to ask for.
CREATE TABLE guard_size (
    name text PRIMARY KEY,
    size bigint NOT NULL
);

CREATE FUNCTION guard_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO guard_size AS known (name, size) VALUES (
        CASE TG_TABLE_NAME
            WHEN 'dukpt_device'
            THEN (to_jsonb(NEW) ->> 'purpose') || ' ' || (to_jsonb(NEW) ->> 'key_label')
            WHEN 'guard_window' THEN 'window ' || (to_jsonb(NEW) ->> 'rule')
            ELSE TG_TABLE_NAME
        END, 1)
    ON CONFLICT (name) DO UPDATE SET size = known.size + 1;
    RETURN NULL;
END $$;

CREATE FUNCTION guard_shrinks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE guard_size SET size = size - 1 WHERE name =
        CASE TG_TABLE_NAME
            WHEN 'guard_window' THEN 'window ' || (to_jsonb(OLD) ->> 'rule')
            ELSE TG_TABLE_NAME
        END;
    RETURN NULL;
END $$;

CREATE TRIGGER dukpt_device_grows AFTER INSERT ON dukpt_device
    FOR EACH ROW EXECUTE FUNCTION guard_grows();
CREATE TRIGGER guard_window_grows AFTER INSERT ON guard_window
    FOR EACH ROW EXECUTE FUNCTION guard_grows();
CREATE TRIGGER guard_window_shrinks AFTER DELETE ON guard_window
    FOR EACH ROW EXECUTE FUNCTION guard_shrinks();
CREATE TRIGGER pan_tries_grow AFTER INSERT ON pan_tries
    FOR EACH ROW EXECUTE FUNCTION guard_grows();
CREATE TRIGGER pan_tries_shrink AFTER DELETE ON pan_tries
    FOR EACH ROW EXECUTE FUNCTION guard_shrinks();
