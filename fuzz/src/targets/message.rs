//! Messages of gRPC as bytes: what is refused says why and in whose words, what is taken is within its limits, and what of
//! history is told again says the same.

use alipayplus_cancel::{
    domain::{
        Asked,
        amount::{AMOUNT_MINOR_UNITS_MAX, Amount},
        cancel_payment,
        import_payment::ImportPayment,
        key::PaymentKey,
        payment::Payment,
        policy::Policy,
        record_fund_return, record_payment,
        record_payment::Fact,
        result::{ResultCode, ResultStatus},
        time::Timestamp,
    },
    grpc::fuzzing as doors,
};
use tonic::{Code, Status};

use super::bytes::Bytes;

/// The first byte chooses the message.
pub fn run(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 16 {
        0 => taken(doors::cancel_payment(data), |it| {
            id(it.acquirer.as_str());
            payment_key(&it.key);
        }),
        1 => taken(doors::cancel_token(data), |it| {
            id(it.psp.as_str());
            id(it.acquirer.as_str());
            text(it.token.expose(), 128);
            if let Some(info) = &it.pass_through_info {
                length(info.as_str(), 20_000);
            }
        }),
        2 => taken(doors::record_payment(data), |it| {
            payment_key(&it.key);
            fact(&it.fact);
        }),
        3 => taken(doors::record_fund_return(data), |it| {
            payment_key(&it.key);
            id(it.reference.as_str());
        }),
        4 => taken(doors::record_token(data), |it| {
            id(it.authorization.psp.as_str());
            id(it.authorization.authorization.as_str());
            id(it.acquirer.as_str());
            text(it.token.expose(), 128);
            it.expires_at.into_iter().for_each(moment);
            if let Some(replaced) = &it.replaces {
                text(replaced.expose(), 128);
            }
        }),
        5 => taken(doors::introspect_token(data), |(psp, token)| {
            id(psp.as_str());
            text(token.expose(), 128);
        }),
        6 => taken(doors::revoke_authorization(data), |it| {
            id(it.key.psp.as_str());
            id(it.key.authorization.as_str());
        }),
        7 => taken(doors::get_payment(data), payment_key),
        8 => taken(doors::list_outstanding_payments(data), |count| {
            assert!((1..=1_000).contains(count));
        }),
        9 => historic_token(data),
        10 => status(data),
        11 => {
            let code = doors::decided(data);
            assert!(code.is_none_or(|code| code.status() != ResultStatus::U));
        }
        12 | 13 => historic_payment(data),
        _ => story(data),
    }
}

/// A request is refused in our words, or is what it should be.
fn taken<T>(read: doors::Read<T>, check: impl FnOnce(&T)) {
    match read {
        None => {}
        Some(Ok(value)) => check(&value),
        Some(Err(status)) => {
            assert_eq!(status.code(), Code::InvalidArgument);
            assert_eq!(doors::refusal(&status), Some(ResultCode::ParamIllegal), "and is F");
            ours(status.message());
        }
    }
}

/// A text that we said: it goes into answers and logs, so it must have nothing of the caller's.
fn ours(text: &str) {
    assert!(!text.is_empty());
    assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
}

fn length(text: &str, chars_max: usize) {
    assert!((1..=chars_max).contains(&text.chars().count()));
}

fn text(text: &str, chars_max: usize) {
    length(text, chars_max);
    assert!(!text.contains(char::is_control));
    assert_eq!(text.trim(), text);
}

fn id(id: &str) {
    text(id, 64);
}

fn payment_key(key: &PaymentKey) {
    id(key.psp.as_str());
    id(key.payment_request.as_str());
}

fn moment(at: Timestamp) {
    assert_eq!(Timestamp::from_unix_ms(at.unix_ms), Some(at), "in the years 1 to 9999");
}

fn amount(amount: Amount) {
    assert!((1..=AMOUNT_MINOR_UNITS_MAX).contains(&amount.minor_units()));
    assert!(amount.currency().as_str().bytes().all(|byte| byte.is_ascii_uppercase()));
}

fn fact(fact: &Fact) {
    match fact {
        Fact::Initiated(terms) | Fact::Succeeded(terms) => {
            amount(terms.amount);
            moment(terms.initiated_at);
        }
        Fact::Failed { amount: told } => told.iter().copied().for_each(amount),
        Fact::RefundStarted { id: refund, amount: told } => {
            id(refund.as_str());
            amount(*told);
        }
        Fact::RefundSucceeded { id: refund, amount: told }
        | Fact::RefundFailed { id: refund, amount: told } => {
            id(refund.as_str());
            told.iter().copied().for_each(amount);
        }
    }
}

