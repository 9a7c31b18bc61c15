//! Watches the bytes of HTTP/1.1 heads for a line that ends in a bare LF.
//!
//! hyper takes such a line, a proxy in front may not, and then the two disagree about where a request ends. RFC 9112
//! lets a recipient take it; a service that is signed for by path and body has nothing to gain from it.

/// Where in a head the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Before its first byte; empty lines are passed over, as hyper does.
    Before,
    /// Inside.
    Inside {
        /// The last byte was CR.
        cr: bool,
        /// Bytes on this line so far, up to a few.
        line: u8,
    },
}

/// What a stretch of bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The head goes on.
    More(Head),
    /// It ends behind so many bytes.
    End(usize),
    /// A line ends in a bare LF, at this byte.
    BareLf(usize),
}

impl Head {
    /// Reads on.
    pub(super) fn read(self, bytes: &[u8]) -> Found {
        let (mut cr, mut line, mut begun) = match self {
            Self::Before => (false, 0u8, false),
            Self::Inside { cr, line } => (cr, line, true),
        };
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if !cr => return Found::BareLf(at),
                b'\n' if line == 0 && begun => return Found::End(at.saturating_add(1)),
                b'\n' => {
                    (cr, line) = (false, 0);
                }
                b'\r' => cr = true,
                _ => {
                    (cr, begun) = (false, true);
                    line = line.saturating_add(1);
                }
            }
        }
        if begun { Found::More(Self::Inside { cr, line }) } else { Found::More(Self::Before) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_is_cut() {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\n\r\nbody\n";
        assert_eq!(Head::Before.read(head), Found::End(28));
        for cut in 1..28 {
            let (first, rest) = head.split_at(cut);
            let Found::More(state) = Head::Before.read(first) else { panic!("no end at {cut}") };
            assert_eq!(state.read(rest), Found::End(28 - cut), "cut at {cut}");
        }
    }

    #[test]
    fn a_bare_lf_is_found() {
        assert_eq!(Head::Before.read(b"POST / HTTP/1.1\nhost: a\r\n\r\n"), Found::BareLf(15));
        assert_eq!(Head::Before.read(b"POST / HTTP/1.1\r\nhost: a\n\r\n"), Found::BareLf(24));
        assert_eq!(Head::Before.read(b"POST / HTTP/1.1\r\nhost: a\r\n\n"), Found::BareLf(26));
        assert_eq!(Head::Before.read(b"\nPOST / HTTP/1.1\r\n\r\n"), Found::BareLf(0));
    }
}
