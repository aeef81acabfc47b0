//! Tests that a renderer with caches has the same results as a new one after any sequence of edits. The hub's speed
//! depends on these caches.

use std::{collections::BTreeMap, sync::Arc};

use muster_model::{
    bundle::{Bundle, BundleHeader},
    health::Health,
    ids::{AppName, ClusterName, Role},
    policy::{Conflicts, Drift, HealthCase, HealthRule, IgnoreRule, Policy},
};
use muster_render::{Rendered, Renderer};
use proptest::{prelude::*, sample::select};
use serde_json::{Map, Value, json};

use crate::Fleet;

/// Values with few different keys, so that layers overlap.
fn values() -> impl Strategy<Value = Map<String, Value>> {
    let leaf = prop_oneof![
        2 => (0..3_i32).prop_map(Value::from),
        2 => select(vec!["a", "b", "text"]).prop_map(Value::from),
        1 => Just(json!(null)),
        1 => Just(json!(false)),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => Just(json!([1, {"a": 1, "b": null}, "a"])),
    ];
    let tree = leaf.prop_recursive(3, 16, 3, |inner| {
        proptest::collection::btree_map("[abc]", inner, 0..3)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    proptest::collection::btree_map("[abc]", tree, 0..3).prop_map(|map| map.into_iter().collect())
}

/// An expression that reads a value.
fn place() -> impl Strategy<Value = String> {
    let below = || proptest::collection::vec("[abc]", 1..4);
    // Most expressions do not fail if a part of the path is missing.
    let careful = |path: Vec<String>| {
        let (last, parents) = path.split_last().unwrap();
        let step = |map: String, part: &String| format!("({map}.{part} | default({{}}))");
        let map = parents.iter().fold("values".to_owned(), step);
        format!("{map}.{last}")
    };
    prop_oneof![
        12 => below().prop_map(careful),
        1 => below().prop_map(|path| format!("values.{}", path.join("."))),
        1 => Just("values".to_owned()),
        1 => select(vec!["app.role", "app", "region.name", "cluster.labels", "cluster.labels.a", "epoch", "values[values.a]"]).prop_map(str::to_owned),
    ]
}

/// A piece of a template that writes lines `KEY: VALUE`. `KEY` is replaced to make the keys unique.
fn piece() -> impl Strategy<Value = String> {
    let expression = (place(), place(), 0..20_usize).prop_map(|(a, b, form)| match form {
        0 => format!("({a}) is defined"),
        1 => format!("({a} if {a} is iterable else []) | length"),
        2 => format!("'a' in ({a} if {a} is iterable else {{}})"),
        3 => format!("({a} | default(1)) == ({b} | default(1))"),
        4 => format!("({a} | default({{}})) == ({b} | default({{}}))"),
        5 => format!("{a} | default({{}}) is mapping"),
        6 => format!("({a} if {a} is iterable else []) | list"),
        7 => format!("({a} if {a} is mapping else {{}}) | dictsort"),
        8 => format!("{a} | default(0) | pprint"),
        9 => format!("{a} | default(0) | toyaml"),
        10 => format!("{a} | default(0) | string"),
        11 => format!("dict({a} | default({{}}), z=1)"),
        12 => format!("m.twice({a} | default(1))"),
        13 => "m.look(values)".to_owned(),
        14 => format!("'x' if {a} | default(0) else 'y'"),
        15 => format!(
            "(({a} if {a} is iterable else []) | list) + (({b} if {b} is iterable else []) | list)"
        ),
        16 => format!("({a} if {a} is mapping else {{}}) | items | list"),
        17 => a,
        _ => format!("{a} | default('none')"),
    });
    prop_oneof![
        6 => expression.prop_map(|e| format!("  KEY: {{{{ ({e}) | tojson }}}}\n")),
        1 => place().prop_map(|p| format!("{{% for x in ({p} if {p} is iterable else []) %}}\n  KEY-{{{{ loop.index }}}}: {{{{ x | tojson }}}}\n{{% endfor %}}\n")),
        1 => place().prop_map(|p| format!("{{% for k, v in ({p} if {p} is mapping else {{}}) | items %}}\n  KEY-{{{{ k }}}}: {{{{ v | tojson }}}}\n{{% endfor %}}\n")),
        1 => (place(), place()).prop_map(|(p, q)| format!("{{% if ({p}) is defined and {p} %}}\n  KEY: {{{{ {q} | default(2) | tojson }}}}\n{{% endif %}}\n")),
        1 => place().prop_map(|p| format!("{{% set v = {p} | default({{}}) %}}\n  KEY: {{{{ (v.a is defined) | tojson }}}}\n")),
        1 => Just(INCLUDE.to_owned()),
    ]
}

const INCLUDE: &str = "{% include 'apps/APP/templates/_part.yaml' %}\n";

fn pieces(prefix: &'static str) -> impl Strategy<Value = String> {
    proptest::collection::vec(piece(), 1..5).prop_map(move |pieces| {
        let keyed = pieces.iter().enumerate();
        keyed
            .map(|(i, piece)| piece.replace("KEY", &format!("{prefix}{i}")))
            // A partial that is included twice would write its keys twice.
            .scan(false, |included, piece| {
                let again = std::mem::replace(included, *included || piece == INCLUDE);
                Some(if again && piece == INCLUDE {
                    String::new()
                } else {
                    piece
                })
            })
            .collect()
    })
}

fn template() -> impl Strategy<Value = String> {
    pieces("k").prop_map(|pieces| {
        format!(
            "{{% import 'lib/m.j2' as m %}}\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: it}}\ndata:\n  none: \"\"\n{pieces}"
        )
    })
}

/// A partial reads values but includes nothing, because it would include itself.
fn partial() -> impl Strategy<Value = String> {
    pieces("p").prop_filter("includes itself", |text| !text.contains("include"))
}

fn library() -> impl Strategy<Value = String> {
    place().prop_map(|place| {
        format!(
            "{{% macro twice(x) %}}{{{{ x }}}}{{{{ x }}}}{{% endmacro %}}\n{{% macro look(v) %}}{{{{ {place} | default('no') }}}}{{{{ v.b | default('no') }}}}{{% endmacro %}}\n"
        )
    })
}

/// One change that a commit makes.
#[derive(Debug, Clone)]
struct Edit {
    path: String,
    /// `None` removes the file.
    text: Option<String>,
}

const CLUSTERS: [&str; 5] = [
    "eu-west/eu-west-1",
    "eu-west/eu-west-2",
    "us-east/us-east-1",
    "us-east/us-east-2",
    "us-east/us-east-3",
];

fn document(kind: &str, name: &str, spec: &Value) -> String {
    let labels = &spec["labels"];
    let labels = if labels.is_null() { &json!({}) } else { labels };
    let spec = &spec["spec"];
    format!(
        "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, labels: {labels}}}\nspec: {spec}\n"
    )
}

/// Ignore rules that match all objects, some or none.
fn ignored() -> impl Strategy<Value = Value> {
    let any = || select(vec![None, Some("ConfigMap"), Some("Secret")]);
    let name = select(vec![None, Some("one-templates-more"), Some("other")]);
    let rule = (any(), name).prop_map(|(kind, name)| {
        let mut rule = json!({"fields": ["/data/a"]});
        for (key, value) in [("kind", kind), ("name", name)] {
            if let Some(value) = value {
                rule[key] = json!(value);
            }
        }
        rule
    });
    proptest::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn edit() -> impl Strategy<Value = Edit> {
    let some = |path: String, text: String| Edit {
        path,
        text: Some(text),
    };
    let fleet = (values(), ignored()).prop_map(move |(values, ignore)| {
        let spec = json!({"spec": {"values": values, "ignore": ignore}});
        some("fleet.yaml".into(), document("Fleet", "harbour", &spec))
    });
    let health = (select(vec!["ConfigMap", "Secret"]), 0..3_u8).prop_map(move |(kind, keep)| {
        let path = format!("health/{}.yaml", kind.to_lowercase());
        if keep == 0 {
            return Edit { path, text: None };
        }
        let cases = json!([{"when": format!("object.data.a == '{keep}'"), "health": "Degraded"}]);
        let spec = json!({"spec": {"kind": kind, "cases": cases}});
        some(path, document("HealthRule", &kind.to_lowercase(), &spec))
    });
    let region = (select(vec!["eu-west", "us-east"]), values()).prop_map(move |(name, values)| {
        let location = json!({"continent": "EU", "country": "IE", "latitude": 1, "longitude": 2});
        let spec = json!({"spec": {"location": location, "values": values}});
        some(
            format!("regions/{name}/region.yaml"),
            document("Region", name, &spec),
        )
    });
    let cluster = (select(&CLUSTERS), values(), any::<bool>(), 0..8_u8).prop_map(
        move |(place, values, label, keep)| {
            let path = format!("regions/{place}.yaml");
            // The first cluster is never removed, so that every app has a cluster to run in.
            if keep == 0 && place != CLUSTERS[0] {
                return Edit { path, text: None };
            }
            let name = place.split('/').next_back().unwrap();
            let labels = if label { json!({"a": "x"}) } else { json!({}) };
            let spec = json!({"labels": labels, "spec": {"values": values}});
            some(path, document("Cluster", name, &spec))
        },
    );
    let app = (
        select(vec!["one", "two"]),
        any::<bool>(),
        ignored(),
        any::<bool>(),
    );
    let app = app.prop_map(move |(name, active, ignore, take)| {
        let mode = if active {
            "active-active"
        } else {
            "active-passive"
        };
        let mut spec = json!({"tier": "gold", "mode": mode, "ignore": ignore});
        if take {
            spec["conflicts"] = json!("take");
            spec["formerly"] = json!(format!("old-{name}"));
        }
        let spec = json!({"spec": spec});
        some(
            format!("apps/{name}/app.yaml"),
            document("App", name, &spec),
        )
    });
    let layers = vec![
        "values",
        "values/eu-west",
        "values/us-east",
        "values/eu-west-1",
    ];
    let app_values = (select(vec!["one", "two"]), select(layers), values()).prop_map(
        move |(app, layer, values)| {
            some(
                format!("apps/{app}/{layer}.yaml"),
                Value::Object(values).to_string(),
            )
        },
    );
    let templates = (
        select(vec![
            "one/templates/main",
            "one/templates/more",
            "two/templates/main",
        ]),
        template(),
    )
        .prop_map(move |(path, text)| {
            // The two templates of an app must write different objects.
            let text = text.replace("name: it", &format!("name: {}", path.replace('/', "-")));
            let text = text.replace("APP", &path[..3]);
            some(format!("apps/{path}.yaml"), text)
        });
    let partial = (select(vec!["one", "two"]), partial())
        .prop_map(move |(app, text)| some(format!("apps/{app}/templates/_part.yaml"), text));
    let library = library().prop_map(move |text| some("lib/m.j2".into(), text));
    prop_oneof![
        2 => fleet,
        1 => health,
        2 => region,
        4 => cluster,
        1 => app,
        6 => app_values,
        3 => templates,
        1 => partial,
        1 => library,
    ]
}

fn start() -> Fleet {
    let mut fleet = Fleet::new();
    let part = "  part: {{ values.a | default('none') | tojson }}\n";
    fleet.app("one", "").app("two", "");
    for app in ["one", "two"] {
        fleet.file(&format!("apps/{app}/templates/_part.yaml"), part);
    }
    fleet.file(
        "lib/m.j2",
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}\n{% macro look(v) %}{{ v.a }}{% endmacro %}\n",
    );
    fleet
}

/// The hash and text of every bundle.
type Bundles = BTreeMap<(AppName, ClusterName), (String, String)>;

/// Returns everything in a rendering that a caller can see.
fn seen(rendered: &Rendered) -> (Bundles, Vec<String>) {
    let mut bundles = BTreeMap::new();
    for (app, places) in &rendered.bundles {
        for (cluster, bundle) in places {
            let text = String::from_utf8(bundle.bytes.clone()).unwrap();
            let key = (app.clone(), cluster.clone());
            bundles.insert(key, (bundle.hash.to_string(), text));
        }
    }
    let problems = rendered.problems.iter().map(ToString::to_string).collect();
    (bundles, problems)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_renderer_that_remembers_says_what_a_new_one_says(
        templates in proptest::collection::vec(template(), 2),
        edits in proptest::collection::vec(edit(), 1..16),
    ) {
        let mut fleet = start();
        for (app, template) in ["one", "two"].into_iter().zip(&templates) {
            fleet.file(&format!("apps/{app}/templates/main.yaml"), template.replace("APP", app));
        }
        let mut remembers = Renderer::default();
        let mut earlier = Vec::new();
        fleet.render(&mut remembers);
        for Edit { path, text } in edits {
            let before = fleet.clone();
            match text {
                Some(text) => { fleet.file(&path, text); }
                None => { fleet.0.remove(&path); }
            }
            let said = seen(&fleet.render(&mut remembers));
            let new = seen(&fleet.render(&mut Renderer::default()));
            prop_assert_eq!(&said, &new);
            earlier.push((before, said));
        }
        // Renders an older commit again. The results that are cached for it must still be valid.
        if let Some((older, _)) = earlier.last() {
            let said = seen(&older.render(&mut remembers));
            prop_assert_eq!(said, seen(&older.render(&mut Renderer::default())));
        }
    }
}

#[test]
fn clusters_that_look_the_same_to_an_app_share_its_bundle() {
    let mut fleet = Fleet::new();
    let template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: it}\ndata: {size: \"{{ values.size }}\", place: {{ region.name }}}\n";
    fleet.app("one", template);
    fleet.file("apps/one/values.yaml", "size: 1\n");
    let mut renderer = Renderer::default();
    let app: AppName = "one".parse().unwrap();
    let bundles = |rendered: &Rendered| {
        let places = &rendered.bundles[&app];
        ["eu-west-1", "eu-west-2", "us-east-1"].map(|name| Arc::clone(&places[name]))
    };
    let [first, second, other] = bundles(&fleet.render(&mut renderer));
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!Arc::ptr_eq(&first, &other));
    // A value that the template does not read makes no new bundle.
    let spec = json!({"labels": {"rack": "7"}, "spec": {"values": {"colour": "blue"}}});
    fleet.file(
        "regions/eu-west/eu-west-2.yaml",
        document("Cluster", "eu-west-2", &spec),
    );
    let [first_again, second_again, _] = bundles(&fleet.render(&mut renderer));
    assert!(Arc::ptr_eq(&first, &first_again));
    assert!(Arc::ptr_eq(&first, &second_again));
}

#[test]
fn rules_change_the_bundles_that_they_concern_and_no_others() {
    let mut fleet = Fleet::new();
    let object = |kind: &str, name: &str| {
        format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n")
    };
    fleet.app("one", &object("ConfigMap", "it"));
    fleet.app("two", &object("Service", "it"));
    let mut renderer = Renderer::default();
    let header = |rendered: &Rendered, app: &str| {
        let bundle = rendered.bundles[app].values().next().unwrap();
        Bundle::decode(&bundle.bytes).unwrap().header
    };
    let rendered = fleet.render(&mut renderer);
    assert_eq!(header(&rendered, "one").policy, Policy::default());
    let two = rendered.bundles["two"].values().next().unwrap().hash;

    let of = |kind: &str| json!({"kind": kind, "fields": ["/data/a"]});
    let spec = json!({"spec": {"ignore": [of("ConfigMap"), of("Secret")]}});
    fleet.file("fleet.yaml", document("Fleet", "harbour", &spec));
    let case = json!([{"when": "true", "health": "Healthy"}]);
    let spec = json!({"spec": {"kind": "ConfigMap", "cases": case}});
    fleet.file("health/maps.yaml", document("HealthRule", "maps", &spec));
    let own = json!({"name": "it", "fields": ["/data/b"]});
    let spec = json!({"spec": {
        "tier": "gold", "mode": "active-active", "formerly": "uno", "drift": "report", "ignore": [own],
    }});
    fleet.file("apps/one/app.yaml", document("App", "one", &spec));
    let rendered = fleet.render(&mut renderer);
    let same = rendered.bundles["two"].values().next().unwrap().hash;
    assert_eq!(same, two);
    let rule = |kind: Option<&str>, name: Option<&str>, field: &str| IgnoreRule {
        kind: kind.map(str::to_owned),
        name: name.map(str::to_owned),
        fields: vec![field.to_owned()],
        ..IgnoreRule::default()
    };
    let expected = BundleHeader {
        app: "one".parse().unwrap(),
        role: Role::Active,
        namespace: "uno".to_owned(),
        after: vec![],
        formerly: Some("uno".parse().unwrap()),
        policy: Policy {
            writer: None,
            conflicts: Conflicts::Fail,
            drift: Drift::Report,
            ignore: vec![
                rule(Some("ConfigMap"), None, "/data/a"),
                rule(None, Some("it"), "/data/b"),
            ],
            health: vec![HealthRule {
                group: String::new(),
                kind: "ConfigMap".to_owned(),
                cases: vec![HealthCase {
                    when: "true".to_owned(),
                    health: Health::Healthy,
                    message: None,
                }],
            }],
        },
    };
    assert_eq!(header(&rendered, "one"), expected);
}
