//! Micro-benchmarks of what one request costs apart from the disk: decide, read JSON, verify, sign.
//!
//! `cargo bench --bench core`. Compare ratios within one run.

use std::hint::black_box;

use alipayplus_cancel::{
    bridge::{json, keys::PrivateKey, request_time, signature},
    domain::{
        Asked,
        amount::{Amount, Currency},
        cancel_payment::{self, CancelPayment},
        id::{AcquirerId, PaymentRequestId, PspId},
        key::{Partitions, PaymentKey, Subject},
        payment::{Payment, State, Succeeded, Terms},
        policy::Policy,
        time::Timestamp,
    },
};
use criterion::{Criterion, criterion_group, criterion_main};

const BODY: &[u8] = br#"{"acquirerId":"1022188000000000001","pspId":"1022172000000000001","paymentRequestId":"20200101234567890132"}"#;

fn decide(criterion: &mut Criterion) {
    let key = PaymentKey {
        psp: PspId::parse("1022172000000000001").expect("an id"),
        payment_request: PaymentRequestId::parse("20200101234567890132").expect("an id"),
    };
    let acquirer = AcquirerId::parse("1022188000000000001").expect("an id");
    let now = Timestamp { unix_ms: 1_790_000_000_000 };
    let amount =
        Amount::new(1_999, Currency::parse("EUR").expect("a currency")).expect("an amount");
    let terms = Terms { amount, initiated_at: now };
    let succeeded = Payment {
        acquirer: Some(acquirer.clone()),
        recorded_at: Some(now),
        state: State::Succeeded(Succeeded { terms, refunds: Vec::new(), refused: None }),
    };
    let asked = Asked {
        now,
        clock_agrees: true,
        tombstone_allowed: true,
        onboarding: false,
        by: None,
        trace: None,
    };
    let policy = Policy::default();
    let command = CancelPayment { key: key.clone(), acquirer };
    criterion.bench_function("decide/cancel a succeeded payment", |bench| {
        bench.iter(|| {
            cancel_payment::decide(black_box(Some(&succeeded)), &command, &asked, &policy)
        });
    });
    let subject = Subject::Payment(key);
    criterion.bench_function("decide/partition of a key", |bench| {
        bench.iter(|| black_box(&subject).partition(Partitions::DEFAULT));
    });
}

fn wire(criterion: &mut Criterion) {
    criterion.bench_function("json/strict read of a cancelPayment", |bench| {
        bench.iter(|| {
            let fields = json::parse(black_box(BODY)).expect("an object");
            fields.required_as("paymentRequestId", PaymentRequestId::parse).expect("an id")
        });
    });
    criterion.bench_function("json/serde_json::Value, to compare", |bench| {
        bench.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(BODY)).expect("JSON"));
    });
    criterion.bench_function("request_time/parse", |bench| {
        bench.iter(|| request_time::parse(black_box("2026-05-28T12:12:12+08:00")));
    });

    let key = PrivateKey::generate(2048).expect("a key");
    let time = "2026-05-28T12:12:12+08:00";
    let path = "/aps/api/v1/payments/cancelPayment";
    let signed = signature::signed_string("POST", path, "CLIENT", time, BODY);
    let bytes = key.sign(&signed).expect("a signature");
    let header = signature::header("1", &bytes);
    criterion.bench_function("signature/read the header", |bench| {
        bench.iter(|| signature::SignatureHeader::parse(black_box(&header)).expect("a header"));
    });
    criterion.bench_function("signature/RSA-2048 verify", |bench| {
        bench.iter(|| key.public().verify(black_box(&signed), &bytes));
    });
    criterion.bench_function("signature/RSA-2048 sign", |bench| {
        bench.iter(|| key.sign(black_box(&signed)).expect("a signature"));
    });
}

criterion_group!(benches, decide, wire);
criterion_main!(benches);
