//! The law a second time, written from docs/semantics.md alone and in plain data: texts, numbers, options.
//!
//! It is what [`crate::properties`] compares the domain with and [`crate::history`] the running service, so it must
//! never use a state or a rule of the domain. Its functions are the tables, a line a row; it is meant to be obviously
//! right, not fast and not elegant.

use std::collections::BTreeMap;

/// Texts stand for ids, states and answers alike.
pub type Text = &'static str;

/// Minor units and currency.
pub type Money = (u64, Text);

/// All that the law keeps of a payment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Payment {
    pub acquirer: Option<Text>,
    /// unknown, initiated, succeeded, failed
    pub life: Text,
    /// The recorded result.
    pub cancel: Option<Text>,
    /// none, held, return due, returned
    pub funds: Text,
    pub amount: Option<Money>,
    pub initiated_at: Option<i64>,
    /// Id, amount, and: reserved, done, released.
    pub refunds: Vec<(Text, Money, Text)>,
    /// What goes back.
    pub due: Option<Money>,
    pub reference: Option<Text>,
}

const UNKNOWN: Payment = Payment {
    acquirer: None,
    life: "unknown",
    cancel: None,
    funds: "none",
    amount: None,
    initiated_at: None,
    refunds: vec![],
    due: None,
    reference: None,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub acquirer: Text,
    pub info: Option<Text>,
    pub revoked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The grant; none: dead on arrival.
    pub grant: Option<Text>,
    pub kind: Text,
    pub expires_at: Option<i64>,
    pub replaced_by: Option<Text>,
    /// The recorded result.
    pub cancel: Option<Text>,
}

/// The answer, and the events.
pub type Answer = (Text, Vec<String>);

/// Circumstances of a cancel.
#[derive(Clone, Copy)]
pub struct Asked {
    pub now: i64,
    pub clock_agrees: bool,
    pub onboarding: bool,
    pub enforce: bool,
    /// Whether a payment initiated then is past the window now.
    pub past_window: fn(i64, i64) -> bool,
}

/// One fact of the payment core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    pub id: Text,
    /// initiated, succeeded, failed, refund started, refund done, refund failed
    pub fact: Text,
    pub acquirer: Option<Text>,
    pub amount: Option<Money>,
    pub initiated_at: Option<i64>,
    pub refund: Option<Text>,
}

/// One token to record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewToken {
    pub token: Text,
    pub grant: Text,
    pub acquirer: Text,
    pub kind: Text,
    pub expires_at: Option<i64>,
    pub replaces: Option<Text>,
    pub info: Option<Text>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Oracle {
    pub payments: BTreeMap<Text, Payment>,
    pub grants: BTreeMap<Text, Grant>,
    pub tokens: BTreeMap<Text, Token>,
}

fn silent(answer: Text) -> Answer {
    (answer, vec![])
}

/// Both are named and they are not the same.
fn other<T: PartialEq>(one: Option<T>, two: Option<T>) -> bool {
    matches!((one, two), (Some(one), Some(two)) if one != two)
}

impl Oracle {
    pub fn cancel_payment(&mut self, id: Text, acquirer: Text, asked: Asked) -> Answer {
        let known = self.payments.get(id).cloned();
        let p = known.clone().unwrap_or(UNKNOWN);
        let late = |at: Option<i64>| (asked.past_window)(at.expect("succeeded"), asked.now);
        let refund = |state| p.refunds.iter().any(|refund| refund.2 == state);

        if other(p.acquirer, Some(acquirer)) && asked.enforce {
            return silent("ACCESS_DENIED");
        }
        if let Some(result) = p.cancel {
            return silent(result);
        }
        let result = if known.is_none() && asked.onboarding {
            "U"
        } else if p.life == "unknown" || p.life == "initiated" || p.life == "failed" {
            "SUCCESS"
        } else if late(p.initiated_at) && !asked.clock_agrees {
            "U"
        } else if late(p.initiated_at) {
            "CANCEL_WINDOW_EXCEED"
        } else if refund("done") {
            "PROCESS_FAIL"
        } else if refund("reserved") {
            "U"
        } else {
            "SUCCESS"
        };
        if result == "U" {
            return silent("U");
        }

        let p = self.payments.entry(id).or_insert(UNKNOWN);
        p.cancel = Some(result);
        p.acquirer = p.acquirer.or(Some(acquirer));
        let mut events = vec![];
        if result == "SUCCESS" {
            events.push(format!("PaymentCancelled {id} by cancelPayment"));
            if p.life == "succeeded" {
                p.funds = "return due";
                p.due = p.amount;
                events.push(format!("FundReturnDue {id} {:?} by cancelPayment", p.amount));
            }
        }
        (result, events)
    }

