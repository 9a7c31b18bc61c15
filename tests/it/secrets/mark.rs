//! Secrets that can be told from everything else, what they may look like where they were written, and the search.

use std::{fmt::Write as _, fs, path::Path, process::Output};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE},
};
use rand::RngCore as _;

use crate::harness::{
    collector::Collector,
    json::Answer,
    service::{Service, admin},
};

/// A secret, of which some bytes are nowhere else.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Whose it is.
    what: String,
    core: Vec<u8>,
}

/// Bytes of the machine's randomness.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// Bytes as a text with a character for each, so that whatever is no text can be searched too.
fn readable(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

impl Mark {
    pub fn of(what: &str, core: &[u8]) -> Self {
        Self { what: what.to_owned(), core: core.to_owned() }
    }

    /// What it may look like: as it is, in Base64 of either alphabet at each of three offsets, in hex, percent-encoded
    /// byte by byte, as a list of bytes, as Rust shows bytes. The core of a marked text is letters and digits, which
    /// JSON and the usual percent-encoding leave as they are.
    pub fn shapes(&self) -> Vec<String> {
        let mut shapes = vec![readable(&self.core), self.core.escape_ascii().to_string()];
        for offset in 0..3 {
            let shifted = [&vec![b'x'; offset][..], &self.core].concat();
            for encoded in [BASE64_STANDARD.encode(&shifted), BASE64_URL_SAFE.encode(&shifted)] {
                // the first and the last group depend on what stands around
                shapes.push(encoded[4..encoded.len() - 4].to_owned());
            }
        }
        for before in ["", "%", "\\x"] {
            let hex = |upper: bool| {
                self.core.iter().fold(String::new(), |mut text, byte| {
                    text.push_str(before);
                    if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") }
                        .expect("a text");
                    text
                })
            };
            shapes.extend([hex(true), hex(false)]);
        }
        let list: Vec<String> = self.core.iter().map(u8::to_string).collect();
        shapes.extend([list.join(", "), list.join(",")]);
        shapes.sort();
        shapes.dedup();
        shapes
    }
}

/// Every secret that was made, and everything that was written or answered since.
#[derive(Default)]
pub struct Traces {
    pub marks: Vec<Mark>,
    /// What was written, with its place.
    places: Vec<(String, String)>,
}

impl Traces {
    /// A secret nobody else has, letters and digits.
    pub fn secret(&mut self, what: &str) -> String {
        let core = random::<12>().iter().fold("Tkn".to_owned(), |mut text, byte| {
            write!(text, "{byte:02X}").expect("a text");
            text
        });
        self.marks.push(Mark::of(what, core.as_bytes()));
        core
    }

    /// A token with letters that nothing else has, and a tail.
    pub fn token_with(&mut self, tail: &str) -> String {
        format!("{}{tail}", self.secret("a token"))
    }

    /// A token whose end encodings change.
    pub fn token(&mut self) -> String {
        self.token_with("+/=é")
    }

    /// A private key is secret in each of its lines, and in its bytes from there on where all keys no longer agree. Of
    /// these, those of the last part: a public key may be told, and the first numbers of an RSA key are public.
    pub fn private_key(&mut self, what: &str, pem: &str) {
        let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
        for line in lines.iter().skip(1).filter(|line| line.len() > 32) {
            self.marks.push(Mark::of(what, line.as_bytes()));
        }
        let der = BASE64_STANDARD.decode(lines.concat()).expect("PEM");
        // an EC key has its number at the beginning, and RSA's has its primes in the middle
        let parts: &[usize] = if der.len() < 200 { &[38] } else { &[320, 600, 700, 900] };
        for from in parts {
            self.marks.push(Mark::of(what, &der[*from..*from + 24]));
        }
    }

    pub fn json(&mut self, path: &str, answer: &Answer) {
        let text = format!("{:?} {}", answer.headers, readable(&answer.body));
        self.places.push((format!("answer to {path}"), text));
    }

    pub fn grpc<T: std::fmt::Debug>(&mut self, path: &str, answer: &Result<T, tonic::Status>) {
        let text = match answer {
            Ok(response) => format!("{response:?}"),
            Err(status) => {
                let details = readable(status.details());
                format!("{status:?} {} {details} {:?}", status.message(), status.metadata())
            }
        };
        self.places.push((format!("answer to {path}"), text));
    }

    pub fn output(&mut self, path: &str, output: &Output) {
        for text in [&output.stdout, &output.stderr] {
            self.places.push((format!("output of {path}"), readable(text)));
        }
    }

    pub fn text(&mut self, place: &str, text: &str) {
        self.places.push((place.to_owned(), readable(text.as_bytes())));
    }

    /// Every file of a service's folder but those that the test put there, and what `/metrics` says if it runs.
    pub fn service(&mut self, name: &str, service: &Service, given: &[&str], runs: bool) {
        for entry in fs::read_dir(service.dir()).expect("a folder") {
            let path = entry.expect("an entry").path();
            let file = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
            if path.is_file() && !given.contains(&file) {
                let text = readable(&fs::read(&path).expect("a file"));
                self.places.push((format!("{name}{file}"), text));
            }
        }
        if runs {
            let scrape = admin(service.ports().admin, "/metrics");
            self.places.push((format!("{name}/metrics"), readable(&scrape.body)));
        }
    }

    /// All that a collector got: raw bytes are told as lists of numbers, which is one of the shapes.
    pub fn collector(&mut self, name: &str, collector: &Collector) {
        collector.look(|received| {
            assert!(!received.metrics.is_empty());
            for (signal, text) in [
                ("spans", format!("{:?}", received.spans)),
                ("metrics", format!("{:?}", received.metrics)),
                ("exported lines", format!("{:?}", received.logs)),
                ("resources", format!("{:?}", received.resources)),
            ] {
                self.places.push((format!("{name}{signal}"), readable(text.as_bytes())));
            }
        });
    }

    /// Where something stands.
    pub fn find(&self, needle: &str) -> Vec<String> {
        let found = self.places.iter().filter(|(_, text)| text.contains(needle));
        found.map(|(place, _)| place.clone()).collect()
    }

    /// Whether the search sees: what is no secret, and went the way of the secrets, is found in each of these places.
    #[track_caller]
    pub fn assert_sees(&self, witness: &str, places: &[&str]) {
        let found = self.find(witness);
        for place in places {
            assert!(found.iter().any(|name| name == place), "blind for {place}: {found:?}");
        }
    }

    /// Nothing secret stands anywhere.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(!self.marks.is_empty());
        for mark in &self.marks {
            for shape in mark.shapes() {
                let found = self.find(&shape);
                assert!(found.is_empty(), "{} as {shape} in {found:?}", mark.what);
            }
        }
    }
}

