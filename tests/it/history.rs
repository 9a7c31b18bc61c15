//! What concurrent callers saw of one key, and whether it can be: the checker of [`crate::replicas`].
//!
//! A key is one payment, or a family of authorizations with the tokens that are tried with them. Its history is a list
//! of operations, each from the moment it was sent until the moment its answer came; one without an answer is open: it
//! may have happened at any time after it was sent, or never. [`check`] asks two things:
//!
//! - Is it **linearizable**? Is there an order of the operations, in keeping with who answered before whom was asked, in
//!   which [`crate::oracle`] gives these very answers? The search is Wing's and Gong's with Lowe's memory of (what is
//!   done, state), so a history is looked through once, however many orders lead to the same place.
//! - Do the **invariants** of docs/semantics.md hold of it, each asserted on what was heard, without a model?
//!
//! [`check_events`] compares the feed with the states that hold in the end.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
};

use crate::oracle::{self, Money, NewToken, Oracle, Text, Told};

/// The one payment of a history.
pub const PAYMENT: Text = "p";

/// The initiation of a payment that is past the window.
pub const OLD: i64 = 1;

/// The initiation of a payment whose window ends meanwhile: in it or past it, as the cancel says. Any other is in it.
pub const TURN: i64 = 3;

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    CancelPayment {
        acquirer: Text,
        /// Whether it is decided after the window of a [`TURN`] ended.
        late: bool,
    },
    RecordPayment(Told),
    RecordFundReturn {
        reference: Text,
    },
    GetPayment,
    CancelToken {
        token: Text,
        acquirer: Text,
    },
    RecordToken(NewToken),
    Revoke {
        grant: Text,
    },
    Introspect {
        token: Text,
    },
}

/// What a caller hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To both cancels. `U`: decided not to be decided.
    Cancel { code: Text, repeated: bool, info: Option<Text> },
    /// The same as Alipay+ hears it, which is not told whether it is a repeat.
    Final { code: Text, info: Option<Text> },
    /// To RecordPayment and RecordFundReturn: the answer and the payment as it then is.
    Told(Text, Option<oracle::Payment>),
    /// To GetPayment.
    Payment(Option<oracle::Payment>),
    /// To RecordToken and RevokeAuthorization.
    Token(Text),
    /// To IntrospectToken: grant and kind, if it is active.
    Active(Option<(Text, Text)>),
}

/// One operation of a caller. Times are of one clock.
#[derive(Clone, Debug)]
pub struct Operation {
    pub caller: usize,
    pub command: Command,
    pub sent: u64,
    /// When the answer came, and the answer; none: not known whether it happened.
    pub heard: Option<(u64, Answer)>,
    /// When the result was decided, as a cancel's answer tells.
    pub decided: Option<(i64, i32)>,
}

impl Operation {
    fn answer(&self) -> Option<&Answer> {
        self.heard.as_ref().map(|(_, answer)| answer)
    }

    fn heard_at(&self) -> Option<u64> {
        self.heard.as_ref().map(|(at, _)| *at)
    }

    /// The code of a cancel that ended the matter.
    fn definitive(&self) -> Option<Text> {
        let (Answer::Cancel { code, .. } | Answer::Final { code, .. }) = self.answer()? else {
            return None;
        };
        Some(*code).filter(|code| *code != "U")
    }

    /// Whether this is what was heard.
    fn is_heard(&self, answer: &Answer) -> bool {
        match (self.answer(), answer) {
            (Some(Answer::Final { code, info }), Answer::Cancel { code: told, info: with, .. }) => {
                code == told && info == with
            }
            (heard, answer) => heard.is_none_or(|heard| heard == answer),
        }
    }
}

