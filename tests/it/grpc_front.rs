//! The gRPC front beyond its results: errors, deadlines, health, reflection.

use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::harness::{
    grpc::{Grant, Payment, wire},
    service::{Options, Service},
};

const SERVICES: [&str; 4] = ["CancelService", "PaymentService", "TokenService", "FeedService"];

#[track_caller]
fn assert_illegal(status: &Status, field: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let details = status.get_error_details();
    let info = details.error_info().expect("ErrorInfo");
    assert_eq!((&*info.domain, &*info.reason), ("cancel.alipayplus", "PARAM_ILLEGAL"));
    let fields: Vec<&str> = details
        .bad_request()
        .expect("BadRequest")
        .field_violations
        .iter()
        .inspect(|violation| assert!(!violation.description.is_empty()))
        .map(|violation| &*violation.field)
        .collect();
    assert!(fields.contains(&field), "{field} is not among {fields:?}");
    assert!(!status.message().is_empty());
}

#[test]
fn an_illegal_parameter_is_invalid_argument_and_names_its_field_in_snake_case() {
    let grpc = Service::shared().grpc();
    let right = Payment::new().cancel();
    for wrong in ["", " ", " a", "a\n", "\u{0}", &"x".repeat(65)] {
        for (field, set) in [
            (
                "acquirer_id",
                (|request, text| request.acquirer_id = text)
                    as fn(&mut wire::CancelPaymentRequest, String),
            ),
            ("psp_id", |request, text| request.psp_id = text),
            ("payment_request_id", |request, text| request.payment_request_id = text),
        ] {
            let mut request = right.clone();
            set(&mut request, wrong.to_owned());
            assert_illegal(&grpc.cancel_payment(request).unwrap_err(), field);
        }
    }
    let grant = Grant::new();
    for wrong in [String::new(), "x".repeat(129), "a\n".to_owned()] {
        assert_illegal(&grpc.cancel_token(grant.cancel(&wrong)).unwrap_err(), "access_token");
        assert_illegal(&grpc.record_token(grant.token(&wrong)).unwrap_err(), "token");
        let introspect = grant.introspect(&wrong);
        assert_illegal(&grpc.introspect_token(introspect).unwrap_err(), "token");
    }
    for wrong in [String::new(), "x".repeat(20_001)] {
        let pass_through_info = Some(wrong.clone());
        let request = wire::CancelTokenRequest { pass_through_info, ..grant.cancel("t") };
        assert_illegal(&grpc.cancel_token(request).unwrap_err(), "pass_through_info");
    }
    let kind = wire::TokenKind::Unspecified.into();
    let request = wire::RecordTokenRequest { kind, ..grant.token("t") };
    assert_illegal(&grpc.record_token(request).unwrap_err(), "kind");
    let revoke = wire::RevokeAuthorizationRequest::default();
    assert_illegal(&grpc.revoke_authorization(revoke).unwrap_err(), "authorization_id");
}

#[test]
fn a_payments_fact_must_be_there_with_what_it_needs() {
    let grpc = Service::shared().grpc();
    let payment = Payment::new();
    let right = payment.record(payment.initiated());
    let illegal = |request: wire::RecordPaymentRequest, field: &str| {
        assert_illegal(&grpc.record_payment(request).unwrap_err(), field);
    };
    illegal(wire::RecordPaymentRequest { fact: None, ..right.clone() }, "fact");
    illegal(wire::RecordPaymentRequest { acquirer_id: None, ..right.clone() }, "acquirer_id");
    let fact = |amount, initiated_at| {
        let initiated = wire::PaymentInitiated { amount, initiated_at };
        let fact = Some(wire::record_payment_request::Fact::Initiated(initiated));
        wire::RecordPaymentRequest { fact, ..right.clone() }
    };
    let now = Some(prost_types::Timestamp::from(std::time::SystemTime::now()));
    let amount =
        |value, currency: &str| Some(wire::Amount { value, currency: currency.to_owned() });
    for request in [
        fact(None, now),
        fact(amount(0, "EUR"), now),
        fact(amount(-1, "EUR"), now),
        fact(amount(9_007_199_254_740_992, "EUR"), now),
        fact(amount(1, ""), now),
        fact(amount(1, "eur"), now),
        fact(amount(1, "EURO"), now),
        fact(amount(1, "EUR"), None),
    ] {
        let status = grpc.record_payment(request.clone()).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{request:?}");
        let violations = status.get_error_details().bad_request().unwrap().field_violations.clone();
        assert!(
            violations.iter().all(|violation| violation.field.starts_with("initiated.")),
            "{violations:?}"
        );
    }
    grpc.record_payment(fact(amount(1, "EUR"), now)).unwrap();
}

