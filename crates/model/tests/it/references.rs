//! Documents that refer to names that do not exist, or to each other in a cycle.

use crate::{Fleet, TIERS, app, cluster};

#[test]
fn unknown_names_come_with_the_ones_that_were_meant() {
    let mut fleet = Fleet::new();
    let spec = concat!(
        "  dependsOn: [shopp]\n",
        "  placement:\n",
        "    regions: [eu-wst, us-east]\n",
        "    clusters:\n",
        "      - us-east-1\n",
        "      - us-east-11\n",
    );
    fleet.file(
        "apps/wiki/app.yaml",
        app("wiki", spec).replace("gold", "glod"),
    );
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/app.yaml:6:9: there is no tier `glod`
       |
     6 |   tier: glod
       |         ^
       = help: did you mean `gold`?

    apps/wiki/app.yaml:8:15: there is no app `shopp`
       |
     8 |   dependsOn: [shopp]
       |               ^
       = help: did you mean `shop`?

    apps/wiki/app.yaml:10:15: there is no region `eu-wst`
        |
     10 |     regions: [eu-wst, us-east]
        |               ^
       = help: did you mean `eu-west`?

    apps/wiki/app.yaml:13:9: there is no cluster `us-east-11`
        |
     13 |       - us-east-11
        |         ^
       = help: did you mean `us-east-1`?
    ");
}

#[test]
fn values_of_a_cluster_that_is_not_there() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/values/eu-wets-1.yaml", "a: 1\n");
    fleet.file("apps/wiki/values/us-east.yaml", "a: 1\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/values/eu-wets-1.yaml: there is no region or cluster `eu-wets-1`
       = help: did you mean `eu-west-1`?
    ");
}

#[test]
fn an_app_that_fits_nowhere() {
    let mut fleet = Fleet::new();
    let spec = "  placement:\n    regions: [eu-west]\n    clusters: [us-east-1]\n";
    fleet.file("apps/wiki/app.yaml", app("wiki", spec));
    let spec = "  placement:\n    clusterSelector:\n      matchLabels: {gpu: \"yes\"}\n";
    fleet.file("apps/shop/app.yaml", app("shop", spec));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/app.yaml:9:5: no cluster of the fleet fits this placement
       |
     9 |     clusterSelector:
       |     ^
       = help: a cluster must match all of `regions`, `clusters` and `clusterSelector` that are set

    apps/wiki/app.yaml:9:5: no cluster of the fleet fits this placement
       |
     9 |     regions: [eu-west]
       |     ^
       = help: a cluster must match all of `regions`, `clusters` and `clusterSelector` that are set
    ");
}

#[test]
fn apps_that_wait_for_each_other() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/app.yaml", app("wiki", "  dependsOn: [shop]\n"));
    fleet.file("apps/shop/app.yaml", app("shop", "  dependsOn: [wiki]\n"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/app.yaml:8:14: this app depends on itself: shop → wiki → shop
       |
     8 |   dependsOn: [wiki]
       |              ^
       = help: remove one of these `dependsOn` entries

    apps/wiki/app.yaml:8:14: this app depends on itself: wiki → shop → wiki
       |
     8 |   dependsOn: [shop]
       |              ^
       = help: remove one of these `dependsOn` entries
    ");
}

#[test]
fn an_app_that_waits_for_itself() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/app.yaml", app("wiki", "  dependsOn: [wiki]\n"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/app.yaml:8:14: this app depends on itself: wiki → wiki
       |
     8 |   dependsOn: [wiki]
       |              ^
       = help: remove one of these `dependsOn` entries
    ");
}

#[test]
fn a_mode_that_cannot_keep_its_tiers_promise() {
    let mut fleet = Fleet::new();
    let tiers = TIERS.replace(
        "  rto: 15m\n",
        "  rto: 15m\n  modes: [active-passive, singleton]\n",
    );
    fleet.file("tiers.yaml", tiers);
    fleet.without("apps/shop/app.yaml");
    fleet.without("apps/shop/templates/settings.yaml");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/app.yaml:7:9: tier `gold` does not allow mode `active-active`; use active-passive or singleton
       |
     7 |   mode: active-active
       |         ^
    ");
}

#[test]
fn an_app_without_objects() {
    let mut fleet = Fleet::new();
    fleet.without("apps/wiki/templates/settings.yaml");
    fleet.file("apps/wiki/template.yaml", crate::TEMPLATE);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/app.yaml: this app has no objects
       = help: add templates/NAME.yaml or manifests/NAME.yaml

    hint: apps/wiki/template.yaml: this file is not read
       = help: an app has app.yaml, values.yaml, values/, templates/ and manifests/
    ");
}

#[test]
fn a_fault_is_told_once_and_not_again_by_everything_that_refers_to_it() {
    let mut fleet = Fleet::new();
    let spec = "  placement:\n    regions: [us-east]\n    clusters: [us-east-1]\n";
    fleet.file("apps/wiki/app.yaml", app("wiki", spec));
    fleet.file("apps/wiki/values/us-east-1.yaml", "a: 1\n");
    fleet.file("apps/wiki/values/us-east.yaml", "a: 1\n");
    fleet.file("regions/us-east/region.yaml", "kind: Region\n");
    fleet.file(
        "regions/us-east/us-east-1.yaml",
        cluster("us-east-1") + "spce: {}\n",
    );
    fleet.file("tiers.yaml", TIERS.replace("rpo: 1m", "rpo: one"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    regions/us-east/region.yaml:1:1: missing field `apiVersion`
       |
     1 | kind: Region
       | ^
       = help: add `apiVersion: muster.dev/v1alpha1`

    regions/us-east/us-east-1.yaml:5:1: unknown field `spce`
       |
     5 | spce: {}
       | ^
       = help: did you mean `spec`?

    tiers.yaml:6:8: `one` is not a valid `rpo`
       |
     6 |   rpo: one
       |        ^
       = help: write a duration as 30s, 15m, 1h30m or 7d
    ");
}
