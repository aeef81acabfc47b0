//! Rules of a fleet: what may be deleted, which fields other field managers may set, and how health is assessed.

use muster_model::{
    health::Health,
    policy::{Conflicts, Drift, HealthCase, HealthRule, IgnoreRule, PruneBudget},
};

use crate::{FLEET, Fleet, app};

/// Returns a document of kind HealthRule.
fn rule(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1\nkind: HealthRule\nmetadata:\n  name: {name}\nspec:\n{spec}"
    )
}

const CERTIFICATES: &str = "  group: cert-manager.io
  kind: Certificate
  cases:
    - when: has(object.spec.paused) && object.spec.paused
      health: Suspended
    - when: object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'False')
      health: Degraded
      message: \"'not ready: ' + object.status.conditions[0].message\"
";

#[test]
fn rules_are_read_as_they_are_written() {
    let mut fleet = Fleet::new();
    let more = "spec:\n  prune: {objects: 3}\n  ignore:\n    - {kind: Service, fields: [/spec/clusterIP]}\n";
    fleet.file("fleet.yaml", format!("{FLEET}{more}"));
    let more = "  conflicts: take\n  drift: report\n  ignore:\n    - group: apps\n      name: web\n      fields: [/spec/template/spec/containers/*/image, /metadata/annotations/example.com~1at]\n";
    fleet.file("apps/wiki/app.yaml", app("wiki", more));
    let service = "  kind: Service\n  cases: [{when: \"true\", health: Healthy}]\n";
    let both = format!(
        "{}---\n{}",
        rule("certificates", CERTIFICATES),
        rule("services", service)
    );
    fleet.file("health/rules.yaml", both);
    insta::assert_snapshot!(fleet.told(), @"blocked: nothing");
    let model = fleet.load().model.unwrap();
    assert_eq!(
        model.fleet.spec.prune,
        PruneBudget {
            objects: 3,
            percent: 25
        }
    );
    let any = IgnoreRule::default();
    assert_eq!(
        model.fleet.spec.ignore,
        [IgnoreRule {
            kind: Some("Service".to_owned()),
            fields: vec!["/spec/clusterIP".to_owned()],
            ..any.clone()
        }]
    );
    let spec = &model.apps["wiki"].spec;
    assert_eq!(
        (spec.conflicts, spec.drift),
        (Conflicts::Take, Drift::Report)
    );
    assert_eq!(
        spec.ignore,
        [IgnoreRule {
            group: Some("apps".to_owned()),
            name: Some("web".to_owned()),
            fields: vec![
                "/spec/template/spec/containers/*/image".to_owned(),
                "/metadata/annotations/example.com~1at".to_owned()
            ],
            ..any
        }]
    );
    let case = |when: &str, health, message: Option<&str>| HealthCase {
        when: when.to_owned(),
        health,
        message: message.map(str::to_owned),
    };
    let of = |group: &str, kind: &str, cases| HealthRule {
        group: group.to_owned(),
        kind: kind.to_owned(),
        cases,
    };
    let certificates = vec![
        case(
            "has(object.spec.paused) && object.spec.paused",
            Health::Suspended,
            None,
        ),
        case(
            "object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'False')",
            Health::Degraded,
            Some("'not ready: ' + object.status.conditions[0].message"),
        ),
    ];
    assert_eq!(
        model.health,
        [
            of("", "Service", vec![case("true", Health::Healthy, None)]),
            of("cert-manager.io", "Certificate", certificates)
        ]
    );
}

