//! Proofs that a hub of this fleet issued a term. Without them, an agent could invent a newer term and make every
//! hub step down.

use std::fmt;

use ring::hmac;

use crate::Ca;

/// The key that signs and verifies terms. It is derived from the CA's key, so every hub of a fleet has it.
#[derive(Clone)]
pub struct TermKey(hmac::Key);

impl fmt::Debug for TermKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TermKey")
    }
}

impl Ca {
    /// Returns the key with which the hubs of this authority prove their terms.
    #[must_use]
    pub fn term_key(&self) -> TermKey {
        let root = hmac::Key::new(hmac::HMAC_SHA256, &self.secret());
        let derived = hmac::sign(&root, b"muster: terms of hubs, 1");
        TermKey(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }
}

fn message(number: u64, nonce: u64, incarnation: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + incarnation.len());
    message.extend_from_slice(&number.to_le_bytes());
    message.extend_from_slice(&nonce.to_le_bytes());
    message.extend_from_slice(incarnation.as_bytes());
    message
}

/// Returns the bytes that the proof of a fleet record covers. They begin with the highest number, which no term has, so
/// the proof of a term never proves a record.
fn record_message(content: &[u8]) -> Vec<u8> {
    let mut message = u64::MAX.to_le_bytes().to_vec();
    message.extend_from_slice(content);
    message
}

impl TermKey {
    /// Returns the proof of a term: HMAC-SHA256 over the term and the incarnation of its hub's store.
    #[must_use]
    pub fn prove(&self, number: u64, nonce: u64, incarnation: &str) -> [u8; 32] {
        let tag = hmac::sign(&self.0, &message(number, nonce, incarnation));
        let mut proof = [0; 32];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    /// Returns the proof of a fleet record's content.
    #[must_use]
    pub fn prove_record(&self, content: &[u8]) -> [u8; 32] {
        let mut proof = [0; 32];
        proof.copy_from_slice(hmac::sign(&self.0, &record_message(content)).as_ref());
        proof
    }

    /// Returns true if a hub of this fleet wrote the content of a fleet record.
    #[must_use]
    pub fn holds_record(&self, content: &[u8], proof: &[u8]) -> bool {
        hmac::verify(&self.0, &record_message(content), proof).is_ok()
    }

    /// Returns true if the proof comes from this fleet. The comparison takes constant time.
    #[must_use]
    pub fn holds(&self, number: u64, nonce: u64, incarnation: &str, proof: &[u8]) -> bool {
        hmac::verify(&self.0, &message(number, nonce, incarnation), proof).is_ok()
    }
}

#[cfg(test)]
mod tests;
