use muster_model::policy::PruneOrders;
use muster_plan::delivery::Numbered;

use super::*;

fn set(name: &str) -> ContentHash {
    ContentHash::of(name.as_bytes())
}

fn number(generation: u64) -> Numbered {
    Numbered {
        generation: Generation(generation),
        content: set(&generation.to_string()),
    }
}

/// Returns an observed state in which these sets of app `wiki` are pending approval.
fn level(generation: u64, holds: &[&str]) -> Level {
    let hold = |name: &&str| v1::Hold {
        set: set(name).0.to_vec(),
        ..v1::Hold::default()
    };
    let report = v1::AppReport {
        holds: holds.iter().map(hold).collect(),
        ..v1::AppReport::default()
    };
    Level {
        instance: "i-1".parse().ok(),
        in_force: Some(number(generation)),
        settled: true,
        apps: [("wiki".to_owned(), report)].into(),
        ..Level::default()
    }
}

#[test]
fn only_what_is_pending_approval_now_can_be_approved() {
    let request = |app: &str, name: &str| Request {
        cluster: "eu-1".parse().unwrap(),
        app: app.parse().unwrap(),
        set: set(name),
        reason: String::new(),
    };
    let newest = Some(Generation(4)..=Generation(5));
    let held = level(5, &["a", "b"]);
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let judged = |app, name, current: &Option<_>, level: Option<&Level>| {
        judge(&request(app, name), current.clone(), level).map(|(_, instance)| instance.to_string())
    };
    assert_eq!(
        judged("wiki", "b", &newest, Some(&held)),
        Ok("i-1".to_owned())
    );
    let just_before = level(4, &["a"]);
    assert!(judged("wiki", "a", &newest, Some(&just_before)).is_ok());
    let place = |app: &str| (app.parse().unwrap(), cluster.clone());
    let ((app, at), (shop, _)) = (place("wiki"), place("shop"));
    assert_eq!(
        judged("wiki", "c", &newest, Some(&held)),
        Err(Refusal::Changed { app, cluster: at })
    );
    let nothing = Refusal::Nothing {
        app: shop,
        cluster: cluster.clone(),
    };
    assert_eq!(judged("shop", "a", &newest, Some(&held)), Err(nothing));
    let behind = Err(Refusal::Behind(cluster.clone()));
    assert_eq!(
        judged("wiki", "a", &newest, Some(&level(3, &["a"]))),
        behind
    );
    assert_eq!(judged("wiki", "a", &None, Some(&held)), behind);
    let nobody = Err(Refusal::NoAgent(cluster));
    assert_eq!(judged("wiki", "a", &newest, None), nobody);
    assert_eq!(
        judged("wiki", "a", &newest, Some(&Level::default())),
        nobody
    );
}

#[test]
fn a_container_is_recognized_by_what_it_contains() {
    let definition = |name: &str| format!("CustomResourceDefinition.apiextensions.k8s.io {name}");
    let inside = [
        ("Namespace shards".to_owned(), "Pod shards/a"),
        (definition("foos.example.org"), "Foo.example.org x"),
        (definition("foos.example.org"), "Foo.example.org shards/x"),
        (definition("policies.example.org"), "Policy.example.org x"),
        (definition("proxies.example.org"), "Proxy.example.org x"),
        (definition("gateways.example.org"), "Gateway.example.org x"),
        (definition("mutexes.example.org"), "Mutex.example.org x"),
        (definition("redis.example.org"), "Redis.example.org x"),
    ];
    for (container, object) in inside {
        assert!(is_inside(&container, object), "{container}: {object}");
    }
    let outside = [
        ("Namespace shards".to_owned(), "Pod other/a"),
        ("Namespace shards".to_owned(), "Namespace shards"),
        ("ConfigMap shards".to_owned(), "Pod shards/a"),
        (definition("foos.example.org"), "Bar.example.org x"),
        (definition("foos.example.org"), "FooSet.example.org x"),
        (definition("foos.example.org"), "Foo.example.com x"),
        (definition("foos.example.org"), "Foo x"),
        (definition("foosets.example.org"), "Foo.example.org x"),
    ];
    for (container, object) in outside {
        assert!(!is_inside(&container, object), "{container}: {object}");
    }
}

#[test]
fn an_approval_is_done_when_its_cluster_has_it_and_its_set_is_no_longer_pending() {
    let approved: BTreeSet<ContentHash> = [set("a"), set("b")].into();
    let before = DesiredState {
        number: number(5),
        since: Generation(5),
        commit: String::new(),
        epoch: 1,
        prune: PruneOrders {
            approved: [set("a")].into(),
            ..PruneOrders::default()
        },
        bundles: [].into(),
    };
    let left = |level: Option<&Level>| pending(&approved, Some(&before), level);
    // `b` is not in any generation yet.
    assert_eq!(left(Some(&level(5, &[]))), [set("b")].into());
    assert_eq!(left(Some(&level(5, &["a"]))), approved);
    assert_eq!(left(Some(&level(4, &[]))), approved);
    let unsettled = Level {
        settled: false,
        ..level(5, &[])
    };
    assert_eq!(left(Some(&unsettled)), approved);
    assert_eq!(left(None), approved);
    assert_eq!(pending(&approved, None, Some(&level(5, &[]))), approved);
}
