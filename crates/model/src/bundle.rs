//! A bundle holds one app's objects for one cluster. The hub renders, hashes and sends it, and the agent
//! applies it. It is encoded as lines of JSON: a header, then one object per line. Equal content has equal
//! bytes, and therefore one [`ContentHash`].

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AppName, ContentHash, Role},
    policy::Policy,
};

/// An object's type: group, version and kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gvk {
    /// The API group; empty for the core group.
    pub group: String,
    /// The API version.
    pub version: String,
    /// The kind.
    pub kind: String,
}

impl Gvk {
    /// Creates the type from an object's `apiVersion` and `kind`.
    #[must_use]
    pub fn from_api_version(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        }
    }

    /// Returns `group/version`, or only the version for the core group.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// A reference to an object by type, namespace and name. Two references that differ only in the version
/// refer to the same object; compare [`ObjectRef::identity`] where that matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The type.
    #[serde(flatten)]
    pub gvk: Gvk,
    /// The namespace as written. `None` for a cluster-scoped object, and for a namespaced object that uses
    /// the namespace of its app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

impl ObjectRef {
    /// Returns what identifies the object: group, kind, namespace and name, without the version.
    #[must_use]
    pub fn identity(&self) -> (&str, &str, Option<&str>, &str) {
        (
            &self.gvk.group,
            &self.gvk.kind,
            self.namespace.as_deref(),
            &self.name,
        )
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.gvk.kind)?;
        if !self.gvk.group.is_empty() {
            write!(f, ".{}", self.gvk.group)?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " {namespace}/{}", self.name),
            None => write!(f, " {}", self.name),
        }
    }
}

/// The desired state of one Kubernetes object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The reference to the object.
    pub id: ObjectRef,
    /// The whole object as compact JSON with sorted keys and without a line break.
    pub json: Arc<str>,
}

impl Object {
    /// Returns the hash of the content.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(self.json.as_bytes())
    }

    /// Reads objects from lines of JSON, one object per line.
    ///
    /// # Errors
    /// Returns an error if a line is not an object.
    pub fn read_lines(lines: &str) -> Result<Vec<Self>, BundleError> {
        if lines.is_empty() {
            return Ok(Vec::new());
        }
        let lines = lines.split('\n').enumerate();
        lines.map(|(line, json)| Self::read(line, json)).collect()
    }

    fn read(line: usize, json: &str) -> Result<Self, BundleError> {
        let named = serde_json::from_str(json);
        let Named {
            api_version,
            kind,
            metadata: NamedMeta { name, namespace },
        } = named.map_err(|source| BundleError::Line {
            line: line + 1,
            source,
        })?;
        Ok(Self {
            id: ObjectRef {
                gvk: Gvk::from_api_version(&api_version, &kind),
                namespace,
                name,
            },
            json: json.into(),
        })
    }
}

/// The header of a bundle, which is its first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleHeader {
    /// The app.
    pub app: AppName,
    /// The app's role in the cluster's region.
    pub role: Role,
    /// The namespace of the app's namespaced objects that do not name one.
    pub namespace: String,
    /// Apps of the same cluster that are applied before this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<AppName>,
    /// The app's previous name. The objects under that name are now this app's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formerly: Option<AppName>,
    /// The rules for applying the app's objects and for assessing their health.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub policy: Policy,
}

/// One app's objects within a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The app, its role and the settings for all objects.
    pub header: BundleHeader,
    /// The objects, in the order of their templates.
    pub objects: Vec<Object>,
}

/// The error for bytes that are not a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bytes are not UTF-8.
    #[error("the bundle is not UTF-8")]
    Utf8(#[source] std::str::Utf8Error),
    /// A line is not a header or object in JSON.
    #[error("line {line} of the bundle can't be read")]
    Line {
        /// The number of the line, from 1.
        line: usize,
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
}

/// The fields that identify an object.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: NamedMeta,
}

#[derive(Deserialize)]
struct NamedMeta {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

impl Bundle {
    /// Encodes the bundle. Equal bundles have equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let header = serde_json::to_string(&self.header).unwrap_or_default();
        let size = header.len() + self.objects.iter().map(|o| o.json.len() + 1).sum::<usize>();
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(header.as_bytes());
        for object in &self.objects {
            bytes.push(b'\n');
            bytes.extend_from_slice(object.json.as_bytes());
        }
        bytes
    }

    /// Decodes a bundle that [`Bundle::encode`] encoded.
    ///
    /// # Errors
    /// Returns a [`BundleError`] if the bytes are not a bundle.
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        let text = std::str::from_utf8(bytes).map_err(BundleError::Utf8)?;
        let mut lines = text.split('\n').enumerate();
        let (_, first) = lines.next().unwrap_or_default();
        let header =
            serde_json::from_str(first).map_err(|source| BundleError::Line { line: 1, source })?;
        let objects = lines
            .map(|(line, json)| Object::read(line, json))
            .collect::<Result<_, _>>()?;
        Ok(Self { header, objects })
    }
}

/// A conflict between two apps that contain the same object in one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The object, as text for people.
    pub object: String,
    /// The number that identifies the object in comparisons.
    pub identity: u64,
    /// The two apps, each with the file that contains the object.
    pub claims: [(AppName, Arc<str>); 2],
    /// The app that already owns the object. `None` if neither app owned it before, or if both
    /// apps' bundles in force contain it, so that only the cluster's agent knows the owner.
    pub owner: Option<AppName>,
}

#[cfg(test)]
mod tests;
