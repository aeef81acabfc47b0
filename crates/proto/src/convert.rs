//! Between messages and the model's types.

use muster_model::{
    ids::{ContentHash, InvalidId},
    problem::{Problem, Scope},
};

use crate::v1;

/// A message that says something impossible.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    /// A field that is not what it should be.
    #[error("the field `{field}` can't be read")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        #[source]
        source: InvalidId,
    },
}

impl v1::BundleEntry {
    /// The bundle's hash.
    ///
    /// # Errors
    /// Where it has another length.
    pub fn content_hash(&self) -> Result<ContentHash, BadMessage> {
        let source = ContentHash::try_from(self.hash.as_slice());
        source.map_err(|source| BadMessage::Field {
            field: "hash",
            source,
        })
    }
}

/// The hash of a generation's list of bundles: of each in order its app, role and hash, and of the
/// epoch, which is part of what a cluster is told.
#[must_use]
pub fn content_hash<'a>(
    epoch: u64,
    bundles: impl IntoIterator<Item = (&'a str, &'a str, &'a [u8])>,
) -> ContentHash {
    let mut bytes = epoch.to_le_bytes().to_vec();
    for (app, role, hash) in bundles {
        for part in [app.as_bytes(), role.as_bytes(), hash] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
    }
    ContentHash::of(&bytes)
}

impl v1::Generation {
    /// What `content` must be for this list.
    #[must_use]
    pub fn computed_content(&self) -> ContentHash {
        let entries = self
            .bundles
            .iter()
            .map(|b| (b.app.as_str(), b.role.as_str(), b.hash.as_slice()));
        content_hash(self.epoch, entries)
    }
}

impl From<&Problem> for v1::RepoProblem {
    fn from(problem: &Problem) -> Self {
        let (scope, app) = match &problem.scope {
            Scope::Fleet => ("fleet", String::new()),
            Scope::App(app) => ("app", app.to_string()),
            Scope::Hint => ("hint", String::new()),
        };
        Self {
            scope: scope.to_owned(),
            app,
            file: problem.file.clone(),
            line: problem.at.map_or(0, |at| at.line),
            column: problem.at.map_or(0, |at| at.col),
            message: problem.message.clone(),
            source: problem.line.clone().unwrap_or_default(),
            help: problem.help.clone().unwrap_or_default(),
        }
    }
}

impl From<&v1::RepoProblem> for Problem {
    fn from(problem: &v1::RepoProblem) -> Self {
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        Self {
            scope: match problem.scope.as_str() {
                "hint" => Scope::Hint,
                _ => problem.app.parse().map_or(Scope::Fleet, Scope::App),
            },
            file: problem.file.clone(),
            at: (problem.line > 0).then_some(muster_model::yaml::Pos {
                line: problem.line,
                col: problem.column,
            }),
            message: problem.message.clone(),
            line: some(&problem.source),
            help: some(&problem.help),
        }
    }
}
