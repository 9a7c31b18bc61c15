//! What is done to a store as a whole: its standing, its backlog, purging, and moving one store into another.

use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::{
    super::{
        Backlog, Cursor, Error, Head, Outstanding, OutstandingPayment, Page, Place, Positioned,
        Standing, StandingChange, Takeover, record::PaymentRecord,
    },
    Postgres,
    columns::{self, Columns, long, small},
    commit::commit,
    connection::Connection,
    failure::{Failure, before_commit},
    meta,
    write::{self, Events},
};
use crate::domain::{consumer::ConsumerName, time::Timestamp};

/// For a page of another store's, and for counting all events at its end.
const FILLING: Duration = Duration::from_mins(10);
/// Statements of these are few; they are prepared as they are used.
const JOURNAL: &str = "INSERT INTO journal (at, nonce, what, why)
     VALUES ((extract(epoch FROM clock_timestamp()) * 1000)::bigint, $1, $2, $3)";

impl Postgres {
    pub(super) async fn read_standing(&self) -> Result<Standing, Error> {
        on_connection!(self, connection => {
            let meta = meta(connection).await?;
            // readiness hangs on this one
            meta.check_durability(connection).map_err(Failure::Final)?;
            let (epoch, onboarding) = (meta.epoch, meta.onboarding);
            Ok(Standing { epoch, onboarding, suspect: meta.suspect })
        })
    }

    pub(super) async fn write_standing(&self, change: StandingChange) -> Result<Standing, Error> {
        let (sql, what, why) = match &change {
            StandingChange::ImportComplete => (
                "UPDATE meta SET onboarding = false WHERE only_row = 1 AND onboarding",
                "import complete",
                None,
            ),
            StandingChange::Suspect(why) => (
                "UPDATE meta SET suspect = $1 WHERE only_row = 1 AND suspect IS NULL",
                "suspect",
                Some(why.as_bytes()),
            ),
            StandingChange::Reconciled(why) => (
                // an epoch that never was, also if the same backup is restored twice
                "UPDATE meta SET suspect = NULL,
                 epoch = greatest(epoch + 1, extract(epoch FROM clock_timestamp())::bigint) WHERE only_row = 1",
                "reconciled",
                Some(why.as_bytes()),
            ),
        };
        on_connection!(self, connection => {
            let client = &connection.client;
            client.batch_execute("BEGIN").await.map_err(before_commit)?;
            let parameters: &[&(dyn ToSql + Sync)] = match change {
                StandingChange::Suspect(_) => &[&why],
                StandingChange::ImportComplete | StandingChange::Reconciled(_) => &[],
            };
            let changed = client.execute(sql, parameters).await.map_err(before_commit)?;
            if changed > 0 {
                let nonce = rand::random::<[u8; 8]>();
                let line: [&(dyn ToSql + Sync); 3] = [&&nonce[..], &what, &why];
                client.execute(JOURNAL, &line).await.map_err(before_commit)?;
            }
            let meta = meta(connection).await?;
            commit(connection).await?;
            let (epoch, onboarding) = (meta.epoch, meta.onboarding);
            Ok(Standing { epoch, onboarding, suspect: meta.suspect })
        })
    }

    pub(super) async fn count_outstanding(&self, kind: Outstanding) -> Result<Backlog, Error> {
        const COUNT: &str = "SELECT count(*), min(outstanding_since) FROM payment
             WHERE money = $1 AND outstanding_since IS NOT NULL";
        let money = small(PaymentRecord::outstanding(kind));
        on_connection!(self, connection => {
            let row = connection.client.query_one(COUNT, &[&money]).await.map_err(before_commit)?;
            let mut row = Columns::new(&row, "payment");
            let count = row.position().map_err(Failure::Final)?;
            let oldest: Option<i64> = row.get().map_err(Failure::Final)?;
            Ok(Backlog { count, oldest: oldest.map(|unix_ms| Timestamp { unix_ms }) })
        })
    }

