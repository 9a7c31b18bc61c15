//! Who may call gRPC, by certificate; and certificates that change while the service runs.

use std::fs;

use alipayplus_cancel::bridge::keys::PrivateKey;
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::harness::{
    eventually,
    grpc::{Grant, Grpc, Payment, wire},
    pki::{Authority, Issued, Valid, handshake},
    service::{Options, Service, admin},
    unique,
    vectors::CLIENT_ID,
};
use crate::reload::{change, metric, reload, reload_refused};

const CALLERS: &str = r#"
[grpc.tls]
cert_file = "core.pem"
key_file = "core.key"
client_ca_file = "ca.pem"

[[grpc.callers]]
sans = ["spiffe://wallet/resource-server"]
methods = ["TokenService/IntrospectToken"]

[[grpc.callers]]
sans = ["core.wallet"]
methods = ["PaymentService/*", "TokenService/RecordToken"]

[[grpc.callers]]
sans = ["notifier.wallet"]
methods = ["FeedService/Subscribe", "FeedService/Acknowledge", "FeedService/Park"]

[[grpc.callers]]
sans = ["operator.wallet"]
methods = ["*"]

[[grpc.callers]]
sans = ["bridge.wallet"]
methods = ["CancelService/*"]
bridge = true
"#;

/// A folder with the authority's certificate and the service's own.
fn folder(authority: &Authority) -> TempDir {
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
    fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
    authority.issue(&["127.0.0.1"]).write(dir.path(), "core");
    dir
}

fn start(authority: &Authority, toml: &str) -> Service {
    let options = Options { toml: toml.to_owned(), ..Options::default() };
    Service::start_in(folder(authority), options)
}

fn caller(service: &Service, authority: &Authority, issued: Option<&Issued>) -> Grpc {
    Grpc::over_tls(service.ports().grpc, &authority.pem, issued)
}

#[track_caller]
fn assert_not_allowed<T: std::fmt::Debug>(answered: Result<T, Status>) {
    let status = answered.expect_err("the caller may not");
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let details = status.get_error_details();
    let info = details.error_info().expect("ErrorInfo");
    assert_eq!((&*info.domain, &*info.reason), ("cancel.alipayplus", "CALLER_NOT_ALLOWED"));
}

/// Introspects a token that nobody knows.
fn introspect(grpc: &Grpc) -> Result<wire::IntrospectTokenResponse, Status> {
    grpc.introspect_token(Grant::new().introspect(&unique("token")))
}

#[test]
fn a_caller_may_call_what_its_names_allow_and_nothing_else() {
    let authority = Authority::new("callers");
    let service = start(&authority, CALLERS);
    let as_one_of = |names: &[&str]| caller(&service, &authority, Some(&authority.issue(names)));
    let payment = Payment::new();
    let grant = Grant::new();

    // its URI is not the first of its names
    let resources = as_one_of(&["some.host", "spiffe://wallet/resource-server"]);
    assert!(!introspect(&resources).expect("it may").active);
    assert_not_allowed(resources.cancel_payment(payment.cancel()));
    assert_not_allowed(resources.cancel_token(grant.cancel("t")));
    assert_not_allowed(resources.record_token(grant.token("t")));
    assert_not_allowed(resources.record_payment(payment.record(payment.initiated())));
    assert_not_allowed(resources.list_consumers(wire::ListConsumersRequest::default()));

    let core = as_one_of(&["core.wallet"]);
    core.record_payment(payment.record(payment.initiated())).expect("it may");
    core.record_token(grant.token("t")).expect("it may");
    assert_not_allowed(introspect(&core));
    assert_not_allowed(core.cancel_payment(payment.cancel()));

    let notifier = as_one_of(&["notifier.wallet"]);
    drop(notifier.follow("notifier"));
    let forget =
        wire::DeleteConsumerRequest { consumer: "notifier".to_owned(), ..Default::default() };
    assert_not_allowed(notifier.delete_consumer(forget));

    assert!(introspect(&as_one_of(&["operator.wallet"])).is_ok());
    assert!(introspect(&as_one_of(&["core.wallet", "spiffe://wallet/resource-server"])).is_ok());

    for stranger in [&["stranger.wallet"][..], &["spiffe://wallet/resource-server/x"], &[]] {
        let stranger = as_one_of(stranger);
        assert_not_allowed(introspect(&stranger));
        assert_not_allowed(stranger.cancel_payment(payment.cancel()));
        let request = HealthCheckRequest { service: String::new() };
        let mut health = HealthClient::new(stranger.channel());
        stranger.block_on(health.check(request)).expect("health is everybody's");
    }
}

