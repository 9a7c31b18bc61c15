//! A message as people have it: HTTP as text, from a proxy's log, a packet dump or `curl -v`.

/// A captured message.
#[derive(Clone, PartialEq, Eq)]
pub struct Capture {
    /// Its first line.
    pub start: Start,
    /// Name and value, in order, without white space around.
    pub headers: Vec<(String, String)>,
    /// Every byte behind the head.
    pub body: Vec<u8>,
    /// What was odd about the capture itself.
    pub notes: Vec<String>,
}

/// The first line of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Method and target.
    Request(String, String),
    /// A response's.
    Response,
}

/// Why something is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// Nothing.
    #[error("is empty")]
    Empty,
    /// The first line is neither.
    #[error("does not begin with a line such as `POST /path HTTP/1.1` or `HTTP/1.1 200 OK`")]
    FirstLine,
    /// A line of the head without colon.
    #[error("has a line without `:` in its head; an empty line has to stand before the body")]
    Header,
    /// The head is no text.
    #[error("has a head that is not UTF-8")]
    NotText,
}

impl Capture {
    /// Reads a whole message. The body is taken as it stands.
    pub fn parse(bytes: &[u8]) -> Result<Self, CaptureError> {
        if bytes.trim_ascii().is_empty() {
            return Err(CaptureError::Empty);
        }
        let bytes = bytes.trim_ascii_start();
        let (head, body) = split(bytes);
        let head = std::str::from_utf8(head).map_err(|_| CaptureError::NotText)?;
        let verbose = from_curl(head);
        let mut lines = verbose.as_deref().unwrap_or(head).lines().map(str::trim_end);
        let start = start(lines.next().ok_or(CaptureError::Empty)?)?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':').ok_or(CaptureError::Header)?;
            Ok((name.trim().to_owned(), value.trim_matches([' ', '\t']).to_owned()))
        };
        let headers =
            lines.filter(|line| !line.is_empty()).map(header).collect::<Result<_, _>>()?;
        let mut capture = Self { start, headers, body: body.to_vec(), notes: vec![] };
        if verbose.is_none() {
            capture.unframe();
        }
        Ok(capture)
    }

    /// The value of a header that stands there once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        value.filter(|_| values.next().is_none())
    }

    /// How often a header stands there.
    pub fn count(&self, name: &str) -> usize {
        self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).count()
    }

    /// What HTTP put around the body, and what an editor put behind it.
    fn unframe(&mut self) {
        let chunked = self
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        if chunked && let Some(body) = unchunked(&self.body) {
            self.body = body;
            self.notes.push("the body was captured in chunks, and put together".to_owned());
        }
        let Some(length) = self.header("content-length").and_then(|length| length.parse().ok())
        else {
            return;
        };
        let there = self.body.len();
        if there > length && self.body[length..].iter().all(u8::is_ascii_whitespace) {
            self.body.truncate(length);
            self.notes.push(format!(
                "white space behind the {length} bytes of Content-Length was left out"
            ));
        } else if there != length {
            self.notes.push(format!(
                "Content-Length is {length}, but the body has {there} bytes: it was changed on the way, or by \
                 capturing it"
            ));
        }
    }
}

/// At the first empty line.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let find = |mark: &[u8]| {
        let at = bytes.windows(mark.len()).position(|window| window == mark)?;
        Some((at, at + mark.len()))
    };
    let crlf = find(b"\r\n\r\n");
    let lf = find(b"\n\n");
    let end = match (crlf, lf) {
        (Some(crlf), Some(lf)) if lf.0 < crlf.0 => Some(lf),
        (Some(crlf), _) => Some(crlf),
        (None, lf) => lf,
    };
    end.map_or((bytes, &[][..]), |(end, start)| (&bytes[..end], &bytes[start..]))
}

fn start(line: &str) -> Result<Start, CaptureError> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    match (words.next(), words.next(), words.next()) {
        (Some(first), Some(_), _) if first.starts_with("HTTP/") => Ok(Start::Response),
        (Some(method), Some(target), version) => {
            let plain = method.bytes().all(|b| b.is_ascii_alphabetic());
            let http = version.is_none_or(|version| version.starts_with("HTTP/"));
            let fits = plain && http && (target.starts_with('/') || target.contains("://"));
            fits.then(|| Start::Request(method.to_owned(), target.to_owned()))
                .ok_or(CaptureError::FirstLine)
        }
        _ => Err(CaptureError::FirstLine),
    }
}

/// The head of the request in the output of `curl -v`, which marks its lines.
fn from_curl(head: &str) -> Option<String> {
    let marked =
        |line: &str| line.starts_with("> ") || line.starts_with("* ") || line.starts_with("< ");
    if !head.lines().next().is_some_and(marked) {
        return None;
    }
    let lines = head.lines().filter_map(|line| line.strip_prefix("> "));
    Some(lines.collect::<Vec<_>>().join("\n"))
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = line.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = rest.get(end + 1..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?;
        rest = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n"))?;
    }
}
