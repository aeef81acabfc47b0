//! Documents that are valid YAML, but not a valid document for their path.

use crate::{FLEET, Fleet, TIERS, app, cluster, region};

#[test]
fn an_empty_repository() {
    let mut fleet = Fleet::new();
    fleet.0.clear();
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    fleet.yaml: there is no fleet.yaml
       = help: add a document of kind Fleet at the root of the repository
    ");
}

#[test]
fn unknown_fields_come_with_the_one_that_was_meant() {
    let mut fleet = Fleet::new();
    fleet.file(
        "apps/wiki/app.yaml",
        app("wiki", "  dependson: [shop]\n  colour: blue\n"),
    );
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/app.yaml:8:3: unknown field `dependson`
       |
     8 |   dependson: [shop]
       |   ^
       = help: did you mean `dependsOn`?

    apps/wiki/app.yaml:9:3: unknown field `colour`
       |
     9 |   colour: blue
       |   ^
       = help: use one of: conflicts, dependsOn, description, drift, formerly, ignore, mode, namespace, owner, placement, tier, writer
    ");
}

#[test]
fn a_document_of_another_kind() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/app.yaml", crate::TEMPLATE);
    fleet.file("apps/shop/app.yaml", "- a\n- b\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/app.yaml:1:1: a document of kind App must be a map
       |
     1 | - a
       | ^

    apps/wiki/app.yaml:1:13: `apiVersion` must be `muster.dev/v1alpha1` in this file
       |
     1 | apiVersion: v1
       |             ^
       = help: Kubernetes objects belong in an app's templates/ or manifests/
    ");
}

