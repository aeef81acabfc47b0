//! Fuzz targets for data from API servers. Other controllers, people and webhooks can write this data.

use muster_model::{
    bundle::{Gvk, ObjectRef},
    expression,
    health::Health,
    policy::{Conflicts, Drift, HealthCase, HealthRule},
};
use muster_plan::{
    drift::Difference,
    health::{Rules, assess},
    ignore::{ignored, settle},
    immutable::{Cause, loss, unchangeable},
    ownership::{explain, judge, leave_version},
    people::{Rest, added, last_tool, take_over},
    unions::clear,
};
use serde_json::Value;

use crate::parts;

/// Compiles a health rule and assesses an object with it. The input has three parts: an expression, its message and the
/// object.
pub(crate) fn expressions(data: &[u8]) {
    let Some(parts) = parts(data) else { return };
    let [when, message, object] = parts.as_slice() else {
        return;
    };
    let _ = expression::check(when, expression::OBJECT);
    let Ok(mut object) = serde_json::from_str::<Value>(object) else {
        return;
    };
    if !object.is_object() {
        return;
    }
    object["apiVersion"] = "example.org/v1".into();
    object["kind"] = "Thing".into();
    let rule = HealthRule {
        group: "example.org".to_owned(),
        kind: "Thing".to_owned(),
        cases: vec![HealthCase {
            when: (*when).to_owned(),
            health: Health::Degraded,
            message: Some((*message).to_owned()),
        }],
    };
    if let Ok(rules) = Rules::compile(&[rule]) {
        let _ = rules.assess(&object);
    }
}

/// Runs the code that decides about a live object. The input has up to three parts: the live object, the desired
/// object, and the causes that the API server gives for a rejection.
pub(crate) fn objects(data: &[u8]) {
    let Some(parts) = parts(data) else { return };
    let read = |at: usize| serde_json::from_str::<Value>(parts.get(at).copied().unwrap_or("{}"));
    let (Ok(live), Ok(desired)) = (read(0), read(1)) else {
        return;
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = live["metadata"]["namespace"].as_str();
    let id = ObjectRef {
        gvk: Gvk::from_api_version(&text(&live["apiVersion"]), &text(&live["kind"])),
        namespace: namespace.map(str::to_owned),
        name: text(&live["metadata"]["name"]),
    };
    let _ = assess(&live);
    let pointers = ignored(&id, &[], true);
    let mut settled = desired.clone();
    settle(&mut settled, &live, &pointers);
    let _ = Difference::between(&id, &live, &desired);
    let _ = added(&id, &live, &pointers);
    let _ = last_tool(&live);
    for rest in [Rest::Adopt, Rest::Leave, Rest::Take] {
        let _ = take_over(&id, &live, &pointers, rest);
    }
    let _ = leave_version(&live, "v1beta1", "v1");
    let _ = loss(&id, &live);
    let said = parts.get(2).copied().unwrap_or_default();
    let causes: Vec<Cause<'_>> = said
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(field, message)| Cause { message, field })
        .collect();
    let _ = unchangeable(&causes);
    let _ = clear(&desired, &live, &causes, &pointers);
    let verdict = judge(&live, Vec::new(), Conflicts::Fail, Drift::Correct, true);
    let _ = (verdict, explain(&[]));
}
