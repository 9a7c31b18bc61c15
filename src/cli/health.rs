//! `health`: asks a running service how it is, for an image without a shell or curl.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time};

use super::Usage;

/// Asks a running service whether it is ready, or alive
///
/// For the image's HEALTHCHECK and for probes that run a command.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 if the answer is 200; 1 if not, with why; 2 wrong usage.")]
pub struct Health {
    /// What to ask: /readyz or /livez of the address in admin.listen, or any other URL
    #[arg(long, default_value = "http://127.0.0.1:9090/readyz")]
    url: Uri,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    timeout: jiff::SignedDuration,
}

/// Longest answer that is read, in bytes; the reason is a line.
const ANSWER_BYTES_MAX: usize = 4096;

impl Health {
    /// Asks.
    pub async fn run(self) -> anyhow::Result<()> {
        let (Some("http"), Some(host)) = (self.url.scheme_str(), self.url.host()) else {
            return Err(Usage(format!("--url {}: expected http://host:port/path", self.url)).into());
        };
        let wait = Duration::try_from(self.timeout).ok().filter(|wait| !wait.is_zero());
        let wait =
            wait.ok_or_else(|| Usage("--timeout: expected a length of time, as 2s".to_owned()))?;
        let Ok(answer) = time::timeout(wait, self.ask(host)).await else {
            bail!("{}: no answer within {wait:?}", self.url);
        };
        let (status, body) = answer.with_context(|| self.url.to_string())?;
        if status != StatusCode::OK {
            bail!("{} answers {}: {body}", self.url, status.as_u16());
        }
        say!("{body}")?;
        Ok(())
    }

    async fn ask(&self, host: &str) -> anyhow::Result<(StatusCode, String)> {
        let address = (host.trim_matches(['[', ']']), self.url.port_u16().unwrap_or(80));
        let socket = TcpStream::connect(address).await.context("cannot connect")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        let connection = tokio::spawn(connection);
        let authority = self.url.authority().map_or(host, |authority| authority.as_str());
        let target = self.url.path_and_query().map_or("/", |target| target.as_str());
        let request = Request::get(target).header("host", authority).body(Empty::<Bytes>::new())?;
        let response =
            sender.send_request(request).await.context("the connection ended without an answer")?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        connection.abort();
        // a longer one is none of ours; its status says enough
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Ok((status, String::from_utf8_lossy(&body).trim().to_owned()))
    }
}
