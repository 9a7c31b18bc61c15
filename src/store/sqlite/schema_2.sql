-- Consumers of the feed, what holds for the store as a whole, checksums of rows and a chain over commits.

-- Over key and columns, as record/ computes it. NULL: the row was written before this migration.
ALTER TABLE payment ADD COLUMN checksum INTEGER;
ALTER TABLE grants ADD COLUMN checksum INTEGER;
ALTER TABLE token ADD COLUMN checksum INTEGER;
ALTER TABLE event ADD COLUMN checksum INTEGER;

-- The last event that was purged. What is left of a partition stands behind it, without gap.
ALTER TABLE partition_head ADD COLUMN purged INTEGER NOT NULL DEFAULT 0 CHECK (purged BETWEEN 0 AND position);

-- Payments people have to look after, longest first: unresolved (2) since the cancel, money due (4) since it is due.
CREATE INDEX payment_outstanding ON payment (money, coalesce(return_since, verdict_at)) WHERE money IN (2, 4);

-- Followers of the feed. What others chose is kept as bytes: it may hold NUL.
CREATE TABLE consumer (
    name  TEXT PRIMARY KEY,
    owner BLOB
) STRICT, WITHOUT ROWID;

CREATE TABLE consumer_progress (
    name         TEXT    NOT NULL REFERENCES consumer (name),
    partition    INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL CHECK (acknowledged >= 0),
    stream       BLOB CHECK (length(stream) = 16),
    PRIMARY KEY (name, partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE parked (
    consumer     TEXT    NOT NULL REFERENCES consumer (name),
    partition    INTEGER NOT NULL,
    position     INTEGER NOT NULL CHECK (position >= 0),
    event_id     BLOB    NOT NULL CHECK (length(event_id) = 16),
    subject_kind INTEGER NOT NULL,
    psp_id       TEXT    NOT NULL,
    subject_id   TEXT    NOT NULL,
    reason       BLOB,
    parked_at    INTEGER NOT NULL,
    redrive      INTEGER NOT NULL CHECK (redrive IN (0, 1)),
    PRIMARY KEY (consumer, partition, position)
) STRICT, WITHOUT ROWID;

-- What changed for the store as a whole, when and why. Numbers of changes stand in standing.rs; meta.suspect is the id
-- of the line that says why.
CREATE TABLE journal (
    id     INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    change INTEGER NOT NULL,
    text   BLOB
) STRICT;

-- One row a commit: the digest of what it changed, and the hash over the row before, this row's id and that digest. The
-- first row tells one store from another. Old rows are pruned.
CREATE TABLE chain (
    id      INTEGER PRIMARY KEY,
    changes BLOB NOT NULL CHECK (length(changes) = 32),
    hash    BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
INSERT INTO chain (id, changes, hash) VALUES (0, zeroblob(32), randomblob(32));

-- An older program would decide in a suspect store and write rows beside their checksums and the chain.
UPDATE meta SET value = 2 WHERE key = 'least_schema';
