//! The fuzzer. It runs the target that the environment variable `MUSTER_FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use muster_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let desired = std::env::var("MUSTER_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|(name, _)| *name == desired);
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let missing = || panic!("MUSTER_FUZZ_TARGET must be one of {}", names.join(", "));
    target.map_or_else(missing, |(_, target)| *target)
});

fuzz_target!(|data: &[u8]| TARGET(data));
