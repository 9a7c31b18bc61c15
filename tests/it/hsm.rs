//! Keys that stay in their token: the service signs with SoftHSM, and refuses to start with a token that it cannot use.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use alipayplus_cancel::bridge::{
    keys::PrivateKey,
    signer::{
        SignError, Signer as _,
        pkcs11::{AuthPin, KeyName, Location, TokenKey},
    },
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{Mechanism, MechanismType},
    object::Attribute,
    session::UserType,
};

use crate::harness::{
    service::{Options, Service, command, furnish},
    softhsm::{self, PIN, Token},
    unique,
};

const PSP: &str = "102208800000001230";
const ACQUIRER: &str = "102218800000001234";

/// The settings of an active key in a token; the usual one is retired beside it.
fn with_key(token: &Token, key: &str) -> Options {
    let place = token.setting(key);
    Options {
        toml: format!("[[identity.keys]]\nversion = \"hsm-1\"\nstate = \"active\"\n{place}\n"),
        env: vec![
            token.env(),
            ("ALIPAYPLUS_CANCEL__IDENTITY__KEYS__0__STATE".to_owned(), "retired".to_owned()),
        ],
        ..Options::set(["telemetry.log_level=trace"])
    }
}

fn pem(key: &PrivateKey) -> String {
    key.pkcs8_pem().expect("a key").to_string()
}

#[test]
fn the_token_signs_every_answer_and_nobody_learns_the_pin() {
    let Some(token) = softhsm::or_skip() else { return };
    let key = PrivateKey::generate(2048).unwrap();
    token.import("wallet-1", "a1", &pem(&key));
    token.import("another", "a2", &pem(&PrivateKey::generate(2048).unwrap()));
    for name in ["key_label = \"wallet-1\"", "key_id = \"A1\""] {
        let mut service = Service::start(with_key(&token, name));
        let json = service.json();
        let answers = [
            json.cancel_payment(PSP, ACQUIRER, &unique("hsm")),
            json.cancel_token(PSP, ACQUIRER, "no-such-token"),
            json.request().signatures(&["algorithm=RSA256,keyVersion=1,signature=AAAA"]).send(),
        ];
        for (answer, code) in answers.iter().zip(["SUCCESS", "INVALID_TOKEN", "INVALID_SIGNATURE"])
        {
            answer.expect(code).assert_signed_by("hsm-1", key.public());
        }
        assert!(service.terminate().success());
        let log = service.stderr();
        assert!(log.contains("ready") && !log.contains(PIN), "the PIN in the log");
    }
}

#[test]
fn many_callers_share_its_few_sessions() {
    let Some(token) = softhsm::or_skip() else { return };
    let key = PrivateKey::generate(2048).unwrap();
    token.import("wallet-1", "a1", &pem(&key));
    let service = Service::start(with_key(&token, "key_label = \"wallet-1\", sessions = 2"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let json = service.json();
                for _ in 0..8 {
                    let answer = json.cancel_payment(PSP, ACQUIRER, &unique("hsm"));
                    answer.expect("SUCCESS").assert_signed_by("hsm-1", key.public());
                }
            });
        }
    });
}

/// `serve`, which has to end by itself.
fn refused(token: &Token, key: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let Options { toml, env, .. } = with_key(token, key);
    furnish(dir.path(), &toml);
    let mut serve = command(&["serve", "--config"]);
    serve.arg(dir.path().join("settings.toml")).envs(env).stdin(Stdio::null());
    serve.output().unwrap()
}

