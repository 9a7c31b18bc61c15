//! Tokens that the wallet's own side records: a cancel revokes the whole authorization, and nothing brings it back.

use std::thread;

use super::{Checks, Source};
use crate::{
    cli::{
        certify::wallet::{Seal, Stop, Verdict, Wallet, failed, must},
        target::unique,
    },
    grpc::recorder::{RecordTokenAnswer as Answer, Token},
};

const TOKENS: &str = "docs/semantics.md § CancelToken";
const RECORDS: &str = "docs/semantics.md § RecordToken";

/// A token that the wallet has recorded.
fn granted(wallet: &Wallet, change: impl FnOnce(&mut Token)) -> Result<Token, Stop> {
    wallet.recorder()?;
    let mut token = wallet.target.new_token();
    change(&mut token);
    record(wallet, &token, Answer::Accepted)?;
    Ok(token)
}

fn record(wallet: &Wallet, token: &Token, due: Answer) -> Verdict {
    let got = wallet.wallet_side(wallet.recorder()?.record_token(token))?;
    must(got == due, format!("recording the token was answered {got:?} instead of {due:?}"))
}

fn is_active(wallet: &Wallet, token: &Token, due: bool) -> Verdict {
    let active = wallet.wallet_side(wallet.recorder()?.is_active(token))?;
    must(
        active == due,
        format!(
            "introspection says that the token is {}",
            if active { "active" } else { "not active" }
        ),
    )
}

fn cancel(wallet: &Wallet, token: &Token) -> Verdict {
    wallet.succeeds(&wallet.token_of(&token.token)).map(drop)
}

