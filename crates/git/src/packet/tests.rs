use proptest::prelude::*;

use super::*;

#[test]
fn packets_are_taken_however_they_arrive() {
    let bytes = [
        &*line("one\n"),
        SEPARATOR,
        &line(""),
        &line("ERR no\n"),
        FLUSH,
    ]
    .concat();
    let expected = [
        Packet::Data(b"one\n".to_vec()),
        Packet::Boundary,
        Packet::Data(Vec::new()),
        Packet::Error("no".into()),
        Packet::Boundary,
    ];
    for size in 1..=bytes.len() {
        let mut buffer = Buffer::default();
        let mut seen = Vec::new();
        for chunk in bytes.as_bytes().chunks(size) {
            buffer.add(chunk);
            while let Some(packet) = buffer.take().unwrap() {
                seen.push(packet);
            }
        }
        assert_eq!(seen, expected);
    }
}

/// Reads a response in chunks of these sizes. Returns its packets and the error that ended it, if any.
fn read(bytes: &[u8], sizes: &[usize]) -> (Vec<Packet>, Option<String>) {
    let (mut buffer, mut seen, mut rest) = (Buffer::default(), Vec::new(), bytes);
    for size in sizes.iter().copied().chain([bytes.len()]) {
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        buffer.add(chunk);
        loop {
            match buffer.take() {
                Ok(Some(packet)) => seen.push(packet),
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}

proptest! {
    /// Any bytes, some of which look like packets, are read the same way however they are split into chunks.
    #[test]
    fn no_bytes_and_no_chunks_confuse_it(
        parts in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[0-9a-fA-F]{4}".prop_map(String::into_bytes),
                "(ERR )?[ -~]{0,30}".prop_map(|text| line(&text).into_bytes()),
            ],
            0..12,
        ),
        sizes in prop::collection::vec(0..50_usize, 0..20),
    ) {
        let bytes = parts.concat();
        let whole = read(&bytes, &[]);
        prop_assert_eq!(read(&bytes, &sizes), whole);
    }

    #[test]
    fn what_is_written_is_read(texts in prop::collection::vec("[a-z ]{0,60}", 0..10)) {
        let written: String = texts.iter().map(|text| line(text)).collect();
        let expected = texts.iter().map(|text| Packet::Data(text.clone().into_bytes()));
        prop_assert_eq!(read(written.as_bytes(), &[]), (expected.collect(), None));
    }
}

#[test]
fn what_is_no_packet_is_refused() {
    for text in ["<html>", "0003", "+00a123456", "éé"] {
        let mut buffer = Buffer::default();
        buffer.add(text.as_bytes());
        assert!(buffer.take().is_err(), "{text}");
    }
}
