//! The objects of one file, encoded so that they can be joined into a bundle.

use std::sync::Arc;

use muster_model::{
    bundle::{BundleError, Object, ObjectRef},
    ids::ContentHash,
};

use super::clashes::{Identity, cluster_scoped_kind};

/// The objects that one file produced for a context, encoded as in a bundle.
#[derive(Debug)]
pub struct Part {
    pub(super) hash: ContentHash,
    pub(super) file: Arc<str>,
    /// The namespace of objects that don't set one.
    namespace: Box<str>,
    /// The objects as JSON, each after a line break.
    pub(super) lines: String,
    pub(super) ids: Vec<ObjectRef>,
    /// The identity of each object, as a hash; [`conflicts`] compares them.
    pub(super) identities: Vec<Identity>,
    /// The cluster-scoped kinds that its CustomResourceDefinitions define, as `KIND.GROUP`.
    pub(super) defines: Vec<String>,
}

impl Part {
    pub(super) fn new(file: &str, app_namespace: &str, objects: Vec<Object>) -> Self {
        let size = objects.iter().map(|object| object.json.len() + 1).sum();
        let mut lines = String::with_capacity(size);
        for object in &objects {
            lines.push('\n');
            lines.push_str(&object.json);
        }
        Self {
            hash: ContentHash::of(lines.as_bytes()),
            file: file.into(),
            namespace: app_namespace.into(),
            lines,
            identities: objects
                .iter()
                .map(|object| Identity::of(object, app_namespace))
                .collect(),
            defines: objects.iter().filter_map(cluster_scoped_kind).collect(),
            ids: objects.into_iter().map(|object| object.id).collect(),
        }
    }

    /// Returns the name of an object for use in messages.
    pub(super) fn name(&self, index: usize) -> String {
        self.ids
            .get(index)
            .map_or_else(String::new, ObjectRef::to_string)
    }

    /// Creates a part from its lines, as returned by [`Part::lines`].
    ///
    /// # Errors
    /// If a line is not a valid object.
    pub fn read(file: &str, app_namespace: &str, lines: &str) -> Result<Self, BundleError> {
        let objects = Object::read_lines(lines.strip_prefix('\n').unwrap_or(lines))?;
        Ok(Self::new(file, app_namespace, objects))
    }

    /// Returns the hash of the lines.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Returns the namespace of objects that don't set one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the file that contains the objects.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Returns the objects as JSON, each after a line break.
    #[must_use]
    pub fn lines(&self) -> &str {
        &self.lines
    }
}
