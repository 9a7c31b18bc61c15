//! What an operator keeps secret: keys, the database's password, what the collector is told for a proof; and what
//! callers send in headers that are not for us.

use std::{
    fs::{self, File},
    process::Stdio,
};

use alipayplus_cancel::bridge::keys::PrivateKey;
use tonic::{metadata::MetadataValue, transport::Channel};

use super::{
    ACQUIRER, PSP,
    mark::{Mark, Traces, plain, random},
};
use crate::harness::{
    collector::Collector,
    eventually,
    grpc::{Grant, Grpc},
    json::{Api, Json, payment_body},
    postgres::{self, Cluster},
    service::{Options, Service, Store, command, furnish_on},
    unique,
};

/// What the test puts into a service's folder.
pub const GIVEN: [&str; 12] = [
    "settings.toml",
    "wallet.pem",
    "wallet.pub",
    "alipayplus.pem",
    "alipayplus.pub",
    "other.pub",
    "ended.pub",
    "token-hash.hex",
    "marked-hash.hex",
    "marked-wallet.pem",
    "database.password",
    "wrong.password",
];

/// Headers that Alipay+ or something in between may send, none of which is ours to tell.
const HEADERS: [&str; 8] = [
    "Agent-Token",
    "Authorization",
    "Proxy-Authorization",
    "Cookie",
    "X-Api-Key",
    "X-Forwarded-Client-Cert",
    "baggage",
    "Signature-Of-Somebody",
];

/// Requests with secrets in headers, right and wrong in many ways.
pub fn headers_over_json(traces: &mut Traces, json: &Json) {
    let id = unique("headers");
    let mut request = json.request().body(payment_body(PSP, ACQUIRER, &id));
    request = request.header("traceparent", &format!("00-{:032x}-{:016x}-01", 0xabc, 0xdef));
    for name in HEADERS {
        let bearer = format!("Bearer {}", traces.secret(name));
        request = request.header(name, &bearer);
    }
    traces.json("all headers", request.send().expect("SUCCESS"));
    let twice = traces.secret("a header sent twice");
    let twice = request.clone().header("Agent-Token", &twice).header("Agent-Token", &twice);
    let signature = format!(
        "algorithm=RSA256,keyVersion=1,signature={}",
        traces.secret("what should be a signature")
    );
    for (path, request) in [
        ("headers twice", twice),
        ("headers, wrong signature", request.clone().signed_target("/elsewhere")),
        ("headers, no signature that is one", request.clone().signatures(&[&signature])),
        ("headers, unknown key", request.clone().key_version(Some("77"))),
        ("headers, unknown client", request.clone().client_ids(&["NOBODY"])),
        ("headers, other media type", request.clone().content_types(&["text/plain"])),
        ("headers, other method", request.clone().method("DELETE")),
        ("headers, other API", request.clone().target("/aps/api/v1/nothing")),
        ("headers, no JSON", request.clone().body("{")),
        ("headers, no payment", request.clone().api(Api::CancelToken)),
    ] {
        traces.json(path, &request.send());
    }
    let query = format!("{}?accessToken={}", Api::CancelPayment.path(), traces.secret("a query"));
    traces.json("a query", &request.clone().target(&query).send());
    // what is no HTTP any more: an answer or none, and perhaps a line
    let long = format!("{}{}", traces.secret("a header that is too long"), "x".repeat(80_000));
    let split = format!("a\r\n {}", traces.secret("a folded header"));
    let control = format!("\u{1}{}", traces.secret("a header with a control character"));
    let nameless = traces.secret("a line without a colon");
    for (path, request) in [
        ("a long head", request.clone().header("Authorization", &long)),
        ("a folded header", request.clone().header("Authorization", &split)),
        ("a control character", request.clone().header("Authorization", &control)),
        ("a strange name", request.clone().header(&format!("{nameless} {nameless}"), "x")),
        ("another version", request.version("HTTP/9.9")),
    ] {
        let mut connection = json.connect();
        connection.write(&request.bytes());
        connection.finish();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer);
        traces.text(path, &String::from_utf8_lossy(&answer));
    }
}

