use muster_model::{
    fleet_record::{Baseline, Place},
    ids::{ContentHash, Epoch, ObjectId},
    load::Loader,
    tree::{Entry, Tree},
};
use proptest::prelude::*;

use super::*;

/// The clusters and regions of a test fleet, and one app.
#[derive(Debug, Clone)]
struct Commit {
    /// Clusters with their region and the label `kind`.
    clusters: Vec<(&'static str, &'static str, &'static str)>,
    /// The spec of the app, without its tier; `None` if the repository does not have the app.
    app: Option<String>,
    name: &'static str,
}

const CLUSTERS: [(&str, &str, &str); 3] = [
    ("east-1", "east", "public"),
    ("west-1", "west", "public"),
    ("west-2", "west", "public"),
];

fn commit(app: &str) -> Commit {
    Commit {
        clusters: CLUSTERS.to_vec(),
        app: Some(app.to_owned()),
        name: "shop",
    }
}

const IN_BOTH: &str = "mode: active-passive, placement: {regions: [west, east]}";

impl Commit {
    fn model(&self) -> (Model, BTreeSet<AppName>) {
        let document = |kind: &str, name: &str, labels: &str, spec: &str| {
            format!(
                "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, labels: {{{labels}}}}}\nspec: {{{spec}}}\n"
            )
        };
        let mut files = BTreeMap::from([
            ("fleet.yaml".to_owned(), document("Fleet", "test", "", "")),
            (
                "tiers.yaml".to_owned(),
                document("Tier", "gold", "", "rpo: 5m, rto: 5m"),
            ),
        ]);
        let place = "location: {continent: EU, country: IE, latitude: 1, longitude: 1}";
        for region in ["east", "west"] {
            let path = format!("regions/{region}/region.yaml");
            files.insert(path, document("Region", region, "", place));
        }
        for (cluster, region, kind) in &self.clusters {
            let path = format!("regions/{region}/{cluster}.yaml");
            files.insert(
                path,
                document("Cluster", cluster, &format!("kind: {kind}"), ""),
            );
        }
        if let Some(app) = &self.app {
            let spec = format!("tier: gold, {app}");
            let folder = format!("apps/{}", self.name);
            files.insert(
                format!("{folder}/app.yaml"),
                document("App", self.name, "", &spec),
            );
            let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n".to_owned();
            files.insert(format!("{folder}/manifests/map.yaml"), map);
        }
        let entry = |(path, text): (String, String)| {
            let mut id = [0; 20];
            id.copy_from_slice(&ContentHash::of(text.as_bytes()).0[..20]);
            let bytes = text.as_bytes().into();
            (
                path,
                Entry::File {
                    id: ObjectId(id),
                    bytes,
                },
            )
        };
        let entries = files.into_iter().map(entry).collect();
        let loaded = Loader::default().load(&Tree { entries });
        let model = loaded.model;
        (
            model.unwrap_or_else(|| panic!("{:?}", loaded.problems)),
            loaded.broken,
        )
    }

    fn place(&self, record: &FleetRecord) -> Placed {
        let (model, broken) = self.model();
        let known = Known {
            record,
            broken: &broken,
            frozen: None,
        };
        place(&model, known)
    }
}

fn first() -> FleetRecord {
    commit(IN_BOTH).place(&FleetRecord::default()).record
}

/// Returns an app's places as `cluster: role`.
fn places(placed: &Placed, app: &str) -> Vec<String> {
    let app = placed.roles.get(app);
    app.into_iter()
        .flatten()
        .map(|(cluster, role)| format!("{cluster}: {role}"))
        .collect()
}

fn texts(placed: &Placed) -> Vec<String> {
    placed.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_new_app_gets_its_writer_in_the_first_region_that_git_names() {
    let placed = commit(IN_BOTH).place(&FleetRecord::default());
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: standby", "west-1: primary"]
    );
    assert_eq!(placed.record.epoch, Epoch(1));
    let writer = &placed.record.writers["shop"];
    assert_eq!(
        (
            writer.region.as_str(),
            writer.cluster.as_str(),
            writer.epoch
        ),
        ("west", "west-1", Epoch(1))
    );
}

#[test]
fn an_equal_commit_changes_no_record() {
    let record = first();
    assert_eq!(commit(IN_BOTH).place(&record).record, record);
}

#[test]
fn another_order_of_regions_moves_nothing() {
    let record = first();
    let placed = commit("mode: active-passive, placement: {regions: [east, west]}").place(&record);
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: standby", "west-1: primary"]
    );
    assert_eq!((placed.record, placed.problems), (record, vec![]));
}

#[test]
fn a_cluster_whose_name_sorts_first_moves_nothing() {
    let record = first();
    let mut with = commit(IN_BOTH);
    with.clusters.push(("west-0", "west", "public"));
    let placed = with.place(&record);
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: standby", "west-1: primary"]
    );
    assert_eq!((placed.record, placed.problems), (record, vec![]));
}

