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
        let mut row = [kind.number(); 9];
        if let Some(rest) = row.last_chunk_mut() {
            *rest = checksum.to_le_bytes();
        }
        self.digest.update(&row);
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

/// How many rows are kept: an anchor is never further behind, and people who compare two copies of a store see how they
/// hang together.
const KEPT: i64 = 4_096;

/// Removes rows that no anchor can name any more, once it is worth a commit.
pub(super) fn prune(connection: &Connection, synced: Link) -> rusqlite::Result<()> {
    let oldest: i64 = connection
        .prepare_cached("SELECT id FROM chain ORDER BY id LIMIT 1")?
        .query_row([], |row| row.get(0))?;
    let keep = synced.id.saturating_sub(KEPT);
    if keep.saturating_sub(oldest) > KEPT {
        connection.execute("DELETE FROM chain WHERE id < ?1", [keep])?;
    }
    Ok(())
}

/// Compares every row with the one before; answers how many were compared, or the first that does not fit.
pub(super) fn walk(connection: &Connection) -> rusqlite::Result<Result<u64, i64>> {
    let mut select = connection.prepare("SELECT id, changes, hash FROM chain ORDER BY id")?;
    let mut rows = select.query([])?;
    let (mut before, mut compared): (Option<Link>, u64) = (None, 0);
    while let Some(row) = rows.next()? {
        let (link, changes) = (Link { id: row.get(0)?, hash: row.get(2)? }, row.get(1)?);
        if before.is_some_and(|before| before.next(&changes) != link) {
            return Ok(Err(link.id));
        }
        compared = compared.saturating_add(u64::from(before.is_some()));
        before = Some(link);
    }
    Ok(Ok(compared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_keeps_what_an_anchor_may_name_and_the_rest_hangs_together() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("schema_1.sql")).unwrap();
        connection.execute_batch(include_str!("schema_2.sql")).unwrap();
        let count = || -> i64 {
            connection.query_row("SELECT count(*) FROM chain", [], |row| row.get(0)).unwrap()
        };
        let mut links = vec![head(&connection).unwrap()];
        for nth in 0..3 * KEPT {
            let mut changed = Changed::nothing();
            changed.row(Kind::Payment, nth);
            links.push(append(&connection, changed).unwrap());
        }
        let link = |id: i64| links[usize::try_from(id).unwrap()];
        // an anchor that was not synced for long keeps everything behind it
        for (synced, kept) in [(0, 3 * KEPT + 1), (2 * KEPT, 3 * KEPT + 1), (3 * KEPT, KEPT + 1)] {
            prune(&connection, link(synced)).unwrap();
            assert_eq!(count(), kept);
            let hash = "SELECT hash FROM chain WHERE id = ?1";
            let hash: [u8; 32] = connection.query_row(hash, [synced], |row| row.get(0)).unwrap();
            assert_eq!(hash, link(synced).hash);
        }
        assert_eq!(walk(&connection).unwrap(), Ok(u64::try_from(KEPT).unwrap()));
        assert_eq!(head(&connection).unwrap(), link(3 * KEPT));
    }
}
