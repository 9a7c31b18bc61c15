//! Consumers of the feed: one row that is locked, their progress, what they parked; and the events themselves.

use std::collections::{BTreeMap, HashMap};

use futures_util::future;

use super::{
    super::{
        Error, Follow, Following, Head, Kept, Place, Positioned, Standing, record::ParkedRecord,
    },
    Postgres,
    columns::{self, Columns, long, small},
    commit::commit,
    connection::Connection,
    failure::{Failure, before_commit},
    transaction::{self, Meta, guarded},
};
use crate::domain::{
    consumer::{Consumer, ConsumerName, Parked, Progress, StreamId},
    key::Partitions,
};

/// Consumers that exist are locked by their row. One that does not is made first, so that there is a row to lock, and
/// removed again if nothing is to be kept.
const TRIES: usize = 8;

impl Postgres {
    pub(super) async fn change_consumer(
        &self,
        name: ConsumerName,
        decide: Follow,
    ) -> Result<(), Error> {
        let mut decide = decide;
        on_connection!(self, connection => {
            for _ in 0..TRIES {
                match change(connection, &name, &mut decide, self.partitions).await? {
                    Done::Yes => return Ok(()),
                    Done::ForgottenMeanwhile => {}
                }
            }
            let why = "the consumer is made and forgotten all the time";
            Err(Failure::Again(Error::Unavailable(why.into())))
        })
    }

    pub(super) async fn list_consumers(&self) -> Result<Vec<(ConsumerName, Consumer)>, Error> {
        on_connection!(self, connection => {
            // one snapshot for all of them
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            connection.client.batch_execute(begin).await.map_err(before_commit)?;
            let rows = connection.client.query(&connection.statements.list_consumers, &[]).await;
            let mut consumers = Vec::new();
            for row in rows.map_err(before_commit)? {
                let mut row = Columns::new(&row, "consumer");
                let bytes: Vec<u8> = row.get().map_err(Failure::Final)?;
                let name = std::str::from_utf8(&bytes).ok().and_then(ConsumerName::parse);
                let name = name.ok_or_else(|| Failure::Final(row.damaged()))?;
                let rows = read(connection, &name).await?;
                consumers.push((name, rows.consumer().map_err(Failure::Final)?));
            }
            connection.client.batch_execute("COMMIT").await.map_err(before_commit)?;
            Ok(consumers)
        })
    }

    pub(super) async fn load_events(
        &self,
        behind: Vec<Place>,
        limit: u32,
    ) -> Result<Vec<Positioned>, Error> {
        // one statement asks each partition once; a partition that is asked twice is answered twice
        let (partitions, positions): (Vec<i32>, Vec<i64>) =
            behind.iter().map(|place| (i32::from(place.partition), long(place.position))).unzip();
        on_connection!(self, connection => {
            let Connection { client, statements, .. } = connection;
            let limit = i64::from(limit);
            let range: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                [&partitions, &positions, &limit];
            let rows = client.query(&statements.load_events, &range).await.map_err(before_commit)?;
            let mut events: Vec<Positioned> =
                rows.iter().map(columns::event).collect::<Result<_, _>>().map_err(Failure::Final)?;
            events.sort_by_key(|event| (event.partition, event.position));
            Ok(events)
        })
    }
}

enum Done {
    Yes,
    ForgottenMeanwhile,
}

/// What is kept of a consumer.
struct Rows {
    owner: Vec<tokio_postgres::Row>,
    progress: Vec<tokio_postgres::Row>,
    parked: Vec<tokio_postgres::Row>,
}

impl Rows {
    fn consumer(&self) -> Result<Consumer, Error> {
        let mut consumer = Consumer::default();
        if let Some(row) = self.owner.first() {
            let mut row = Columns::new(row, "consumer");
            let owner: Option<Vec<u8>> = row.get()?;
            let owner = owner.map(String::from_utf8).transpose().map_err(|_| row.damaged())?;
            consumer.owner = owner.map(String::into_boxed_str);
        }
        for row in &self.progress {
            let mut row = Columns::new(row, "consumer_progress");
            let (partition, acknowledged) = (row.partition()?, row.position()?);
            let stream: Option<Vec<u8>> = row.get()?;
            let stream = stream.map(|id| id.try_into().map(StreamId)).transpose();
            let stream = stream.map_err(|_| row.damaged())?;
            consumer.progress.insert(partition, Progress { acknowledged, stream });
        }
        consumer.parked = self.parked.iter().map(columns::parked).collect::<Result<_, _>>()?;
        Ok(consumer)
    }
}

