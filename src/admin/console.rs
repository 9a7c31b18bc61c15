//! Pages for people: what became of a payment or an authorization, what is outstanding, who is behind.
//!
//! It only reads, and only what any caller of gRPC may read; a page without scripts, styled by one file of its own.
//! Whoever is not let in learns nothing, not even whether a page is there. Every value is escaped by the macro that
//! makes the page, and the policy sent with it lets a browser load nothing from elsewhere.

mod access;
mod page;
mod pages;
mod text;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::any,
};
use http::{HeaderValue, Method, StatusCode, header};

pub use self::access::Access;
use crate::{grpc::client::look::Look, telemetry::Recent};

/// What holds for the store as a whole, as somebody saw it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The feed's epoch.
    pub epoch: u64,
    /// Whether the wallet's history is still being imported.
    pub onboarding: bool,
    /// Why nothing is decided, if nothing is.
    pub suspect: Option<String>,
}

/// A key of a client of Alipay+'s.
#[derive(Clone, Debug)]
pub struct ClientKey {
    /// The client.
    pub client: String,
    /// The version of its key.
    pub version: String,
    /// When it ends, in milliseconds since 1970.
    pub not_after_ms: Option<i64>,
}

type Ask<T> = Box<dyn Fn() -> T + Send + Sync>;

/// What the console needs.
pub struct Console {
    /// Who may look.
    pub access: Access,
    /// The way to payments, authorizations and consumers; none where the core is elsewhere.
    pub look: Option<Look>,
    /// The last hour.
    pub recent: Recent,
    /// What holds for the store, if anybody has looked yet.
    pub standing: Ask<Option<Standing>>,
    /// The keys that are registered now.
    pub keys: Ask<Vec<ClientKey>>,
    /// The wallets that are searched when nobody says which.
    pub psp_ids: Vec<String>,
}

/// What a form or a link asks: the last value of each name.
type Asked = HashMap<String, String>;

/// One page, made or not.
enum Answer {
    Page(maud::Markup),
    NotThere(maud::Markup),
    Elsewhere(String),
    Style,
}

/// The console on a listener of its own.
pub fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/", any(async || elsewhere("/console")))
        .route("/console", any(serve))
        .route("/console/", any(serve))
        .route("/console/{*page}", any(serve))
        .with_state(console)
}

/// Answers everything below `/console`.
pub(super) async fn serve(State(console): State<Arc<Console>>, request: Request) -> Response {
    let who = match console.access.admit(&request) {
        Ok(who) => who,
        Err(why) => return respond(StatusCode::FORBIDDEN, TEXT, format!("{why}\n").into()),
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "the console only reads\n";
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, text.into());
    }
    let path = request.uri().path().trim_end_matches('/');
    // what is none of ours is not told: its length and its words are the caller's
    let page = pages::ALL.iter().find(|known| **known == path).copied().unwrap_or("none of ours");
    let query = request.uri().query().unwrap_or_default().as_bytes();
    let asked: Asked = form_urlencoded::parse(query).into_owned().collect();
    if path != STYLE {
        // who looked at what is worth a line; a token is never part of a page's address
        tracing::info!(who, page, "console");
    }
    match pages::answer(&console, &who, path, &asked).await {
        Answer::Page(markup) => respond(StatusCode::OK, HTML, markup.into_string().into()),
        Answer::NotThere(markup) => {
            respond(StatusCode::NOT_FOUND, HTML, markup.into_string().into())
        }
        Answer::Elsewhere(target) => elsewhere(&target),
        Answer::Style => respond(StatusCode::OK, "text/css; charset=utf-8", page::CSS.into()),
    }
}

/// A page that anybody may see.
pub(super) fn document(page: &'static str) -> Response {
    respond(StatusCode::OK, HTML, page.into())
}

/// A style sheet that anybody may see.
pub(super) fn style(sheet: &'static str) -> Response {
    respond(StatusCode::OK, "text/css; charset=utf-8", sheet.into())
}

const STYLE: &str = "/console/style.css";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Nothing from elsewhere, no scripts, no frames; nothing is kept, and nobody is told where a link was.
const HEADERS: [(header::HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

fn respond(status: StatusCode, media_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

pub(super) fn elsewhere(target: &str) -> Response {
    let mut response = respond(StatusCode::SEE_OTHER, TEXT, Body::empty());
    if let Ok(target) = HeaderValue::from_str(target) {
        response.headers_mut().insert(header::LOCATION, target);
    }
    response
}
