//! Who calls gRPC, by certificate, and what each may call.
//!
//! The names of a connection's certificate ([`Names`]) and the path of a request decide; rows of [`Permissions`] say so.
//! They are looked up for each request, so that a reload counts on connections that are open too. What a caller says of
//! itself is believed from a bridge alone: from everybody else the header is taken off here, before anything reads it.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use futures_util::future::Either;
use http::{HeaderName, Request};
use tower::{Layer, Service};

/// Every subject alternative name (DNS, then URI) of the certificate that a connection was made with. Not there without
/// a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub Arc<[Box<str>]>);

/// What may be called: written `Service/Method`, `Service/*` or `*`, without the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Everything.
    All,
    /// Every method of a service, by its short name.
    Service(Box<str>),
    /// One method of a service.
    Method(Box<str>, Box<str>),
}

impl Methods {
    /// The short name of the service, and the method, of `/package.Service/Method`.
    pub fn of(path: &str) -> Option<(&str, &str)> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        Some((service.rsplit_once('.').map_or(service, |(_, short)| short), method))
    }

    /// Whether this method is among them.
    pub fn contain(&self, service: &str, method: &str) -> bool {
        match self {
            Self::All => true,
            Self::Service(known) => **known == *service,
            Self::Method(known, only) => **known == *service && **only == *method,
        }
    }
}

/// What whoever has one of these names may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Subject alternative names (DNS or URI), exact.
    pub sans: Vec<Box<str>>,
    /// What it may call.
    pub methods: Vec<Methods>,
    /// Whether it is a bridge of ours, whose word for Alipay+'s client is believed.
    pub bridge: bool,
}

/// What every caller may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permissions {
    /// Whoever is let in may call everything; nobody is a bridge.
    Everybody,
    /// Whoever has a name of a row may call what its row says; several rows add up. Others may call nothing.
    Rows(Vec<Row>),
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its word for Alipay+'s client is believed.
    pub bridge: bool,
}

/// What every connected caller may call: it tells nothing that is worth a permission.
const OPEN: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Whether this path is open to every connected caller.
pub fn is_open(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|rest| rest.split_once('/'));
    service.is_some_and(|(service, _)| OPEN.contains(&service))
}

impl Permissions {
    /// What a caller with these names may do at this path (`/package.Service/Method`); `None`: it may not call it.
    pub fn at(&self, path: &str, names: &Names) -> Option<Granted> {
        let rows = match self {
            Self::Everybody => return Some(Granted { bridge: false }),
            Self::Rows(rows) => rows,
        };
        // a path that names no method is nobody's
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let short = service.rsplit_once('.').map_or(service, |(_, short)| short);
        let named = |row: &&Row| row.sans.iter().any(|san| names.0.contains(san));
        let grants = |row: &&Row| row.methods.iter().any(|methods| methods.contain(short, method));
        let mut granting = rows.iter().filter(named).filter(grants).peekable();
        if granting.peek().is_none() && !OPEN.contains(&service) {
            return None;
        }
        Some(Granted { bridge: granting.any(|row| row.bridge) })
    }
}

/// Lets through what [`Permissions`] grant, and takes off a header of those whose word is not believed.
#[derive(Clone)]
pub struct IdentityLayer<F> {
    /// Swapped by a reload.
    permissions: Arc<ArcSwap<Permissions>>,
    /// What only a bridge may say.
    word: HeaderName,
    /// Makes the answer to whoever may not.
    refuse: F,
}

impl<F> IdentityLayer<F> {
    /// A layer over permissions that may be swapped.
    pub fn new(permissions: Arc<ArcSwap<Permissions>>, word: HeaderName, refuse: F) -> Self {
        Self { permissions, word, refuse }
    }
}

impl<S, F: Clone> Layer<S> for IdentityLayer<F> {
    type Service = Identified<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Identified { inner, layer: self.clone() }
    }
}

/// A service behind an [`IdentityLayer`].
#[derive(Clone)]
pub struct Identified<S, F> {
    inner: S,
    layer: IdentityLayer<F>,
}

