//! `sandbox`: everything on loopback with throwaway keys, the two official samples played through it.

mod demo;

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use http::Uri;
use zeroize::Zeroizing;

use super::{Failure, USUAL_PREFIX, Usage, exchange::Caller, in_use, print_all, serve};
use crate::{
    app::{Running, StartError},
    bridge::keys::{PrivateKey, PublicKey},
    config::Settings,
    domain::{
        amount::{Amount, Currency},
        id::{AcquirerId, AuthorizationId, PaymentRequestId, PspId, Token},
        key::{AuthorizationKey, PaymentKey},
        payment::Terms,
        record_payment::{Fact, RecordPayment},
        time::Timestamp,
        token::TokenKind,
    },
    engine::{self, RecordToken},
    store::StandingChange,
    telemetry,
};
use serde_json::{Value, json};

/// Runs everything on loopback with throwaway keys, and plays the two official sample requests
///
/// Makes a folder with keys, settings and an embedded store; records the payment and the token of Alipay+'s two API
/// pages; cancels both through the signed JSON endpoint and prints both exchanges; then keeps serving and prints
/// commands to try.
#[derive(Clone, Debug, clap::Args)]
pub struct Sandbox {
    /// Where keys, settings and store are kept; delete it to start afresh
    #[arg(long, value_name = "DIR", default_value = ".sandbox")]
    dir: PathBuf,
    /// Exit after the two exchanges: with status 0 only if both answered S and their signatures verified
    #[arg(long)]
    once: bool,
    /// Fill the store with payments and authorizations in every state, and two consumers of the feed: something for the
    /// console to show
    #[arg(long)]
    demo: bool,
}

/// Alipay+'s Client-Id in the sandbox.
const CLIENT_ID: &str = "SANDBOX_5YC47N2ZQHJ004124";
const SETTINGS_FILE: &str = "alipayplus-cancel.toml";
const ALIPAYPLUS_KEY: &str = "alipayplus";
/// The key that Alipay+ changes to next, under the next version.
const NEXT_KEY: &str = "alipayplus-next";
const WALLET_KEY: &str = "wallet";
/// Where it listens, while it serves.
const ADDRESSES_FILE: &str = "addresses.json";
const HASH_KEY_FILE: &str = "token-hash.key";

/// The request of the cancelPayment page, and what the payment must have been.
const PAYMENT_BODY: &str = r#"{
  "acquirerId": "1022188000000000001",
  "pspId": "1022172000000000001",
  "paymentRequestId": "20200101234567890132"
}"#;
const PAYMENT: [&str; 3] = ["1022188000000000001", "1022172000000000001", "20200101234567890132"];

/// The request of the cancelToken page, and what the token must have been.
const TOKEN_BODY: &str = r#"{
  "acquirerId": "102218800000001234",
  "pspId": "102208800000001230",
  "accessToken": "281010033AB2F588D14B43238637264FCA5A1234"
}"#;
const TOKEN: [&str; 3] =
    ["102218800000001234", "102208800000001230", "281010033AB2F588D14B43238637264FCA5A1234"];
const AUTHORIZATION: &str = "sandbox-consent-1";

