//! One transaction of a tool's, which may look into a suspect store and mend it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::store::{Batch, Changes, Error, Known, Store, Wanted};

/// For one transaction, trying again included.
const PATIENCE: Duration = Duration::from_mins(1);

/// Loads what is wanted, decides, commits; answers what was decided.
pub(super) async fn transact<T: Send + 'static>(
    store: &Arc<dyn Store>,
    wanted: Wanted,
    decide: impl FnMut(Known) -> (T, Changes) + Send + 'static,
) -> Result<T, Error> {
    let answer = Arc::new(Mutex::new(None));
    let deadline = Instant::now() + PATIENCE;
    let batch = Mending { wanted, decide, answer: Arc::clone(&answer), deadline };
    let (_, done) = store.commit(Box::new(batch)).await;
    done?;
    let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
    answer.ok_or_else(|| Error::CommitUnknown("the store committed without deciding".into()))
}

struct Mending<T, F> {
    wanted: Wanted,
    decide: F,
    answer: Arc<Mutex<Option<T>>>,
    deadline: Instant,
}

impl<T: Send, F: FnMut(Known) -> (T, Changes) + Send> Batch for Mending<T, F> {
    fn wanted(&self) -> Wanted {
        Wanted {
            payments: self.wanted.payments.clone(),
            authorizations: self.wanted.authorizations.clone(),
            tokens: self.wanted.tokens.clone(),
        }
    }

    fn decide(&mut self, known: Known) -> Changes {
        let (answer, changes) = (self.decide)(known);
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        changes
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn although_suspect(&self) -> bool {
        true
    }
}
