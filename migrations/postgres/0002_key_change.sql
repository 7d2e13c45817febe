-- Changes of the token's keys, and the officers who asked for them and allowed them.
-- Times are epoch milliseconds, UTC. The twin of sqlite/0002.

CREATE TABLE key_change (
    number          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('import', 'activate', 'retire', 'compromise')),
    label           text NOT NULL,
    version         bigint NOT NULL,
    -- of an import: what the key is for, the key that protects its block, and the block itself
    profile         text,
    kbpk            text,
    kbpk_version    bigint,
    block           text,
    -- how long the version that retires still verifies and deciphers
    overlap_s       bigint,
    state           text NOT NULL CHECK (state IN
                        ('proposed', 'approved', 'applied', 'refused', 'withdrawn', 'expired')),
    reason          text NOT NULL,
    proposer        text NOT NULL,
    proposed_at     bigint NOT NULL,
    expires_at      bigint NOT NULL,
    -- who approved, refused or withdrew it, and in which words
    decider         text,
    decision_reason text,
    decided_at      bigint,
    -- its number in the worker's key register; given when it is first tried
    register_change bigint UNIQUE,
    error           text,
    ended_at        bigint,
    CHECK ((kind = 'import') = (profile IS NOT NULL)),
    CHECK ((kind = 'import') = (kbpk IS NOT NULL)),
    -- Nobody decides alone on what he proposed himself, but to take it back.
    CHECK (decider IS NULL OR decider <> proposer OR state = 'withdrawn'),
    -- The enciphered key is kept as long as it is still to be imported.
    CHECK ((block IS NOT NULL) = (kind = 'import' AND state IN ('proposed', 'approved'))),
    CHECK ((ended_at IS NULL) = (state IN ('proposed', 'approved'))),
    CHECK (state NOT IN ('approved', 'applied') OR kind = 'compromise' OR decider IS NOT NULL)
);

CREATE INDEX key_change_open ON key_change (state, number) WHERE ended_at IS NULL;
