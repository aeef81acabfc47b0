use super::*;

#[test]
fn a_deletion_that_takes_too_long_hangs_on_its_finalizers() {
    let finalizers = ["x.example/finish".to_owned()];
    let (state, message) = terminating(&finalizers, Duration::from_secs(599));
    assert_eq!(state, LeftoverState::Deleting);
    assert_eq!(message, "it is being deleted, waiting for x.example/finish");
    let (state, message) = terminating(&finalizers, HANGS_AFTER);
    assert_eq!(state, LeftoverState::Refused);
    assert!(message.contains("for the finalizer x.example/finish"));
    assert_eq!(age(Some("not a time")), Duration::ZERO);
    assert!(age(Some("2024-01-01T00:00:00Z")) > HANGS_AFTER);
}
