//! What an operator sees: messages, precedence, origins, the printed settings, the example.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use proptest::prelude::*;

use super::{read::Setting, *};
use crate::domain::{policy::AcquirerCheck, window::CancelWindow};

const EXAMPLE: &str = include_str!("../../alipayplus-cancel.example.toml");

const LEAST: &str = r#"
tokens.hash_key_files = ["h"]
[[identity.keys]]
version = "1"
file = "k"
"#;

const CLIENT: &str = r#"
[[clients]]
id = "C"
psp_ids = ["*"]
[[clients.keys]]
version = "1"
public_key_file = "p"
"#;

fn load(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let flags: Vec<_> = flags.iter().map(own).collect();
    Settings::load_text(
        Role::All,
        Some((Path::new("x.toml"), text)),
        None,
        env.iter().map(own),
        &flags,
    )
}

fn with(more: &str) -> Loaded {
    load(&format!("{LEAST}{more}"), &[], &[]).unwrap_or_else(|error| panic!("{error}"))
}

/// The message about settings of which these lines are wrong; they start on line 6.
fn wrong(more: &str) -> String {
    load(&format!("{LEAST}{more}"), &[], &[]).expect_err(more).to_string()
}

fn wrong_env(name: &str, value: &str) -> String {
    load(LEAST, &[(name, value)], &[]).expect_err(name).to_string()
}

