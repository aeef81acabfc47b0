//! The results of one template, by the values that it read. A template has no clock and no randomness, so after the
//! same values it always reads the same value next. Its reads therefore form a tree: each node is one read, each edge
//! is a value that was found, and a leaf holds the result.

use std::collections::HashMap;

use crate::context::{Context, Digest, Read};

/// The tree of one template's results.
#[derive(Debug, Default)]
pub(crate) enum Trie<T> {
    #[default]
    Unknown,
    Leaf(T),
    Ask(Read, HashMap<Digest, Trie<T>>),
}

impl<T: Clone> Trie<T> {
    /// Returns the result for a context, if it was stored for a context in which the template reads the same values.
    pub(crate) fn get(&self, context: &Context) -> Option<T> {
        let mut node = self;
        loop {
            match node {
                Self::Unknown => return None,
                Self::Leaf(result) => return Some(result.clone()),
                Self::Ask(read, answers) => node = answers.get(&context.observe(read))?,
            }
        }
    }

    /// Stores a result with all the reads that led to it.
    pub(crate) fn insert(&mut self, reads: impl IntoIterator<Item = (Read, Digest)>, result: T) {
        let mut node = self;
        for (read, found) in reads {
            if !matches!(node, Self::Ask(asked, _) if *asked == read) {
                *node = Self::Ask(read, HashMap::new());
            }
            let Self::Ask(_, answers) = node else {
                return;
            };
            node = answers.entry(found).or_default();
        }
        *node = Self::Leaf(result);
    }
}
