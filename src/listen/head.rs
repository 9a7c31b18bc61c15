//! Watches the bytes of HTTP/1.1 heads for what hyper takes and a proxy in front may read otherwise: a line that ends in
//! a bare LF, a fragment in the target, and Content-Length beside Transfer-Encoding: hyper drops the last two without a
//! word.
//!
//! Then the two would disagree about where a request ends. RFC 9112 lets a recipient take both; a service that is signed
//! for by path and body has nothing to gain from it.

/// The two headers that say where a body ends.
const CONTENT_LENGTH: &[u8] = b"content-length";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";
/// The longer of them.
const NAME_BYTES: usize = TRANSFER_ENCODING.len();

/// Where in a head the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Before its first byte; empty lines are passed over, as hyper does.
    Before {
        /// The last byte was CR.
        cr: bool,
    },
    /// Inside.
    Inside(Lines),
}

/// The lines of a head so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a head")]
pub(super) struct Lines {
    /// The last byte was CR.
    cr: bool,
    /// Bytes on this line so far, up to a few.
    line: u8,
    /// The request line is over.
    fields: bool,
    /// The first of them, in lower case.
    start: [u8; NAME_BYTES],
    /// A Content-Length was there.
    length: bool,
    /// A Transfer-Encoding was there.
    coding: bool,
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
    /// The target has a fragment, from this byte on: hyper would cut it off, and what is signed for has it.
    Fragment(usize),
    /// The end of the body is told twice, at this byte for the second time.
    TwoEnds(usize),
}

impl Head {
    /// Nothing was read.
    pub(super) const START: Self = Self::Before { cr: false };

    /// Reads on.
    pub(super) fn read(self, bytes: &[u8]) -> Found {
        let (mut lines, mut begun) = match self {
            Self::Before { cr } => (Lines { cr, ..Lines::default() }, false),
            Self::Inside(lines) => (lines, true),
        };
        let mut at = 0usize;
        while let Some(byte) = bytes.get(at) {
            if lines.line == 0 && !lines.cr {
                // most heads come whole, line by line
                match lines.read_whole(bytes.get(at..).unwrap_or_default()) {
                    Whole::Line(0) if begun => return Found::End(at.saturating_add(CRLF)),
                    Whole::Line(length) => {
                        begun |= length > 0;
                        lines.fields = begun;
                        at = at.saturating_add(length).saturating_add(CRLF);
                        continue;
                    }
                    Whole::SecondEnd(colon) => return Found::TwoEnds(at.saturating_add(colon)),
                    Whole::ByteByByte => {}
                }
            }
            match byte {
                b'\n' if !lines.cr => return Found::BareLf(at),
                b'\n' if lines.line == 0 && begun => return Found::End(at.saturating_add(1)),
                b'\n' => (lines.cr, lines.line, lines.fields) = (false, 0, begun),
                b'\r' => lines.cr = true,
                b'#' if !lines.fields => return Found::Fragment(at),
                byte => {
                    begun = true;
                    lines.read(*byte);
                    if lines.length && lines.coding {
                        return Found::TwoEnds(at);
                    }
                }
            }
            at = at.saturating_add(1).saturating_add(lines.telling(bytes.get(at..)));
        }
        Found::More(if begun { Self::Inside(lines) } else { Self::Before { cr: lines.cr } })
    }
}

/// What a line is that may be there whole.
enum Whole {
    /// Nothing that tells anything, so long, and its CRLF.
    Line(usize),
    /// It tells the end of the body for the second time, with this byte.
    SecondEnd(usize),
    /// It is not all there, or has something about it.
    ByteByByte,
}

/// What a line ends in, in bytes.
const CRLF: usize = 2;

impl Lines {
    /// Reads the line that these begin with, if it can be read at once.
    fn read_whole(&mut self, bytes: &[u8]) -> Whole {
        let end = if self.fields {
            memchr::memchr2(b'\r', b'\n', bytes)
        } else {
            memchr::memchr3(b'\r', b'\n', b'#', bytes)
        };
        let Some((line, rest)) = end.and_then(|end| bytes.split_at_checked(end)) else {
            return Whole::ByteByByte;
        };
        if !rest.starts_with(b"\r\n") {
            return Whole::ByteByByte;
        }
        let colon = line.iter().take(NAME_BYTES.saturating_add(1)).position(|byte| *byte == b':');
        if let Some((name, colon)) = colon.and_then(|colon| Some((line.get(..colon)?, colon))) {
            self.length |= name.eq_ignore_ascii_case(CONTENT_LENGTH);
            self.coding |= name.eq_ignore_ascii_case(TRANSFER_ENCODING);
            if self.length && self.coding {
                return Whole::SecondEnd(colon);
            }
        }
        Whole::Line(line.len())
    }

    /// How far it is from the byte that these begin with to the next one that can tell anything: long lines have an end,
    /// and their middle says nothing. Most bytes of a head are there.
    fn telling(&mut self, bytes: Option<&[u8]>) -> usize {
        let Some((_, rest)) = bytes.and_then(<[u8]>::split_first) else { return 0 };
        if usize::from(self.line) <= NAME_BYTES || self.cr {
            return 0;
        }
        let next = if self.fields {
            memchr::memchr2(b'\r', b'\n', rest)
        } else {
            memchr::memchr3(b'\r', b'\n', b'#', rest)
        };
        next.unwrap_or(rest.len())
    }

