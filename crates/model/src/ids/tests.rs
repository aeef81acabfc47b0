use super::*;

#[test]
fn labels_follow_rfc_1123() {
    for good in ["a", "eu-west-1", &"x".repeat(63)] {
        assert!(good.parse::<ClusterName>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "-a",
        "a-",
        "A",
        "a_b",
        "a.b",
        "../a",
        &"x".repeat(64),
        "é",
    ] {
        assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
    }
}

#[test]
fn the_text_of_a_hash_is_parsed_as_the_same_hash() {
    let hash = ContentHash::of(b"x");
    assert_eq!(hash.to_string().parse(), Ok(hash));
    assert!("zz".repeat(32).parse::<ContentHash>().is_err());
    assert!("é".repeat(32).parse::<ContentHash>().is_err());
    assert!("+a".repeat(32).parse::<ContentHash>().is_err());
    assert!("+a".repeat(20).parse::<ObjectId>().is_err());
}
