//! The console through its port: who is let in, what it tells, and that it tells it as text. What a browser makes of it is
//! in tests/console.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    sync::Arc,
};

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::{IpAddr, ServerName};
use tonic::Code;

use crate::harness::{
    PATIENCE, eventually,
    grpc::{Grant, Payment, wire},
    json::{Answer, Connection},
    pki::{Authority, Issued, tls},
    service::{Options, Role, Service, command},
    unique,
};

const PSP: &str = "1022172000000000001";

fn get_with(address: SocketAddr, target: &str, headers: &str) -> Answer {
    let mut connection = Connection::to(address);
    connection.write(format!("GET {target} HTTP/1.1\r\n{headers}\r\n").as_bytes());
    connection.answer(true).expect("an answer")
}

fn get(service: &Service, target: &str) -> Answer {
    get_with(service.ports().admin, target, "Host: localhost\r\n")
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).expect("UTF-8")
}

#[track_caller]
fn page(service: &Service, target: &str) -> String {
    let answer = get(service, target);
    assert_eq!(answer.status, 200, "{target}: {}", text(&answer));
    text(&answer)
}

/// A service whose console is there for this machine.
fn shown() -> Service {
    Service::start(Options::set(["console.access=local"]))
}

fn payment_page(service: &Service, payment: &Payment) -> String {
    page(service, &format!("/console/payment?psp={}&id={}", payment.psp, payment.request))
}

#[test]
fn it_is_not_there_unless_somebody_may_look() {
    let service = Service::shared();
    let here = get(service, "/");
    assert_eq!(here.status, 200);
    assert!(text(&here).contains("/readyz") && text(&here).contains("console.access"));
    for target in ["/console", "/console/", "/console/clients", "/console/style.css"] {
        let answer = get(service, target);
        assert_eq!(answer.status, 404, "{target}");
        assert!(text(&answer).contains("console.access"), "it says what to do");
    }
}

#[test]
fn local_is_this_machine_without_a_proxy_and_by_its_own_name() {
    let service = shown();
    let admin = service.ports().admin;
    let port = admin.port();
    for host in ["localhost".to_owned(), format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let answer = get_with(admin, "/console", &format!("Host: {host}\r\n"));
        assert_eq!(answer.status, 200, "{host}");
    }
    for headers in [
        "Host: evil.example\r\n",
        "Host: localhost\r\nX-Forwarded-For: 203.0.113.9\r\n",
        "Host: localhost\r\nForwarded: for=203.0.113.9\r\n",
        "Host: localhost\r\nVia: 1.1 proxy\r\n",
    ] {
        for target in ["/console", "/console/clients", "/console/nothing"] {
            let answer = get_with(admin, target, headers);
            assert_eq!(answer.status, 403, "{headers}");
            assert!(!text(&answer).contains("<html"), "{headers}");
        }
    }
}

#[test]
fn a_proxy_names_the_user_and_nobody_else_can() {
    let set = ["console.access=proxy", "console.user_header=X-Auth-Request-Email"];
    let service = Service::start(Options::set(set));
    let admin = service.ports().admin;
    let named = "Host: console.wallet\r\nX-Auth-Request-Email: ann@wallet.example\r\n";
    let answer = get_with(admin, "/console", named);
    assert_eq!(answer.status, 200);
    assert!(text(&answer).contains("read by ann@wallet.example"));
    assert_eq!(get_with(admin, "/console/words-of-the-caller", named).status, 404);
    eventually("what was no page is in the log without its words", || {
        service.stderr().contains("none of ours").then_some(())
    });
    assert!(!service.stderr().contains("words-of-the-caller"));
    eventually("who looked is in the log", || {
        let log = service.stderr();
        log.lines()
            .any(|line| line.contains("ann@wallet.example") && line.contains("/console"))
            .then_some(())
    });
    let twice = format!("{named}X-Auth-Request-Email: eve@wallet.example\r\n");
    for headers in ["Host: console.wallet\r\n", twice.as_str()] {
        assert_eq!(get_with(admin, "/console", headers).status, 403, "{headers}");
    }

    // the same from an address that is no proxy's
    let mut service = service;
    service.restart_with(&[set[0], set[1], "console.proxies=192.0.2.7"]);
    assert_eq!(get_with(service.ports().admin, "/console", named).status, 403);
}