#[test]
fn another_acquirers_cancel_is_permission_denied() {
    let grpc = Service::shared().grpc();
    let payment = Payment::new();
    grpc.record(&payment, payment.initiated());
    let acquirer_id = "somebody else".to_owned();
    let status = grpc
        .cancel_payment(wire::CancelPaymentRequest { acquirer_id, ..payment.cancel() })
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let info = status.get_details_error_info().unwrap();
    assert_eq!((&*info.domain, &*info.reason), ("cancel.alipayplus", "ACCESS_DENIED"));
}

#[test]
fn a_refund_in_flight_makes_a_cancel_aborted() {
    let grpc = Service::shared().grpc();
    let payment = Payment::new();
    grpc.record(&payment, payment.succeeded());
    grpc.record(&payment, payment.refund_started("r", 1));
    let status = grpc.cancel_payment(payment.cancel()).unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "UNKNOWN_EXCEPTION");
}

/// A call written by hand, because tonic's client would end it by itself: its `grpc-status`.
fn raw_call(path: &str, message: &[u8], timeout: &str) -> Option<String> {
    let address = Service::shared().ports().grpc;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let frame = [&[0][..], &length, message].concat();
        let request = Request::post(format!("http://{address}{path}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header("grpc-timeout", timeout)
            .body(Full::new(bytes::Bytes::from(frame)))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let (parts, body) = response.into_parts();
        let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
        let status = parts.headers.get("grpc-status").or(trailers.get("grpc-status"))?;
        Some(status.to_str().unwrap().to_owned())
    })
}

#[test]
fn a_deadline_that_has_passed_is_deadline_exceeded_and_not_cancelled() {
    let payment = Payment::new();
    let cancel = payment.cancel().encode_to_vec();
    let grant = Grant::new();
    let token = grant.token("t").encode_to_vec();
    for (path, message) in [
        ("/alipayplus.cancel.v1.CancelService/CancelPayment", &cancel),
        ("/alipayplus.cancel.v1.TokenService/RecordToken", &token),
    ] {
        for timeout in ["1n", "0m", "0S"] {
            assert_eq!(raw_call(path, message, timeout).as_deref(), Some("4"), "{timeout}");
        }
        // and one that is generous, or no timeout at all, changes nothing
        for timeout in ["30S", "99999999H", "soon"] {
            assert_eq!(raw_call(path, message, timeout).as_deref(), Some("0"), "{timeout}");
        }
    }
}

#[test]
fn each_service_has_its_own_health() {
    let grpc = Service::shared().grpc();
    let check = |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(grpc.channel());
        grpc.block_on(client.check(request)).map(|answer| answer.into_inner().status())
    };
    assert_eq!(check("").unwrap(), ServingStatus::Serving);
    for name in SERVICES {
        let name = format!("alipayplus.cancel.v1.{name}");
        assert_eq!(check(&name).unwrap(), ServingStatus::Serving);
    }
    assert_eq!(check("no.such.Service").unwrap_err().code(), Code::NotFound);
}

fn reflected(service: &Service) -> Result<Vec<String>, Status> {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let grpc = service.grpc();
    grpc.block_on(async {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(grpc.channel());
        let stream = futures_util::stream::iter([request]);
        let mut answers = client.server_reflection_info(stream).await?.into_inner();
        let answer = answers.message().await?.expect("an answer").message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("a list") };
        Ok(list.service.into_iter().map(|service| service.name).collect())
    })
}

#[test]
fn reflection_lists_the_services_unless_it_is_turned_off() {
    let names = reflected(Service::shared()).unwrap();
    for service in SERVICES {
        let name = format!("alipayplus.cancel.v1.{service}");
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let quiet = Service::start(Options::set(["grpc.reflection=false"]));
    assert_eq!(reflected(&quiet).unwrap_err().code(), Code::Unimplemented);
}

#[test]
fn a_message_beyond_any_legal_one_is_refused() {
    let grpc = Service::shared().grpc();
    let pass_through_info = Some("x".repeat(1_000_000));
    let request = wire::CancelTokenRequest { pass_through_info, ..Grant::new().cancel("t") };
    let status = grpc.cancel_token(request).unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}

#[test]
fn a_longest_pass_through_info_of_wide_characters_fits_into_a_message() {
    let grpc = Service::shared().grpc();
    let pass_through_info = Some("💳".repeat(20_000));
    let request = wire::CancelTokenRequest { pass_through_info, ..Grant::new().cancel("wide") };
    assert!(grpc.cancel_token(request).unwrap().result.is_some());
}

#[test]
fn a_connection_that_never_says_it_speaks_http_2_is_closed() {
    use std::{io::Read as _, net::TcpStream, time::Duration};
    let service = Service::start(Options::set(["limits.first_byte_timeout=200ms"]));
    for said in ["", "PRI * HTTP/2.0"] {
        let mut socket = TcpStream::connect(service.ports().grpc).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        std::io::Write::write_all(&mut socket, said.as_bytes()).unwrap();
        let mut rest = Vec::new();
        // closed or reset, not silent
        assert!(
            !socket
                .read_to_end(&mut rest)
                .is_err_and(|error| { error.kind() == std::io::ErrorKind::WouldBlock })
        );
    }
}
