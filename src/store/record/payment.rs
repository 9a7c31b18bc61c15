//! Payments as columns.

use serde_json::{Value, json};

use super::{Sum, Table, VerdictRecord, minor_units, time};
use crate::{
    domain::{
        amount::{Amount, Currency},
        id::{AcquirerId, FundReturnReference, RefundId},
        key::PaymentKey,
        payment::{
            Cancelled, Money, Payment, Refund, RefundState, State, Succeeded, Terms, Untouched,
        },
    },
    store::{Error, Outstanding},
};

const TABLE: Table = Table("payment");

// the numbers in the columns `state` and `money`: never change one
const INITIATED: i64 = 1;
const FAILED: i64 = 2;
const SUCCEEDED: i64 = 3;
const CANCELLED: i64 = 4;

const UNTOUCHED_UNKNOWN: i64 = 1;
const UNTOUCHED_INITIATED: i64 = 2;
const UNTOUCHED_FAILED: i64 = 3;
const DUE: i64 = 4;
const RETURNED: i64 = 5;

/// A payment's columns, its key aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct PaymentRecord {
    pub(in crate::store) state: i64,
    pub(in crate::store) acquirer_id: Option<String>,
    pub(in crate::store) recorded_at: Option<i64>,
    pub(in crate::store) amount: Option<i64>,
    pub(in crate::store) currency: Option<String>,
    pub(in crate::store) initiated_at: Option<i64>,
    pub(in crate::store) verdict: VerdictRecord,
    pub(in crate::store) refunds: Option<String>,
    pub(in crate::store) money: Option<i64>,
    pub(in crate::store) return_amount: Option<i64>,
    pub(in crate::store) return_currency: Option<String>,
    pub(in crate::store) return_since: Option<i64>,
    pub(in crate::store) returned_at: Option<i64>,
    pub(in crate::store) return_reference: Option<String>,
}

impl PaymentRecord {
    /// The number in the column `money` of payments that are outstanding in this way: their partial index has it.
    pub(in crate::store) const fn outstanding(kind: Outstanding) -> i64 {
        match kind {
            Outstanding::FundReturnDue => DUE,
            Outstanding::Unresolved => UNTOUCHED_INITIATED,
        }
    }

    /// Since when people have to look after it, if they have to.
    pub(in crate::store) const fn outstanding_since(&self) -> Option<i64> {
        match self.money {
            Some(DUE) => self.return_since,
            Some(UNTOUCHED_INITIATED) => self.verdict.at,
            _ => None,
        }
    }

    /// As it is written.
    pub(in crate::store) fn of(payment: &Payment) -> Self {
        let (state, money) = match &payment.state {
            State::Initiated(_) => (INITIATED, None),
            State::Failed(_) => (FAILED, None),
            State::Succeeded(_) => (SUCCEEDED, None),
            State::Cancelled(cancelled) => (CANCELLED, Some(&cancelled.money)),
        };
        let (money, due, returned) = match money {
            None => (None, None, None),
            Some(Money::Untouched(Untouched::Unknown)) => (Some(UNTOUCHED_UNKNOWN), None, None),
            Some(Money::Untouched(Untouched::Initiated)) => (Some(UNTOUCHED_INITIATED), None, None),
            Some(Money::Untouched(Untouched::Failed)) => (Some(UNTOUCHED_FAILED), None, None),
            Some(Money::Due { amount, since }) => (Some(DUE), Some((*amount, *since)), None),
            Some(Money::Returned { amount, since, at, reference }) => {
                (Some(RETURNED), Some((*amount, *since)), Some((*at, reference)))
            }
        };
        let terms = payment.terms();
        let currency = |amount: Amount| amount.currency().as_str().to_owned();
        Self {
            state,
            acquirer_id: payment.acquirer.as_ref().map(AcquirerId::as_str).map(str::to_owned),
            recorded_at: payment.recorded_at.map(|at| at.unix_ms),
            amount: terms.map(|terms| minor_units(terms.amount)),
            currency: terms.map(|terms| currency(terms.amount)),
            initiated_at: terms.map(|terms| terms.initiated_at.unix_ms),
            verdict: VerdictRecord::of(payment.verdict()),
            refunds: refunds_text(payment.refunds()),
            money,
            return_amount: due.map(|(amount, _)| minor_units(amount)),
            return_currency: due.map(|(amount, _)| currency(amount)),
            return_since: due.map(|(_, since)| since.unix_ms),
            returned_at: returned.map(|(at, _)| at.unix_ms),
            return_reference: returned.map(|(_, reference)| reference.as_str().to_owned()),
        }
    }

