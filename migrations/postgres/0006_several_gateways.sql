-- What several gateways need that share one database. The twin of sqlite/0006.

-- The answer to repeat stands with its payment.
ALTER TABLE saf_item
    ADD COLUMN res_dek_id bigint REFERENCES saf_dek,
    ADD COLUMN res_nonce bytea,
    ADD COLUMN res_ct bytea,
    ADD CHECK ((res_ct IS NULL) = (res_dek_id IS NULL) AND (res_ct IS NULL) = (res_nonce IS NULL));
UPDATE saf_item SET res_dek_id = k.res_dek_id, res_nonce = k.res_nonce, res_ct = k.res_ct
FROM idem_key k WHERE k.item_seq = saf_item.seq;
CREATE INDEX saf_item_res_dek ON saf_item (res_dek_id) WHERE res_dek_id IS NOT NULL;

-- A key names its payment by the payment's public identity, which is known before its place in line.
ALTER TABLE idem_key ADD COLUMN item_id uuid;
UPDATE idem_key k SET item_id = i.id FROM saf_item i WHERE i.seq = k.item_seq;
ALTER TABLE idem_key
    DROP COLUMN item_seq,
    DROP COLUMN res_dek_id,
    DROP COLUMN res_nonce,
    DROP COLUMN res_ct,
    ALTER COLUMN item_id SET NOT NULL,
    ADD FOREIGN KEY (item_id) REFERENCES saf_item (id) DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX idem_key_item ON idem_key (item_id);

-- Each gateway writes here every few seconds: a database that takes no writes must show.
CREATE TABLE gateway_instance (
    name       text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 255),
    started_at bigint NOT NULL,
    seen_at    bigint NOT NULL
);
