use proptest::prelude::*;

use super::*;

#[test]
fn a_certificate_is_renewed_after_two_thirds_of_its_time_however_short() {
    let made = UNIX_EPOCH + Duration::from_secs(1_000_000);
    for seconds in [3, 45, 86_400] {
        let end = made + Duration::from_secs(seconds);
        let due = rotate_at(made - SKEW, end).duration_since(made).unwrap();
        assert_eq!(due, Duration::from_secs(seconds) * 2 / 3);
    }
}

#[test]
fn a_clock_that_jumps_makes_things_due() {
    let (hour, made) = (Duration::from_secs(3600), UNIX_EPOCH + SKEW * 1000);
    let due = |now| is_due(made, hour, now);
    assert!(!due(made) && !due(made + hour / 3) && !due(made - SKEW / 2));
    assert!(due(made + hour / 2) && due(made + hour * 9) && due(made - SKEW) && due(UNIX_EPOCH));
}

#[test]
fn identities_are_their_uris() {
    let agent = Identity::Agent {
        cluster: "eu-west-1".parse().unwrap(),
        instance: "a1b2".parse().unwrap(),
    };
    let admin = Identity::Admin("ada@example.org".parse().unwrap());
    for (identity, uri) in [
        (agent, "spiffe://muster/cluster/eu-west-1/instance/a1b2"),
        (admin, "spiffe://muster/admin/ada@example.org"),
    ] {
        assert_eq!(identity.to_string(), uri);
        assert_eq!(Identity::parse(uri), Some(identity));
    }
}

proptest! {
    #[test]
    fn no_other_text_is_an_identity(
        uri in "(spiffe://muster/|spiffe://other/|)(cluster|admin|hub|)/?[a-zA-Z/%.é-]{0,12}(/instance/)?[a-z/-]{0,4}"
    ) {
        if let Some(identity) = Identity::parse(&uri) {
            prop_assert_eq!(identity.to_string(), uri);
        }
    }
}

#[test]
fn names_of_people_fit_a_uri_and_a_log() {
    for bad in ["", "a/b", "a b", "ä", "a%2f", "a\n", &"a".repeat(64)] {
        assert!(bad.parse::<AdminName>().is_err(), "{bad}");
    }
}

#[test]
fn rotates_after_two_thirds() {
    let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 3600);
    assert_eq!(rotate_at(at(10) - SKEW, at(34)), at(26));
    assert_eq!(rotate_at(at(10) - SKEW, at(10)), at(10));
    assert_eq!(rotate_at(at(10) - SKEW, at(9)), at(9));
}