fn historic_payment(data: &[u8]) {
    match doors::import_payment(data) {
        None => {}
        Some(Err(why)) => ours(&why),
        Some(Ok(payment)) => told_again(&payment),
    }
}

/// What is told of a payment of history is that payment.
fn told_again(payment: &ImportPayment) {
    payment_key(&payment.key);
    let bytes = doors::payment_asked(payment);
    let again = doors::import_payment(&bytes).expect("it is a message");
    assert_eq!(again.as_ref(), Ok(payment));
}

fn historic_token(data: &[u8]) {
    match doors::import_token(data) {
        None => {}
        Some(Err(why)) => ours(&why),
        Some(Ok(token)) => {
            let bytes = doors::token_asked(&token);
            let again = doors::import_token(&bytes).expect("it is a message").expect("and a token");
            assert_eq!(doors::token_asked(&again), bytes);
            assert_eq!(again.token.expose(), token.token.expose());
            assert!(!format!("{token:?}").contains("token: \""), "a token is never printed");
        }
    }
}

/// Somebody else's status is never a final refusal but as one of three codes under our own name.
fn status(data: &[u8]) {
    let mut choices = Bytes(data);
    let code = Code::from(i32::from(choices.below(18)));
    let message = String::from_utf8_lossy(choices.slice()).into_owned();
    let details = choices.0.to_vec();
    let named = [&b"cancel.alipayplus"[..], b"google.rpc.ErrorInfo"]
        .iter()
        .all(|name| details.windows(name.len()).any(|window| window == *name));
    let status = Status::with_details(code, message, details.into());
    let refusal = doors::refusal(&status);
    assert!(
        refusal.is_none_or(|code| {
            let about_the_command = matches!(
                code,
                ResultCode::ParamIllegal
                    | ResultCode::AccessDenied
                    | ResultCode::RequestTrafficExceedLimit
            );
            about_the_command && named
        }),
        "{refusal:?}"
    );
}

const NOW: Timestamp = Timestamp { unix_ms: 1_790_000_000_000 };

/// A payment's life: whatever is recorded of it and in whatever order, its story can be told, and imported elsewhere.
fn story(data: &[u8]) {
    let mut choices = Bytes(data);
    let mut payment: Option<Payment> = None;
    let mut key: Option<PaymentKey> = None;
    for step in 0..32 {
        if choices.is_empty() {
            break;
        }
        let asked = Asked {
            now: Timestamp { unix_ms: NOW.unix_ms + step * 3_600_000 },
            clock_agrees: true,
            onboarding: false,
            tombstone_allowed: true,
            by: None,
            trace: None,
        };
        let kind = choices.below(3);
        let message = choices.slice();
        let next = match kind {
            0 => {
                let Some(Ok(command)) = doors::cancel_payment(message) else { continue };
                if *key.get_or_insert_with(|| command.key.clone()) != command.key {
                    continue;
                }
                let policy = Policy::default();
                cancel_payment::decide(payment.as_ref(), &command, &asked, &policy).next
            }
            1 => {
                let Some(Ok(command)) = doors::record_payment(message) else { continue };
                if *key.get_or_insert_with(|| command.key.clone()) != command.key {
                    continue;
                }
                record_payment::decide(payment.as_ref(), &command, &asked).next
            }
            _ => {
                let Some(Ok(command)) = doors::record_fund_return(message) else { continue };
                if *key.get_or_insert_with(|| command.key.clone()) != command.key {
                    continue;
                }
                record_fund_return::decide(payment.as_ref(), &command, &asked).next
            }
        };
        payment = next.or(payment);
    }
    let (Some(key), Some(payment)) = (key, payment) else { return };
    let bytes = doors::payment_told(&key, &payment);
    match doors::import_payment(&bytes).expect("it is a message") {
        // nothing was recorded of it but what nobody can import
        Err(why) => ours(&why),
        Ok(imported) => {
            assert_eq!(imported.history.life(), payment.life());
            assert_eq!(imported.history.funds(), payment.funds());
            let code = |payment: &Payment| payment.verdict().map(|verdict| verdict.code);
            assert_eq!(code(&imported.history), code(&payment));
            told_again(&imported);
        }
    }
}
