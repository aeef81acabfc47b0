//! The roles that a move of an app's writer can give it, which are rendered with every commit.

use std::{borrow::Cow, collections::BTreeMap};

use muster_model::{
    fleet_record::{FleetRecord, Handover},
    ids::{AppName, ClusterName, Role},
    kinds::Mode,
    writer_rule::WriterRule,
};

/// One app to render for one cluster.
pub(super) struct Work<'a> {
    pub(super) app: &'a AppName,
    pub(super) cluster: &'a ClusterName,
    pub(super) role: Role,
    pub(super) carried: Cow<'a, BTreeMap<String, String>>,
    /// True if only the problems are of interest.
    pub(super) is_rehearsal: bool,
}

/// Returns the values that an app's new primary gets from the old one during a move.
pub(super) fn carried_in<'a>(
    record: &'a FleetRecord,
    app: &AppName,
) -> Option<&'a BTreeMap<String, String>> {
    match &record.writers.get(app)?.handover {
        Some(Handover::Promoting { carried, .. }) => Some(carried),
        Some(Handover::Fencing { .. } | Handover::Returning { .. }) | None => None,
    }
}

/// Returns every other role that a move can give to an app in its clusters. These renderings are checked with every
/// commit, so that a move never fails because of a template. The primary is rendered with and without carried values.
pub(super) fn rehearsals<'a>(
    app: &'a AppName,
    places: &'a BTreeMap<ClusterName, Role>,
    rule: &WriterRule,
    mode: Mode,
) -> impl Iterator<Item = Work<'a>> + use<'a> {
    let example = rule.carry.keys().map(|name| (name.clone(), "0".to_owned()));
    let example: BTreeMap<String, String> = example.collect();
    let with_values = (!example.is_empty()).then_some((Role::Primary, example));
    let standby = (mode == Mode::ActivePassive).then_some(Role::Standby);
    let roles = [Role::Primary, Role::Fenced].into_iter().chain(standby);
    let roles = roles.map(|role| (role, BTreeMap::new()));
    let cases: Vec<_> = roles.chain(with_values).collect();
    places.iter().flat_map(move |(cluster, is)| {
        let others: Vec<_> = cases
            .iter()
            .filter(|(role, carried)| role != is || !carried.is_empty())
            .map(|(role, carried)| Work {
                app,
                cluster,
                role: *role,
                carried: Cow::Owned(carried.clone()),
                is_rehearsal: true,
            })
            .collect();
        others
    })
}