#[test]
fn fields_that_are_no_pointers() {
    let mut fleet = Fleet::new();
    let more = "spec:\n  prune: {percent: 150}\n  ignore:\n    - {kind: Service, fields: []}\n    - fields: [/metadata/name]\n";
    fleet.file("fleet.yaml", format!("{FLEET}{more}"));
    let more =
        "  conflicts: takes\n  ignore:\n    - fields: [spec/replicas, /a~b]\n    - kind: Service\n";
    fleet.file("apps/wiki/app.yaml", app("wiki", more));
    let more = "  ignore:\n    - fields: [/metadata/labels, /metadata]\n";
    fleet.file("apps/shop/app.yaml", app("shop", more));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    apps/shop/app.yaml:9:34: `/metadata` can't be ignored: it identifies the object
       |
     9 |     - fields: [/metadata/labels, /metadata]
       |                                  ^

    apps/wiki/app.yaml:8:14: `conflicts` must be one of fail, take
       |
     8 |   conflicts: takes
       |              ^
       = help: did you mean `take`?

    apps/wiki/app.yaml:10:16: `spec/replicas` is not a valid `fields`
        |
     10 |     - fields: [spec/replicas, /a~b]
        |                ^
       = help: write a JSON pointer, such as /spec/replicas; in a name, ~1 stands for / and ~0 for ~

    apps/wiki/app.yaml:10:31: `/a~b` is not a valid `fields`
        |
     10 |     - fields: [spec/replicas, /a~b]
        |                               ^
       = help: write a JSON pointer, such as /spec/replicas; in a name, ~1 stands for / and ~0 for ~

    apps/wiki/app.yaml:11:7: missing field `fields` in `ignore`
        |
     11 |     - kind: Service
        |       ^

    fleet.yaml:6:20: `percent`: 150 is greater than the maximum of 100
       |
     6 |   prune: {percent: 150}
       |                    ^

    fleet.yaml:8:31: `fields` must not be empty
       |
     8 |     - {kind: Service, fields: []}
       |                               ^
    ");
}