impl Sandbox {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        telemetry::start(telemetry::Format::Text, "warn");
        let wrong =
            |error: anyhow::Error| Usage(format!("--dir {}: {error:#}", self.dir.display()));
        furnish(&self.dir).map_err(wrong)?;
        let running = match self.start(&self.listeners()).await {
            // somebody was quicker
            Err(error) if matches!(error.downcast_ref(), Some(StartError::Bind { .. })) => {
                self.start(&listeners_at(|_| 0)).await?
            }
            started => started.map_err(|error| self.another_there(error))?,
        };
        let played = self.play(&running).await;
        let good = match played {
            Ok(good) => good,
            Err(error) => {
                running.stop().await;
                return Err(error);
            }
        };
        if self.demo {
            let engine = running.engine().context("the sandbox has a core")?;
            let at = Addresses::of(&running)?;
            demo::play(engine, &self.caller()?, at.bridge, at.grpc).await?;
            say!("The demo's payments are there: their ids begin with demo-.")?;
        }
        if self.once {
            running.stop().await;
            return if good { Ok(()) } else { Err(Failure.into()) };
        }
        let addresses = Addresses::of(&running)?;
        addresses.note(&self.dir).map_err(wrong)?;
        for (usual, now) in addresses.moved() {
            say!("port {usual} is taken, so this sandbox has {} in its place", now.port())?;
        }
        print_all(self.commands(&addresses).as_bytes())?;
        // nothing is reloaded here, and its signal must not end it
        let (mut signals, _hang_up) = serve::Signals::listen()?;
        signals.told().await;
        signals.again_ends_at_once();
        running.stop().await;
        say!("stopped; keys, settings and store stay in {}", self.dir.display())
    }

    /// Says where the one is that has the store already.
    fn another_there(&self, error: anyhow::Error) -> anyhow::Error {
        if !in_use(&error) {
            return error;
        }
        let dir = self.dir.display();
        let noted = fs::read(self.dir.join(ADDRESSES_FILE)).ok();
        let noted: Option<Value> = noted.and_then(|noted| serde_json::from_slice(&noted).ok());
        let admin = noted.as_ref().and_then(|noted| noted["admin"].as_str());
        let console = admin.map(|admin| format!(" (its console: {admin}/console)"));
        let console = console.unwrap_or_default();
        error.context(format!(
            "a sandbox runs in {dir} already{console}; stop it, or give another folder with --dir"
        ))
    }

    async fn start(&self, listeners: &[(String, String)]) -> anyhow::Result<Running> {
        let file = self.dir.join(SETTINGS_FILE);
        // folders of earlier versions have settings without a console
        let console =
            [("access", "local".to_owned()), ("psp_ids", format!("{},{}", PAYMENT[1], TOKEN[1]))]
                .map(|(name, value)| (format!("console.{name}"), value));
        let flags: Vec<_> = listeners.iter().cloned().chain(console).collect();
        let loaded = Settings::load(Some(&file), std::iter::empty(), &flags)
            .map_err(|error| Usage(error.to_string()))?;
        let telemetry = telemetry::Telemetry::local();
        serve::start(&loaded.settings, loaded.role, &telemetry).await
    }

    /// The usual ports where they are free, so that commands can be copied; others where not, or where nobody will see.
    fn listeners(&self) -> Vec<(String, String)> {
        listeners_at(|usual| {
            let free = !self.once && TcpListener::bind(("127.0.0.1", usual)).is_ok();
            if free { usual } else { 0 }
        })
    }

    /// Records the samples and cancels them; whether both went well.
    async fn play(&self, running: &Running) -> anyhow::Result<bool> {
        let engine = running.engine().context("the sandbox has a core")?;
        engine.change_standing(StandingChange::ImportComplete).await?;
        record_samples(engine).await?;
        let bridge = Addresses::of(running)?.bridge;
        let caller = self.caller()?;
        let mut good = true;
        for (title, tail, body) in [
            ("cancelPayment", "/v1/payments/cancelPayment", PAYMENT_BODY),
            ("cancelToken", "/v1/authorizations/cancelToken", TOKEN_BODY),
        ] {
            let url: Uri = format!("http://{bridge}/aps/api{tail}").parse()?;
            let signed = caller.sign(&url, body.to_owned())?;
            let begun = Instant::now();
            let answered = caller.send(&signed).await?;
            let took = begun.elapsed();
            good &= answered.succeeded();
            say!("──── {title}: the official sample, signed by Alipay+ (a throwaway key) ────\n")?;
            say!("{}", signed.text(body))?;
            say!("──── the wallet's answer, after {:.1} ms ────\n", took.as_secs_f64() * 1e3)?;
            say!("{}", answered.text())?;
            say!("signature of the answer: {}\n", answered.signature.text())?;
        }
        say!(
            "{}",
            if good {
                "Both answered S, and both signatures verify."
            } else {
                "FAILED: see above."
            }
        )?;
        Ok(good)
    }

    fn caller(&self) -> anyhow::Result<Caller> {
        let read = |name: String| {
            let bytes = fs::read(self.dir.join(&name)).map(Zeroizing::new);
            bytes.with_context(|| format!("cannot read {name}"))
        };
        Ok(Caller {
            client_id: CLIENT_ID.to_owned(),
            key: PrivateKey::parse(read(private(ALIPAYPLUS_KEY))?)
                .context(private(ALIPAYPLUS_KEY))?,
            key_version: "1".to_owned(),
            peer_key: Some(
                PublicKey::parse(read(public(WALLET_KEY))?).context(public(WALLET_KEY))?,
            ),
            ca_file: None,
            timeout: Duration::from_secs(8),
        })
    }

    fn commands(&self, at: &Addresses) -> String {
        let dir = self.dir.display();
        let program = std::env::args().next().unwrap_or_else(|| "alipayplus-cancel".to_owned());
        let Addresses { grpc, bridge, admin } = at;
        let common = format!(
            "--url http://{bridge}/aps/api --client-id {CLIENT_ID} \\\n    --key {dir}/{} --peer-key {dir}/{}",
            private(ALIPAYPLUS_KEY),
            public(WALLET_KEY),
        );
        let [acquirer, psp, payment] = PAYMENT;
        let [token_acquirer, token_psp, token] = TOKEN;
        format!(
            r#"
Serving until Ctrl-C: JSON on http://{bridge}/aps/api, gRPC on {grpc}, probes on http://{admin}/readyz
The console, to look a payment up in a browser: http://{admin}/console
Settings, keys and store are in {dir}; delete it to start afresh. In another terminal, try:

  # cancel the sample payment again: the same result, for ever
  {program} call cancel-payment {common} \
    --psp-id {psp} --acquirer-id {acquirer} --payment-request-id {payment}

  # cancel a payment nobody knows: SUCCESS, and a later pay is refused
  {program} call cancel-payment {common} \
    --psp-id {psp} --acquirer-id {acquirer} --payment-request-id never-seen-1

  # the same as a curl command, signed now
  {program} call cancel-payment {common} \
    --psp-id {psp} --acquirer-id {acquirer} --payment-request-id never-seen-1 --curl

  # revoke the sample token again, read from standard input
  printf {token} | {program} call cancel-token {common} \
    --psp-id {token_psp} --acquirer-id {token_acquirer}

  # play Alipay+ against it in every way, good and bad; or a day of its traffic in a minute
  {program} certify --sandbox {dir} --html certify.html
  {program} simulate --sandbox {dir}

  # gRPC with reflection, as the wallet's own services call it
  grpcurl -plaintext -d '{{"psp_id":"{psp}","payment_request_id":"{payment}"}}' \
    {grpc} alipayplus.cancel.v1.PaymentService/GetPayment
"#
        )
    }
}

