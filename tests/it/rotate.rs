//! Keys are rotated under load, ours and Alipay+'s, and no request fails on either side.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use alipayplus_cancel::bridge::{
    keys::{PrivateKey, PublicKey},
    signature::{self, SignatureHeader},
};

use crate::{
    harness::{
        eventually,
        grpc::Payment,
        json::{Answer, Json, payment_body},
        service::{Options, Service, command, run},
        vectors,
    },
    reload::{change, reload},
};

/// Alipay+ under load: callers that sign with one key or the other, and verify what comes back with the key that it names.
struct Load {
    /// The wallet's public keys by their versions, as Alipay+ was given them.
    wallet: Mutex<HashMap<String, PublicKey>>,
    /// How many callers sign with the new key.
    moved: AtomicUsize,
    over: AtomicBool,
    /// Answers of each caller, by the version that signed them.
    answers: Vec<Mutex<HashMap<String, usize>>>,
}

const CALLERS: usize = 6;

/// The version that signed an answer, if its key did.
fn signed_by(answer: &Answer, wallet: &HashMap<String, PublicKey>) -> String {
    let header = answer.header("signature").expect("a signature");
    let read = SignatureHeader::parse(header).expect("a signature header");
    let version = read.key_version.as_deref().expect("a keyVersion").to_owned();
    let time = answer.header("response-time").expect("a time");
    let string = signature::signed_string(
        &answer.method,
        &answer.target,
        &answer.client,
        time,
        &answer.body,
    );
    let key = wallet.get(&version).unwrap_or_else(|| panic!("{version} was not announced"));
    assert!(key.verify(&string, &read.signature), "{version} did not sign this");
    version
}

impl Load {
    fn new() -> Self {
        let first = vectors::wallet().public().clone();
        Self {
            wallet: Mutex::new(HashMap::from([("1".to_owned(), first)])),
            moved: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            answers: (0..CALLERS).map(|_| Mutex::default()).collect(),
        }
    }

    fn announce(&self, version: &str, key: &PublicKey) {
        self.wallet.lock().unwrap().insert(version.to_owned(), key.clone());
    }

    fn call(&self, caller: usize, old: &Json, new: &Json) {
        let mut connection = old.connect();
        while !self.over.load(Ordering::SeqCst) {
            let json = if caller < self.moved.load(Ordering::SeqCst) { new } else { old };
            let payment = Payment::new();
            let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
            let answer = json.request().body(body).send_on(&mut connection);
            answer.expect("SUCCESS");
            let version = signed_by(&answer, &self.wallet.lock().unwrap());
            *self.answers[caller].lock().unwrap().entry(version).or_default() += 1;
        }
    }

    /// Waits until every caller has so many more answers, all of them signed by this version.
    #[track_caller]
    fn goes_on_with(&self, version: &str) {
        let of = |caller: usize| self.answers[caller].lock().unwrap().clone();
        // one that was under way may still be signed by the key before
        let under_way = (0..CALLERS).map(of).map(|it| it.values().sum::<usize>() + 1);
        let under_way: Vec<usize> = under_way.collect();
        let all = |least: &[usize], more: usize| {
            let enough = |caller: usize| of(caller).values().sum::<usize>() >= least[caller] + more;
            eventually("the load goes on", || (0..CALLERS).all(enough).then_some(()));
        };
        all(&under_way, 0);
        let before: Vec<HashMap<String, usize>> = (0..CALLERS).map(of).collect();
        let totals: Vec<usize> = before.iter().map(|it| it.values().sum()).collect();
        all(&totals, 10);
        for (caller, before) in before.iter().enumerate() {
            for (known, count) in of(caller) {
                let more = count - before.get(&known).copied().unwrap_or(0);
                assert!(more == 0 || known == version, "{more} of {caller}'s are by {known}");
            }
        }
    }
}

