//! Compiles `/proto` without a system protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = ["muster/v1/agent.proto", "muster/v1/admin.proto"];
    let descriptors = protox::compile(files, [&root])?;
    tonic_prost_build::configure()
        .bytes("muster.v1.BlobPiece.data")
        .compile_fds(descriptors)?;
    Ok(())
}
