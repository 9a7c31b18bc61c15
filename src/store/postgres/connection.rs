//! Connections: to whichever host can write, with their sessions' settings in force, their statements prepared, and their
//! warnings heard.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{Manager, Metrics, Object, RecycleError, RecycleResult};
use futures_util::{StreamExt as _, future, stream::FuturesUnordered};
use tokio::{task::AbortHandle, time};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls, SimpleQueryMessage, Socket,
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Durability, statement::Statements};

/// From the first packet to a session that can be used. A frozen server's host still accepts connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What every session must have; a server that refuses one is not used.
///
/// A transaction that waits for its client holds its partitions' locks, so a replica that is frozen in the middle of one
/// is cut off after a second. Statements end before any caller's deadline does; COMMIT alone is exempt (see
/// transaction.rs).
///
/// Warnings must reach us: one is all that tells of a COMMIT whose wait for its standby was cancelled.
const SESSION: [&str; 4] = [
    "SET client_min_messages = 'warning'",
    "SET idle_in_transaction_session_timeout = '1s'",
    "SET lock_timeout = '1500ms'",
    "SET statement_timeout = '2s'",
];

/// What helps where it is known. Plans: every statement goes by a primary key, and a plan made while a table was empty
/// must not scan it once it is full.
const WISHES: [&str; 7] = [
    "SET tcp_user_timeout = '2s'",
    "SET client_connection_check_interval = '1s'",
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_seqscan = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    "SET jit = off",
];

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server refused it, or was not reached.
    #[error("{host}")]
    Refused {
        /// Which host.
        host: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It did not answer in time.
    #[error("{host} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Silent {
        /// Which host.
        host: String,
    },
    /// The settings ask for more durability than this server's sessions have.
    #[error(
        "store.durability = \"replicated\", but synchronous_commit is {found} on the server; set it to on (or remote_apply) there, or set store.durability = \"local\""
    )]
    NotReplicated {
        /// What the server says.
        found: String,
    },
    /// Its releases have a defect that matters here.
    #[error(
        "the server is release {found}, which may not wait for its standby just after it has started; update it to 13.21, 14.18, 15.13, 16.9, 17.5 or later, or set store.durability = \"local\""
    )]
    ForgetsToWait {
        /// What the server says.
        found: String,
    },
    /// A commit there is not durable.
    #[error("fsync is off on the server: a commit there does not survive a power loss; turn it on")]
    NoFsync,
    /// Text there is not UTF-8.
    #[error("the database's encoding is {found}; create it with ENCODING 'UTF8'")]
    Encoding {
        /// What it is.
        found: String,
    },
    /// None of the hosts.
    #[error("no host of store.url can be written to: {0}")]
    NoHost(String),
}

impl ConnectError {
    /// Whether somebody has to change settings, here or on the server: waiting will not help.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NotReplicated { .. }
            | Self::ForgetsToWait { .. }
            | Self::NoFsync
            | Self::Encoding { .. } => true,
            Self::Refused { source, .. } => {
                let code = source.as_db_error().map(|error| error.code().code());
                // no such database, no such role, wrong password
                code.is_some_and(|code| code == "3D000" || code.starts_with("28"))
            }
            Self::Silent { .. } | Self::NoHost(_) => false,
        }
    }
}

/// A session of the database's.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) statements: Statements,
    /// Whether commits have to wait for a standby that the server's settings name.
    pub(super) standby: bool,
    /// A COMMIT was sent and not answered.
    pub(super) committing: AtomicBool,
    /// Warnings so far: one that comes while a COMMIT is under way says that it may not be what it seems.
    warnings: Arc<AtomicU64>,
    /// Drives the socket; ended with the connection, so that nothing of an abandoned one goes on.
    driver: AbortHandle,
}

impl Connection {
    pub(super) fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Acquire)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // no cancel request: a cancelled COMMIT may report success
        self.driver.abort();
    }
}

