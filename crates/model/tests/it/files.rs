//! Files that can't be read: broken YAML, invalid bytes, links, submodules, bad paths.

use muster_model::tree::Entry;

use crate::{FLEET, Fleet, app, region};

#[test]
fn broken_yaml_in_the_fleet_blocks_the_commit() {
    let mut fleet = Fleet::new();
    fleet.file(
        "fleet.yaml",
        "apiVersion: muster.dev/v1alpha1\nkind: Fleet\nmetadata:\n  name: harbour\n labels: {}\n",
    );
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    fleet.yaml:5:2: not valid YAML, here or in a line above: while parsing a block mapping, did not find expected key
       |
     5 |  labels: {}
       |  ^
    ");
}

#[test]
fn broken_yaml_in_an_app_blocks_that_app() {
    let mut fleet = Fleet::new();
    fleet.file(
        "apps/wiki/app.yaml",
        app("wiki", "  owner: \"the wiki team\n"),
    );
    fleet.file("apps/shop/values.yaml", "replicas: [1, 2\nimage: shop\n");
    insta::assert_snapshot!(fleet.told(), @r#"
    blocked: app shop, wiki

    apps/shop/values.yaml:2:6: not valid YAML, here or in a line above: illegal placement of ':' indicator
       |
     2 | image: shop
       |      ^

    apps/wiki/app.yaml:8:10: not valid YAML, here or in a line above: unclosed quote
       |
     8 |   owner: "the wiki team
       |          ^
    "#);
}

#[test]
fn a_tab_as_indentation() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/values.yaml", "image:\n\tname: wiki\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/values.yaml:2:2: not valid YAML, here or in a line above: tabs disallowed within this context (block indentation)
       |
     2 | 	name: wiki
       | 	^
    ");
}

#[test]
fn a_key_that_occurs_twice() {
    let mut fleet = Fleet::new();
    fleet.file(
        "apps/wiki/values.yaml",
        "replicas: 2\nimage: wiki\nreplicas: 3\n",
    );
    insta::assert_snapshot!(fleet.told(), @r#"
    blocked: app wiki

    apps/wiki/values.yaml:3:1: duplicate key "replicas" in this map, first at 1:1
       |
     3 | replicas: 3
       | ^
    "#);
}

#[test]
fn a_template_expression_outside_a_template() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/values.yaml", "image: {{ region.name }}\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/values.yaml:1:9: a map or list can't be a key; `{{ }}` works only in templates; elsewhere it is a map inside a map
       |
     1 | image: {{ region.name }}
       |         ^
    ");
}

#[test]
fn bytes_that_are_no_text() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/values.yaml", b"name: ok\nmotto: caf\xe9\n");
    fleet.file("apps/shop/templates/settings.yaml", b"\xff\xfea\0");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/templates/settings.yaml: not UTF-8: invalid byte 0xff at offset 0 (line 1)
       = help: save the file as UTF-8

    apps/wiki/values.yaml: not UTF-8: invalid byte 0xe9 at offset 19 (line 2)
       = help: save the file as UTF-8
    ");
}

#[test]
fn a_file_of_ten_megabytes() {
    let mut fleet = Fleet::new();
    let large = || Entry::TooLarge {
        size: 10 * 1024 * 1024,
    };
    fleet.entry("apps/wiki/manifests/dump.yaml", large());
    fleet.entry("apps/wiki/notes.pdf", large());
    fleet.entry("docs/film.mp4", large());
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/manifests/dump.yaml: the file has 10.0 MiB; the limit is 8 MiB
       = help: split it: one object can't exceed 1.5 MiB in Kubernetes anyway
    ");
}

#[test]
fn a_symbolic_link_out_of_the_repository() {
    let mut fleet = Fleet::new();
    let link = |target: &str| Entry::Symlink {
        target: target.to_owned(),
    };
    fleet.entry("apps/wiki/values.yaml", link("/etc/passwd"));
    fleet.entry("apps/shop/templates/more.yaml", link("../../../../secrets"));
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/templates/more.yaml: a symbolic link to `../../../../secrets`; links are not followed
       = help: put the files themselves here; files that apps share belong in lib/

    apps/wiki/values.yaml: a symbolic link to `/etc/passwd`; links are not followed
       = help: put the files themselves here; files that apps share belong in lib/
    ");
}

