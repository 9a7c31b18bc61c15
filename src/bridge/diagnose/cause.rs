//! What may be wrong, in words: what happened, and what to do at which side.

use super::one_line;

/// Something that is wrong with a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// For machines; stays as it is.
    pub code: &'static str,
    /// What happened.
    pub says: String,
    /// What the signer has to do.
    pub signer: &'static str,
    /// What the receiver can do, if anything.
    pub receiver: &'static str,
}

const STRING: &str =
    "sign `<method> <path>`, one line feed, `<Client-Id>.<time>.<body>`, and nothing behind it";
const VERSIONS: &str = "register the key under this version (`clients.keys`), or tell the signer which version is registered";

impl Cause {
    fn new(
        code: &'static str,
        says: impl Into<String>,
        signer: &'static str,
        receiver: &'static str,
    ) -> Self {
        Self { code, says: says.into(), signer, receiver }
    }

    pub(super) fn header(name: &str, count: usize) -> Self {
        let says = if count == 0 {
            format!("there is no {name} header")
        } else {
            format!("the {name} header stands there {count} times, and one is due")
        };
        Self::new(
            "header",
            says,
            "send it once",
            "look for a proxy that takes headers out or adds them",
        )
    }

    pub(super) fn body(how: &str) -> Self {
        Self::new(
            "body-rewritten",
            format!(
                "the body was rewritten after it was signed, or before it was captured: signed {how}"
            ),
            "serialise once, sign those very bytes and send them",
            "look for what rewrites bodies on the way: a gateway, a firewall, a logging filter",
        )
    }

    pub(super) fn target(target: &str, how: &str) -> Self {
        Self::new(
            "path",
            format!("another path was signed, {how}: `{}`", one_line(target)),
            "sign path and query exactly as the request line has them where the request arrives",
            "let no proxy add, strip or rewrite the path; the public prefix belongs into `bridge.path_prefixes`",
        )
    }

    pub(super) fn time(time: &str) -> Self {
        let says = if time.is_empty() {
            "no time was signed".to_owned()
        } else {
            format!("the time was written differently when it was signed: `{}`", one_line(time))
        };
        Self::new("time", says, "make the text of the time once, sign it and send it", "")
    }

    pub(super) fn client(client: &str) -> Self {
        let says = format!("another Client-Id was signed: `{}`", one_line(client));
        Self::new("client-id", says, "sign the Client-Id exactly as its header has it", "")
    }

    pub(super) fn method(method: &str) -> Self {
        let says = format!("another method was signed: `{method}`");
        Self::new(
            "method",
            says,
            "sign the method as the request line has it: POST, in capitals",
            "",
        )
    }

    pub(super) fn composition(says: &str) -> Self {
        Self::new("composition", says, STRING, "")
    }

    pub(super) fn encoding(says: &str, signer: &'static str) -> Self {
        Self::new(
            "signature-encoding",
            says,
            signer,
            "look for a proxy that decodes or encodes headers",
        )
    }

    pub(super) fn algorithm(found: Option<&str>) -> Self {
        let found =
            found.map_or_else(|| "none".to_owned(), |found| format!("`{}`", one_line(found)));
        Self::new(
            "algorithm",
            format!("the Signature header says algorithm {found}, and RSA256 is due"),
            "send `algorithm=RSA256,keyVersion=…,signature=…`",
            "",
        )
    }

    pub(super) fn hash(name: &str) -> Self {
        Self::new(
            "hash",
            format!("the signature was made with {name}, and SHA-256 is due"),
            "sign with SHA256withRSA, which is what RSA256 means",
            "",
        )
    }

    pub(super) fn pss() -> Self {
        Self::new(
            "padding",
            "the signature was made with PSS padding, and PKCS#1 v1.5 is due",
            "sign with RSASSA-PKCS1-v1_5 (SHA256withRSA), not RSASSA-PSS",
            "",
        )
    }

    pub(super) fn bare() -> Self {
        Self::new(
            "padding",
            "the digest was encrypted with the private key without naming its hash, and a PKCS#1 v1.5 signature is due",
            "use the library's signing (SHA256withRSA), not its encryption",
            "",
        )
    }

    pub(super) fn swapped_key(owner: &str, client: &str) -> Self {
        Self::new(
            "swapped-key",
            format!(
                "signed with the key of client {owner}, while Client-Id says {}",
                one_line(client)
            ),
            "sign with the private key that belongs to this Client-Id",
            "if the signer is right, two clients' public keys are swapped in the settings",
        )
    }

    pub(super) fn unknown_client(client: &str, owner: &str) -> Self {
        Self::new(
            "unknown-client",
            format!(
                "Client-Id {} is not registered here; the key is that of client {owner}",
                one_line(client)
            ),
            "send the Client-Id that is registered",
            "register the client (`clients`)",
        )
    }

    pub(super) fn own_key(name: &str) -> Self {
        Self::new(
            "own-key",
            format!(
                "the request was signed with {name}: the wallet's key, which only signs answers"
            ),
            "sign with the caller's own private key, not with the wallet's",
            "the wallet's private key is in other hands: replace it",
        )
    }

    pub(super) fn clients_key(name: &str) -> Self {
        Self::new(
            "swapped-key",
            format!("the answer was signed with {name}, which only signs requests"),
            "sign answers with the wallet's own private key",
            "verify answers with the wallet's public key",
        )
    }

    pub(super) fn version(sent: &str, name: &str, there: bool) -> Self {
        let sent = one_line(sent);
        if there {
            let says = format!("the header says keyVersion {sent}, but {name} signed");
            return Self::new(
                "other-version",
                says,
                "send the version of the key that signs",
                VERSIONS,
            );
        }
        let says = format!("keyVersion {sent} is not known here; {name} signed");
        Self::new(
            "unknown-version",
            says,
            "send the version under which the key is registered",
            VERSIONS,
        )
    }

    pub(super) fn ended_key(name: &str) -> Self {
        Self::new(
            "ended-key",
            format!("{name} has ended, so nothing that it signs is taken"),
            "sign with a key that is still registered",
            "a later `not_after` takes it for longer",
        )
    }

    pub(super) fn wrong_key() -> Self {
        Self::new(
            "wrong-key",
            "no key at hand made this signature",
            "compare fingerprints: `keys show` on the private key must print that of the registered public key",
            "register the public key that belongs to the signer's private key, and mind sandbox against production",
        )
    }

    pub(super) fn content() -> Self {
        Self::new(
            "content",
            "what was signed is not what was captured",
            "log the exact string that is signed, and compare it with `must be signed` byte by byte",
            "capture at the service itself, behind every proxy; headers and body of one and the same request",
        )
    }
}