/// Settings of listeners, and the port that each has where it is free.
const USUAL_PORTS: [(&str, u16); 3] =
    [("grpc.listen", 50051), ("bridge.listen", 8080), ("admin.listen", 9090)];

/// Where to listen, chosen by the usual port.
fn listeners_at(chosen: impl Fn(u16) -> u16) -> Vec<(String, String)> {
    let listener =
        |(setting, port): (&str, u16)| (setting.to_owned(), format!("127.0.0.1:{}", chosen(port)));
    USUAL_PORTS.map(listener).into()
}

struct Addresses {
    grpc: SocketAddr,
    bridge: SocketAddr,
    admin: SocketAddr,
}

impl Addresses {
    fn of(running: &Running) -> anyhow::Result<Self> {
        let both = running.grpc.zip(running.bridge);
        let (grpc, bridge) = both.context("the sandbox has both fronts")?;
        Ok(Self { grpc, bridge, admin: running.admin })
    }
}

impl Addresses {
    /// Those that are not at their usual port, which it stands beside.
    fn moved(&self) -> impl Iterator<Item = (u16, SocketAddr)> {
        let [grpc, bridge, admin] = USUAL_PORTS.map(|(_, port)| port);
        let places = [(grpc, self.grpc), (bridge, self.bridge), (admin, self.admin)];
        places.into_iter().filter(|(usual, now)| now.port() != *usual)
    }

    /// For the tools that take theirs from the folder.
    fn note(&self, dir: &Path) -> anyhow::Result<()> {
        let Self { grpc, bridge, admin } = self;
        let noted = json!({
            "bridge": format!("http://{bridge}{USUAL_PREFIX}"),
            "grpc": format!("http://{grpc}"),
            "admin": format!("http://{admin}"),
        });
        fs::write(dir.join(ADDRESSES_FILE), format!("{noted:#}\n")).context(ADDRESSES_FILE)
    }
}

