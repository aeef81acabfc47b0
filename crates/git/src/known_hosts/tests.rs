use proptest::prelude::*;

use super::*;

fn key(content: u8) -> Vec<u8> {
    let kind = b"ssh-ed25519";
    [&[0, 0, 0, 11], &kind[..], &[0, 0, 0, 1, content]].concat()
}

fn encoded(content: u8) -> String {
    format!("ssh-ed25519 {}", BASE64_STANDARD.encode(key(content)))
}

fn verdict(text: &str, host: &str, port: u16, key: &[u8]) -> String {
    let files = [(PathBuf::from("hosts"), text.to_owned())];
    match decide(&files, Path::new("hosts"), host, port, key) {
        Ok(()) => "known".into(),
        Err(HostKeyError::Unknown { line, .. }) => format!("unknown {line}"),
        Err(HostKeyError::Changed { number, .. }) => format!("changed {number}"),
        Err(HostKeyError::Revoked { number, .. }) => format!("revoked {number}"),
        Err(other) => format!("{other:?}"),
    }
}

#[test]
fn only_a_host_with_this_very_key_is_known() {
    let one = encoded(1);
    let changed = "changed 1".to_owned();
    let known = "known".to_owned();
    let unknown = |name: &str| format!("unknown {name} {one}");
    for (text, host, port, expected) in [
        (String::new(), "a.example", 22, unknown("a.example")),
        (
            format!("a.example {one} comment"),
            "A.example",
            22,
            known.clone(),
        ),
        (
            format!("b.example,a.example {one}"),
            "a.example",
            22,
            known.clone(),
        ),
        (format!("*.example {one}"), "a.example", 22, known.clone()),
        (
            format!("?.example {one}"),
            "ab.example",
            22,
            unknown("ab.example"),
        ),
        (
            format!("*.example,!a.example {one}"),
            "a.example",
            22,
            unknown("a.example"),
        ),
        (
            format!("# a.example {one}"),
            "a.example",
            22,
            unknown("a.example"),
        ),
        (
            format!("a.example {one}"),
            "a.example",
            2222,
            unknown("[a.example]:2222"),
        ),
        (
            format!("[a.example]:2222 {one}"),
            "a.example",
            2222,
            known.clone(),
        ),
        (
            format!("a.example {}", encoded(2)),
            "a.example",
            22,
            changed,
        ),
        (
            format!("a.example {}\na.example {one}", encoded(2)),
            "a.example",
            22,
            known.clone(),
        ),
        (
            format!("a.example {one}\n@revoked * {one}"),
            "a.example",
            22,
            "revoked 2".into(),
        ),
        (
            format!("@cert-authority * {one}"),
            "a.example",
            22,
            unknown("a.example"),
        ),
        (
            "a.example ssh-rsa AAAA".into(),
            "a.example",
            22,
            unknown("a.example"),
        ),
    ] {
        assert_eq!(verdict(&text, host, port, &key(1)), expected, "{text}");
    }
}

#[test]
fn hashed_names_are_known() {
    let salt = [7; 20];
    let hmac_key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    let hash = hmac::sign(&hmac_key, b"a.example");
    let name = format!(
        "|1|{}|{}",
        BASE64_STANDARD.encode(salt),
        BASE64_STANDARD.encode(hash)
    );
    let text = format!("{name} {}", encoded(1));
    assert_eq!(verdict(&text, "a.example", 22, &key(1)), "known");
    assert!(verdict(&text, "b.example", 22, &key(1)).starts_with("unknown"));
}

#[test]
fn a_pattern_of_stars_takes_no_time() {
    assert!(!matches(&"*a".repeat(60), &"a".repeat(59)));
    assert!(matches("*a*b*", "xxaxxbxx"));
    assert!(matches("**", ""));
}

proptest! {
    /// For any content of the files and any presented key, a host is known only if a line has exactly that key.
    #[test]
    fn no_text_makes_another_key_known(
        lines in prop::collection::vec(
            "(@revoked |@cert-authority |#)?(\\|1\\||!|\\*|\\?|host|\\[host\\]:22|,| ){1,6} ?(ssh-ed25519|ssh-rsa)? ?[A-Za-z0-9+/=]{0,80}",
            0..8,
        ),
        shown in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let text = lines.join("\n");
        let files = [(PathBuf::from("known_hosts"), text.clone())];
        let known = decide(&files, Path::new("known_hosts"), "host", 22, &shown).is_ok();
        let encoded = BASE64_STANDARD.encode(&shown);
        prop_assert!(!known || text.contains(&encoded));
        let _ = decide(&files, Path::new("known_hosts"), "host", 22, &key(1));
    }

    #[test]
    fn a_star_stands_for_any_text(before in "[a-z]{0,5}", middle in "[ -~]{0,20}", after in "[a-z]{0,5}") {
        let name = format!("{before}{middle}{after}").to_ascii_lowercase();
        let pattern = format!("{before}*{after}");
        prop_assert!(matches(&pattern, &name));
        prop_assert!(matches(&"?".repeat(name.len()), &name));
    }
}

#[test]
fn what_is_no_key_is_refused() {
    assert!(verdict("", "a", 22, b"").contains("NoKey"));
    assert!(verdict("", "a", 22, &[255, 255, 255, 255, 0]).contains("NoKey"));
}
