//! A file's lines, one at a time and none longer than it may be; wiped, because a line may hold a token.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
};

use zeroize::Zeroizing;

use crate::upkeep::lines::{LINE_BYTES_MAX, Wrong};

/// One line.
pub(super) enum Line<'a> {
    /// Without its end.
    Text(&'a str),
    /// It cannot be read as one.
    Wrong(Wrong),
}

/// The lines of a file or of standard input.
pub(super) struct Lines {
    input: Box<dyn BufRead + Send>,
    line: Zeroizing<Vec<u8>>,
    number: u64,
    from: u64,
    bytes: u64,
    /// Bytes of all of it, where that is known.
    whole: Option<u64>,
}

impl Lines {
    /// Opens a file, or standard input if it is `-`; begins with the line `from`.
    pub(super) fn open(path: &Path, from: u64) -> io::Result<Self> {
        let (input, whole): (Box<dyn BufRead + Send>, _) = if path.as_os_str() == "-" {
            (Box::new(BufReader::new(io::stdin())), None)
        } else {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            let whole = metadata.is_file().then_some(metadata.len());
            (Box::new(BufReader::with_capacity(1 << 18, file)), whole)
        };
        Ok(Self { input, line: Zeroizing::default(), number: 0, from, bytes: 0, whole })
    }

    /// The next line with its number; none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Line<'_>)>> {
        loop {
            self.line.clear();
            let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
            let input = &mut self.input;
            let read = input.by_ref().take(most).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bytes += u64::try_from(read).unwrap_or(u64::MAX);
            let too_long = read > LINE_BYTES_MAX && self.line.last() != Some(&b'\n');
            if too_long {
                self.skip()?;
            }
            if self.number < self.from {
                continue;
            }
            if too_long {
                let wrong = Wrong::of("the line", &format!("longer than {LINE_BYTES_MAX} bytes"));
                return Ok(Some((self.number, Line::Wrong(wrong))));
            }
            break;
        }
        let mut line: &[u8] = &self.line;
        if self.number == 1 {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        line = line.strip_suffix(b"\n").unwrap_or(line);
        line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = match std::str::from_utf8(line) {
            Ok(text) => Line::Text(text),
            Err(_) => Line::Wrong(Wrong::of("the line", "is not UTF-8")),
        };
        Ok(Some((self.number, line)))
    }

    /// Passes over the rest of a line.
    fn skip(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let passed = end.unwrap_or(buffer.len());
            self.input.consume(passed);
            self.bytes += u64::try_from(passed).unwrap_or(u64::MAX);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    /// How much of the whole was read, where that is known.
    pub(super) fn part(&self) -> Option<(u64, u64)> {
        self.whole.map(|whole| (self.bytes, whole))
    }
}
