//! The knowledge about fields that Muster uses in place of a schema: which maps of built-in Kubernetes kinds hold text,
//! and where a null is significant.

use base64::{
    Engine as _, alphabet,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use muster_model::{
    bundle::Gvk,
    yaml::{Node, Yaml},
};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::objects::NoObject;

/// The kind of content that a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The object itself.
    Object(Family),
    /// Fields of built-in types. A null is left out: API servers drop or refuse it, and with server-side apply the
    /// field manager would own a field that has no value.
    Fields(Family),
    /// The metadata of an object or a template.
    Metadata,
    /// A map whose values are text.
    Texts,
    /// A map whose values are base64.
    Encoded,
    /// A value of a map of text or base64. A null is an empty text, as in API servers.
    Text,
    /// A list of a program's arguments, which are text.
    Arguments,
    /// A list of environment variables, whose `value` is text.
    Variables,
    /// Content whose schema is not known here, so that a null may be significant.
    Free,
}

/// A group of kinds whose fields are read in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// ConfigMaps.
    ConfigMap,
    /// Secrets.
    Secret,
    /// Services and ReplicationControllers, whose selector is a map of text.
    Selector,
    /// StorageClasses and VolumeAttributesClasses, whose parameters are a map of text.
    Parameters,
    /// CustomResourceDefinitions, whose schemas hold any field name.
    Definition,
    /// ControllerRevisions, whose data is any object.
    Revision,
    /// Kinds of `resource.k8s.io`, with parameters whose schema only the device driver knows.
    Devices,
    /// All other built-in kinds.
    BuiltIn,
    /// Kinds from a CustomResourceDefinition or another API server.
    Custom,
}

impl Family {
    pub(crate) fn of(gvk: &Gvk) -> Self {
        match (gvk.group.as_str(), gvk.kind.as_str()) {
            ("", "ConfigMap") => Self::ConfigMap,
            ("", "Secret") => Self::Secret,
            ("", "Service" | "ReplicationController") => Self::Selector,
            ("storage.k8s.io", "StorageClass" | "VolumeAttributesClass") => Self::Parameters,
            ("apiextensions.k8s.io", _) => Self::Definition,
            ("apps", "ControllerRevision") => Self::Revision,
            ("resource.k8s.io", _) => Self::Devices,
            (
                ""
                | "apps"
                | "batch"
                | "autoscaling"
                | "policy"
                | "admissionregistration.k8s.io"
                | "apiregistration.k8s.io"
                | "authentication.k8s.io"
                | "authorization.k8s.io"
                | "certificates.k8s.io"
                | "coordination.k8s.io"
                | "discovery.k8s.io"
                | "events.k8s.io"
                | "flowcontrol.apiserver.k8s.io"
                | "internal.apiserver.k8s.io"
                | "lifecycle.k8s.io"
                | "networking.k8s.io"
                | "node.k8s.io"
                | "rbac.authorization.k8s.io"
                | "scheduling.k8s.io"
                | "storage.k8s.io"
                | "storagemigration.k8s.io",
                _,
            ) => Self::BuiltIn,
            _ => Self::Custom,
        }
    }
}

impl Content {
    /// Returns the content below a key.
    fn below(self, key: &str) -> Self {
        match (self, key) {
            (Self::Free, _)
            | (Self::Fields(Family::Definition), "default" | "example" | "enum") => Self::Free,
            (Self::Fields(Family::Definition), _) => self,
            (Self::Object(_) | Self::Fields(_), "metadata") => Self::Metadata,
            (Self::Metadata, "labels" | "annotations")
            | (Self::Object(Family::ConfigMap), "data")
            | (Self::Object(Family::Secret), "stringData")
            | (Self::Object(Family::Parameters), "parameters")
            | (Self::Fields(Family::Selector), "selector") => Self::Texts,
            (Self::Object(Family::ConfigMap), "binaryData")
            | (Self::Object(Family::Secret), "data") => Self::Encoded,
            (Self::Object(Family::Revision), "data")
            | (Self::Object(Family::Custom), _)
            | (Self::Fields(Family::Devices), "parameters") => Self::Free,
            (Self::Texts | Self::Encoded, _) => Self::Text,
            (Self::Object(family), _) => Self::Fields(family),
            (Self::Fields(Family::Devices), _) => self,
            (Self::Fields(_), "matchLabels" | "nodeSelector" | "volumeAttributes") => Self::Texts,
            (Self::Fields(_), "args" | "command") => Self::Arguments,
            (Self::Fields(_), "env") => Self::Variables,
            _ => Self::Fields(Family::BuiltIn),
        }
    }

