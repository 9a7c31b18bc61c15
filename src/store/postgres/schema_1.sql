-- Runs statement by statement, from any number of replicas at once, and again after half a run: every statement may be
-- repeated, and none hangs on the others being in one transaction (YugabyteDB commits each by itself).
--
-- Times are milliseconds since 1970 UTC, amounts minor units, traces W3C trace ids. Numbers of states and kinds stand in
-- store/record. Keys are bytes, not text: their order and their index hang on no collation, which an upgrade of the
-- operating system may change under a database. `convert_from(payment_request_id, 'UTF8')` shows them to people.

CREATE TABLE IF NOT EXISTS meta (
    only_row     integer PRIMARY KEY CHECK (only_row = 1),
    schema       integer NOT NULL,
    least_schema integer NOT NULL,
    partitions   integer NOT NULL CHECK (partitions BETWEEN 1 AND 1024),
    epoch        bigint  NOT NULL,
    onboarding   boolean NOT NULL,
    filling      boolean NOT NULL,
    suspect      bytea
);

-- Fingerprints of the keys that token hashes were made with. A ring only grows.
CREATE TABLE IF NOT EXISTS hash_key (
    fingerprint bytea   PRIMARY KEY CHECK (length(fingerprint) = 16),
    is_primary  boolean NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS hash_key_primary ON hash_key (is_primary) WHERE is_primary;

-- Whoever decides about keys of a partition first locks its head. `turn` grows with every transaction that changed
-- anything in it: an engine that runs it on an older snapshot than the lock's (REPEATABLE READ and above) notices.
CREATE TABLE IF NOT EXISTS partition_head (
    partition integer PRIMARY KEY,
    position  bigint  NOT NULL CHECK (position >= 0),
    purged    bigint  NOT NULL CHECK (purged >= 0),
    turn      bigint  NOT NULL
);

CREATE TABLE IF NOT EXISTS payment (
    psp_id             bytea    NOT NULL,
    payment_request_id bytea    NOT NULL,
    state              smallint NOT NULL,
    acquirer_id        text,
    recorded_at        bigint,
    amount             bigint,
    currency           text,
    initiated_at       bigint,
    verdict            smallint,
    verdict_at         bigint,
    verdict_by         text,
    verdict_trace      bytea,
    refunds            text,
    money              smallint,
    return_amount      bigint,
    return_currency    text,
    return_since       bigint,
    returned_at        bigint,
    return_reference   text,
    outstanding_since  bigint,
    PRIMARY KEY (psp_id, payment_request_id)
);
CREATE INDEX IF NOT EXISTS payment_outstanding ON payment (money, outstanding_since)
    WHERE outstanding_since IS NOT NULL;

CREATE TABLE IF NOT EXISTS grants (
    psp_id            bytea NOT NULL,
    authorization_id  bytea NOT NULL,
    acquirer_id       text  NOT NULL,
    pass_through_info bytea,
    revoked_at        bigint,
    revoked_cause     smallint,
    revoked_trace     bytea,
    PRIMARY KEY (psp_id, authorization_id)
);

-- A token is known by its keyed hash alone. Without an authorization it was declared dead on arrival.
CREATE TABLE IF NOT EXISTS token (
    hash             bytea PRIMARY KEY CHECK (length(hash) = 32),
    psp_id           bytea NOT NULL,
    authorization_id bytea,
    kind             smallint,
    expires_at       bigint,
    replaced_by      bytea CHECK (length(replaced_by) = 32),
    verdict          smallint,
    verdict_at       bigint,
    verdict_by       text,
    verdict_trace    bytea,
    FOREIGN KEY (psp_id, authorization_id) REFERENCES grants (psp_id, authorization_id)
);

CREATE TABLE IF NOT EXISTS event (
    partition         integer  NOT NULL,
    position          bigint   NOT NULL CHECK (position > 0),
    kind              smallint NOT NULL,
    psp_id            bytea    NOT NULL,
    subject_id        bytea    NOT NULL,
    acquirer_id       text,
    amount            bigint,
    currency          text,
    cause             smallint NOT NULL,
    decided_at        bigint   NOT NULL,
    result            smallint,
    pass_through_info bytea,
    trace             bytea,
    PRIMARY KEY (partition, position)
);

CREATE TABLE IF NOT EXISTS consumer (
    name  bytea PRIMARY KEY,
    owner bytea
);

CREATE TABLE IF NOT EXISTS consumer_progress (
    name         bytea   NOT NULL,
    partition    integer NOT NULL,
    acknowledged bigint  NOT NULL,
    stream       bytea,
    PRIMARY KEY (name, partition)
);

CREATE TABLE IF NOT EXISTS parked (
    name         bytea    NOT NULL,
    partition    integer  NOT NULL,
    position     bigint   NOT NULL,
    event_id     bytea    NOT NULL,
    subject_kind smallint NOT NULL,
    psp_id       bytea    NOT NULL,
    subject_id   bytea    NOT NULL,
    reason       bytea,
    parked_at    bigint   NOT NULL,
    redrive      boolean  NOT NULL,
    PRIMARY KEY (name, partition, position)
);

-- What was done to the store as a whole, for people.
CREATE TABLE IF NOT EXISTS journal (
    at    bigint NOT NULL,
    nonce bytea  NOT NULL,
    what  text   NOT NULL,
    why   bytea,
    PRIMARY KEY (at, nonce)
);
