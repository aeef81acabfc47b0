use super::*;

fn app(name: &str) -> v1::AppReport {
    v1::AppReport {
        app: name.to_owned(),
        ..v1::AppReport::default()
    }
}

#[test]
fn invented_apps_are_left_out_and_those_that_leave_are_not() {
    let mut report = v1::Report {
        apps: (0..1000).map(|n| app(&format!("invented-{n}"))).collect(),
        ..v1::Report::default()
    };
    report.apps.insert(0, app("web"));
    report.apps.insert(1, app("left"));
    report.apps.push(app("../../etc"));
    let known = BTreeMap::from([("left".to_owned(), app("left"))]);
    let said = bound(&mut report, |app| app == "web", &known).unwrap();
    assert!(said.contains("reports 938 apps"), "{said}");
    assert_eq!(report.apps.len(), 2 + UNKNOWN - 1);
    assert_eq!(
        (report.apps[0].app.as_str(), report.apps[1].app.as_str()),
        ("web", "left")
    );
}

#[test]
fn texts_and_lists_are_cut() {
    let long = "ä".repeat(100_000);
    let mut one = app("web");
    one.health.clone_from(&long);
    one.problems = vec![
        v1::ObjectProblem {
            object: long.clone(),
            message: long.clone(),
        };
        1000
    ];
    one.holds = vec![
        v1::Hold {
            objects: vec![long.clone(); 3],
            reason: long.clone(),
            ..v1::Hold::default()
        };
        1000
    ];
    let mut report = v1::Report {
        apps: vec![one],
        problems: vec![long; 1000],
        ..v1::Report::default()
    };
    assert_eq!(bound(&mut report, |_| true, &BTreeMap::new()), None);
    assert!(report.encoded_len() < 2_500_000, "{}", report.encoded_len());
    let mut apps: BTreeMap<String, v1::AppReport> = (0..100)
        .map(|n| (n.to_string(), report.apps[0].clone()))
        .collect();
    assert!(bound_level(&mut apps).unwrap().contains("details"));
    let size: usize = apps.values().map(v1::AppReport::encoded_len).sum();
    assert!(size < LEVEL_BYTES, "{size}");
    assert_eq!(bound_level(&mut apps), None);
}
