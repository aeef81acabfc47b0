//! The wire format between the hub, agents and people: the code generated from `/proto`, and conversions to
//! the model's types.

mod convert;
mod state;

/// The messages and services of `muster.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated from /proto, which holds the documentation"
)]
pub mod v1 {
    tonic::include_proto!("muster.v1");
}

pub use convert::{BadMessage, content_hash};

/// The version of the agent protocol that this build implements.
pub const PROTOCOL_VERSION: u32 = 2;

/// The release of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The most bytes of compressed content in one [`v1::BlobPiece`]. The last piece of a bundle may be smaller.
pub const PIECE_BYTES: usize = 256 * 1024;
