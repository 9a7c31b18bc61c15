//! The wallet under test, as a check sees it: what may be sent, what came, and what must be true of every answer.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::super::{
    target::{CANCEL_PAYMENT, CANCEL_TOKEN, Signer, Target, unique},
    wire::{Answer, Connection, NoAnswer, Request, shortened, signature_of},
};
use crate::grpc::recorder::{self, Recorder};

/// Why a check did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// What is wrong.
    Failed(String),
    /// What it needs.
    Skipped(String),
    /// Which bound of the run is reached.
    CutShort(&'static str),
}

/// How a check ended.
pub(super) type Verdict = Result<(), Stop>;

/// Fails with these words.
pub(super) fn failed<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(why.into()))
}

/// Fails unless that holds.
pub(super) fn must(holds: bool, why: impl Into<String>) -> Verdict {
    if holds { Ok(()) } else { failed(why) }
}

/// A request and what it was answered, as people read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    pub(super) request: String,
    pub(super) answer: String,
    pub(super) took: Duration,
}

/// What bounds a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) requests: u64,
    pub(super) until: Instant,
    pub(super) cancel_payment_wait: Duration,
    pub(super) cancel_token_wait: Duration,
}

/// What a check may use.
pub(super) struct Wallet {
    pub(super) target: Target,
    /// The key that Alipay+ changes to next.
    pub(super) next: Option<Signer>,
    /// A pspId that the client may not act for.
    pub(super) foreign_psp: Option<String>,
    /// An acquirerId that it may not act for.
    pub(super) foreign_acquirer: Option<String>,
    pub(super) bounds: Bounds,
    pub(super) runtime: Handle,
    sent: AtomicU64,
    exchanges: Mutex<Vec<Exchange>>,
}

/// The shortest and longest ids and tokens.
pub(super) const ID_MAX: usize = 64;
pub(super) const TOKEN_MAX: usize = 128;

/// Exchanges that are kept of one check.
const KEPT: usize = 8;
/// How often a request that was turned away for want of room is sent again.
const PATIENCE: u32 = 6;

/// Whether an answer must be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// The request had proven itself, so it must.
    Signed,
    /// Nobody is promised one; what is there must verify.
    IfAny,
}

/// The status of every code of the two API pages.
pub(super) fn status_of(code: &str) -> Option<&'static str> {
    match code {
        "SUCCESS" => Some("S"),
        "REQUEST_TRAFFIC_EXCEED_LIMIT" | "UNKNOWN_EXCEPTION" => Some("U"),
        "ACCESS_DENIED"
        | "CANCEL_WINDOW_EXCEED"
        | "INVALID_CLIENT"
        | "INVALID_SIGNATURE"
        | "INVALID_TOKEN"
        | "KEY_NOT_FOUND"
        | "MEDIA_TYPE_NOT_ACCEPTABLE"
        | "METHOD_NOT_SUPPORTED"
        | "NO_INTERFACE_DEF"
        | "PARAM_ILLEGAL"
        | "PROCESS_FAIL" => Some("F"),
        _ => None,
    }
}

impl Wallet {
    pub(super) fn new(target: Target, bounds: Bounds, runtime: Handle) -> Self {
        Self {
            next: target.next.clone(),
            target,
            foreign_psp: None,
            foreign_acquirer: None,
            bounds,
            runtime,
            sent: AtomicU64::new(0),
            exchanges: Mutex::new(Vec::new()),
        }
    }

