//! A bundle: one app's objects for one cluster, as the hub renders, hashes and sends it and as the
//! agent applies it. Its encoded form is lines of JSON, a header and then one object a line, so that
//! equal content has equal bytes and equal bytes one [`ContentHash`].

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AppName, ContentHash, Role},
    policy::Policy,
};

/// An object's type: group, version and kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gvk {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
}

impl Gvk {
    /// From an object's `apiVersion` and `kind`.
    #[must_use]
    pub fn from_api_version(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        }
    }

    /// `group/version`, or the version alone for the core group.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Which object: its type, namespace and name. Two versions of one group are the same object; compare
/// [`ObjectRef::identity`] where that matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The type.
    #[serde(flatten)]
    pub gvk: Gvk,
    /// The namespace as written; `None` for a cluster-scoped object, and for a namespaced one that
    /// leaves it to its app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

impl ObjectRef {
    /// What makes two references one object: group, kind, namespace and name, not the version.
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

/// One Kubernetes object as it should be, in compact JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Which object.
    pub id: ObjectRef,
    /// The whole object in compact JSON with sorted keys, without a line break.
    pub json: Arc<str>,
}

impl Object {
    /// Hash of the content.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(self.json.as_bytes())
    }

    /// The objects of lines, each of which is one.
    ///
    /// # Errors
    /// Where one is none.
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

/// What stands in a bundle's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleHeader {
    /// The app.
    pub app: AppName,
    /// Its role in the cluster's region.
    pub role: Role,
    /// The namespace of its namespaced objects that name none.
    pub namespace: String,
    /// Apps of the same cluster that are applied before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<AppName>,
    /// The name that the app had before, whose objects are now its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formerly: Option<AppName>,
    /// How its objects are applied, kept and judged.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub policy: Policy,
}

/// One app's objects within a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// App, role and what applies to all objects.
    pub header: BundleHeader,
    /// The objects, in the order of their templates.
    pub objects: Vec<Object>,
}

/// Why bytes are no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not UTF-8.
    #[error("the bundle is not UTF-8")]
    Utf8(#[source] std::str::Utf8Error),
    /// A line is not what it should be; lines count from 1.
    #[error("line {line} of the bundle can't be read")]
    Line {
        /// Which line.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The fields of an object that name it.
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
    /// The bundle's bytes. Equal bundles have equal bytes.
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

    /// Reads what [`Bundle::encode`] wrote.
    ///
    /// # Errors
    /// [`BundleError`] where the bytes are something else.
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

/// Two apps' claim to one object of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The object.
    pub object: String,
    /// What the object is compared by.
    pub identity: u64,
    /// The apps and the files in which the object stands.
    pub claims: [(AppName, Arc<str>); 2],
    /// The one of the apps that has the object already; `None` where both are new to it, or where only the
    /// cluster knows.
    pub owner: Option<AppName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        Bundle {
            header: BundleHeader {
                app: "wiki".parse().unwrap(),
                role: Role::Primary,
                namespace: "wiki".into(),
                after: vec!["crds".parse().unwrap()],
                formerly: None,
                policy: Policy::default(),
            },
            objects: vec![Object {
                id: ObjectRef {
                    gvk: Gvk::from_api_version("apps/v1", "Deployment"),
                    namespace: None,
                    name: "wiki".into(),
                },
                json: r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"wiki"}}"#
                    .into(),
            }],
        }
    }

    #[test]
    fn a_bundle_survives_its_bytes() {
        assert_eq!(Bundle::decode(&bundle().encode()).unwrap(), bundle());
        let empty = Bundle {
            objects: vec![],
            ..bundle()
        };
        assert_eq!(Bundle::decode(&empty.encode()).unwrap(), empty);
    }

    #[test]
    fn what_is_no_bundle_says_where() {
        let mut bytes = bundle().encode();
        bytes.extend_from_slice(b"\nnot json");
        assert!(
            Bundle::decode(&bytes)
                .unwrap_err()
                .to_string()
                .contains("line 3")
        );
        assert!(Bundle::decode(b"").is_err());
    }
}
