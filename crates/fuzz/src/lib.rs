//! Fuzz targets for all code that parses untrusted input. Each target is a function of arbitrary bytes that must return
//! without a panic.
//!
//! `cargo xtask fuzz` searches for inputs that fail, guided by coverage. The interesting inputs are stored in
//! `corpora/TARGET`, and `tests/corpora.rs` runs all of them in every `cargo test`.

mod cluster;
mod repository;
mod wire;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All fuzz targets, each with the name of its corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("yaml", repository::yaml),
    ("documents", repository::documents),
    ("templates", repository::templates),
    ("expressions", cluster::expressions),
    ("objects", cluster::objects),
    ("messages", wire::messages),
    ("tokens", wire::tokens),
];

/// Splits an input into parts at each line `===`. A fuzzer preserves such a separator more often than a length prefix.
/// Returns `None` if the input is not UTF-8.
fn parts(data: &[u8]) -> Option<Vec<&str>> {
    Some(std::str::from_utf8(data).ok()?.split("\n===\n").collect())
}
