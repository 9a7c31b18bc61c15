//! The statements of a transaction: over arrays, so that a batch of any size is one of each; prepared once a session.
//!
//! Rows come back with their key, in no promised order.

use futures_util::future;
use tokio_postgres::{Client, Error, Statement};

/// Declares the statements and how they are prepared, all in one round trip.
macro_rules! statements {
    ($($(#[doc = $doc:literal])* $name:ident = $sql:expr;)*) => {
        /// Prepared statements of a session.
        pub(super) struct Prepared {
            $($(#[doc = $doc])* pub(super) $name: Statement,)*
        }

        impl Prepared {
            async fn new(client: &Client) -> Result<Self, Error> {
                let texts = [$($sql),*];
                let all = future::join_all(texts.map(|sql| client.prepare(sql))).await;
                let mut all = all.into_iter();
                Ok(Self {
                    $($name: all.next().expect("one for each text")?,)*
                })
            }
        }
    };
}

statements! {
    /// Where tokens' authorizations are: plain, before any lock. What it says of a token that is known never changes.
    resolve_tokens =
        "SELECT t.hash, t.psp_id, t.authorization_id
         FROM unnest($1::bytea[]) AS w (hash) JOIN token t ON t.hash = w.hash
         WHERE t.authorization_id IS NOT NULL";
    /// Locks partitions, in ascending order whoever asks, so that nobody waits for each other.
    lock_heads =
        "SELECT partition, position, purged FROM partition_head
         WHERE partition = ANY ($1::integer[]) ORDER BY partition FOR UPDATE";
    /// What holds for the store as a whole, and its clock in milliseconds.
    read_meta =
        "SELECT epoch, onboarding, filling, suspect,
         (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
         current_setting('synchronous_standby_names', true) <> ''
         FROM meta WHERE only_row = 1";
    /// Whether commits wait for a standby: asked behind a COMMIT as well, because a server whose list of standbys becomes
    /// empty lets all that wait go, without a word.
    commits_wait = "SELECT current_setting('synchronous_standby_names', true) <> ''";
    /// Makes a transaction write something, so that its COMMIT waits for its standby, and for all before it.
    barrier = "SELECT 1 FROM meta WHERE only_row = 1 FOR SHARE";
    load_payments =
        "SELECT p.psp_id, p.payment_request_id, p.state, p.acquirer_id, p.recorded_at, p.amount, p.currency,
         p.initiated_at, p.verdict, p.verdict_at, p.verdict_by, p.verdict_trace, p.refunds, p.money, p.return_amount,
         p.return_currency, p.return_since, p.returned_at, p.return_reference
         FROM unnest($1::bytea[], $2::bytea[]) AS w (psp_id, id)
         JOIN payment p ON p.psp_id = w.psp_id AND p.payment_request_id = w.id";
    load_grants =
        "SELECT g.psp_id, g.authorization_id, g.acquirer_id, g.pass_through_info, g.revoked_at, g.revoked_cause,
         g.revoked_trace
         FROM unnest($1::bytea[], $2::bytea[]) AS w (psp_id, id)
         JOIN grants g ON g.psp_id = w.psp_id AND g.authorization_id = w.id";
    load_tokens =
        "SELECT t.hash, t.psp_id, t.authorization_id, t.kind, t.expires_at, t.replaced_by, t.verdict, t.verdict_at,
         t.verdict_by, t.verdict_trace
         FROM unnest($1::bytea[]) AS w (hash) JOIN token t ON t.hash = w.hash";
    save_payments =
        "INSERT INTO payment (psp_id, payment_request_id, state, acquirer_id, recorded_at, amount, currency,
         initiated_at, verdict, verdict_at, verdict_by, verdict_trace, refunds, money, return_amount, return_currency,
         return_since, returned_at, return_reference, outstanding_since)
         SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::smallint[], $4::text[], $5::bigint[], $6::bigint[],
         $7::text[], $8::bigint[], $9::smallint[], $10::bigint[], $11::text[], $12::bytea[], $13::text[],
         $14::smallint[], $15::bigint[], $16::text[], $17::bigint[], $18::bigint[], $19::text[], $20::bigint[])
         ON CONFLICT (psp_id, payment_request_id) DO UPDATE SET state = excluded.state,
         acquirer_id = excluded.acquirer_id, recorded_at = excluded.recorded_at, amount = excluded.amount,
         currency = excluded.currency, initiated_at = excluded.initiated_at, verdict = excluded.verdict,
         verdict_at = excluded.verdict_at, verdict_by = excluded.verdict_by, verdict_trace = excluded.verdict_trace,
         refunds = excluded.refunds, money = excluded.money, return_amount = excluded.return_amount,
         return_currency = excluded.return_currency, return_since = excluded.return_since,
         returned_at = excluded.returned_at, return_reference = excluded.return_reference,
         outstanding_since = excluded.outstanding_since";
    save_grants =
        "INSERT INTO grants (psp_id, authorization_id, acquirer_id, pass_through_info, revoked_at, revoked_cause,
         revoked_trace)
         SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::bytea[], $5::bigint[], $6::smallint[],
         $7::bytea[])
         ON CONFLICT (psp_id, authorization_id) DO UPDATE SET acquirer_id = excluded.acquirer_id,
         pass_through_info = excluded.pass_through_info, revoked_at = excluded.revoked_at,
         revoked_cause = excluded.revoked_cause, revoked_trace = excluded.revoked_trace";
    save_tokens =
        "INSERT INTO token (hash, psp_id, authorization_id, kind, expires_at, replaced_by, verdict, verdict_at,
         verdict_by, verdict_trace)
         SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::smallint[], $5::bigint[], $6::bytea[],
         $7::smallint[], $8::bigint[], $9::text[], $10::bytea[])
         ON CONFLICT (hash) DO UPDATE SET psp_id = excluded.psp_id, authorization_id = excluded.authorization_id,
         kind = excluded.kind, expires_at = excluded.expires_at, replaced_by = excluded.replaced_by,
         verdict = excluded.verdict, verdict_at = excluded.verdict_at, verdict_by = excluded.verdict_by,
         verdict_trace = excluded.verdict_trace";
    save_events =
        "INSERT INTO event (partition, position, kind, psp_id, subject_id, acquirer_id, amount, currency, cause,
         decided_at, result, pass_through_info, trace)
         SELECT * FROM unnest($1::integer[], $2::bigint[], $3::smallint[], $4::bytea[], $5::bytea[], $6::text[],
         $7::bigint[], $8::text[], $9::smallint[], $10::bigint[], $11::smallint[], $12::bytea[], $13::bytea[])";
    /// Events that a store is filled with; those that are there already stay.
    fill_events =
        "INSERT INTO event (partition, position, kind, psp_id, subject_id, acquirer_id, amount, currency, cause,
         decided_at, result, pass_through_info, trace)
         SELECT * FROM unnest($1::integer[], $2::bigint[], $3::smallint[], $4::bytea[], $5::bytea[], $6::text[],
         $7::bigint[], $8::text[], $9::smallint[], $10::bigint[], $11::smallint[], $12::bytea[], $13::bytea[])
         ON CONFLICT (partition, position) DO NOTHING";
    /// Also of partitions without a new event: see `turn` in the schema.
    save_heads =
        "UPDATE partition_head AS h SET position = w.position, turn = h.turn + 1
         FROM unnest($1::integer[], $2::bigint[]) AS w (partition, position) WHERE h.partition = w.partition";
    read_heads = "SELECT partition, position, purged FROM partition_head ORDER BY partition";
    load_events =
        "SELECT e.partition, e.position, e.kind, e.psp_id, e.subject_id, e.acquirer_id, e.amount, e.currency, e.cause,
         e.decided_at, e.result, e.pass_through_info, e.trace
         FROM unnest($1::integer[], $2::bigint[]) AS w (partition, behind)
         CROSS JOIN LATERAL (SELECT * FROM event WHERE partition = w.partition AND position > w.behind
         ORDER BY position LIMIT $3) AS e";
    new_consumer = "INSERT INTO consumer (name, owner) VALUES ($1, NULL) ON CONFLICT (name) DO NOTHING RETURNING name";
    lock_consumer = "SELECT owner FROM consumer WHERE name = $1 FOR UPDATE";
    load_progress = "SELECT partition, acknowledged, stream FROM consumer_progress WHERE name = $1";
    load_parked =
        "SELECT partition, position, event_id, subject_kind, psp_id, subject_id, reason, parked_at, redrive
         FROM parked WHERE name = $1 ORDER BY partition, position";
    save_consumer = "UPDATE consumer SET owner = $2 WHERE name = $1";
    save_progress =
        "INSERT INTO consumer_progress (name, partition, acknowledged, stream)
         SELECT $1::bytea, w.* FROM unnest($2::integer[], $3::bigint[], $4::bytea[]) AS w
         ON CONFLICT (name, partition) DO UPDATE SET acknowledged = excluded.acknowledged, stream = excluded.stream";
    drop_progress =
        "DELETE FROM consumer_progress WHERE name = $1 AND partition = ANY ($2::integer[])";
    save_parked =
        "INSERT INTO parked (name, partition, position, event_id, subject_kind, psp_id, subject_id, reason, parked_at,
         redrive)
         SELECT $1::bytea, w.* FROM unnest($2::integer[], $3::bigint[], $4::bytea[], $5::smallint[], $6::bytea[],
         $7::bytea[], $8::bytea[], $9::bigint[], $10::boolean[]) AS w
         ON CONFLICT (name, partition, position) DO UPDATE SET event_id = excluded.event_id,
         subject_kind = excluded.subject_kind, psp_id = excluded.psp_id, subject_id = excluded.subject_id,
         reason = excluded.reason, parked_at = excluded.parked_at, redrive = excluded.redrive";
    drop_parked =
        "DELETE FROM parked USING unnest($2::integer[], $3::bigint[]) AS w (partition, position)
         WHERE parked.name = $1 AND parked.partition = w.partition AND parked.position = w.position";
    drop_consumer = "DELETE FROM consumer WHERE name = $1";
    list_consumers = "SELECT name FROM consumer ORDER BY name";
}

/// Those of a session that has any.
#[derive(Default)]
pub(super) struct Statements(Option<Box<Prepared>>);

impl Statements {
    pub(super) async fn prepare(client: &Client) -> Result<Self, Error> {
        Prepared::new(client).await.map(|prepared| Self(Some(Box::new(prepared))))
    }
}

impl std::ops::Deref for Statements {
    type Target = Prepared;

    fn deref(&self) -> &Prepared {
        self.0.as_deref().expect("the pool's sessions are prepared; migrations use none of these")
    }
}
