use serde_json::json;

use super::*;

#[test]
fn images_are_named_as_nodes_look_them_up() {
    for (short, full) in [
        ("postgres:17", "docker.io/library/postgres:17"),
        ("grafana/grafana", "docker.io/grafana/grafana:latest"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
    ] {
        assert_eq!(full_name(short), full);
    }
}

#[test]
fn a_stand_in_has_the_ports_and_programs_that_pods_name() {
    let pod = json!({
        "containers": [{
            "name": "db", "image": "db:1", "ports": [{"containerPort": 5432}],
            "readinessProbe": {"exec": {"command": ["isready", "--quiet"]}},
        }],
        "initContainers": [{"name": "prepare", "image": "db:1", "command": ["sh", "/prepare.sh"]}],
    });
    let objects = [
        json!({"kind": "StatefulSet", "spec": {"template": {"spec": pod}}}),
        json!({"kind": "ConfigMap"}),
    ];
    let set = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let db = Needs {
        ports: BTreeSet::from([5432]),
        servers: BTreeSet::new(),
        helpers: set(&["isready", "sh"]),
    };
    assert_eq!(needs(&objects), BTreeMap::from([("db:1".to_owned(), db)]));
}

#[test]
fn each_image_is_tried_by_itself() {
    let needs = ["a:1", "b:1", "c:1"].map(|name| (name.to_owned(), Needs::default()));
    let needs = BTreeMap::from(needs);
    let told = |pulled: &[&str]| summary(3, &missing(&needs, |image| pulled.contains(&image)));
    insta::assert_snapshot!(told(&["a:1", "b:1", "c:1"]), @"the nodes pull the fleet's 3 images");
    insta::assert_snapshot!(told(&["a:1"]), @"the nodes pull 1 of the fleet's 3 images; small stand-ins with the same names replace those that can't be pulled here: b:1, c:1");
    insta::assert_snapshot!(told(&[]), @"the fleet's 3 images can't be pulled here; small stand-ins with the same names replace them");
    assert_eq!(summary(0, &[]), "the fleet runs no pods");
}
