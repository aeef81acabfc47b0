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
fn each_recreation_is_recorded_once() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let mut recreations = Recreations::default();
    let first = report("wiki", [(1, false), (2, true)]);
    recreations.hear(&cluster, std::slice::from_ref(&first), 10);
    let one = "agent of cluster eu-1: recreated Job.batch wiki/migrate of app wiki: \
                   spec.template can't be changed";
    let untold = recreations.take();
    recreations.take_back(untold);
    assert_eq!(told(&mut recreations), [one]);
    recreations.hear(&cluster, std::slice::from_ref(&first), 11);
    assert_eq!(told(&mut recreations), [""; 0]);
    recreations.hear(&cluster, &[report("wiki", [(2, true), (3, true)])], 12);
    assert_eq!(told(&mut recreations).len(), 1);
    // The same happened in another app, and in another cluster.
    recreations.hear(&cluster, &[report("shop", [(2, true)])], 13);
    recreations.hear(&"eu-2".parse().unwrap(), &[first], 13);
    assert_eq!(told(&mut recreations).len(), 2);
}

#[test]
fn no_agent_fills_the_store() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let mut recreations = Recreations::default();
    let many = |from: i64| [report("wiki", (from..from + 10_000).map(|at| (at, true)))];
    recreations.hear(&cluster, &many(0), 10);
    let entries = told(&mut recreations);
    assert_eq!(entries.len(), 101);
    assert!(entries[100].contains("more than 100 objects"));
    recreations.hear(&cluster, &many(10_000), 10 + PERIOD);
    assert_eq!(told(&mut recreations).len(), 101);
}

#[test]
fn no_agent_fills_the_memory() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let mut recreations = Recreations::default();
    let least = i64::try_from(REMEMBERED).unwrap();
    let end = 3 * least + 10;
    let all = [report("wiki", (0..end).map(|at| (at, true)))];
    recreations.hear(&cluster, &all, 10);
    let Reported { recent, earlier } = &recreations.reported[&cluster];
    assert_eq!((recent.len(), earlier.len()), (10, REMEMBERED));
    let newest = [report("wiki", (end - least..end).map(|at| (at, true)))];
    assert!(recreations.new_in(&cluster, &newest).is_empty());
}
