//! Heads that two readers would read differently, a proxy and the wallet: whoever gets a second request past the first must
//! not have it carried out. How they are refused is the wallet's own affair.

use super::{Checks, Source};
use crate::cli::{
    certify::wallet::{Wallet, must},
    wire::{Framing, Request},
};

const BELOW: &str = "docs/wire.md § Below that";
const ORDER: &str = "docs/wire.md § Order of checks";

/// A right request whose body's end is told by these lines.
fn framed(wallet: &Wallet, lines: &[&str]) -> Request {
    let request = wallet.payment().framing(Framing::Unsaid);
    let length = request.body.len();
    let lines = lines.iter().map(|line| line.replace("LENGTH", &length.to_string()));
    lines.fold(request, Request::line)
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Advice, BELOW);
    checks.add("bare-line-feeds", "Lines that end in a bare LF are refused", |wallet| {
        let request = wallet.payment();
        let head = String::from_utf8_lossy(&request.head()).replace("\r\n", "\n");
        let bytes = [head.as_bytes(), &request.body].concat();
        wallet.never_succeeds(&bytes, &request)
    });
    checks.add("one-bare-line-feed", "One line that ends in a bare LF is refused", |wallet| {
        let request = wallet.payment();
        let head =
            String::from_utf8_lossy(&request.head()).replacen("\r\nClient-Id", "\nClient-Id", 1);
        let bytes = [head.as_bytes(), &request.body].concat();
        wallet.never_succeeds(&bytes, &request)
    });
    let framings: [(&str, &str, &[&str]); 6] = [
        (
            "length-and-chunked",
            "Content-Length beside Transfer-Encoding is refused",
            &["Content-Length: LENGTH", "Transfer-Encoding: chunked"],
        ),
        (
            "two-lengths",
            "Two Content-Length that differ are refused",
            &["Content-Length: LENGTH", "Content-Length: 1"],
        ),
        ("signed-length", "A Content-Length with a sign is refused", &["Content-Length: +LENGTH"]),
        (
            "hex-length",
            "A Content-Length in another number system is refused",
            &["Content-Length: 0xLENGTH"],
        ),
        (
            "coded",
            "A Transfer-Encoding that is not chunked is refused",
            &["Transfer-Encoding: gzip, chunked"],
        ),
        ("no-length", "A body without a length is not read", &[]),
    ];
    for (name, title, lines) in framings {
        checks.add(name, title, move |wallet| {
            let request = framed(wallet, lines);
            wallet.never_succeeds(&request.bytes(), &request)
        });
    }
    checks.add("blank-before-colon", "White space before a header's colon is refused", |wallet| {
        let request = wallet.payment();
        let head = String::from_utf8_lossy(&request.head()).replace("Client-Id:", "Client-Id :");
        wallet.never_succeeds(&[head.as_bytes(), &request.body].concat(), &request)
    });
    checks.add("folded", "A header that goes on in the next line is refused", |wallet| {
        let request = wallet.payment();
        let head =
            String::from_utf8_lossy(&request.head()).replace("Client-Id: ", "Client-Id:\r\n ");
        wallet.never_succeeds(&[head.as_bytes(), &request.body].concat(), &request)
    });
    checks.add("nul", "A NUL in a head is refused", |wallet| {
        let request = wallet.payment().line("X-Nul: a\0b");
        wallet.never_succeeds(&request.bytes(), &request)
    });
    checks.add("huge-head", "A head of a megabyte is refused", |wallet| {
        let request = wallet.payment().line(format!("X-Huge: {}", "x".repeat(1 << 20)));
        wallet.never_succeeds(&request.bytes(), &request)
    });
    checks.add("noise", "What is no HTTP at all harms nobody", |wallet| {
        let request = wallet.payment();
        wallet.never_succeeds(
            &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0xff, b'\r', b'\n', b'\r', b'\n'],
            &request,
        )
    });
    checks.rule(Source::Advice, ORDER);
    for (name, title, hosts) in [
        ("no-host", "A request without Host is refused", &[][..]),
        (
            "two-hosts",
            "A request with two Host is refused",
            &["wallet.example", "other.example"][..],
        ),
    ] {
        checks.add(name, title, move |wallet| {
            let mut request = wallet.payment();
            request.hosts = hosts.iter().map(|&host| host.to_owned()).collect();
            wallet.never_succeeds(&request.bytes(), &request)
        });
    }
    checks.add(
        "smuggled",
        "A request in the body of one that is refused is not carried out",
        |wallet| {
            let inner = wallet.payment();
            let outer =
                wallet.payment().body(inner.bytes()).sealed().times(&["2019-05-28T12:12:12Z"]);
            let mut connection = wallet.connect()?;
            let first = wallet.ask_on(&mut connection, &outer)?;
            must(
                first.is_err()
                    || first.is_ok_and(|answer| {
                        answer.result("resultCode").as_deref() != Some("SUCCESS")
                    }),
                "the outer one was carried out",
            )?;
            // a second answer would be that of the inner one; a next request on the connection gets its own
            let next = wallet.token();
            if let Ok(answer) = wallet.ask_on(&mut connection, &next)? {
                let code = answer.result("resultCode");
                must(
                    code.as_deref() == Some("INVALID_TOKEN"),
                    format!("the next request was answered {code:?}"),
                )?;
            }
            Ok(())
        },
    );
}
