//! A chain over the commits: each has a row with the digest of what it changed and a hash over that and the row before.
//!
//! One flipped bit in the middle of SQLite's log makes recovery drop every later commit without a word, and the database
//! is sound afterwards. The end of the chain says which commit is the last one, to whoever noted a later one.

use aws_lc_rs::digest;
use rusqlite::{Connection, params};

/// What changed. The numbers stand in hashes: never change one.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Payment,
    Authorization,
    Token,
    Event,
    Purge,
    Consumer,
    Standing,
    HashKey,
    Heads,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Payment => 1,
            Self::Authorization => 2,
            Self::Token => 3,
            Self::Event => 4,
            Self::Purge => 5,
            Self::Consumer => 6,
            Self::Standing => 7,
            Self::HashKey => 8,
            Self::Heads => 9,
        }
    }
}

/// Gathers what a commit changes.
pub(super) struct Changed {
    digest: digest::Context,
    rows: usize,
}

impl Changed {
    pub(super) fn nothing() -> Self {
        Self { digest: digest::Context::new(&digest::SHA256), rows: 0 }
    }

    /// A row, whose checksum covers its key and its columns.
    pub(super) fn row(&mut self, kind: Kind, checksum: i64) {
        self.digest.update(&[kind.number()]);
        self.digest.update(&checksum.to_le_bytes());
        self.rows = self.rows.saturating_add(1);
    }

    /// Anything else.
    pub(super) fn parts(&mut self, kind: Kind, parts: &[&[u8]]) {
        self.digest.update(&[kind.number()]);
        self.digest.update(&u64::try_from(parts.len()).unwrap_or(u64::MAX).to_le_bytes());
        for part in parts {
            self.digest.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            self.digest.update(part);
        }
        self.rows = self.rows.saturating_add(1);
    }

    /// How many rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    fn digest(self) -> [u8; 32] {
        bytes(&self.digest.finish())
    }
}

/// One commit's place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) id: i64,
    pub(super) hash: [u8; 32],
}

impl Link {
    fn next(self, changes: &[u8; 32]) -> Self {
        let id = self.id.saturating_add(1);
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&self.hash);
        hash.update(&id.to_le_bytes());
        hash.update(changes);
        Self { id, hash: bytes(&hash.finish()) }
    }
}

fn bytes(digest: &digest::Digest) -> [u8; 32] {
    digest.as_ref().first_chunk().copied().unwrap_or_default() // it has 32
}

/// The last commit.
pub(super) fn head(connection: &Connection) -> rusqlite::Result<Link> {
    const SELECT: &str = "SELECT id, hash FROM chain ORDER BY id DESC LIMIT 1";
    connection
        .prepare_cached(SELECT)?
        .query_row([], |row| Ok(Link { id: row.get(0)?, hash: row.get(1)? }))
}

/// Adds this commit's row. The last one is read in the same transaction: `import complete` and `reconcile` commit from
/// processes of their own.
pub(super) fn append(connection: &Connection, changed: Changed) -> rusqlite::Result<Link> {
    const INSERT: &str = "INSERT INTO chain (id, changes, hash) VALUES (?1, ?2, ?3)";
    let changes = changed.digest();
    let link = head(connection)?.next(&changes);
    connection.prepare_cached(INSERT)?.execute(params![link.id, changes, link.hash])?;
    Ok(link)
}
