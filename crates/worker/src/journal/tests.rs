use super::*;

/// Returns the journal of the next process, after the process of this journal was killed.
fn killed(journal: Journal) -> Journal {
    Journal {
        file: None,
        page: journal.page.later(),
    }
}

#[test]
fn an_app_is_guilty_when_two_processes_in_a_row_end_over_it() {
    let (api, web): (AppName, AppName) = ("api".parse().unwrap(), "web".parse().unwrap());
    let mut journal = Journal::open(None);
    journal.begin("one", None);
    let mut journal = killed(journal);
    assert!(journal.ended_over("one") && !journal.ended_over("two"));
    assert_eq!(journal.guilty("one"), None);
    // From now on, apps are processed one at a time.
    for turn in [None, Some(&api), Some(&web)] {
        journal.begin("one", turn);
    }
    let mut journal = killed(journal);
    assert_eq!(journal.guilty("one"), None, "one crash may be chance");
    // The process is killed for another reason, before it starts an app.
    journal.begin("one", None);
    let mut journal = killed(journal);
    for turn in [None, Some(&api), None, Some(&web)] {
        journal.begin("one", turn);
    }
    let mut journal = killed(journal);
    assert_eq!(journal.guilty("one"), Some(web));
    journal.begin("two", None);
    journal.end();
    assert!(!killed(journal).ended_over("two"));
}
