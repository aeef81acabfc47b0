use muster_model::{
    ids::{ContentHash, Generation},
    policy::PruneOrders,
};
use muster_plan::delivery::Numbered;

use super::*;
use crate::store_schema::ListedBundle;

fn writer(cluster: &str, epoch: u64) -> Writer {
    Writer {
        handover: None,
        region: "west".parse().unwrap(),
        cluster: cluster.parse().unwrap(),
        epoch: Epoch(epoch),
        at: 1,
        by: "somebody".to_owned(),
        why: "a test".to_owned(),
    }
}

fn record(epoch: u64, cluster: &str) -> FleetRecord {
    FleetRecord {
        epoch: Epoch(epoch),
        writers: BTreeMap::from([("shop".parse().unwrap(), writer(cluster, 1))]),
    }
}

#[test]
fn the_record_of_an_earlier_release_is_made_from_what_the_clusters_run() {
    let listed = |app: &str, role: &str| ListedBundle {
        app: app.parse().unwrap(),
        role: role.parse().unwrap(),
        hash: ContentHash::of(b""),
    };
    let desired = |bundles: &[ListedBundle]| {
        Arc::new(DesiredState {
            number: Numbered {
                generation: Generation(7),
                content: ContentHash::of(b""),
            },
            since: Generation(7),
            commit: String::new(),
            epoch: 1,
            prune: PruneOrders::default(),
            bundles: bundles.into(),
        })
    };
    let clusters: BTreeMap<ClusterName, _> = BTreeMap::from([
        (
            "east-1".parse().unwrap(),
            desired(&[listed("shop", "standby"), listed("web", "active")]),
        ),
        (
            "west-1".parse().unwrap(),
            desired(&[listed("shop", "primary"), listed("web", "active")]),
        ),
    ]);
    let in_force = InForce {
        clusters: vec![
            ("east-1".parse().unwrap(), "east".to_owned()),
            ("west-1".parse().unwrap(), "west".to_owned()),
        ],
        ..InForce::default()
    };
    let made = from_roles(&in_force, &clusters);
    assert_eq!(made.epoch, Epoch(1));
    let apps: Vec<(&str, &str)> = made
        .writers
        .iter()
        .map(|(app, w)| (app.as_str(), w.cluster.as_str()))
        .collect();
    assert_eq!(apps, [("shop", "west-1")]);
}

#[test]
fn only_a_writer_that_is_gone_leaves_the_record() {
    let before = record(4, "west-1");
    assert_eq!(without_gone(&before, |_, _| false), before);
    let left = without_gone(&before, |app, _| app.as_str() == "shop");
    assert_eq!((left.epoch, left.writers.len()), (Epoch(5), 0));
}

#[test]
fn two_records_of_one_epoch_differ_in_a_writer() {
    let shop = "shop".parse().unwrap();
    let text = difference(&record(4, "west-1"), &record(4, "east-1"), &shop);
    assert_eq!(
        text,
        "it has the writer of shop in east-1, this hub in west-1"
    );
}