#[test]
fn a_start_without_its_key_is_refused_and_says_which_setting_to_look_at() {
    let Some(token) = softhsm::or_skip() else { return };
    let key = PrivateKey::generate(2048).unwrap();
    token.import("wallet-1", "a1", &pem(&key));
    token.import("twice", "b1", &pem(&PrivateKey::generate(2048).unwrap()));
    token.import("twice", "b2", &pem(&PrivateKey::generate(2048).unwrap()));
    let small = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])
        .output()
        .expect("openssl");
    token.import("small", "c1", std::str::from_utf8(&small.stdout).unwrap());

    let refusals = [
        ("key_label = \"nobody\"", "key_label: 0 private RSA keys in the token have this name"),
        ("key_id = \"ff\"", "key_id: 0 private RSA keys"),
        ("key_label = \"twice\"", "key_label: 2 private RSA keys"),
        ("key_label = \"small\"", "key_label: the key has 1024 bits, and at least 2048 are due"),
    ];
    let check = |output: &Output, told: &str| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("error: identity.keys.1.pkcs11.{told}")), "{told}: {said}");
        assert!(!said.contains(PIN) && !said.contains("7401"), "the PIN in: {said}");
    };
    for (key, told) in refusals {
        check(&refused(&token, key), told);
    }
    let usual = "key_label = \"wallet-1\"";
    let mut elsewhere = softhsm::or_skip().unwrap();
    elsewhere.label = "no such token".to_owned();
    check(
        &refused(&elsewhere, usual),
        "token_label: 0 tokens have the label `no such token`, and one is due; there are: `wallet token`",
    );
    fs::write(token.pin_file(), "74019362581\n").unwrap();
    let wrong_pin = refused(&token, usual);
    check(&wrong_pin, "pin_file: the token `wallet token` refuses the PIN: ");
    let said = String::from_utf8_lossy(&wrong_pin.stderr).into_owned();
    assert_eq!(said.matches("refuses").count(), 1, "said once: {said}");
    fs::remove_file(token.pin_file()).unwrap();
    check(&refused(&token, usual), "pin_file: cannot read");
}

#[test]
fn config_check_tries_the_key_and_keys_show_prints_its_public_part() {
    let Some(token) = softhsm::or_skip() else { return };
    let key = PrivateKey::generate(2048).unwrap();
    token.import("wallet-1", "a1", &pem(&key));
    let dir = tempfile::tempdir().unwrap();
    let place = token.setting("key_label = \"wallet-1\"");
    furnish(
        dir.path(),
        &format!("[[identity.keys]]\nversion = \"hsm-1\"\nstate = \"staged\"\n{place}\n"),
    );
    let settings = dir.path().join("settings.toml");
    let public = dir.path().join("hsm.pub");
    fs::write(&public, key.public().spki_pem()).unwrap();
    let run = |arguments: &[&str]| {
        let mut ran = command(arguments);
        ran.arg("--config").arg(&settings).envs([token.env()]).output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();

    let checked = run(&["config", "check"]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let shown = run(&["keys", "show", "--key-version", "hsm-1", "--form", "bare"]);
    assert_eq!(text(&shown.stdout).trim(), key.public().spki_base64(), "{}", text(&shown.stderr));
    let pair =
        run(&["keys", "check", "--key-version", "hsm-1", "--public", public.to_str().unwrap()]);
    assert!(text(&pair.stdout).contains("the two keys belong together"), "{}", text(&pair.stderr));
    // the active one, which is another
    let no_pair = run(&["keys", "check", "--public", public.to_str().unwrap()]);
    assert_eq!(no_pair.status.code(), Some(1), "{}", text(&no_pair.stderr));

    fs::write(token.pin_file(), "0000\n").unwrap();
    let checked = run(&["config", "check"]);
    assert_eq!(checked.status.code(), Some(2));
    assert!(text(&checked.stderr).contains("pkcs11.pin_file"), "{}", text(&checked.stderr));
}

/// The rest of a test, in a process of its own: `SOFTHSM2_CONF` is read once in a process, by the module.
fn in_its_own_process(rest: &str) {
    let Some(token) = softhsm::or_skip() else { return };
    let key = PrivateKey::generate(2048).unwrap();
    token.import("wallet-1", "a1", &pem(&key));
    let rest = format!("{}::{rest}", module_path!().split_once("::").unwrap().1);
    let ran = Command::new(env::current_exe().unwrap())
        .args([&rest, "--exact", "--ignored", "--nocapture"])
        .envs([token.env()])
        .env("APC_PIN_FILE", token.pin_file())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let failed = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}{failed}");
}

fn opened() -> TokenKey {
    opened_by("wallet-1")
}

fn opened_by(label: &str) -> TokenKey {
    let location = Location {
        module: softhsm::module().unwrap().to_owned(),
        token_label: "wallet token".to_owned(),
        key: KeyName::Label(label.to_owned()),
        pin: AuthPin::from(PIN),
        sessions: 2,
    };
    TokenKey::open(location).expect("a key in the token of the outer test")
}

fn this_module() -> Pkcs11 {
    let module = Pkcs11::new(PathBuf::from(softhsm::module().unwrap())).unwrap();
    // it is initialised already, by the key
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).ok();
    module
}

