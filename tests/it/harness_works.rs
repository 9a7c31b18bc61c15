//! The fixture itself: a service starts, answers, dies, comes back.

use crate::harness::{
    grpc::Payment,
    service::{Options, Service},
};

#[test]
fn a_payment_cancelled_before_a_kill_stays_cancelled_after_it() {
    let mut service = Service::start(Options::default());
    let payment = Payment::new();
    let cancel = |service: &Service| {
        service.json().cancel_payment(&payment.psp, &payment.acquirer, &payment.request)
    };
    cancel(&service).expect("SUCCESS").assert_signed();
    service.kill_nine();
    service.restart();
    cancel(&service).expect("SUCCESS").assert_signed();
    assert!(service.grpc().cancel_payment(payment.cancel()).unwrap().repeated);
    assert!(service.terminate().success(), "{}", service.stderr());
}
