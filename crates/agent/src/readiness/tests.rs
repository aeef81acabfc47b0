use super::*;

fn told(answer: Result<v1::Checked, Status>) -> Option<String> {
    judge("hub:7443", answer)
        .err()
        .map(|doubt| doubt.to_string())
}

#[test]
fn only_an_explicit_refusal_counts_against_this_build() {
    let checked = |protocol| v1::Checked {
        protocol,
        version: "9.9.9".to_owned(),
    };
    assert_eq!(told(Ok(checked(PROTOCOL_VERSION))), None);
    insta::assert_snapshot!(told(Ok(checked(99))).unwrap(), @"the hub at hub:7443 does not accept this agent (0.1.0): it (version 9.9.9) speaks protocol 99, this agent 2; upgrade the older one");
    let refused = told(Err(Status::failed_precondition("upgrade the older one")));
    insta::assert_snapshot!(refused.unwrap(), @"the hub at hub:7443 does not accept this agent (0.1.0): upgrade the older one");
    assert!(told(Err(Status::permission_denied("removed"))).is_some());
    for silent in [
        Code::Unimplemented,
        Code::Unavailable,
        Code::Internal,
        Code::Unauthenticated,
    ] {
        assert_eq!(told(Err(Status::new(silent, "?"))), None);
    }
}
