//! JSON Lines: the wallet's history, one payment or token a line, and events that consumers of the feed kept.
//!
//! A message names a field and what it must be, and never its value: a line may hold a token.

use std::{collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::{
    domain::{
        amount::{AMOUNT_MINOR_UNITS_MAX, Amount, Currency},
        event::{Event, EventCause, EventKind},
        id::{
            AcquirerId, AuthorizationId, FundReturnReference, Illegal, PassThroughInfo,
            PaymentRequestId, PspId, RefundId, Token, TraceId,
        },
        import_payment::{FundReturn, ImportPayment, Told},
        key::{AuthorizationKey, PaymentKey, Subject},
        payment::{Life, Refund, RefundState},
        reconcile::Kept,
        result::ResultCode,
        time::Timestamp,
        token::TokenKind,
    },
    engine::ImportToken,
    store::Place,
};

/// Longest line, in bytes: what the longest passThroughInfo needs, every character escaped.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(String);

impl Wrong {
    /// A field, and what it must be.
    pub fn of(field: &str, why: &str) -> Self {
        Self(format!("{field}: {why}"))
    }
}

/// Reads one payment of the wallet's history.
pub fn payment(text: &str) -> Result<ImportPayment, Wrong> {
    let mut object = Object::parse(text)?;
    let key = PaymentKey {
        psp: object.required("pspId", PspId::parse)?,
        payment_request: object.required("paymentRequestId", PaymentRequestId::parse)?,
    };
    let amount = object.amount("paymentAmount")?;
    let cancelled_at = object.time("cancelledAt")?;
    let code = object.choice("resultCode", ResultCode::from_wire)?;
    let cancel = match (cancelled_at, code) {
        (Some(at), code) => Some((code.unwrap_or(ResultCode::Success), at)),
        (None, Some(_)) => return Err(Wrong::of("cancelledAt", "must be set with resultCode")),
        (None, None) => None,
    };
    let told = Told {
        acquirer: object.id("acquirerId", AcquirerId::parse)?,
        amount,
        initiated_at: object.time("initiatedAt")?,
        life: object.choice("state", life)?.ok_or(Wrong::of("state", "must be set"))?,
        refunds: refunds(&mut object)?,
        cancel,
        fund_return: object.object("fundReturn")?.map(fund_return).transpose()?,
    };
    object.end()?;
    let history = told.payment().map_err(|incomplete| Wrong(incomplete.to_string()))?;
    Ok(ImportPayment { key, history })
}

/// Reads one token of the wallet's history.
pub fn token(text: &str) -> Result<ImportToken, Wrong> {
    let mut object = Object::parse(text)?;
    let token = ImportToken {
        authorization: AuthorizationKey {
            psp: object.required("pspId", PspId::parse)?,
            authorization: object.required("authorizationId", AuthorizationId::parse)?,
        },
        acquirer: object.required("acquirerId", AcquirerId::parse)?,
        token: object.required("token", Token::parse)?,
        kind: object.choice("kind", kind)?.ok_or(Wrong::of("kind", "must be set"))?,
        expires_at: object.time("expiresAt")?,
        replaces: object.id("replaces", Token::parse)?,
        cancelled_at: object.time("cancelledAt")?,
        revoked_at: object.time("revokedAt")?,
        pass_through_info: object.id("passThroughInfo", PassThroughInfo::parse)?,
    };
    object.end()?;
    let own = |replaced: &Token| replaced.expose() == token.token.expose();
    if token.replaces.as_ref().is_some_and(own) {
        return Err(Wrong::of("replaces", "a token cannot replace itself"));
    }
    Ok(token)
}

/// Reads one event as a consumer of the feed kept it, with what its executor did.
///
/// A consumer may keep more than it was told, so what is not known here is not looked at.
pub fn event(text: &str) -> Result<Kept, Wrong> {
    let mut object = Object::parse(text)?;
    let kind = object.choice("kind", event_kind)?.ok_or(Wrong::of("kind", "must be set"))?;
    let psp = object.required("pspId", PspId::parse)?;
    let amount = object.amount("amount")?;
    let (kind, subject) = match kind {
        Announced::AuthorizationRevoked => {
            let authorization = object.required("authorizationId", AuthorizationId::parse)?;
            let key = AuthorizationKey { psp, authorization };
            (EventKind::AuthorizationRevoked, Subject::Authorization(key))
        }
        payment @ (Announced::PaymentCancelled | Announced::FundReturnDue) => {
            let payment_request = object.required("paymentRequestId", PaymentRequestId::parse)?;
            let subject = Subject::Payment(PaymentKey { psp, payment_request });
            if payment == Announced::PaymentCancelled {
                (EventKind::PaymentCancelled, subject)
            } else {
                let amount = amount.ok_or(Wrong::of("amount", "must be set with FundReturnDue"))?;
                (EventKind::FundReturnDue(amount), subject)
            }
        }
    };
    let cause = object.choice("cause", event_cause)?;
    let cause = cause.unwrap_or(match kind {
        EventKind::PaymentCancelled | EventKind::FundReturnDue(_) => EventCause::CancelPayment,
        EventKind::AuthorizationRevoked => EventCause::CancelToken,
    });
    let at = object.time("decidedAt")?.ok_or(Wrong::of("decidedAt", "must be set"))?;
    let result = match cause {
        EventCause::CancelPayment | EventCause::LateSuccess | EventCause::CancelToken => {
            Some(ResultCode::Success)
        }
        EventCause::RevokeAuthorization => None,
    };
    let trace = match object.text("traceId")?.filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => {
            let wrong = Wrong::of("traceId", "must be 32 lower-case hex digits");
            Some(TraceId::parse(&text).ok_or(wrong)?)
        }
    };
    let acquirer = object.id("acquirerId", AcquirerId::parse)?;
    let pass_through_info = object.id("passThroughInfo", PassThroughInfo::parse)?;
    let event = Event { kind, subject, acquirer, cause, at, result, pass_through_info, trace };
    if object.text("eventId")?.is_some_and(|id| id != event.id().to_string()) {
        return Err(Wrong::of(
            "eventId",
            "is not the id of this event: kind, pspId or id were changed",
        ));
    }
    let returned = match object.object("fundReturn")? {
        None => None,
        Some(_) if !matches!(kind, EventKind::FundReturnDue(_)) => {
            return Err(Wrong::of("fundReturn", "belongs to FundReturnDue alone"));
        }
        Some(mut told) => {
            let reference = told.required("reference", FundReturnReference::parse)?;
            Some((reference, told.time("returnedAt")?.unwrap_or(at)))
        }
    };
    Ok(Kept { event, returned })
}

