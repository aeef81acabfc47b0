//! Builds Muster's container image into `target/images`.

use std::path::Path;

use anyhow::Context;
use muster_testkit::kind::{build_static, muster_image};

fn main() -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let workspace = workspace.context("this example is not in its workspace")?;
    let version = env!("CARGO_PKG_VERSION");
    let binary = build_static(workspace)?;
    let image = muster_image(&binary, &[version]);
    let archive = workspace.join(format!("target/images/muster-{version}.tar"));
    let digest = image.write(&archive)?;
    println!(
        "{}: {} ({digest})",
        archive.display(),
        image.tags.join(", ")
    );
    println!("load it with `docker load --input {}`", archive.display());
    Ok(())
}
