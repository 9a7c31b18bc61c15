-- Times are milliseconds since 1970 UTC, amounts minor units, traces W3C trace ids. Numbers of states and kinds stand
-- in payment.rs, token.rs, event.rs and row.rs.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Fingerprints of the keys that token hashes were made with. A ring only grows.
CREATE TABLE hash_key (
    fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 16),
    is_primary  INTEGER NOT NULL CHECK (is_primary IN (0, 1))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX hash_key_primary ON hash_key (is_primary) WHERE is_primary;

-- The last position of each partition: locked by whoever appends, so positions have no gaps.
CREATE TABLE partition_head (
    partition INTEGER PRIMARY KEY,
    position  INTEGER NOT NULL CHECK (position >= 0)
) STRICT;

CREATE TABLE payment (
    psp_id             TEXT    NOT NULL,
    payment_request_id TEXT    NOT NULL,
    state              INTEGER NOT NULL,
    acquirer_id        TEXT,
    recorded_at        INTEGER,
    amount             INTEGER,
    currency           TEXT,
    initiated_at       INTEGER,
    verdict            INTEGER,
    verdict_at         INTEGER,
    verdict_by         TEXT,
    verdict_trace      BLOB,
    refunds            TEXT,
    money              INTEGER,
    return_amount      INTEGER,
    return_currency    TEXT,
    return_since       INTEGER,
    returned_at        INTEGER,
    return_reference   TEXT,
    PRIMARY KEY (psp_id, payment_request_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (
    psp_id            TEXT NOT NULL,
    authorization_id  TEXT NOT NULL,
    acquirer_id       TEXT NOT NULL,
    pass_through_info BLOB,
    revoked_at        INTEGER,
    revoked_cause     INTEGER,
    revoked_trace     BLOB,
    PRIMARY KEY (psp_id, authorization_id)
) STRICT, WITHOUT ROWID;

-- A token is known by its keyed hash alone. Without an authorization it was declared dead on arrival.
CREATE TABLE token (
    hash             BLOB PRIMARY KEY CHECK (length(hash) = 32),
    psp_id           TEXT NOT NULL,
    authorization_id TEXT,
    kind             INTEGER,
    expires_at       INTEGER,
    replaced_by      BLOB CHECK (length(replaced_by) = 32),
    verdict          INTEGER,
    verdict_at       INTEGER,
    verdict_by       TEXT,
    verdict_trace    BLOB,
    FOREIGN KEY (psp_id, authorization_id) REFERENCES grants (psp_id, authorization_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE event (
    partition         INTEGER NOT NULL REFERENCES partition_head (partition),
    position          INTEGER NOT NULL CHECK (position > 0),
    kind              INTEGER NOT NULL,
    psp_id            TEXT    NOT NULL,
    subject_id        TEXT    NOT NULL,
    acquirer_id       TEXT,
    amount            INTEGER,
    currency          TEXT,
    cause             INTEGER NOT NULL,
    decided_at        INTEGER NOT NULL,
    result            INTEGER,
    pass_through_info BLOB,
    trace             BLOB,
    PRIMARY KEY (partition, position)
) STRICT, WITHOUT ROWID;
