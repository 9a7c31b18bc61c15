//! Alipay+ changes its key: for a while both are right, each under its own version.

use super::{Checks, Source};
use crate::cli::{
    certify::wallet::{Stop, Wallet},
    target::{Signer, unique},
    wire::Request,
};

const SIGNED: &str = "docs/wire.md § What is signed";
const ORDER: &str = "docs/wire.md § Order of checks";

fn next(wallet: &Wallet) -> Result<&Signer, Stop> {
    let needed =
        || Stop::Skipped("needs --next-key, a second key that the wallet knows".to_owned());
    wallet.next.as_ref().ok_or_else(needed)
}

fn by(request: Request, signer: &Signer) -> Request {
    request.key(&signer.key).key_version(Some(&signer.version))
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, SIGNED);
    checks.add("next", "The next key is taken under its version", |wallet| {
        wallet.succeeds(&by(wallet.payment(), next(wallet)?)).map(drop)
    });
    checks.add("next-token", "The next key is taken for cancelToken", |wallet| {
        wallet.refuses(&by(wallet.token(), next(wallet)?), "INVALID_TOKEN")
    });
    checks.add("both", "The old key is still taken beside it", |wallet| {
        let next = next(wallet)?;
        for _ in 0..3 {
            wallet.succeeds(&by(wallet.payment(), next))?;
            wallet.succeeds(&wallet.payment())?;
        }
        Ok(())
    });
    checks.add(
        "across",
        "A retry that the next key signs gets the result of the first",
        |wallet| {
            let (next, id) = (next(wallet)?, unique("certify"));
            wallet.succeeds(&wallet.payment_of(&id))?;
            wallet.succeeds(&by(wallet.payment_of(&id), next))?;
            wallet.succeeds(&wallet.payment_of(&id)).map(drop)
        },
    );
    checks.rule(Source::Clients, SIGNED);
    checks.add("no-version", "Without a keyVersion either key is found", |wallet| {
        let next = next(wallet)?;
        wallet.succeeds(&wallet.payment().key_version(None))?;
        wallet.succeeds(&wallet.payment().key(&next.key).key_version(None)).map(drop)
    });
    checks.rule(Source::Advice, ORDER);
    checks.add(
        "old-as-next",
        "The old key under the next version is INVALID_SIGNATURE",
        |wallet| {
            let version = next(wallet)?.version.clone();
            wallet.turns_away(&wallet.payment().key_version(Some(&version)), "INVALID_SIGNATURE")
        },
    );
    checks.add(
        "next-as-old",
        "The next key under the old version is INVALID_SIGNATURE",
        |wallet| {
            let key = next(wallet)?.key.clone();
            wallet.turns_away(&wallet.payment().key(&key), "INVALID_SIGNATURE")
        },
    );
}
