//! Compiles `proto/` in Rust (protox), so that a machine needs no protoc; keeps the descriptors for gRPC reflection; says
//! which commit `--version` tells.

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

/// Whoever builds from a commit says so: git is not asked, because the sources may come without it, and because a
/// build that looked would begin anew with each commit.
const COMMIT: &str = "ALIPAYPLUS_CANCEL_COMMIT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed={COMMIT}");
    let version = env::var("CARGO_PKG_VERSION")?;
    let version = match env::var(COMMIT) {
        Ok(commit) if !commit.trim().is_empty() => format!("{version} ({})", commit.trim()),
        _ => version,
    };
    println!("cargo:rustc-env=ALIPAYPLUS_CANCEL_VERSION={version}");

    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
