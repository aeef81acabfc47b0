use super::*;

fn report(app: &str, drifts: impl IntoIterator<Item = (i64, bool)>) -> v1::AppReport {
    let drift = |(at, recreated): (i64, bool)| v1::DriftEvent {
        at,
        object: "Job.batch wiki/migrate".to_owned(),
        difference: "spec.template can't be changed".to_owned(),
        corrected: true,
        recreated,
    };
    v1::AppReport {
        app: app.to_owned(),
        drifts: drifts.into_iter().map(drift).collect(),
        ..v1::AppReport::default()
    }
}

fn told(recreations: &mut Recreations) -> Vec<String> {
    let entries = recreations.take().into_iter();
    entries
        .map(|e| format!("{}: {}", e.record.who, e.record.what))
        .collect()
}

#[test]
fn each_recreation_is_told_once() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let mut recreations = Recreations::default();
    let mut known = BTreeMap::new();
    let first = report("wiki", [(1, false), (2, true)]);
    recreations.hear(&cluster, &known, std::slice::from_ref(&first), 10);
    let one = "agent of cluster eu-1: recreated Job.batch wiki/migrate of app wiki: \
                   spec.template can't be changed";
    let untold = recreations.take();
    recreations.take_back(untold);
    assert_eq!(told(&mut recreations), [one]);
    known.insert("wiki".to_owned(), first.clone());
    recreations.hear(&cluster, &known, &[first], 11);
    assert_eq!(told(&mut recreations), [""; 0]);
    recreations.hear(
        &cluster,
        &known,
        &[report("wiki", [(2, true), (3, true)])],
        12,
    );
    assert_eq!(told(&mut recreations).len(), 1);
}

#[test]
fn no_agent_fills_the_store() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let mut recreations = Recreations::default();
    let many = [report("wiki", (0..10_000).map(|at| (at, true)))];
    recreations.hear(&cluster, &BTreeMap::new(), &many, 10);
    let entries = told(&mut recreations);
    assert_eq!(entries.len(), 101);
    assert!(entries[100].contains("more than 100 objects"));
    recreations.hear(&cluster, &BTreeMap::new(), &many, 10 + PERIOD);
    assert_eq!(told(&mut recreations).len(), 101);
}
