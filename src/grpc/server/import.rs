//! The ImportService: history in commits of at most a thousand records.

use tonic::{Request, Response, Status};
use tonic_types::FieldViolation;

use super::{Server, caller, failed, wire};
use crate::grpc::{convert::import, status};

/// Most records in one call.
const RECORDS_MAX: usize = 1_000;

fn check(field: &str, records: usize) -> Result<(), Status> {
    if (1..=RECORDS_MAX).contains(&records) {
        return Ok(());
    }
    Err(status::illegal(vec![FieldViolation::new(
        field,
        format!("not 1 to {RECORDS_MAX} records"),
    )]))
}

/// Splits what can be asked of the engine from what cannot, and remembers the places.
struct Split<T> {
    good: Vec<T>,
    /// What is wrong with each record; none with those that are asked of the engine.
    wrong: Vec<Option<String>>,
}

impl<T> Split<T> {
    fn of(records: impl Iterator<Item = Result<T, String>>) -> Self {
        let (mut good, mut wrong) = (Vec::new(), Vec::new());
        for record in records {
            match record {
                Ok(record) => {
                    good.push(record);
                    wrong.push(None);
                }
                Err(why) => wrong.push(Some(why)),
            }
        }
        Self { good, wrong }
    }
}

/// The answers in the order of the records.
fn join(
    wrong: Vec<Option<String>>,
    answers: impl Iterator<Item = wire::ImportResult>,
) -> Vec<wire::ImportResult> {
    let mut answers = answers;
    wrong
        .into_iter()
        .filter_map(|wrong| match wrong {
            Some(why) => Some(import::rejected(why)),
            None => answers.next(),
        })
        .collect()
}

#[tonic::async_trait]
impl wire::import_service_server::ImportService for Server {
    async fn import_payments(
        &self,
        request: Request<wire::ImportPaymentsRequest>,
    ) -> Result<Response<wire::ImportPaymentsResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let payments = &request.get_ref().payments;
        check("payments", payments.len())?;
        let Split { good, wrong } = Split::of(payments.iter().map(import::payment));
        let decided = self.engine.import_payments(good, caller).await;
        let answers = decided.map_err(|error| failed(&error))?;
        let results = join(wrong, answers.into_iter().map(import::payment_outcome));
        Ok(Response::new(wire::ImportPaymentsResponse { results }))
    }

    async fn import_tokens(
        &self,
        request: Request<wire::ImportTokensRequest>,
    ) -> Result<Response<wire::ImportTokensResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let tokens = &request.get_ref().tokens;
        check("tokens", tokens.len())?;
        let Split { good, wrong } = Split::of(tokens.iter().map(import::token));
        let decided = self.engine.import_tokens(good, caller).await;
        let answers = decided.map_err(|error| failed(&error))?;
        let results = join(wrong, answers.into_iter().map(import::token_outcome));
        Ok(Response::new(wire::ImportTokensResponse { results }))
    }
}