    pub(super) async fn list_outstanding(
        &self,
        kind: Outstanding,
        limit: u32,
    ) -> Result<Vec<OutstandingPayment>, Error> {
        let sql = format!(
            "SELECT {PAYMENT}, outstanding_since FROM payment
             WHERE money = $1 AND outstanding_since IS NOT NULL
             ORDER BY outstanding_since, psp_id, payment_request_id LIMIT $2"
        );
        let (money, limit) = (small(PaymentRecord::outstanding(kind)), i64::from(limit));
        on_connection!(self, connection => {
            let rows = connection.client.query(&sql, &[&money, &limit]).await;
            let read = |row: &tokio_postgres::Row| {
                let (key, payment) = columns::payment(row)?;
                let since: i64 = row.try_get(19).map_err(|_| Error::Damaged("payment"))?;
                let amount = match (kind, payment.terms()) {
                    (Outstanding::FundReturnDue, Some(terms)) => Some(terms.amount),
                    (Outstanding::FundReturnDue | Outstanding::Unresolved, _) => None,
                };
                let amount = due(&payment).or(amount);
                Ok(OutstandingPayment { key, since: Timestamp { unix_ms: since }, amount })
            };
            let rows = rows.map_err(before_commit)?;
            rows.iter().map(read).collect::<Result<_, _>>().map_err(Failure::Final)
        })
    }

    pub(super) async fn remove_events(
        &self,
        upto: Vec<Place>,
        before: Timestamp,
        limit: u32,
    ) -> Result<u64, Error> {
        let done: Result<_, Error> = on_connection!(self, connection => {
            let client = &connection.client;
            let statements = &connection.statements;
            let mut upto = upto.clone();
            upto.sort_unstable();
            let partitions: Vec<i32> = upto.iter().map(|at| i32::from(at.partition)).collect();
            client.batch_execute("BEGIN").await.map_err(before_commit)?;
            let rows = client.query(&statements.lock_heads, &[&partitions]).await;
            let heads = super::transaction::heads(&rows.map_err(before_commit)?);
            let heads = heads.map_err(Failure::Final)?;
            let mut left = u64::from(limit);
            let mut purged = Vec::new();
            for place in &upto {
                let Some(head) = heads.get(&place.partition) else { continue };
                let most = place.position.min(head.position).min(head.purged.saturating_add(left));
                let last = oldest_that_stays(connection, place.partition, *head, most, before).await?;
                let removed = last.saturating_sub(head.purged);
                if removed > 0 {
                    let range: [&(dyn ToSql + Sync); 2] =
                        [&i32::from(place.partition), &long(last)];
                    let delete = "DELETE FROM event WHERE partition = $1 AND position <= $2";
                    client.execute(delete, &range).await.map_err(before_commit)?;
                    let moved = "UPDATE partition_head SET purged = $2, turn = turn + 1 WHERE partition = $1";
                    client.execute(moved, &range).await.map_err(before_commit)?;
                    purged.push((place.partition, Head { purged: last, ..Head::default() }));
                    left = left.saturating_sub(removed);
                }
            }
            commit(connection).await?;
            Ok((u64::from(limit).saturating_sub(left), purged))
        });
        let (removed, purged) = done?;
        self.heads.durable(self.heads.snapshot().epoch, &purged);
        Ok(removed)
    }

    pub(super) async fn read_page(&self, cursor: Cursor, limit: u32) -> Result<Page, Error> {
        if cursor == Cursor::Consumers {
            return self.list_consumers().await.map(Page::Consumers);
        }
        on_connection!(self, connection => { page(connection, &cursor, i64::from(limit)).await })
    }

    pub(super) async fn fill_page(&self, page: Page) -> Result<(), Error> {
        if let Page::Consumers(consumers) = page {
            self.start_filling(&Page::Consumers(Vec::new())).await?;
            for (name, consumer) in consumers {
                let keep = move |_| super::super::Kept::Consumer(consumer.clone());
                self.change_consumer(name, Box::new(keep)).await?;
            }
            return Ok(());
        }
        self.start_filling(&page).await
    }

    /// Writes a page, once the store is marked as one that is being filled.
    async fn start_filling(&self, page: &Page) -> Result<(), Error> {
        on_connection!(self, FILLING, connection => {
            let client = &connection.client;
            client.batch_execute("BEGIN").await.map_err(before_commit)?;
            mark_filling(connection).await?;
            let written = match page {
                Page::Payments(rows) => write::payments(connection, rows).await,
                Page::Authorizations(rows) => write::grants(connection, rows).await,
                Page::Tokens(rows) => write::tokens(connection, rows).await,
                Page::Events(rows) => write::events(connection, rows, Events::Filled).await,
                Page::Consumers(_) => Ok(()),
            };
            written.map_err(before_commit)?;
            commit(connection).await
        })
    }

