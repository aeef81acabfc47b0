//! Conversions between messages and the model's types.

use muster_model::{
    fleet_record::SealedRecord,
    ids::{ContentHash, Epoch, InvalidId},
    policy::{PruneBudget, PruneOrders},
    problem::{Problem, Scope},
};

use crate::v1;

/// The error for a message with invalid content.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    /// A field has an invalid value.
    #[error("the field `{field}` can't be read")]
    Field {
        /// The name of the field.
        field: &'static str,
        /// What is wrong with the value.
        #[source]
        source: InvalidId,
    },
    /// A generation does not say what may be deleted.
    #[error("the generation does not say what may be deleted")]
    NoOrders,
    /// The prune budget's share is not a percentage.
    #[error("the generation's prune budget is not a percentage")]
    Percent,
    /// A fleet record is not text, or has no proof.
    #[error("the fleet record can't be read")]
    Record,
}

impl From<&SealedRecord> for v1::FleetRecord {
    fn from(record: &SealedRecord) -> Self {
        Self {
            epoch: record.epoch.0,
            content: record.content.clone().into_bytes(),
            proof: record.proof.to_vec(),
        }
    }
}

impl TryFrom<v1::FleetRecord> for SealedRecord {
    type Error = BadMessage;
    fn try_from(record: v1::FleetRecord) -> Result<Self, BadMessage> {
        Ok(Self {
            epoch: Epoch(record.epoch),
            content: String::from_utf8(record.content).map_err(|_| BadMessage::Record)?,
            proof: record.proof.try_into().map_err(|_| BadMessage::Record)?,
        })
    }
}

impl v1::BundleEntry {
    /// Returns the bundle's hash.
    ///
    /// # Errors
    /// Returns an error if the hash has the wrong length.
    pub fn content_hash(&self) -> Result<ContentHash, BadMessage> {
        let source = ContentHash::try_from(self.hash.as_slice());
        source.map_err(|source| BadMessage::Field {
            field: "hash",
            source,
        })
    }
}

/// Returns the hash of a generation's content: the epoch, the prune orders, and the app, role and hash of each
/// bundle in order.
#[must_use]
pub fn content_hash<'a>(
    epoch: u64,
    prune: &PruneOrders,
    bundles: impl IntoIterator<Item = (&'a str, &'a str, &'a [u8])>,
) -> ContentHash {
    let PruneOrders {
        budget,
        approved,
        unknown,
    } = prune;
    let mut bytes = epoch.to_le_bytes().to_vec();
    bytes.extend_from_slice(&budget.objects.to_le_bytes());
    bytes.push(budget.percent);
    bytes.extend_from_slice(&(approved.len() as u64).to_le_bytes());
    for set in approved {
        bytes.extend_from_slice(&set.0);
    }
    if !unknown.is_empty() {
        // No app name has this length, so this can't be mistaken for a bundle.
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        bytes.extend_from_slice(&(unknown.len() as u64).to_le_bytes());
        for app in unknown {
            bytes.extend_from_slice(&(app.as_str().len() as u64).to_le_bytes());
            bytes.extend_from_slice(app.as_str().as_bytes());
        }
    }
    for (app, role, hash) in bundles {
        for part in [app.as_bytes(), role.as_bytes(), hash] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
    }
    ContentHash::of(&bytes)
}

impl v1::Generation {
    /// Computes the hash that `content` must hold for this generation.
    ///
    /// # Errors
    /// Returns an error if the prune orders can't be read.
    pub fn computed_content(&self) -> Result<ContentHash, BadMessage> {
        let entries = self
            .bundles
            .iter()
            .map(|b| (b.app.as_str(), b.role.as_str(), b.hash.as_slice()));
        Ok(content_hash(self.epoch, &self.prune_orders()?, entries))
    }

    /// Returns the generation's prune orders.
    ///
    /// # Errors
    /// Returns an error if the generation has no prune orders or invalid ones.
    pub fn prune_orders(&self) -> Result<PruneOrders, BadMessage> {
        let orders = self.prune.as_ref().ok_or(BadMessage::NoOrders)?;
        let percent = u8::try_from(orders.percent).ok();
        let percent = percent.filter(|percent| *percent <= 100);
        let percent = percent.ok_or(BadMessage::Percent)?;
        let approved = orders.approved.iter().map(|set| {
            let set = ContentHash::try_from(set.as_slice());
            set.map_err(|source| BadMessage::Field {
                field: "approved",
                source,
            })
        });
        let unknown = orders.unknown.iter().map(|app| {
            app.parse().map_err(|source| BadMessage::Field {
                field: "unknown",
                source,
            })
        });
        Ok(PruneOrders {
            unknown: unknown.collect::<Result<_, _>>()?,
            budget: PruneBudget {
                objects: orders.objects,
                percent,
            },
            approved: approved.collect::<Result<_, _>>()?,
        })
    }
}

impl From<&PruneOrders> for v1::PruneOrders {
    fn from(orders: &PruneOrders) -> Self {
        Self {
            objects: orders.budget.objects,
            percent: orders.budget.percent.into(),
            approved: orders.approved.iter().map(|set| set.0.to_vec()).collect(),
            unknown: orders.unknown.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&Problem> for v1::RepoProblem {
    fn from(problem: &Problem) -> Self {
        let (scope, app) = match &problem.scope {
            Scope::Fleet => ("fleet", String::new()),
            Scope::App(app) => ("app", app.to_string()),
            Scope::Hint => ("hint", String::new()),
            Scope::Hub => ("hub", String::new()),
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
                "hub" => Scope::Hub,
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

#[cfg(test)]
mod tests;
