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