#[test]
fn missing_and_empty_documents() {
    let mut fleet = Fleet::new();
    fleet.without("apps/wiki/app.yaml");
    fleet.file("apps/shop/app.yaml", "# to be written\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/app.yaml: this file is empty; it should hold a document of kind App

    apps/wiki/app.yaml: this app has no app.yaml
       = help: add a document of kind App, or remove the folder
    ");
}

#[test]
fn missing_fields() {
    let mut fleet = Fleet::new();
    fleet.file(
        "apps/wiki/app.yaml",
        "apiVersion: muster.dev/v1alpha1\nkind: App\nmetadata:\n  labels: {}\nspec:\n  mode: active-active\n",
    );
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/app.yaml:4:3: missing field `name` in `metadata`
       |
     4 |   labels: {}
       |   ^

    apps/wiki/app.yaml:6:3: missing field `tier` in `spec`
       |
     6 |   mode: active-active
       |   ^
    ");
}

#[test]
fn values_of_the_wrong_type() {
    let mut fleet = Fleet::new();
    let bad = app("wiki", "  dependsOn: shop\n  owner: 12\n").replace("active-active", "active");
    fleet.file("apps/wiki/app.yaml", bad);
    fleet.file("apps/shop/values.yaml", "- replicas\n");
    fleet.file("tiers.yaml", TIERS.replace("15m", "soon"));
    fleet.file(
        "fleet.yaml",
        format!("{FLEET}spec:\n  prune: {{objects: 2.5}}\n"),
    );
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    apps/shop/values.yaml:1:1: values must be a map
       |
     1 | - replicas
       | ^

    apps/wiki/app.yaml:7:9: `mode` must be one of active-active, active-passive, singleton
       |
     7 |   mode: active
       |         ^

    apps/wiki/app.yaml:8:14: `dependsOn` must be a list, not text
       |
     8 |   dependsOn: shop
       |              ^
       = help: write a list with one element as `[shop]`

    apps/wiki/app.yaml:9:10: `owner` must be text, not a number
       |
     9 |   owner: 12
       |          ^
       = help: put it in quotes

    fleet.yaml:6:20: `objects` must be a whole number, not a number
       |
     6 |   prune: {objects: 2.5}
       |                    ^

    tiers.yaml:7:8: `soon` is not a valid `rto`
       |
     7 |   rto: soon
       |        ^
       = help: write a duration as 30s, 15m, 1h30m or 7d
    ");
}

#[test]
fn a_place_off_the_map() {
    let mut fleet = Fleet::new();
    let bad = region("us-east")
        .replace("53.3", "153.3")
        .replace("IE", "us");
    fleet.file("regions/us-east/region.yaml", bad);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    regions/us-east/region.yaml:8:14: `us` is not a valid `country`
       |
     8 |     country: us
       |              ^
       = help: use an ISO 3166-1 code of two capital letters, such as IE

    regions/us-east/region.yaml:9:15: `latitude`: 153.3 is greater than the maximum of 90
       |
     9 |     latitude: 153.3
       |               ^
    ");
}

#[test]
fn a_name_that_is_not_its_folders() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/app.yaml", app("wikki", ""));
    fleet.file("apps/Shop_2/app.yaml", app("shop", ""));
    insta::assert_snapshot!(fleet.told(), @r#"
    blocked: app wiki

    hint: apps/Shop_2: "Shop_2" is not a valid app name: use 1 to 63 lower-case letters, digits and '-', starting and ending with a letter or digit

    apps/wiki/app.yaml:4:9: `metadata.name` is `wikki`, but its folder or file is named `wiki`
       |
     4 |   name: wikki
       |         ^
       = help: the two names must match; rename one of them
    "#);
    let mut fleet = Fleet::new();
    fleet.file("regions/us-east/us-east-1.yaml", cluster("us-east-2"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    regions/us-east/us-east-1.yaml:4:9: `metadata.name` is `us-east-2`, but its folder or file is named `us-east-1`
       |
     4 |   name: us-east-2
       |         ^
       = help: the two names must match; rename one of them
    ");
}

#[test]
fn a_region_without_its_document() {
    let mut fleet = Fleet::new();
    fleet.without("regions/us-east/region.yaml");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    regions/us-east/region.yaml: this region has no region.yaml
       = help: add a document of kind Region, or remove the folder
    ");
}

#[test]
fn a_cluster_in_two_regions() {
    let mut fleet = Fleet::new();
    fleet.file("regions/us-east/eu-west-1.yaml", cluster("eu-west-1"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    regions/us-east/eu-west-1.yaml:4:9: there is also a cluster `eu-west-1` in region `eu-west`; cluster names must be unique in a fleet
       |
     4 |   name: eu-west-1
       |         ^
    ");
}

#[test]
fn a_cluster_with_a_regions_name() {
    let mut fleet = Fleet::new();
    fleet.file("regions/us-east/eu-west.yaml", cluster("eu-west"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    regions/us-east/eu-west.yaml: a region is also named `eu-west`, so an app's `values/eu-west.yaml` could mean either
       = help: rename the cluster
    ");
}

#[test]
fn a_tier_that_is_defined_twice() {
    let mut fleet = Fleet::new();
    fleet.file("tiers.yaml", TIERS.replace("silver", "gold"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    tiers.yaml:12:9: the tier `gold` is defined twice
        |
     12 |   name: gold
        |         ^
    ");
}

#[test]
fn two_documents_where_one_belongs() {
    let mut fleet = Fleet::new();
    let two = format!("{}---\n{}", app("wiki", ""), app("shop", ""));
    fleet.file("apps/wiki/app.yaml", two);
    fleet.file("apps/shop/values.yaml", "a: 1\n---\na: 2\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/values.yaml:3:1: values must be a single YAML document
       |
     3 | a: 2
       | ^

    apps/wiki/app.yaml:9:1: this file must hold only one App document, but this is another one
       |
     9 | apiVersion: muster.dev/v1alpha1
       | ^

    apps/wiki/app.yaml:12:9: `metadata.name` is `shop`, but its folder or file is named `wiki`
        |
     12 |   name: shop
        |         ^
       = help: the two names must match; rename one of them
    ");
}