/// What a store does with a command, one at a time.
pub fn apply(state: &mut Oracle, command: &Command) -> Answer {
    match *command {
        Command::CancelPayment { acquirer, late } => {
            let before = state.payments.get(PAYMENT).and_then(|payment| payment.cancel);
            let asked = oracle::Asked {
                now: i64::from(late),
                clock_agrees: true,
                onboarding: false,
                enforce: true,
                past_window: |initiated_at, late| {
                    initiated_at == OLD || initiated_at == TURN && late == 1
                },
            };
            let (code, _) = state.cancel_payment(PAYMENT, acquirer, asked);
            let repeated = before.is_some() && code != "ACCESS_DENIED";
            Answer::Cancel { code, repeated, info: None }
        }
        Command::RecordPayment(told) => {
            let (answer, _) = state.record_payment(told);
            Answer::Told(answer, view(state))
        }
        Command::RecordFundReturn { reference } => {
            let (answer, _) = state.record_fund_return(PAYMENT, reference);
            Answer::Told(answer, view(state))
        }
        Command::GetPayment => Answer::Payment(view(state)),
        Command::CancelToken { token, acquirer } => {
            let before = state.tokens.get(token).and_then(|token| token.cancel);
            let ((code, _), info) = state.cancel_token(token, acquirer, false);
            let repeated = before.is_some() && code != "ACCESS_DENIED";
            Answer::Cancel { code, repeated, info }
        }
        Command::RecordToken(new) => Answer::Token(state.record_token(new).0),
        Command::Revoke { grant } => Answer::Token(state.revoke_authorization(grant).0),
        Command::Introspect { token } => {
            let active = state.is_active(token, 0);
            let known = state.tokens.get(token).filter(|_| active);
            Answer::Active(known.map(|token| (token.grant.expect("active"), token.kind)))
        }
    }
}

/// The payment, its refunds in the order of their ids as no other is promised.
fn view(state: &Oracle) -> Option<oracle::Payment> {
    let mut payment = state.payments.get(PAYMENT).cloned()?;
    payment.refunds.sort_unstable();
    Some(payment)
}

// ---------------------------------------------------------------- linearizability

/// Which operations are done: at most [`MOST`] of them.
type Done = [u64; 8];

/// As many operations as a history may have.
pub const MOST: usize = 512;

fn has(done: &Done, index: usize) -> bool {
    done[index / 64] >> (index % 64) & 1 == 1
}

fn with(mut done: Done, index: usize) -> Done {
    done[index / 64] |= 1 << (index % 64);
    done
}

struct Search<'a> {
    history: &'a [Operation],
    seen: HashSet<(Done, Oracle)>,
    /// The longest order that was found: how many answers it explains, and the state it ends in.
    longest: (usize, Done, Oracle),
}

impl Search<'_> {
    fn left(&self, done: &Done) -> impl Iterator<Item = (usize, &Operation)> {
        let done = *done;
        self.history.iter().enumerate().filter(move |(index, _)| !has(&done, *index))
    }

    /// Whether what is left can be explained.
    fn explain(&mut self, mut done: Done, state: Oracle) -> bool {
        loop {
            // nobody is ordered behind one that was sent after its answer came
            let Some(horizon) = self.left(&done).filter_map(|(_, left)| left.heard_at()).min()
            else {
                return true; // what has no answer never happened
            };
            let mut changes: Vec<(usize, Oracle)> = vec![];
            let mut open: Vec<&Command> = vec![];
            let mut silent = None;
            for (index, operation) in self.left(&done).filter(|(_, left)| left.sent <= horizon) {
                let mut next = state.clone();
                let answer = apply(&mut next, &operation.command);
                if !operation.is_heard(&answer) {
                    continue;
                }
                if next != state {
                    // of two equal ones without an answer it does not matter which one happened
                    if operation.heard.is_none() {
                        if open.contains(&&operation.command) {
                            continue;
                        }
                        open.push(&operation.command);
                    }
                    changes.push((index, next));
                } else if operation.heard.is_some() {
                    silent = Some(index);
                    break;
                }
            }
            // one that is right here and changes nothing may as well stand here: nothing else has to be tried
            if let Some(index) = silent {
                done = with(done, index);
                continue;
            }
            let explained = (0..self.history.len())
                .filter(|index| has(&done, *index) && self.history[*index].heard.is_some())
                .count();
            if explained > self.longest.0 {
                self.longest = (explained, done, state.clone());
            }
            if !self.seen.insert((done, state)) {
                return false;
            }
            return changes.into_iter().any(|(index, next)| self.explain(with(done, index), next));
        }
    }
}

