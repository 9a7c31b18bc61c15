//! The gRPC reference: in the docs it is the one that the program makes, and the admin port shows the same.

use std::{collections::BTreeSet, fs, path::Path};

use crate::harness::service::{Service, admin, run};

fn printed() -> String {
    let output = run(&["proto"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_page_in_the_docs_is_the_programs() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/grpc.md");
    let kept = fs::read_to_string(file).expect("docs/grpc.md");
    let fresh = "alipayplus-cancel proto >docs/grpc.md";
    assert!(kept == printed(), "docs/grpc.md is stale: {fresh}");
}

/// What stands behind a word at the beginning of a line of `proto/`.
fn named(word: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/alipayplus/cancel/v1");
    let files = fs::read_dir(folder).expect("proto");
    let texts = files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text"));
    let mut names = BTreeSet::new();
    for text in texts {
        let behind = text.lines().filter_map(|line| line.trim().strip_prefix(word));
        let name = |rest: &str| rest.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
        names.extend(behind.map(name));
    }
    names
}

#[test]
fn everything_of_the_proto_is_in_it_with_its_comment() {
    let page = printed();
    for word in ["service ", "message ", "enum "] {
        for name in named(word) {
            let heading = page.lines().find(|line| line.trim_start_matches('#').trim() == name);
            assert!(heading.is_some(), "no {word}{name}");
        }
    }
    for method in named("rpc ") {
        assert!(page.contains(&format!(".{method}\n")), "no rpc {method}");
    }
    for line in [
        "| `psp_id` | `string` | 2 | The wallet (MPP), as Alipay+ names it. Must be set, 1 to 64 characters. |",
        "| `pass_through_info` | optional `string` | 4 |",
        "| `positions` | repeated [`PartitionPosition`](#partitionposition) | 2 |",
        "| `RESULT_STATUS_U` | 3 | Unknown; Alipay+ sends the same request again. |",
        "[`SubscribeRequest`](#subscriberequest) → stream of [`SubscribeResponse`](#subscriberesponse)",
    ] {
        assert!(page.contains(line), "no {line}");
    }
    assert!(!page.contains("|  |\n"), "a row without a comment: {page}");
}

#[test]
fn the_admin_port_shows_both_contracts() {
    let service = Service::shared();
    let at = service.ports().admin;
    let page = admin(at, "/reference");
    assert_eq!(page.status, 200);
    let text = String::from_utf8(page.body).expect("UTF-8");
    for name in named("rpc ").into_iter().chain(named("message ")) {
        assert!(text.contains(&name), "no {name}");
    }
    assert!(!text.contains("<script"));
    assert_eq!(admin(at, "/reference/style.css").status, 200);
    // of a pair the admin port is the core's, which has no JSON endpoint
    let openapi = admin(at, "/openapi.json");
    if openapi.status == 404 {
        assert!(crate::harness::pair::is_usual(), "a service of one process has both");
        return;
    }
    let shown: serde_json::Value = serde_json::from_slice(&openapi.body).expect("JSON");
    let printed = run(&["openapi"]);
    assert_eq!(shown, serde_json::from_slice::<serde_json::Value>(&printed.stdout).expect("JSON"));
}
