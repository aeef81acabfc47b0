//! Apps that were renamed, and which app gets the objects of the old one.

use std::collections::BTreeMap;

use muster_model::ids::AppName;

use crate::{Fleet, TEMPLATE, app};

fn named(name: &str) -> AppName {
    name.parse().unwrap()
}

fn renamed(more: &str) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.without("apps/wiki/app.yaml");
    fleet.without("apps/wiki/templates/settings.yaml");
    fleet.file("apps/handbook/app.yaml", app("handbook", more));
    fleet.file("apps/handbook/templates/settings.yaml", TEMPLATE);
    fleet
}

#[test]
fn a_renamed_app_stays_in_its_namespace() {
    let fleet = renamed("  formerly: wiki\n");
    insta::assert_snapshot!(fleet.told(), @"blocked: nothing");
    let loaded = fleet.load();
    let formerly = BTreeMap::from([(named("handbook"), named("wiki"))]);
    assert_eq!(loaded.formerly, formerly);
    let namespace = |fleet: &Fleet| {
        let model = fleet.load().model.unwrap();
        let spec = &model.apps["handbook"].spec;
        spec.namespace_of(&named("handbook")).to_owned()
    };
    assert_eq!(namespace(&fleet), "wiki");
    assert_eq!(
        namespace(&renamed("  formerly: wiki\n  namespace: docs\n")),
        "docs"
    );
    assert_eq!(namespace(&renamed("")), "handbook");
}

#[test]
fn a_claim_counts_in_a_document_that_can_not_be_read() {
    for more in [
        "  formerly: wiki\n  colour: blue\n",
        "  # formerly: shop\n  formerly: 'wiki' # until spring\n  owner: [\n",
        "  formerly: \"wiki\"\n  placement: {regions: [nowhere]}\n",
    ] {
        let loaded = renamed(more).load();
        assert!(loaded.broken.contains("handbook"), "{more}");
        let formerly = BTreeMap::from([(named("handbook"), named("wiki"))]);
        assert_eq!(loaded.formerly, formerly, "{more}");
    }
}

#[test]
fn previous_names_that_an_app_can_not_claim() {
    let mut fleet = renamed("  formerly: handbook\n");
    for name in ["docs", "notes"] {
        fleet.file(
            &format!("apps/{name}/app.yaml"),
            app(name, "  owner: me\n  formerly: wiki\n"),
        );
        fleet.file(&format!("apps/{name}/templates/settings.yaml"), TEMPLATE);
    }
    fleet.file("apps/copy/app.yaml", app("copy", "  formerly: shop\n"));
    fleet.file("apps/copy/templates/settings.yaml", TEMPLATE);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app copy, docs, handbook, notes

    apps/copy/app.yaml:8:13: the app `shop` still exists, so it keeps its objects
       |
     8 |   formerly: shop
       |             ^
       = help: remove apps/shop, or this line

    apps/docs/app.yaml:9:13: app `notes` also claims `formerly: wiki`
       |
     9 |   formerly: wiki
       |             ^
       = help: the objects can go to only one app; remove one of the two lines

    apps/handbook/app.yaml:8:13: `handbook` is this app's name now
       |
     8 |   formerly: handbook
       |             ^
       = help: `formerly` is the app's previous name; remove the line if it had none

    apps/notes/app.yaml:9:13: app `docs` also claims `formerly: wiki`
       |
     9 |   formerly: wiki
       |             ^
       = help: the objects can go to only one app; remove one of the two lines
    ");
}