/// Makes connections for the pool.
pub(super) struct Connector {
    pub(super) hosts: Vec<Config>,
    pub(super) tls: Option<MakeRustlsConnect>,
    pub(super) durability: Durability,
    /// False while the schema is not there yet, so that there is nothing to prepare for.
    pub(super) prepare: bool,
}

impl Connector {
    /// Asks all hosts at once and takes the first that can write.
    pub(super) async fn connect(&self) -> Result<Connection, ConnectError> {
        let mut attempts: FuturesUnordered<_> =
            self.hosts.iter().map(|host| self.connect_to(host)).collect();
        let mut failures = Vec::new();
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(connection) => return Ok(connection),
                Err(error) => failures.push(error),
            }
        }
        // one host that refuses us is no reason to give up while another is merely down
        if failures.len() == 1 || failures.iter().all(ConnectError::is_configuration) {
            return Err(failures.swap_remove(0));
        }
        let texts = failures.iter().map(|error| crate::store::chain(error));
        Err(ConnectError::NoHost(texts.collect::<Vec<_>>().join("; ")))
    }

    async fn connect_to(&self, host: &Config) -> Result<Connection, ConnectError> {
        let session = async {
            let refused = |source| ConnectError::Refused { host: name(host), source };
            let mut connection = match &self.tls {
                None => open(host, NoTls).await.map_err(refused)?,
                Some(tls) => open(host, tls.clone()).await.map_err(refused)?,
            };
            connection.standby = self.settle(&connection.client, host).await?;
            if self.prepare {
                connection.statements =
                    Statements::prepare(&connection.client).await.map_err(refused)?;
            }
            Ok(connection)
        };
        let silent = |_| ConnectError::Silent { host: name(host) };
        time::timeout(CONNECT_TIMEOUT, session).await.map_err(silent)?
    }

    /// Puts the session's settings in force; answers whether its commits have to wait for a standby.
    async fn settle(&self, client: &Client, host: &Config) -> Result<bool, ConnectError> {
        let refused = |source| ConnectError::Refused { host: name(host), source };
        let must = future::join_all(SESSION.map(|setting| client.batch_execute(setting)));
        let wish = future::join_all(WISHES.map(|setting| client.batch_execute(setting)));
        // one pipeline, one round trip
        let (must, wishes) = future::join(must, wish).await;
        must.into_iter().collect::<Result<Vec<()>, _>>().map_err(refused)?;
        for error in wishes.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "the database does not know a setting that would help");
        }
        self.check_durability(client).await.map_err(|error| error.unwrap_or_else(refused))
    }

    /// Durability that is in force, not assumed.
    async fn check_durability(
        &self,
        client: &Client,
    ) -> Result<bool, Result<ConnectError, tokio_postgres::Error>> {
        let show = async |name: &str| match client.simple_query(&format!("SHOW {name}")).await {
            Ok(rows) => Ok(rows.iter().find_map(|message| {
                let SimpleQueryMessage::Row(row) = message else { return None };
                row.get(0).map(str::to_owned)
            })),
            // not known there: CockroachDB and YugabyteDB replicate by themselves
            Err(error) if error.as_db_error().is_some() => Ok(None),
            Err(error) => Err(Err(error)),
        };
        let (encoding, fsync, commit) = (
            show("server_encoding").await?,
            show("fsync").await?,
            show("synchronous_commit").await?,
        );
        if let Some(found) = encoding.filter(|found| !found.eq_ignore_ascii_case("utf8")) {
            return Err(Ok(ConnectError::Encoding { found }));
        }
        if fsync.as_deref() == Some("off") {
            return Err(Ok(ConnectError::NoFsync));
        }
        let Some(commit) = commit else { return Ok(false) };
        let version = show("server_version").await?.unwrap_or_default();
        // YugabyteDB is a PostgreSQL to look at, and replicates by itself
        let standby = self.durability == Durability::Replicated && !version.contains("YB");
        if standby && matches!(commit.as_str(), "off" | "local") {
            return Err(Ok(ConnectError::NotReplicated { found: commit }));
        }
        if standby && forgets_to_wait(&version) {
            return Err(Ok(ConnectError::ForgetsToWait { found: version }));
        }
        // an answer must not leave before its commit is on the disk, whatever the default is or becomes
        let pinned = match commit.as_str() {
            "remote_apply" | "remote_write" | "local" => commit.as_str(),
            _ => "on",
        };
        let pin = format!("SET synchronous_commit = {pinned}");
        client.batch_execute(&pin).await.map_err(Err)?;
        Ok(standby)
    }
}

