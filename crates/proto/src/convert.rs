//! Between messages and the model's types.

use muster_model::{
    ids::{ContentHash, InvalidId},
    policy::{PruneBudget, PruneOrders},
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
    /// A generation that does not say what may be deleted.
    #[error("the generation does not say what may be deleted")]
    NoOrders,
    /// A share of more than the whole.
    #[error("the generation's budget is no share in percent")]
    Percent,
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

/// The hash of what a generation says: the epoch, the orders about deleting, and of each bundle in order
/// its app, role and hash.
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
        // No name is so long, so this is no bundle.
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
    /// What `content` must be for what this generation says.
    ///
    /// # Errors
    /// Where its orders about deleting can't be read.
    pub fn computed_content(&self) -> Result<ContentHash, BadMessage> {
        let entries = self
            .bundles
            .iter()
            .map(|b| (b.app.as_str(), b.role.as_str(), b.hash.as_slice()));
        Ok(content_hash(self.epoch, &self.prune_orders()?, entries))
    }

    /// Its orders about deleting.
    ///
    /// # Errors
    /// Where there are none, or impossible ones.
    pub fn prune_orders(&self) -> Result<PruneOrders, BadMessage> {
        let orders = self.prune.as_ref().ok_or(BadMessage::NoOrders)?;
        let percent = u8::try_from(orders.percent).map_err(|_| BadMessage::Percent)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_part_of_the_content() {
        let orders = PruneOrders {
            budget: PruneBudget {
                objects: 3,
                percent: 7,
            },
            approved: [ContentHash::of(b"a"), ContentHash::of(b"b")].into(),
            unknown: ["web".parse().unwrap()].into(),
        };
        let generation = |orders: &PruneOrders| v1::Generation {
            epoch: 1,
            prune: Some(orders.into()),
            ..v1::Generation::default()
        };
        assert_eq!(generation(&orders).prune_orders().unwrap(), orders);
        let mut others = vec![orders.clone(); 6];
        others[4].unknown.clear();
        others[5].unknown.insert("api".parse().unwrap());
        others[1].approved.pop_last();
        others[2].budget.objects = 4;
        others[3].budget.percent = 8;
        let contents: std::collections::BTreeSet<_> = others
            .iter()
            .map(|orders| generation(orders).computed_content().unwrap())
            .collect();
        assert_eq!(contents.len(), 6);
        assert!(v1::Generation::default().computed_content().is_err());
        let mut odd = generation(&orders);
        odd.prune.as_mut().unwrap().approved[0].pop();
        assert!(odd.prune_orders().is_err());
    }
}