/// The epoch and the place a kept event had, if its line tells: numbers, as texts or not.
pub fn place(text: &str) -> Option<(u64, Place)> {
    let mut object = Object::parse(text).ok()?;
    let mut number = |field| match object.take(field)? {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let (epoch, partition, position) =
        (number("epoch")?, number("partition")?, number("position")?);
    Some((epoch, Place { partition: u16::try_from(partition).ok()?, position }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Announced {
    PaymentCancelled,
    FundReturnDue,
    AuthorizationRevoked,
}

/// As JSON or the proto spells it: `PaymentCancelled`, `PAYMENT_CANCELLED`, `EVENT_KIND_PAYMENT_CANCELLED`.
fn event_kind(text: &str) -> Option<Announced> {
    match &*letters(text, "eventkind") {
        "paymentcancelled" => Some(Announced::PaymentCancelled),
        "fundreturndue" => Some(Announced::FundReturnDue),
        "authorizationrevoked" => Some(Announced::AuthorizationRevoked),
        _ => None,
    }
}

fn event_cause(text: &str) -> Option<EventCause> {
    match &*letters(text, "eventcause") {
        "cancelpayment" => Some(EventCause::CancelPayment),
        "latesuccess" => Some(EventCause::LateSuccess),
        "canceltoken" => Some(EventCause::CancelToken),
        "revokeauthorization" => Some(EventCause::RevokeAuthorization),
        _ => None,
    }
}

fn letters(text: &str, prefix: &str) -> String {
    let letters = text.chars().filter(char::is_ascii_alphabetic);
    let letters: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    letters.strip_prefix(prefix).unwrap_or(&letters).to_owned()
}

fn life(text: &str) -> Option<Life> {
    match text {
        "unknown" => Some(Life::Unknown),
        "initiated" => Some(Life::Initiated),
        "succeeded" => Some(Life::Succeeded),
        "failed" => Some(Life::Failed),
        _ => None,
    }
}

fn kind(text: &str) -> Option<TokenKind> {
    match text {
        "access" => Some(TokenKind::Access),
        "refresh" => Some(TokenKind::Refresh),
        _ => None,
    }
}

fn refunds(object: &mut Object) -> Result<Vec<Refund>, Wrong> {
    let refunds = match object.take("refunds") {
        None => return Ok(Vec::new()),
        Some(Value::Array(refunds)) => refunds,
        Some(_) => return Err(Wrong::of(&object.name("refunds"), "must be a list")),
    };
    let refund = |(place, value): (usize, Value)| {
        let mut object = Object::within(&object.name(&format!("refunds[{place}]")), value)?;
        let state = |text: &str| match text {
            "reserved" => Some(RefundState::Reserved),
            "succeeded" => Some(RefundState::Done),
            "failed" => Some(RefundState::Released),
            _ => None,
        };
        let missing = |field: &str| Wrong::of(&format!("refunds[{place}].{field}"), "must be set");
        let refund = Refund {
            id: object.required("refundId", RefundId::parse)?,
            amount: object.amount("amount")?.ok_or(missing("amount"))?,
            state: object.choice("state", state)?.ok_or(missing("state"))?,
        };
        object.end()?;
        Ok(refund)
    };
    refunds.into_iter().enumerate().map(refund).collect()
}

fn fund_return(mut object: Object) -> Result<FundReturn, Wrong> {
    let state = |text: &str| match text {
        "due" => Some(false),
        "returned" => Some(true),
        _ => None,
    };
    let missing = |field: &str| Wrong::of(&format!("fundReturn.{field}"), "must be set");
    let returned = object.choice("state", state)?.ok_or(missing("state"))?;
    let since = object.time("dueAt")?;
    let told = if returned {
        let at = object.time("returnedAt")?.ok_or(missing("returnedAt"))?;
        let reference = object.required("reference", FundReturnReference::parse)?;
        FundReturn::Returned { since, at, reference }
    } else {
        FundReturn::Due { since }
    };
    object.end()?;
    Ok(told)
}

/// A JSON object whose fields are taken one by one, so that what is left over is known to be a mistake.
pub(super) struct Object {
    /// What stands before its fields' names in messages.
    prefix: String,
    fields: BTreeMap<String, Value>,
}

impl Object {
    /// Reads a line.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let fields: Fields = serde_json::from_str(text).map_err(|error| {
            // serde's own words could hold a value
            let what = match error.classify() {
                serde_json::error::Category::Data => "must be one object, each field once",
                serde_json::error::Category::Eof => "ends too early",
                serde_json::error::Category::Io | serde_json::error::Category::Syntax => {
                    "is not JSON"
                }
            };
            Wrong(format!("the line {what} (column {})", error.column()))
        })?;
        Ok(Self { prefix: String::new(), fields: fields.0 })
    }

    fn within(name: &str, value: Value) -> Result<Self, Wrong> {
        let Value::Object(fields) = value else { return Err(Wrong::of(name, "must be an object")) };
        Ok(Self { prefix: format!("{name}."), fields: fields.into_iter().collect() })
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    /// A field's value; `null` is none.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    fn text(&mut self, field: &str) -> Result<Option<String>, Wrong> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Wrong::of(&self.name(field), "must be a text")),
        }
    }

    /// A text that a type checks.
    pub(super) fn id<T>(
        &mut self,
        field: &str,
        parse: impl Fn(&str) -> Result<T, Illegal>,
    ) -> Result<Option<T>, Wrong> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        parse(&text).map(Some).map_err(|why| Wrong::of(&self.name(field), &why.to_string()))
    }

    /// The same, where it must be set.
    pub(super) fn required<T>(
        &mut self,
        field: &str,
        parse: impl Fn(&str) -> Result<T, Illegal>,
    ) -> Result<T, Wrong> {
        let missing = Wrong::of(&self.name(field), &Illegal::Missing.to_string());
        self.id(field, parse)?.ok_or(missing)
    }

    /// One of a few words.
    pub(super) fn choice<T>(
        &mut self,
        field: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Wrong> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        let wrong = Wrong::of(&self.name(field), "is none of the words that may stand here");
        parse(&text).map(Some).ok_or(wrong)
    }

    /// A moment.
    pub(super) fn time(&mut self, field: &str) -> Result<Option<Timestamp>, Wrong> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        let moment = text.parse::<jiff::Timestamp>().ok();
        let moment = moment.and_then(|moment| Timestamp::from_unix_ms(moment.as_millisecond()));
        let why = "must be a time of ISO 8601 with its offset, as 2026-05-28T12:12:12+08:00";
        moment.map(Some).ok_or_else(|| Wrong::of(&self.name(field), why))
    }

    /// An object within.
    pub(super) fn object(&mut self, field: &str) -> Result<Option<Self>, Wrong> {
        let name = self.name(field);
        self.take(field).map(|value| Self::within(&name, value)).transpose()
    }

    /// `{"value": "1999", "currency": "EUR"}`; the value in minor units, as a text or a number.
    pub(super) fn amount(&mut self, field: &str) -> Result<Option<Amount>, Wrong> {
        let Some(mut object) = self.object(field)? else { return Ok(None) };
        let value = match object.take("value") {
            Some(Value::String(text)) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok()
            }
            Some(Value::Number(number)) => number.as_u64(),
            _ => None,
        };
        let currency = object.choice("currency", Currency::parse)?;
        let amount = value.zip(currency).and_then(|(value, currency)| Amount::new(value, currency));
        object.end()?;
        amount.map(Some).ok_or_else(|| {
            let why = format!(
                "must have a value of 1 to {AMOUNT_MINOR_UNITS_MAX} minor units and a currency of ISO 4217, as \
                 {{\"value\": \"1999\", \"currency\": \"EUR\"}}"
            );
            Wrong::of(&self.name(field), &why)
        })
    }

    /// Refuses what is left. A name that is none of ours is not repeated: an export that is keyed by token has one there.
    pub(super) fn end(self) -> Result<(), Wrong> {
        let Some(field) = self.fields.keys().next() else { return Ok(()) };
        if FIELDS.contains(&field.as_str()) {
            return Err(Wrong::of(&self.name(field), "does not stand here"));
        }
        let likeness = |known: &&str| strsim::normalized_damerau_levenshtein(field, known);
        let nearest = FIELDS.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let meant = nearest.filter(|known| likeness(known) >= 0.6);
        let meant = meant.map(|known| format!("; did you mean `{known}`?"));
        let within = self.prefix.trim_end_matches('.');
        let within = if within.is_empty() { String::new() } else { format!(" in {within}") };
        Err(Wrong(format!("an unknown field{within}{}", meant.unwrap_or_default())))
    }
}