/// Releases before May 2025 could take a moment after their start until they knew that commits have to wait.
fn forgets_to_wait(version: &str) -> bool {
    let mut numbers = version.split(['.', ' ', '-']).map_while(|part| part.parse::<u32>().ok());
    let (Some(major), minor) = (numbers.next(), numbers.next().unwrap_or(0)) else { return false };
    let mended = [(13, 21), (14, 18), (15, 13), (16, 9), (17, 5)];
    mended.iter().any(|(release, since)| *release == major && minor < *since)
}

impl Manager for Connector {
    type Type = Connection;
    type Error = ConnectError;

    async fn create(&self) -> Result<Connection, ConnectError> {
        self.connect().await
    }

    async fn recycle(
        &self,
        connection: &mut Connection,
        _: &Metrics,
    ) -> RecycleResult<ConnectError> {
        if connection.client.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        Ok(())
    }
}

fn name(host: &Config) -> String {
    let port = host.get_ports().first().copied().unwrap_or_default();
    match host.get_hosts().first() {
        Some(tokio_postgres::config::Host::Tcp(name)) => format!("{name}:{port}"),
        #[cfg(unix)]
        Some(tokio_postgres::config::Host::Unix(path)) => format!("{}:{port}", path.display()),
        None => String::from("?"),
    }
}

/// Connects, and drives the socket in a task that hears what the server says unasked.
async fn open<T>(host: &Config, tls: T) -> Result<Connection, tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (client, mut connection) = host.connect(tls).await?;
    let warnings = Arc::<AtomicU64>::default();
    let heard = Arc::clone(&warnings);
    let driver = tokio::spawn(async move {
        // a notice is counted before the answer behind it is handed to whoever waits for that
        while let Some(message) = future::poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                Ok(AsyncMessage::Notice(notice))
                    if notice.severity() == "WARNING"
                        || notice.parsed_severity()
                            == Some(tokio_postgres::error::Severity::Warning) =>
                {
                    heard.fetch_add(1, Ordering::AcqRel);
                    tracing::warn!(
                        code = notice.code().code(),
                        message = notice.message(),
                        "the database warns"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a connection to the database ended");
                    return;
                }
            }
        }
    });
    let driver = driver.abort_handle();
    Ok(Connection {
        client,
        statements: Statements::default(),
        standby: false,
        committing: AtomicBool::new(false),
        warnings,
        driver,
    })
}

/// A connection of the pool's that is closed when it is dropped, unless whoever used it says that it is as it was.
pub(super) struct Lease(Option<Object<Connector>>);

impl Lease {
    pub(super) const fn new(object: Object<Connector>) -> Self {
        Self(Some(object))
    }

    /// Nothing is under way on it: somebody else may use it.
    pub(super) fn keep(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

impl std::ops::Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("taken only by what ends it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_may_forget_to_wait_are_known() {
        for old in ["15.12", "13.20 (Debian 13.20-1)", "17.4", "14.0"] {
            assert!(forgets_to_wait(old), "{old}");
        }
        for mended in ["15.13", "15.18 (Debian 15.18-0+deb12u1)", "17.5", "18.0", "18beta1", ""] {
            assert!(!forgets_to_wait(mended), "{mended}");
        }
    }
}