/// The same of a gRPC call's metadata.
pub fn headers_over_grpc(traces: &mut Traces, grpc: &Grpc) {
    let grant = Grant::new();
    let token = traces.token();
    let mut marked = |timeout: Option<&str>| {
        let mut request = tonic::Request::new(grant.token(&token));
        let metadata = request.metadata_mut();
        for name in ["authorization", "agent-token", "cookie", "baggage"] {
            metadata.insert(name, traces.secret(name).parse().expect("a value"));
        }
        let binary = traces.secret("binary metadata");
        metadata.insert_bin("proof-bin", MetadataValue::from_bytes(binary.as_bytes()));
        if let Some(timeout) = timeout {
            metadata.insert("grpc-timeout", timeout.parse().expect("a value"));
        }
        request
    };
    let (good, late, wrong) = (marked(None), marked(Some("1n")), marked(Some("soon")));
    traces.grpc("metadata", &grpc.record_token(good));
    traces.grpc("metadata, late", &grpc.record_token(late));
    traces.grpc("metadata, no time-out", &grpc.record_token(wrong));
    let secret = traces.secret("metadata of a method that is not there");
    let mut request = tonic::Request::new(grant.token(&token));
    request.metadata_mut().insert("authorization", secret.parse().expect("a value"));
    traces.grpc("no such method", &grpc.block_on(no_such_method(grpc.channel(), request)));
}

async fn no_such_method<T: prost::Message + Default + 'static>(
    channel: Channel,
    request: tonic::Request<T>,
) -> Result<(), tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unknown(error.to_string()))?;
    let path = "/alipayplus.cancel.v1.TokenService/Nothing".parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<T, T>::default();
    client.unary(request, path, codec).await.map(|_| ())
}

/// What the collector is told for a proof: two that it gets, and one that is none.
pub fn exporter_headers(traces: &mut Traces) -> (String, [String; 2]) {
    let sent = [traces.secret("an exporter's header"), traces.secret("an exporter's key")];
    let broken = traces.secret("an exporter's header without a name");
    let control = traces.secret("an exporter's header with a control character");
    let [bearer, key] = &sent;
    (format!("authorization=Bearer%20{bearer},x-key={key},{broken},x-broken={control}%01"), sent)
}

#[track_caller]
pub fn assert_proved(collector: &Collector, sent: &[String]) {
    collector.look(|received| {
        let heads = received.heads.concat();
        assert!(sent.iter().all(|secret| heads.contains(secret)), "{heads}");
    });
}

/// Serves until it says something, or ends; all that it said.
fn said(dir: &std::path::Path, name: &str, set: &[String], what: &str) -> String {
    let log = dir.join(name);
    let mut serve = command(&["serve", "--set", "telemetry.log_level=trace", "--config"]);
    serve.arg(dir.join("settings.toml"));
    for setting in set {
        serve.args(["--set", setting]);
    }
    serve.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = serve.stderr(File::create(&log).expect("a file")).spawn().expect("it starts");
    let text = || fs::read_to_string(&log).expect("the log");
    eventually(what, || {
        let ended = child.try_wait().expect("a child").is_some();
        (text().contains(what) || ended).then_some(())
    });
    drop(child.kill());
    drop(child.wait());
    let text = text();
    assert!(text.contains(what), "{text}");
    text
}

/// Asks everybody for a proof but the superuser, from now on.
fn lock(cluster: &Cluster, password: &str) {
    let rules = cluster.dir().join("data/pg_hba.conf");
    let old = fs::read_to_string(&rules).expect("rules");
    let new = format!("host all postgres all trust\nhost all all all scram-sha-256\n{old}");
    fs::write(rules, new).expect("rules");
    cluster.psql("postgres", &format!("ALTER ROLE wallet PASSWORD '{password}'"));
    cluster.psql("postgres", "SELECT pg_reload_conf()");
}