/// Every field that a line of history may have.
const FIELDS: [&str; 24] = [
    "acquirerId",
    "amount",
    "authorizationId",
    "cancelledAt",
    "currency",
    "dueAt",
    "expiresAt",
    "fundReturn",
    "initiatedAt",
    "kind",
    "passThroughInfo",
    "paymentAmount",
    "paymentRequestId",
    "pspId",
    "reference",
    "refundId",
    "refunds",
    "replaces",
    "resultCode",
    "returnedAt",
    "revokedAt",
    "state",
    "token",
    "value",
];

/// The fields of an object, none of them twice.
struct Fields(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.insert(name, value).is_some() {
                        return Err(A::Error::custom("a field is there twice"));
                    }
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::payment::{Funds, State};

    const PAID: &str = r#""pspId":"p","paymentRequestId":"r","acquirerId":"a","paymentAmount":{"value":"1999","currency":"EUR"},"initiatedAt":"2026-05-28T12:12:12+08:00""#;

    fn wrong(line: &str) -> String {
        payment(line).expect_err(line).to_string()
    }

    #[test]
    fn a_payment_is_read_with_everything_it_can_tell() {
        let line = format!(
            r#"{{{PAID},"state":"succeeded","refunds":[{{"refundId":"1","amount":{{"value":5,"currency":"EUR"}},"state":"failed"}}],"cancelledAt":"2026-05-28T13:00:00Z","resultCode":"SUCCESS","fundReturn":{{"state":"returned","returnedAt":"2026-05-28T13:00:05Z","reference":"x"}}}}"#
        );
        let read = payment(&line).expect("a payment");
        assert_eq!(read.history.funds(), Funds::Returned);
        assert_eq!(read.history.refunds().len(), 1);
        let tombstone = r#"{"pspId":"p","paymentRequestId":"r","state":"unknown","cancelledAt":"2026-05-28T13:00:00Z"}"#;
        let read = payment(tombstone).expect("a tombstone");
        assert!(matches!(read.history.state, State::Cancelled(_)));
    }

    #[test]
    fn a_name_that_is_none_of_ours_is_not_repeated() {
        let keyed = token(
            r#"{"pspId":"p","authorizationId":"a","acquirerId":"q","token":"t","kind":"access","281006F588":1}"#,
        );
        assert_eq!(keyed.expect_err("an unknown field").to_string(), "an unknown field");
        let misspelt = wrong(&format!(r#"{{{PAID},"state":"succeeded","refundz":[]}}"#));
        assert_eq!(misspelt, "an unknown field; did you mean `refunds`?");
    }

    #[test]
    fn a_wrong_line_is_told_by_field() {
        for (line, part) in [
            (String::new(), "ends too early"),
            ("[]".to_owned(), "must be one object"),
            (format!(r#"{{{PAID},"state":"succeeded","state":"failed"}}"#), "each field once"),
            (format!("{{{PAID}}}"), "state: must be set"),
            (format!(r#"{{{PAID},"state":"paid"}}"#), "state: is none of the words"),
            (format!(r#"{{{PAID},"state":"succeeded","amount":5}}"#), "amount: does not stand here"),
            (r#"{"pspId":5}"#.to_owned(), "pspId: must be a text"),
            (r#"{"pspId":" p"}"#.to_owned(), "pspId: starts or ends with white space"),
            (
                r#"{"pspId":"p","paymentRequestId":"r","state":"initiated"}"#.to_owned(),
                "acquirerId, paymentAmount and initiatedAt must be set",
            ),
            (
                r#"{"pspId":"p","paymentRequestId":"r","paymentAmount":{"value":"1.5","currency":"EUR"},"state":"failed"}"#
                    .to_owned(),
                "paymentAmount: must have a value of 1 to",
            ),
            (
                r#"{"pspId":"p","paymentRequestId":"r","initiatedAt":"yesterday","state":"failed"}"#
                    .to_owned(),
                "initiatedAt: must be a time",
            ),
            (
                format!(r#"{{{PAID},"state":"succeeded","cancelledAt":"2026-05-28T13:00:00Z"}}"#),
                "must say what became of the money",
            ),
        ] {
            let told = wrong(&line);
            assert!(told.contains(part), "{line}: {told}");
        }
    }

    #[test]
    fn a_token_is_in_no_message() {
        for line in [
            r#"{"pspId":"p","authorizationId":"g","acquirerId":"a","token":"SECRET ","kind":"access"}"#,
            r#"{"pspId":"p","authorizationId":"g","acquirerId":"a","token":["SECRET"],"kind":"access"}"#,
            r#"{"pspId":"p","authorizationId":"g","acquirerId":"a","token":"t","kind":"SECRET"}"#,
            r#"{"pspId":"p","authorizationId":"g","acquirerId":"a","token":"t","kind":"access","expiresAt":"SECRET"}"#,
            r#"{"pspId":"p","token":"SECRET"#,
            r#"{"token":"SECRET","token":"SECRET"}"#,
        ] {
            let told = token(line).expect_err(line).to_string();
            assert!(!told.contains("SECRET"), "{told}");
        }
    }
}