#[test]
fn two_settings_are_enough_and_the_rest_has_defaults() {
    let Settings {
        grpc, bridge, admin, store, clients, policy, limits, telemetry, shutdown, ..
    } = with("").settings;
    assert_eq!(grpc.listen, "127.0.0.1:50051".parse().unwrap());
    assert!(grpc.tls.is_none() && grpc.reflection);
    assert_eq!(bridge.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(bridge.path_prefixes, [PathPrefix::parse("/aps/api").unwrap()]);
    assert!(bridge.tls.is_none() && !bridge.http2 && bridge.core == Core::InProcess);
    assert_eq!(admin.listen, "127.0.0.1:9090".parse().unwrap());
    let path = "/var/lib/alipayplus-cancel/state.db".into();
    assert_eq!(store.url, StoreUrl::Sqlite { path });
    assert_eq!(store.partitions, Partitions::DEFAULT);
    assert!(clients.is_empty());
    assert_eq!(policy, Policy::default());
    assert_eq!(
        limits,
        Limits {
            max_in_flight: 4096,
            max_in_flight_per_source: 3584,
            max_in_flight_per_client: 3072,
            unproven_per_source: UnprovenRate {
                per_second: NonZeroU32::new(1000).unwrap(),
                burst: NonZeroU32::new(10_000).unwrap(),
            },
            trusted_proxies: 0,
            replicas: NonZeroU32::MIN,
            body_bytes: 524_288,
            body_bytes_in_flight: 67_108_864,
            body_bytes_in_flight_per_source: 16_777_216,
            connections: 10_000,
            connections_per_source: 1024,
            cancel_payment_deadline: Duration::from_millis(6500),
            cancel_token_deadline: Duration::from_millis(3500),
            default_deadline: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            head_bytes: 65_536,
            queue: 8192,
            queue_wait: Duration::from_secs(3),
            batch: 512,
            request_time_skew: None,
        }
    );
    assert_eq!(telemetry.log_format, LogFormat::Json);
    assert_eq!(telemetry.log_level, "info");
    assert_eq!(shutdown.drain_delay, Duration::ZERO);
    assert_eq!(shutdown.grace, Duration::from_secs(25));
}

#[test]
fn a_client_may_act_for_any_acquirer_at_500_a_second_unless_told_otherwise() {
    let client = with(CLIENT).settings.clients.remove(0);
    assert_eq!(client.acquirer_ids, Allowed::Any);
    assert_eq!((client.rate.per_second.get(), client.rate.burst.get()), (500, 1000));
    assert_eq!(client.keys[0].not_after, None);

    let psp = |id| PspId::parse(id).unwrap();
    let text = CLIENT.replace("\"*\"", "\"a\", \"b\"");
    let client = with(&text).settings.clients.remove(0);
    assert!(client.psp_ids.contains(&psp("a")) && !client.psp_ids.contains(&psp("c")));
}

#[test]
fn an_unknown_key_names_its_line_and_what_was_probably_meant() {
    for (more, message) in [
        (
            "[grpc]\nlistn = \"127.0.0.1:1\"",
            "x.toml:7: grpc.listn: no such setting; did you mean `grpc.listen`?",
        ),
        ("[brigde]\n", "x.toml:6: brigde: no such setting; did you mean `bridge`?"),
        (
            "[grpc]\nhead_bytes = 1",
            "x.toml:7: grpc.head_bytes: no such setting; did you mean `limits.head_bytes`?",
        ),
        (
            "[feed]\nzzz = 1",
            "x.toml:7: feed.zzz: no such setting; known here: `required_consumers`, `retention`, `purge_interval`, `keep_alive`",
        ),
        (
            "[policy.cancel_windows.a]\ngrase = \"1s\"",
            "x.toml:7: policy.cancel_windows.a.grase: no such setting; did you mean `policy.cancel_windows.a.grace`?",
        ),
        (
            "[policy.cancel_window]\nduratoin = \"1s\"",
            "x.toml:7: policy.cancel_window.duratoin: no such setting; did you mean `policy.cancel_window.duration`?",
        ),
        (
            "\"a\\nb\" = 1\n[grpc]",
            "x.toml:6: identity.keys.0.\"a\\u000Ab\": no such setting; known here: `version`, `file`, `pkcs11`, `state`",
        ),
    ] {
        assert_eq!(wrong(more), message);
    }
    let client = format!("{CLIENT}pubic_key_file = \"x\"");
    assert_eq!(
        wrong(&client),
        "x.toml:13: clients.0.keys.0.pubic_key_file: no such setting; \
         did you mean `clients.0.keys.0.public_key_file`?"
    );
}

#[test]
fn a_wrong_value_names_setting_and_line_and_says_what_is_expected() {
    for (more, message) in [
        (
            "[grpc]\nlisten = 8080",
            "x.toml:7: grpc.listen: expected an address and a port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found the number 8080",
        ),
        (
            "[grpc]\nreflection = \"yes\"",
            "x.toml:7: grpc.reflection: expected true or false, without quotes, found the text \"yes\"",
        ),
        (
            "[limits]\nbatch = \"5\"",
            "x.toml:7: limits.batch: expected a whole number from 1 to 65536, found the text \"5\"",
        ),
        (
            "[limits]\nidle_timeout = 75",
            "x.toml:7: limits.idle_timeout: expected a duration from \"1ms\" to \"1h\", found the number 75",
        ),
        (
            "[bridge]\npath_prefixes = [\n\"/ok\",\n\"/no/\"]",
            "x.toml:9: bridge.path_prefixes.1: expected \"\", or a path that starts with \"/\", does not end with \"/\" and has neither empty segments nor `?`, `#`, `%` or white space, such as \"/aps/api\", found the text \"/no/\"",
        ),
        (
            "[bridge]\npath_prefixes = []",
            "x.toml:7: bridge.path_prefixes: expected at least one; `[\"\"]` serves the bare tails",
        ),
        (
            "[bridge]\npath_prefixes = [\"\", \"\"]",
            "x.toml:7: bridge.path_prefixes: `` stands there twice; take one out",
        ),
        (
            "[bridge]\ncore = \"https://core:50051\"",
            "x.toml:7: bridge.core: role `all` has its core in the process: use \"in-process\", or start with `--role bridge`",
        ),
        (
            "[bridge]\ncore = \"elsewhere\"",
            "x.toml:7: bridge.core: expected \"in-process\", or the cores' addresses with commas between them, as \"https://core-0:50051,https://core-1:50051\"",
        ),
        (
            "[bridge]\ncore = \"http://core:50051\"",
            "x.toml:7: bridge.core: plain http is for a core on this machine alone, because whoever listens on the way reads tokens and may answer in the core's place: use https",
        ),
        (
            "[bridge]\ncore = \"https://core:50051, http://[::1]:1\"",
            "x.toml:7: bridge.core: some are https and some are http: use one for all",
        ),
        (
            "[grpc]\ntls = true",
            "x.toml:7: grpc.tls: expected a table `grpc.tls = { … }`, found true or false",
        ),
        (
            "[policy]\nacquirer_check = \"enforced\"",
            "x.toml:7: policy.acquirer_check: expected \"enforce\" or \"observe\", found the text \"enforced\"; did you mean `enforce`?",
        ),
        (
            "[telemetry]\nlog_level = \" U;🕴ꮏ=ⶹE.>%🠃<\"",
            "x.toml:7: telemetry.log_level: expected a level or directives, as \"info\" or \"info,alipayplus_cancel=debug\"",
        ),
        (
            "[telemetry]\nlog_level = \"inof\"",
            "x.toml:7: telemetry.log_level: expected a level or directives, as \"info\" or \"info,alipayplus_cancel=debug\", found `inof`, which is no level; did you mean `info`?",
        ),
        (
            "[telemetry]\notlp_endpoint = \"http://u:p@c:4317\"",
            "x.toml:7: telemetry.otlp_endpoint: expected \"http://host:4317\" or \"https://host:4317\", without a path or a password",
        ),
        (
            "[telemetry]\notlp_endpoint = \"c:4317/v1/traces\"",
            "x.toml:7: telemetry.otlp_endpoint: expected \"http://host:4317\" or \"https://host:4317\", without a path or a password",
        ),
        (
            "[limits]\nbody_bytes_in_flight = 2000",
            "x.toml:7: limits.body_bytes_in_flight: a body may have 524288 bytes (`limits.body_bytes`), but `limits.body_bytes_in_flight` is 2000, so it would always be turned away: make the one at most the other",
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:8080\"",
            "x.toml:7: admin.listen: `bridge.listen` (127.0.0.1:8080) and `admin.listen` (0.0.0.0:8080) cannot both be had: give one another port",
        ),
        (
            "[clients]\nid = 1",
            "x.toml:6: clients: expected a list of tables `[[…]]`, found a table",
        ),
    ] {
        assert_eq!(wrong(more), message);
    }
}

#[test]
fn a_wrong_window_says_which_of_its_settings_is_wrong() {
    for (more, message) in [
        (
            "cancel_window = { time = \"24:00:00\" }",
            "x.toml:7: policy.cancel_window.time: expected a time of day, as \"00:30:00\", found the text \"24:00:00\"",
        ),
        (
            "cancel_window = { duration = \"1h\", day_offset = 1 }",
            "x.toml:7: policy.cancel_window.day_offset: stands beside `duration`, which was set by x.toml:7: a window has either a `duration` or `day_offset`, `time` and `utc_offset`; take one out",
        ),
        (
            "cancel_windows = { \" a\" = { duration = \"1h\" } }",
            "x.toml:7: policy.cancel_windows.\" a\": expected an acquirer's id: starts or ends with white space",
        ),
        (
            "cancel_window = { grace = \"25h\" }",
            "x.toml:7: policy.cancel_window.grace: expected a duration from \"0s\" to \"24h\", found the text \"25h\"",
        ),
    ] {
        assert_eq!(wrong(&format!("[policy]\n{more}")), message);
    }
}

#[test]
fn what_must_be_set_is_asked_for_where_it_belongs() {
    assert_eq!(
        load("", &[], &[]).unwrap_err().to_string(),
        "the settings have 2 problems:\
         \n  x.toml: identity.keys: expected at least one `[[identity.keys]]`: without it no answer can be signed; \
         `alipayplus-cancel keys generate` makes one\
         \n  tokens.hash_key_files: expected at least one: tokens are only stored as hashes under such a key; \
         `openssl rand -hex 32` makes one"
    );
    assert_eq!(
        wrong("[[clients]]\nid = \"C\""),
        "the settings have 2 problems:\
         \n  x.toml:6: clients.0.psp_ids: must be set: expected a list `[…]`\
         \n  x.toml:6: clients.0.keys: expected at least one `[[clients.keys]]`: without it no request can be verified"
    );
    assert_eq!(
        wrong("[grpc.tls]\ncert_file = \"c\"\nkey_file = \"k\""),
        "x.toml:6: grpc.tls.client_ca_file: must be set: expected the name of a file, in quotes"
    );
    let none = load("tokens.hash_key_files = []", &[], &[]).unwrap_err().to_string();
    assert!(none.contains("x.toml:1: tokens.hash_key_files: expected at least one"), "{none}");
}

#[test]
fn a_signing_key_is_in_a_file_or_in_a_token_and_has_one_name_there() {
    let key =
        |place: &str| format!("[[identity.keys]]\nversion = \"2\"\nstate = \"staged\"\n{place}\n");
    let token = |name: &str| {
        let rest = "module = \"m.so\", token_label = \"t\", pin_file = \"p\"";
        key(&format!("pkcs11 = {{ {rest}, {name} }}"))
    };
    for name in ["key_label = \"k\"", "key_id = \"0aFF\""] {
        let loaded = with(&token(name));
        let names: Vec<_> = loaded.files().map(|(setting, _)| setting).collect();
        assert!(names.contains(&"identity.keys.1.pkcs11.pin_file".to_owned()), "{names:?}");
    }
    for (more, part) in [
        (key(""), "key `2` is nowhere: set `file`, or `pkcs11`"),
        (token("key_label = \"k\"") + "file = \"f\"", "key `2` has both `file` and `pkcs11`"),
        (token("sessions = 2"), "set `pkcs11.key_label` or `pkcs11.key_id`"),
        (
            token("key_label = \"k\", key_id = \"01\""),
            "both `pkcs11.key_label` and `pkcs11.key_id`",
        ),
        (token("key_id = \"1\""), "identity.keys.1.pkcs11.key_id: expected bytes in hex"),
        (token("key_label = \"\""), "identity.keys.1.pkcs11.key_label: expected a text"),
        (token("key_label = \"k\", pin = \"1\""), "identity.keys.1.pkcs11.pin: no such setting"),
    ] {
        let wrong = wrong(&more);
        assert!(wrong.contains(part), "{part}: {wrong}");
    }
}

#[test]
fn exactly_one_key_signs_and_versions_are_unique() {
    let key = |version: &str, state: &str| {
        format!("[[identity.keys]]\nversion = \"{version}\"\nfile = \"f\"\nstate = \"{state}\"\n")
    };
    let _three = with(&[key("2", "staged"), key("3", "retired")].concat());
    for (more, message) in [
        (
            key("2", "active"),
            "x.toml:3: identity.keys: `1`, `2` are active, but only one signs: set `state` of the others to \"staged\" or \"retired\"",
        ),
        (
            key("1", "staged"),
            "x.toml:3: identity.keys: version `1` stands there twice; each key needs its own",
        ),
        (
            key("2", "stage"),
            "x.toml:9: identity.keys.1.state: expected \"active\" or \"staged\" or \"retired\", found the text \"stage\"; did you mean `staged`?",
        ),
        (
            key("2,signature=x", "staged"),
            "x.toml:7: identity.keys.1.version: expected 1 to 64 letters, digits, `_`, `.` or `-`, in quotes, found the text \"2,signature=x\"",
        ),
    ] {
        assert_eq!(wrong(&more), message);
    }
    let none = LEAST.to_owned() + "state = \"staged\"";
    assert_eq!(
        load(&none, &[], &[]).unwrap_err().to_string(),
        "x.toml:3: identity.keys: none is active: set `state = \"active\"` for the one that signs"
    );
}

#[test]
fn clients_have_ids_and_keys_of_their_own_and_at_most_three_that_have_not_ended() {
    assert_eq!(
        wrong(&[CLIENT, &CLIENT.replace("\"p\"", "\"q\"")].concat()),
        "x.toml:7: clients: client `C` stands there twice; take one out"
    );
    let same_key = wrong(&[CLIENT, &CLIENT.replace("\"C\"", "\"D\"")].concat());
    assert!(same_key.contains("two clients have the key p: either could"), "{same_key}");

    let key = |version: usize, not_after: &str| {
        format!("[[clients.keys]]\nversion = \"{version}\"\npublic_key_file = \"p\"\n{not_after}\n")
    };
    let past = "not_after = \"1999-01-01T00:00:00Z\"";
    let future = "not_after = 9999-01-01T00:00:00+08:00";
    let _three =
        with(&[CLIENT, &key(2, past), &key(3, past), &key(4, ""), &key(5, future)].concat());
    let four = wrong(&[CLIENT, &key(2, past), &key(3, ""), &key(4, ""), &key(5, future)].concat());
    assert!(four.contains("clients.0.keys: 4 keys have not ended, but at most 3 may"), "{four}");
    let twice = wrong(&[CLIENT, &key(1, "")].concat());
    assert!(twice.contains("clients.0.keys: version `1` stands there twice"), "{twice}");
    let local = wrong(&[CLIENT, &key(2, "not_after = 2027-01-01T00:00:00")].concat());
    assert!(local.contains("expected a moment with its offset"), "{local}");

    for (psp_ids, message) in [
        ("[]", "expected at least one id; `[\"*\"]` allows any"),
        ("[\"a\", \"*\"]", "`\"*\"` allows any id: let it stand alone, or take it out"),
        (
            "[\"\"]",
            "clients.0.psp_ids.0: expected an id of 1 to 64 characters, or \"*\": it must not be empty",
        ),
        ("\"*\"", "clients.0.psp_ids: expected a list `[…]`, found a text"),
    ] {
        let text = wrong(&CLIENT.replace("[\"*\"]", psp_ids));
        assert!(text.starts_with("x.toml:9: ") && text.contains(message), "{text}");
    }
    let id = wrong(&CLIENT.replace("\"C\"", "\"a b\""));
    assert_eq!(
        id,
        "x.toml:8: clients.0.id: expected 1 to 64 letters, digits, `_` or `-`, in quotes, found the text \"a b\""
    );
}

#[test]
fn a_store_url_that_cannot_be_used_says_why_and_never_shows_a_password() {
    for (url, message) in [
        ("mysql://u:secret@h/d", "expected \"sqlite:///\" and an absolute file name"),
        ("sqlite://state.db", "expected \"sqlite:///\" and an absolute file name"),
        ("sqlite:///var/", "expected \"sqlite:///\" and an absolute file name"),
        ("sqlite:///a?mode=memory", "expected \"sqlite:///\" and an absolute file name"),
        ("sqlite::memory:", "expected \"sqlite:///\" and an absolute file name"),
    ] {
        let in_file = wrong(&format!("[store]\nurl = \"{url}\""));
        assert!(in_file.starts_with(&format!("x.toml:7: store.url: {message}")), "{in_file}");
        let in_env = wrong_env("ALIPAYPLUS_CANCEL__STORE__URL", url);
        assert!(
            in_env.starts_with(&format!("ALIPAYPLUS_CANCEL__STORE__URL: store.url: {message}")),
            "{in_env}"
        );
        let instead = load(&format!("store = {url:?}\n{LEAST}"), &[], &[]).unwrap_err().to_string();
        assert_eq!(instead, "x.toml:1: store: expected a table `store = { … }`, found a text");
        let in_its_env = wrong_env("ALIPAYPLUS_CANCEL__STORE", url);
        assert!(!(in_file + &in_env + &in_its_env).contains("secret"));
    }
}

#[test]
fn a_database_url_is_taken_and_never_shown_with_its_password() {
    for url in [
        "postgres://u:secret@h/d",
        "postgresql://u:secret@h:1,i:2/d?sslmode=disable",
        // names that nobody escaped
        "postgres://CORP/u:secret@h/d",
        "postgres://u?v:secret@h/d",
        "postgres://u#v:secret@h/d?sslmode=disable",
        "postgres://h/d?password=secret:secret@i",
    ] {
        let loaded = load(&format!("{LEAST}[store]\nurl = \"{url}\""), &[], &[]).unwrap();
        let shown = loaded.print() + &format!("{:?}", loaded.settings);
        assert!(!shown.contains("secret"), "{shown}");
        let StoreUrl::Postgres(taken) = loaded.settings.store.url else { panic!("{shown}") };
        assert_eq!(taken.expose(), url);
    }
}

#[test]
fn what_is_not_toml_is_told_by_line_without_showing_it() {
    let text = wrong("[store]\nurl = \"postgres://u:secret@h/d");
    assert!(text.starts_with("x.toml:7: this is not TOML: "), "{text}");
    assert!(!text.contains("secret"), "{text}");
    let twice = wrong("[grpc]\nlisten = \"a\"\nlisten = \"b\"");
    assert!(twice.starts_with("x.toml:8: this is not TOML: duplicate key"), "{twice}");
}

#[test]
fn all_problems_are_told_at_once() {
    let error = load(
        &format!("{LEAST}[grpc]\nlistn = 1\n[limits]\nqueue = 0\nbatch = 0\n"),
        &[("ALIPAYPLUS_CANCEL__ADMIN__LISTEN", "here")],
        &[("store.partitions", "0")],
    )
    .unwrap_err();
    let lines: Vec<_> =
        error.problems().iter().map(|p| (p.origin().to_string(), p.setting())).collect();
    let expected = [
        ("x.toml:7", "grpc.listn"),
        ("ALIPAYPLUS_CANCEL__ADMIN__LISTEN", "admin.listen"),
        ("flag", "store.partitions"),
        ("x.toml:9", "limits.queue"),
        ("x.toml:10", "limits.batch"),
    ];
    assert_eq!(lines, expected.map(|(origin, setting)| (origin.to_owned(), setting)));
    assert_eq!(error.to_string().lines().count(), 6);
}

#[test]
fn hostile_values_are_refused() {
    let huge = "9".repeat(400);
    for value in [
        "0",
        "-1",
        "65537",
        "nan",
        "inf",
        "-inf",
        "1e3",
        "1.0",
        "true",
        "[]",
        "{}",
        "\"\"",
        &huge,
        "18446744073709551616",
        "-170141183460469231731687303715884105729",
        "0x1_0001",
        "1979-05-27",
    ] {
        let text = wrong(&format!("[limits]\nbatch = {value}"));
        assert!(
            text.starts_with(
                "x.toml:7: limits.batch: expected a whole number from 1 to 65536, found "
            ),
            "{text}"
        );
        assert!(text.len() < 200, "{text}");
    }
    for value in ["nan", "-nan", "inf", "-0.1", "1.1", "2", "1e400", "9223372036854775807"] {
        let text = wrong(&format!("[telemetry]\nsample_ratio = {value}"));
        assert!(text.starts_with("x.toml:7: telemetry.sample_ratio: expected a number"), "{text}");
    }
    for value in ["0s", "-1s", "2h", "99999999999999999999h", "18446744073709551615h", "1e3s", "١s"]
    {
        let text = wrong(&format!("[limits]\nhead_timeout = \"{value}\""));
        assert!(
            text.contains("expected a duration from \"1ms\" to \"1h\", found the text"),
            "{text}"
        );
    }
    for value in ["0", "-1", "4294967296"] {
        let text = wrong(&format!("{CLIENT}[clients.rate]\nburst = {value}"));
        assert!(text.contains("clients.0.rate.burst: expected a whole number from 1 to"), "{text}");
    }
    let far = wrong_env("ALIPAYPLUS_CANCEL__CLIENTS__18446744073709551615__ID", "x");
    assert!(far.contains("there are 0 of them, so the next index is 0"), "{far}");
    let file =
        wrong("[grpc.tls]\ncert_file = \"\\u0000\"\nkey_file = \"\"\nclient_ca_file = \"x\"");
    assert!(file.contains("2 problems"), "{file}");
    let lines = wrong("[telemetry]\nlog_format = \"a\\nb\"");
    assert_eq!(lines.lines().count(), 1, "{lines}");
}

#[test]
fn the_environment_outranks_the_file_and_a_flag_outranks_both() {
    let file = format!("{LEAST}[limits]\nmax_in_flight = 1\nqueue = 1\nbatch = 1\n");
    let env = [
        ("ALIPAYPLUS_CANCEL__LIMITS__QUEUE", "2"),
        ("ALIPAYPLUS_CANCEL__LIMITS__BATCH", "2"),
        ("HOME", "/root"),
        ("ALIPAYPLUS_CANCEL_PORT", "tcp://10.0.0.1:8080"), // Kubernetes, for a Service of our name
    ];
    let loaded = load(&file, &env, &[("limits.batch", "9"), ("limits.batch", "3")]).unwrap();
    let Limits { max_in_flight, queue, batch, connections, .. } = loaded.settings.limits;
    assert_eq!((max_in_flight, queue, batch, connections), (1, 2, 3, 10_000));
    let origin = |name: &str| loaded.origin(name).expect(name).to_string();
    assert_eq!(origin("limits.max_in_flight"), "x.toml:7");
    assert_eq!(origin("limits.queue"), "ALIPAYPLUS_CANCEL__LIMITS__QUEUE");
    assert_eq!(origin("limits.batch"), "flag");
    assert_eq!(origin("limits.connections"), "default");
    assert_eq!(loaded.origin("grpc.tls.cert_file"), None);
    assert_eq!(loaded.origin("limits.request_time_skew"), None);
}

#[test]
fn the_environment_reaches_every_kind_of_setting() {
    let name = |rest: &str| format!("{ENVIRONMENT_PREFIX}{rest}");
    let env = [
        ("CLIENTS__0__RATE__PER_SECOND", "7"),
        ("CLIENTS__1__ID", "D"),
        ("CLIENTS__1__PSP_IDS", "a, b"),
        ("CLIENTS__1__KEYS__0__VERSION", "1"),
        ("CLIENTS__1__KEYS__0__PUBLIC_KEY_FILE", "q"),
        ("CLIENTS__1__KEYS__1__VERSION", "2"),
        ("CLIENTS__1__KEYS__1__PUBLIC_KEY_FILE", "r"),
        ("CLIENTS__1__KEYS__1__NOT_AFTER", "2027-01-31T00:00:00+08:00"),
        ("GRPC__TLS", "{ cert_file = \"c\", key_file = \"k\", client_ca_file = \"a\" }"),
        ("GRPC__TLS__KEY_FILE", "k2"),
        ("GRPC__TLS__ALLOWED_SANS", "[\"spiffe://x,y\"]"),
        ("GRPC__REFLECTION", "false"),
        ("BRIDGE__PATH_PREFIXES", "[\"\"]"),
        ("FEED__REQUIRED_CONSUMERS", ""),
        ("POLICY__CANCEL_WINDOW__DURATION", "24h"),
        ("POLICY__CANCEL_WINDOWS__aQ-1__GRACE", "0s"),
        ("POLICY__ACQUIRER_CHECK", "observe"),
        ("LIMITS__REQUEST_TIME_SKEW", "15m"),
        ("TELEMETRY__SAMPLE_RATIO", "0.25"),
        ("TELEMETRY__OTLP_ENDPOINT", "https://[::1]:4317/"),
    ]
    .map(|(rest, value)| (name(rest), value));
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let loaded = load(&[LEAST, CLIENT].concat(), &env, &[]).unwrap_or_else(|e| panic!("{e}"));
    let Settings { grpc, bridge, clients, policy, limits, .. } = &loaded.settings;
    assert_eq!(clients[0].rate.per_second.get(), 7);
    assert_eq!(clients[1].id.as_str(), "D");
    assert_eq!(clients[1].keys[1].not_after, Some(Timestamp { unix_ms: 1_801_324_800_000 }));
    let tls = grpc.tls.as_ref().unwrap();
    assert_eq!((tls.cert_file.to_str(), tls.key_file.to_str()), (Some("c"), Some("k2")));
    assert_eq!(tls.allowed_sans, ["spiffe://x,y"]);
    assert!(!grpc.reflection);
    assert_eq!(bridge.path_prefixes, [PathPrefix::parse("").unwrap()]);
    let duration_ms = 86_400_000;
    let acquirer = AcquirerId::parse("aQ-1").unwrap();
    assert_eq!(
        *policy,
        Policy {
            cancel_window: CancelWindow::Duration { duration_ms, grace_ms: 60_000 },
            cancel_windows: HashMap::from([(
                acquirer,
                CancelWindow::TimeOfDay {
                    day_offset: 1,
                    time_ms: 1_800_000,
                    utc_offset_ms: 28_800_000,
                    grace_ms: 0
                }
            )]),
            acquirer_check: AcquirerCheck::Observe,
        }
    );
    assert_eq!(limits.request_time_skew, Some(Duration::from_mins(15)));
}

#[test]
fn a_variable_or_a_flag_that_names_no_setting_is_an_error_with_a_suggestion() {
    for (name, meant) in [
        ("GRPC_LISTEN", "GRPC__LISTEN"),
        ("GRPC__LISTN", "GRPC__LISTEN"),
        ("grpc__listen", "GRPC__LISTEN"),
        ("CLIENTS__0__RATE__PER_SECONDS", "CLIENTS__0__RATE__PER_SECOND"),
        ("BRIDGE__PATH_PREFIXES__0", "BRIDGE__PATH_PREFIXES"),
        ("POLICY__CANCEL_WINDOW__DAYOFFSET", "POLICY__CANCEL_WINDOW__DAY_OFFSET"),
    ] {
        let name = format!("{ENVIRONMENT_PREFIX}{name}");
        assert_eq!(
            wrong_env(&name, "secret"),
            format!("{name}: no such setting; did you mean `{ENVIRONMENT_PREFIX}{meant}`?")
        );
    }
    assert_eq!(
        wrong_env("ALIPAYPLUS_CANCEL__", "x"),
        "ALIPAYPLUS_CANCEL__: no such setting; `alipayplus-cancel.example.toml` shows them all"
    );
    assert_eq!(
        load(LEAST, &[], &[("grpc.listn", "x")]).unwrap_err().to_string(),
        "command line: grpc.listn: no such setting; did you mean `grpc.listen`?"
    );
}

#[test]
fn a_wrong_value_outside_the_file_names_the_variable() {
    assert_eq!(
        wrong_env("ALIPAYPLUS_CANCEL__LIMITS__QUEUE", "many"),
        "ALIPAYPLUS_CANCEL__LIMITS__QUEUE: limits.queue: expected a whole number from 1 to 10000000, found the text \"many\""
    );
    assert_eq!(
        wrong_env("ALIPAYPLUS_CANCEL__CLIENTS__5__ID", "x"),
        "ALIPAYPLUS_CANCEL__CLIENTS__5__ID: there are 0 of them, so the next index is 0"
    );
    assert_eq!(
        wrong_env("ALIPAYPLUS_CANCEL__GRPC__TLS", "yes"),
        "ALIPAYPLUS_CANCEL__GRPC__TLS: expected a TOML value: string values must be quoted, expected literal string"
    );
}

#[test]
fn more_than_ten_clients_can_be_added_by_variables() {
    let env: Vec<_> = (0..12)
        .flat_map(|n| {
            let name = |rest: &str| format!("{ENVIRONMENT_PREFIX}CLIENTS__{n}__{rest}");
            [
                (name("ID"), format!("c{n}")),
                (name("PSP_IDS"), "*".to_owned()),
                (name("KEYS__0__VERSION"), "1".to_owned()),
                (name("KEYS__0__PUBLIC_KEY_FILE"), format!("p{n}")),
            ]
        })
        .collect();
    let env: Vec<_> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let clients = load(LEAST, &env, &[]).unwrap_or_else(|e| panic!("{e}")).settings.clients;
    assert_eq!(clients[11].id.as_str(), "c11");
}

#[test]
fn what_is_printed_reads_back_as_the_same_settings() {
    let env = [("ALIPAYPLUS_CANCEL__LIMITS__QUEUE", "77")];
    for text in [LEAST.to_owned(), EXAMPLE.to_owned(), everything()] {
        let loaded = load(&text, &env, &[("limits.batch", "3")]).unwrap_or_else(|e| panic!("{e}"));
        let printed = loaded.print();
        let again = load(&printed, &[], &[]).unwrap_or_else(|e| panic!("{e}\n{printed}"));
        assert_eq!(again.settings, loaded.settings, "{printed}");
        assert!(printed.contains("queue = 77  # ALIPAYPLUS_CANCEL__LIMITS__QUEUE\n"), "{printed}");
        assert!(printed.contains("batch = 3  # flag\n"), "{printed}");
        assert!(printed.contains("write_timeout = \"10s\"  # "), "{printed}");
        assert!(
            printed
                .lines()
                .all(|l| l.is_empty() || l.starts_with(['#', '[']) || l.contains("  # "))
        );
    }
}

/// Every setting, with another value than its default.
fn everything() -> String {
    r#"
    [grpc]
    listen = "[::1]:1"
    tls = { cert_file = "a", key_file = "b\"\\\u0007", client_ca_file = "c", allowed_sans = ["d", "é"] }
    reflection = false
    [bridge]
    listen = "10.0.0.1:0"
    path_prefixes = ["", "/a", "/b~/c"]
    tls = { cert_file = "a", key_file = "b", client_ca_file = "c" }
    http2 = true
    core = "in-process"
    core_tls = { ca_file = "a", cert_file = "b", key_file = "c", server_name = "d" }
    [admin]
    listen = "127.0.0.1:3"
    [store]
    url = "sqlite:///srv/a b.db"
    partitions = 1024
    [[identity.keys]]
    version = "1"
    file = "k"
    state = "retired"
    [[identity.keys]]
    version = "a.b-c_d"
    file = "l"
    [tokens]
    hash_key_files = ["h", "i"]
    [feed]
    required_consumers = ["refunds", "ledger"]
    [[clients]]
    id = "A"
    psp_ids = ["*"]
    acquirer_ids = ["q", "r"]
    rate = { per_second = 1, burst = 2 }
    keys = [
      { version = "1", public_key_file = "p" },
      { version = "2", public_key_file = "q", not_after = 2027-01-31 00:00:00.250+08:00 },
    ]
    [[clients]]
    id = "B"
    psp_ids = ["a b", "\"quoted\""]
    keys = [{ version = "1", public_key_file = "r" }]
    [policy]
    cancel_window = { day_offset = 0, time = 23:59:59, utc_offset = "-03:30", grace = "1ms" }
    acquirer_check = "observe"
    [policy.cancel_windows]
    "a.b c" = { duration = "90s" }
    1022 = { grace = "0s" }
    [limits]
    max_in_flight = 1
    max_in_flight_per_source = 2
    body_bytes = 1024
    body_bytes_in_flight = 0x800
    body_bytes_in_flight_per_source = 2049
    connections = 3
    connections_per_source = 4
    cancel_payment_deadline = "1ms"
    cancel_token_deadline = "1s"
    default_deadline = "1m"
    first_byte_timeout = "1h"
    head_timeout = "1500ms"
    body_timeout = "60s"
    write_timeout = "10s"
    idle_timeout = "61s"
    head_bytes = 8192
    request_time_skew = "15m"
    [telemetry]
    log_format = "text"
    log_level = "warn,alipayplus_cancel::store=debug"
    sample_ratio = 1
    [shutdown]
    drain_delay = "5s"
    grace = "0s"
    "#
    .to_owned()
}

#[test]
fn what_is_printed_shows_where_each_value_came_from() {
    let loaded =
        with("[grpc]\nreflection = false\n[policy.cancel_windows.\"a b\"]\nduration = \"1h\"\n");
    let printed = loaded.print();
    for part in [
        "\n[grpc]\nlisten = \"127.0.0.1:50051\"  # default\nreflection = false  # x.toml:7\n",
        "\n[[identity.keys]]\nversion = \"1\"  # x.toml:4\nfile = \"k\"  # x.toml:5\nstate = \"active\"  # default\n",
        "\n[tokens]\nhash_key_files = [\"h\"]  # x.toml:2\n",
        "\n[policy.cancel_windows.\"a b\"]\nduration = \"1h\"  # x.toml:9\ngrace = \"1m\"  # default\n",
        "\n[feed]\nrequired_consumers = []  # default\n",
    ] {
        assert!(printed.contains(part), "{part}\nis not in\n{printed}");
    }
}

#[test]
fn a_file_name_starts_at_the_settings_folder_or_in_a_variable_at_the_current_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, format!("{LEAST}[grpc.tls]\ncert_file = \"/abs\"\nkey_file = \"a/b\"\n"))
        .unwrap();
    let env = ("ALIPAYPLUS_CANCEL__GRPC__TLS__CLIENT_CA_FILE".to_owned(), "ca".to_owned());
    let loaded = Settings::load(Some(&path), [env].into_iter(), &[]).unwrap();
    let files: BTreeMap<_, _> = loaded.files().collect();
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        files,
        BTreeMap::from([
            ("tokens.hash_key_files.0".to_owned(), folder.path().join("h").as_path()),
            ("identity.keys.0.file".to_owned(), folder.path().join("k").as_path()),
            ("grpc.tls.cert_file".to_owned(), Path::new("/abs")),
            ("grpc.tls.key_file".to_owned(), folder.path().join("a/b").as_path()),
            ("grpc.tls.client_ca_file".to_owned(), here.join("ca").as_path()),
        ])
    );
    let printed = loaded.print();
    let moved = Settings::from_toml_str(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(moved, loaded.settings);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let error = Settings::load(Some(&missing), std::iter::empty(), &[]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot be read: ", missing.display())), "{error}");
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    let error = Settings::load(Some(&binary), std::iter::empty(), &[]).unwrap_err().to_string();
    assert!(error.contains("cannot be read: not UTF-8"), "{error}");
}

#[test]
fn no_file_is_needed_if_the_environment_has_what_must_be_set() {
    let env = [
        ("IDENTITY__KEYS__0__VERSION", "1"),
        ("IDENTITY__KEYS__0__FILE", "k"),
        ("TOKENS__HASH_KEY_FILES", "h"),
    ]
    .map(|(rest, value)| (format!("{ENVIRONMENT_PREFIX}{rest}"), value.to_owned()));
    assert!(Settings::load(None, env.into_iter(), &[]).is_ok());
    let error = Settings::load(None, std::iter::empty(), &[]).unwrap_err().to_string();
    assert!(error.contains("\n  identity.keys: expected at least one"), "{error}");
}

#[test]
fn an_open_listener_without_tls_is_warned_of() {
    let quiet = with(CLIENT);
    assert_eq!(quiet.warnings(), Vec::<String>::new());
    let open =
        "[grpc]\nlisten = \"0.0.0.0:50051\"\n[bridge]\nlisten = \"[::ffff:127.0.0.1]:8080\"\n";
    let warnings = with(&format!("{open}{CLIENT}")).warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with(
        "grpc.listen (x.toml:7): 0.0.0.0:50051 is reached from other machines WITHOUT TLS"
    ));
    let tls = "[grpc]\nlisten = \"0.0.0.0:50051\"\ntls = { cert_file = \"c\", key_file = \"k\", client_ca_file = \"a\" }\n";
    assert_eq!(with(&format!("{tls}{CLIENT}")).warnings(), Vec::<String>::new());
}