#[test]
fn a_placement_that_no_longer_fits_the_holder_blocks_the_app() {
    let record = first();
    let spec = "mode: active-passive, placement: {regions: [east]}";
    let placed = commit(spec).place(&record);
    assert_eq!((places(&placed, "shop"), &placed.record), (vec![], &record));
    insta::assert_snapshot!(texts(&placed).join("\n"), @r"
    apps/shop/app.yaml:4:53: `placement` does not fit cluster `west-1` any more, which holds this app's writer since epoch 1
       |
     4 | spec: {tier: gold, mode: active-passive, placement: {regions: [east]}}
       |                                                     ^
       = help: a commit can't move a writer: let `placement` fit `west-1` in region `west`
    ");
    let relabelled = Commit {
        clusters: vec![("east-1", "east", "public"), ("west-1", "west", "private")],
        ..commit(
            "mode: active-passive, placement: {clusterSelector: {matchLabels: {kind: public}}}",
        )
    };
    assert_eq!(relabelled.place(&record).problems.len(), 1);
}

#[test]
fn an_app_with_a_writer_does_not_become_active_active() {
    let record = first();
    let placed = commit("mode: active-active").place(&record);
    assert_eq!((places(&placed, "shop"), &placed.record), (vec![], &record));
    let texts = texts(&placed).join("\n");
    assert!(
        texts.contains("`mode` can't become active-active"),
        "{texts}"
    );
}

#[test]
fn a_singleton_may_get_standbys_and_lose_them() {
    let record = first();
    let alone = commit("mode: singleton").place(&record);
    assert_eq!(
        (places(&alone, "shop"), &alone.record),
        (vec!["west-1: primary".to_owned()], &record)
    );
}

#[test]
fn a_commit_without_the_holder_s_cluster_is_blocked() {
    let record = first();
    let without = Commit {
        clusters: vec![("east-1", "east", "public"), ("west-2", "west", "public")],
        ..commit(IN_BOTH)
    };
    let placed = without.place(&record);
    assert_eq!(placed.problems[0].scope, Scope::Fleet);
    let lost = lost_holder(&placed.problems[0]);
    assert_eq!(lost.as_ref().map(ClusterName::as_str), Some("west-1"));
    assert_eq!((places(&placed, "shop"), &placed.record), (vec![], &record));
    insta::assert_snapshot!(texts(&placed).join("\n"), @r"
    regions/west/west-1.yaml: there is no cluster `west-1` any more, but it holds the writer of shop
       = help: bring the file back. If nothing runs in this cluster any more and its data is lost: `muster cluster remove west-1 --override writers --reason TEXT`
    ");
    // The writer counts as long as it is in the record, even if its app has left the repository.
    let nothing = Commit {
        app: None,
        ..without
    };
    assert_eq!(nothing.place(&record).problems.len(), 1);
}

#[test]
fn a_renamed_app_keeps_its_writer_and_its_epoch() {
    let record = first();
    let renamed = Commit {
        name: "store",
        ..commit("mode: active-passive, formerly: shop, placement: {regions: [east, west]}")
    };
    let placed = renamed.place(&record);
    assert_eq!(
        places(&placed, "store"),
        ["east-1: standby", "west-1: primary"]
    );
    assert_eq!(placed.record.epoch, Epoch(2));
    assert_eq!(
        placed
            .record
            .writers
            .keys()
            .map(AppName::as_str)
            .collect::<Vec<_>>(),
        ["store"]
    );
    assert_eq!(placed.record.writers["store"], record.writers["shop"]);
}

#[test]
fn a_cluster_in_another_region_keeps_its_writer() {
    let record = first();
    let moved = Commit {
        clusters: vec![("east-1", "east", "public"), ("west-1", "east", "public")],
        ..commit("mode: active-passive")
    };
    let placed = moved.place(&record);
    assert_eq!(places(&placed, "shop"), ["west-1: primary"]);
    let writer = &placed.record.writers["shop"];
    assert_eq!((writer.region.as_str(), writer.epoch), ("east", Epoch(1)));
}

#[test]
fn no_app_gets_its_first_writer_while_that_is_frozen() {
    let (model, broken) = commit(IN_BOTH).model();
    let frozen = Some("cluster east-1 may know more");
    let none = FleetRecord::default();
    let placed = place(
        &model,
        Known {
            record: &none,
            broken: &broken,
            frozen,
        },
    );
    assert_eq!(
        (places(&placed, "shop"), placed.record.writers),
        (vec![], none.writers)
    );
    assert_eq!(placed.problems.len(), 1);
    let record = first();
    let placed = place(
        &model,
        Known {
            record: &record,
            broken: &broken,
            frozen,
        },
    );
    assert_eq!((placed.record, placed.problems), (record, vec![]));
}

fn some_commit() -> impl Strategy<Value = Commit> {
    let clusters = proptest::sample::subsequence(
        vec![
            ("a-1", "east", "public"),
            ("east-1", "east", "public"),
            ("east-1", "west", "public"),
            ("west-0", "west", "private"),
            ("west-1", "west", "public"),
            ("west-1", "east", "private"),
        ],
        1..=6,
    );
    let app = prop_oneof![
        4 => proptest::sample::select(vec![
            "mode: singleton",
            "mode: active-active",
            "mode: active-passive",
            "mode: active-passive, placement: {regions: [west, east]}",
            "mode: active-passive, placement: {regions: [east, west]}",
            "mode: active-passive, placement: {clusterSelector: {matchLabels: {kind: public}}}",
            "mode: singleton, placement: {clusters: [east-1, west-1]}",
        ]).prop_map(|spec| Some(spec.to_owned())),
        1 => Just(None),
    ];
    let renamed = any::<bool>();
    (clusters, app, renamed).prop_map(|(mut clusters, app, renamed)| {
        let mut seen = BTreeSet::new();
        clusters.retain(|(name, ..)| seen.insert(*name));
        let name = if renamed { "store" } else { "shop" };
        let old = if renamed { "shop" } else { "store" };
        let app = app.map(|app| format!("{app}, formerly: {old}"));
        Commit {
            clusters,
            app,
            name,
        }
    })
}

proptest! {
    #[test]
    fn no_series_of_commits_moves_or_doubles_a_writer(commits in proptest::collection::vec(some_commit(), 1..8)) {
        let mut record = FleetRecord::default();
        let mut holder: Option<ClusterName> = None;
        for commit in commits {
            let (model, broken) = commit.model();
            let placed = place(&model, Known { record: &record, broken: &broken, frozen: None });
            prop_assert!(placed.record.epoch >= record.epoch);
            if record.epoch > Epoch(0) {
                prop_assert_eq!(placed.record.epoch > record.epoch, placed.record != record);
            }
            prop_assert_eq!(placed.record.contradicted_by(&placed.roles), None);
            prop_assert!(placed.record.writers.len() <= 1);
            let now = placed.record.writers.values().next().map(|writer| writer.cluster.clone());
            if holder.is_some() {
                prop_assert_eq!(&now, &holder);
            }
            for places in placed.roles.values() {
                let primaries = places.values().filter(|role| **role == Role::Primary);
                prop_assert!(primaries.count() <= 1);
            }
            holder = now;
            record = placed.record;
        }
    }
}

/// Returns the record while the writer of `shop` moves from the west to the east.
fn moving(handover: impl FnOnce(&mut Writer)) -> FleetRecord {
    let mut record = first();
    record.epoch = record.epoch.next();
    let writer = record.writers.get_mut("shop").unwrap();
    writer.epoch = record.epoch;
    handover(writer);
    record
}

fn in_the(region: &str) -> Place {
    Place {
        region: region.parse().unwrap(),
        cluster: format!("{region}-1").parse().unwrap(),
    }
}

fn fencing(writer: &mut Writer) {
    let baseline = Baseline {
        instance: "0".repeat(32).parse().unwrap(),
        rule: ContentHash::of(b""),
        uids: BTreeMap::new(),
    };
    let to = in_the("east");
    writer.handover = Some(Handover::Fencing { to, baseline });
}

fn promoting(writer: &mut Writer) {
    writer.handover = Some(Handover::Promoting {
        from: writer.place(),
        carried: BTreeMap::new(),
        unproven: None,
    });
    let Place { region, cluster } = in_the("east");
    (writer.region, writer.cluster) = (region, cluster);
}

#[test]
fn a_move_gives_each_cluster_the_role_of_its_step() {
    let placed = commit(IN_BOTH).place(&moving(fencing));
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: standby", "west-1: fenced"]
    );
    let placed = commit(IN_BOTH).place(&moving(promoting));
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: primary", "west-1: fenced"]
    );
    // A singleton has no standby.
    let singleton = || commit("mode: singleton, placement: {regions: [west, east]}");
    let placed = singleton().place(&moving(fencing));
    assert_eq!(places(&placed, "shop"), ["west-1: fenced"]);
    let placed = singleton().place(&moving(promoting));
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: primary", "west-1: fenced"]
    );
}

