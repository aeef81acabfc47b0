//! The rules in the header of a bundle.

use std::sync::Arc;

use muster_model::{bundle::ObjectRef, kinds::AppSpec, load::Model, policy::Policy};

use super::part::Part;

/// Returns the fleet's and the app's rules for these objects. A rule that matches none of them is left out, so that it
/// does not change bundles that it does not affect.
pub(super) fn policy(model: &Model, spec: &AppSpec, parts: &[Arc<Part>]) -> Policy {
    let any = |concerns: &dyn Fn(&ObjectRef) -> bool| {
        let mut ids = parts.iter().flat_map(|part| &part.ids);
        ids.any(concerns)
    };
    let ignore = model.fleet.spec.ignore.iter().chain(&spec.ignore);
    let ignore =
        ignore.filter(|rule| any(&|id| rule.concerns(&id.gvk.group, &id.gvk.kind, &id.name)));
    let health = model.health.iter();
    let health =
        health.filter(|rule| any(&|id| id.gvk.group == rule.group && id.gvk.kind == rule.kind));
    Policy {
        conflicts: spec.conflicts,
        drift: spec.drift,
        ignore: ignore.cloned().collect(),
        health: health.cloned().collect(),
        writer: spec.writer.clone(),
    }
}