    fn exchanges(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said since the last time.
    pub(super) fn take_exchanges(&self) -> Vec<Exchange> {
        std::mem::take(&mut *self.exchanges())
    }

    /// Requests so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Another request may be sent.
    fn count(&self) -> Verdict {
        if Instant::now() >= self.bounds.until {
            return Err(Stop::CutShort("needs more time than --time-limit gives"));
        }
        if self.sent.fetch_add(1, Ordering::Relaxed) >= self.bounds.requests {
            return Err(Stop::CutShort("needs more requests than --max-requests allows"));
        }
        Ok(())
    }

    /// How long Alipay+ waits for the answer to this.
    pub(super) fn wait(&self, request: &Request) -> Duration {
        let of_token =
            request.target.split('?').next().is_some_and(|path| path.ends_with(CANCEL_TOKEN));
        if of_token { self.bounds.cancel_token_wait } else { self.bounds.cancel_payment_wait }
    }

    /// cancelPayment of a payment that nobody knows, right in everything.
    pub(super) fn payment(&self) -> Request {
        self.payment_of(&unique("certify"))
    }

    /// cancelPayment of that payment.
    pub(super) fn payment_of(&self, id: &str) -> Request {
        self.target.request(CANCEL_PAYMENT, self.target.payment_body(id))
    }

    /// cancelToken of a token that nobody knows, right in everything.
    pub(super) fn token(&self) -> Request {
        self.token_of(&unique("certify-token"))
    }

    /// cancelToken of that token.
    pub(super) fn token_of(&self, token: &str) -> Request {
        self.target.request(CANCEL_TOKEN, self.target.token_body(token))
    }

    pub(super) fn connect(&self) -> Result<Connection, Stop> {
        let connected = self.target.endpoint.connect(self.bounds.cancel_payment_wait);
        connected.map_err(|error| Stop::Failed(told(&error)))
    }

    fn keep(&self, request: &Request, answer: &Result<Answer, NoAnswer>, took: Duration) {
        let mut exchanges = self.exchanges();
        // the first ones show how it began, the last ones what went wrong
        if exchanges.len() >= KEPT {
            exchanges.remove(KEPT / 2);
        }
        let head = String::from_utf8_lossy(&request.head()).replace("\r\n", "\n");
        let head = shortened(head.trim_end().as_bytes());
        let request = format!("{head}\n\n{}", shortened(&request.body));
        let answer = match answer {
            Ok(answer) => answer.text(),
            Err(error) => format!("({})", told(error)),
        };
        exchanges.push(Exchange { request, answer, took });
    }

    /// Sends it on a connection and reads the answer, whatever it is.
    pub(super) fn ask_on(
        &self,
        connection: &mut Connection,
        request: &Request,
    ) -> Result<Result<Answer, NoAnswer>, Stop> {
        self.count()?;
        connection.write(&request.bytes());
        Ok(self.answer_on(connection, request))
    }

    /// The answer to a request that was sent.
    pub(super) fn answer_on(
        &self,
        connection: &mut Connection,
        request: &Request,
    ) -> Result<Answer, NoAnswer> {
        let begun = Instant::now();
        let answer = connection.answer(request.has_answer_body(), self.wait(request));
        self.keep(request, &answer, begun.elapsed());
        answer
    }

    /// Sends it on a connection of its own, whatever comes back.
    pub(super) fn ask(&self, request: &Request) -> Result<Result<Answer, NoAnswer>, Stop> {
        self.ask_on(&mut self.connect()?, request)
    }

    /// Sends it, and needs an answer. One that says that there is no room is asked again, as Alipay+ does.
    pub(super) fn send(&self, request: &Request) -> Result<Answer, Stop> {
        let mut pause = Duration::from_millis(200);
        for _ in 0..PATIENCE {
            let answer = self.ask(request)?.map_err(|error| Stop::Failed(told(&error)))?;
            if answer.result("resultCode").as_deref() != Some("REQUEST_TRAFFIC_EXCEED_LIMIT") {
                return Ok(answer);
            }
            thread::sleep(pause);
            pause = pause.saturating_mul(2);
        }
        failed(
            "was turned away with REQUEST_TRAFFIC_EXCEED_LIMIT again and again; raise the client's limits for this run",
        )
    }

    /// Sends it, and needs this code with its status; signed as it must be.
    pub(super) fn expect(&self, request: &Request, code: &str, seal: Seal) -> Result<Answer, Stop> {
        let answer = self.send(request)?;
        self.judge(request, &answer, code, seal)?;
        Ok(answer)
    }

    /// Whether an answer is this code with its status, signed as it must be.
    pub(super) fn judge(
        &self,
        request: &Request,
        answer: &Answer,
        code: &str,
        seal: Seal,
    ) -> Verdict {
        let (got, status) = (answer.result("resultCode"), answer.result("resultStatus"));
        let Some((got, status)) = got.zip(status) else {
            return failed(format!(
                "expected {code}; the answer (HTTP {}) has no result.resultCode and resultStatus",
                answer.status
            ));
        };
        must(got == code, format!("expected {code}, got {got}"))?;
        let due = status_of(code).unwrap_or("");
        must(status == due, format!("{code} has the resultStatus {due}, not {status}"))?;
        self.judge_seal(request, answer, seal)
    }

    /// Whether an answer is signed as it must be.
    pub(super) fn judge_seal(&self, request: &Request, answer: &Answer, seal: Seal) -> Verdict {
        if answer.header("signature").is_none() {
            return must(seal == Seal::IfAny, "the answer is not signed");
        }
        let Some(header) = signature_of(answer) else {
            return failed("the answer's signature header cannot be read");
        };
        let Some(string) = request.answered_string(answer) else {
            return failed("the answer is signed and has no response-time");
        };
        let good = self.target.peer_key.verify(&string, &header.signature);
        must(good, "the answer's signature does not verify with the wallet's public key")
    }

    /// A request that is right: cancelPayment succeeds, signed.
    pub(super) fn succeeds(&self, request: &Request) -> Result<Answer, Stop> {
        self.expect(request, "SUCCESS", Seal::Signed)
    }

    /// A request that proves itself and is refused for what it asks, signed.
    pub(super) fn refuses(&self, request: &Request, code: &str) -> Verdict {
        self.expect(request, code, Seal::Signed).map(drop)
    }

    /// A request that does not prove itself, or does not get that far.
    pub(super) fn turns_away(&self, request: &Request, code: &str) -> Verdict {
        self.expect(request, code, Seal::IfAny).map(drop)
    }

    /// Whatever this is answered, it must not be done: no answer at all will do.
    pub(super) fn never_succeeds(&self, request: &[u8], shown: &Request) -> Verdict {
        self.count()?;
        let mut connection = self.connect()?;
        connection.write(request);
        let answer = self.answer_on(&mut connection, shown);
        if let Ok(answer) = answer {
            let code = answer.result("resultCode");
            must(code.as_deref() != Some("SUCCESS"), "it was carried out")?;
        }
        // and whoever comes next is served
        self.succeeds(&self.payment()).map(drop)
    }

    /// The wallet's own side.
    pub(super) fn recorder(&self) -> Result<&Recorder, Stop> {
        let needed =
            || Stop::Skipped("needs --wallet-grpc, the wallet's side that records".to_owned());
        self.target.recorder.as_ref().ok_or_else(needed)
    }

    /// Has the wallet's own side do something.
    pub(super) fn wallet_side<T>(
        &self,
        call: impl Future<Output = Result<T, recorder::Error>>,
    ) -> Result<T, Stop> {
        self.runtime.block_on(call).map_err(|error| Stop::Failed(error.to_string()))
    }

    /// Sends all of them at once, each on a connection of its own.
    pub(super) fn at_once(&self, requests: &[Request]) -> Result<Vec<Answer>, Stop> {
        thread::scope(|scope| {
            let sent: Vec<_> =
                requests.iter().map(|request| scope.spawn(|| self.send(request))).collect();
            let joined = sent.into_iter().map(thread::ScopedJoinHandle::join);
            joined.map(|sent| sent.unwrap_or_else(|_| failed("a sender failed"))).collect()
        })
    }
}

/// An error with its causes.
pub(super) fn told(error: &NoAnswer) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Wallet {
    /// Sends it and looks at the answer.
    pub(super) fn look(&self, request: &Request, look: impl FnOnce(&Answer) -> Verdict) -> Verdict {
        look(&self.send(request)?)
    }

    /// Sends it so many bytes at a time.
    pub(super) fn in_pieces(&self, request: &Request, size: usize) -> Result<Answer, Stop> {
        self.count()?;
        let mut connection = self.connect()?;
        for piece in request.bytes().chunks(size) {
            connection.write(piece);
            thread::sleep(Duration::from_millis(1));
        }
        self.answer_on(&mut connection, request).map_err(|error| Stop::Failed(told(&error)))
    }

    /// Sends it and goes away without an answer.
    pub(super) fn abandon(&self, request: &Request, bytes: usize) -> Verdict {
        self.count()?;
        let mut connection = self.connect()?;
        let all = request.bytes();
        connection.write(&all[..bytes.min(all.len())]);
        Ok(())
    }
}
