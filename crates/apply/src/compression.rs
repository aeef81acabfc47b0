//! Compression of what is kept in the cluster.

use std::io;

/// Fast, and close to the best for JSON.
const LEVEL: i32 = 3;

/// More than any record that is written here, so that a damaged one can't fill the memory.
const MAX_UNPACKED_BYTES: usize = 64 << 20;

pub(crate) fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::encode_all(bytes, LEVEL)
}

pub(crate) fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let limit = u64::try_from(MAX_UNPACKED_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    zstd::Decoder::new(packed)?
        .take(limit)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
