-- Payments on their way, the lanes that order them, and the keys that seal them.
-- Times are epoch milliseconds, UTC.

-- Data keys, wrapped under the token's KEK. `wrapped` is emptied when the key is destroyed; the
-- row stays as a tombstone until retention has passed.
CREATE TABLE saf_dek (
    dek_id       INTEGER PRIMARY KEY AUTOINCREMENT,
    class        TEXT NOT NULL CHECK (class IN ('record', 'pin', 'index')),
    kek_version  INTEGER NOT NULL,
    wrapped      BLOB,
    created_at   INTEGER NOT NULL,
    not_after    INTEGER NOT NULL,
    destroyed_at INTEGER,
    CHECK ((wrapped IS NULL) = (destroyed_at IS NOT NULL))
) STRICT;

-- A second index key would split every lane in two.
CREATE UNIQUE INDEX saf_dek_one_index ON saf_dek (class) WHERE class = 'index';

CREATE TABLE saf_item (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    tenant       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    target       TEXT NOT NULL,
    reference    TEXT NOT NULL,
    ord_key      BLOB NOT NULL CHECK (length(ord_key) = 16),
    prio         INTEGER NOT NULL CHECK (prio BETWEEN 0 AND 3),
    -- 0 open, 1 held, 2 done, 3 failed, 4 expired, 5 cancelled; "leased" is derived from the lane
    state        INTEGER NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 5),
    hold_reason  TEXT,
    -- a byte may have left and no final answer came
    sent_unknown INTEGER NOT NULL DEFAULT 0 CHECK (sent_unknown IN (0, 1)),
    -- the client was told "pending", or lost its answer: no longer a call in progress
    queued       INTEGER NOT NULL CHECK (queued IN (0, 1)),
    -- cannot be sent without the PIN block
    needs_pin    INTEGER NOT NULL CHECK (needs_pin IN (0, 1)),
    attempts     INTEGER NOT NULL DEFAULT 0,
    abandoned    INTEGER NOT NULL DEFAULT 0,
    last_code    TEXT,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    terminal_at  INTEGER,
    enc_v        INTEGER NOT NULL,
    dek_id       INTEGER REFERENCES saf_dek,
    nonce        BLOB,
    ct           BLOB,
    pin_dek_id   INTEGER REFERENCES saf_dek,
    pin_nonce    BLOB,
    pin_ct       BLOB,
    UNIQUE (tenant, target, reference),
    CHECK ((state = 1) = (hold_reason IS NOT NULL)),
    CHECK ((state >= 2) = (terminal_at IS NOT NULL)),
    CHECK ((ct IS NULL) = (dek_id IS NULL) AND (ct IS NULL) = (nonce IS NULL)),
    CHECK ((pin_ct IS NULL) = (pin_dek_id IS NULL) AND (pin_ct IS NULL) = (pin_nonce IS NULL)),
    CHECK (ct IS NULL OR state < 2),
    -- A PIN block waits in an open item only, and never longer than an hour.
    CHECK (pin_ct IS NULL OR (state = 0 AND expires_at <= created_at + 3600000))
) STRICT;

CREATE INDEX saf_item_open ON saf_item (ord_key, seq) WHERE state < 2;
CREATE INDEX saf_item_urgent ON saf_item (ord_key, prio) WHERE state < 2;
CREATE INDEX saf_item_expiry ON saf_item (expires_at) WHERE state = 0;
CREATE INDEX saf_item_terminal ON saf_item (terminal_at) WHERE state >= 2;
CREATE INDEX saf_item_dek ON saf_item (dek_id) WHERE dek_id IS NOT NULL;
CREATE INDEX saf_item_pin_dek ON saf_item (pin_dek_id) WHERE pin_dek_id IS NOT NULL;

-- One row for each ordering key with open items: the unit of claim, order and mutual exclusion.
CREATE TABLE saf_lane (
    ord_key     BLOB PRIMARY KEY,
    target      TEXT NOT NULL,
    head_seq    INTEGER NOT NULL,
    head_prio   INTEGER NOT NULL,
    next_at     INTEGER NOT NULL DEFAULT 0,
    blocked     TEXT,
    leased      INTEGER NOT NULL DEFAULT 0 CHECK (leased IN (0, 1)),
    lease_owner TEXT,
    lease_token INTEGER,
    leased_at   INTEGER,
    lease_until INTEGER,
    CHECK ((leased = 1) = (lease_token IS NOT NULL)),
    CHECK ((leased = 1) = (lease_owner IS NOT NULL)),
    CHECK ((leased = 1) = (leased_at IS NOT NULL)),
    CHECK ((leased = 1) = (lease_until IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX saf_lane_ready ON saf_lane (head_prio, head_seq) WHERE leased = 0 AND blocked IS NULL;
CREATE INDEX saf_lane_leases ON saf_lane (lease_until) WHERE leased = 1;

-- What happened to an item, without payload.
CREATE TABLE saf_attempt (
    item_seq    INTEGER NOT NULL REFERENCES saf_item ON DELETE CASCADE,
    n           INTEGER NOT NULL,
    lease_token INTEGER,
    started_at  INTEGER,
    ended_at    INTEGER NOT NULL,
    what        TEXT NOT NULL,
    code        TEXT,
    late        INTEGER NOT NULL DEFAULT 0 CHECK (late IN (0, 1)),
    PRIMARY KEY (item_seq, n)
) STRICT, WITHOUT ROWID;

-- The client's keys and, once there is one, the sealed answer to repeat.
CREATE TABLE idem_key (
    scope      TEXT NOT NULL,
    key_hash   BLOB NOT NULL CHECK (length(key_hash) = 32),
    fp         BLOB NOT NULL CHECK (length(fp) = 32),
    item_seq   INTEGER NOT NULL REFERENCES saf_item,
    res_dek_id INTEGER REFERENCES saf_dek,
    res_nonce  BLOB,
    res_ct     BLOB,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key_hash),
    CHECK ((res_ct IS NULL) = (res_dek_id IS NULL) AND (res_ct IS NULL) = (res_nonce IS NULL))
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX idem_key_item ON idem_key (item_seq);
CREATE INDEX idem_key_expiry ON idem_key (expires_at);
CREATE INDEX idem_key_dek ON idem_key (res_dek_id) WHERE res_dek_id IS NOT NULL;
