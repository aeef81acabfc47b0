//! Tests of wrong templates: the message and the position that it names, and that other apps are still rendered.

use std::collections::BTreeMap;

use muster_model::{
    bundle::Conflict,
    ids::{ClusterName, ContentHash},
    scopes::Scopes,
};
use muster_plan::compose::{Offer, compose, problems_of};
use muster_render::{Renderer, conflicts, scopes};

use crate::Fleet;

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\n";

/// A fleet with a good app and the app with the test's template.
fn fleet(template: &str) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.app("shop", GOOD).app("wiki", template);
    fleet
}

#[test]
fn a_template_that_is_not_valid() {
    let told = fleet("apiVersion: v1\n{% if values.on %}\nkind: ConfigMap\n").told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:3:1: syntax error: unexpected end of input, expected end of block
       |
     3 | kind: ConfigMap
       | ^
    ");
    let told = fleet("name: {{ values.name | upcase }}\n{% for a b %}\n").told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:2:10: syntax error: unexpected identifier, expected in
       |
     2 | {% for a b %}
       |          ^
    ");
}

#[test]
fn a_value_that_is_not_defined() {
    let mut fleet = fleet(&format!(
        "{GOOD}data:\n  replicas: \"{{{{ values.replcas }}}}\"\n"
    ));
    fleet.file(
        "apps/wiki/values.yaml",
        "replicas: 3\nimage: {name: wiki}\n",
    );
    insta::assert_snapshot!(fleet.told(), @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:6:17: `values.replcas` is not defined
       |
     6 |   replicas: "{{ values.replcas }}"
       |                 ^
       = help: there is no `values.replcas`; did you mean `replicas`?
    "#);
    fleet.file(
        "apps/wiki/templates/main.yaml",
        format!(
            "{GOOD}data:\n  image: {{{{ values.imgae.name }}}}\n  city: {{{{ regio.city }}}}\n"
        ),
    );
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    apps/wiki/templates/main.yaml:6:13: `values.imgae.name` is not defined
       |
     6 |   image: {{ values.imgae.name }}
       |             ^
       = help: there is no `values.imgae`; did you mean `image`?
    ");
}

#[test]
fn a_value_that_is_not_defined_in_one_cluster_blocks_the_app_in_all() {
    let mut fleet = fleet(&format!(
        "{GOOD}data: {{size: \"{{{{ values.size }}}}\"}}\n"
    ));
    fleet.file("apps/wiki/values/eu-west.yaml", "size: 2\n");
    insta::assert_snapshot!(fleet.told(), @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:5:18: `values.size` is not defined, in 1 of 3 clusters: us-east-1
       |
     5 | data: {size: "{{ values.size }}"}
       |                  ^
       = help: set `values.size` in a values file, or check first that it `is defined`
    "#);
}

#[test]
fn an_unknown_filter_function_or_include() {
    let told = fleet("a: {{ values | uppr }}\n").told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:1:16: unknown filter: filter uppr is unknown
       |
     1 | a: {{ values | uppr }}
       |                ^
    ");
    let told = fleet("a: {{ now() }}\n").told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:1:7: unknown function: now is unknown
       |
     1 | a: {{ now() }}
       |       ^
       = help: templates have no clock, no randomness and no files: only values, filters and macros
    ");
    let told = fleet("{% include \"lib/pdb.j2\" %}\n").told();
    insta::assert_snapshot!(told, @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:1:4: tried to include non-existing template 'lib/pdb.j2'
       |
     1 | {% include "lib/pdb.j2" %}
       |    ^
       = help: templates can include files of lib/ and of their own app, by the path from the repository root
    "#);
    let told = fleet("{% include \"/etc/passwd\" %}\n").told();
    insta::assert_snapshot!(told, @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:1:4: tried to include non-existing template '/etc/passwd'
       |
     1 | {% include "/etc/passwd" %}
       |    ^
       = help: templates can include files of lib/ and of their own app, by the path from the repository root
    "#);
}

#[test]
fn a_mistake_deep_in_an_include() {
    let mut fleet = fleet("{% include \"apps/wiki/templates/_outer.yaml\" %}\n");
    fleet.file(
        "apps/wiki/templates/_outer.yaml",
        "# outer\n{% import \"lib/names.j2\" as names %}\n{{ names.object(values) }}\n",
    );
    fleet.file(
        "lib/names.j2",
        "{% macro object(v) %}\napiVersion: v1\nkind: {{ v.kind }}\n{% endmacro %}\n",
    );
    fleet.file("apps/wiki/values.yaml", "knid: Service\n");
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    lib/names.j2:3:10: `v.kind` is not defined
       |
     3 | kind: {{ v.kind }}
       |          ^
       = help: it was reached from apps/wiki/templates/main.yaml:1
    ");
}

#[test]
fn the_way_through_includes_is_told() {
    let mut fleet = fleet("{% include \"apps/wiki/templates/_a.yaml\" %}\n");
    let include = |name: &str| format!("#\n#\n{{% include \"{name}\" %}}\n");
    fleet.file("apps/wiki/templates/_a.yaml", include("lib/b.j2"));
    fleet.file("lib/b.j2", include("lib/c.j2"));
    fleet.file("lib/c.j2", "kind: {{ cluster.lables.rack }}\n");
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    lib/c.j2:1:10: `cluster.lables.rack` is not defined
       |
     1 | kind: {{ cluster.lables.rack }}
       |          ^
       = help: there is no `cluster.lables`; did you mean `labels`?; it was reached from apps/wiki/templates/main.yaml:1, then apps/wiki/templates/_a.yaml:3, then lib/b.j2:3
    ");
}

#[test]
fn an_endless_loop() {
    let told = fleet(
        "{% for a in range(9999) %}\n{% for b in range(9999) %}\n{% endfor %}\n{% endfor %}\n",
    )
    .told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:2:1: the template was stopped after 2000000 steps (64 bytes of text count as one)
       |
     2 | {% for b in range(9999) %}
       | ^
       = help: is there a loop that does not end, or a text that grows in one?
    ");
    let told = fleet("{% macro again() %}{{ again() }}{% endmacro %}\n{{ again() }}\n").told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:1:23: templates or macros call each other over 200 levels deep
       |
     1 | {% macro again() %}{{ again() }}{% endmacro %}
       |                       ^
       = help: does one include or call itself?
    ");
    let told = fleet("{% include \"apps/wiki/templates/main.yaml\" %}\n").told();
    insta::assert_snapshot!(told, @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:1:4: templates or macros call each other over 200 levels deep
       |
     1 | {% include "apps/wiki/templates/main.yaml" %}
       |    ^
       = help: does one include or call itself?; it was reached from apps/wiki/templates/main.yaml:1, then apps/wiki/templates/main.yaml:1, then 15 more, then apps/wiki/templates/main.yaml:1, then apps/wiki/templates/main.yaml:1
    "#);
}

#[test]
fn a_text_that_grows_without_end() {
    let told = fleet(
        "{% set t = namespace(text=\"0123456789\") %}\n{% for i in range(60) %}\n{% set t.text = t.text ~ t.text %}\n{% endfor %}\n",
    )
    .told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:3:17: the template was stopped after 2000000 steps (64 bytes of text count as one)
       |
     3 | {% set t.text = t.text ~ t.text %}
       |                 ^
       = help: is there a loop that does not end, or a text that grows in one?
    ");
    let told = fleet("data: {{ \"x\" * 90000000 }}\n").told();
    insta::assert_snapshot!(told, @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:1:27: the template was stopped after 2000000 steps (64 bytes of text count as one)
       |
     1 | data: {{ "x" * 90000000 }}
       |                           ^
       = help: is there a loop that does not end, or a text that grows in one?
    "#);
    let told = fleet("{% for i in range(90) %}\n{{ \"x\" * 300000 }}\n{% endfor %}\n").told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml: the template writes over 16 MiB
    ");
}

#[test]
fn what_is_written_is_not_yaml() {
    let mut fleet = fleet(&format!(
        "{GOOD}  labels:\n    team: {{{{ values.team }}}}\n"
    ));
    fleet.file("apps/wiki/values.yaml", "team: \"docs: and more\"\n");
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    apps/wiki/templates/main.yaml:6:14: not valid YAML, here or in a line above: mapping values are not allowed in this context (in the rendered output)
       |
     6 |     team: {{ values.team }}
       |              ^
       = help: text with special characters needs `| tojson`; line 6 of the rendered output is `team: docs: and more`
    ");
}

#[test]
fn a_document_that_is_no_object() {
    let told = fleet(&format!(
        "{GOOD}---\n- just\n- a list\n---\nhello\n---\nkind: Service\n"
    ))
    .told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:6:1: this document is not a Kubernetes object but a list (in the rendered output)
       |
     6 | - just
       | ^
       = help: each document is one object with apiVersion, kind and metadata.name; line 6 of the rendered output is `- just`

    apps/wiki/templates/main.yaml:9:1: this document is not a Kubernetes object but plain text (in the rendered output)
       |
     9 | hello
       | ^
       = help: each document is one object with apiVersion, kind and metadata.name; line 9 of the rendered output is `hello`

    apps/wiki/templates/main.yaml:11:1: this document is not a Kubernetes object: it has no `apiVersion` (in the rendered output)
        |
     11 | kind: Service
        | ^
       = help: line 11 of the rendered output is `kind: Service`
    ");
    let told = fleet("apiVersion: v1\nkind: Service\nmetadata:\n  labels: {a: b}\n---\napiVersion: batch/v1\nkind: Job\nmetadata:\n  generateName: run-\n---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: 42\n").told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:4:3: this Service has no `metadata.name` (in the rendered output)
       |
     4 |   labels: {a: b}
       |   ^
       = help: line 4 of the rendered output is `labels: {a: b}`

    apps/wiki/templates/main.yaml:9:3: this Job has no `metadata.name` (in the rendered output)
       |
     9 |   generateName: run-
       |   ^
       = help: `generateName` makes a new object at every commit; give it a name; line 9 of the rendered output is `generateName: run-`

    apps/wiki/templates/main.yaml:14:9: `metadata.name` must be non-empty text; quote it (in the rendered output)
        |
     14 |   name: 42
        |         ^
       = help: line 14 of the rendered output is `name: 42`
    ");
}

#[test]
fn an_object_that_is_too_large() {
    let told = fleet(&format!("{GOOD}data:\n  blob: {{{{ \"x\" * 1700000 }}}}\n")).told();
    insta::assert_snapshot!(told, @r"
    rendered: shop

    apps/wiki/templates/main.yaml:1:1: this ConfigMap has 1.6 MiB; a cluster accepts objects of up to 1.5 MiB (in the rendered output)
       |
     1 | apiVersion: v1
       | ^
       = help: split it, or keep large content elsewhere; line 1 of the rendered output is `apiVersion: v1`
    ");
}

#[test]
fn one_object_twice_in_an_app() {
    let mut fleet = fleet(GOOD);
    fleet.file("apps/wiki/manifests/settings.yaml", GOOD);
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    apps/wiki/templates/main.yaml: ConfigMap settings is in apps/wiki/manifests/settings.yaml too
       = help: an app can contain an object only once; remove one
    ");
    fleet.file(
        "apps/wiki/manifests/settings.yaml",
        format!("{GOOD}  namespace: wiki\n"),
    );
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    apps/wiki/templates/main.yaml: ConfigMap settings is in apps/wiki/manifests/settings.yaml too
       = help: an app can contain an object only once; remove one
    ");
}

#[test]
fn a_manifest_is_no_template() {
    let mut fleet = fleet(GOOD);
    fleet.file(
        "apps/wiki/manifests/service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {{ app.name }}\n",
    );
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    apps/wiki/manifests/service.yaml:4:10: a map or list can't be a key; `{{ }}` works only in templates; elsewhere it is a map inside a map
       |
     4 |   name: {{ app.name }}
       |          ^
    ");
}

#[test]
fn several_mistakes_in_several_files() {
    let mut fleet = fleet("a: {{ values.nothing }}\n");
    fleet.file("apps/wiki/templates/other.yaml", "- 1\n---\n- 2\n");
    fleet.file(
        "apps/wiki/templates/third.yaml",
        "{{ fail(\"set values.domain first\") }}\n",
    );
    insta::assert_snapshot!(fleet.told(), @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:1:7: `values.nothing` is not defined
       |
     1 | a: {{ values.nothing }}
       |       ^
       = help: set `values.nothing` in a values file, or check first that it `is defined`

    apps/wiki/templates/other.yaml:1:1: this document is not a Kubernetes object but a list (in the rendered output)
       |
     1 | - 1
       | ^
       = help: each document is one object with apiVersion, kind and metadata.name; line 1 of the rendered output is `- 1`

    apps/wiki/templates/other.yaml:3:1: this document is not a Kubernetes object but a list (in the rendered output)
       |
     3 | - 2
       | ^
       = help: each document is one object with apiVersion, kind and metadata.name; line 3 of the rendered output is `- 2`

    apps/wiki/templates/third.yaml:1:4: set values.domain first
       |
     1 | {{ fail("set values.domain first") }}
       |    ^
    "#);
}

#[test]
fn two_apps_with_one_object() {
    let shared = format!("{GOOD}  namespace: shared\n");
    let mut fleet = Fleet::new();
    fleet.app("shop", &shared).app("wiki", &shared);
    let rendered = fleet.render(&mut Renderer::default());
    let cluster: ClusterName = "eu-west-1".parse().unwrap();
    let offers = |last: Option<&str>| {
        let offers = rendered.bundles.iter().map(|(app, places)| {
            let bundle = &places[&cluster];
            let last = (Some(app.as_str()) == last).then(|| bundle.hash);
            (
                app.clone(),
                Offer {
                    new: Some(bundle.hash),
                    last,
                },
            )
        });
        offers.collect()
    };
    let scopes = Scopes::default();
    let find = |chosen: &BTreeMap<_, _>| {
        let bundles = chosen.keys().map(|app| &rendered.bundles[app][&cluster]);
        conflicts(bundles, &scopes)
    };
    let holds = |hash: &ContentHash, conflict: &Conflict| {
        let mut all = rendered.bundles.values().map(|places| &places[&cluster]);
        all.any(|bundle| bundle.hash == *hash && bundle.holds(conflict, &scopes))
    };
    let composed = compose(&offers(Some("wiki")), find, holds);
    let chosen: Vec<&str> = composed.chosen.keys().map(|app| app.as_str()).collect();
    assert_eq!(chosen, ["wiki"]);
    let both_new = compose(&offers(None), find, holds);
    assert!(both_new.chosen.is_empty());
    let told = |conflicts: &[Conflict], clusters: &[&str]| {
        let clusters = clusters.iter().map(|name| name.parse().unwrap());
        let met = clusters
            .map(|cluster| (cluster, conflicts.to_vec()))
            .collect();
        let problems = problems_of(&met);
        problems
            .iter()
            .map(|problem| format!("\n\n{problem}"))
            .collect::<String>()
    };
    insta::assert_snapshot!(told(&composed.conflicts, &["eu-west-1"]), @r"
    apps/shop/templates/main.yaml: ConfigMap shared/settings belongs to app `wiki`, in apps/wiki/templates/main.yaml; cluster eu-west-1 already has it from that app
       = help: an object belongs to one app; remove it here, or from `wiki` in the same commit
    ");
    insta::assert_snapshot!(told(&both_new.conflicts[..1], &["a", "b", "c", "d"]), @r"
    apps/shop/templates/main.yaml: ConfigMap shared/settings is also in app `wiki`, in apps/wiki/templates/main.yaml; 4 clusters (a, b, c, …) would get it from both
       = help: an object belongs to one app; remove it from the other

    apps/wiki/templates/main.yaml: ConfigMap shared/settings is also in app `shop`, in apps/shop/templates/main.yaml; 4 clusters (a, b, c, …) would get it from both
       = help: an object belongs to one app; remove it from the other
    ");
    insta::assert_snapshot!(told(&both_new.conflicts, &["eu-west-1"]), @r"
    apps/shop/templates/main.yaml: ConfigMap shared/settings is also in app `wiki`, in apps/wiki/templates/main.yaml; cluster eu-west-1 would get it from both
       = help: an object belongs to one app; remove it from the other

    apps/wiki/templates/main.yaml: ConfigMap shared/settings is also in app `shop`, in apps/shop/templates/main.yaml; cluster eu-west-1 would get it from both
       = help: an object belongs to one app; remove it from the other
    ");
}

#[test]
fn a_number_that_would_be_printed_otherwise() {
    let template = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: wiki}
data:
  tag: \"app:{{ 1.10 }}\"
  calculated: \"{{ 0x10 * 2 }}\"
{% set tag = 1e3 %}
{% set huge = 18446744073709551616 %}
";
    insta::assert_snapshot!(fleet(template).told(), @r#"
    rendered: shop

    apps/wiki/templates/main.yaml:5:16: `1.10` is a number that is printed as `1.1`
       |
     5 |   tag: "app:{{ 1.10 }}"
       |                ^
       = help: put it in quotes if it is text, or write it exactly as it should be printed

    apps/wiki/templates/main.yaml:7:14: `1e3` is a number that is printed as `1000.0`
       |
     7 | {% set tag = 1e3 %}
       |              ^
       = help: put it in quotes if it is text, or write it exactly as it should be printed

    apps/wiki/templates/main.yaml:8:15: `18446744073709551616` is a number that is out of range
       |
     8 | {% set huge = 18446744073709551616 %}
       |               ^
       = help: put it in quotes
    "#);
}

/// Returns the last object of the wiki in one cluster. Checks that the fleet has no problems.
fn written(fleet: &Fleet) -> serde_json::Value {
    let rendered = fleet.render(&mut Renderer::default());
    assert_eq!(rendered.problems, []);
    let wiki = &rendered.bundles["wiki"];
    let bundle = wiki.values().next().unwrap();
    let text = String::from_utf8(bundle.bytes.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn numbers_are_printed_as_they_are_written() {
    let template = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: wiki}
data:
  alone: \"{{ values.a }} {{ values.b }} {{ values.c }} {{ values.d }} {{ 1.50 * 2 }}\"
  joined: \"{{ [values.a, values.b] | join('-') ~ values.c }}\"
  json: {{ values | tojson | tojson }}
  yaml: {{ values | toyaml | tojson }}
  keys: \"{% for key, value in values.keys | items %}{{ key }}={{ value }} {% endfor %}\"
  place: \"{{ region.latitude }} {{ region.longitude }}\"
";
    let mut fleet = fleet(template);
    let place = "{location: {continent: EU, country: IE, latitude: 53, longitude: -6.3}}";
    fleet.file(
        "regions/eu-west/region.yaml",
        format!(
            "apiVersion: muster.dev/v1alpha1\nkind: Region\nmetadata: {{name: eu-west}}\nspec: {place}\n"
        ),
    );
    fleet.file(
        "apps/wiki/values.yaml",
        "a: 1.5\nb: 18446744073709551615\nc: -9223372036854775808\nd: 1.0\nkeys: {1.10: 1, 0123: 2.25, 1e3: \"1e3\"}\n",
    );
    let object = written(&fleet);
    insta::assert_snapshot!(serde_json::to_string_pretty(&object["data"]).unwrap(), @r#"
    {
      "alone": "1.5 18446744073709551615 -9223372036854775808 1.0 3.0",
      "joined": "1.5-18446744073709551615-9223372036854775808",
      "json": "{\"a\": 1.5, \"b\": 18446744073709551615, \"c\": -9223372036854775808, \"d\": 1.0, \"keys\": {\"0123\": 2.25, \"1.10\": 1, \"1e3\": \"1e3\"}}",
      "keys": "0123=2.25 1.10=1 1e3=1e3 ",
      "place": "53 -6.3",
      "yaml": "a: 1.5\nb: 18446744073709551615\nc: -9223372036854775808\nd: 1.0\nkeys:\n  \"0123\": 2.25\n  \"1.10\": 1\n  \"1e3\": \"1e3\""
    }
    "#);
}

/// YAML reads a printed value as the same value.
#[test]
fn values_that_are_not_text_are_printed_as_yaml() {
    let template = "\
apiVersion: a.example/v1
kind: Own
metadata: {name: wiki}
spec:
  on: {{ values.on }}
  shown: \"{{ values.on }} {{ not values.on }} {{ values.list[1] }} {{ none }}\"
  none: {{ values.list[1] }}
  text: {{ values.on | string | tojson }}
  list: {{ values.list }}
  map: {{ values.map }}
  made: {{ [true, none, 'None', 1.5] }}
";
    let mut fleet = fleet(template);
    fleet.file(
        "apps/wiki/values.yaml",
        "on: true\nlist: [false, null, \"True\", \"a: b\"]\nmap: {a: false, b: [\"\\\"\", 2.0]}\n",
    );
    let object = written(&fleet);
    assert_eq!(
        object["spec"],
        serde_json::json!({
            "on": true,
            "shown": "true false null null",
            "none": null,
            "text": "true",
            "list": [false, null, "True", "a: b"],
            "map": {"a": false, "b": ["\"", 2.0]},
            "made": [true, null, "None", 1.5],
        })
    );
}

#[test]
fn no_app_may_contain_the_agents_own_records() {
    let template = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: fine, namespace: muster-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: \"muster-inventory-{{ 1 + 2 }}\", namespace: muster-system}
";
    let mut fleet = fleet(template);
    fleet.file(
        "apps/shop/manifests/identity.json",
        r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "muster-agent-identity", "namespace": "muster-system"}}"#,
    );
    insta::assert_snapshot!(fleet.told(), @r#"
    rendered: 

    apps/shop/manifests/identity.json:1:1: Secret muster-system/muster-agent-identity is one of the agent's own records
       |
     1 | {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "muster-agent-identity", "namespace": "muster-system"}}
       | ^
       = help: apps can't contain it; the agent creates it itself

    apps/wiki/templates/main.yaml:5:1: ConfigMap muster-system/muster-inventory-3 is one of the agent's own records (in the rendered output)
       |
     5 | apiVersion: v1
       | ^
       = help: apps can't contain it; the agent creates it itself; line 5 of the rendered output is `apiVersion: v1`
    "#);
}

#[test]
fn a_printed_value_is_bounded() {
    // Ten levels, each a list of ten references to the level below.
    let mut template = "\
apiVersion: a.example/v1
kind: Own
metadata: {name: wiki}
{% set v0 = ['x'] %}
"
    .to_owned();
    for level in 1..=10 {
        let below = vec![format!("v{}", level - 1); 10].join(", ");
        template.push_str(&format!("{{% set v{level} = [{below}] %}}\n"));
    }
    template.push_str("spec: {{ v10 }}\n");
    let told = fleet(&template).told();
    assert!(
        told.contains("apps/wiki/templates/main.yaml:15:10"),
        "{told}"
    );
    assert!(told.contains("a value of over 16 MiB is printed"), "{told}");
}

#[test]
fn text_of_a_value_that_becomes_a_number() {
    let template = "\
{% from 'lib/volume' import volume %}
apiVersion: a.example/v1
kind: Own
metadata: {name: wiki}
spec:
  tag: {{ values.tag }}
  quoted: \"{{ values.tag }}\"
  json: {{ values.tag | tojson }}
  port: {{ values.port }}
  ratio: {{ values.port / 3200 }}
  {{ volume() }}
";
    let mut fleet = fleet(template);
    fleet.file("lib/volume", "{% macro volume() %}mode: 0644{% endmacro %}");
    fleet.file("apps/wiki/values.yaml", "tag: \"1.10\"\nport: 8080\n");
    insta::assert_snapshot!(fleet.told(), @r"
    rendered: shop

    apps/wiki/templates/main.yaml:6:11: `1.10` becomes the number 1.1 here (in the rendered output)
       |
     6 |   tag: {{ values.tag }}
       |           ^
       = help: put it in quotes if it is text; line 5 of the rendered output is `tag: 1.10`
    ");
}

/// All clashes are reported together, including those of cluster-scoped kinds, whether built in or defined in the
/// repository.
#[test]
fn every_clash_is_found_at_once() {
    let object = |api: &str, kind: &str, name: &str, namespace: &str| {
        format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n---\n"
        )
    };
    let definition = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
        metadata: {name: olds.bugs.example}\n\
        spec: {group: bugs.example, scope: Cluster, names: {kind: Old, plural: olds}}\n";
    let shared = |namespace: &str| {
        [
            ("storage.k8s.io/v1", "VolumeAttributesClass", "fast"),
            ("networking.k8s.io/v1", "ServiceCIDR", "more"),
            ("bugs.example/v1", "Old", "one"),
            ("bugs.example/v1", "New", "one"),
            ("rbac.authorization.k8s.io/v1", "ClusterRole", "reader"),
            ("rbac.authorization.k8s.io/v1", "Role", "reader"),
        ]
        .map(|(api, kind, name)| object(api, kind, name, namespace))
        .concat()
    };
    let mut fleet = Fleet::new();
    fleet
        .app("defs", definition)
        .app("one", &shared("one"))
        .app("two", &shared("two"));
    let rendered = fleet.render(&mut Renderer::default());
    let scopes = scopes(rendered.bundles.values().flat_map(BTreeMap::values));
    let cluster: ClusterName = "eu-west-1".parse().unwrap();
    let bundles = rendered.bundles.values().map(|places| &places[&cluster]);
    let found: Vec<String> = conflicts(bundles, &scopes)
        .into_iter()
        .map(|conflict| conflict.object)
        .collect();
    assert_eq!(
        found,
        [
            "VolumeAttributesClass.storage.k8s.io two/fast",
            "ServiceCIDR.networking.k8s.io two/more",
            "Old.bugs.example two/one",
            "ClusterRole.rbac.authorization.k8s.io two/reader",
        ]
    );
}
