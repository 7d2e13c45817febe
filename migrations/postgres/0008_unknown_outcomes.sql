-- What a payment needs whose biller may not be sent it twice. The twin of sqlite/0008.

ALTER TABLE saf_item
    -- NULL: every lease counts as sent. Otherwise the token of the lease under which a byte may have
    -- left, or 0 when nothing has
    ADD COLUMN send_mark bigint,
    -- of a reversal: the payment that it takes back
    ADD COLUMN reverses uuid;
CREATE UNIQUE INDEX saf_item_reverses ON saf_item (reverses) WHERE reverses IS NOT NULL;
