//! `sandbox --demo`: payments and authorizations in every state, so that the console has something to show.
//!
//! All of it goes the way that a wallet's goes: the payment core records, Alipay+ asks by signed JSON, an executor follows
//! the feed and reports what it returned, another consumer is behind and has set an event aside. A second time it changes
//! nothing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::Uri;
use tokio::time;

use super::super::exchange::Caller;
use crate::{
    domain::{
        amount::{Amount, Currency},
        id::{
            AcquirerId, AuthorizationId, FundReturnReference, PaymentRequestId, PspId, RefundId,
            Token,
        },
        key::{AuthorizationKey, PaymentKey},
        payment::Terms,
        record_fund_return::RecordFundReturn,
        record_payment::{Fact, RecordPayment},
        revoke_authorization::RevokeAuthorization,
        time::Timestamp,
        token::TokenKind,
    },
    engine::{self, Engine, RecordToken},
    grpc::follower::{CancellationEvent, EventKind, Follower, PartitionPosition, SubscribeRequest},
};

const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";
/// Behind, and with one event set aside.
const NOTIFIER: &str = "customer-notifier";
/// Returns money.
const EXECUTOR: &str = "refund-executor";

/// What the payment core tells before Alipay+ asks.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    Initiated,
    Paid,
    PaidDaysAgo,
    Refunded,
    Failed,
}

/// What becomes of it afterwards.
#[derive(Clone, Copy, PartialEq)]
enum After {
    Nothing,
    PaidLate,
    Returned,
    NotCancelled,
}

/// The payments: an id, what they cost, and what happens.
const PAYMENTS: [(&str, u64, &str, Before, After); 14] = [
    ("demo-returned-1", 4_990, "EUR", Before::Paid, After::Returned),
    ("demo-returned-2", 129_900, "JPY", Before::Paid, After::Returned),
    ("demo-due-1", 1_250, "EUR", Before::Paid, After::Nothing),
    ("demo-due-2", 78_000, "KRW", Before::Paid, After::Nothing),
    ("demo-late-success", 2_199, "USD", Before::Initiated, After::PaidLate),
    ("demo-late-success-returned", 999, "USD", Before::Nothing, After::Returned),
    ("demo-never-seen", 0, "EUR", Before::Nothing, After::Nothing),
    ("demo-unresolved-1", 3_400, "EUR", Before::Initiated, After::Nothing),
    ("demo-unresolved-2", 560, "GBP", Before::Initiated, After::Nothing),
    ("demo-failed-before", 1_000, "EUR", Before::Failed, After::Nothing),
    ("demo-too-late", 8_800, "EUR", Before::PaidDaysAgo, After::Nothing),
    ("demo-refunded", 6_000, "EUR", Before::Refunded, After::Nothing),
    ("demo-paid", 2_500, "EUR", Before::Paid, After::NotCancelled),
    ("demo-begun", 2_500, "EUR", Before::Initiated, After::NotCancelled),
];

/// Makes it.
pub(super) async fn play(
    engine: &Engine,
    caller: &Caller,
    bridge: SocketAddr,
    grpc: SocketAddr,
) -> anyhow::Result<()> {
    let demo = Demo { engine, caller, bridge };
    for (id, value, currency, before, after) in PAYMENTS {
        demo.payment(id, value, currency, before, after).await?;
    }
    demo.authorizations().await?;
    let follower = Follower::new(&format!("http://{grpc}"), None)?;
    let events = follow(&follower, EXECUTOR, usize::MAX, None).await?;
    for event in &events {
        demo.executed(event).await?;
    }
    follow(&follower, NOTIFIER, 6, Some("no e-mail address is known of this user")).await?;
    Ok(())
}

struct Demo<'a> {
    engine: &'a Engine,
    caller: &'a Caller,
    bridge: SocketAddr,
}

fn asking() -> engine::Caller {
    let deadline = Instant::now() + Duration::from_secs(5);
    engine::Caller { deadline, client: None, trace: None }
}

fn key(id: &str) -> anyhow::Result<PaymentKey> {
    Ok(PaymentKey { psp: PspId::parse(PSP)?, payment_request: PaymentRequestId::parse(id)? })
}

fn authorization(id: &str) -> anyhow::Result<AuthorizationKey> {
    Ok(AuthorizationKey { psp: PspId::parse(PSP)?, authorization: AuthorizationId::parse(id)? })
}

