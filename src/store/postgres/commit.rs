//! COMMIT, and how sure we are of it.
//!
//! A COMMIT is never cancelled: PostgreSQL then reports success with a mere warning, for a commit that a failover would
//! lose. So no time-out of the server's applies to it, a time-out of ours closes the connection without a cancel request,
//! and a warning while it is under way means that the commit is unknown. A server whose list of standbys becomes empty
//! lets all that wait go without even a warning, so where commits have to wait the list is asked for behind the COMMIT.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use futures_util::future;
use tokio::time;

use super::{
    super::Error,
    connection::Connection,
    failure::{Failure, at_commit, before_commit},
};

/// For COMMIT and what stands before it in its round trip: a slow standby may take its time, a lane must not.
pub(super) const COMMIT: Duration = Duration::from_secs(5);

/// Commits what was written.
pub(super) async fn commit(connection: &Connection) -> Result<(), Failure> {
    commit_behind(connection, future::ready([]), Instant::now() + COMMIT).await
}

/// Writes and commits in one round trip. The writes send themselves when they are first asked for progress, in order.
pub(super) async fn commit_behind<const N: usize>(
    connection: &Connection,
    writes: impl Future<Output = [Result<(), tokio_postgres::Error>; N]>,
    end: Instant,
) -> Result<(), Failure> {
    let client = &connection.client;
    // whatever the server warned of before has nothing to do with this COMMIT
    let warnings = connection.warnings();
    connection.committing.store(true, Ordering::Release);
    let endless = client.batch_execute("SET LOCAL statement_timeout = 0");
    let commit = client.batch_execute("COMMIT");
    let waited = async {
        if !connection.standby {
            return Ok(true);
        }
        let row = client.query_one(&connection.statements.commits_wait, &[]).await?;
        Ok::<_, tokio_postgres::Error>(row.try_get::<_, Option<bool>>(0)? == Some(true))
    };
    let all = future::join4(endless, writes, commit, waited);
    let unknown = |why: &'static str| Failure::Final(Error::CommitUnknown(why.into()));
    let (endless, writes, commit, waited) = time::timeout_at(end.into(), all)
        .await
        .map_err(|_| unknown("the database did not answer a COMMIT in time"))?;
    for result in [endless].into_iter().chain(writes) {
        let Err(error) = result else { continue };
        // the server refused a statement, so its COMMIT was a ROLLBACK; a connection that broke tells nothing
        return Err(match error.as_db_error() {
            Some(_) => before_commit(error),
            None => Failure::Final(Error::CommitUnknown(error.into())),
        });
    }
    commit.map_err(at_commit)?;
    if connection.warnings() != warnings {
        return Err(unknown("the database warned while it committed; see the log"));
    }
    match waited {
        Ok(true) => {}
        Ok(false) => return Err(unknown("commits stopped waiting for a standby meanwhile")),
        Err(error) => return Err(Failure::Final(Error::CommitUnknown(error.into()))),
    }
    connection.committing.store(false, Ordering::Release);
    Ok(())
}
