use super::*;

fn writes(keys: impl IntoIterator<Item = String>) -> BTreeMap<String, Option<Bytes>> {
    keys.into_iter().map(|key| (key, None)).collect()
}

fn keys(keys: &[&str]) -> Option<Changes> {
    Some(Changes::Keys(
        keys.iter().map(ToString::to_string).collect(),
    ))
}

#[tokio::test]
async fn tells_everything_first_then_each_key_once() {
    let watchers = Watchers::default();
    let mut watch = watchers.watch("a/");
    assert_eq!(watch.changes().await, Some(Changes::All));
    watchers.tell(&writes([
        "a".into(),
        "a/1".into(),
        "a/2".into(),
        "b".into(),
    ]));
    watchers.tell(&writes(["a/1".into(), "a0".into()]));
    assert_eq!(watch.changes().await, keys(&["a/1", "a/2"]));
    watchers.tell(&writes(["a/3".into()]));
    assert_eq!(watch.changes().await, keys(&["a/3"]));
}

#[tokio::test]
async fn a_watcher_far_behind_reads_everything_again() {
    let watchers = Watchers::default();
    let mut watch = watchers.watch("");
    assert_eq!(watch.changes().await, Some(Changes::All));
    watchers.tell(&writes((0..=MOST_KEYS).map(|n| n.to_string())));
    watchers.tell(&writes(["x".into()]));
    assert_eq!(watch.changes().await, Some(Changes::All));
    watchers.tell(&writes(["x".into()]));
    assert_eq!(watch.changes().await, keys(&["x"]));
}

#[tokio::test]
async fn ends_with_the_store_and_forgets_dropped_watches() {
    let watchers = Watchers::default();
    let mut watch = watchers.watch("");
    drop(watchers.watch(""));
    watchers.tell(&writes(["x".into()]));
    assert_eq!(watchers.lock().len(), 1);
    let waiting = tokio::spawn(async move { while watch.changes().await.is_some() {} });
    drop(watchers);
    waiting.await.unwrap();
}
