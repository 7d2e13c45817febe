-- How old the database is, in looks of its gateways: each start and each look raises `epoch`, and
-- each gateway keeps the last one that it has seen outside. A database behind that is an old copy.

CREATE TABLE saf_epoch (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    -- a restored copy keeps it, another database has another one
    store          BLOB NOT NULL CHECK (length(store) = 16),
    epoch          INTEGER NOT NULL,
    -- the last payment that was here when the epoch was raised; it stays when payments are pruned
    item_seq       INTEGER NOT NULL,
    -- epoch milliseconds, UTC: since when nothing leaves until an operator has acknowledged
    rolled_back_at INTEGER
) STRICT;

INSERT INTO saf_epoch (one, store, epoch, item_seq) VALUES (1, randomblob(16), 0, 0);
