//! Git's packets ("pkt-line", gitprotocol-common(5)) in an HTTP response.

use reqwest::Response;

/// The packet that ends a message.
pub(crate) const FLUSH: &str = "0000";
/// The packet that ends a section of a message.
pub(crate) const SEPARATOR: &str = "0001";

/// Returns a packet with this text.
pub(crate) fn line(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

/// A packet of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    Data(Vec<u8>),
    /// The end of a message or a section.
    Boundary,
    /// An error message from the server.
    Error(String),
    /// The end of the response. The server ended it too early.
    End,
}

/// A response that is read packet by packet.
pub(crate) struct Answer {
    response: Response,
    buffer: Buffer,
}

impl Answer {
    pub(crate) fn new(response: Response) -> Self {
        Self {
            response,
            buffer: Buffer::default(),
        }
    }

    /// Reads the next packet. The inner error says why the received bytes are not a packet.
    pub(crate) async fn next(&mut self) -> Result<Result<Packet, String>, reqwest::Error> {
        loop {
            match self.buffer.take() {
                Ok(None) => {}
                Ok(Some(packet)) => return Ok(Ok(packet)),
                Err(text) => return Ok(Err(text)),
            }
            match self.response.chunk().await? {
                Some(chunk) => self.buffer.add(&chunk),
                None => return Ok(Ok(Packet::End)),
            }
        }
    }
}

/// A buffer for received bytes that have not been read as packets.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl Buffer {
    fn add(&mut self, chunk: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(chunk);
    }

    fn take(&mut self) -> Result<Option<Packet>, String> {
        let rest = &self.bytes[self.taken..];
        let Some((head, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = std::str::from_utf8(head).ok().and_then(|text| {
            // `from_str_radix` would also accept a sign, as in `+1f`.
            let digits = text.bytes().all(|digit| digit.is_ascii_hexdigit());
            digits
                .then(|| usize::from_str_radix(text, 16).ok())
                .flatten()
        });
        let data = match length {
            Some(0..=2) => {
                self.taken += 4;
                return Ok(Some(Packet::Boundary));
            }
            None | Some(3) => return Err("it does not answer in Git's protocol".to_owned()),
            Some(length) => match rest.get(..length - 4) {
                Some(data) => data.to_vec(),
                None => return Ok(None),
            },
        };
        self.taken += 4 + data.len();
        Ok(Some(match data.strip_prefix(b"ERR ") {
            Some(text) => Packet::Error(String::from_utf8_lossy(text).trim_end().to_owned()),
            None => Packet::Data(data),
        }))
    }
}

#[cfg(test)]
mod tests {
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
}