#[test]
fn who_proves_nothing_gets_no_connection() {
    let authority = Authority::new("callers");
    let tls = "[grpc.tls]\ncert_file = \"core.pem\"\nkey_file = \"core.key\"\n\
               client_ca_file = \"ca.pem\"\nallowed_sans = [\"known.wallet\", \"spiffe://wallet/known\"]\n";
    let service = start(&authority, tls);
    let known = |valid| authority.issue_valid(&["known.wallet"], valid);
    for (alert, issued) in [
        ("CertificateRequired", None),
        ("UnknownCA", Some(Authority::new("others").issue(&["known.wallet"]))),
        // of an authority that calls itself the same
        ("DecryptError", Some(Authority::new("callers").issue(&["known.wallet"]))),
        ("AccessDenied", Some(authority.issue(&["unknown.wallet"]))),
        ("AccessDenied", Some(authority.issue(&[]))),
        ("CertificateExpired", Some(known(Valid::Expired))),
        ("CertificateExpired", Some(known(Valid::Future))),
    ] {
        let told = handshake(service.ports().grpc, &authority.pem, issued.as_ref());
        let told = told.map(drop).expect_err("it is turned away").to_string();
        assert!(told.ends_with(alert), "{alert}: {told}");
        let refused = introspect(&caller(&service, &authority, issued.as_ref()));
        let status = refused.expect_err(alert);
        // tonic has a code for each moment at which it may learn of it; none of them is an answer
        let local = std::error::Error::source(&status).is_some();
        assert!(local, "{alert}: {status:?}");
    }
    for names in [&["known.wallet"][..], &["first.wallet", "spiffe://wallet/known"]] {
        assert!(introspect(&caller(&service, &authority, Some(&authority.issue(names)))).is_ok());
    }
    // and whoever does not know the service does not talk to it
    let stranger = Grpc::over_tls(
        service.ports().grpc,
        &Authority::new("others").pem,
        Some(&authority.issue(&["known.wallet"])),
    );
    let distrusted = introspect(&stranger).unwrap_err();
    assert_eq!(distrusted.code(), Code::Unavailable, "{distrusted:?}");
    // each was there twice, and gave up or tried again
    let failures = "alipayplus_cancel_tls_handshake_failures_total{front=\"grpc\"}";
    eventually("they are counted", || (metric(&service, failures) >= 15).then_some(()));
}

/// Cancels a payment that nobody told of, on behalf of a client of Alipay+'s.
fn cancel_unknown(grpc: &Grpc, client: &str) -> Result<wire::CancelPaymentResponse, Status> {
    let mut request = tonic::Request::new(Payment::new().cancel());
    request.metadata_mut().insert("alipayplus-client-id", client.parse().unwrap());
    grpc.cancel_payment(request)
}

#[test]
fn only_a_bridges_word_for_the_client_is_believed() {
    let authority = Authority::new("callers");
    let options = Options {
        toml: CALLERS.to_owned(),
        set: ["per_second=1", "burst=1"].map(|it| format!("clients.0.tombstones.{it}")).into(),
        ..Options::default()
    };
    let service = Service::start_in(folder(&authority), options);
    let client = crate::harness::vectors::CLIENT_ID;
    let operator = caller(&service, &authority, Some(&authority.issue(&["operator.wallet"])));
    for _ in 0..3 {
        cancel_unknown(&operator, client).expect("it has no client, so no client's quota");
    }
    let bridge = caller(&service, &authority, Some(&authority.issue(&["bridge.wallet"])));
    let refused = (0..20).find_map(|_| cancel_unknown(&bridge, client).err());
    let status = refused.expect("the client's quota of one a second is used up");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    cancel_unknown(&bridge, "ANOTHER").expect("it has no quota");
}