    /// As it is read.
    pub(in crate::store) fn read(&self) -> Result<Payment, Error> {
        let acquirer = TABLE.acquirer(self.acquirer_id.as_deref())?;
        let amount = TABLE.amount(self.amount, self.currency.as_deref())?;
        let terms = match (amount, time(self.initiated_at)) {
            (Some(amount), Some(initiated_at)) => Some(Terms { amount, initiated_at }),
            (None, None) => None,
            _ => return Err(TABLE.damaged()),
        };
        let verdict = self.verdict.read(TABLE)?;
        let refunds = self.read_refunds(amount)?;
        let state = match (self.state, terms, verdict, self.read_money()?) {
            (INITIATED, Some(terms), None, None) => State::Initiated(terms),
            (FAILED, terms, None, None) => State::Failed(terms),
            (SUCCEEDED, Some(terms), refused, None) => {
                State::Succeeded(Succeeded { terms, refunds, refused })
            }
            (CANCELLED, terms, Some(verdict), Some(money)) => {
                State::Cancelled(Cancelled { verdict, terms, refunds, money })
            }
            _ => return Err(TABLE.damaged()),
        };
        Ok(Payment { acquirer, recorded_at: time(self.recorded_at), state })
    }

    fn read_money(&self) -> Result<Option<Money>, Error> {
        let amount = TABLE.amount(self.return_amount, self.return_currency.as_deref())?;
        let (since, at) = (time(self.return_since), time(self.returned_at));
        let reference = self.return_reference.as_deref();
        let reference = TABLE.maybe(reference, |text| FundReturnReference::parse(text).ok())?;
        Ok(Some(match (self.money, amount, since, at, reference) {
            (None, None, None, None, None) => return Ok(None),
            (Some(UNTOUCHED_UNKNOWN), None, None, None, None) => {
                Money::Untouched(Untouched::Unknown)
            }
            (Some(UNTOUCHED_INITIATED), None, None, None, None) => {
                Money::Untouched(Untouched::Initiated)
            }
            (Some(UNTOUCHED_FAILED), None, None, None, None) => Money::Untouched(Untouched::Failed),
            (Some(DUE), Some(amount), Some(since), None, None) => Money::Due { amount, since },
            (Some(RETURNED), Some(amount), Some(since), Some(at), Some(reference)) => {
                Money::Returned { amount, since, at, reference }
            }
            _ => return Err(TABLE.damaged()),
        }))
    }

    /// Refunds are few and always read whole, so they stand in one column: `[[id, minor units, state], …]`.
    fn read_refunds(&self, amount: Option<Amount>) -> Result<Vec<Refund>, Error> {
        let Some(text) = &self.refunds else { return Ok(Vec::new()) };
        let currency = amount.map(Amount::currency).ok_or(TABLE.damaged())?;
        let list: Vec<Value> = serde_json::from_str(text).map_err(|_| TABLE.damaged())?;
        let refunds = list.iter().map(|value| refund(value, currency));
        refunds.collect::<Option<_>>().ok_or(TABLE.damaged())
    }

    /// Over key and columns.
    pub(in crate::store) fn checksum(&self, key: &PaymentKey) -> i64 {
        let mut sum = Sum::new("payment");
        sum.text(Some(key.psp.as_str()));
        sum.text(Some(key.payment_request.as_str()));
        sum.number(Some(self.state));
        sum.text(self.acquirer_id.as_deref());
        sum.number(self.recorded_at);
        sum.number(self.amount);
        sum.text(self.currency.as_deref());
        sum.number(self.initiated_at);
        self.verdict.sum(&mut sum);
        sum.text(self.refunds.as_deref());
        sum.number(self.money);
        sum.number(self.return_amount);
        sum.text(self.return_currency.as_deref());
        sum.number(self.return_since);
        sum.number(self.returned_at);
        sum.text(self.return_reference.as_deref());
        sum.end()
    }
}

fn refund(value: &Value, currency: Currency) -> Option<Refund> {
    let id = RefundId::parse(value.get(0)?.as_str()?).ok()?;
    let amount = Amount::new(value.get(1)?.as_u64()?, currency)?;
    let state = match value.get(2)?.as_str()? {
        "reserved" => RefundState::Reserved,
        "done" => RefundState::Done,
        "released" => RefundState::Released,
        _ => return None,
    };
    Some(Refund { id, amount, state })
}

fn refunds_text(refunds: &[Refund]) -> Option<String> {
    if refunds.is_empty() {
        return None;
    }
    let list = refunds.iter().map(|refund| {
        let state = match refund.state {
            RefundState::Reserved => "reserved",
            RefundState::Done => "done",
            RefundState::Released => "released",
        };
        json!([refund.id.as_str(), refund.amount.minor_units(), state])
    });
    Some(Value::Array(list.collect()).to_string())
}