#[test]
fn links_and_submodules_in_the_place_of_folders() {
    let mut fleet = Fleet::new();
    fleet.entry(
        "lib",
        Entry::Symlink {
            target: "../shared".to_owned(),
        },
    );
    fleet.entry("apps/blog", Entry::Submodule);
    fleet.without("apps/wiki/templates/settings.yaml");
    fleet.entry("apps/wiki/templates", Entry::Submodule);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    apps/blog: a Git submodule; its files are not part of this repository
       = help: copy the manifests into the repository

    apps/wiki/templates: a Git submodule; its files are not part of this repository
       = help: copy the manifests into the repository

    lib: a symbolic link to `../shared`; links are not followed
       = help: put the files themselves here; files that apps share belong in lib/
    ");
}

#[test]
fn a_submodule_in_an_app() {
    let mut fleet = Fleet::new();
    fleet.entry("apps/wiki/manifests/upstream", Entry::Submodule);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/manifests/upstream: a Git submodule; its files are not part of this repository
       = help: copy the manifests into the repository
    ");
}

#[test]
fn a_path_that_leaves_the_repository() {
    let mut fleet = Fleet::new();
    fleet.file("apps/wiki/templates/../../../outside.yaml", "a: 1\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/templates/../../../outside.yaml: this path is not allowed: a part of it is empty, `.`, `..` or `.git`, or holds a backslash or bytes that are not UTF-8
       = help: rename the file
    ");
    let mut fleet = Fleet::new();
    fleet.file("regions/../apps/x.yaml", "a: 1\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    regions/../apps/x.yaml: this path is not allowed: a part of it is empty, `.`, `..` or `.git`, or holds a backslash or bytes that are not UTF-8
       = help: rename the file
    ");
}

#[test]
fn a_path_that_is_no_text() {
    let mut fleet = Fleet::new();
    // Bytes of a path that are not UTF-8 are read as the replacement character.
    fleet.file("apps/wiki/templates/caf\u{fffd}.yaml", "a: 1\n");
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/templates/caf�.yaml: this path is not allowed: a part of it is empty, `.`, `..` or `.git`, or holds a backslash or bytes that are not UTF-8
       = help: rename the file
    ");
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let mut fleet = Fleet::new();
    fleet.file(
        "regions/eu-west/region.yaml",
        region("eu-west")
            .replace("EU", "Europe")
            .replace("IE", "Ireland"),
    );
    fleet.file("tiers.yaml", "apiVersion: v1\n");
    fleet.file(
        "apps/wiki/app.yaml",
        app(
            "wiki",
            "  ownr: docs\n  placement:\n    region: [eu-west]\n",
        )
        .replace("gold", "Gold"),
    );
    fleet.file("apps/shop/values.yaml", "a: 1\na: 2\n");
    insta::assert_snapshot!(fleet.told(), @r#"
    blocked: the whole commit

    apps/shop/values.yaml:2:1: duplicate key "a" in this map, first at 1:1
       |
     2 | a: 2
       | ^

    apps/wiki/app.yaml:6:9: `Gold` is not a valid `tier`
       |
     6 |   tier: Gold
       |         ^
       = help: use 1 to 63 lower-case letters, digits and '-', starting and ending with a letter or digit

    apps/wiki/app.yaml:8:3: unknown field `ownr`
       |
     8 |   ownr: docs
       |   ^
       = help: did you mean `owner`?

    apps/wiki/app.yaml:10:5: unknown field `region`
        |
     10 |     region: [eu-west]
        |     ^
       = help: did you mean `regions`?

    regions/eu-west/region.yaml:7:16: `continent` must be one of AF, AN, AS, EU, NA, OC, SA
       |
     7 |     continent: Europe
       |                ^

    regions/eu-west/region.yaml:8:14: `Ireland` is not a valid `country`
       |
     8 |     country: Ireland
       |              ^
       = help: use an ISO 3166-1 code of two capital letters, such as IE

    tiers.yaml:1:13: `apiVersion` must be `muster.dev/v1alpha1` in this file
       |
     1 | apiVersion: v1
       |             ^
       = help: Kubernetes objects belong in an app's templates/ or manifests/
    "#);
}

#[test]
fn numbers_that_templates_would_print_otherwise() {
    let mut fleet = Fleet::new();
    fleet.file(
        "apps/wiki/values.yaml",
        "tag: 1.10\nsha: 1234567e8\noctal: &o 0123456\nmore: [*o, {a: .5}]\nreplicas: 2\ntext: \"1.10\"\n",
    );
    fleet.file(
        "apps/wiki/values/eu-west.yaml",
        "big: 123456789012345678901\n",
    );
    fleet.file(
        "fleet.yaml",
        format!("{FLEET}spec:\n  values: {{hex: 0x1F}}\n"),
    );
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: the whole commit

    apps/wiki/values.yaml:1:6: `1.10` is a number that templates would print as `1.1`
       |
     1 | tag: 1.10
       |      ^
       = help: put it in quotes if it is text, otherwise write 1.1

    apps/wiki/values.yaml:2:6: `1234567e8` is a number that templates would print as `123456700000000.0`
       |
     2 | sha: 1234567e8
       |      ^
       = help: put it in quotes if it is text, otherwise write 123456700000000.0

    apps/wiki/values.yaml:3:11: `0123456` is a number that templates would print as `42798`
       |
     3 | octal: &o 0123456
       |           ^
       = help: put it in quotes if it is text, otherwise write 42798

    apps/wiki/values.yaml:4:8: `0123456` is a number that templates would print as `42798`
       |
     4 | more: [*o, {a: .5}]
       |        ^
       = help: put it in quotes if it is text, otherwise write 42798

    apps/wiki/values.yaml:4:16: `.5` is a number that templates would print as `0.5`
       |
     4 | more: [*o, {a: .5}]
       |                ^
       = help: put it in quotes if it is text, otherwise write 0.5

    apps/wiki/values/eu-west.yaml:1:6: `123456789012345678901` is a number that templates would print as `123456789012345680000.0`
       |
     1 | big: 123456789012345678901
       |      ^
       = help: put it in quotes

    fleet.yaml:6:17: `0x1F` is a number that templates would print as `31`
       |
     6 |   values: {hex: 0x1F}
       |                 ^
       = help: put it in quotes if it is text, otherwise write 31
    ");
}

/// Object files are read whether their ending is in upper or lower case, and files that are left out are reported.
#[test]
fn files_that_hold_objects_and_files_that_do_not() {
    let mut fleet = Fleet::new();
    let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    let base = "apps/wiki/manifests";
    for name in [
        "a.yaml",
        "b.YAML",
        "c.yml",
        "d.YML",
        "e.json",
        "f.JSON",
        "deep/er/g.yaml",
    ] {
        fleet.file(&format!("{base}/{name}"), object);
    }
    // Flux has a kind named Kustomization.
    let flux =
        "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: a}\n";
    fleet.file(&format!("{base}/flux/kustomization.yaml"), flux);
    for name in ["README.md", "deep/.gitkeep", "LICENSE"] {
        fleet.file(&format!("{base}/{name}"), "for people\n");
    }
    assert_eq!(fleet.told(), "blocked: nothing\n");
    let model = fleet.load().model.unwrap();
    let read: Vec<&str> = model.apps["wiki"]
        .manifests
        .iter()
        .map(|file| file.path.strip_prefix("apps/wiki/manifests/").unwrap())
        .collect();
    let all = [
        "a.yaml",
        "b.YAML",
        "c.yml",
        "d.YML",
        "deep/er/g.yaml",
        "e.json",
        "f.JSON",
        "flux/kustomization.yaml",
    ];
    assert_eq!(read, all);

    for name in [
        "manifests/a.yaml.bak",
        "manifests/off/b.yml.disabled",
        "manifests/c.txt",
        "templates/_helpers.tpl",
        "values/eu.yml",
        "values/old/eu-west.yaml",
        "kustomization.yaml",
        "crds/a.yaml",
        "crds/deep/b.yaml",
    ] {
        fleet.file(&format!("apps/wiki/{name}"), object);
    }
    fleet.file("regions/eu-west/new.yml", "kind: Cluster\n");
    fleet.file("apps/wiki/docs/use.md", "for people\n");
    // This is not a file of Kustomize's, but it has no known ending either.
    fleet.file("apps/wiki/manifests/flux/Kustomization", flux);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: nothing

    hint: apps/wiki/crds: this folder is not read
       = help: an app has app.yaml, values.yaml, values/, templates/ and manifests/

    hint: apps/wiki/kustomization.yaml: Muster does not run Kustomize
       = help: commit the output of `kustomize build` as manifests/NAME.yaml and remove this file, or use templates and values for what differs between clusters

    hint: apps/wiki/manifests/a.yaml.bak: this file is not read
       = help: objects belong in files that end in .yaml, .yml or .json; files that templates include belong in templates/_NAME.yaml or lib/

    hint: apps/wiki/manifests/c.txt: this file is not read
       = help: objects belong in files that end in .yaml, .yml or .json; files that templates include belong in templates/_NAME.yaml or lib/

    hint: apps/wiki/manifests/flux/Kustomization: this file is not read
       = help: objects belong in files that end in .yaml, .yml or .json; files that templates include belong in templates/_NAME.yaml or lib/

    hint: apps/wiki/manifests/off/b.yml.disabled: this file is not read
       = help: objects belong in files that end in .yaml, .yml or .json; files that templates include belong in templates/_NAME.yaml or lib/

    hint: apps/wiki/templates/_helpers.tpl: this file is not read
       = help: objects belong in files that end in .yaml, .yml or .json; files that templates include belong in templates/_NAME.yaml or lib/

    hint: apps/wiki/values/eu.yml: this file is not read
       = help: values of a region or cluster belong in values/NAME.yaml

    hint: apps/wiki/values/old/eu-west.yaml: this file is not read
       = help: values of a region or cluster belong in values/NAME.yaml

    hint: regions/eu-west/new.yml: this file is not read
       = help: clusters belong in regions/REGION/CLUSTER.yaml
    ");
    assert!(
        fleet.load().model.unwrap().apps["wiki"]
            .values_at
            .is_empty()
    );
}

#[test]
fn a_pointer_of_git_lfs() {
    let mut fleet = Fleet::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    fleet.file("apps/wiki/manifests/crds.yaml", pointer);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app wiki

    apps/wiki/manifests/crds.yaml: this is a Git LFS pointer; the file itself is not in the repository
       = help: take the file out of LFS: `git lfs untrack FILE`, then `git add --renormalize FILE`, and commit
    ");
}

#[test]
fn a_file_for_kustomize() {
    let mut fleet = Fleet::new();
    fleet.file(
        "apps/wiki/manifests/kustomization.yaml",
        "resources: [a.yaml]\n",
    );
    fleet.file(
        "apps/wiki/manifests/base/Kustomization",
        "resources: [a.yaml]\n",
    );
    let named = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: a\n";
    fleet.file("apps/shop/manifests/over/kustomization.yml", named);
    insta::assert_snapshot!(fleet.told(), @r"
    blocked: app shop, wiki

    apps/shop/manifests/over/kustomization.yml: Muster does not run Kustomize
       = help: commit the output of `kustomize build` as manifests/NAME.yaml and remove this file, or use templates and values for what differs between clusters

    apps/wiki/manifests/base/Kustomization: Muster does not run Kustomize
       = help: commit the output of `kustomize build` as manifests/NAME.yaml and remove this file, or use templates and values for what differs between clusters

    apps/wiki/manifests/kustomization.yaml: Muster does not run Kustomize
       = help: commit the output of `kustomize build` as manifests/NAME.yaml and remove this file, or use templates and values for what differs between clusters
    ");
}