    pub fn record_payment(&mut self, told: Told) -> Answer {
        let Told { id, fact, acquirer, amount, initiated_at, refund } = told;
        let known = self.payments.contains_key(id);
        let mut p = self.payments.get(id).cloned().unwrap_or(UNKNOWN);
        let cancelled = p.cancel == Some("SUCCESS");
        let seen = p.refunds.iter().find(|(id, ..)| Some(*id) == refund).copied();

        // a success after the cancel comes before every contradiction
        if fact == "succeeded" && cancelled {
            if p.funds != "none" {
                return silent("return the funds");
            }
            p.life = "succeeded";
            p.funds = "return due";
            p.due = amount;
            p.amount = p.amount.or(amount);
            p.initiated_at = p.initiated_at.or(initiated_at);
            self.payments.insert(id, p);
            let event = format!("FundReturnDue {id} {amount:?} by late success");
            return ("return the funds", vec![event]);
        }

        // any: other acquirerId, amount or currency than recorded; a refund has an amount of its own
        let currency = |money: Option<Money>| money.map(|money| money.1);
        let other_amount = if refund.is_none() {
            other(p.amount, amount)
        } else {
            other(seen.map(|seen| seen.1), amount) || other(currency(p.amount), currency(amount))
        };
        if other(p.acquirer, acquirer) || other_amount {
            return silent("conflict");
        }

        let debited = p.life == "succeeded";
        let taken: u64 =
            p.refunds.iter().filter(|refund| refund.2 != "released").map(|refund| refund.1.0).sum();
        let paid = p.amount.map_or(0, |amount| amount.0);
        let facts = |p: &mut Payment| {
            p.amount = p.amount.or(amount);
            p.initiated_at = p.initiated_at.or(initiated_at);
        };
        let answer = match fact {
            "initiated" if cancelled => {
                facts(&mut p);
                "refused: cancelled"
            }
            "initiated" => match p.life {
                "succeeded" => "already succeeded",
                "failed" => "refused: failed",
                _ => {
                    p.life = "initiated";
                    facts(&mut p);
                    "proceed"
                }
            },
            "succeeded" => {
                p.life = "succeeded";
                p.funds = "held";
                facts(&mut p);
                "accepted"
            }
            "failed" if debited => "conflict",
            "failed" => {
                p.life = "failed";
                "accepted"
            }
            "refund started" => match (seen, refund, amount) {
                (Some((_, _, "reserved" | "done")), ..) => "accepted",
                _ if cancelled => "refused: cancelled",
                // (a released id is used up)
                (None, Some(refund), Some(amount)) if debited && taken + amount.0 <= paid => {
                    p.refunds.push((refund, amount, "reserved"));
                    "accepted"
                }
                _ => "conflict",
            },
            "refund done" | "refund failed" => {
                let end = if fact == "refund done" { "done" } else { "released" };
                match seen {
                    Some((id, _, state)) if state == "reserved" || state == end => {
                        for refund in p.refunds.iter_mut().filter(|refund| refund.0 == id) {
                            refund.2 = end;
                        }
                        "accepted"
                    }
                    _ => "conflict",
                }
            }
            _ => unreachable!("no such fact"),
        };
        // bound by the first that is named; a conflict changes nothing
        if answer != "conflict" && (known || p != UNKNOWN) {
            p.acquirer = p.acquirer.or(acquirer);
            self.payments.insert(id, p);
        }
        silent(answer)
    }

