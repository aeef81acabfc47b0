use super::*;

fn waiting(cluster: &str, set: &str, objects: usize, count: u32) -> Waiting {
    Waiting {
        cluster: cluster.to_owned(),
        hold: Hold {
            set: set.to_owned(),
            reason: format!("{count} of 40 objects of wiki would be deleted; the budget is 10"),
            recreate: false,
            count,
            objects: (0..objects)
                .map(|n| format!("ConfigMap wiki/page-{n}"))
                .collect(),
        },
        verdict: Verdict::Waiting,
        refusal: None,
    }
}

fn approvals(holds: Vec<Waiting>) -> Approvals {
    let app = "wiki".to_owned();
    Approvals { app, holds }
}

#[test]
fn what_is_the_same_in_many_clusters_is_shown_once() {
    let all = approvals(vec![
        waiting("eu-north-1", "a", 2, 60),
        waiting("eu-west-1", "b", 3, 3),
        waiting("eu-west-2", "c", 3, 3),
    ]);
    let terminal = Terminal::default();
    insta::assert_snapshot!(all.shown(terminal), @r"
        wiki: 3 objects in each of eu-west-1, eu-west-2 would be deleted
          pending approval because 3 of 40 objects of wiki would be deleted; the budget is 10
            ConfigMap wiki/page-0
            ConfigMap wiki/page-1
            ConfigMap wiki/page-2
        wiki: 60 objects in eu-north-1 would be deleted
          pending approval because 60 of 40 objects of wiki would be deleted; the budget is 10
            ConfigMap wiki/page-0
            ConfigMap wiki/page-1
            and 58 more
        ");
    let narrow = Terminal {
        width: Some(40),
        ..terminal
    };
    let one = approvals(vec![waiting("eu-west-1", "b", 1, 1)]);
    insta::assert_snapshot!(one.shown(narrow), @r"
        wiki: 1 object in eu-west-1 would be
          deleted
          pending approval because 1 of 40
          objects of wiki would be deleted; the
          budget is 10
            ConfigMap wiki/page-0
        ");
    insta::assert_snapshot!(approvals(vec![]).shown(terminal), @"nothing of wiki is pending approval");
}

#[test]
fn a_recreation_says_that_the_object_comes_back() {
    let mut database = waiting("eu-west-1", "a", 0, 1);
    database.hold.recreate = true;
    database.hold.reason =
        "spec.engine can't be changed; recreating it would lose the data in it".to_owned();
    database.hold.objects = vec!["Database.example.org wiki/main".to_owned()];
    let both = approvals(vec![database.clone(), waiting("eu-west-1", "b", 1, 2)]);
    insta::assert_snapshot!(both.shown(Terminal::default()), @r"
        wiki: 2 objects in eu-west-1 would be deleted
          pending approval because 2 of 40 objects of wiki would be deleted; the budget is 10
            ConfigMap wiki/page-0
            and 1 more
        wiki: 1 object in eu-west-1 would be deleted and recreated
          pending approval because spec.engine can't be changed; recreating it would lose the data in it
            Database.example.org wiki/main
        ");
    assert_eq!(
        both.question(),
        "Delete 2 objects, and delete and recreate 1 object"
    );
    assert_eq!(
        approvals(vec![database]).question(),
        "Delete and recreate 1 object"
    );
    assert_eq!(
        approvals(vec![waiting("a", "b", 1, 2)]).question(),
        "Delete 2 objects"
    );
}

#[test]
fn without_an_answer_the_verdict_is_unknown() {
    assert_eq!(verdict(Ok(())), (Verdict::Approved, None));
    let refused = Status::failed_precondition("it has changed");
    assert_eq!(
        verdict(Err(refused)),
        (Verdict::Refused, Some("it has changed".to_owned()))
    );
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let broken = Status::from_error(broken.into());
    assert_eq!(
        verdict(Err(broken)),
        (Verdict::Unknown, Some(BROKEN.to_owned()))
    );
    let mut all = approvals(vec![waiting("eu-west-1", "b", 1, 1)]);
    all.holds[0].verdict = Verdict::Unknown;
    assert!(!all.end(Output::Table).unwrap());
    assert_eq!(value(&Verdict::Unknown).unwrap(), "unknown");
}

#[test]
fn scripts_see_every_verdict() {
    let mut all = approvals(vec![
        waiting("eu-west-1", "b", 1, 1),
        waiting("eu-west-2", "c", 1, 1),
    ]);
    assert!(all.end(Output::Table).unwrap());
    all.holds[0].verdict = Verdict::Approved;
    all.holds[1].verdict = Verdict::Refused;
    all.holds[1].refusal =
        Some("what is pending approval has changed since you were shown it".to_owned());
    assert!(!all.end(Output::Table).unwrap());
    assert!(!approvals(vec![]).end(Output::Table).unwrap());
    insta::assert_snapshot!(format!("{:#}", value(&all).unwrap()), @r#"
        {
          "app": "wiki",
          "holds": [
            {
              "cluster": "eu-west-1",
              "count": 1,
              "objects": [
                "ConfigMap wiki/page-0"
              ],
              "reason": "1 of 40 objects of wiki would be deleted; the budget is 10",
              "recreate": false,
              "refusal": null,
              "set": "b",
              "verdict": "approved"
            },
            {
              "cluster": "eu-west-2",
              "count": 1,
              "objects": [
                "ConfigMap wiki/page-0"
              ],
              "reason": "1 of 40 objects of wiki would be deleted; the budget is 10",
              "recreate": false,
              "refusal": "what is pending approval has changed since you were shown it",
              "set": "c",
              "verdict": "refused"
            }
          ]
        }
        "#);
}