impl<S, F, B> Service<Request<B>> for Identified<S, F>
where
    S: Service<Request<B>>,
    F: Fn() -> S::Response,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let nobody = Names::default();
        let names = request.extensions().get::<Names>().unwrap_or(&nobody);
        match self.layer.permissions.load().at(request.uri().path(), names) {
            None => return Either::Right(ready(Ok((self.layer.refuse)()))),
            Some(Granted { bridge: true }) => {}
            Some(Granted { bridge: false }) => {
                request.headers_mut().remove(&self.layer.word);
            }
        }
        Either::Left(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt as _;
    use tower::service_fn;

    use super::*;

    const PACKAGE: &str = "alipayplus.cancel.v1";

    fn names(names: &[&str]) -> Names {
        Names(names.iter().map(|&name| name.into()).collect())
    }

    fn row(san: &str, methods: &[Methods], bridge: bool) -> Row {
        Row { sans: vec![san.into()], methods: methods.into(), bridge }
    }

    fn permissions() -> Permissions {
        let introspect = Methods::Method("TokenService".into(), "IntrospectToken".into());
        Permissions::Rows(vec![
            row("resources", &[introspect], false),
            row("bridge", &[Methods::Service("CancelService".into())], true),
            row("operator", &[Methods::All], false),
        ])
    }

    #[test]
    fn a_name_opens_what_its_rows_say_and_nothing_else() {
        let may = |who: &[&str], call: &str| {
            permissions().at(&format!("/{PACKAGE}.{call}"), &names(who)).is_some()
        };
        assert!(may(&["resources"], "TokenService/IntrospectToken"));
        assert!(!may(&["resources"], "TokenService/IntrospectTokens"));
        assert!(!may(&["resources"], "TokenService/RecordToken"));
        assert!(!may(&["resources"], "CancelService/CancelPayment"));
        assert!(may(&["other", "resources"], "TokenService/IntrospectToken"), "any of its names");
        assert!(may(&["resources", "bridge"], "CancelService/CancelToken"), "rows add up");
        assert!(may(&["operator"], "ImportService/ImportPayments"));
        for nobody in [&[][..], &["resource"], &["resources.evil"], &["RESOURCES"], &["*"]] {
            assert!(!may(nobody, "TokenService/IntrospectToken"), "{nobody:?}");
        }
        for path in ["", "/", "TokenService", "/TokenService", "x/IntrospectToken"] {
            assert_eq!(permissions().at(path, &names(&["operator"])), None, "{path}");
        }
    }

    #[test]
    fn health_and_reflection_are_everybodys_and_only_under_their_whole_names() {
        let may = |path: &str| permissions().at(path, &names(&[])).is_some();
        assert!(may("/grpc.health.v1.Health/Check"));
        assert!(may("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"));
        assert!(!may("/evil.v1.Health/Check"));
    }

    #[test]
    fn a_row_makes_a_bridge_of_what_it_grants_alone() {
        let rows = Permissions::Rows(vec![
            row("b", &[Methods::Service("CancelService".into())], true),
            row("b", &[Methods::Service("PaymentService".into())], false),
        ]);
        let at = |path: &str| rows.at(path, &names(&["b"]));
        assert_eq!(at("/p.CancelService/CancelPayment"), Some(Granted { bridge: true }));
        assert_eq!(at("/p.PaymentService/GetPayment"), Some(Granted { bridge: false }));
        let open = Permissions::Everybody.at("/p.CancelService/CancelPayment", &names(&["b"]));
        assert_eq!(open, Some(Granted { bridge: false }), "without rows nobody is a bridge");
    }

    #[test]
    fn a_forbidden_request_goes_no_further_and_only_a_bridges_word_does() {
        let word = HeaderName::from_static("word");
        let shared = Arc::new(ArcSwap::from_pointee(permissions()));
        let layer = IdentityLayer::new(Arc::clone(&shared), word.clone(), || "refused".to_owned());
        let heard = move |request: Request<()>| {
            let word = request.headers().get(&word).map(|word| word.to_str().unwrap().to_owned());
            ready(Ok::<_, Infallible>(word.unwrap_or_default()))
        };
        let mut service = layer.layer(service_fn(heard));
        let mut ask = |who: Option<&str>| {
            let path = format!("/{PACKAGE}.CancelService/CancelPayment");
            let mut request = Request::builder().uri(path).header("word", "said").body(()).unwrap();
            if let Some(who) = who {
                request.extensions_mut().insert(names(&[who]));
            }
            service.call(request).now_or_never().unwrap().unwrap()
        };
        assert_eq!(ask(Some("bridge")), "said");
        assert_eq!(ask(Some("operator")), "");
        assert_eq!(ask(Some("resources")), "refused");
        assert_eq!(ask(None), "refused");
        shared.store(Arc::new(Permissions::Everybody));
        assert_eq!(ask(None), "", "counts from the next request on");
    }
}