    /// Returns true if a null below a key is part of the object.
    fn keeps_null(self, key: &str) -> bool {
        match self {
            // Only controllers write a status. A null status in a manifest means nothing, and an API server may refuse
            // it.
            Self::Object(Family::Custom) => key != "status",
            Self::Texts | Self::Encoded | Self::Free => true,
            _ => false,
        }
    }

    /// Returns true if the content below a key is text.
    fn is_text(self, key: &str) -> bool {
        matches!(self, Self::Texts | Self::Encoded) || (self == Self::Variables && key == "value")
    }
}

/// The problems of the objects in a text.
#[derive(Default)]
pub(crate) struct Findings<'a> {
    pub(crate) wrong: Vec<NoObject>,
    /// Returns true if its argument, a number's text, occurs in a template. `None` if the text was not written by a
    /// template.
    pub(crate) author: Option<&'a dyn Fn(&str) -> bool>,
}

impl Findings<'_> {
    /// Finds all content below a key that is invalid because an API server accepts only text or base64 there. Also
    /// finds text that a template took from a value and that YAML reads as a different number.
    pub(crate) fn check(&mut self, node: &Node, key: &str, content: Content) {
        if content == Content::Fields(Family::Definition)
            || (content == Content::Free && self.author.is_none())
        {
            return;
        }
        match &node.value {
            Yaml::Map(entries) => {
                for (name, _, value) in entries {
                    if content.is_text(name) {
                        let what = || format!("`{name}` in `{key}`");
                        self.wrong.extend(no_text(value, what));
                        if content == Content::Encoded {
                            self.wrong.extend(no_base64(value, what));
                        }
                    } else {
                        self.check(value, name, content.below(name));
                    }
                }
            }
            Yaml::Seq(items) if content == Content::Arguments => {
                let told = items
                    .iter()
                    .filter_map(|item| no_text(item, || format!("an item of `{key}`")));
                self.wrong.extend(told);
            }
            Yaml::Seq(items) => {
                for item in items {
                    self.check(item, key, content);
                }
            }
            Yaml::Rewritten(number) if content == Content::Free => {
                let json = number.value.to_string();
                if json != number.text && self.author.is_some_and(|wrote| !wrote(&number.text)) {
                    self.wrong.push(NoObject {
                        at: node.at,
                        message: format!("`{}` becomes the number {json} here", number.text),
                        help: Some("put it in quotes if it is text"),
                    });
                }
            }
            Yaml::Scalar(_) | Yaml::Rewritten(_) => {}
        }
    }
}

fn no_text(node: &Node, what: impl FnOnce() -> String) -> Option<NoObject> {
    let (found, help) = match &node.value {
        Yaml::Scalar(Value::Number(_)) | Yaml::Rewritten(_) => ("a number", Some(IN_QUOTES)),
        Yaml::Scalar(Value::Bool(_)) => ("true or false", Some(IN_QUOTES)),
        Yaml::Scalar(_) => return None,
        Yaml::Seq(_) => ("a list", None),
        Yaml::Map(_) => ("a map", None),
    };
    Some(NoObject {
        at: node.at,
        message: format!("{} must be text, not {found}", what()),
        help,
    })
}

fn no_base64(node: &Node, what: impl FnOnce() -> String) -> Option<NoObject> {
    // API servers accept trailing bits too.
    let lenient = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, lenient);
    let text = node.as_str()?;
    let lines = text.replace(['\r', '\n'], "");
    let error = engine.decode(lines).err()?;
    Some(NoObject {
        at: node.at,
        message: format!("{} is not base64: {error}", what()),
        help: Some("a Secret's `stringData` and a ConfigMap's `data` take plain text"),
    })
}

const IN_QUOTES: &str = "put it in quotes";

/// Serializes a node as compact JSON with sorted keys, without the nulls that have no meaning.
pub(crate) struct Compact<'a>(pub(crate) &'a Node, pub(crate) Content);

impl Serialize for Compact<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(node, content) = self;
        match &node.value {
            Yaml::Scalar(Value::Null) if *content == Content::Text => serializer.serialize_str(""),
            Yaml::Scalar(value) => value.serialize(serializer),
            Yaml::Rewritten(number) => number.value.serialize(serializer),
            Yaml::Seq(items) => {
                serializer.collect_seq(items.iter().map(|item| Self(item, *content)))
            }
            Yaml::Map(entries) => {
                let there = |key: &str, node: &Node| !node.is_null() || content.keeps_null(key);
                let there = entries.iter().filter(|(key, _, node)| there(key, node));
                let mut sorted: Vec<_> = there.collect();
                sorted.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
                let compact = |node, key: &str| Compact(node, content.below(key));
                serializer.collect_map(
                    sorted
                        .into_iter()
                        .map(|(key, _, node)| (key, compact(node, key))),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