#[test]
fn no_secret_of_the_operator_or_of_a_header_is_ever_written_anywhere() {
    let mut traces = Traces::default();
    let collector = Collector::start();
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a writable folder");
        plain(&path)
    };
    let raw = random::<32>();
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    traces.marks.extend([Mark::of("a hash key", &raw), Mark::of("its text", hex.as_bytes())]);
    let key = PrivateKey::generate(2048).expect("a key").pkcs8_pem().expect("PEM");
    traces.private_key("the identity's key", &key);
    let password = traces.secret("the database's password");
    let in_url = traces.secret("the password in the URL");
    let wrong = traces.secret("a wrong password");
    let (headers, sent) = exporter_headers(&mut traces);
    let variable = |name: &str, value: String| (format!("ALIPAYPLUS_CANCEL__{name}"), value);
    let env = vec![
        ("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), headers),
        variable("TOKENS__HASH_KEY_FILES", file("marked-hash.hex", &hex)),
        variable("IDENTITY__KEYS__0__FILE", file("marked-wallet.pem", &key)),
        variable("STORE__PASSWORD_FILE", file("database.password", &format!("{password}\n"))),
    ];
    let wrong_file = format!("store.password_file={}", file("wrong.password", &wrong));

    // nobody is there
    let nobody = format!("postgres://wallet:{in_url}@127.0.0.1:1/db");
    furnish_on(dir.path(), "", &nobody);
    for (name, set) in [("nobody.log", vec![]), ("nobody-2.log", vec![wrong_file.clone()])] {
        traces.text(name, &said(dir.path(), name, &set, "WARN"));
    }
    for arguments in [&["config", "print"][..], &["config", "check"]] {
        let mut tool = command(arguments);
        tool.arg("--config").arg(dir.path().join("settings.toml")).envs(env.iter().cloned());
        let output = tool.env("RUST_LOG", "trace").output().expect("it ends");
        traces.output(&arguments.join(" "), &output);
    }
    traces.assert_sees("postgres://wallet:***@", &["output of config print"]);

    let cluster =
        postgres::is_there_or_skip().then(|| Cluster::start(postgres::Options::default()));
    let store = cluster.as_ref().map_or(Store::Embedded, |cluster| {
        lock(cluster, &password);
        let url = cluster.fresh_database();
        let url = url.replacen("wallet@", &format!("wallet:{in_url}@"), 1);
        furnish_on(dir.path(), "", &url);
        let told = "password authentication failed";
        traces.text("wrong", &said(dir.path(), "wrong.log", &[wrong_file], told));
        Store::Postgres(url)
    });
    let set = vec![
        "telemetry.log_level=trace".to_owned(),
        format!("telemetry.otlp_endpoint={}", collector.url()),
    ];
    let mut service =
        Service::start_in(dir, Options { store: store.clone(), set, env, ..Options::default() });
    headers_over_json(&mut traces, &service.json());
    headers_over_grpc(&mut traces, &service.grpc());
    let witness = unique("witness");
    traces
        .json("witness", service.json().cancel_payment(PSP, ACQUIRER, &witness).expect("SUCCESS"));
    traces.service("", &service, &GIVEN, true);
    if let (Some(cluster), Store::Postgres(url)) = (&cluster, &store) {
        let (_, database) = url.rsplit_once('/').expect("a name");
        traces.text("database", &cluster.dump(database));
        let shapes = Mark::of("the witness", witness.as_bytes()).shapes();
        let seen = |shape: &String| traces.find(shape).contains(&"database".to_owned());
        assert!(shapes.iter().any(seen), "blind for the database");
        // and from here on its errors are logged
        cluster.kill_nine();
        let answer = service.json().cancel_payment(PSP, ACQUIRER, &unique("lost"));
        traces.json("no database", answer.expect("UNKNOWN_EXCEPTION"));
    }
    assert!(service.terminate().success());
    traces.service("", &service, &GIVEN, false);
    traces.collector("", &collector);
    traces.assert_sees(&witness, &["stderr.log", "spans", "exported lines"]);
    traces.assert_sees("alipayplus_cancel_commits_total", &["/metrics"]);
    assert_proved(&collector, &sent);
    traces.assert_clean();
}