/// Whether there is an order that gives these answers; else where the best one gets stuck.
pub fn linearizable(history: &[Operation]) -> Result<(), String> {
    assert!(history.len() <= MOST, "a history of {} operations", history.len());
    let done = Done::default();
    let longest = (0, done, Oracle::default());
    let mut search = Search { history, seen: HashSet::new(), longest };
    if search.explain(done, Oracle::default()) {
        return Ok(());
    }
    let (explained, done, state) = search.longest;
    let mut text =
        format!("invariant 11: no order gives these answers. The best explains {explained}");
    write!(text, " and ends in {state:?}; left (*) is:\n{}", print(history, &done))
        .expect("a text");
    Err(text)
}

/// A history for people, in the order of the sending.
fn print(history: &[Operation], done: &Done) -> String {
    let mut lines: Vec<(u64, String)> = vec![];
    for (index, operation) in history.iter().enumerate() {
        let mark = if has(done, index) { ' ' } else { '*' };
        let Operation { caller, command, sent, heard, .. } = operation;
        let told = match heard {
            Some((at, answer)) => format!("{at:>12}  {answer:?}"),
            None => "           –  no answer".to_owned(),
        };
        lines.push((
            *sent,
            format!("{mark}{sent:>12} {told}\n{:>16} caller {caller}: {command:?}\n", ""),
        ));
    }
    lines.sort_unstable_by_key(|(sent, _)| *sent);
    lines.into_iter().map(|(_, line)| line).collect()
}

// ---------------------------------------------------------------- invariants

/// Everything that can be asked of one key's history.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let told = |what: String| format!("{what}\n{}", print(history, &[u64::MAX; 8]));
    results_are_final(history).map_err(told)?;
    payments_stay_cancelled(history).map_err(told)?;
    tokens_stay_dead(history).map_err(told)?;
    refusals_have_a_row(history).map_err(told)?;
    linearizable(history)
}

