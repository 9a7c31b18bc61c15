//! What a panic tells. The binary has no door to one (a request that makes it panic would be a defect to mend), so this
//! test runs itself as a process of its own, with the binary's hook, its log lines and its catch of panics.

use std::{
    convert::Infallible,
    env,
    process::{Command, Output},
};

use alipayplus_cancel::{
    cli,
    layer::{Refusal, Refuse, panic::CatchPanicLayer},
    telemetry::{self, Format},
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::mark::Traces;

const SECRET: &str = "SECRETS_PANICS_SECRET";
const HOOK: &str = "SECRETS_PANICS_HOOK";

#[derive(Debug)]
struct Refused(Refusal);

impl Refuse for Refused {
    fn refuse(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

/// Not a test of its own: the process that [`run`] starts. Without a secret it does nothing.
#[test]
fn a_process_whose_requests_panic() {
    let Ok(secret) = env::var(SECRET) else { return };
    if env::var_os(HOOK).is_some() {
        telemetry::start(Format::Json, "trace");
        cli::panics_tell_no_values();
    }
    let runtime = Runtime::new().expect("a runtime");
    for how in ["sliced", "formatted", "shown", "literal"] {
        let service = CatchPanicLayer.layer(service_fn(async |request: String| {
            match how {
                // the library quotes the text
                "sliced" => drop(format!("é{request}")[1..].to_owned()),
                "formatted" => panic!("nobody knows {request}"),
                "shown" => drop(request.parse::<u8>().map_err(|_| request).expect("it is good")),
                _ => panic!("a defect"),
            }
            Ok::<Refused, Infallible>(Refused(Refusal::Busy))
        }));
        let Ok(answer) = runtime.block_on(service.oneshot(secret.clone()));
        assert_eq!(answer.0, Refusal::Panicked, "{how}");
    }
}

fn run(secret: &str, hook: bool) -> Output {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", "secrets::panics::a_process_whose_requests_panic", "--nocapture"]);
    command.env(SECRET, secret).env("RUST_BACKTRACE", "1");
    if hook {
        command.env(HOOK, "1");
    }
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
    output
}

#[test]
fn a_panic_tells_where_and_nothing_of_the_request() {
    let mut traces = Traces::default();
    let secret = traces.secret("what the request has");
    let output = run(&secret, true);
    traces.output("the process", &output);
    traces.assert_clean();
    let text = String::from_utf8(output.stderr).expect("text");
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let told: Vec<Value> = lines.filter(|line| line["message"] == "panicked").collect();
    assert_eq!(told.len(), 4, "{text}");
    for line in &told {
        assert_eq!(line["level"], "ERROR");
        assert!(line["at"].as_str().is_some_and(|at| at.contains(".rs:")), "{line}");
        assert!(line["backtrace"].as_str().is_some_and(|trace| trace.contains("panics")), "{line}");
    }
    // a text of the program's own has nothing of anybody's
    let said: Vec<&Value> = told.iter().map(|line| &line["said"]).collect();
    assert_eq!(said, [&Value::Null, &Value::Null, &Value::Null, &Value::from("a defect")]);
    assert!(!text.contains("nobody knows"), "{text}");

    // without the hook it is there, and the search finds it
    let mut traces = Traces::default();
    let secret = traces.secret("what the request has");
    traces.output("the process", &run(&secret, false));
    assert!(!traces.find(&secret).is_empty());
}
