//! The file beside the database that keeps a second process out.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use super::OpenError;

/// Held as long as the store is open.
pub(super) struct Lock(File);

impl Lock {
    /// Makes sure that no other process has the store open.
    pub(super) fn take(path: &Path) -> Result<Self, OpenError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        let open = |source: std::io::Error| OpenError::Open {
            path: path.to_owned(),
            source: source.into(),
        };
        let file =
            File::options().create(true).truncate(false).write(true).open(name).map_err(open)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(open(source)),
        }
    }
}

impl Drop for Lock {
    /// Closing the file would not do: a child process that is just being started holds a copy of it between fork and
    /// exec, and with it the lock.
    fn drop(&mut self) {
        drop(self.0.unlock());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_is_being_started_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let lock = Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&path), Err(OpenError::InUse(_))));
        // what fork makes, until exec closes it
        let _inherited = lock.0.try_clone().unwrap();
        drop(lock);
        drop(Lock::take(&path).unwrap());
    }
}