async fn read(connection: &Connection, name: &ConsumerName) -> Result<Rows, Failure> {
    let Connection { client, statements, .. } = connection;
    let name = name.as_str().as_bytes();
    let owner =
        async { client.query("SELECT owner FROM consumer WHERE name = $1", &[&name]).await };
    let progress = async { client.query(&statements.load_progress, &[&name]).await };
    let parked = async { client.query(&statements.load_parked, &[&name]).await };
    let (owner, progress, parked) = future::join3(owner, progress, parked).await;
    Ok(Rows {
        owner: owner.map_err(before_commit)?,
        progress: progress.map_err(before_commit)?,
        parked: parked.map_err(before_commit)?,
    })
}

async fn change(
    connection: &Connection,
    name: &ConsumerName,
    decide: &mut Follow,
    partitions: Partitions,
) -> Result<Done, Failure> {
    let Connection { client, statements, .. } = connection;
    let key = name.as_str().as_bytes();
    let begin = client.batch_execute("BEGIN");
    let made = async { client.query(&statements.new_consumer, &[&key]).await };
    let owner = async { client.query(&statements.lock_consumer, &[&key]).await };
    let progress = async { client.query(&statements.load_progress, &[&key]).await };
    let parked = async { client.query(&statements.load_parked, &[&key]).await };
    let meta = async { client.query(&statements.read_meta, &[]).await };
    let heads = async { client.query(&statements.read_heads, &[]).await };
    let ((begin, made, owner, progress, parked), (meta, heads)) = future::join(
        future::join5(begin, made, owner, progress, parked),
        future::join(meta, heads),
    )
    .await;
    begin.map_err(before_commit)?;
    let is_new = !made.map_err(before_commit)?.is_empty();
    let rows = Rows {
        owner: owner.map_err(before_commit)?,
        progress: progress.map_err(before_commit)?,
        parked: parked.map_err(before_commit)?,
    };
    if rows.owner.is_empty() {
        client.batch_execute("ROLLBACK").await.map_err(before_commit)?;
        return Ok(Done::ForgottenMeanwhile);
    }
    let meta = Meta::read(&meta.map_err(before_commit)?).map_err(Failure::Final)?;
    let heads = transaction::heads(&heads.map_err(before_commit)?).map_err(Failure::Final)?;
    let known = if is_new { None } else { Some(rows.consumer().map_err(Failure::Final)?) };
    let following = Following {
        consumer: known.clone(),
        heads: all_heads(&heads, partitions),
        standing: Standing {
            epoch: meta.epoch,
            onboarding: meta.onboarding,
            suspect: meta.suspect.clone(),
        },
    };
    let kept = match guarded(|| decide(following)) {
        Ok(kept) => kept,
        Err(failure) => {
            client.batch_execute("ROLLBACK").await.map_err(before_commit)?;
            return Err(failure);
        }
    };
    match kept {
        // committed all the same, because what was read is told, and must be as durable as what is written
        Kept::AsItIs if !is_new => {}
        Kept::AsItIs => {
            client.execute(&statements.drop_consumer, &[&key]).await.map_err(before_commit)?;
        }
        Kept::Nothing => {
            let everywhere: Vec<i32> = (0..partitions.count()).map(i32::from).collect();
            let dropped = client.execute(&statements.drop_progress, &[&key, &everywhere]).await;
            dropped.map_err(before_commit)?;
            drop_parked(connection, key, &known.unwrap_or_default().parked).await?;
            client.execute(&statements.drop_consumer, &[&key]).await.map_err(before_commit)?;
        }
        Kept::Consumer(next) => save(connection, key, &known.unwrap_or_default(), &next).await?,
    }
    commit(connection).await?;
    Ok(Done::Yes)
}

fn all_heads(heads: &BTreeMap<u16, Head>, partitions: Partitions) -> Vec<Head> {
    (0..partitions.count())
        .map(|partition| heads.get(&partition).copied().unwrap_or_default())
        .collect()
}

