//! Turning requests away before they are requests.
//!
//! Under more load than there is room for, what a refusal costs is what is left of the service. hyper, layers and a
//! future of its own cost more than all else of it, so the stream below hyper asks a [`Porter`] first, and sends its
//! answer itself. Only a request that came whole and alone is shown to him, on a connection of which hyper holds
//! nothing: whatever else it is goes the ordinary way, and meets the same limits there.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::head::{Found, Head};

/// Who stands before the front.
pub trait Porter: Send + Sync {
    /// Whether it may be that there is no room: if not, he need not look at requests at all.
    fn is_pressed(&self) -> bool;

    /// The answer, all of its bytes, to a request that is turned away; `None` lets it in, and so must be said to whatever
    /// is not exactly one request.
    fn turn_away(&self, peer: SocketAddr, request: &[u8]) -> Option<Bytes>;
}

/// The porter of one connection.
pub(super) struct Posted {
    pub(super) porter: Arc<dyn Porter>,
    pub(super) peer: SocketAddr,
    /// From then on answers have more to say: that the connection closes.
    pub(super) soon: Arc<CancellationToken>,
}

impl Posted {
    pub(super) fn turn_away(&self, request: &[u8]) -> Option<Bytes> {
        if !self.porter.is_pressed() || self.soon.is_cancelled() {
            return None;
        }
        // what no proxy may read otherwise, as for hyper
        let Found::End(_) = Head::START.read(request) else { return None };
        self.porter.turn_away(self.peer, request)
    }
}
