//! The OpenAPI document: in the docs it is the one that the program makes, and it says what the endpoint enforces.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::harness::service::binary;

fn printed(arguments: &[&str]) -> String {
    let output = Command::new(binary()).arg("openapi").args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_document_in_the_docs_is_the_programs() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let kept = fs::read_to_string(file).expect("docs/openapi.json");
    let fresh = "alipayplus-cancel openapi >docs/openapi.json";
    assert_eq!(kept, printed(&[]), "docs/openapi.json is stale: {fresh}");
}

#[test]
fn it_has_both_apis_and_every_code_with_its_one_status() {
    let document: Value = serde_json::from_str(&printed(&[])).expect("JSON");
    for (path, operation, schema, own, foreign) in [
        (
            "/v1/payments/cancelPayment",
            "cancelPayment",
            "CancelPaymentResponse",
            "CANCEL_WINDOW_EXCEED",
            "INVALID_TOKEN",
        ),
        (
            "/v1/authorizations/cancelToken",
            "cancelToken",
            "CancelTokenResponse",
            "INVALID_TOKEN",
            "CANCEL_WINDOW_EXCEED",
        ),
    ] {
        assert_eq!(document["paths"][path]["post"]["operationId"], operation);
        let result = &document["components"]["schemas"][schema]["properties"]["result"];
        let branches = result["oneOf"].as_array().expect("branches");
        let code = |branch: &Value| branch["properties"]["resultCode"]["const"].clone();
        let status = |name: &str| {
            let branch = branches.iter().find(|branch| code(branch) == name).expect(name);
            branch["properties"]["resultStatus"]["const"].clone()
        };
        assert_eq!(branches.len(), 13, "as on Alipay+'s page");
        assert_eq!(
            (status("SUCCESS"), status("UNKNOWN_EXCEPTION"), status(own)),
            ("S".into(), "U".into(), "F".into())
        );
        assert!(branches.iter().all(|branch| code(branch) != foreign));
    }
}

#[test]
fn its_servers_are_the_prefixes_of_the_settings() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("settings.toml");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("alipayplus-cancel.example.toml");
    let settings = fs::read_to_string(example).expect("the example");
    let prefixes = r#"path_prefixes = ["", "/wallet"]"#;
    let changed = settings
        .lines()
        .map(|line| if line.starts_with("path_prefixes") { prefixes } else { line });
    fs::write(&file, changed.collect::<Vec<_>>().join("\n")).expect("written");
    let document = printed(&["--config", file.to_str().expect("UTF-8")]);
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!(document["servers"], serde_json::json!([{ "url": "/" }, { "url": "/wallet" }]));
}
