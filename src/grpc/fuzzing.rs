//! Doors for the fuzz targets of `fuzz/` and for nobody else: messages as bytes into the conversions of the services.
//!
//! They decide and check nothing. `None`: the bytes are no such message, so that tonic would have refused them.

use prost::Message;
use tonic::Status;

use super::{convert, status, wire};
use crate::{
    domain::{
        cancel_payment::CancelPayment,
        consumer::{
            ConsumerName, Follower, Place, acknowledge::Acknowledge, forget::Forget,
            redrive::Redrive, subscribe::Subscribe,
        },
        event::EventId,
        id::{PspId, Token},
        import_payment::ImportPayment,
        key::{Partitions, PaymentKey},
        payment::Payment,
        record_fund_return::RecordFundReturn,
        record_payment::RecordPayment,
        result::ResultCode,
        revoke_authorization::RevokeAuthorization,
    },
    engine::{CancelToken, ImportToken, RecordToken},
};

/// What a conversion makes of bytes.
pub type Read<T> = Option<Result<T, Status>>;

macro_rules! doors {
    ($($name:ident: $message:ident => $value:ty;)*) => {$(
        /// The conversion of this name.
        pub fn $name(bytes: &[u8]) -> Read<$value> {
            wire::$message::decode(bytes).ok().as_ref().map(convert::$name)
        }
    )*};
}

doors! {
    cancel_payment: CancelPaymentRequest => CancelPayment;
    cancel_token: CancelTokenRequest => CancelToken;
    record_payment: RecordPaymentRequest => RecordPayment;
    get_payment: GetPaymentRequest => PaymentKey;
    record_fund_return: RecordFundReturnRequest => RecordFundReturn;
    record_token: RecordTokenRequest => RecordToken;
    introspect_token: IntrospectTokenRequest => (PspId, Token);
    revoke_authorization: RevokeAuthorizationRequest => RevokeAuthorization;
}

/// How many outstanding payments are asked for.
pub fn list_outstanding_payments(bytes: &[u8]) -> Read<u32> {
    let request = wire::ListOutstandingPaymentsRequest::decode(bytes).ok()?;
    Some(convert::list_outstanding_payments(request).map(|(_, count)| count))
}

/// A payment of history, or what is wrong with it.
pub fn import_payment(bytes: &[u8]) -> Option<Result<ImportPayment, String>> {
    wire::Payment::decode(bytes).ok().as_ref().map(convert::import::payment)
}

/// A token of history, or what is wrong with it.
pub fn import_token(bytes: &[u8]) -> Option<Result<ImportToken, String>> {
    wire::HistoricToken::decode(bytes).ok().as_ref().map(convert::import::token)
}

/// The way back.
pub fn payment_asked(payment: &ImportPayment) -> Vec<u8> {
    convert::import::payment_asked(payment).encode_to_vec()
}

/// The way back.
pub fn token_asked(token: &ImportToken) -> Vec<u8> {
    convert::import::token_asked(token).encode_to_vec()
}

/// What GetPayment tells of a payment; its first field is what an import may be told.
pub fn payment_told(key: &PaymentKey, payment: &Payment) -> Vec<u8> {
    let told = convert::payment_told(key, payment);
    told.payment.map(|payment| payment.encode_to_vec()).unwrap_or_default()
}

/// The final refusal that a client of the core takes a status for.
pub fn refusal(status: &Status) -> Option<ResultCode> {
    status::refusal(status).map(|(code, _)| code)
}

/// The code that a client of the core takes a response of CancelPayment for.
pub fn decided(bytes: &[u8]) -> Option<ResultCode> {
    convert::decided(wire::CancelPaymentResponse::decode(bytes).ok()?.result.as_ref())
}

/// A stream of the feed.
pub fn subscribe(bytes: &[u8], identity: &str, all: Partitions) -> Read<(ConsumerName, Subscribe)> {
    let request = wire::SubscribeRequest::decode(bytes).ok()?;
    Some(convert::feed::subscribe(&request, Some(identity.into()), all))
}

/// An acknowledgement.
pub fn acknowledge(
    bytes: &[u8],
    identity: &str,
    all: Partitions,
) -> Read<(ConsumerName, Acknowledge)> {
    let request = wire::AcknowledgeRequest::decode(bytes).ok()?;
    Some(convert::feed::acknowledge(&request, Some(identity.into()), all))
}

/// What is parked: whose, where, which event, why.
pub type Parked = (ConsumerName, Follower, u64, Place, EventId, Box<str>);

/// An event that is set aside.
pub fn park(bytes: &[u8], identity: &str, all: Partitions) -> Read<Parked> {
    let request = wire::ParkRequest::decode(bytes).ok()?;
    let park = convert::feed::park(&request, Some(identity.into()), all);
    Some(park.map(|it| (it.consumer, it.follower, it.epoch, it.place, it.event, it.reason)))
}

/// What comes again.
pub fn redrive(bytes: &[u8]) -> Read<(ConsumerName, Redrive)> {
    wire::RedriveRequest::decode(bytes).ok().as_ref().map(convert::feed::redrive)
}

/// Who is forgotten.
pub fn forget(bytes: &[u8], identity: &str) -> Read<(ConsumerName, Forget)> {
    let request = wire::DeleteConsumerRequest::decode(bytes).ok()?;
    Some(convert::feed::forget(&request, Some(identity.into())))
}

/// A page of parked events: whose, behind which, how many.
pub fn list_parked(bytes: &[u8]) -> Read<(ConsumerName, Option<Place>, usize)> {
    wire::ListParkedRequest::decode(bytes).ok().as_ref().map(convert::feed::list_parked)
}