#[test]
fn no_commit_changes_a_move() {
    // Git no longer lets the app run where it is moved to.
    let record = moving(fencing);
    let placed = commit("mode: active-passive, placement: {regions: [west]}").place(&record);
    assert_eq!((places(&placed, "shop"), &placed.record), (vec![], &record));
    insta::assert_snapshot!(texts(&placed).join("\n"), @r"
    apps/shop/app.yaml:4:53: `placement` does not fit cluster `east-1`, to which this app's writer is being moved
       |
     4 | spec: {tier: gold, mode: active-passive, placement: {regions: [west]}}
       |                                                     ^
       = help: let it fit until the move is finished, or end the move: `muster app move shop --to west`
    ");
    // The old side stays fenced, even if Git no longer lets the app run there.
    let record = moving(promoting);
    let placed = commit("mode: active-passive, placement: {regions: [east]}").place(&record);
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: primary", "west-1: fenced"]
    );
    assert_eq!((placed.record, placed.problems), (record.clone(), vec![]));
    // A cluster that sorts first changes neither side.
    let mut with = commit(IN_BOTH);
    with.clusters.push(("east-0", "east", "public"));
    with.clusters.push(("west-0", "west", "public"));
    let placed = with.place(&record);
    assert_eq!(
        places(&placed, "shop"),
        ["east-1: primary", "west-1: fenced"]
    );
}