/// Another token of the same authorization.
fn sibling(of: &Token) -> Token {
    Token { token: unique("certify-token"), pass_through_info: None, ..of.clone() }
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, TOKENS);
    checks.add(
        "granted",
        "A granted token is cancelled, again and again with the same result",
        |wallet| {
            let token = granted(wallet, |_| {})?;
            is_active(wallet, &token, true)?;
            for _ in 0..3 {
                cancel(wallet, &token)?;
                is_active(wallet, &token, false)?;
            }
            Ok(())
        },
    );
    checks.add("parallel", "Sixteen cancels of a granted token at once get one result", |wallet| {
        let token = granted(wallet, |_| {})?;
        let requests: Vec<_> = (0..16).map(|_| wallet.token_of(&token.token)).collect();
        let answers = wallet.at_once(&requests)?;
        for (request, answer) in requests.iter().zip(&answers) {
            wallet.judge(request, answer, "SUCCESS", Seal::Signed)?;
        }
        is_active(wallet, &token, false)
    });
    checks.add(
        "pass-through",
        "The answer carries what the wallet set, the first time and every other",
        |wallet| {
            let info = "{\"note\":\"a \\\"quoted\\\" é\"}";
            let token = granted(wallet, |token| token.pass_through_info = Some(info.to_owned()))?;
            for _ in 0..2 {
                let answer = wallet.succeeds(&wallet.token_of(&token.token))?;
                let json = answer.json().unwrap_or_default();
                must(
                    json["passThroughInfo"] == info,
                    format!("passThroughInfo is {}", json["passThroughInfo"]),
                )?;
            }
            Ok(())
        },
    );
    checks.add(
        "no-pass-through",
        "Without one, the answer has no passThroughInfo, whatever was sent",
        |wallet| {
            let token = granted(wallet, |_| {})?;
            let body = serde_json::json!({
                "pspId": token.psp, "acquirerId": token.acquirer, "accessToken": token.token,
                "passThroughInfo": "from the acquirer",
            });
            let answer = wallet.succeeds(&wallet.token().body(body.to_string()))?;
            must(
                answer.json().is_some_and(|json| json.get("passThroughInfo").is_none()),
                "it has one",
            )
        },
    );
    checks.rule(Source::Advice, TOKENS);
    checks.add("siblings", "All tokens of the authorization are dead after it", |wallet| {
        let token = granted(wallet, |_| {})?;
        let other = sibling(&token);
        record(wallet, &other, Answer::Accepted)?;
        cancel(wallet, &token)?;
        is_active(wallet, &other, false)?;
        cancel(wallet, &other)
    });
    checks.add("refresh", "A refresh token sent as accessToken revokes as well", |wallet| {
        let token = granted(wallet, |_| {})?;
        let refresh = Token { refresh: true, ..sibling(&token) };
        record(wallet, &refresh, Answer::Accepted)?;
        cancel(wallet, &refresh)?;
        is_active(wallet, &token, false)
    });
    checks.add("rotated", "A token that was exchanged for another revokes that one", |wallet| {
        let token = granted(wallet, |_| {})?;
        let newer = Token { replaces: Some(token.token.clone()), ..sibling(&token) };
        record(wallet, &newer, Answer::Accepted)?;
        cancel(wallet, &token)?;
        is_active(wallet, &newer, false)
    });
    checks.add(
        "expired",
        "An expired token is cancelled, and revokes the authorization",
        |wallet| {
            let past = jiff::Timestamp::now().as_millisecond() - 60_000;
            let token = granted(wallet, |token| token.expires_at_ms = Some(past))?;
            let other = Token { expires_at_ms: None, ..sibling(&token) };
            record(wallet, &other, Answer::Accepted)?;
            cancel(wallet, &token)?;
            is_active(wallet, &other, false)
        },
    );
    checks.add("revoked", "A token whose authorization the wallet revoked is SUCCESS", |wallet| {
        let token = granted(wallet, |_| {})?;
        wallet.wallet_side(wallet.recorder()?.revoke(&token))?;
        cancel(wallet, &token)
    });
    checks.add(
        "other-acquirer",
        "A token of another acquirer is ACCESS_DENIED, and stays good",
        |wallet| {
            let token = granted(wallet, |token| token.acquirer = "certify-other-acquirer".into())?;
            wallet.refuses(&wallet.token_of(&token.token), "ACCESS_DENIED")?;
            is_active(wallet, &token, true)
        },
    );
    checks.rule(Source::Advice, RECORDS);
    checks.add("dead", "A token that was answered INVALID_TOKEN can never be recorded", |wallet| {
        wallet.recorder()?;
        let token = wallet.target.new_token();
        wallet.refuses(&wallet.token_of(&token.token), "INVALID_TOKEN")?;
        record(wallet, &token, Answer::RefusedDead)?;
        is_active(wallet, &token, false)?;
        wallet.refuses(&wallet.token_of(&token.token), "INVALID_TOKEN")
    });
    checks.add("exchange-after", "No exchange brings a revoked authorization back", |wallet| {
        let token = granted(wallet, |_| {})?;
        cancel(wallet, &token)?;
        let newer = Token { replaces: Some(token.token.clone()), ..sibling(&token) };
        record(wallet, &newer, Answer::RefusedRevoked)?;
        is_active(wallet, &newer, false)
    });
    checks.add(
        "race-exchange",
        "However a cancel and an exchange race, no token is left",
        |wallet| {
            for _ in 0..4 {
                let token = granted(wallet, |_| {})?;
                let newer = Token { replaces: Some(token.token.clone()), ..sibling(&token) };
                let (cancelled, told) = thread::scope(|scope| {
                    let cancelled = scope.spawn(|| cancel(wallet, &token));
                    let told = wallet.wallet_side(wallet.recorder()?.record_token(&newer));
                    Ok::<_, Stop>((cancelled.join(), told))
                })?;
                cancelled.unwrap_or_else(|_| failed("a sender failed"))?;
                let told = told?;
                must(
                    matches!(told, Answer::Accepted | Answer::RefusedRevoked),
                    format!("the exchange was answered {told:?}"),
                )?;
                is_active(wallet, &newer, false)?;
                is_active(wallet, &token, false)?;
            }
            Ok(())
        },
    );
}
