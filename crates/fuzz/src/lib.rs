//! What reads the words of others, as functions of arbitrary bytes that must come to an end without a panic.
//!
//! `cargo xtask fuzz` searches for inputs that break this, guided by coverage; every input worth keeping is in
//! `corpora/TARGET`, and `tests/corpora.rs` runs all of them with every `cargo test`.

mod cluster;
mod repository;
mod wire;

/// One of them.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 7] = [
    ("yaml", repository::yaml),
    ("documents", repository::documents),
    ("templates", repository::templates),
    ("expressions", cluster::expressions),
    ("objects", cluster::objects),
    ("messages", wire::messages),
    ("tokens", wire::tokens),
];

/// The parts of an input, which a line `===` separates: fuzzers keep text together better than lengths.
fn parts(data: &[u8]) -> Option<Vec<&str>> {
    Some(std::str::from_utf8(data).ok()?.split("\n===\n").collect())
}
