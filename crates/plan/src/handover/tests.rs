use super::*;

fn place(name: &str) -> Place {
    Place {
        region: name.parse().unwrap(),
        cluster: name.parse().unwrap(),
    }
}

fn order(epoch: u64) -> Order {
    Order {
        epoch: Epoch(epoch),
        at: 7,
        by: "anna".to_owned(),
        why: "drill".to_owned(),
    }
}

fn held_by_a() -> Writer {
    Writer {
        region: "a".parse().unwrap(),
        cluster: "a".parse().unwrap(),
        epoch: Epoch(1),
        at: 0,
        by: "commit".to_owned(),
        why: "first placement".to_owned(),
        handover: None,
    }
}

fn look(role: Role, epoch: u64) -> Look {
    Look {
        instance: "0".repeat(32).parse().unwrap(),
        epoch: Epoch(epoch),
        role,
        is_applied: true,
        is_healthy: true,
        rule: Some(ContentHash::of(b"rule")),
        is_evaluated: true,
        stopped: false,
        uids: BTreeMap::from([("db".to_owned(), "1".to_owned())]),
        carried: BTreeMap::new(),
        why: "`when` is false".to_owned(),
    }
}

fn stopped(epoch: u64) -> Look {
    let carried = BTreeMap::from([("lsn".to_owned(), "0/3".to_owned())]);
    Look {
        stopped: true,
        carried,
        ..look(Role::Fenced, epoch)
    }
}

fn fencing() -> Writer {
    let writer = held_by_a();
    let baseline = baseline(&writer, Some(&look(Role::Primary, 1))).unwrap();
    fence(&writer, place("b"), baseline, order(2))
}

fn forced_by() -> Option<InstanceId> {
    Some("0".repeat(32).parse().unwrap())
}

fn seen<'a>(old: Option<&'a Look>, new: Option<&'a Look>) -> Seen<'a> {
    Seen {
        old,
        new,
        is_new_connected: true,
        is_old_gone: false,
    }
}

fn roles(writer: &Writer) -> [Option<Role>; 3] {
    ["a", "b", "c"].map(|name| role_of(writer, &name.parse().unwrap()))
}

#[test]
fn each_step_gives_each_side_its_role() {
    let writer = held_by_a();
    assert_eq!(roles(&writer), [Some(Role::Primary), None, None]);
    let fencing = fencing();
    assert_eq!(
        roles(&fencing),
        [Some(Role::Fenced), Some(Role::Standby), None]
    );
    assert_eq!((fencing.primary(), fencing.epoch), (None, Epoch(2)));
    let proof = stopped(2);
    let change = advance(&fencing, seen(Some(&proof), None)).unwrap();
    let promoting = advanced(&fencing, change, Epoch(3), 8);
    assert_eq!(
        roles(&promoting),
        [Some(Role::Fenced), Some(Role::Primary), None]
    );
    assert_eq!((promoting.at, promoting.epoch), (8, Epoch(3)));
    let Some(Handover::Promoting { carried, .. }) = &promoting.handover else {
        panic!("{promoting:?}");
    };
    assert_eq!(carried["lsn"], "0/3");
    let healthy = look(Role::Primary, 3);
    let change = advance(&promoting, seen(None, Some(&healthy))).unwrap();
    let finished = advanced(&promoting, change, Epoch(4), 9);
    assert_eq!(roles(&finished), [None, Some(Role::Primary), None]);
    // The roles of the new holder have not changed, so its Jobs do not run again.
    assert_eq!(finished.epoch, Epoch(3));
}

#[test]
fn a_move_begins_only_with_something_to_compare_a_proof_with() {
    let writer = held_by_a();
    let why = |look: Option<&Look>| baseline(&writer, look).unwrap_err();
    insta::assert_snapshot!(why(None), @"the agent of a, which holds the writer, is not connected or has not reported on the app");
    let no_rule = Look {
        rule: None,
        ..look(Role::Primary, 1)
    };
    insta::assert_snapshot!(why(Some(&no_rule)), @"the app has no `writer.stopped`, so nothing can prove that the old side has stopped writing");
    insta::assert_snapshot!(why(Some(&look(Role::Primary, 0))), @"a has not become the primary of epoch 1 yet");
    let unknown = Look {
        is_evaluated: false,
        why: "`objects.db` does not exist".to_owned(),
        ..look(Role::Primary, 1)
    };
    insta::assert_snapshot!(why(Some(&unknown)), @"`writer.stopped` can't be evaluated in a now, so a proof could not be told from it: `objects.db` does not exist");
    let always = Look {
        stopped: true,
        ..look(Role::Primary, 1)
    };
    insta::assert_snapshot!(why(Some(&always)), @"`writer.stopped` is true in a, where the app is the primary. So it proves nothing");
}

