//! A copy of a database while it is in use, with SQLite's backup API.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use super::{
    super::Source,
    OpenError, anchor,
    check::{Progress, inspect},
    connect_reader, guard, migrate, opening, settle,
    standing::{self, Entry},
};

/// Copied between two tellings of progress.
const PAGES_AT_ONCE: i32 = 2_048;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database to copy cannot be read, or has lost commits.
    #[error("cannot read what is to be backed up")]
    Store(#[source] OpenError),
    /// There is a file already.
    #[error("{0} is there already; no file is overwritten, so name another one or move it away")]
    Exists(PathBuf),
    /// The copy cannot be written.
    #[error("cannot write the backup {path}")]
    Write {
        /// The copy.
        path: PathBuf,
        /// What SQLite or the system said.
        #[source]
        source: Source,
    },
    /// The copy is as damaged as the database.
    #[error(
        "the database is damaged, and so would be its backup: {}; keep earlier backups, and run `verify`",
        .0.join("; ")
    )]
    Damaged(Vec<String>),
}

/// Copies the database of a running or a stopped store to a file that is not there yet.
///
/// The copy is one file, durable and checked when this returns. Opened as a store it is suspect until `reconcile`,
/// because it lacks what was decided since.
pub(super) fn backup(
    path: &Path,
    to: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BackupError> {
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let partial = Partial::make(to)?;
    let writing = |source: Source| BackupError::Write { path: to.to_owned(), source };
    let mut copy = copy(path, &partial.0, progress, &writing)?;
    mark(&mut copy).map_err(|source| writing(source.into()))?;

    let partitions = migrate::belongs(&copy, &partial.0).map_err(BackupError::Store)?;
    let checked = inspect(&copy, &partial.0, partitions, progress).map_err(BackupError::Store)?;
    if !checked.findings.is_empty() {
        return Err(BackupError::Damaged(checked.findings));
    }
    copy.close().map_err(|(_, source)| writing(source.into()))?;
    partial.put_in_place(to)
}

fn copy(
    path: &Path,
    partial: &Path,
    progress: &mut dyn FnMut(Progress),
    writing: &dyn Fn(Source) -> BackupError,
) -> Result<Connection, BackupError> {
    let reading = |source: rusqlite::Error| BackupError::Store(opening(path, source));
    let open = |source: Source| OpenError::Open { path: path.to_owned(), source };
    if !path.exists() {
        return Err(BackupError::Store(open("there is no such file".into())));
    }
    // before the snapshot: a running service goes on noting commits
    let noted = anchor::read(path).map_err(|source| BackupError::Store(open(source.into())))?;
    let source = connect_reader(path).map_err(reading)?;
    migrate::belongs(&source, path).map_err(BackupError::Store)?;
    // one snapshot for all of it: without it every commit in between would make the copy begin anew
    let snapshot = source.unchecked_transaction().map_err(reading)?;
    guard::compare(&snapshot, path, &noted).map_err(BackupError::Store)?;

    let written = |source: rusqlite::Error| writing(source.into());
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut copy = Connection::open_with_flags(partial, flags).map_err(written)?;
    settle(&copy).map_err(written)?;
    let backup = Backup::new(&snapshot, &mut copy).map_err(written)?;
    loop {
        let step = backup.step(PAGES_AT_ONCE).map_err(written)?;
        let pages = backup.progress();
        let (left, total) = (u64::try_from(pages.remaining), u64::try_from(pages.pagecount));
        let total = total.unwrap_or_default();
        let done = total.saturating_sub(left.unwrap_or_default());
        progress(Progress { step: "copy", done, total: Some(total) });
        if step == StepResult::Done {
            break;
        }
        if step != StepResult::More {
            let busy = "another program has it locked; try again";
            return Err(BackupError::Store(open(busy.into())));
        }
    }
    drop(backup);
    Ok(copy)
}

/// Makes one file of it, and notes what it is.
fn mark(copy: &mut Connection) -> rusqlite::Result<()> {
    // the copy has the journal mode of the original, whose log would be a second file
    let _: String = copy.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))?;
    copy.pragma_update(None, "synchronous", "FULL")?;
    let transaction = copy.transaction()?;
    Entry::RestoredAt.set(&transaction, standing::now().unix_ms)?;
    Entry::Running.set(&transaction, 0)?;
    transaction.commit()
}

/// The copy while it is made; it is gone if it is not put in place.
struct Partial(PathBuf);

impl Partial {
    fn make(to: &Path) -> Result<Self, BackupError> {
        let mut name = to.as_os_str().to_owned();
        name.push(".partial");
        let name = PathBuf::from(name);
        let mut options = File::options();
        options.create_new(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(&name) {
            Ok(_) => Ok(Self(name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(BackupError::Exists(name))
            }
            Err(source) => Err(BackupError::Write { path: name, source: source.into() }),
        }
    }

    /// Gives it its name, which nothing else has got meanwhile: a link, unlike a rename, replaces nothing.
    fn put_in_place(self, to: &Path) -> Result<(), BackupError> {
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                return BackupError::Exists(to.to_owned());
            }
            BackupError::Write { path: to.to_owned(), source: source.into() }
        };
        File::open(&self.0).and_then(|file| file.sync_all()).map_err(failed)?;
        match fs::hard_link(&self.0, to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            // a file system without links
            Err(_) if to.symlink_metadata().is_err() => fs::rename(&self.0, to).map_err(failed)?,
            Err(_) => return Err(BackupError::Exists(to.to_owned())),
        }
        drop(fs::remove_file(&self.0));
        anchor::sync_folder(to).map_err(failed)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}
