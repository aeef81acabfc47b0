use super::*;

#[test]
fn a_large_app_is_left_out_and_a_content_counts_once() {
    let file = |id: u8, size: usize| Entry::File {
        id: ObjectId([id; 20]),
        bytes: vec![0; size].into(),
    };
    let mut entries = BTreeMap::from([
        ("fleet.yaml".to_owned(), file(1, 1000)),
        ("apps/large/app.yaml".to_owned(), file(2, 10)),
        ("apps/large/manifests/a.yaml".to_owned(), file(3, 60)),
        ("apps/large/manifests/b.yaml".to_owned(), file(4, 60)),
    ]);
    for n in 0..50 {
        entries.insert(format!("apps/same/manifests/{n}.yaml"), file(5, 60));
    }
    let (left, told) = without_large(&Arc::new(Tree { entries }), 100);
    assert_eq!(left.entries.len(), 52);
    assert!(left.entries.contains_key("apps/large/app.yaml"));
    let large: Vec<&str> = told.keys().map(AppName::as_str).collect();
    assert_eq!(large, ["large"]);
}
