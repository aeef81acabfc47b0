use muster_model::ids::ObjectId;

use super::*;
use crate::overseer::problem;

fn tree(files: &[(&str, u8)]) -> Tree {
    let entry = |id: u8| Entry::File {
        id: ObjectId([id; 20]),
        bytes: [id].into(),
    };
    let files = files.iter();
    Tree {
        entries: files
            .map(|(path, id)| ((*path).to_owned(), entry(*id)))
            .collect(),
    }
}

#[test]
fn a_verdict_lasts_until_something_changes_that_the_app_depends_on() {
    let app: AppName = "web".parse().unwrap();
    let before = [
        ("apps/other/app.yaml", 1),
        ("apps/web/app.yaml", 2),
        ("lib/a", 3),
    ];
    let mut verdicts = Verdicts::default();
    verdicts.add(
        app.clone(),
        &tree(&before),
        problem(&app, "it crashes the worker"),
    );
    for (change, left) in [(0, 1), (1, 0), (2, 0)] {
        let mut after = before;
        after[change].1 = 9;
        let mut kept = verdicts.clone();
        kept.trim(&tree(&after));
        assert_eq!(kept.0.len(), left, "{change}");
    }
    let mut later = verdicts.clone();
    for verdict in later.0.values_mut() {
        verdict.since -= TRY_AGAIN_AFTER;
    }
    later.trim(&tree(&before));
    assert_eq!(later.0.len(), 0);
}
