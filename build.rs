//! Compiles `proto/` in Rust (protox), so that a machine needs no protoc; keeps the descriptors for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 7] = [
    "alipayplus/cancel/v1/amount.proto",
    "alipayplus/cancel/v1/cancel_service.proto",
    "alipayplus/cancel/v1/feed_service.proto",
    "alipayplus/cancel/v1/import_service.proto",
    "alipayplus/cancel/v1/payment_service.proto",
    "alipayplus/cancel/v1/result.proto",
    "alipayplus/cancel/v1/token_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
