-- Payments on their way, the lanes that order them, and the keys that seal them.
-- Times are epoch milliseconds, UTC. The twin of sqlite/0001: the same columns under the same names.

-- Data keys, wrapped under the token's KEK. `wrapped` is emptied when the key is destroyed; the
-- row stays as a tombstone until retention has passed.
CREATE TABLE saf_dek (
    dek_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class        text NOT NULL CHECK (class IN ('record', 'pin', 'index')),
    kek_version  bigint NOT NULL,
    wrapped      bytea,
    created_at   bigint NOT NULL,
    not_after    bigint NOT NULL,
    destroyed_at bigint,
    CHECK ((wrapped IS NULL) = (destroyed_at IS NOT NULL))
);

-- A second index key would split every lane in two.
CREATE UNIQUE INDEX saf_dek_one_index ON saf_dek (class) WHERE class = 'index';

CREATE TABLE saf_item (
    seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           uuid NOT NULL UNIQUE,
    tenant       text NOT NULL,
    kind         text NOT NULL,
    target       text NOT NULL,
    reference    text NOT NULL,
    ord_key      bytea NOT NULL CHECK (length(ord_key) = 16),
    prio         bigint NOT NULL CHECK (prio BETWEEN 0 AND 3),
    -- 0 open, 1 held, 2 done, 3 failed, 4 expired, 5 cancelled; "leased" is derived from the lane
    state        bigint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 5),
    hold_reason  text,
    -- a byte may have left and no final answer came
    sent_unknown boolean NOT NULL DEFAULT false,
    -- the client was told "pending", or lost its answer: no longer a call in progress
    queued       boolean NOT NULL,
    -- cannot be sent without the PIN block
    needs_pin    boolean NOT NULL,
    attempts     bigint NOT NULL DEFAULT 0,
    abandoned    bigint NOT NULL DEFAULT 0,
    last_code    text,
    created_at   bigint NOT NULL,
    expires_at   bigint NOT NULL,
    updated_at   bigint NOT NULL,
    terminal_at  bigint,
    enc_v        bigint NOT NULL,
    dek_id       bigint REFERENCES saf_dek,
    nonce        bytea,
    ct           bytea,
    pin_dek_id   bigint REFERENCES saf_dek,
    pin_nonce    bytea,
    pin_ct       bytea,
    UNIQUE (tenant, target, reference),
    CHECK ((state = 1) = (hold_reason IS NOT NULL)),
    CHECK ((state >= 2) = (terminal_at IS NOT NULL)),
    CHECK ((ct IS NULL) = (dek_id IS NULL) AND (ct IS NULL) = (nonce IS NULL)),
    CHECK ((pin_ct IS NULL) = (pin_dek_id IS NULL) AND (pin_ct IS NULL) = (pin_nonce IS NULL)),
    CHECK (ct IS NULL OR state < 2),
    -- A PIN block waits in an open item only, and never longer than an hour.
    CHECK (pin_ct IS NULL OR (state = 0 AND expires_at <= created_at + 3600000))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX saf_item_open ON saf_item (ord_key, seq) WHERE state < 2;
CREATE INDEX saf_item_urgent ON saf_item (ord_key, prio) WHERE state < 2;
CREATE INDEX saf_item_expiry ON saf_item (expires_at) WHERE state = 0;
CREATE INDEX saf_item_terminal ON saf_item (terminal_at) WHERE state >= 2;
CREATE INDEX saf_item_dek ON saf_item (dek_id) WHERE dek_id IS NOT NULL;
CREATE INDEX saf_item_pin_dek ON saf_item (pin_dek_id) WHERE pin_dek_id IS NOT NULL;

-- One row for each ordering key with open items: the unit of claim, order and mutual exclusion.
CREATE TABLE saf_lane (
    ord_key     bytea PRIMARY KEY,
    target      text NOT NULL,
    head_seq    bigint NOT NULL,
    head_prio   bigint NOT NULL,
    next_at     bigint NOT NULL DEFAULT 0,
    blocked     text,
    leased      boolean NOT NULL DEFAULT false,
    lease_owner text,
    lease_token bigint,
    leased_at   bigint,
    lease_until bigint,
    CHECK (leased = (lease_token IS NOT NULL)),
    CHECK (leased = (lease_owner IS NOT NULL)),
    CHECK (leased = (leased_at IS NOT NULL)),
    CHECK (leased = (lease_until IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX saf_lane_ready ON saf_lane (head_prio, head_seq) WHERE NOT leased AND blocked IS NULL;
CREATE INDEX saf_lane_leases ON saf_lane (lease_until) WHERE leased;

-- What happened to an item, without payload.
CREATE TABLE saf_attempt (
    item_seq    bigint NOT NULL REFERENCES saf_item ON DELETE CASCADE,
    n           bigint NOT NULL,
    lease_token bigint,
    started_at  bigint,
    ended_at    bigint NOT NULL,
    what        text NOT NULL,
    code        text,
    late        boolean NOT NULL DEFAULT false,
    PRIMARY KEY (item_seq, n)
);

-- The client's keys and, once there is one, the sealed answer to repeat.
CREATE TABLE idem_key (
    scope      text NOT NULL,
    key_hash   bytea NOT NULL CHECK (length(key_hash) = 32),
    fp         bytea NOT NULL CHECK (length(fp) = 32),
    item_seq   bigint NOT NULL REFERENCES saf_item,
    res_dek_id bigint REFERENCES saf_dek,
    res_nonce  bytea,
    res_ct     bytea,
    expires_at bigint NOT NULL,
    PRIMARY KEY (scope, key_hash),
    CHECK ((res_ct IS NULL) = (res_dek_id IS NULL) AND (res_ct IS NULL) = (res_nonce IS NULL))
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX idem_key_item ON idem_key (item_seq);
CREATE INDEX idem_key_expiry ON idem_key (expires_at);
CREATE INDEX idem_key_dek ON idem_key (res_dek_id) WHERE res_dek_id IS NOT NULL;
