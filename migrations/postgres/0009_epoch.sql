-- How old the database is, in looks of its gateways. The twin of sqlite/0009.

CREATE TABLE saf_epoch (
    one            bigint PRIMARY KEY CHECK (one = 1),
    -- a restored copy keeps it, another database has another one
    store          uuid NOT NULL,
    epoch          bigint NOT NULL,
    -- the last payment that was here when the epoch was raised; it stays when payments are pruned
    item_seq       bigint NOT NULL,
    -- epoch milliseconds, UTC: since when nothing leaves until an operator has acknowledged
    rolled_back_at bigint
);

INSERT INTO saf_epoch (one, store, epoch, item_seq) VALUES (1, gen_random_uuid(), 0, 0);
