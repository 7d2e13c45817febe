-- Since when a change of a key is in force on one of several HSM links, and on record: the others are
-- given it under the same number, and it is not refused any more. Epoch milliseconds, UTC.
-- The twin of sqlite/0005.

ALTER TABLE key_change ADD COLUMN made_at bigint;
