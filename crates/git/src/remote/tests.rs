use super::*;

fn error(reference: Reference, names: &[&str]) -> String {
    let url = "/srv/fleet.git".parse().unwrap();
    let config = RemoteConfig {
        reference,
        ..RemoteConfig::new(url)
    };
    let heads: Vec<_> = names.iter().map(|name| (*name, Oid::ZERO_SHA1)).collect();
    choose(&config, &heads).unwrap_err().to_string()
}

#[test]
fn a_missing_reference_is_told_with_those_that_exist() {
    let branch = || Reference::Branch("main".into());
    let heads = [
        "HEAD",
        "refs/heads/b",
        "refs/heads/a",
        "refs/tags/v1",
        "refs/tags/v1^{}",
    ];
    assert_eq!(
        error(branch(), &heads),
        "/srv/fleet.git lacks branch main; it has: a, b"
    );
    assert_eq!(
        error(Reference::Tag("v2".into()), &heads),
        "/srv/fleet.git lacks tag v2; it has: v1"
    );
    let many: Vec<_> = (0..7).map(|i| format!("refs/heads/{i}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(error(branch(), &many).ends_with("it has: 0, 1, 2, 3, 4 and 2 more"));
    assert!(error(branch(), &["HEAD"]).ends_with("it has no branch at all"));
    assert_eq!(
        error(branch(), &[]),
        "/srv/fleet.git has no commit yet; push one"
    );
}