impl Demo<'_> {
    async fn record(&self, id: &str, fact: Fact) -> anyhow::Result<()> {
        let acquirer = Some(AcquirerId::parse(ACQUIRER)?);
        let command = RecordPayment { key: key(id)?, acquirer, fact };
        self.engine.record_payment(command, asking()).await?;
        Ok(())
    }

    /// Alipay+ asks, by signed JSON.
    async fn ask(&self, tail: &str, body: String) -> anyhow::Result<()> {
        let url: Uri = format!("http://{}/aps/api{tail}", self.bridge).parse()?;
        let signed = self.caller.sign(&url, body)?;
        self.caller.send(&signed).await?;
        Ok(())
    }

    async fn payment(
        &self,
        id: &str,
        value: u64,
        currency: &str,
        before: Before,
        after: After,
    ) -> anyhow::Result<()> {
        let days = if matches!(before, Before::PaidDaysAgo) { 5 } else { 0 };
        let now = jiff::Timestamp::now().as_millisecond();
        let initiated_at = Timestamp { unix_ms: now - days * 86_400_000 - 90_000 };
        let currency = Currency::parse(currency).context("a currency")?;
        let amount = Amount::new(value.max(1), currency).context("an amount")?;
        let terms = Terms { amount, initiated_at };
        match before {
            Before::Nothing => {}
            Before::Initiated => self.record(id, Fact::Initiated(terms)).await?,
            Before::Failed => {
                self.record(id, Fact::Initiated(terms)).await?;
                self.record(id, Fact::Failed { amount: Some(amount) }).await?;
            }
            Before::Paid | Before::PaidDaysAgo | Before::Refunded => {
                self.record(id, Fact::Succeeded(terms)).await?;
            }
        }
        if matches!(before, Before::Refunded) {
            let part = Amount::new(value / 2, currency).context("an amount")?;
            let refund = RefundId::parse("demo-refund-1")?;
            self.record(id, Fact::RefundStarted { id: refund.clone(), amount: part }).await?;
            self.record(id, Fact::RefundSucceeded { id: refund, amount: Some(part) }).await?;
        }
        if after == After::NotCancelled {
            return Ok(());
        }
        let body =
            format!(r#"{{"acquirerId":"{ACQUIRER}","pspId":"{PSP}","paymentRequestId":"{id}"}}"#);
        self.ask("/v1/payments/cancelPayment", body).await?;
        if after == After::PaidLate || id == "demo-late-success-returned" {
            self.record(id, Fact::Succeeded(terms)).await?;
        }
        Ok(())
    }

    async fn authorizations(&self) -> anyhow::Result<()> {
        for (id, token) in [
            ("demo-consent-stands", "demo-token-stands"),
            ("demo-consent-cancelled", "demo-token-cancelled"),
            ("demo-consent-revoked", "demo-token-revoked"),
        ] {
            let command = RecordToken {
                authorization: authorization(id)?,
                acquirer: AcquirerId::parse(ACQUIRER)?,
                token: Token::parse(token)?,
                kind: TokenKind::Access,
                expires_at: None,
                replaces: None,
                pass_through_info: None,
            };
            self.engine.record_token(command, asking()).await?;
        }
        // the second is of nobody's: INVALID_TOKEN
        for token in ["demo-token-cancelled", "demo-token-of-nobody"] {
            let body =
                format!(r#"{{"acquirerId":"{ACQUIRER}","pspId":"{PSP}","accessToken":"{token}"}}"#);
            self.ask("/v1/authorizations/cancelToken", body).await?;
        }
        let command = RevokeAuthorization { key: authorization("demo-consent-revoked")? };
        self.engine.revoke_authorization(command, asking()).await?;
        Ok(())
    }

    /// The executor's word, of what the demo says was returned.
    async fn executed(&self, event: &CancellationEvent) -> anyhow::Result<()> {
        let id = event.payment_request_id.as_deref().unwrap_or_default();
        let is_returned = |(of, .., after): &(&str, u64, &str, Before, After)| {
            *of == id && *after == After::Returned
        };
        if event.kind() != EventKind::FundReturnDue || !PAYMENTS.iter().any(is_returned) {
            return Ok(());
        }
        let reference = FundReturnReference::parse(&format!("transfer-of-{id}"))?;
        let command = RecordFundReturn { key: key(id)?, reference };
        self.engine.record_fund_return(command, asking()).await?;
        Ok(())
    }
}

/// How long a stream that says nothing has told all there is.
const SILENCE: Duration = Duration::from_millis(500);

/// Reads what there is, at most so many events, sets the first aside if told why, and acknowledges the rest.
async fn follow(
    follower: &Follower,
    consumer: &str,
    most: usize,
    park: Option<&str>,
) -> anyhow::Result<Vec<CancellationEvent>> {
    let request = SubscribeRequest { consumer: consumer.to_owned(), ..SubscribeRequest::default() };
    let mut stream = follower.subscribe(request).await?;
    let begun = stream.next().await?;
    let (subscription, epoch) = (begun.subscription_id, begun.epoch);
    let mut events = Vec::new();
    while events.len() < most {
        match time::timeout(SILENCE, stream.next()).await {
            Ok(said) => events.extend(said?.event),
            Err(_) => break,
        }
    }
    if let (Some(why), Some(first)) = (park, events.first()) {
        follower.park(consumer, (&subscription, epoch), first, why).await?;
    }
    let places: BTreeMap<u32, u64> =
        events.iter().map(|event| (event.partition, event.position)).collect();
    let place = |(partition, position)| PartitionPosition { partition, position };
    let positions = places.into_iter().map(place).collect();
    follower.acknowledge(consumer.to_owned(), (subscription, epoch), positions, Vec::new()).await?;
    Ok(events)
}
