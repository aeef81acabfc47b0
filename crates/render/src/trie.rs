//! Results of one template by what it looked at. A template without clock and chance reads the same
//! next thing whenever it has found the same things so far, so its readings form a tree: each node
//! asks for one thing, each answer leads on, and a leaf holds the result.

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
    /// The result for a context, if one that looks the same to this template was seen.
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

    /// Keeps a result with all that was read for it.
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
