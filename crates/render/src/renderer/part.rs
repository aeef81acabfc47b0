//! The objects of one file, ready to be joined with others.

use std::sync::Arc;

use muster_model::{
    bundle::{BundleError, Object, ObjectRef},
    ids::ContentHash,
};

use super::clashes::{Identity, cluster_scoped_kind};

/// The objects that one file gave for a context, encoded as they stand in a bundle.
#[derive(Debug)]
pub struct Part {
    pub(super) hash: ContentHash,
    pub(super) file: Arc<str>,
    /// The namespace of its objects that name none.
    namespace: Box<str>,
    /// A line break and an object, for each.
    pub(super) lines: String,
    pub(super) ids: Vec<ObjectRef>,
    /// Each object's identity as a hash: what [`conflicts`] compares.
    pub(super) identities: Vec<Identity>,
    /// Kinds outside namespaces that its CustomResourceDefinitions define, as `KIND.GROUP`.
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

    /// The name of an object, for a message.
    pub(super) fn name(&self, index: usize) -> String {
        self.ids
            .get(index)
            .map_or_else(String::new, ObjectRef::to_string)
    }

    /// From its lines, as [`Part::lines`] gives them.
    ///
    /// # Errors
    /// Where they are no objects.
    pub fn read(file: &str, app_namespace: &str, lines: &str) -> Result<Self, BundleError> {
        let objects = Object::read_lines(lines.strip_prefix('\n').unwrap_or(lines))?;
        Ok(Self::new(file, app_namespace, objects))
    }

    /// Hash of its lines.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// The namespace of its objects that name none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The file that its objects stand in.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// A line break and an object, for each.
    #[must_use]
    pub fn lines(&self) -> &str {
        &self.lines
    }
}
