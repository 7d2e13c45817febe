-- Changes of the token's keys, and the officers who asked for them and allowed them.
-- Times are epoch milliseconds, UTC.

CREATE TABLE key_change (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    kind            TEXT NOT NULL CHECK (kind IN ('import', 'activate', 'retire', 'compromise')),
    label           TEXT NOT NULL,
    version         INTEGER NOT NULL,
    -- of an import: what the key is for, the key that protects its block, and the block itself
    profile         TEXT,
    kbpk            TEXT,
    kbpk_version    INTEGER,
    block           TEXT,
    -- how long the version that retires still verifies and deciphers
    overlap_s       INTEGER,
    state           TEXT NOT NULL CHECK (state IN
                        ('proposed', 'approved', 'applied', 'refused', 'withdrawn', 'expired')),
    reason          TEXT NOT NULL,
    proposer        TEXT NOT NULL,
    proposed_at     INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    -- who approved, refused or withdrew it, and in which words
    decider         TEXT,
    decision_reason TEXT,
    decided_at      INTEGER,
    -- its number in the worker's key register; given when it is first tried
    register_change INTEGER UNIQUE,
    error           TEXT,
    ended_at        INTEGER,
    CHECK ((kind = 'import') = (profile IS NOT NULL)),
    CHECK ((kind = 'import') = (kbpk IS NOT NULL)),
    -- Nobody decides alone on what he proposed himself, but to take it back.
    CHECK (decider IS NULL OR decider <> proposer OR state = 'withdrawn'),
    -- The enciphered key is kept as long as it is still to be imported.
    CHECK ((block IS NOT NULL) = (kind = 'import' AND state IN ('proposed', 'approved'))),
    CHECK ((ended_at IS NULL) = (state IN ('proposed', 'approved'))),
    CHECK (state NOT IN ('approved', 'applied') OR kind = 'compromise' OR decider IS NOT NULL)
) STRICT;

CREATE INDEX key_change_open ON key_change (state, number) WHERE ended_at IS NULL;
