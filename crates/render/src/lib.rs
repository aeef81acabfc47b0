//! From a model and roles to the objects of every cluster. Deterministic: no clock, no network, no
//! chance, and a limit on what a template may use up.
//!
//! Work is kept by what it depended on. A template is run again only when something that it looked at
//! is different ([`trie`]); clusters that look the same to an app share one bundle.

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