/// A page over TLS; the error is the handshake's.
fn get_over_tls(
    address: SocketAddr,
    authority: &Authority,
    issued: Option<&Issued>,
) -> std::io::Result<String> {
    let config = tls(&authority.pem, issued, "http/1.1");
    let name = ServerName::IpAddress(IpAddr::from(address.ip()));
    let client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let socket = std::net::TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(client, socket);
    stream.write_all(b"GET /console HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8(answer).expect("UTF-8"))
}

#[test]
fn a_certificate_opens_it_on_a_port_of_its_own() {
    let authority = Authority::new("people");
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
    fs::write(dir.path().join("people.pem"), &authority.pem).unwrap();
    authority.issue(&["127.0.0.1"]).write(dir.path(), "console");
    let toml = r#"
[console]
access = "certificate"
listen = "127.0.0.1:0"
tls = { cert_file = "console.pem", key_file = "console.key", client_ca_file = "people.pem", allowed_sans = ["support.wallet"] }
"#;
    let service = Service::start_in(dir, Options { toml: toml.to_owned(), ..Options::default() });
    let at = service.stderr().lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["console"].as_str()?.parse::<SocketAddr>().ok()
    });
    let at = at.expect("the ready line says where the console is");

    let ann = authority.issue(&["support.wallet"]);
    let answer = get_over_tls(at, &authority, Some(&ann)).expect("she has a certificate");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("read by support.wallet"), "{answer}");
    assert!(get_over_tls(at, &authority, None).is_err(), "nobody without one");
    let other = authority.issue(&["other.wallet"]);
    assert!(get_over_tls(at, &authority, Some(&other)).is_err(), "nobody of another name");
    let stranger = Authority::new("strangers").issue(&["support.wallet"]);
    assert!(get_over_tls(at, &authority, Some(&stranger)).is_err(), "nobody of other authorities");
    assert_eq!(get(&service, "/console").status, 404, "and not beside the probes");
}

#[test]
fn settings_that_would_show_it_to_nobody_or_everybody_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    crate::harness::service::furnish(dir.path(), "");
    let settings = dir.path().join("settings.toml");
    let check = |set: &str| {
        let (name, value) = set.split_once('=').expect("a name and a value");
        let name = name.to_uppercase().replace('.', "__");
        let mut command = command(&["config", "check", "--config", settings.to_str().unwrap()]);
        let output = command.env(format!("ALIPAYPLUS_CANCEL__{name}"), value).output();
        let output = output.expect("the binary starts");
        (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (status, said) = check("console.access=certificate");
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("console.listen") && said.contains("console.tls"), "{said}");
    for (set, names) in [
        ("console.access=everybody", "\"off\""),
        ("console.user_header=a b", "a header's name"),
        ("console.proxies=10.0.0.0/8", "an address"),
    ] {
        let (status, said) = check(set);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(names), "{said}");
    }
    assert_eq!(check("console.access=local").0, Some(0));
}

