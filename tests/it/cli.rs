//! The command line: exit status, one clear message, nothing secret in what is printed.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::Value;

use crate::harness::{
    grpc::Grant,
    service::{Service, command, furnish, run},
    unique,
    vectors::CLIENT_ID,
};

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("apc-it-").tempdir().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn ended_with(output: &Output, status: i32) {
    assert_eq!(output.status.code(), Some(status), "{}{}", out(output), err(output));
    assert!(!err(output).contains("panicked"), "{}", err(output));
}

/// `serve` on a folder, which is expected to end by itself.
fn serve(dir: &Path) -> Output {
    run(&["serve", "--config", text(&dir.join("settings.toml"))])
}

#[test]
fn completions_are_scripts_and_each_command_has_a_manual_page() {
    for (shell, first) in
        [("bash", "_alipayplus__cancel()"), ("zsh", "#compdef alipayplus-cancel"), ("fish", "#")]
    {
        let output = run(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.starts_with(first), "{shell}: {script:.100}");
        assert!(script.contains("cancel-payment") && script.contains("migrate-store"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    assert!(run(&["man", "--out", pages.to_str().unwrap()]).status.success());
    for command in ["", "-serve", "-keys-rotate", "-call-cancel-payment", "-feed-tail", "-openapi"]
    {
        let page = fs::read_to_string(pages.join(format!("alipayplus-cancel{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
}

/// Whoever reads a line of it and no more, as `head` does, sees neither an error nor a panic; what was asked is done.
#[test]
fn output_that_nobody_reads_to_its_end_is_no_failure() {
    let service = Service::shared();
    let dir = folder();
    furnish(dir.path(), "");
    let settings = dir.path().join("settings.toml");
    let settings = text(&settings);
    let keys = dir.path().join("more");
    let sandbox = dir.path().join("sandbox");
    let url = format!("http://{}", service.ports().grpc);
    let ready = format!("http://{}/readyz", service.ports().admin);
    for arguments in [
        &["completions", "bash"][..],
        &["proto"],
        &["openapi"],
        &["config", "print", "--config", settings],
        &["keys", "generate", "--out", text(&keys)],
        &["import", "complete", "--config", settings],
        &["verify", "--config", settings],
        &["migrate", "--check", "--config", settings],
        &["feed", "consumers", "--url", &url],
        &["health", "--timeout", "20s", "--url", &ready],
        &["sandbox", "--once", "--dir", text(&sandbox)],
    ] {
        let mut child = command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        ended_with(&output, 0);
        assert!(!err(&output).to_lowercase().contains("pipe"), "{arguments:?}: {}", err(&output));
    }
    assert!(dir.path().join("more.private.pem").exists() && sandbox.exists());
    // a full disk is one
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output =
        command(&["proto"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output();
    let output = output.unwrap();
    ended_with(&output, 1);
    assert!(err(&output).contains("standard output"), "{}", err(&output));
}

#[test]
fn every_subcommand_has_a_help() {
    for words in [
        &[][..],
        &["sandbox"],
        &["serve"],
        &["call"],
        &["call", "cancel-payment"],
        &["call", "cancel-token"],
        &["certify"],
        &["simulate"],
        &["keys"],
        &["keys", "generate"],
        &["keys", "show"],
        &["keys", "check"],
        &["config"],
        &["config", "check"],
        &["config", "print"],
        &["import"],
        &["import", "payments"],
        &["import", "tokens"],
        &["import", "complete"],
        &["migrate"],
        &["migrate-store"],
        &["backup"],
        &["health"],
        &["verify"],
        &["reconcile"],
        &["openapi"],
        &["completions"],
        &["man"],
    ] {
        let output = run(&[words, &["--help"]].concat());
        ended_with(&output, 0);
        assert!(out(&output).contains("Usage:"), "{words:?}");
        assert!(err(&output).is_empty(), "{words:?}");
    }
    ended_with(&run(&["--version"]), 0);
    ended_with(&run(&[]), 2);
    ended_with(&run(&["no-such-command"]), 2);
    ended_with(&run(&["serve"]), 2);
}

#[test]
fn good_settings_pass_the_check_and_are_printed_without_secrets() {
    let dir = folder();
    furnish(dir.path(), "");
    let file = dir.path().join("settings.toml");
    ended_with(&run(&["config", "check", "--config", text(&file)]), 0);
    let output = run(&["config", "print", "--config", text(&file)]);
    ended_with(&output, 0);
    assert!(out(&output).contains(CLIENT_ID) && !out(&output).contains("PRIVATE KEY"));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/alipayplus-cancel.example.toml");
    // its key files are not there, and that is all
    let output = run(&["config", "check", "--config", example]);
    ended_with(&output, 2);
    assert!(err(&output).lines().all(|line| line.contains("cannot read")), "{}", err(&output));
}

#[test]
fn bad_settings_are_told_with_file_and_line_and_exit_status_2() {
    for (bad, line, word) in [
        ("[limits]\nmax_in_flite = 5\n", 2, "max_in_flight"),
        ("[limits]\n\nbody_timeout = 5\n", 3, "body_timeout"),
        ("[limits]\nbody_timeout = \"5 parsecs\"\n", 2, "body_timeout"),
        ("[policy]\nacquirer_check = \"maybe\"\n", 2, "enforce"),
        ("this is not toml\n", 1, ""),
    ] {
        let dir = folder();
        furnish(dir.path(), "");
        let file = dir.path().join("settings.toml");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{before}{bad}")).unwrap();
        let line = before.lines().count() + line;
        for command in ["check", "print"] {
            let output = run(&["config", command, "--config", text(&file)]);
            ended_with(&output, 2);
            let told = err(&output);
            let place = format!("settings.toml:{line}");
            assert!(told.contains(&place) && told.contains(word), "{place}, {word}: {told}");
        }
        let output = serve(dir.path());
        ended_with(&output, 2);
        assert!(err(&output).contains(&format!("settings.toml:{line}")), "{}", err(&output));
    }
    let output = run(&["config", "check", "--config", "/no/such/file.toml"]);
    ended_with(&output, 2);
    assert!(err(&output).contains("/no/such/file.toml"));
}

#[test]
fn keys_show_prints_the_signing_key_of_a_bridge_that_has_no_hash_keys() {
    let dir = folder();
    ended_with(&run(&["keys", "generate", "--out", text(&dir.path().join("wallet"))]), 0);
    let settings = dir.path().join("bridge.toml");
    let bridge = "bridge.core = \"https://core:50051\"\n\
        bridge.core_tls = { ca_file = \"ca\", cert_file = \"crt\", key_file = \"key\" }\n\
        [[identity.keys]]\nversion = \"1\"\nfile = \"wallet.private.pem\"\n";
    fs::write(&settings, bridge).unwrap();
    let shown = run(&["keys", "show", "--config", text(&settings), "--form", "spki-pem"]);
    ended_with(&shown, 0);
    let public = fs::read_to_string(dir.path().join("wallet.public.pem")).unwrap();
    assert_eq!(out(&shown).trim(), public.trim());
}

#[test]
fn a_bad_key_file_is_told_in_one_message_and_exit_status_2() {
    for (file, bytes) in [
        ("wallet.pem", &b"not a key"[..]),
        ("wallet.pem", b""),
        ("wallet.pem", crate::harness::vectors::pem("test_mpp", "spki_pem").as_bytes()),
        ("alipayplus.pub", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
        ("alipayplus.pub", crate::harness::vectors::pem("test_mpp", "pkcs8_pem").as_bytes()),
        ("token-hash.hex", b"short"),
    ] {
        let dir = folder();
        furnish(dir.path(), "");
        fs::write(dir.path().join(file), bytes).unwrap();
        let output = serve(dir.path());
        ended_with(&output, 2);
        let told = err(&output);
        let errors = told.lines().filter(|line| line.contains("error")).count();
        assert_eq!(errors, 1, "{told}");
        let named = if file == "token-hash.hex" { "tokens.hash_key_files" } else { file };
        assert!(told.contains(named), "{file}: {told}");
        assert!(!told.contains("MIIE"), "no key text in a message");
    }
    let dir = folder();
    furnish(dir.path(), "");
    fs::remove_file(dir.path().join("other.pub")).unwrap();
    let output = serve(dir.path());
    ended_with(&output, 2);
    assert!(err(&output).contains("other.pub"), "{}", err(&output));
}

#[test]
fn one_key_for_two_clients_is_refused() {
    let dir = folder();
    furnish(dir.path(), "");
    fs::copy(dir.path().join("alipayplus.pub"), dir.path().join("other.pub")).unwrap();
    let output = serve(dir.path());
    ended_with(&output, 2);
    assert!(err(&output).contains("OTHER_CLIENT-2"), "{}", err(&output));
}

#[test]
fn a_store_that_is_none_is_left_alone_with_exit_status_1() {
    let dir = folder();
    furnish(dir.path(), "");
    let garbage = b"this is not a database, however long it may be".repeat(200);
    fs::write(dir.path().join("state.db"), &garbage).unwrap();
    let output = serve(dir.path());
    ended_with(&output, 1);
    assert!(err(&output).contains("store.url"), "{}", err(&output));
    assert_eq!(fs::read(dir.path().join("state.db")).unwrap(), garbage);
}

#[test]
fn a_second_process_on_one_store_ends_with_exit_status_1_and_the_first_goes_on() {
    let service = Service::start(crate::harness::service::Options::embedded());
    let output = run(&["serve", "--config", text(&service.settings())]);
    ended_with(&output, 1);
    assert!(err(&output).contains("store.url"), "{}", err(&output));
    service.json().cancel_payment("p", "a", &unique("pay")).expect("SUCCESS").assert_signed();
}

#[test]
fn health_is_status_0_of_who_is_ready_and_says_why_of_who_does_not_answer() {
    let health = |url: &str| run(&["health", "--url", url, "--timeout", "200ms"]);
    let service = Service::shared();
    for (path, said) in [("readyz", "ready\n"), ("livez", "ok\n")] {
        let url = format!("http://{}/{path}", service.ports().admin);
        // not what is tested here: a busy machine may need more
        let output = run(&["health", "--url", &url, "--timeout", "20s"]);
        ended_with(&output, 0);
        assert_eq!(out(&output), said);
    }
    let output = health(&format!("http://{}/nowhere", service.ports().admin));
    ended_with(&output, 1);
    assert!(err(&output).contains("answers 404"), "{}", err(&output));

    // the kernel takes the connection, and nobody ever answers
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/readyz", silent.local_addr().unwrap());
    let output = health(&url);
    ended_with(&output, 1);
    assert!(err(&output).contains("no answer within 200ms"), "{}", err(&output));
    drop(silent);
    let output = health(&url);
    ended_with(&output, 1);
    assert!(err(&output).contains("cannot connect"), "{}", err(&output));

    for url in ["https://127.0.0.1:9090/readyz", "127.0.0.1:9090", "/readyz"] {
        ended_with(&health(url), 2);
    }
    ended_with(&run(&["health", "--timeout", "0s"]), 2);
}

#[test]
fn a_port_that_is_taken_is_exit_status_1() {
    let dir = folder();
    furnish(dir.path(), "");
    let taken = Service::shared().ports().bridge;
    let set = format!("bridge.listen={taken}");
    let settings = dir.path().join("settings.toml");
    let output = run(&["serve", "--config", text(&settings), "--set", &set]);
    ended_with(&output, 1);
    let told = err(&output);
    assert!(told.contains("bridge.listen") && told.contains(&taken.to_string()), "{told}");
}

/// `call` with what both of its APIs need.
fn call(api: &str, more: &[&str], input: Option<&str>) -> Output {
    let service = Service::shared();
    let url = format!("http://{}/aps/api", service.ports().bridge);
    let mut command = command(&["call", api, "--url", &url, "--client-id", CLIENT_ID]);
    command.arg("--key").arg(service.dir().join("alipayplus.pem"));
    command.args(["--psp-id", "102208800000001230", "--acquirer-id", "102218800000001234"]);
    command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // a call that does not read it has closed it
    drop(stdin.write_all(input.unwrap_or_default().as_bytes()));
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn peer_key() -> String {
    text(&Service::shared().dir().join("wallet.pub")).to_owned()
}

#[test]
fn call_cancel_payment_exits_0_on_a_signed_success() {
    let peer = peer_key();
    let id = unique("call");
    let more = ["--payment-request-id", &id, "--peer-key", &peer];
    let output = call("cancel-payment", &more, None);
    ended_with(&output, 0);
    assert!(out(&output).contains(r#""resultStatus":"S""#), "{}", out(&output));
    assert!(out(&output).contains("signature of the answer: verified"));

    let output = call("cancel-payment", &[&more[..], &["--json"]].concat(), None);
    ended_with(&output, 0);
    let json: Value = serde_json::from_str(&out(&output)).expect("JSON alone");
    assert_eq!((&json["status"], &json["signature"]), (&200.into(), &"verified".into()));
    assert_eq!(json["body"]["result"]["resultCode"], "SUCCESS");

    let output = call("cancel-payment", &[&more[..], &["--curl"]].concat(), None);
    ended_with(&output, 0);
    assert!(out(&output).starts_with("curl "));
}

#[test]
fn call_exits_1_on_everything_but_a_signed_success() {
    let peer = peer_key();
    let wrong_peer = text(&Service::shared().dir().join("alipayplus.pub")).to_owned();
    let id = unique("call");
    // an illegal parameter
    let long = "x".repeat(65);
    let output =
        call("cancel-payment", &["--payment-request-id", &long, "--peer-key", &peer], None);
    ended_with(&output, 1);
    // a signature of somebody else
    let more = ["--payment-request-id", &id, "--peer-key", &wrong_peer, "--json"];
    let output = call("cancel-payment", &more, None);
    ended_with(&output, 1);
    let json: Value = serde_json::from_str(&out(&output)).expect("JSON alone");
    assert_eq!(json["signature"], "wrong");
    // an unknown key version
    let more = ["--payment-request-id", &id, "--key-version", "9", "--peer-key", &peer];
    ended_with(&call("cancel-payment", &more, None), 1);
    // wrong usage
    ended_with(&call("cancel-payment", &[], None), 2);
    let more = ["--payment-request-id", &id, "--peer-key", "/no/such/file"];
    ended_with(&call("cancel-payment", &more, None), 2);
}

#[test]
fn call_cancel_token_takes_the_token_from_a_file_or_standard_input_and_shows_it_nowhere() {
    let (peer, grpc, dir) = (peer_key(), Service::shared().grpc(), folder());
    for by_file in [true, false] {
        for json in [true, false] {
            let grant = Grant::new();
            let token = unique("CLI-SECRET");
            grpc.record_token(grant.token(&token)).unwrap();
            let file = dir.path().join("token");
            fs::write(&file, format!("{token}\n")).unwrap();
            let mut more = vec!["--peer-key", &peer];
            if by_file {
                more.extend(["--access-token-file", text(&file)]);
            }
            if json {
                more.push("--json");
            }
            let input = format!("{token}\n");
            let output = call("cancel-token", &more, (!by_file).then_some(&*input));
            ended_with(&output, 0);
            assert!(!(out(&output) + &err(&output)).contains("CLI-SECRET"), "{}", out(&output));
            if json {
                let json: Value = serde_json::from_str(&out(&output)).expect("JSON alone");
                assert_eq!(json["body"]["result"]["resultCode"], "SUCCESS");
            }
            assert!(!grpc.introspect_token(grant.introspect(&token)).unwrap().active);
        }
    }
    let more = ["--peer-key", &*peer];
    let output = call("cancel-token", &more, Some(&unique("CLI-SECRET")));
    ended_with(&output, 1);
    assert!(out(&output).contains("INVALID_TOKEN") && !out(&output).contains("CLI-SECRET"));
    ended_with(&call("cancel-token", &more, Some("")), 2);
    // there is no argument for it
    let argument = ["--peer-key", &*peer, "--access-token", "x"];
    ended_with(&call("cancel-token", &argument, Some("")), 2);
}

#[test]
fn call_to_nobody_is_exit_status_1_with_a_message() {
    let dir = folder();
    furnish(dir.path(), "");
    let key = dir.path().join("alipayplus.pem");
    // a port that was free a moment ago, and is listened on by nobody
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&[
        "call",
        "cancel-payment",
        "--url",
        &format!("http://{port}/aps/api"),
        "--client-id",
        "C",
        "--key",
        text(&key),
        "--psp-id",
        "p",
        "--acquirer-id",
        "a",
        "--payment-request-id",
        "r",
    ]);
    ended_with(&output, 1);
    assert!(err(&output).contains("cannot connect"), "{}", err(&output));
}

#[test]
fn the_sandbox_plays_both_samples_once_and_once_more() {
    let dir = folder();
    let sandbox = dir.path().join("sandbox");
    for _ in 0..2 {
        let output = run(&["sandbox", "--once", "--dir", text(&sandbox)]);
        ended_with(&output, 0);
        let told = out(&output);
        assert_eq!(told.matches(r#""resultStatus":"S""#).count(), 2, "{told}");
        assert_eq!(told.matches("signature of the answer: verified").count(), 2, "{told}");
        assert!(!told.contains("PRIVATE KEY"));
    }
    let output =
        run(&["config", "check", "--config", text(&sandbox.join("alipayplus-cancel.toml"))]);
    ended_with(&output, 0);
}

#[test]
fn the_sandbox_serves_until_it_is_told_to_end() {
    let dir = folder();
    let log = fs::File::create(dir.path().join("out")).unwrap();
    let mut child = command(&["sandbox", "--dir", text(&dir.path().join("s"))])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    crate::harness::eventually("commands to try are printed", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        fs::read_to_string(dir.path().join("out")).unwrap().contains("grpcurl").then_some(())
    });
    // whoever starts another one there hears where the first is
    let another = run(&["sandbox", "--once", "--dir", text(&dir.path().join("s"))]);
    assert_eq!(another.status.code(), Some(1), "{}", err(&another));
    assert!(err(&another).contains("a sandbox runs in"), "{}", err(&another));
    assert!(err(&another).contains("/console); stop it"), "{}", err(&another));
    let consumers = run(&["feed", "consumers", "--sandbox", text(&dir.path().join("s"))]);
    ended_with(&consumers, 0);
    let pid = child.id().to_string();
    let told = std::process::Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap();
    assert!(told.success());
    let status = crate::harness::eventually("it ends", || child.try_wait().unwrap());
    let said = fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(said.ends_with(&format!("stay in {}\n", text(&dir.path().join("s")))), "{said}");
    // nobody is there any more
    let consumers = run(&["feed", "consumers", "--sandbox", text(&dir.path().join("s"))]);
    ended_with(&consumers, 1);
    assert!(err(&consumers).contains("cannot connect to http://127.0.0.1:"), "{}", err(&consumers));
    let simulated = run(&["simulate", "--sandbox", text(&dir.path().join("s"))]);
    ended_with(&simulated, 2);
    assert!(err(&simulated).contains("where it served last"), "{}", err(&simulated));
    let consumers = run(&["feed", "consumers", "--url", "127.0.0.1:50051"]);
    ended_with(&consumers, 2);
    assert!(err(&consumers).contains("expected http://HOST:PORT"), "{}", err(&consumers));
    // ended in order, or, if it was told before it listened, by the signal itself
    assert!(status.code().is_none_or(|code| code == 0), "{status}");
}

#[test]
fn keys_are_made_shown_and_checked() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = folder();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    for prefix in [&one, &two] {
        let output = run(&["keys", "generate", "--out", text(prefix)]);
        ended_with(&output, 0);
        assert!(!out(&output).contains("PRIVATE KEY"));
        let private = prefix.with_extension("private.pem");
        let mode = fs::metadata(&private).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // never over a key that is there
        ended_with(&run(&["keys", "generate", "--out", text(prefix)]), 2);
    }
    let file = |prefix: &Path, kind: &str| text(&prefix.with_extension(kind)).to_owned();
    let (private, public) = (file(&one, "private.pem"), file(&one, "public.pem"));
    let shown = |file: &str| {
        let output = run(&["keys", "show", file, "--form", "bare"]);
        ended_with(&output, 0);
        out(&output)
    };
    assert_eq!(shown(&private), shown(&public));
    assert_ne!(shown(&private), shown(&file(&two, "public.pem")));
    let output = run(&["keys", "show", &private]);
    ended_with(&output, 0);
    assert!(!out(&output).contains("PRIVATE"), "{}", out(&output));

    let check = |private: &str, public: &str| {
        run(&["keys", "check", "--private", private, "--public", public])
    };
    ended_with(&check(&private, &public), 0);
    ended_with(&check(&private, &file(&two, "public.pem")), 1);
    ended_with(&check(&private, "/no/such/file"), 2);
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "garbage").unwrap();
    ended_with(&check(&private, text(&garbage)), 2);
    ended_with(&run(&["keys", "show", text(&garbage)]), 2);
}
