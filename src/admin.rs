//! `/livez`, `/readyz` and `/metrics` on a listener of their own, for the platform; and the [`console`], for people.

pub mod console;
mod reference;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use http::{StatusCode, header};

use self::console::Console;

/// What the platform may ask.
#[derive(Clone)]
pub struct Admin {
    /// [`STARTING`], [`READY`] or [`DRAINING`].
    ready: Arc<AtomicU8>,
    store: Arc<AtomicBool>,
    core: Arc<AtomicBool>,
    metrics: Arc<OnceLock<Metrics>>,
    console: Arc<OnceLock<Arc<Console>>>,
    openapi: Arc<OnceLock<String>>,
}

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

type Metrics = Box<dyn Fn() -> String + Send + Sync>;

impl Default for Admin {
    fn default() -> Self {
        Self::new()
    }
}

impl Admin {
    /// Alive, not ready yet, without metrics.
    pub fn new() -> Self {
        let [store, core] = [(); 2].map(|()| Arc::new(AtomicBool::new(true)));
        Self {
            ready: Arc::default(),
            store,
            core,
            metrics: Arc::default(),
            console: Arc::default(),
            openapi: Arc::default(),
        }
    }

    /// What makes the text of a scrape; the first one counts.
    pub fn set_metrics(&self, metrics: impl Fn() -> String + Send + Sync + 'static) {
        drop(self.metrics.set(Box::new(metrics)));
    }

    /// The JSON endpoint's contract, where there is such an endpoint.
    pub fn set_openapi(&self, document: String) {
        drop(self.openapi.set(document));
    }

    /// The console, if it is shown beside the probes.
    pub fn set_console(&self, console: Arc<Console>) {
        drop(self.console.set(console));
    }

    /// Whether the store answers.
    pub fn set_store(&self, answers: bool) {
        self.store.store(answers, Ordering::Release);
    }

    /// Whether a core elsewhere is reachable.
    pub fn set_core(&self, is_reachable: bool) {
        self.core.store(is_reachable, Ordering::Release);
    }

    /// Whether requests should be sent here; no more once they should not.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(if ready { READY } else { DRAINING }, Ordering::Release);
    }

    /// The service.
    pub fn router(self) -> Router {
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/openapi.json", get(openapi))
            .route("/reference", get(|| async { console::document(&reference::PAGE) }))
            .route("/reference/style.css", get(|| async { console::style(reference::CSS) }))
            .route("/", any(front))
            .route("/console", any(shown))
            .route("/console/", any(shown))
            .route("/console/{*page}", any(shown))
            .with_state(self)
    }
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    let why = match admin.ready.load(Ordering::Acquire) {
        READY => None,
        STARTING => {
            Some("not ready: starting; a database that does not answer yet is waited for\n")
        }
        _ => Some("not ready: draining\n"),
    };
    if let Some(why) = why {
        return (StatusCode::SERVICE_UNAVAILABLE, why);
    }
    if !admin.store.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: the store does not answer\n");
    }
    if !admin.core.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: no core is reachable\n");
    }
    (StatusCode::OK, "ready\n")
}

async fn openapi(State(admin): State<Admin>) -> Response {
    match admin.openapi.get() {
        Some(document) => {
            ([(header::CONTENT_TYPE, "application/json")], document.clone()).into_response()
        }
        None => {
            (StatusCode::NOT_FOUND, "a core has no JSON endpoint: ask a bridge\n").into_response()
        }
    }
}

async fn shown(State(admin): State<Admin>, request: Request) -> Response {
    let Some(console) = admin.console.get() else {
        let why = "the console is not shown here: console.access and console.listen say where and to whom\n";
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    console::serve(State(Arc::clone(console)), request).await
}

/// Whoever opens the port in a browser finds the console, or is told what is here.
async fn front(State(admin): State<Admin>) -> Response {
    if admin.console.get().is_some() {
        return console::elsewhere("/console");
    }
    let here = "/livez, /readyz, /metrics, /reference and /openapi.json are here; /console where console.access says so\n";
    here.into_response()
}

async fn metrics(State(admin): State<Admin>) -> ([(header::HeaderName, &'static str); 1], String) {
    let text = admin.metrics.get().map(|metrics| metrics()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