#[test]
fn a_caller_that_cannot_be_is_an_error_with_a_suggestion() {
    let told = |toml: &str| {
        let dir = folder(&Authority::new("callers"));
        crate::harness::service::furnish(dir.path(), toml);
        let settings = dir.path().join("settings.toml");
        let check = ["config", "check", "--config", settings.to_str().unwrap()];
        let output = crate::harness::service::run(&check);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (_, callers) = CALLERS.split_once("\n\n").unwrap();
    assert_eq!(told(CALLERS), (Some(0), String::new()));
    let (status, said) = told(&CALLERS.replace("IntrospectToken", "IntrospectTokens"));
    assert_eq!(status, Some(2));
    assert!(said.contains("did you mean `IntrospectToken`?"), "{said}");
    let (status, said) = told(callers);
    assert_eq!(status, Some(2));
    assert!(said.contains("`grpc.tls` must be set"), "{said}");
    let (status, said) = told(
        &CALLERS.replace("client_ca_file", "allowed_sans = [\"core.wallet\"]\nclient_ca_file"),
    );
    assert_eq!(status, Some(0));
    assert!(said.contains("grpc.callers.0.sans"), "{said}");
    assert!(!said.contains("grpc.callers.1.sans"), "{said}");
}

#[test]
fn when_certificates_and_keys_end_is_told_and_changes_with_a_reload() {
    let authority = Authority::new("wallet");
    let options = Options {
        toml: CALLERS.to_owned(),
        set: vec!["reload.interval=0s".to_owned()],
        ..Options::default()
    };
    let service = Service::start_in(folder(&authority), options);
    let end = |series: &str| metric(&service, &format!("alipayplus_cancel_{series}"));
    let chain = "certificate_not_after_seconds{setting=\"grpc.tls.cert_file\"}";
    let ca = "certificate_not_after_seconds{setting=\"grpc.tls.client_ca_file\"}";
    // what rcgen makes ends with the year 4095
    let (never, long_ago) = (67_090_118_400, 1_577_836_800);
    assert_eq!((end(chain), end(ca)), (never, never));

    // of a chain the first end counts, of authorities the last
    let expired = authority.issue_valid(&["127.0.0.1"], Valid::Expired);
    let write = |name: &str, text: &str| fs::write(service.dir().join(name), text).unwrap();
    let renewed = authority.issue(&["127.0.0.1"]);
    write("core.pem", &format!("{}{}", renewed.cert, expired.cert));
    write("core.key", &renewed.key);
    write("ca.pem", &format!("{}{}", expired.cert, authority.pem));
    reload(&service);
    assert_eq!((end(chain), end(ca)), (long_ago, never));

    // of a client, each key that ends; and the last of them only if all do
    let scraped = || String::from_utf8(admin(service.ports().admin, "/metrics").body).unwrap();
    let public = "public_key_file = \"alipayplus.pub\"\n";
    let second = "[[clients.keys]]\nversion = \"2\"\npublic_key_file = \"2.pub\"\n\
                  not_after = \"2099-01-01T00:00:00Z\"\n";
    write("2.pub", &PrivateKey::generate(2048).expect("a key").public().spki_pem());
    change(&service, public, &format!("{public}{second}"));
    reload(&service);
    let of_second = format!("key_not_after_seconds{{client=\"{CLIENT_ID}\",version=\"2\"}}");
    assert_eq!(end(&of_second), 4_070_908_800);
    let last = format!("key_last_not_after_seconds{{client=\"{CLIENT_ID}\"}}");
    assert!(!scraped().contains(&last), "one does not end");
    let first = format!("{public}[[clients.keys]]");
    let ended = format!("{public}not_after = \"2100-01-01T00:00:00Z\"\n[[clients.keys]]");
    change(&service, &first, &ended);
    reload(&service);
    assert_eq!(end(&last), 4_102_444_800);
    assert_eq!(end(&of_second), 4_070_908_800);
}

/// The service's certificate as it is shown now.
fn shown(service: &Service, authority: &Authority, issued: &Issued) -> Vec<u8> {
    handshake(service.ports().grpc, &authority.pem, Some(issued)).expect("a connection").1
}

#[test]
fn certificates_authorities_and_permissions_are_renewed_under_open_connections() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let options = Options {
        toml: CALLERS.to_owned(),
        set: vec!["reload.interval=0s".to_owned()],
        ..Options::default()
    };
    let service = Service::start_in(folder(&old), options);
    let write = |name: &str, text: &str| fs::write(service.dir().join(name), text).unwrap();
    let issued = old.issue(&["operator.wallet"]);
    let open = caller(&service, &old, Some(&issued));
    introspect(&open).expect("a connection that stays");
    let first = shown(&service, &old, &issued);

    old.issue(&["127.0.0.1"]).write(service.dir(), "core");
    reload(&service);
    let second = shown(&service, &old, &issued);
    assert_ne!(first, second, "the renewed certificate is shown");
    introspect(&open).expect("it goes on");

    // half of a renewal: the certificate without its key
    let renewed = old.issue(&["127.0.0.1"]);
    write("core.pem", &renewed.cert);
    let reason = reload_refused(&service);
    assert!(reason.contains("grpc.tls") && reason.contains("core.pem"), "{reason}");
    assert_eq!(shown(&service, &old, &issued), second);
    write("core.key", &renewed.key);
    reload(&service);
    assert_ne!(shown(&service, &old, &issued), second);

    // both authorities for a while, then the new one alone
    let later = new.issue(&["operator.wallet"]);
    assert!(introspect(&caller(&service, &old, Some(&later))).is_err());
    write("ca.pem", &format!("{}{}", old.pem, new.pem));
    reload(&service);
    for issued in [&issued, &later] {
        introspect(&caller(&service, &old, Some(issued))).expect("either is taken");
    }
    write("ca.pem", &new.pem);
    reload(&service);
    assert!(introspect(&caller(&service, &old, Some(&issued))).is_err());
    introspect(&caller(&service, &old, Some(&later))).expect("the new one is taken");
    introspect(&open).expect("an open connection stays");

    // what a caller may call counts from its next call on
    change(&service, "methods = [\"*\"]", "methods = [\"FeedService/*\"]");
    reload(&service);
    assert_not_allowed(introspect(&open));
    drop(open.follow("operator"));
    change(&service, "methods = [\"FeedService/*\"]", "methods = [\"FeedServices/*\"]");
    assert!(reload_refused(&service).contains("did you mean `FeedService`?"));
    drop(open.follow("operator"));
}
