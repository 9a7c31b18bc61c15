//! SIGTERM: what was accepted is answered, then the process ends well.

use crate::harness::{
    eventually,
    grpc::Payment,
    json::{Connection, Request, payment_body},
    service::{Options, Service},
};

fn request(service: &Service, payment: &Payment) -> Request {
    let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
    service.json().request().body(body)
}

/// A request whose body the service is reading.
fn accepted(request: &Request) -> Connection {
    let mut connection = Connection::to(request.address);
    connection.write(&request.clone().header("Expect", "100-continue").head());
    assert_eq!(connection.answer(false).expect("100 Continue").status, 100);
    connection
}

fn is_draining(service: &Service) {
    eventually("the service drains", || service.stderr().contains("draining").then_some(()));
}

#[test]
fn told_to_end_the_service_answers_what_it_accepted_and_ends_well() {
    let mut service = Service::start(Options::default());
    let payments = [(); 5].map(|()| Payment::new());
    let requests: Vec<Request> =
        payments.iter().map(|payment| request(&service, payment)).collect();
    let mut connections: Vec<Connection> = requests.iter().map(accepted).collect();
    // one that is idle does not hold it up
    let mut idle = service.json().connect();
    request(&service, &Payment::new()).send_on(&mut idle).expect("SUCCESS");

    service.signal("TERM");
    is_draining(&service);
    assert!(idle.is_closed());
    for (request, connection) in requests.iter().zip(&mut connections) {
        connection.write(&request.body);
        let answer = request.answer_on(connection).expect("an answer");
        answer.expect("SUCCESS").assert_signed();
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.is_closed());
    }
    let ended = service.wait();
    assert_eq!(ended.code(), Some(0), "{}", service.stderr());
    assert!(service.stderr().contains("stopped"));

    service.restart();
    for payment in &payments {
        assert!(service.grpc().cancel_payment(payment.cancel()).unwrap().repeated);
    }
}

#[test]
fn what_does_not_end_within_the_grace_is_dropped_and_a_second_signal_ends_at_once() {
    let mut service = Service::start(Options::set(["shutdown.grace=200ms"]));
    let held = accepted(&request(&service, &Payment::new()));
    assert_eq!(service.terminate().code(), Some(0), "{}", service.stderr());
    drop(held);

    let mut service = Service::start(Options::set(["shutdown.grace=1h"]));
    let held = accepted(&request(&service, &Payment::new()));
    service.signal("TERM");
    is_draining(&service);
    // until the second signal is listened for, it may go unheard
    eventually("a second signal ends it", || {
        service.signal("INT");
        service.has_ended().then_some(())
    });
    assert_eq!(service.wait().code(), Some(1));
    drop(held);
}

#[test]
fn readiness_goes_before_the_ports_do() {
    let mut service = Service::start(Options::set(["shutdown.drain_delay=1h"]));
    let ready = |service: &Service| {
        let mut connection = Connection::to(service.ports().admin);
        connection.write(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.answer(true).expect("an answer").status
    };
    assert_eq!(ready(&service), 200);
    service.signal("TERM");
    eventually("it is not ready", || (ready(&service) == 503).then_some(()));
    request(&service, &Payment::new()).send().expect("SUCCESS").assert_signed();
    service.kill_nine();
}

#[test]
fn a_draining_service_refuses_new_connections_so_that_they_go_elsewhere() {
    let service = Service::start(Options::default());
    let payment = Payment::new();
    let request = request(&service, &payment);
    let mut connection = accepted(&request);
    service.signal("TERM");
    eventually("the port is closed", || {
        std::net::TcpStream::connect(service.ports().bridge).is_err().then_some(())
    });
    connection.write(&request.body);
    request.answer_on(&mut connection).expect("an answer").expect("SUCCESS");
}
