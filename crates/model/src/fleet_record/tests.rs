use super::*;

fn record() -> FleetRecord {
    let writer = Writer {
        handover: None,
        region: "west".parse().unwrap(),
        cluster: "west-1".parse().unwrap(),
        epoch: Epoch(3),
        at: 1,
        by: "somebody".into(),
        why: "a test".into(),
    };
    FleetRecord {
        epoch: Epoch(5),
        writers: BTreeMap::from([("shop".parse().unwrap(), writer)]),
    }
}

#[test]
fn a_sealed_record_is_read_as_it_was_and_under_its_own_epoch_only() {
    let mut sealed = SealedRecord::new(&record(), |_| [7; 32]);
    assert_eq!(sealed.read().unwrap(), record());
    assert_eq!((sealed.epoch, sealed.proof), (Epoch(5), [7; 32]));
    sealed.epoch = Epoch(6);
    assert!(sealed.read().is_err());
}

#[test]
fn a_primary_elsewhere_contradicts_the_record() {
    let roles = |cluster: &str, role: &str| -> Roles {
        let places = BTreeMap::from([(cluster.parse().unwrap(), role.parse().unwrap())]);
        BTreeMap::from([("shop".parse().unwrap(), places)])
    };
    assert_eq!(record().contradicted_by(&roles("west-1", "primary")), None);
    assert_eq!(record().contradicted_by(&roles("east-1", "standby")), None);
    let wrong = roles("east-1", "primary");
    assert_eq!(
        record().contradicted_by(&wrong).map(AppName::as_str),
        Some("shop")
    );
    assert!(FleetRecord::default().contradicted_by(&wrong).is_some());
}

/// Returns a record of this epoch in which each app has its writer in a cluster since an epoch.
fn of(epoch: u64, writers: &[(&str, &str, u64)]) -> FleetRecord {
    let writers = writers.iter().map(|(app, cluster, since)| {
        let writer = Writer {
            handover: None,
            cluster: cluster.parse().unwrap(),
            epoch: Epoch(*since),
            ..record().writers["shop"].clone()
        };
        (app.parse().unwrap(), writer)
    });
    FleetRecord {
        epoch: Epoch(epoch),
        writers: writers.collect(),
    }
}

#[test]
fn the_union_of_two_records_loses_no_writer() {
    let own = of(3, &[("shop", "west-1", 1), ("jobs", "east-1", 3)]);
    let newer = of(5, &[("shop", "west-1", 1), ("queue", "west-1", 5)]);
    let both = [
        ("shop", "west-1", 1),
        ("jobs", "east-1", 3),
        ("queue", "west-1", 5),
    ];
    assert_eq!(own.union(&newer), Ok(of(6, &both)));
    assert_eq!(newer.union(&own), Ok(of(6, &both)));
    // A descendant is taken over as it is.
    let later = of(7, &both);
    assert_eq!(own.union(&later), Ok(later.clone()));
    assert_eq!(later.union(&own), Ok(later));
    // The later holder counts.
    let moved = of(4, &[("shop", "east-1", 4), ("jobs", "east-1", 3)]);
    assert_eq!(own.union(&moved), Ok(moved.clone()));
    assert_eq!(moved.union(&own), Ok(moved));
    let elsewhere = of(3, &[("shop", "west-1", 1), ("jobs", "west-1", 3)]);
    assert_eq!(own.union(&elsewhere), Err("jobs".parse().unwrap()));
}

#[test]
fn a_move_that_has_ended_is_newer_than_one_that_has_not() {
    let mut before = record();
    let writer = before.writers.get_mut("shop").unwrap();
    writer.handover = Some(Handover::Promoting {
        from: Place {
            region: "east".parse().unwrap(),
            cluster: "east-1".parse().unwrap(),
        },
        carried: BTreeMap::from([("lsn".to_owned(), "0/1".to_owned())]),
        unproven: None,
    });
    let after = FleetRecord {
        epoch: before.epoch.next(),
        ..record()
    };
    assert!(!before.holds_like(&after));
    assert_eq!(before.union(&after), Ok(after.clone()));
    assert_eq!(after.union(&before), Ok(after.clone()));
    let sealed = SealedRecord::new(&before, |_| [0; 32]);
    assert_eq!(sealed.read().unwrap(), before);
}

#[test]
fn nobody_is_the_primary_while_the_holder_is_fenced() {
    let mut record = record();
    let shop: AppName = "shop".parse().unwrap();
    let places = BTreeMap::from([("west-1".parse().unwrap(), Role::Primary)]);
    let roles = Roles::from([(shop.clone(), places)]);
    assert_eq!(record.contradicted_by(&roles), None);
    let writer = record.writers.get_mut("shop").unwrap();
    writer.handover = Some(Handover::Fencing {
        to: writer.place(),
        baseline: Baseline {
            instance: "0".repeat(32).parse().unwrap(),
            rule: ContentHash::of(b""),
            uids: BTreeMap::new(),
        },
    });
    assert_eq!(record.contradicted_by(&roles), Some(&shop));
}
