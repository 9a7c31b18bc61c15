//! The anchor: a small file beside the database that notes the last durable commit.
//!
//! The database cannot tell by itself that its end is missing: recovery of a damaged log gives a sound database of an
//! earlier moment. The anchor can. It is written after a commit is durable, in place and without an fsync:
//!
//! - **A stale anchor is harmless.** A power loss may take its last writes, and a crash may come between a commit and
//!   its note; then it names an earlier commit, which the chain still has. Only commits behind it are proven by nobody.
//! - **An anchor ahead of the chain is proof of loss**, because no commit is noted before it is durable.
//!
//! Two slots, a page apart, are written in turn: a write that is torn leaves the other one.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

use super::chain::Link;

const MAGIC: [u8; 8] = *b"APC-ANC1";
/// Magic, id, hash, and the first bytes of SHA-256 over these.
const SLOT_BYTES: usize = 64;
const SLOTS: [u64; 2] = [0, 4096];

/// What an anchor file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// There is no such file.
    Absent,
    /// No slot of it can be read.
    Damaged,
    /// The last commit that was noted.
    Commit(Link),
}

/// The file, open for its notes.
pub(super) struct Anchor {
    file: File,
    /// The slot that is written next.
    next: usize,
    noted: Link,
    /// The last note that is certain to survive a power loss.
    synced: Link,
    /// Whether the last note failed: said once, not with every commit.
    failing: bool,
}

/// Where a database's anchor is.
pub(super) fn path_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".anchor");
    PathBuf::from(name)
}

/// What the anchor of a database says.
pub(super) fn read(database: &Path) -> io::Result<Noted> {
    let mut file = match File::open(path_of(database)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Noted::Absent),
        Err(error) => return Err(error),
    };
    let newest = slots(&mut file)?.into_iter().flatten().max_by_key(|link| link.id);
    Ok(newest.map_or(Noted::Damaged, Noted::Commit))
}

fn slots(file: &mut File) -> io::Result<[Option<Link>; 2]> {
    let mut links = [None; 2];
    for (link, start) in links.iter_mut().zip(SLOTS) {
        let mut slot = [0; SLOT_BYTES];
        file.seek(SeekFrom::Start(start))?;
        *link = match file.read_exact(&mut slot) {
            Ok(()) => decode(&slot),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
    }
    Ok(links)
}

fn encode(link: Link) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let (body, sum) = slot.split_at_mut(48);
    let content = MAGIC.into_iter().chain(link.id.to_le_bytes()).chain(link.hash);
    body.iter_mut().zip(content).for_each(|(to, from)| *to = from);
    let digest = digest::digest(&digest::SHA256, body);
    sum.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    slot
}

fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Link> {
    let id = i64::from_le_bytes(slot.get(8..16)?.try_into().ok()?);
    let hash = slot.get(16..48)?.try_into().ok()?;
    let link = Link { id, hash };
    (encode(link) == *slot).then_some(link)
}

impl Anchor {
    /// Opens the anchor of a database, or makes it, and notes its last commit. Durable when this returns.
    pub(super) fn moor(database: &Path, head: Link) -> io::Result<Self> {
        let path = path_of(database);
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        for start in SLOTS {
            file.seek(SeekFrom::Start(start))?;
            file.write_all(&encode(head))?;
            // one slot is whole at every moment
            file.sync_all()?;
        }
        sync_folder(&path)?;
        Ok(Self { file, next: 0, noted: head, synced: head, failing: false })
    }

    /// Notes a commit that is durable. A note that fails leaves the anchor stale, which is harmless.
    pub(super) fn note(&mut self, link: Link) {
        let start = SLOTS.get(self.next).copied().unwrap_or_default();
        let written =
            self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.write_all(&encode(link)));
        match written {
            Ok(()) => {
                self.next = 1usize.saturating_sub(self.next);
                self.noted = link;
                self.failing = false;
            }
            Err(error) => self.complain(&error),
        }
    }

    /// Makes the last note durable.
    pub(super) fn sync(&mut self) {
        match self.file.sync_data() {
            Ok(()) => self.synced = self.noted,
            Err(error) => self.complain(&error),
        }
    }

    /// The last note that is certain to survive a power loss: the chain must keep its row.
    pub(super) fn synced(&self) -> Link {
        self.synced
    }

    fn complain(&mut self, error: &io::Error) {
        if !self.failing {
            tracing::warn!(error = %error, "the anchor of the database cannot be written; until it can, a loss of later commits would go unnoticed");
        }
        self.failing = true;
    }
}

/// Makes a file's name durable.
pub(super) fn sync_folder(file: &Path) -> io::Result<()> {
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Whether nothing can be written where the database is because that file system is read-only.
pub(super) fn is_read_only(database: &Path) -> bool {
    // SQLite follows a link too, and keeps its log beside the file
    let database = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut name = database.into_os_string();
    name.push(".probe");
    let name = PathBuf::from(name);
    if let Err(error) = File::create(&name) {
        return error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    }
    drop(fs::remove_file(&name));
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(id: i64) -> Link {
        Link { id, hash: [u8::try_from(id % 251).unwrap(); 32] }
    }

    #[test]
    fn the_newest_whole_note_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("state.db");
        assert_eq!(read(&database).unwrap(), Noted::Absent);
        let mut anchor = Anchor::moor(&database, link(7)).unwrap();
        for id in 8..20 {
            anchor.note(link(id));
            assert_eq!(read(&database).unwrap(), Noted::Commit(link(id)));
        }
        // each flipped bit of the newest note leaves the one before
        let file = path_of(&database);
        let whole = fs::read(&file).unwrap();
        let newest =
            SLOTS.map(|at| usize::try_from(at).unwrap()).into_iter().max_by_key(|at| whole[at + 8]);
        for place in newest.unwrap()..newest.unwrap() + SLOT_BYTES {
            let mut torn = whole.clone();
            torn[place] ^= 4;
            fs::write(&file, &torn).unwrap();
            assert_eq!(read(&database).unwrap(), Noted::Commit(link(18)), "byte {place}");
        }
        for damaged in [vec![], vec![0; 8192], b"not an anchor".to_vec()] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(read(&database).unwrap(), Noted::Damaged);
        }
    }
}
