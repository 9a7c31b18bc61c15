//! A core that answers as a test says, in plain text on this machine: what no real one can be brought to do on time.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::runtime::{Builder, Runtime};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::grpc::wire::{
    CancelPaymentRequest, CancelPaymentResponse, CancelTokenRequest, CancelTokenResponse, Result,
    ResultCode,
    cancel_service_server::{CancelService, CancelServiceServer},
};

/// What it does with a call.
#[derive(Clone, Debug)]
pub enum Answer {
    Success,
    Refuse(Status),
    /// Nothing, for ever.
    Never,
}

/// A core that runs until it is dropped.
pub struct FakeCore {
    pub address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    /// The `grpc-timeout` of each call.
    calls: Arc<Mutex<Vec<String>>>,
    _runtime: Runtime,
}

#[derive(Clone)]
struct Service {
    answer: Arc<Mutex<Answer>>,
    calls: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl CancelService for Service {
    async fn cancel_payment(
        &self,
        request: Request<CancelPaymentRequest>,
    ) -> std::result::Result<Response<CancelPaymentResponse>, Status> {
        let timeout = request.metadata().get("grpc-timeout").expect("a deadline");
        self.calls.lock().unwrap().push(timeout.to_str().unwrap().to_owned());
        let answer = self.answer.lock().unwrap().clone();
        match answer {
            Answer::Success => {
                let result_code = ResultCode::Success.into();
                let result = Some(Result { result_code, ..Result::default() });
                Ok(Response::new(CancelPaymentResponse { result, ..Default::default() }))
            }
            Answer::Refuse(status) => Err(status),
            Answer::Never => std::future::pending().await,
        }
    }

    async fn cancel_token(
        &self,
        _: Request<CancelTokenRequest>,
    ) -> std::result::Result<Response<CancelTokenResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl FakeCore {
    pub fn new(answer: Answer) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        drop(entered);
        let address = incoming.local_addr().expect("an address");
        let (answer, calls) = (Arc::new(Mutex::new(answer)), Arc::default());
        let service = Service { answer: Arc::clone(&answer), calls: Arc::clone(&calls) };
        runtime.spawn(async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_serving::<CancelServiceServer<Service>>().await;
            let server = Server::builder().add_service(health);
            server
                .add_service(CancelServiceServer::new(service))
                .serve_with_incoming(incoming)
                .await
        });
        Self { address, answer, calls, _runtime: runtime }
    }

    /// From now on.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// The time that each call had.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}
