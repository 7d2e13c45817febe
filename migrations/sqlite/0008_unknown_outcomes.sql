-- What a payment needs whose biller may not be sent it twice. The twin of postgres/0008.

-- NULL: every lease counts as sent. Otherwise the token of the lease under which a byte may have
-- left, or 0 when nothing has
ALTER TABLE saf_item ADD COLUMN send_mark INTEGER;
-- of a reversal: the payment that it takes back
ALTER TABLE saf_item ADD COLUMN reverses BLOB;
CREATE UNIQUE INDEX saf_item_reverses ON saf_item (reverses) WHERE reverses IS NOT NULL;
