//! Watches the bytes of a chunked body for its end, so that what follows is known to be the next head.
//!
//! It takes what hyper's own decoder takes; what neither takes ends the connection.

/// Where in a chunked body the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// In a chunk's size.
    Size {
        /// What it is so far.
        length: u64,
        /// How many digits it has: zeros would make it endless.
        digits: u8,
    },
    /// Behind a chunk's size, before the end of its line.
    Extension(u64),
    /// Before the LF of that line.
    SizeLf(u64),
    /// In a chunk's data; so many bytes are left.
    Data(u64),
    /// Before the CR behind it.
    DataCr,
    /// Before the LF behind it.
    DataLf,
    /// At the begin of a trailer's line.
    Trailer,
    /// Inside.
    TrailerLine,
    /// Before its LF.
    TrailerLf,
    /// Before the very last LF.
    EndLf,
}

/// What a stretch of bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The body goes on.
    More(Chunks),
    /// It ends behind so many bytes.
    End(usize),
    /// It is not chunked.
    Illegal,
}

/// Most digits of a chunk's size: all that 64 bits have.
const SIZE_DIGITS: u8 = 16;

impl Chunks {
    /// Before its first byte.
    pub(super) const START: Self = Self::Size { length: 0, digits: 0 };

    /// Reads on.
    pub(super) fn read(self, bytes: &[u8]) -> Found {
        let mut state = self;
        let mut at = 0_usize;
        while let Some(byte) = bytes.get(at) {
            if let Self::Data(left) = state {
                let rest = bytes.len().saturating_sub(at);
                let data = usize::try_from(left).unwrap_or(usize::MAX).min(rest);
                let left = left.saturating_sub(u64::try_from(data).unwrap_or(u64::MAX));
                state = if left == 0 { Self::DataCr } else { Self::Data(left) };
                at = at.saturating_add(data);
                continue;
            }
            at = at.saturating_add(1);
            if (state, *byte) == (Self::EndLf, b'\n') {
                return Found::End(at);
            }
            let Some(next) = state.after(*byte) else { return Found::Illegal };
            state = next;
        }
        Found::More(state)
    }

    /// The state behind a byte that is no data; `None` if it may not stand there.
    fn after(self, byte: u8) -> Option<Self> {
        let next = match (self, byte) {
            (Self::Size { length, digits: 1.. } | Self::Extension(length), b'\r') => {
                Self::SizeLf(length)
            }
            (Self::Size { length, digits: 1.. }, b' ' | b'\t' | b';') => Self::Extension(length),
            (Self::Extension(_), byte) if byte != b'\n' => self,
            (Self::Size { length, digits: digits @ ..SIZE_DIGITS }, digit) => {
                let digit = char::from(digit).to_digit(16)?;
                let length = length.checked_mul(16)?.checked_add(u64::from(digit))?;
                Self::Size { length, digits: digits.saturating_add(1) }
            }
            (Self::SizeLf(0) | Self::TrailerLf, b'\n') => Self::Trailer,
            (Self::SizeLf(length), b'\n') => Self::Data(length),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::START,
            (Self::Trailer, b'\r') => Self::EndLf,
            (Self::TrailerLine, b'\r') => Self::TrailerLf,
            (Self::Trailer | Self::TrailerLine, byte) if byte != b'\n' => Self::TrailerLine,
            _ => return None,
        };
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_behind_its_last_chunk_however_it_is_cut() {
        let body =
            b"5\r\n\r\n0\r\n\r\n1A;x=\"y\"\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\na: b\r\n\r\nPOST";
        let end = body.len() - 4;
        assert_eq!(Chunks::START.read(body), Found::End(end));
        for cut in 1..end {
            let (first, rest) = body.split_at(cut);
            let Found::More(state) = Chunks::START.read(first) else { panic!("no end at {cut}") };
            assert_eq!(state.read(rest), Found::End(end - cut), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_chunked_is_found() {
        for body in [
            &b"\r\n"[..],
            b"zz\r\n",
            b"5\nhello\r\n",
            b"5;x\nhello\r\n",
            b"5\r\nhello0\r\n",
            b"5\r\nhello\n0\r\n",
            b"0\r\n\n",
            b"0\r\na: b\n\r\n",
            b"10000000000000000\r\n",
            b"00000000000000000\r\n",
        ] {
            assert_eq!(Chunks::START.read(body), Found::Illegal, "{body:?}");
        }
    }
}