#[test]
fn it_only_reads_and_forbids_a_browser_everything_else() {
    let service = shown();
    let admin = service.ports().admin;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let mut connection = Connection::to(admin);
        let head =
            format!("{method} /console HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        connection.write(head.as_bytes());
        assert_eq!(connection.answer(true).expect("an answer").status, 405, "{method}");
    }
    for target in ["/console", "/console/clients", "/console/style.css", "/console/none"] {
        let answer = get(&service, target);
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'self'"), "{policy}");
        assert!(!policy.contains("script"), "no script is allowed: {policy}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert!(!text(&answer).contains("<script"), "{target}");
    }
    assert_eq!(get(&service, "/console/none").status, 404);
}

#[test]
fn a_payments_story_is_told_from_its_first_word_to_its_money() {
    let service = shown();
    let (grpc, json) = (service.grpc(), service.json());
    let payment = Payment::new();
    let link = format!("/console/find?psp={PSP}&id={}", payment.request);
    let nothing = get(&service, &link);
    assert_eq!(nothing.status, 404);
    assert!(text(&nothing).contains("Nothing is known of"));
    let front = get(&service, "/");
    assert_eq!((front.status, front.header("location")), (303, Some("/console")));
    assert_eq!(get(&service, "/console/").status, 200);

    grpc.record_payment(payment.record(payment.succeeded())).expect("recorded");
    assert!(payment_page(&service, &payment).contains("Paid, and nobody asked to cancel it."));

    json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request).expect("SUCCESS");
    let due = payment_page(&service, &payment);
    for words in [
        "19.99 EUR</span> has to go back to the user",
        "The payment core reported",
        "A cancel was decided",
        "FundReturnDue",
        "ORDER_IS_CLOSED",
        &json.client_id,
    ] {
        assert!(due.contains(words), "no {words} in {due}");
    }
    let story = grpc.story(&payment);
    let trace = story.payment.and_then(|it| it.cancellation).expect("cancelled").trace_id;
    assert!(!trace.is_empty() && due.contains(&trace), "its trace leads on");
    assert!(page(&service, "/console/outstanding").contains(&payment.request));

    let request = wire::RecordFundReturnRequest {
        psp_id: payment.psp.clone(),
        payment_request_id: payment.request.clone(),
        reference: "transfer-7".to_owned(),
    };
    grpc.record_fund_return(request).expect("recorded");
    let back = payment_page(&service, &payment);
    assert!(back.contains("went back to the user on") && back.contains("transfer-7"), "{back}");
    assert!(!page(&service, "/console/outstanding").contains(&payment.request));

    // and the search leads to it
    let found = get(&service, &link);
    assert_eq!(found.status, 303);
    let target = found.header("location").expect("where to").to_owned();
    assert!(page(&service, &target).contains("transfer-7"));
}

#[test]
fn an_authorizations_story_tells_nothing_of_its_tokens() {
    let service = shown();
    let (grpc, json) = (service.grpc(), service.json());
    let grant = Grant::new();
    let token = unique("secret-token");
    let ask = || wire::GetAuthorizationRequest {
        psp_id: grant.psp.clone(),
        authorization_id: grant.id.clone(),
    };
    let unknown = grpc.get_authorization(ask()).expect_err("nobody recorded it");
    assert_eq!(unknown.code(), Code::NotFound);
    let illegal = grpc.get_authorization(wire::GetAuthorizationRequest::default());
    assert_eq!(illegal.expect_err("two fields are missing").code(), Code::InvalidArgument);

    grpc.record_token(grant.token(&token)).expect("recorded");
    let link = format!("/console/authorization?psp={}&id={}", grant.psp, grant.id);
    assert!(page(&service, &link).contains("It stands"));
    let told = grpc.get_authorization(ask()).expect("it is known");
    assert_eq!((told.acquirer_id.as_str(), told.revocation), (grant.acquirer.as_str(), None));

    json.cancel_token(&grant.psp, &grant.acquirer, &token).expect("SUCCESS");
    let revoked = page(&service, &link);
    assert!(revoked.contains("Revoked: Alipay+ asked to cancel one of its tokens"), "{revoked}");
    assert!(!revoked.contains(&token));
    let end = grpc.get_authorization(ask()).expect("known").revocation.expect("revoked");
    assert_eq!(end.cause(), wire::RevocationCause::CancelToken);
    assert!(end.revoked_at.is_some() && revoked.contains(&end.trace_id), "{end:?}");
    assert!(!service.stderr().contains(&token));
}

