//! The wire format between hub, agents and people: the code made from `/proto`, and conversions to the
//! model's types.

mod convert;
mod state;

/// The messages and services of `muster.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated from /proto, where the comments stand"
)]
pub mod v1 {
    tonic::include_proto!("muster.v1");
}

pub use convert::{BadMessage, content_hash};

/// The version of the agent's protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 2;

/// The release of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Bytes of compressed content in one [`v1::BlobPiece`].
pub const PIECE_BYTES: usize = 256 * 1024;