#[test]
fn a_token_that_lost_every_session_is_opened_again() {
    in_its_own_process("rest_of_lost_sessions");
}

#[test]
#[ignore = "the inner half of another test"]
fn rest_of_lost_sessions() {
    if env::var_os("APC_PIN_FILE").is_none() {
        return;
    }
    let key = opened();
    let first = key.sign(b"message").unwrap();
    assert!(key.public().verify(b"message", &first));
    // as after a restart of the token: no session, no login, no initialised library
    this_module().finalize().unwrap();
    assert_eq!(key.sign(b"message").unwrap(), first);

    // the login alone is gone
    let module = this_module();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    module.open_ro_session(slot).unwrap().logout().unwrap();
    assert_eq!(key.sign(b"message").unwrap(), first);
    assert!(!format!("{key:?}").contains(PIN));
}

#[test]
fn a_pin_that_was_refused_once_is_not_tried_again() {
    in_its_own_process("rest_of_refused_pin");
}

#[test]
#[ignore = "the inner half of another test"]
fn rest_of_refused_pin() {
    if env::var_os("APC_PIN_FILE").is_none() {
        return;
    }
    let key = opened();
    let module = this_module();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let change = |from: &str, to: &str| {
        let session = module.open_rw_session(slot).unwrap();
        session.login(UserType::User, Some(&AuthPin::from(from))).ok();
        session.set_pin(&AuthPin::from(from), &AuthPin::from(to)).unwrap();
        session.logout().unwrap();
    };
    change(PIN, "99887766");
    assert_eq!(key.sign(b"message"), Err(SignError::PinRefused));
    // right again, but nobody tries
    change("99887766", PIN);
    assert_eq!(key.sign(b"message"), Err(SignError::PinRefused));
    // a reload does
    assert!(opened().sign(b"message").is_ok());
}

#[test]
fn another_key_under_the_same_name_signs_nothing() {
    in_its_own_process("rest_of_another_key");
}

#[test]
#[ignore = "the inner half of another test"]
fn rest_of_another_key() {
    if env::var_os("APC_PIN_FILE").is_none() {
        return;
    }
    let key = opened();
    let module = this_module();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::from(PIN))).ok();
    let label = || Attribute::Label(b"wallet-1".to_vec());
    for object in session.find_objects(&[label()]).unwrap() {
        session.destroy_object(object).unwrap();
    }
    let public = [
        label(),
        Attribute::Token(true),
        Attribute::ModulusBits(2048.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ];
    let private = [label(), Attribute::Token(true), Attribute::Sign(true)];
    session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
    drop(session);
    for _ in 0..2 {
        assert_eq!(key.sign(b"message"), Err(SignError::AnotherKey));
    }
    assert!(opened().sign(b"message").is_ok(), "who opens it now has the new one");
}

#[test]
fn a_key_that_may_not_hash_signs_what_we_hashed() {
    in_its_own_process("rest_of_no_hashing");
}

#[test]
#[ignore = "the inner half of another test"]
fn rest_of_no_hashing() {
    if env::var_os("APC_PIN_FILE").is_none() {
        return;
    }
    let module = this_module();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
    let label = || Attribute::Label(b"raw".to_vec());
    let public = [
        label(),
        Attribute::Token(true),
        Attribute::ModulusBits(2048.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ];
    let private = [
        label(),
        Attribute::Token(true),
        Attribute::Sign(true),
        Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS]),
    ];
    let (_, made) =
        session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
    let hashing = session.sign(&Mechanism::Sha256RsaPkcs, made, b"message");
    assert!(hashing.is_err(), "the token would hash");
    let key = opened_by("raw");
    assert!(key.public().verify(b"message", &key.sign(b"message").unwrap()));
}