fn hold(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Invariant 1: every definitive result of a key is the same, decided at the same time, and decided once.
fn results_are_final(history: &[Operation]) -> Result<(), String> {
    let mut first = HashMap::<(Text, Text), Text>::new();
    let mut decided = HashMap::<Text, (i64, i32)>::new();
    let mut fresh = HashSet::new();
    for operation in history {
        let Some(code) = operation.definitive() else { continue };
        let (key, acquirer) = if let Command::CancelToken { token, acquirer } = operation.command {
            (token, acquirer)
        } else if let Command::CancelPayment { acquirer, .. } = operation.command {
            (PAYMENT, acquirer)
        } else {
            unreachable!("an answer to a cancel")
        };
        let before = *first.entry((key, acquirer)).or_insert(code);
        hold(before == code, || format!("invariant 1: {key} of {acquirer}: {before} and {code}"))?;
        if let Some(at) = operation.decided {
            let before = *decided.entry(key).or_insert(at);
            hold(before == at, || format!("invariant 1: {key} decided at {before:?} and {at:?}"))?;
        }
        if let Some(Answer::Cancel { repeated: false, .. }) = operation.answer()
            && code != "ACCESS_DENIED"
        {
            hold(fresh.insert(key), || format!("invariant 1: {key} was decided twice"))?;
        }
    }
    Ok(())
}

/// When it was first heard that this is so.
fn since(history: &[Operation], is: impl Fn(&Operation) -> bool) -> Option<u64> {
    history.iter().filter(|operation| is(operation)).filter_map(Operation::heard_at).min()
}

/// Invariants 3 and 4: what may not be answered to whoever asks after a cancel was answered SUCCESS.
fn payments_stay_cancelled(history: &[Operation]) -> Result<(), String> {
    let is_cancel = |operation: &Operation| {
        matches!(operation.command, Command::CancelPayment { .. })
            && operation.definitive() == Some("SUCCESS")
    };
    let Some(since) = since(history, is_cancel) else { return Ok(()) };
    for operation in history.iter().filter(|operation| operation.sent > since) {
        let payment = match operation.answer() {
            Some(Answer::Told(answer, payment)) => {
                if let Command::RecordPayment(told) = operation.command {
                    let forbidden = *answer == "proceed"
                        || *answer == "accepted"
                            && ["succeeded", "refund started"].contains(&told.fact);
                    hold(!forbidden, || {
                        format!("invariant 3: {answer} to {} after SUCCESS", told.fact)
                    })?;
                }
                payment
            }
            Some(Answer::Payment(payment)) => payment,
            _ => continue,
        };
        let payment = payment.as_ref().ok_or("invariant 2: a cancelled payment is unknown")?;
        hold(payment.cancel == Some("SUCCESS"), || {
            format!("invariant 2: after SUCCESS {payment:?}")
        })?;
        hold(payment.funds != "held", || format!("invariant 4: held after SUCCESS: {payment:?}"))?;
    }
    Ok(())
}

/// Invariants 7 and 8: what was revoked or declared dead never opens anything again.
fn tokens_stay_dead(history: &[Operation]) -> Result<(), String> {
    // the grant of a token is the one it was accepted for
    let mut grants = HashMap::<Text, Text>::new();
    for operation in history {
        if let (Command::RecordToken(new), Some(Answer::Token("accepted"))) =
            (&operation.command, operation.answer())
        {
            let before = *grants.entry(new.token).or_insert(new.grant);
            hold(before == new.grant, || format!("{} is of two grants", new.token))?;
        }
    }
    let mut revoked = HashMap::<Text, u64>::new();
    for operation in history {
        let grant = match (&operation.command, operation.answer()) {
            (Command::CancelToken { token, .. }, Some(Answer::Cancel { code: "SUCCESS", .. })) => {
                // a token whose recording was not answered; introspection may tell
                let Some(grant) = grants.get(token) else { continue };
                *grant
            }
            (Command::Revoke { grant }, Some(Answer::Token("accepted"))) => *grant,
            _ => continue,
        };
        let at = operation.heard_at().expect("answered");
        let since = revoked.entry(grant).or_insert(at);
        *since = at.min(*since);
    }
    let is_dead = |token: Text| {
        history.iter().any(|operation| {
            matches!(operation.command, Command::CancelToken { token: cancelled, .. } if cancelled == token)
                && operation.definitive() == Some("INVALID_TOKEN")
        })
    };
    for operation in history {
        let (token, grant, did) = match (&operation.command, operation.answer()) {
            (Command::RecordToken(new), Some(Answer::Token("accepted"))) => {
                (new.token, new.grant, "accepted")
            }
            (Command::Introspect { token }, Some(Answer::Active(Some((grant, _))))) => {
                (*token, *grant, "active")
            }
            _ => continue,
        };
        let since = revoked.get(grant).copied().unwrap_or(u64::MAX);
        hold(operation.sent <= since, || {
            format!("invariant 7: {token} is {did} after {grant} was revoked")
        })?;
        hold(!is_dead(token), || format!("invariant 8: {token} is {did} and INVALID_TOKEN"))?;
    }
    Ok(())
}

/// Invariant 10: a refusal that is for ever has a reason that somebody gave.
fn refusals_have_a_row(history: &[Operation]) -> Result<(), String> {
    let told = |is: &dyn Fn(&Told) -> bool| {
        let is = |operation: &Operation| matches!(&operation.command, Command::RecordPayment(told) if is(told));
        history.iter().any(is)
    };
    for operation in history {
        let Some(code) = operation.definitive() else { continue };
        let is_payment = matches!(operation.command, Command::CancelPayment { .. });
        let reason = match code {
            "SUCCESS" | "ACCESS_DENIED" => true,
            "CANCEL_WINDOW_EXCEED" => {
                is_payment && told(&|told| [Some(OLD), Some(TURN)].contains(&told.initiated_at))
            }
            "PROCESS_FAIL" => is_payment && told(&|told| told.fact == "refund done"),
            "INVALID_TOKEN" => !is_payment,
            _ => false,
        };
        hold(reason, || format!("invariant 10: {code} to {:?}", operation.command))?;
    }
    Ok(())
}

// ---------------------------------------------------------------- the feed

/// An event as a follower of the feed saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub partition: u32,
    pub position: u64,
    pub id: String,
    /// PaymentCancelled, FundReturnDue, AuthorizationRevoked.
    pub kind: Text,
    /// Payment or authorization.
    pub subject: String,
    pub amount: Option<Money>,
}