#[test]
fn only_a_proof_of_the_fenced_side_counts() {
    let fencing = fencing();
    let why = |look: Look| advance(&fencing, seen(Some(&look), None)).unwrap_err();
    let proof = || stopped(2);
    insta::assert_snapshot!(why(stopped(1)), @"the agent of a has not fenced the app yet");
    insta::assert_snapshot!(why(Look { role: Role::Primary, ..proof() }), @"the agent of a has not fenced the app yet");
    insta::assert_snapshot!(why(Look { is_applied: false, ..proof() }), @"the fenced objects of a are not all applied yet");
    insta::assert_snapshot!(why(Look { stopped: false, ..proof() }), @"a has not proven that the writer has stopped: `when` is false");
    insta::assert_snapshot!(why(Look { instance: "1".repeat(32).parse().unwrap(), ..proof() }), @"a has joined again since the writer was fenced there, so its agent can't prove anything about it. Move the writer back to its region and try again");
    insta::assert_snapshot!(why(Look { rule: Some(ContentHash::of(b"other")), ..proof() }), @"`writer` has changed in Git since the writer was fenced in a. Move the writer back to its region and try again");
    insta::assert_snapshot!(why(Look { uids: BTreeMap::new(), ..proof() }), @"`objects.db` in a is not the object that it was before the writer was fenced. Move the writer back to its region and try again");
    let away = Seen {
        is_new_connected: false,
        ..Seen::default()
    };
    let proof = proof();
    let old = Some(&proof);
    insta::assert_snapshot!(advance(&fencing, Seen { old, ..away }).unwrap_err(), @"the agent of b, which gets the writer, is not connected");
    // An object that did not exist before the fence, such as a Job, may prove it.
    let mut with_job = stopped(2);
    with_job.uids.insert("job".to_owned(), "9".to_owned());
    assert!(advance(&fencing, seen(Some(&with_job), None)).is_ok());
}

#[test]
fn a_move_that_is_given_back_leaves_the_holder_with_a_new_epoch() {
    let back = give_back(&fencing(), place("b"), order(3));
    assert_eq!(
        roles(&back),
        [Some(Role::Primary), Some(Role::Standby), None]
    );
    assert_eq!((back.epoch, back.is_urgent()), (Epoch(3), true));
    let fenced = look(Role::Fenced, 2);
    let waits = advance(&back, seen(None, Some(&fenced))).unwrap_err();
    assert_eq!(waits, "a has not applied the promotion yet");
    let healthy = look(Role::Primary, 3);
    let change = advance(&back, seen(None, Some(&healthy))).unwrap();
    let ended = advanced(&back, change, Epoch(4), 9);
    assert_eq!((ended.epoch, ended.handover), (Epoch(3), None));
}

#[test]
fn a_move_without_proof_ends_with_a_late_proof_or_without_the_cluster() {
    let forced = force(&held_by_a(), place("b"), forced_by(), order(2));
    assert_eq!(
        roles(&forced),
        [Some(Role::Fenced), Some(Role::Primary), None]
    );
    let healthy = look(Role::Primary, 2);
    assert!(forced.is_urgent());
    let change = advance(&forced, seen(None, Some(&healthy))).unwrap();
    assert_eq!(change, Advance::Verified);
    let forced = advanced(&forced, change, Epoch(3), 9);
    assert!(!forced.is_urgent());
    let waits = advance(&forced, seen(None, Some(&healthy))).unwrap_err();
    assert_eq!(
        waits,
        "the agent of a is not connected, or has not reported on the app"
    );
    let other = Look {
        instance: "1".repeat(32).parse().unwrap(),
        ..stopped(2)
    };
    let waits = advance(&forced, seen(Some(&other), Some(&healthy))).unwrap_err();
    assert!(waits.contains("a has joined again"), "{waits}");
    let running = look(Role::Fenced, 2);
    let waits = advance(&forced, seen(Some(&running), Some(&healthy))).unwrap_err();
    insta::assert_snapshot!(waits, @"a has not proven that the writer has stopped: `when` is false. A person ordered this move without proof");
    let without_rule = Look {
        rule: None,
        ..look(Role::Fenced, 2)
    };
    let change = advance(&forced, seen(Some(&without_rule), None));
    assert_eq!(change, Ok(Advance::Proven));
    let late = stopped(2);
    let change = advance(&forced, seen(Some(&late), None)).unwrap();
    assert_eq!(change, Advance::Proven);
    // The new side was healthy already.
    assert_eq!(
        advanced(&forced, change.clone(), Epoch(4), 9).handover,
        None
    );
    let early = force(&held_by_a(), place("b"), forced_by(), order(2));
    let proven = advanced(&early, change, Epoch(3), 9);
    assert_eq!(proven.epoch, Epoch(2));
    assert_eq!(
        advance(&proven, seen(None, Some(&healthy))),
        Ok(Advance::Finish)
    );
    let gone = Seen {
        is_old_gone: true,
        ..seen(None, Some(&healthy))
    };
    assert_eq!(advance(&forced, gone), Ok(Advance::Finish));
}
