use muster_model::writer_rule::{ObjectPointer, StoppedRule};
use serde_json::json;

use super::*;

fn rule(when: &str, carry: &[(&str, &str)]) -> WriterRule {
    let pointer = ObjectPointer {
        api_version: "apps/v1".to_owned(),
        kind: "StatefulSet".to_owned(),
        namespace: None,
        name: "db".to_owned(),
    };
    let text = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    WriterRule {
        stopped: StoppedRule {
            objects: BTreeMap::from([("db".to_owned(), pointer)]),
            when: when.to_owned(),
        },
        carry: carry.iter().map(text).collect(),
    }
}

fn judge(when: &str, carry: &[(&str, &str)], object: Option<Value>) -> Verdict {
    let rule = Rule::compile(&rule(when, carry)).unwrap();
    let objects = object.map(|object| ("db".to_owned(), object));
    rule.judge(&objects.into_iter().collect())
}

fn database(replicas: u32) -> Value {
    json!({
        "metadata": {"uid": "u-1", "generation": 4},
        "status": {"replicas": replicas, "observedGeneration": 4, "token": "dG9rZW4=", "lag": 0.5},
    })
}

const EMPTY: &str = "objects.db.status.replicas == 0";

#[test]
fn an_app_has_stopped_if_its_rule_is_true() {
    let carry = [
        ("token", "objects.db.status.token"),
        ("left", "objects.db.status.replicas"),
        ("none", "objects.db.status.replicas == 0"),
    ];
    let verdict = judge(EMPTY, &carry, Some(database(0)));
    assert!(verdict.stopped, "{}", verdict.why);
    assert_eq!(verdict.uids["db"], "u-1");
    assert_eq!(verdict.carried["token"], "dG9rZW4=");
    assert_eq!(verdict.carried["left"], "0");
    assert_eq!(verdict.carried["none"], "true");
}

#[test]
fn anything_else_counts_as_not_stopped_and_says_why() {
    let why = |when: &str, carry: &[(&str, &str)], object: Option<Value>| {
        let verdict = judge(when, carry, object);
        assert!(!verdict.stopped && verdict.carried.is_empty());
        verdict.why
    };
    insta::assert_snapshot!(why(EMPTY, &[], None), @"`objects.db` does not exist");
    insta::assert_snapshot!(why(EMPTY, &[], Some(database(1))), @"`when` is false");
    let mut unseen = database(0);
    unseen["metadata"]["generation"] = json!(5);
    insta::assert_snapshot!(why(EMPTY, &[], Some(unseen)), @"the controller of `objects.db` has not seen its newest generation yet");
    let mut leaving = database(0);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    insta::assert_snapshot!(why(EMPTY, &[], Some(leaving)), @"`objects.db` is being deleted");
    insta::assert_snapshot!(why("objects.db.status.replicas", &[], Some(database(0))), @"the result of `when` is not true or false");
    insta::assert_snapshot!(why("objects.db.status.nothing == 0", &[], Some(database(0))), @"`when` can't be evaluated: No such key: nothing");
    insta::assert_snapshot!(why(EMPTY, &[("lag", "objects.db.status.lag")], Some(database(0))), @"`carry.lag` is not a text, number or boolean");
    let mut hostile = database(0);
    hostile["status"]["token"] = json!("a\nkind: Secret");
    insta::assert_snapshot!(why(EMPTY, &[("token", "objects.db.status.token")], Some(hostile)), @"`carry.token` must have 1 to 4096 letters, digits and `+/=_.:-`, but none of `_.:-` at an end");
    // A rule that is true of a running writer is not told from a proof, even if something can't be carried over.
    let missing = judge(
        EMPTY,
        &[("none", "objects.db.status.none")],
        Some(database(0)),
    );
    assert!(!missing.is_evaluated, "{}", missing.why);
    assert!(judge(EMPTY, &[], Some(database(1))).is_evaluated);
    assert!(!judge(EMPTY, &[], None).is_evaluated);
    assert!(is_carried("0/3000060") && is_carried("dG9rZW4="));
    assert!(!is_carried("") && !is_carried("a:") && !is_carried("--"));
    let long = json!({"metadata": {}, "list": vec![0; 5000]});
    let loops = "objects.db.list.all(x, objects.db.list.exists(y, x == y))";
    insta::assert_snapshot!(why(loops, &[], Some(long)), @"evaluating the rule would take too many steps");
}

#[test]
fn a_changed_rule_has_another_hash() {
    let hash = |when: &str| Rule::compile(&rule(when, &[])).unwrap().hash;
    assert_ne!(hash(EMPTY), hash("true"));
}