/// Invariants 5, 6 and 9: positions are 1, 2, 3 … in each partition, and the events are these, each once.
pub fn check_events(
    events: &[Event],
    expected: &BTreeMap<(Text, String), Option<Money>>,
) -> Result<(), String> {
    let mut heads = HashMap::<u32, u64>::new();
    let mut ids = HashSet::new();
    let mut seen = BTreeMap::new();
    for event in events {
        let head = heads.entry(event.partition).or_default();
        *head += 1;
        hold(event.position == *head, || format!("invariant 9: {event:?} at the place of {head}"))?;
        hold(ids.insert(&event.id), || format!("invariant 6: twice: {event:?}"))?;
        let again = seen.insert((event.kind, event.subject.clone()), event.amount);
        hold(again.is_none(), || format!("invariants 5 and 6: twice: {event:?}"))?;
    }
    let difference = |one: &BTreeMap<_, _>, two: &BTreeMap<_, _>| {
        let only = one.iter().filter(|(key, amount)| two.get(*key) != Some(*amount));
        only.map(|(key, amount)| format!("{key:?} {amount:?}")).collect::<Vec<_>>()
    };
    let (missing, surplus) = (difference(expected, &seen), difference(&seen, expected));
    hold(missing.is_empty() && surplus.is_empty(), || {
        format!(
            "invariants 5 and 6: never announced: {missing:?}; announced without cause: {surplus:?}"
        )
    })
}

// ---------------------------------------------------------------- the checker can fail

mod tests {
    use super::*;

    /// Operations one after the other, each answered before the next is sent.
    fn sequence(operations: Vec<(Command, Answer)>) -> Vec<Operation> {
        let mut history = vec![];
        for (index, (command, answer)) in (0u64..).zip(operations) {
            let heard = Some((index * 10 + 5, answer));
            history.push(Operation { caller: 0, command, sent: index * 10, heard, decided: None });
        }
        history
    }

    fn told(fact: Text) -> Command {
        Command::RecordPayment(Told {
            id: PAYMENT,
            fact,
            acquirer: Some("A"),
            amount: Some((100, "EUR")),
            initiated_at: Some(2),
            refund: None,
        })
    }

    const CANCEL: Command = Command::CancelPayment { acquirer: "A", late: false };

    fn cancelled(code: Text, repeated: bool) -> Answer {
        Answer::Cancel { code, repeated, info: None }
    }

    /// What the oracle answers, in this order.
    fn right(commands: &[Command]) -> Vec<Operation> {
        let mut state = Oracle::default();
        let answers = commands.iter().map(|command| (command.clone(), apply(&mut state, command)));
        sequence(answers.collect())
    }

    fn token(token: Text, replaces: Option<Text>) -> Command {
        Command::RecordToken(NewToken {
            token,
            grant: "g1",
            acquirer: "A",
            kind: "access",
            expires_at: None,
            replaces,
            info: None,
        })
    }

    const CANCEL_TOKEN: Command = Command::CancelToken { token: "t1", acquirer: "A" };
    const LOOK: Command = Command::Introspect { token: "t1" };

    #[track_caller]
    fn broken(history: &[Operation], invariant: &str) {
        let told = check(history).expect_err("it is broken");
        assert!(told.starts_with(invariant), "{told}");
        linearizable(history).expect_err("and no order of one store gives it");
    }

    #[test]
    fn a_right_history_is_found_right() {
        let payment = right(&[
            told("initiated"),
            told("succeeded"),
            Command::GetPayment,
            CANCEL,
            CANCEL,
            told("succeeded"),
            Command::RecordFundReturn { reference: "ref1" },
            Command::GetPayment,
        ]);
        check(&payment).unwrap();
        let family = right(&[
            token("t1", None),
            LOOK,
            token("t2", Some("t1")),
            LOOK,
            CANCEL_TOKEN,
            CANCEL_TOKEN,
            Command::CancelToken { token: "t3", acquirer: "A" },
            token("t3", None),
            token("t4", None),
            Command::Introspect { token: "t2" },
        ]);
        check(&family).unwrap();
    }

    #[test]
    fn what_alipayplus_hears_may_be_a_repeat_or_not() {
        let mut history = right(&[CANCEL, CANCEL]);
        for operation in &mut history {
            let (at, _) = operation.heard.clone().unwrap();
            operation.heard = Some((at, Answer::Final { code: "SUCCESS", info: None }));
        }
        check(&history).unwrap();
        history[1].heard = Some((15, Answer::Final { code: "PROCESS_FAIL", info: None }));
        broken(&history, "invariant 1");
    }