    pub fn record_fund_return(&mut self, id: Text, reference: Text) -> Answer {
        let Some(p) = self.payments.get_mut(id) else { return silent("conflict") };
        match (p.funds, p.reference) {
            ("return due", _) => {
                p.funds = "returned";
                p.reference = Some(reference);
                silent("accepted")
            }
            ("returned", Some(first)) if first == reference => silent("accepted"),
            _ => silent("conflict"),
        }
    }

    /// The answer also tells what the wallet passes through.
    pub fn cancel_token(
        &mut self,
        token: Text,
        acquirer: Text,
        onboarding: bool,
    ) -> (Answer, Option<Text>) {
        let Some(known) = self.tokens.get_mut(token) else {
            if onboarding {
                return (silent("U"), None);
            }
            let cancel = Some("INVALID_TOKEN");
            let dead =
                Token { grant: None, kind: "dead", expires_at: None, replaced_by: None, cancel };
            self.tokens.insert(token, dead);
            return (silent("INVALID_TOKEN"), None);
        };
        let Some(id) = known.grant else { return (silent("INVALID_TOKEN"), None) };
        let grant = self.grants.get_mut(id).expect("a token's grant");
        if grant.acquirer != acquirer {
            return (silent("ACCESS_DENIED"), None);
        }
        if let Some(result) = known.cancel {
            return (silent(result), grant.info);
        }
        known.cancel = Some("SUCCESS");
        let first = !grant.revoked;
        grant.revoked = true;
        let event = first.then(|| format!("AuthorizationRevoked {id} by cancelToken"));
        (("SUCCESS", event.into_iter().collect()), grant.info)
    }

    pub fn record_token(&mut self, new: NewToken) -> Answer {
        let NewToken { token, grant, acquirer, kind, expires_at, replaces, info } = new;
        if let Some(known) = self.grants.get(grant) {
            if known.acquirer != acquirer {
                return silent("conflict");
            }
            if known.revoked {
                return silent("refused: revoked");
            }
        }
        let known = self.tokens.get(token);
        if known.is_some_and(|known| known.grant.is_none()) {
            return silent("refused: dead");
        }
        let old = replaces.map(|replaces| self.tokens.get(replaces));
        if let Some(old) = old {
            let Some(old) = old else { return silent("conflict") };
            if old.grant != Some(grant) || other(old.replaced_by, Some(token)) {
                return silent("conflict");
            }
        }
        if let Some(known) = known {
            // a repeat names the same grant, kind and pair; all else contradicts what is recorded
            let same_pair = old.is_none_or(|old| old.is_some_and(|old| old.replaced_by.is_some()));
            let same = known.grant == Some(grant) && known.kind == kind && same_pair;
            return silent(if same { "accepted" } else { "conflict" });
        }
        if let Some(replaces) = replaces {
            self.tokens.get_mut(replaces).expect("seen above").replaced_by = Some(token);
        }
        let stored =
            self.grants.entry(grant).or_insert(Grant { acquirer, info: None, revoked: false });
        stored.info = info.or(stored.info);
        let grant = Some(grant);
        self.tokens
            .insert(token, Token { grant, kind, expires_at, replaced_by: None, cancel: None });
        silent("accepted")
    }

    pub fn revoke_authorization(&mut self, id: Text) -> Answer {
        let Some(grant) = self.grants.get_mut(id) else { return silent("conflict") };
        if grant.revoked {
            return silent("accepted");
        }
        grant.revoked = true;
        ("accepted", vec![format!("AuthorizationRevoked {id} by the wallet")])
    }

    pub fn is_active(&self, token: Text, now: i64) -> bool {
        let Some(token) = self.tokens.get(token) else { return false };
        let Some(grant) = token.grant else { return false };
        !self.grants[grant].revoked
            && token.replaced_by.is_none()
            && token.expires_at.is_none_or(|expires_at| now < expires_at)
    }
}
