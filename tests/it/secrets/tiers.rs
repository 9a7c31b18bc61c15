//! The same secrets through two tiers, a bridge and its core, both of which tell a collector.

use super::{ACQUIRER, PSP, mark::Traces, operator, over_grpc, over_json};
use crate::harness::{
    collector::Collector,
    eventually,
    grpc::Grpc,
    pair::{self, Authority, bridge_settings, core_settings},
    service::{Options, Role, Service, Store, admin},
    unique,
    vectors::pem,
};

#[test]
fn no_secret_of_a_bridge_or_its_core_is_ever_written_anywhere() {
    let mut traces = Traces::default();
    let (of_core, of_bridge) = (Collector::start(), Collector::start());
    let authority = Authority::shared();
    let folder = || tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
    let (headers, sent) = operator::exporter_headers(&mut traces);
    let options = |role, collector: &Collector, mut set: Vec<String>| {
        set.push("telemetry.log_level=trace".to_owned());
        set.push(format!("telemetry.otlp_endpoint={}", collector.url()));
        let env = vec![("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), headers.clone())];
        Options { role, store: Store::Embedded, set, env, ..Options::default() }
    };
    let dir = folder();
    authority.write(dir.path(), "core", &pair::CORE);
    let set = [core_settings(dir.path(), "core"), pair::callers()].concat();
    let mut core = Service::start_in(dir, options(Role::Core, &of_core, set));
    let dir = folder();
    authority.write(dir.path(), "bridge", &[pair::BRIDGE]);
    let cores = format!("https://{}", core.ports().grpc);
    let set = bridge_settings(dir.path(), "bridge", &cores);
    let mut bridge = Service::start_in(dir, options(Role::Bridge, &of_bridge, set));
    eventually("the bridge reaches its core", || {
        (admin(bridge.ports().admin, "/readyz").status == 200).then_some(())
    });
    for (service, name) in [(&core, "core.key"), (&bridge, "bridge.key")] {
        let key = std::fs::read_to_string(service.dir().join(name)).expect("a key");
        traces.private_key(name, &key);
    }
    traces.private_key("the identity's key", pem("test_mpp", "pkcs8_pem"));

    let (json, grpc) = (bridge.json(), Grpc::by_tls(core.ports().grpc));
    over_json(&mut traces, &json, &grpc);
    over_grpc(&mut traces, &grpc);
    operator::headers_over_json(&mut traces, &json);
    operator::headers_over_grpc(&mut traces, &grpc);
    let witness = unique("witness");
    traces.json("witness", json.cancel_payment(PSP, ACQUIRER, &witness).expect("SUCCESS"));
    let given = [&operator::GIVEN[..], &["core.key", "bridge.key"]].concat();
    traces.service("core ", &core, &given, true);
    drop(grpc);
    assert!(core.terminate().success());
    let token = traces.token();
    let lost = json.cancel_token(PSP, ACQUIRER, &token);
    traces.json("no core", lost.expect("UNKNOWN_EXCEPTION"));
    traces.service("bridge ", &bridge, &given, true);
    assert!(bridge.terminate().success());
    for (name, service, collector) in [("core ", &core, &of_core), ("bridge ", &bridge, &of_bridge)]
    {
        traces.service(name, service, &given, false);
        traces.collector(name, collector);
        operator::assert_proved(collector, &sent);
        traces.assert_sees(&witness, &[&format!("{name}spans")]);
    }
    let places = ["core state.db-wal", "core stderr.log", "core exported lines"];
    traces.assert_sees(&witness, &places);
    // a bridge's lines name no payment
    traces.assert_sees("a core is lost", &["bridge stderr.log", "bridge exported lines"]);
    traces.assert_sees("alipayplus_cancel_in_flight", &["core /metrics", "bridge /metrics"]);
    traces.assert_clean();
}
