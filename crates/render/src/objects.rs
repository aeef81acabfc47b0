//! Reads rendered YAML into Kubernetes objects, and reports what is wrong with each object and where.

use muster_model::{
    agent_records,
    bundle::{Gvk, Object, ObjectRef},
    yaml::{self, Node, Pos, Yaml},
};

use crate::typed::{Compact, Content, Family, Findings};

/// The largest object that etcd accepts with its default limit, in bytes.
const MAX_OBJECT_BYTES: usize = 1_536 * 1024;

/// The reason why a document is not a valid object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoObject {
    pub(crate) at: Pos,
    pub(crate) message: String,
    pub(crate) help: Option<&'static str>,
}

/// Returns the objects of a text, each with its position. Lists are replaced by their items, and empty documents are
/// left out. `author` returns true if its argument, a number's text, occurs in a template; it is `None` if the text was
/// not written by a template. Objects without a namespace are in `namespace`.
pub(crate) fn read(
    text: &str,
    namespace: &str,
    author: Option<&dyn Fn(&str) -> bool>,
) -> Result<Vec<(Pos, Object)>, Vec<NoObject>> {
    let nodes = match author {
        Some(_) => yaml::parse_written(text),
        None => yaml::parse(text),
    };
    let nodes = nodes.map_err(|error| {
        vec![NoObject {
            at: error.at,
            message: error.message,
            help: None,
        }]
    })?;
    let mut objects = Vec::new();
    let mut findings = Findings {
        author,
        ..Findings::default()
    };
    for node in nodes.into_iter().filter(|node| !node.is_null()) {
        open(node, &mut objects, &mut findings);
    }
    let records = objects
        .iter()
        .filter(|(_, object)| is_record(object, namespace));
    findings.wrong.extend(records.map(|(at, object)| NoObject {
        at: *at,
        message: format!("{} is one of the agent's own records", object.id),
        help: Some("apps can't contain it; the agent creates it itself"),
    }));
    if findings.wrong.is_empty() {
        Ok(objects)
    } else {
        Err(findings.wrong)
    }
}

/// Returns true if the object would be a record of an agent that runs in the default namespace. An agent that runs in
/// another namespace refuses to apply its own records.
fn is_record(object: &Object, namespace: &str) -> bool {
    let id = &object.id;
    let namespace = id.namespace.as_deref().unwrap_or(namespace);
    namespace == agent_records::NAMESPACE && {
        let namespace = Some(namespace.to_owned());
        agent_records::is_record(
            &ObjectRef {
                namespace,
                ..id.clone()
            },
            agent_records::NAMESPACE,
        )
    }
}

fn open(node: Node, objects: &mut Vec<(Pos, Object)>, findings: &mut Findings<'_>) {
    let kind = node.get("kind").and_then(Node::as_str);
    // `items:` without a value is an empty list.
    let list = kind.is_some_and(|kind| kind.ends_with("List"))
        && node
            .get("items")
            .is_some_and(|items| matches!(items.value, Yaml::Seq(_)) || items.is_null())
        && node
            .get("metadata")
            .is_none_or(|metadata| metadata.get("name").is_none());
    if !list {
        match object(&node, findings) {
            Ok(object) => objects.push((node.at, object)),
            Err(error) => findings.wrong.push(error),
        }
        return;
    }
    if let Yaml::Map(entries) = node.value {
        let items = entries.into_iter().find(|(key, ..)| key == "items");
        if let Some((
            ..,
            Node {
                value: Yaml::Seq(items),
                ..
            },
        )) = items
        {
            let there = items.into_iter().filter(|item| !item.is_null());
            there.for_each(|item| open(item, objects, findings));
        }
    }
}

fn object(node: &Node, findings: &mut Findings<'_>) -> Result<Object, NoObject> {
    let fail = |at: Pos, message: String, help| Err(NoObject { at, message, help });
    if !matches!(node.value, Yaml::Map(_)) {
        let what = match node.value {
            Yaml::Seq(_) => "a list",
            _ => "plain text",
        };
        let help = Some("each document is one object with apiVersion, kind and metadata.name");
        return fail(
            node.at,
            format!("this document is not a Kubernetes object but {what}"),
            help,
        );
    }
    let field = |name: &str| match node.get(name).map(|node| (node, node.as_str())) {
        Some((_, Some(text))) if !text.is_empty() => Ok(text),
        Some((node, _)) => Err((node.at, format!("`{name}` must be non-empty text"))),
        None => Err((
            node.at,
            format!("this document is not a Kubernetes object: it has no `{name}`"),
        )),
    };
    let missing = |(at, message)| NoObject {
        at,
        message,
        help: None,
    };
    let api_version = field("apiVersion").map_err(missing)?;
    let kind = field("kind").map_err(missing)?;
    if api_version.starts_with("kustomize.config.k8s.io/") {
        let help = "commit the output of `kustomize build` as manifests/NAME.yaml instead";
        let message = format!("this {kind} is for Kustomize, which Muster does not run");
        return fail(node.at, message, Some(help));
    }
    let metadata = node.get("metadata");
    let named = |key: &str| metadata.and_then(|metadata| metadata.get(key));
    let name = match named("name") {
        Some(name) => match name.as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => {
                return fail(
                    name.at,
                    "`metadata.name` must be non-empty text; quote it".into(),
                    None,
                );
            }
        },
        None => {
            let at = metadata.map_or(node.at, |metadata| metadata.at);
            let help = named("generateName")
                .map(|_| "`generateName` makes a new object at every commit; give it a name");
            return fail(at, format!("this {kind} has no `metadata.name`"), help);
        }
    };
    let namespace = match named("namespace") {
        None => None,
        // To an API server an empty namespace is the same as none.
        Some(namespace) if namespace.is_null() => None,
        Some(namespace) => match namespace.as_str() {
            Some(text) => Some(text.to_owned()).filter(|text| !text.is_empty()),
            None => {
                return fail(
                    namespace.at,
                    "`metadata.namespace` must be text".into(),
                    None,
                );
            }
        },
    };
    let gvk = Gvk::from_api_version(api_version, kind);
    let content = Content::Object(Family::of(&gvk));
    findings.check(node, kind, content);
    let json = serde_json::to_string(&Compact(node, content)).map_err(|error| NoObject {
        at: node.at,
        message: format!("this {kind} can't be written as JSON: {error}"),
        help: None,
    })?;
    if json.len() > MAX_OBJECT_BYTES {
        let message = format!(
            "this {kind} has {:.1} MiB; a cluster accepts objects of up to 1.5 MiB",
            json.len() as f64 / 1_048_576.0
        );
        return fail(
            node.at,
            message,
            Some("split it, or keep large content elsewhere"),
        );
    }
    Ok(Object {
        id: ObjectRef {
            gvk,
            namespace,
            name,
        },
        json: json.into(),
    })
}

#[cfg(test)]
mod tests;