#[test]
fn values_that_lose_requests_are_warned_of() {
    let past = format!("{CLIENT}not_after = \"1999-01-01T00:00:00Z\"\n");
    for (more, part) in [
        ("", "clients (default): there is none"),
        (past.as_str(), "clients.0.id (x.toml:8): every key of `C` has ended"),
        (
            "[limits]\ncancel_payment_deadline = \"8s\"\n",
            "limits.cancel_payment_deadline (x.toml:7): Alipay+ waits 8 s",
        ),
        ("[limits]\nidle_timeout = \"30s\"\n", "limits.idle_timeout (x.toml:7): "),
        ("[limits]\nbody_bytes = 65536\n", "limits.body_bytes (x.toml:7): "),
    ] {
        let warnings = with(more).warnings();
        assert!(warnings.iter().any(|warning| warning.starts_with(part)), "{part}: {warnings:?}");
    }
}

#[test]
fn the_example_loads_and_shows_the_defaults() {
    let example = load(EXAMPLE, &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    let shown: BTreeMap<_, _> =
        example.effective.iter().map(|value| (value.way.to_string(), value)).collect();
    for value in with(CLIENT).effective.iter().filter(|value| value.origin == Origin::Default) {
        let name = value.way.to_string();
        let shown = shown.get(&name).unwrap_or_else(|| panic!("the example lacks {name}"));
        assert_eq!(shown.literal, value.literal, "{name}");
        assert_ne!(shown.origin, Origin::Default, "the example does not set {name}");
    }
}

#[test]
fn the_example_names_every_setting() {
    // the text of each section, its commented lines too
    let mut sections: BTreeMap<String, String> = BTreeMap::new();
    let mut section = String::new();
    for line in EXAMPLE.lines().map(|line| line.trim_start_matches(['#', ' '])) {
        if let Some((header, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = header.trim_start_matches('[').split('"').next().unwrap().to_owned();
        }
        sections.entry(section.clone()).or_default().extend(["\n", line]);
    }
    for steps in Settings::shape().leaves() {
        let (key, table) = steps.split_last().unwrap();
        let table: Vec<_> = table.iter().filter(|step| *step != "0").cloned().collect();
        let table = table.join(".").replace("<name>", "");
        let text = sections.get(&table).unwrap_or_else(|| panic!("no [{table}] in the example"));
        // cancel_windows has the keys of cancel_window
        let shown = text.contains(&format!("\n{key} = ")) || table == "policy.cancel_windows.";
        assert!(shown, "the example lacks {}", steps.join("."));
    }
}

proptest! {
    #[test]
    fn no_text_whatever_makes_the_reader_panic(name in "[A-Z_0-9a-z]{0,30}", value in "\\PC*", text in "\\PC*") {
        let name = format!("{ENVIRONMENT_PREFIX}{name}");
        let _settings = load(&text, &[(&name, &value)], &[(&name, &value)]);
        let _settings = load(&format!("{LEAST}[limits]\nhead_timeout = {value}"), &[], &[]);
        for setting in ["GRPC__LISTEN", "BRIDGE__PATH_PREFIXES", "TELEMETRY__LOG_LEVEL", "STORE__URL",
            "POLICY__CANCEL_WINDOW__TIME", "POLICY__CANCEL_WINDOW__UTC_OFFSET", "POLICY__CANCEL_WINDOW__DURATION",
            "TELEMETRY__SAMPLE_RATIO", "GRPC__TLS", "CLIENTS"] {
            let name = format!("{ENVIRONMENT_PREFIX}{setting}");
            let _settings = load(LEAST, &[(&name, &value)], &[]);
        }
    }

    #[test]
    fn any_file_name_prints_so_that_it_reads_back(name in "[^\0]{1,40}") {
        let env = ("ALIPAYPLUS_CANCEL__IDENTITY__KEYS__0__FILE", name.as_str());
        let loaded = load(LEAST, &[env], &[]).unwrap();
        let again = load(&loaded.print(), &[], &[]);
        prop_assert_eq!(again.unwrap().settings, loaded.settings);
    }
}
