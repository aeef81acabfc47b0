//! Renders a model and roles into the objects of every cluster. Rendering is deterministic: it uses no clock, no
//! network and no randomness, and it limits the resources of a template.
//!
//! Results are cached by the values that they depend on. A template runs again only when a value that it read has
//! changed (the module `trie`). Clusters that are the same in everything that an app reads share one bundle.

mod context;
mod literals;
mod objects;
mod renderer;
mod template;
mod trie;
mod typed;

pub use renderer::{
    MAX_BUNDLE_BYTES, MAX_BUNDLE_OBJECTS, Part, Rendered, RenderedBundle, Renderer, conflicts,
    scopes,
};