/// Writes what differs.
async fn save(
    connection: &Connection,
    key: &[u8],
    before: &Consumer,
    next: &Consumer,
) -> Result<(), Failure> {
    let Connection { client, statements, .. } = connection;
    let owner = next.owner.as_ref().map(|owner| owner.as_bytes());
    client.execute(&statements.save_consumer, &[&key, &owner]).await.map_err(before_commit)?;

    let changed: Vec<_> = next
        .progress
        .iter()
        .filter(|(partition, progress)| before.progress.get(partition) != Some(progress))
        .collect();
    if !changed.is_empty() {
        let partitions: Vec<i32> = changed.iter().map(|(at, _)| i32::from(**at)).collect();
        let beyond = |_| Failure::Final(Error::Data("a position beyond any".into()));
        let positions = changed.iter().map(|(_, at)| i64::try_from(at.acknowledged));
        let positions: Vec<i64> = positions.collect::<Result<_, _>>().map_err(beyond)?;
        let streams: Vec<Option<Vec<u8>>> =
            changed.iter().map(|(_, at)| at.stream.map(|id| id.0.to_vec())).collect();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&key, &partitions, &positions, &streams];
        client.execute(&statements.save_progress, &parameters).await.map_err(before_commit)?;
    }
    let gone: Vec<i32> = before
        .progress
        .keys()
        .filter(|partition| !next.progress.contains_key(partition))
        .map(|partition| i32::from(*partition))
        .collect();
    if !gone.is_empty() {
        client.execute(&statements.drop_progress, &[&key, &gone]).await.map_err(before_commit)?;
    }

    let old: HashMap<_, _> = before.parked.iter().map(|parked| (place(parked), parked)).collect();
    let new: HashMap<_, _> = next.parked.iter().map(|parked| (place(parked), parked)).collect();
    let gone: Vec<Parked> =
        before.parked.iter().filter(|parked| !new.contains_key(&place(parked))).cloned().collect();
    drop_parked(connection, key, &gone).await?;
    let changed: Vec<ParkedRecord> = new
        .iter()
        .filter(|(place, parked)| old.get(place) != Some(parked))
        .map(|(_, parked)| ParkedRecord::of(parked))
        .collect();
    save_parked(connection, key, &changed).await
}

const fn place(parked: &Parked) -> (u16, u64) {
    (parked.partition, parked.position)
}

async fn drop_parked(connection: &Connection, key: &[u8], gone: &[Parked]) -> Result<(), Failure> {
    if gone.is_empty() {
        return Ok(());
    }
    let (partitions, positions): (Vec<i32>, Vec<i64>) =
        gone.iter().map(|parked| (i32::from(parked.partition), long(parked.position))).unzip();
    let Connection { client, statements, .. } = connection;
    let dropped = client.execute(&statements.drop_parked, &[&key, &partitions, &positions]).await;
    dropped.map(drop).map_err(before_commit)
}

async fn save_parked(
    connection: &Connection,
    key: &[u8],
    rows: &[ParkedRecord],
) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let partitions: Vec<i32> =
        rows.iter().map(|row| i32::try_from(row.partition).unwrap_or(i32::MAX)).collect();
    let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
    let ids: Vec<&[u8]> = rows.iter().map(|row| row.event_id.as_slice()).collect();
    let kinds: Vec<i16> = rows.iter().map(|row| small(row.subject_kind)).collect();
    let psps: Vec<&[u8]> = rows.iter().map(|row| row.psp_id.as_bytes()).collect();
    let subjects: Vec<&[u8]> = rows.iter().map(|row| row.subject_id.as_bytes()).collect();
    let reasons: Vec<Option<&[u8]>> = rows.iter().map(|row| row.reason.as_deref()).collect();
    let times: Vec<i64> = rows.iter().map(|row| row.parked_at).collect();
    let redrives: Vec<bool> = rows.iter().map(|row| row.redrive).collect();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 10] = [
        &key,
        &partitions,
        &positions,
        &ids,
        &kinds,
        &psps,
        &subjects,
        &reasons,
        &times,
        &redrives,
    ];
    let Connection { client, statements, .. } = connection;
    client.execute(&statements.save_parked, &parameters).await.map(drop).map_err(before_commit)
}
