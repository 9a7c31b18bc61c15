//! `call`: acts as Alipay+ against a wallet's endpoint, ours or any other.

use std::{
    fs,
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{
    Failure, Usage,
    exchange::{Answered, Caller, Signed, Verdict},
};
use crate::bridge::keys::{PrivateKey, PublicKey};

/// Acts as Alipay+: signs a request, sends it, verifies the answer and prints both
///
/// Exit status: 0 if the answer is S and its signature verifies, 1 if not, 2 for wrong usage.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example, against the sandbox:
  alipayplus-cancel call cancel-payment --url http://127.0.0.1:8080/aps/api \\
    --client-id SANDBOX_5YC47N2ZQHJ004124 \\
    --key .sandbox/alipayplus.private.pem --peer-key .sandbox/wallet.public.pem \\
    --psp-id 1022172000000000001 --acquirer-id 1022188000000000001 \\
    --payment-request-id 20200101234567890132")]
pub struct Call {
    #[command(subcommand)]
    api: Api,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Api {
    /// Undoes a payment, whatever became of it
    #[command(alias = "cancelPayment")]
    CancelPayment(CancelPayment),
    /// Revokes the authorization that a token belongs to
    #[command(alias = "cancelToken")]
    CancelToken(CancelToken),
}

#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// The endpoint: its prefix (http://127.0.0.1:8080/aps/api), or with the API's path
    #[arg(long)]
    url: Uri,
    /// The Client-Id to ask with
    #[arg(long)]
    client_id: String,
    /// The private key that signs the request: PEM or bare base64
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// keyVersion of --key
    #[arg(long, default_value = "1")]
    key_version: String,
    /// The wallet's public key, to verify the answer: PEM or bare base64
    #[arg(long, value_name = "FILE")]
    peer_key: Option<PathBuf>,
    /// A certificate authority to trust beside the system's, PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The wallet's id
    #[arg(long)]
    psp_id: String,
    /// The acquirer's id
    #[arg(long)]
    acquirer_id: String,
    /// Print JSON for machines
    #[arg(long, conflicts_with = "curl")]
    json: bool,
    /// Print the signed request as a curl command instead of sending it
    #[arg(long)]
    curl: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct CancelPayment {
    #[command(flatten)]
    common: Common,
    /// The payment to undo
    #[arg(long)]
    payment_request_id: String,
}

#[derive(Clone, Debug, clap::Args)]
struct CancelToken {
    #[command(flatten)]
    common: Common,
    /// A file with the token; without it, the token is read from standard input. Never an argument: other users of the
    /// machine could read it
    #[arg(long, value_name = "FILE")]
    access_token_file: Option<PathBuf>,
    /// What the acquirer passes through to the wallet
    #[arg(long)]
    pass_through_info: Option<String>,
}

/// As long as Alipay+ waits.
const CANCEL_PAYMENT_WAIT: Duration = Duration::from_secs(8);
const CANCEL_TOKEN_WAIT: Duration = Duration::from_secs(5);

impl Call {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.api {
            Api::CancelPayment(CancelPayment { common, payment_request_id }) => {
                let body = json!({
                    "acquirerId": common.acquirer_id,
                    "pspId": common.psp_id,
                    "paymentRequestId": payment_request_id,
                });
                common.exchange("/v1/payments/cancelPayment", &body, CANCEL_PAYMENT_WAIT).await
            }
            Api::CancelToken(CancelToken { common, access_token_file, pass_through_info }) => {
                let mut body = Map::new();
                body.insert("pspId".to_owned(), common.psp_id.clone().into());
                body.insert("acquirerId".to_owned(), common.acquirer_id.clone().into());
                body.insert(
                    "accessToken".to_owned(),
                    token(access_token_file.as_deref())?.as_str().into(),
                );
                if let Some(info) = pass_through_info {
                    body.insert("passThroughInfo".to_owned(), info.into());
                }
                common
                    .exchange(
                        "/v1/authorizations/cancelToken",
                        &Value::Object(body),
                        CANCEL_TOKEN_WAIT,
                    )
                    .await
            }
        }
    }
}

fn token(file: Option<&Path>) -> anyhow::Result<Zeroizing<String>> {
    let text = Zeroizing::new(if let Some(file) = file {
        fs::read_to_string(file)
            .map_err(|error| Usage(format!("--access-token-file {}: {error}", file.display())))?
    } else {
        let mut input = std::io::stdin();
        if input.is_terminal() {
            eprintln!("access token, then end of input (Ctrl-D):");
        }
        let mut text = String::new();
        input
            .read_to_string(&mut text)
            .map_err(|error| Usage(format!("standard input: {error}")))?;
        text
    });
    let token = text.trim_end_matches(['\r', '\n']);
    if token.is_empty() {
        return Err(Usage("the access token is empty".to_owned()).into());
    }
    Ok(Zeroizing::new(token.to_owned()))
}

impl Common {
    fn caller(&self, timeout: Duration) -> Result<Caller, Usage> {
        let read = |flag: &str, file: &Path| {
            let bytes = fs::read(file).map(Zeroizing::new);
            bytes.map_err(|error| Usage(format!("{flag} {}: {error}", file.display())))
        };
        if http::HeaderValue::try_from(&self.client_id).is_err() {
            return Err(Usage("--client-id: has a character that no header can carry".to_owned()));
        }
        let key = PrivateKey::parse(read("--key", &self.key)?)
            .map_err(|error| Usage(format!("--key {} {error}", self.key.display())))?;
        let peer_key = match &self.peer_key {
            None => None,
            Some(file) => Some(
                PublicKey::parse(read("--peer-key", file)?)
                    .map_err(|error| Usage(format!("--peer-key {} {error}", file.display())))?,
            ),
        };
        Ok(Caller {
            client_id: self.client_id.clone(),
            key,
            key_version: self.key_version.clone(),
            peer_key,
            ca_file: self.ca_file.clone(),
            timeout,
        })
    }

    /// The whole URL: the prefix with the API's path, unless it has that already.
    fn endpoint(&self, tail: &str) -> Result<Uri, Usage> {
        let bad = |what: &str| Usage(format!("--url {}: {what}", self.url));
        if !matches!(self.url.scheme_str(), Some("http" | "https")) || self.url.host().is_none() {
            return Err(bad("expected http://host/prefix or https://host/prefix"));
        }
        let path = self.url.path().trim_end_matches('/');
        let path = if path.ends_with(tail) { path.to_owned() } else { format!("{path}{tail}") };
        let target = match self.url.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let mut parts = self.url.clone().into_parts();
        parts.path_and_query = Some(target.parse().map_err(|_| bad("its path is not one"))?);
        Uri::from_parts(parts).map_err(|_| bad("it is not a URL"))
    }

    async fn exchange(&self, tail: &str, body: &Value, timeout: Duration) -> anyhow::Result<()> {
        let caller = self.caller(timeout)?;
        let signed = caller.sign(&self.endpoint(tail)?, body.to_string())?;
        if self.curl {
            say!("{}", signed.curl())?;
            return Ok(());
        }
        let answered = caller.send(&signed).await?;
        if self.json {
            say!("{}", machine(&signed, &answered))?;
        } else {
            say!(
                "{}\n{}\nsignature of the answer: {}",
                signed.text(&shown(body)),
                answered.text(),
                answered.signature.text()
            )?;
        }
        let good = answered.succeeded()
            || (answered.signature == Verdict::Unchecked
                && answered.result_status().as_deref() == Some("S"));
        if good { Ok(()) } else { Err(Failure.into()) }
    }
}

/// The body as it may be shown: a terminal's scrollback is no place for a token.
fn shown(body: &Value) -> String {
    let mut body = body.clone();
    if let Some(token) = body.get_mut("accessToken") {
        *token = "(not shown)".into();
    }
    body.to_string()
}

fn machine(signed: &Signed, answered: &Answered) -> Value {
    let headers: Map<String, Value> =
        answered.headers.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let body = serde_json::from_str(&answered.body)
        .unwrap_or_else(|_| Value::String(answered.body.clone()));
    json!({
        "url": signed.url.to_string(),
        "status": answered.status,
        "headers": headers,
        "body": body,
        "signature": match answered.signature {
            Verdict::Verified => "verified",
            Verdict::Missing => "missing",
            Verdict::Wrong => "wrong",
            Verdict::Unchecked => "unchecked",
        },
    })
}
