//! Classifies the requests to an API server by their method and URI.

use std::fmt;

use http::{Method, Uri};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Reads which kinds the API server has.
    Discover,
    /// Reads one object.
    Get,
    /// Lists objects of a kind.
    List,
    /// Watches objects for changes.
    Watch,
    /// Creates an object (POST).
    Create,
    /// Replaces an object (PUT).
    Update,
    /// Patches an object (PATCH). Server-side apply is a patch.
    Patch,
    /// Deletes one or more objects (DELETE).
    Delete,
    /// A write with `dryRun=All`.
    DryRun,
    /// Any request for Leases, which agents renew all the time.
    Lease,
    /// Any other request, such as for the version or the health of the API server.
    Other,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discover => "discover",
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DryRun => "dry run",
            Self::Lease => "lease",
            Self::Other => "other",
        })
    }
}

/// A request to an API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The kind of request.
    pub verb: Verb,
    /// The path, without the query.
    pub path: String,
    /// The resource in the plural, such as `configmaps`; empty if the path has none.
    pub resource: String,
    /// The namespace of the object, if the path has one.
    pub namespace: Option<String>,
    /// The object's name, if the path has one.
    pub name: Option<String>,
}

impl Asked {
    /// Classifies a request.
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let segments: Vec<&str> = uri.path().split('/').filter(|s| !s.is_empty()).collect();
        let (about, versioned) = match segments.as_slice() {
            ["api", _, about @ ..] | ["apis", _, _, about @ ..] => (about, true),
            ["api" | "apis", ..] => (&[][..], true),
            _ => (&[][..], false),
        };
        // The third segment may be a subresource of the namespace itself.
        let (namespace, about) = match about {
            ["namespaces", _, "status" | "finalize"] => (None, about),
            ["namespaces", namespace, about @ ..] if !about.is_empty() => (Some(*namespace), about),
            _ => (None, about),
        };
        let resource = about.first().copied().unwrap_or_default();
        let name = about.get(1).copied();
        let has = |wanted: &str| {
            let mut query = uri.query().unwrap_or_default().split('&');
            query.any(|pair| pair == wanted)
        };
        let verb = if !versioned {
            Verb::Other
        } else if resource.is_empty() {
            Verb::Discover
        } else if resource == "leases" {
            Verb::Lease
        } else if has("dryRun=All") {
            Verb::DryRun
        } else {
            match *method {
                Method::GET if has("watch=true") || has("watch=1") => Verb::Watch,
                Method::GET if name.is_none() => Verb::List,
                Method::GET => Verb::Get,
                Method::POST => Verb::Create,
                Method::PUT => Verb::Update,
                Method::PATCH => Verb::Patch,
                Method::DELETE => Verb::Delete,
                _ => Verb::Other,
            }
        };
        Self {
            verb,
            path: uri.path().to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests;
