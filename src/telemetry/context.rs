//! W3C trace context: continued if a request brings one, begun if not.

use std::fmt;

use crate::domain::id::TraceId;

/// Where in which trace a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span, or ours where we call.
    pub span: [u8; 8],
    /// Whether somebody records it.
    pub sampled: bool,
}

impl TraceContext {
    /// A new trace, of which such a share is to be recorded.
    pub fn begin(ratio: f64) -> Self {
        // all zero is not a trace id; setting one bit of 2^128 costs nothing
        let trace: u128 = rand::random::<u128>() | 1;
        let sampled = rand::random::<f64>() < ratio;
        Self { trace: TraceId(trace.to_be_bytes()), span: new_span(), sampled }
    }

    /// Reads `traceparent`; `None` if it is absent or not one.
    ///
    /// Source: W3C Trace Context, § 3.2; a newer version is read as far as this one goes.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, digits| {
            text.len() == digits
                && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        if !hex(version, 2) || version == "ff" || !hex(span, 16) || !hex(flags, 2) {
            return None;
        }
        if version == "00" && parts.next().is_some() {
            return None;
        }
        let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace: TraceId::parse(trace)?, span: span.to_be_bytes(), sampled })
    }

    /// The context of a request, continued or begun.
    pub fn of(traceparent: Option<&str>) -> Self {
        traceparent.and_then(Self::parse).unwrap_or_else(|| Self::begin(1.0))
    }

    /// The span's id, as 16 hex digits.
    pub fn span_id(self) -> String {
        format!("{:016x}", u64::from_be_bytes(self.span))
    }
}

fn new_span() -> [u8; 8] {
    (rand::random::<u64>() | 1).to_be_bytes()
}

impl fmt::Display for TraceContext {
    /// As a `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = u64::from_be_bytes(self.span);
        write!(f, "00-{}-{span:016x}-{:02x}", self.trace, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_continued() {
        let context = TraceContext::parse(SAMPLE).expect("the sample of the specification");
        assert_eq!(context.to_string(), SAMPLE);
        assert_eq!(context.span_id(), "00f067aa0ba902b7");
    }

    #[test]
    fn what_is_not_a_traceparent_is_none() {
        for bad in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        assert_ne!(TraceContext::begin(1.0).trace, TraceContext::begin(1.0).trace);
    }
}