#[test]
fn both_sides_change_their_keys_under_load_and_no_request_fails() {
    let service = Service::start(Options::set(["reload.interval=0s"]));
    let [ours, theirs] = [(); 2].map(|()| PrivateKey::generate(2048).unwrap());
    let write = |name: &str, text: &str| fs::write(service.dir().join(name), text).unwrap();
    write("wallet-2.pem", &ours.pkcs8_pem().unwrap());
    write("alipayplus-2.pub", &theirs.public().spki_pem());
    let old = service.json();
    let new = Json { key: theirs.clone(), key_version: "2".to_owned(), ..old.clone() };
    let load = Load::new();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (load, old, new) = (&load, &old, &new);
                scope.spawn(move || load.call(caller, old, new))
            })
            .collect();
        let alive = || callers.iter().all(|caller| !caller.is_finished());
        let goes_on = |version: &str| {
            assert!(alive(), "a caller failed");
            load.goes_on_with(version);
            assert!(alive(), "a caller failed");
        };
        goes_on("1");

        // staged: ours is read and does not sign; theirs is taken beside the old one
        let first = "version = \"1\"\nfile = \"wallet.pem\"\n";
        let second = "[[identity.keys]]\nversion = \"2\"\nfile = \"wallet-2.pem\"\n";
        change(&service, first, &format!("{first}{second}state = \"staged\"\n"));
        let public = "public_key_file = \"alipayplus.pub\"\n";
        let added = "[[clients.keys]]\nversion = \"2\"\npublic_key_file = \"alipayplus-2.pub\"\n";
        change(&service, public, &format!("{public}{added}"));
        reload(&service);
        goes_on("1");

        // half of Alipay+ signs with its new key, then all of it
        load.moved.store(CALLERS / 2, Ordering::SeqCst);
        goes_on("1");

        // promoted, once Alipay+ has the new public key
        load.announce("2", ours.public());
        change(&service, first, &format!("{first}state = \"retired\"\n"));
        change(&service, "state = \"staged\"", "state = \"active\"");
        reload(&service);
        goes_on("2");
        load.moved.store(CALLERS, Ordering::SeqCst);
        goes_on("2");

        // retired: ours is gone, theirs has ended
        change(&service, &format!("[[identity.keys]]\n{first}state = \"retired\"\n"), "");
        change(&service, public, &format!("{public}not_after = \"2020-01-01T00:00:00Z\"\n"));
        reload(&service);
        goes_on("2");
        load.over.store(true, Ordering::SeqCst);
    });
    let payment = Payment::new();
    let refused = old.cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
    refused.expect("KEY_NOT_FOUND");
    let answered: usize =
        load.answers.iter().map(|it| it.lock().unwrap().values().sum::<usize>()).sum();
    println!("{answered} requests, none failed");
}