/// A path as a text.
pub fn plain(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

/// Whoever looks for a secret finds it if it is there, in each shape that the tests look for, at each place.
#[test]
fn the_search_for_secrets_sees_every_shape() {
    let mut traces = Traces::default();
    let token = traces.token();
    let raw = random::<32>();
    for (mark, bytes) in
        [(traces.marks[0].clone(), token.as_bytes()), (Mark::of("a key", &raw), &raw[..])]
    {
        let found = |text: &str| mark.shapes().iter().any(|shape| text.contains(shape));
        assert!(found(&readable(bytes)));
        assert!(found(&format!("{bytes:?}")));
        assert!(found(&bytes.escape_ascii().to_string()));
        let every: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
        assert!(found(&every) && found(&every.to_lowercase()));
        assert!(found(&every.replace('%', "")) && found(&every.replace('%', "").to_lowercase()));
        for around in ["", "a", "ab", "abc"] {
            let text = [around.as_bytes(), bytes, around.as_bytes()].concat();
            assert!(found(&BASE64_STANDARD.encode(&text)) && found(&BASE64_URL_SAFE.encode(&text)));
        }
        assert!(!found("Tkn"));
    }
    traces.assert_clean();
    traces.text("here", &format!("a{token}b"));
    assert_eq!(traces.find(&token[..20]), ["here"]);
    assert!(std::panic::catch_unwind(move || traces.assert_clean()).is_err());
}
