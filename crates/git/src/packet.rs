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
mod tests;
