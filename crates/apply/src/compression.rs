//! Compression of the records that are stored in the cluster.

use std::io;

/// The zstd level. It is fast, and its size is close to the best for JSON.
const LEVEL: i32 = 3;

/// The most bytes that are unpacked. No record is that large; the limit keeps a damaged one from
/// filling the memory.
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
