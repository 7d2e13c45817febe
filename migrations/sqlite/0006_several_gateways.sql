-- What several gateways need that share one database, and the words that both databases know.

-- The same indexes over the truth of a column, not over its being 1.
DROP INDEX saf_lane_ready;
DROP INDEX saf_lane_leases;
CREATE INDEX saf_lane_ready ON saf_lane (head_prio, head_seq) WHERE NOT leased AND blocked IS NULL;
CREATE INDEX saf_lane_leases ON saf_lane (lease_until) WHERE leased;

-- The answer to repeat stands with its payment.
ALTER TABLE saf_item ADD COLUMN res_dek_id INTEGER REFERENCES saf_dek;
ALTER TABLE saf_item ADD COLUMN res_nonce BLOB;
ALTER TABLE saf_item ADD COLUMN res_ct BLOB CHECK
    ((res_ct IS NULL) = (res_dek_id IS NULL) AND (res_ct IS NULL) = (res_nonce IS NULL));
UPDATE saf_item SET res_dek_id = k.res_dek_id, res_nonce = k.res_nonce, res_ct = k.res_ct
FROM idem_key k WHERE k.item_seq = saf_item.seq;
CREATE INDEX saf_item_res_dek ON saf_item (res_dek_id) WHERE res_dek_id IS NOT NULL;

-- A key names its payment by the payment's public identity, which is known before its place in line.
CREATE TABLE idem_key_new (
    scope      TEXT NOT NULL,
    key_hash   BLOB NOT NULL CHECK (length(key_hash) = 32),
    fp         BLOB NOT NULL CHECK (length(fp) = 32),
    item_id    BLOB NOT NULL REFERENCES saf_item (id) DEFERRABLE INITIALLY DEFERRED,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key_hash)
) STRICT, WITHOUT ROWID;
INSERT INTO idem_key_new
SELECT k.scope, k.key_hash, k.fp, i.id, k.expires_at
FROM idem_key k JOIN saf_item i ON i.seq = k.item_seq;
DROP TABLE idem_key;
ALTER TABLE idem_key_new RENAME TO idem_key;
CREATE INDEX idem_key_item ON idem_key (item_id);
CREATE INDEX idem_key_expiry ON idem_key (expires_at);

-- Each gateway writes here every few seconds: a database that takes no writes must show.
CREATE TABLE gateway_instance (
    name       TEXT PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 255),
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL
) STRICT;