#[test]
fn every_value_is_text() {
    let service = shown();
    let grpc = service.grpc();
    let hostile = r#"<script>alert(1)</script>"'&amp;"#;
    let payment = Payment {
        request: format!("{hostile}{}", unique("").chars().take(20).collect::<String>()),
        acquirer: hostile.to_owned(),
        ..Payment::new()
    };
    grpc.record_payment(payment.record(payment.succeeded())).expect("recorded");
    grpc.record_payment(payment.record(payment.refund_started(hostile, 1))).expect("recorded");
    grpc.record_payment(payment.record(payment.refund_failed(hostile))).expect("recorded");
    grpc.cancel_payment(payment.cancel()).expect("cancelled");
    let grant = Grant { id: hostile.to_owned(), acquirer: hostile.to_owned(), ..Grant::new() };
    grpc.record_token(grant.token("t")).expect("recorded");

    let request = wire::SubscribeRequest { consumer: "hostile".to_owned(), ..Default::default() };
    let mut feed = grpc.subscribe(request).expect("a stream");
    let begun = feed.next().expect("the first message");
    let event = feed.event();
    let park = wire::ParkRequest {
        consumer: "hostile".to_owned(),
        event_id: event.event_id,
        reason: hostile.to_owned(),
        partition: event.partition,
        position: event.position,
        epoch: begun.epoch,
        subscription_id: None,
    };
    grpc.park(park).expect("parked");

    let encoded: String = payment.request.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let of_grant: String = hostile.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for target in [
        format!("/console/payment?psp={PSP}&id={encoded}"),
        format!("/console/authorization?psp={}&id={of_grant}", grant.psp),
        "/console/outstanding".to_owned(),
        "/console/parked?consumer=hostile".to_owned(),
    ] {
        let shown = page(&service, &target);
        assert!(!shown.contains("<script"), "{target}: {shown}");
        assert!(shown.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{target}: {shown}");
        assert!(!shown.contains(r#""'&amp;"<"#), "{target}: a quote ends an attribute: {shown}");
    }
    for target in [
        format!("/console/find?psp={of_grant}&id={of_grant}none"),
        format!("/console/parked?consumer={of_grant}"),
        format!("/console/{of_grant}"),
    ] {
        let answer = text(&get(&service, &target));
        assert!(!answer.contains("<script"), "{target}: {answer}");
    }
}

#[test]
fn it_tells_who_follows_and_which_keys_sign() {
    let service = shown();
    let (grpc, json) = (service.grpc(), service.json());
    let payment = Payment::new();
    let clients = page(&service, "/console/clients");
    assert!(clients.contains("ended") && clients.contains("not since this process began"));
    json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request).expect("SUCCESS");
    let used = page(&service, "/console/clients");
    let unused = |page: &str| page.matches("not since this process began").count();
    assert_eq!(unused(&used) + 1, unused(&clients), "{used}");

    assert!(page(&service, "/console/consumers").contains("Nobody has ever followed the feed"));
    drop(grpc.follow("executor"));
    let consumers = page(&service, "/console/consumers");
    assert!(consumers.contains("executor"), "{consumers}");
    let overview = page(&service, "/console");
    assert!(overview.contains("1 S, successful"), "{overview}");
}

#[test]
fn what_is_wrong_with_the_store_stands_above_every_page() {
    let service =
        Service::start(Options { onboarding: true, ..Options::set(["console.access=local"]) });
    eventually("it was looked at", || {
        page(&service, "/console/clients").contains("Onboarding:").then_some(())
    });
    service.import_complete();
    eventually("it is over", || {
        (!page(&service, "/console").contains("Onboarding:")).then_some(())
    });
}

#[test]
fn a_bridge_says_that_payments_are_told_elsewhere() {
    let toml = "[console]\naccess = \"local\"\n";
    let service = Service::start(Options {
        role: Role::Bridge,
        toml: toml.to_owned(),
        set: vec!["bridge.core=http://127.0.0.1:9".to_owned()],
        ..Options::default()
    });
    for target in ["/console", "/console/outstanding", "/console/find?id=a"] {
        assert!(page(&service, target).contains("This process is a bridge"), "{target}");
    }
    assert!(page(&service, "/console/clients").contains(&service.json().client_id));
}