    #[test]
    fn a_window_that_ends_meanwhile_ends_for_the_cancels_that_are_late() {
        let mut turning = told("succeeded");
        if let Command::RecordPayment(told) = &mut turning {
            told.initiated_at = Some(TURN);
        }
        let late = Command::CancelPayment { acquirer: "A", late: true };
        let history = right(&[turning.clone(), late.clone(), CANCEL]);
        assert_eq!(history[2].definitive(), Some("CANCEL_WINDOW_EXCEED"));
        check(&history).unwrap();
        let history = right(&[turning, CANCEL, late]);
        assert_eq!(history[2].definitive(), Some("SUCCESS"));
        check(&history).unwrap();
    }

    #[test]
    fn a_success_accepted_after_the_cancel_is_found() {
        let mut history = right(&[told("initiated"), CANCEL, told("succeeded")]);
        let (at, Answer::Told(_, payment)) = history[2].heard.clone().unwrap() else { panic!() };
        history[2].heard = Some((at, Answer::Told("accepted", payment)));
        broken(&history, "invariant 3");
    }

    #[test]
    fn a_debit_allowed_after_the_cancel_is_found() {
        let mut history = right(&[CANCEL, told("initiated")]);
        let (at, Answer::Told(_, payment)) = history[1].heard.clone().unwrap() else { panic!() };
        history[1].heard = Some((at, Answer::Told("proceed", payment)));
        broken(&history, "invariant 3");
    }

    #[test]
    fn money_held_after_the_cancel_is_found() {
        let mut history = right(&[told("succeeded"), CANCEL, Command::GetPayment]);
        let Some((_, Answer::Payment(Some(payment)))) = &mut history[2].heard else { panic!() };
        payment.funds = "held";
        broken(&history, "invariant 4");
    }

    #[test]
    fn a_cancel_that_was_forgotten_is_found() {
        let mut history = right(&[CANCEL, Command::GetPayment]);
        history[1].heard = Some((15, Answer::Payment(None)));
        broken(&history, "invariant 2");
    }

    #[test]
    fn two_results_for_one_key_are_found() {
        let mut old = told("succeeded");
        if let Command::RecordPayment(told) = &mut old {
            told.initiated_at = Some(OLD);
        }
        let mut history = right(&[old, CANCEL, CANCEL]);
        assert_eq!(history[1].definitive(), Some("CANCEL_WINDOW_EXCEED"));
        history[2].heard = Some((25, cancelled("SUCCESS", true)));
        broken(&history, "invariant 1");
        // decided twice
        let mut history = right(&[CANCEL, CANCEL]);
        history[1].heard = Some((15, cancelled("SUCCESS", false)));
        broken(&history, "invariant 1: p was decided twice");
        // decided at two times: no model knows the time
        let mut history = right(&[CANCEL, CANCEL]);
        (history[0].decided, history[1].decided) = (Some((1, 1)), Some((1, 2)));
        check(&history).expect_err("two times");
    }

    #[test]
    fn a_token_that_is_active_after_its_cancel_is_found() {
        let mut history = right(&[token("t1", None), CANCEL_TOKEN, LOOK]);
        history[2].heard = Some((25, Answer::Active(Some(("g1", "access")))));
        broken(&history, "invariant 7");
        // and a sibling of it
        let mut history = right(&[token("t1", None), CANCEL_TOKEN, token("t2", None)]);
        history[2].heard = Some((25, Answer::Token("accepted")));
        broken(&history, "invariant 7");
    }

    #[test]
    fn a_token_that_is_dead_and_accepted_is_found() {
        let mut history = right(&[CANCEL_TOKEN, token("t1", None)]);
        history[1].heard = Some((15, Answer::Token("accepted")));
        broken(&history, "invariant 8");
        // at the same time as well
        for operation in &mut history {
            operation.sent = 0;
        }
        broken(&history, "invariant 8");
    }

    #[test]
    fn a_refusal_for_ever_without_a_row_is_found() {
        let mut history = right(&[told("succeeded"), CANCEL]);
        history[1].heard = Some((15, cancelled("PROCESS_FAIL", false)));
        broken(&history, "invariant 10");
        history[1].heard = Some((15, cancelled("INVALID_TOKEN", false)));
        broken(&history, "invariant 10");
    }