/// What a sandbox has in its folder, for tools that play Alipay+ against it.
pub(super) struct Made {
    pub(super) url: Uri,
    pub(super) grpc: Option<String>,
    pub(super) client_id: &'static str,
    pub(super) key: PathBuf,
    /// The next key and its version, unless the folder is an older one.
    pub(super) next_key: Option<(PathBuf, &'static str)>,
    pub(super) peer_key: PathBuf,
    pub(super) psp: &'static str,
    pub(super) acquirer: &'static str,
}

impl Made {
    /// Of a folder in which `sandbox` serves.
    pub(super) fn read(dir: &Path) -> Result<Self, Usage> {
        let wrong = |what: &str| {
            Usage(format!(
                "--sandbox {}: {what}; start one with `alipayplus-cancel sandbox`",
                dir.display()
            ))
        };
        let noted = fs::read(dir.join(ADDRESSES_FILE));
        let noted = noted.map_err(|_| wrong("no sandbox has served there"))?;
        let noted: Value = serde_json::from_slice(&noted)
            .map_err(|_| wrong(&format!("{ADDRESSES_FILE} cannot be read")))?;
        let url = noted["bridge"].as_str().and_then(|url| url.parse().ok());
        let next = dir.join(private(NEXT_KEY));
        let [acquirer, psp, _] = PAYMENT;
        Ok(Self {
            url: url.ok_or_else(|| wrong(&format!("{ADDRESSES_FILE} has no address")))?,
            grpc: noted["grpc"].as_str().map(str::to_owned),
            client_id: CLIENT_ID,
            key: dir.join(private(ALIPAYPLUS_KEY)),
            next_key: next.exists().then_some((next, "2")),
            peer_key: dir.join(public(WALLET_KEY)),
            psp,
            acquirer,
        })
    }
}

fn private(name: &str) -> String {
    format!("{name}.private.pem")
}

fn public(name: &str) -> String {
    format!("{name}.public.pem")
}

/// Makes what is not there yet; what is there stays.
fn furnish(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).context("cannot make the folder")?;
    let file = dir.join(SETTINGS_FILE);
    // an older folder's settings know of no next key
    let next = (!file.exists()).then_some(NEXT_KEY);
    for name in [ALIPAYPLUS_KEY, WALLET_KEY].into_iter().chain(next) {
        if dir.join(private(name)).exists() {
            continue;
        }
        let key = PrivateKey::generate(2048)?;
        secret(&dir.join(private(name)), key.pkcs8_pem()?.as_bytes())?;
        fs::write(dir.join(public(name)), key.public().spki_pem())?;
    }
    if !dir.join(HASH_KEY_FILE).exists() {
        let key: [u8; 32] = rand::random();
        let hex = key.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        secret(&dir.join(HASH_KEY_FILE), hex.as_bytes())?;
    }
    if !file.exists() {
        let store = fs::canonicalize(dir)?.join("state.db");
        let name = store.to_str().context("its name is not UTF-8")?;
        let plain = !name.contains(['?', '#', '%', '"', '\\']) && !name.contains(char::is_control);
        ensure!(plain, "its name has a character that a store's URL cannot have; choose another");
        fs::write(file, settings(&store))?;
    }
    Ok(())
}

/// Writes a file that only its owner reads.
fn secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

fn settings(store: &Path) -> String {
    format!(
        r#"# The sandbox's settings, made by `alipayplus-cancel sandbox`. Throwaway keys: never use them for anything else.

[store]
url = "sqlite://{store}"

[[identity.keys]]
version = "1"
file = "{wallet}"
state = "active"

[tokens]
hash_key_files = ["{HASH_KEY_FILE}"]

[[clients]]
id = "{CLIENT_ID}"
psp_ids = ["*"]
rate = {{ per_second = 100000, burst = 100000 }}

[[clients.keys]]
version = "1"
public_key_file = "{alipayplus}"

[[clients.keys]]
version = "2"
public_key_file = "{next}"

[telemetry]
log_format = "text"
"#,
        store = store.display(),
        wallet = private(WALLET_KEY),
        alipayplus = public(ALIPAYPLUS_KEY),
        next = public(NEXT_KEY),
    )
}

/// What the two samples cancel: a payment that was debited, a token that was granted. A second time it changes nothing.
async fn record_samples(engine: &engine::Engine) -> anyhow::Result<()> {
    let caller = || engine::Caller {
        deadline: Instant::now() + Duration::from_secs(5),
        client: None,
        trace: None,
    };
    let [acquirer, psp, payment] = PAYMENT;
    let key =
        PaymentKey { psp: PspId::parse(psp)?, payment_request: PaymentRequestId::parse(payment)? };
    let currency = Currency::parse("EUR").context("a currency")?;
    let terms = Terms {
        amount: Amount::new(1_999, currency).context("an amount")?,
        initiated_at: Timestamp { unix_ms: jiff::Timestamp::now().as_millisecond() },
    };
    for fact in [Fact::Initiated(terms), Fact::Succeeded(terms)] {
        let acquirer = Some(AcquirerId::parse(acquirer)?);
        engine.record_payment(RecordPayment { key: key.clone(), acquirer, fact }, caller()).await?;
    }
    let [acquirer, psp, token] = TOKEN;
    let authorization = AuthorizationId::parse(AUTHORIZATION)?;
    let command = RecordToken {
        authorization: AuthorizationKey { psp: PspId::parse(psp)?, authorization },
        acquirer: AcquirerId::parse(acquirer)?,
        token: Token::parse(token)?,
        kind: TokenKind::Access,
        expires_at: None,
        replaces: None,
        pass_through_info: None,
    };
    engine.record_token(command, caller()).await?;
    Ok(())
}