#[test]
fn expressions_that_are_not_valid() {
    let mut fleet = Fleet::new();
    let wrong = CERTIFICATES
        .replace("has(object.spec.paused)", "has(object)")
        .replace("c.status == 'False'", "c.status = 'False'")
        .replace("\"'not ready: ' + ", "\"not ready: ")
        .replace(
            "health: Suspended",
            "health: Suspended\n      message: 'nobody waits for it'",
        );
    fleet.file("health/certificates.yaml", rule("certificates", &wrong));
    let wrong = "  kind: Service\n  cases:\n    - when: objekt.spec.type == 'LoadBalancer'\n      health: Healthy\n    - when: |\n        object.spec.type == 'NodePort' &&\n          (object.spec.ports == []\n      health: Healthy\n";
    fleet.file("health/services.yaml", rule("services", wrong));
    insta::assert_snapshot!(fleet.told(), @r#"
    blocked: the whole commit

    health/certificates.yaml:9:13: this is not a valid CEL expression: invalid argument to has() macro at column 5 of the expression
       |
     9 |     - when: has(object) && object.spec.paused
       |             ^

    health/certificates.yaml:11:16: this is not a valid CEL expression: mismatched input 'waits' at column 8 of the expression
        |
     11 |       message: 'nobody waits for it'
        |                ^
       = help: a text in CEL needs its own quotes: message: "'text'"

    health/certificates.yaml:12:13: this is not a valid CEL expression: token recognition error at: '= ' at column 66 of the expression
        |
     12 |     - when: object.status.conditions.exists(c, c.type == 'Ready' && c.status = 'False')
        |             ^

    health/certificates.yaml:14:16: this is not a valid CEL expression: mismatched input 'ready' at column 5 of the expression
        |
     14 |       message: "not ready: object.status.conditions[0].message"
        |                ^
       = help: a text in CEL needs its own quotes: message: "'text'"

    health/services.yaml:8:13: there is no variable `objekt`; the only variable is `object`
       |
     8 |     - when: objekt.spec.type == 'LoadBalancer'
       |             ^

    health/services.yaml:11:9: this is not a valid CEL expression: missing ')' at '<EOF>' at line 3, column 1 of the expression
        |
     11 |         object.spec.type == 'NodePort' &&
        |         ^
    "#);
}

#[test]
fn a_kind_that_is_judged_twice_and_other_slips() {
    let mut fleet = Fleet::new();
    fleet.file("health/a.yaml", rule("certificates", CERTIFICATES));
    fleet.file("health/b.yaml", rule("certificates", CERTIFICATES));
    fleet.file(
        "health/c.yaml",
        rule("empty", "  kind: \"\"\n  cases: []\n"),
    );
    fleet.file(
        "health/d.yaml",
        rule(
            "words",
            "  kind: Job\n  cases: [{when: \"true\", health: Fine}, {health: Healthy}]\n",
        ),
    );
    fleet.file("health/notes.txt", "x");
    insta::assert_snapshot!(fleet.told(), @r#"
    blocked: the whole commit

    health/b.yaml:4:9: there is also a rule `certificates` in health/a.yaml
       |
     4 |   name: certificates
       |         ^

    health/b.yaml:7:9: health/a.yaml already has a rule for the health of Certificate.cert-manager.io
       |
     7 |   kind: Certificate
       |         ^
       = help: put all cases of a kind into one rule; the first case that is true decides

    health/c.yaml:6:9: `kind` must not be empty
       |
     6 |   kind: ""
       |         ^

    health/c.yaml:7:10: `cases` must not be empty
       |
     7 |   cases: []
       |          ^

    health/d.yaml:7:34: `health` must be one of Healthy, Suspended, Progressing, Missing, Degraded, Unknown
       |
     7 |   cases: [{when: "true", health: Fine}, {health: Healthy}]
       |                                  ^

    health/d.yaml:7:41: missing field `when` in `cases`
       |
     7 |   cases: [{when: "true", health: Fine}, {health: Healthy}]
       |                                         ^

    hint: health/notes.txt: this file is not read
       = help: health rules belong in health/NAME.yaml
    "#);
}

#[test]
fn a_rule_for_the_writer_is_checked_where_it_is_written() {
    let mut fleet = Fleet::new();
    let mut told = |more: &str| {
        let text = app("wiki", more).replace("active-active", "active-passive");
        fleet.file("apps/wiki/app.yaml", text);
        fleet.told()
    };
    let objects = "objects: {db: {apiVersion: apps/v1, kind: StatefulSet, name: db}}";
    let good = format!(
        "  writer:\n    stopped: {{{objects}, when: objects.db.status.replicas == 0}}\n    carry: {{lsn: objects.db.status.lsn}}\n"
    );
    insta::assert_snapshot!(told(&good), @"blocked: nothing");
    let bad = format!(
        "  writer:\n    stopped: {{{objects}, when: object.status.replicas == 0}}\n    carry: {{lsn: objects.db.status.lsn +}}\n"
    );
    insta::assert_snapshot!(told(&bad), @r#"
    blocked: app wiki

    apps/wiki/app.yaml:9:88: there is no variable `object`; the only variable is `objects`
       |
     9 |     stopped: {objects: {db: {apiVersion: apps/v1, kind: StatefulSet, name: db}}, when: object.status.replicas == 0}
       |                                                                                        ^

    apps/wiki/app.yaml:10:18: this is not a valid CEL expression: mismatched input '<EOF>' at column 24 of the expression
        |
     10 |     carry: {lsn: objects.db.status.lsn +}
        |                  ^
    "#);
    let secret = "  writer:\n    stopped: {objects: {Db: {apiVersion: v1, kind: Secret, name: db}}, when: 'true'}\n";
    insta::assert_snapshot!(told(secret), @r#"
    blocked: app wiki

    apps/wiki/app.yaml:9:25: `Db` is not a valid name
       |
     9 |     stopped: {objects: {Db: {apiVersion: v1, kind: Secret, name: db}}, when: 'true'}
       |                         ^
       = help: a name here begins with a lower-case letter and has letters, digits and '_' only
    "#);
    let secret = secret.replace("Db", "db");
    insta::assert_snapshot!(told(&secret), @r#"
    blocked: app wiki

    apps/wiki/app.yaml:9:29: `writer` can't name a Secret: what it carries over is stored in the fleet record
       |
     9 |     stopped: {objects: {db: {apiVersion: v1, kind: Secret, name: db}}, when: 'true'}
       |                             ^
    "#);
    insta::assert_snapshot!(told("  writer: {carry: {}}\n"), @r#"
    blocked: app wiki

    apps/wiki/app.yaml:8:11: missing field `stopped` in `writer`
       |
     8 |   writer: {carry: {}}
       |           ^
    "#);
    fleet.file("apps/wiki/app.yaml", app("wiki", &good));
    insta::assert_snapshot!(fleet.told(), @r#"
    blocked: app wiki

    apps/wiki/app.yaml:9:5: an active-active app has no `writer`: it writes in every cluster
       |
     9 |     stopped: {objects: {db: {apiVersion: apps/v1, kind: StatefulSet, name: db}}, when: objects.db.status.replicas == 0}
       |     ^
    "#);
}