    #[test]
    fn a_stale_read_is_found_although_every_invariant_holds() {
        let mut history = right(&[told("initiated"), told("succeeded"), Command::GetPayment]);
        let Some((_, Answer::Told(_, before))) = history[0].heard.clone() else { panic!() };
        history[2].heard = Some((25, Answer::Payment(before)));
        linearizable(&history).expect_err("it is stale");
        assert!(check(&history).unwrap_err().starts_with("invariant 11"));
        // while the record is under way it may be either
        history[2].sent = 12;
        history[1].heard.as_mut().unwrap().0 = 40;
        check(&history).unwrap();
    }

    #[test]
    fn what_was_not_answered_may_have_happened_later_but_never_before_it_was_asked() {
        let refused = right(&[CANCEL, told("initiated")]).remove(1);
        let open = Operation { caller: 1, command: CANCEL, sent: 0, heard: None, decided: None };
        let unknown = Operation {
            caller: 2,
            command: Command::GetPayment,
            sent: 3,
            heard: Some((4, Answer::Payment(None))),
            decided: None,
        };
        // after that read, before the refusal
        check(&[open.clone(), unknown.clone(), refused.clone()]).unwrap();
        // never: both read that nobody cancelled
        let later =
            Operation { sent: 100, heard: Some((101, Answer::Payment(None))), ..unknown.clone() };
        check(&[open.clone(), unknown.clone(), later.clone()]).unwrap();
        // it cannot have happened and not have happened
        check(&[open.clone(), refused.clone(), later]).expect_err("forgotten");
        // nor before it was asked
        check(&[Operation { sent: 50, ..open }, refused]).expect_err("nobody had asked");
    }

    #[test]
    fn many_open_operations_do_not_make_the_search_endless() {
        let mut history = right(&[told("initiated"), told("succeeded")]);
        let commands =
            [CANCEL, told("failed"), told("initiated"), told("succeeded"), Command::GetPayment];
        for (index, command) in (0u64..).zip(commands.iter().cycle().take(300)) {
            let command = command.clone();
            history.push(Operation { caller: 1, command, sent: index, heard: None, decided: None });
        }
        let last = right(&[told("initiated"), told("succeeded"), CANCEL, CANCEL]).remove(3);
        history.push(Operation {
            sent: 1_000,
            heard: Some((1_001, last.heard.clone().unwrap().1)),
            ..last.clone()
        });
        check(&history).unwrap();
        history.push(Operation {
            sent: 2_000,
            heard: Some((2_001, cancelled("PROCESS_FAIL", true))),
            ..last
        });
        check(&history).expect_err("two results");
    }

    #[test]
    fn events_that_are_lost_doubled_out_of_order_or_without_cause_are_found() {
        let event = |position, kind: Text, amount| Event {
            partition: 3,
            position,
            id: kind.to_owned(),
            kind,
            subject: "one".to_owned(),
            amount,
        };
        let (cancelled, due) = ("PaymentCancelled", "FundReturnDue");
        let money = Some((100, "EUR"));
        let both = [event(1, cancelled, None), event(2, due, money)];
        let key = |kind| (kind, "one".to_owned());
        let expected = BTreeMap::from([(key(cancelled), None), (key(due), money)]);
        check_events(&both, &expected).unwrap();
        let wrong = |events: &[Event], what: &str| {
            let told = check_events(events, &expected).expect_err(what);
            assert!(told.contains(what), "{told}");
        };
        wrong(&both[..1], "never announced");
        wrong(&both[1..], "invariant 9");
        wrong(&[both[1].clone(), both[0].clone()], "invariant 9");
        wrong(&[both[0].clone(), event(3, due, money)], "invariant 9");
        let again = event(3, due, money);
        wrong(&[both[0].clone(), both[1].clone(), again.clone()], "twice");
        let other_id = Event { id: "another".to_owned(), ..again };
        wrong(&[both[0].clone(), both[1].clone(), other_id], "twice");
        wrong(&[both[0].clone(), event(2, due, Some((99, "EUR")))], "without cause");
        let another =
            Event { subject: "two".to_owned(), id: "two".to_owned(), ..event(3, cancelled, None) };
        wrong(&[both[0].clone(), both[1].clone(), another], "without cause");
    }
}