    /// Reads a byte inside a line.
    fn read(&mut self, byte: u8) {
        self.cr = false;
        let place = usize::from(self.line);
        if byte == b':' {
            let name = self.start.get(..place);
            self.length |= name == Some(CONTENT_LENGTH);
            self.coding |= name == Some(TRANSFER_ENCODING);
        }
        if let Some(start) = self.start.get_mut(place) {
            *start = byte.to_ascii_lowercase();
        }
        self.line = self.line.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same, a byte at a time: nothing can be passed over.
    fn slowly(bytes: &[u8]) -> Found {
        let mut head = Head::START;
        for (at, byte) in bytes.iter().enumerate() {
            match head.read(&[*byte]) {
                Found::More(more) => head = more,
                Found::End(_) => return Found::End(at + 1),
                Found::BareLf(_) => return Found::BareLf(at),
                Found::Fragment(_) => return Found::Fragment(at),
                Found::TwoEnds(_) => return Found::TwoEnds(at),
            }
        }
        Found::More(head)
    }

    /// What is passed over leaves no trace but how much of the line is read, which nobody asks for behind a name.
    fn told(found: Found) -> Found {
        let Found::More(Head::Inside(mut lines)) = found else { return found };
        lines.line = lines.line.min(u8::try_from(NAME_BYTES).unwrap() + 1);
        // nor what a name began with before this one
        lines.start.iter_mut().skip(lines.line.into()).for_each(|byte| *byte = 0);
        Found::More(Head::Inside(lines))
    }

    proptest::proptest! {
        #[test]
        fn what_is_passed_over_says_nothing(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "POST /a HTTP/1.1", "#", "\r\n", "\r", "\n", ":", "content-length", "Transfer-Encoding",
                    "x", "a-long-header-name-that-goes-on: and-its-value", " ", "",
                ]),
                0..24,
            ),
        ) {
            let head = format!("P{}", pieces.concat());
            let found = Head::START.read(head.as_bytes());
            proptest::prop_assert_eq!(told(found), told(slowly(head.as_bytes())));
        }
    }

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_is_cut() {
        let heads =
            ["POST / HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\nPOST / HTTP/1.1\r\nhost: a\r\n\r\n"];
        for head in heads {
            let length = head.len();
            let sent = [head, "body\n"].concat();
            assert_eq!(Head::START.read(sent.as_bytes()), Found::End(length));
            for cut in 1..length {
                let (first, rest) = sent.as_bytes().split_at(cut);
                let Found::More(state) = Head::START.read(first) else { panic!("no end at {cut}") };
                assert_eq!(state.read(rest), Found::End(length - cut), "cut at {cut}");
            }
        }
    }

    #[test]
    fn content_length_beside_transfer_encoding_is_found() {
        let both =
            |first: &str, second: &str| format!("POST / HTTP/1.1\r\n{first}\r\n{second}\r\n");
        for (first, second) in [
            ("Content-Length: 1", "transfer-encoding: chunked"),
            ("TRANSFER-ENCODING: chunked\r\na: b", "content-LENGTH: 1"),
        ] {
            let head = both(first, second);
            let end = head.rfind(':').unwrap();
            assert_eq!(Head::START.read(head.as_bytes()), Found::TwoEnds(end));
            for cut in 1..end {
                let (before, rest) = head.as_bytes().split_at(cut);
                let Found::More(state) = Head::START.read(before) else { panic!("cut at {cut}") };
                assert_eq!(state.read(rest), Found::TwoEnds(end - cut), "cut at {cut}");
            }
        }
        for (first, second) in [
            ("Content-Length: 1", "x-transfer-encoding: chunked"),
            ("Content-Length: 1", "x: transfer-encoding:"),
            ("Content-Length: 1", "content-length: 1"),
            ("Transfer-Encoding: chunked", "content-length-of: 1"),
        ] {
            assert!(matches!(Head::START.read(both(first, second).as_bytes()), Found::More(_)));
        }
    }

    #[test]
    fn a_fragment_is_found_in_the_request_line_alone() {
        assert_eq!(Head::START.read(b"\r\nPOST /a#b HTTP/1.1\r\n"), Found::Fragment(9));
        assert!(matches!(Head::START.read(b"POST /a HTTP/1.1\r\na: #\r\n"), Found::More(_)));
    }

    #[test]
    fn a_bare_lf_is_found() {
        assert_eq!(Head::START.read(b"POST / HTTP/1.1\nhost: a\r\n\r\n"), Found::BareLf(15));
        assert_eq!(Head::START.read(b"POST / HTTP/1.1\r\nhost: a\n\r\n"), Found::BareLf(24));
        assert_eq!(Head::START.read(b"POST / HTTP/1.1\r\nhost: a\r\n\n"), Found::BareLf(26));
        assert_eq!(Head::START.read(b"\nPOST / HTTP/1.1\r\n\r\n"), Found::BareLf(0));
    }
}
