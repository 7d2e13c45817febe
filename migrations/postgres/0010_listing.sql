-- Operators find what has failed without reading what has not; a claim reads the lanes of its biller.
-- The twin of sqlite/0010.

-- neither open nor successful
CREATE INDEX saf_item_unpaid ON saf_item (seq) WHERE state NOT IN (0, 2);

DROP INDEX saf_lane_ready;
CREATE INDEX saf_lane_ready ON saf_lane (target, head_prio, head_seq)
    WHERE NOT leased AND blocked IS NULL;