    pub(super) async fn end_filling(&self, takeover: Takeover) -> Result<(), Error> {
        let Takeover { standing, heads } = takeover;
        if heads.len() != usize::from(self.partitions.count()) {
            let why = "the other store has another number of partitions";
            return Err(Error::Data(why.into()));
        }
        on_connection!(self, FILLING, connection => {
            let client = &connection.client;
            client.batch_execute("BEGIN").await.map_err(before_commit)?;
            mark_filling(connection).await?;
            check_events(connection, &heads).await?;
            let suspect = standing.suspect.as_ref().map(String::as_bytes);
            let values: [&(dyn ToSql + Sync); 3] =
                [&long(standing.epoch), &standing.onboarding, &suspect];
            let sql = "UPDATE meta SET epoch = $1, onboarding = $2, suspect = $3, filling = false
                 WHERE only_row = 1";
            client.execute(sql, &values).await.map_err(before_commit)?;
            let partitions: Vec<i32> = (0..self.partitions.count()).map(i32::from).collect();
            let positions: Vec<i64> = heads.iter().map(|head| long(head.position)).collect();
            let purged: Vec<i64> = heads.iter().map(|head| long(head.purged)).collect();
            let sql = "UPDATE partition_head AS h SET position = w.position, purged = w.purged, turn = h.turn + 1
                 FROM unnest($1::integer[], $2::bigint[], $3::bigint[]) AS w (partition, position, purged)
                 WHERE h.partition = w.partition";
            let values: [&(dyn ToSql + Sync); 3] = [&partitions, &positions, &purged];
            client.execute(sql, &values).await.map_err(before_commit)?;
            let nonce = rand::random::<[u8; 8]>();
            let line: [&(dyn ToSql + Sync); 3] = [&&nonce[..], &"taken over", &None::<&[u8]>];
            client.execute(JOURNAL, &line).await.map_err(before_commit)?;
            commit(connection).await
        })
    }
}

/// Refuses a store that is not fresh, and marks one that is.
async fn mark_filling(connection: &Connection) -> Result<(), Failure> {
    // a decision turns its partitions' heads, and nothing that was decided is ever deleted
    const FRESH: &str =
        "SELECT filling OR (NOT EXISTS (SELECT 1 FROM partition_head WHERE turn > 0)
         AND NOT EXISTS (SELECT 1 FROM payment) AND NOT EXISTS (SELECT 1 FROM grants)
         AND NOT EXISTS (SELECT 1 FROM token) AND NOT EXISTS (SELECT 1 FROM event)
         AND NOT EXISTS (SELECT 1 FROM consumer)) FROM meta WHERE only_row = 1 FOR UPDATE";
    let client = &connection.client;
    // whoever is deciding is done when this returns, and whoever decides then sees that the store is being filled
    let lock = "SELECT partition FROM partition_head ORDER BY partition FOR UPDATE";
    client.query(lock, &[]).await.map_err(before_commit)?;
    client.batch_execute("SET LOCAL statement_timeout = 0").await.map_err(before_commit)?;
    let fresh = client.query_one(FRESH, &[]).await.map_err(before_commit)?;
    if !fresh.try_get::<_, bool>(0).map_err(before_commit)? {
        let why = "this store is in use already; only a fresh one can be filled";
        return Err(Failure::Final(Error::Data(why.into())));
    }
    let mark = "UPDATE meta SET filling = true WHERE only_row = 1";
    client.batch_execute(mark).await.map_err(before_commit)
}

/// A head without its events would be a gap for ever.
async fn check_events(connection: &Connection, heads: &[Head]) -> Result<(), Failure> {
    let sql =
        "SELECT partition, count(*), min(position), max(position) FROM event GROUP BY partition";
    let rows = connection.client.query(sql, &[]).await.map_err(before_commit)?;
    let mut present = std::collections::BTreeMap::new();
    for row in &rows {
        let mut row = Columns::new(row, "event");
        let read = |row: &mut Columns<'_>| {
            Ok((row.partition()?, (row.position()?, row.position()?, row.position()?)))
        };
        let (partition, range) = read(&mut row).map_err(Failure::Final)?;
        present.insert(partition, range);
    }
    for (partition, head) in (0u16..).zip(heads) {
        let wanted = match head.position.saturating_sub(head.purged) {
            0 => None,
            count => Some((count, head.purged.saturating_add(1), head.position)),
        };
        if present.get(&partition) != wanted.as_ref() {
            let missing = format!(
                "partition {partition} ends at {} and is purged to {}, and its events are not all here; fill them first",
                head.position, head.purged
            );
            return Err(Failure::Final(Error::Data(missing.into())));
        }
    }
    Ok(())
}