fn rotate(service: &Service, arguments: &[&str]) -> (Option<i32>, String) {
    let settings = service.settings();
    let output = run(&[
        &["keys", "rotate"],
        arguments,
        &["--config", settings.to_str().expect("a plain name")],
    ]
    .concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn the_commands_walk_through_a_rotation_of_our_key_and_change_nothing_twice() {
    let service = Service::start(Options::set(["reload.interval=0s"]));
    let text = || fs::read_to_string(service.settings()).unwrap();
    let url = format!("http://{}/aps/api", service.ports().bridge);
    let good = |arguments: &[&str]| {
        let (status, said) = rotate(&service, arguments);
        assert_eq!(status, Some(0), "{arguments:?}: {said}");
        assert!(!said.contains("PRIVATE"), "{said}");
        said
    };
    let begun = text();
    assert!(good(&[]).contains("next: stage"));
    assert!(good(&["promote", "--write"]).contains("no key is staged"));
    assert!(good(&["retire", "--write"]).contains("no key is retired"));

    // what is only told is not done; the pair is made once
    let told = good(&["stage"]);
    assert!(told.contains("+ state = \"staged\"") && text() == begun, "{told}");
    let done = good(&["stage", "--write"]);
    let line = |said: &str| said.lines().find(|line| line.starts_with("MII")).unwrap().to_owned();
    assert_eq!(line(&told), line(&done));
    let staged = text();
    assert!(staged.contains("file = \"wallet-2.private.pem\"\nstate = \"staged\"\n"), "{staged}");
    assert_eq!(line(&good(&["stage", "--write"])), line(&done));
    assert_eq!(text(), staged);
    let mode = fs::metadata(service.dir().join("wallet-2.private.pem")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    reload(&service);

    let verified = good(&["verify", "--url", &url]);
    assert!(verified.contains("signed with 1, and its signature verifies"), "{verified}");
    assert!(verified.contains("2 (staged) signs and verifies"), "{verified}");
    good(&["promote", "--write"]);
    let (status, said) = rotate(&service, &["verify", "--url", &url]);
    assert_eq!(status, Some(1), "the service has not reloaded: {said}");
    assert!(said.contains("has it reloaded?"), "{said}");
    reload(&service);
    let verified = good(&["verify", "--url", &url]);
    assert!(verified.contains("signed with 2, and its signature verifies"), "{verified}");
    let promoted = text();
    good(&["promote", "--write"]);
    assert_eq!(text(), promoted);

    good(&["retire", "--write"]);
    reload(&service);
    assert!(!text().contains("wallet.pem"), "{}", text());
    assert!(service.dir().join("wallet.pem").exists(), "files stay");
    let public = PublicKey::parse(line(&done)).unwrap();
    let payment = Payment::new();
    let answer = service.json().cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
    let wallet = HashMap::from([("2".to_owned(), public)]);
    assert_eq!(signed_by(answer.expect("SUCCESS"), &wallet), "2");
}

#[test]
fn the_commands_walk_through_a_rotation_of_a_clients_key() {
    let service = Service::start(Options::set(["reload.interval=0s"]));
    let text = || fs::read_to_string(service.settings()).unwrap();
    let new = PrivateKey::generate(2048).unwrap();
    let file = service.dir().join("from-the-console.txt");
    fs::write(&file, new.public().spki_base64()).unwrap();
    let client = |arguments: &[&str]| {
        rotate(&service, &[arguments, &["--client", vectors::CLIENT_ID]].concat())
    };
    let key = ["--public-key", file.to_str().unwrap()];
    let (status, said) = client(&["stage", "--write"]);
    assert!(status == Some(2) && said.contains("--public-key"), "{said}");
    let (status, said) = client(&[&["stage", "--write"], &key[..]].concat());
    assert_eq!(status, Some(0), "{said}");
    let staged = text();
    assert!(staged.contains("version = \"2\"\npublic_key_file = \"from-the-console.txt\"\n"));
    let (_, said) = client(&[&["stage", "--write"], &key[..]].concat());
    assert!(said.contains("it is there already, as 2") && text() == staged, "{said}");
    reload(&service);
    let old = service.json();
    let moved = Json { key: new, key_version: "2".to_owned(), ..old.clone() };
    let cancel = |json: &Json| {
        let payment = Payment::new();
        json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request).code()
    };
    assert_eq!((&*cancel(&old), &*cancel(&moved)), ("SUCCESS", "SUCCESS"));
    let (_, said) = client(&["verify"]);
    assert!(said.contains("1 is taken;") && said.contains("ended has ended;"), "{said}");

    assert_eq!(client(&["promote", "--overlap-days", "1", "--write"]).0, Some(0));
    reload(&service);
    assert_eq!((&*cancel(&old), &*cancel(&moved)), ("SUCCESS", "SUCCESS"), "for a day");
    assert!(client(&["verify"]).1.contains("1 is taken until "));
    let (_, said) = client(&["retire", "--write"]);
    assert!(said.contains("ended has ended and goes") && !said.contains("1 has ended"), "{said}");
    reload(&service);
    assert_eq!((&*cancel(&old), &*cancel(&moved)), ("SUCCESS", "SUCCESS"));

    let (status, said) = rotate(&service, &["verify", "--client", "NOBODY"]);
    assert!(status == Some(2) && said.contains("no such client"), "{said}");
}

#[test]
fn a_rotation_that_would_not_hold_or_is_not_in_the_file_changes_nothing() {
    let service = Service::start(Options::set(["reload.interval=0s"]));
    let text = fs::read_to_string(service.settings()).unwrap();
    // the key of another client
    let other = service.dir().join("other.pub");
    let stage = ["stage", "--write", "--client", vectors::CLIENT_ID, "--public-key"];
    let (status, said) = rotate(&service, &[&stage[..], &[other.to_str().unwrap()]].concat());
    assert!(status == Some(2) && said.contains("would not hold"), "{said}");
    assert_eq!(fs::read_to_string(service.settings()).unwrap(), text);
    assert!(!service.dir().join("settings.toml.new").exists());

    let elsewhere = service.dir().join("link.toml");
    std::os::unix::fs::symlink("settings.toml", &elsewhere).unwrap();
    let link = ["keys", "rotate", "stage", "--write", "--config", elsewhere.to_str().unwrap()];
    let output = run(&link);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is a link"));
    assert_eq!(fs::read_to_string(service.settings()).unwrap(), text);
}

#[test]
fn a_rehearsal_does_all_of_it_with_a_service_under_load_and_leaves_nothing() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut rehearsal = command(&["keys", "rotate", "--rehearse"]);
    let output = rehearsal
        .env("TMPDIR", temporary.path())
        // the real store is none of its business
        .env("ALIPAYPLUS_CANCEL__STORE__URL", "sqlite:///real/state.db")
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("both    the old keys are retired"), "{said}");
    assert!(said.contains("none failed"), "{said}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}
