use super::*;

#[test]
fn the_wait_grows_to_a_minute_and_never_falls_below_a_second() {
    let seconds: Vec<_> = (1..9)
        .map(|failures| backoff(failures, 1.0).as_secs())
        .collect();
    assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(backoff(1, 0.0), Duration::from_secs(1));
    assert_eq!(backoff(u32::MAX, 0.0), Duration::from_secs(30));
}

#[test]
fn only_what_was_written_is_a_change() {
    let event = |kind, path: &str| Event::new(kind).add_path(path.into());
    let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
    let write = EventKind::Access(AccessKind::Close(AccessMode::Write));
    assert!(!is_change(&event(read, "/r/HEAD")));
    assert!(is_change(&event(write, "/r/HEAD")));
    assert!(!is_change(&event(write, "/r/refs/heads/main.lock")));
    let renamed = event(EventKind::Any, "/r/main.lock").add_path("/r/main".into());
    assert!(is_change(&renamed));
}