fn due(payment: &crate::domain::payment::Payment) -> Option<crate::domain::amount::Amount> {
    use crate::domain::payment::{Cancelled, Money, State};
    match &payment.state {
        State::Cancelled(Cancelled { money: Money::Due { amount, .. }, .. }) => Some(*amount),
        State::Initiated(_) | State::Failed(_) | State::Succeeded(_) | State::Cancelled(_) => None,
    }
}

/// The last position that may go: the one before the first that must stay.
async fn oldest_that_stays(
    connection: &Connection,
    partition: u16,
    head: Head,
    most: u64,
    before: Timestamp,
) -> Result<u64, Failure> {
    let sql =
        "SELECT min(position) FROM event WHERE partition = $1 AND position > $2 AND position <= $3
         AND decided_at >= $4";
    let range: [&(dyn ToSql + Sync); 4] =
        [&i32::from(partition), &long(head.purged), &long(most), &before.unix_ms];
    let row = connection.client.query_one(sql, &range).await.map_err(before_commit)?;
    let stays: Option<i64> = row.try_get(0).map_err(before_commit)?;
    let stays = stays.and_then(|position| u64::try_from(position).ok());
    Ok(stays.map_or(most, |position| position.saturating_sub(1)).max(head.purged))
}

const PAYMENT: &str = "psp_id, payment_request_id, state, acquirer_id, recorded_at, amount, currency, initiated_at,
     verdict, verdict_at, verdict_by, verdict_trace, refunds, money, return_amount, return_currency, return_since,
     returned_at, return_reference";

async fn page(connection: &Connection, cursor: &Cursor, limit: i64) -> Result<Page, Failure> {
    let client = &connection.client;
    // no key is the empty text, so everything stands behind it
    let none: &[u8] = b"";
    let page = match cursor {
        Cursor::Payments(behind) => {
            let sql = format!(
                "SELECT {PAYMENT} FROM payment WHERE (psp_id, payment_request_id) > ($1, $2)
                 ORDER BY psp_id, payment_request_id LIMIT $3"
            );
            let (psp, id) = behind.as_ref().map_or((none, none), |key| {
                (key.psp.as_str().as_bytes(), key.payment_request.as_str().as_bytes())
            });
            let rows = client.query(&sql, &[&psp, &id, &limit]).await.map_err(before_commit)?;
            rows.iter().map(columns::payment).collect::<Result<_, _>>().map(Page::Payments)
        }
        Cursor::Authorizations(behind) => {
            let sql = "SELECT psp_id, authorization_id, acquirer_id, pass_through_info, revoked_at, revoked_cause,
                 revoked_trace FROM grants WHERE (psp_id, authorization_id) > ($1, $2)
                 ORDER BY psp_id, authorization_id LIMIT $3";
            let (psp, id) = behind.as_ref().map_or((none, none), |key| {
                (key.psp.as_str().as_bytes(), key.authorization.as_str().as_bytes())
            });
            let rows = client.query(sql, &[&psp, &id, &limit]).await.map_err(before_commit)?;
            rows.iter()
                .map(columns::authorization)
                .collect::<Result<_, _>>()
                .map(Page::Authorizations)
        }
        Cursor::Tokens(behind) => {
            let sql = "SELECT hash, psp_id, authorization_id, kind, expires_at, replaced_by, verdict, verdict_at,
                 verdict_by, verdict_trace FROM token WHERE hash > $1 ORDER BY hash LIMIT $2";
            let hash = behind.as_ref().map_or(none, |hash| &hash.0[..]);
            let rows = client.query(sql, &[&hash, &limit]).await.map_err(before_commit)?;
            rows.iter().map(columns::token).collect::<Result<_, _>>().map(Page::Tokens)
        }
        Cursor::Events(behind) => {
            let sql = "SELECT partition, position, kind, psp_id, subject_id, acquirer_id, amount, currency, cause,
                 decided_at, result, pass_through_info, trace FROM event WHERE (partition, position) > ($1, $2)
                 ORDER BY partition, position LIMIT $3";
            let place = behind.unwrap_or(Place { partition: 0, position: 0 });
            let (partition, position) = (i32::from(place.partition), long(place.position));
            let rows = client.query(sql, &[&partition, &position, &limit]).await;
            let rows = rows.map_err(before_commit)?;
            let events: Result<Vec<Positioned>, _> = rows.iter().map(columns::event).collect();
            events.map(Page::Events)
        }
        Cursor::Consumers => Ok(Page::Consumers(Vec::<(ConsumerName, _)>::new())),
    };
    page.map_err(Failure::Final)
}
