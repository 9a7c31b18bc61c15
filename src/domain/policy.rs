//! What a wallet may configure about its decisions.

use std::collections::HashMap;

use super::{id::AcquirerId, window::CancelWindow};

/// Whether a cancel by another acquirer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcquirerCheck {
    /// Refused with `ACCESS_DENIED`.
    Enforce,
    /// Counted and let through, for onboarding. Applies to cancelPayment only: a token is a bearer secret, and nobody
    /// but its acquirer has a use for it. Changing this setting changes what such a caller hears on a repeat, and
    /// nobody else's answer.
    Observe,
}

/// The configured rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The window of acquirers that have none of their own.
    pub cancel_window: CancelWindow,
    /// Windows of single acquirers.
    pub cancel_windows: HashMap<AcquirerId, CancelWindow>,
    /// Whether a cancel by another acquirer is refused.
    pub acquirer_check: AcquirerCheck,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            cancel_window: CancelWindow::ALIPAYPLUS,
            cancel_windows: HashMap::new(),
            acquirer_check: AcquirerCheck::Enforce,
        }
    }
}

impl Policy {
    /// The window for payments of `acquirer`.
    pub fn cancel_window(&self, acquirer: &AcquirerId) -> CancelWindow {
        self.cancel_windows.get(acquirer).copied().unwrap_or(self.cancel_window)
    }
}
