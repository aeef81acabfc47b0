//! Builds Muster's container image, which contains only the static binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::docker::{self, run};
use crate::image::{Entry, Image};
use crate::tools::{self, cache_dir};

/// The image's name without a tag, as in the charts.
pub const MUSTER_IMAGE: &str = "ghcr.io/muster-fleet/muster";
/// The target of the build: a static binary, which needs no base image.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// The unprivileged user and group that run the binary.
const USER: &str = "65532:65532";

/// Builds the static binary from the workspace in this folder. Blocks; the first build takes several minutes.
///
/// # Errors
/// Fails if the target or its C compiler can't be installed, or the build fails.
pub fn build_static(workspace: &Path) -> anyhow::Result<PathBuf> {
    docker::install(&[("musl-gcc", "musl-tools")]).context(
        "the image's static binary needs musl-gcc; install musl-tools (Debian's name for it)",
    )?;
    let mut target = Command::new("rustup");
    run(target
        .current_dir(workspace)
        .args(["target", "add", TARGET]))?;
    tools::say("building muster for its image (the first time takes some minutes)");
    let mut build = Command::new("cargo");
    // A parent `cargo` sets these variables for its own package; they would make build scripts run again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let of_package = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
            "CARGO_PRIMARY_",
        ];
        if of_package.iter().any(|prefix| name.starts_with(prefix)) {
            build.env_remove(name.as_ref());
        }
    }
    build.current_dir(workspace).args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "muster",
        "--target",
        TARGET,
    ]);
    // The target directory is outside the checkout, so that another checkout need not compile all libraries again.
    let target = cache_dir()?.join("image");
    // The build machine's paths must not be in the binary: they would make two builds differ.
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let flags = format!(
        "--remap-path-prefix={}=/target --remap-path-prefix={home}=/cargo",
        target.display()
    );
    build.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS", flags);
    run(build.env("CARGO_TARGET_DIR", &target))?;
    Ok(target.join(TARGET).join("release/muster"))
}

/// Returns the image of a binary with these tags.
pub fn muster_image(binary: &Path, tags: &[&str]) -> Image {
    Image {
        tags: tags
            .iter()
            .map(|tag| format!("{MUSTER_IMAGE}:{tag}"))
            .collect(),
        files: vec![
            Entry::program("muster", binary),
            // `kubectl exec POD -- muster status` finds the binary by this link.
            Entry::link("bin/muster", "/muster"),
        ],
        folders: vec![("tmp".to_owned(), 0o1777)],
        entrypoint: vec!["/muster".to_owned()],
        environment: vec!["PATH=/bin".to_owned()],
        user: USER.to_owned(),
        labels: vec![
            (
                "org.opencontainers.image.title".to_owned(),
                "muster".to_owned(),
            ),
            (
                "org.opencontainers.image.source".to_owned(),
                env!("CARGO_PKG_REPOSITORY").to_owned(),
            ),
            (
                "org.opencontainers.image.licenses".to_owned(),
                env!("CARGO_PKG_LICENSE").to_owned(),
            ),
        ],
    }
}
