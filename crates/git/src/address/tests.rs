use super::*;

fn shown(text: &str) -> Result<String, UrlError> {
    text.parse::<RemoteUrl>().map(|url| url.to_string())
}

#[test]
fn every_form_of_address_is_read_and_shown_without_secrets() {
    for (text, expected) in [
        ("/srv/fleet.git", "/srv/fleet.git"),
        ("file:///srv/my%20fleet.git", "/srv/my fleet.git"),
        (
            "https://git.example.com/a/b.git",
            "https://git.example.com/a/b.git",
        ),
        (
            "https://me:s3cret@git.example.com:8443/a",
            "https://git.example.com:8443/a",
        ),
        (
            "https://s3cret@git.example.com/a?token=s3cret",
            "https://git.example.com/a",
        ),
        ("http://localhost:8080/a", "http://localhost:8080/a"),
        ("http://127.0.0.2/a", "http://127.0.0.2/a"),
        ("http://[::1]/a", "http://[::1]/a"),
        ("git@example.com:a/b.git", "git@example.com:a/b.git"),
        ("example.com:a/b.git", "git@example.com:a/b.git"),
        ("me@[fe80::1]:a", "me@[fe80::1]:a"),
        ("ssh://example.com/a/b.git", "git@example.com:/a/b.git"),
        (
            "ssh://me@example.com:2222/a/b.git",
            "ssh://me@example.com:2222/a/b.git",
        ),
        (
            "ssh://example.com:2222/~me/b.git",
            "ssh://git@example.com:2222/~me/b.git",
        ),
        (
            "./with:colon",
            &format!("{}/with:colon", std::env::current_dir().unwrap().display()),
        ),
    ] {
        assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_no_address_says_why() {
    let host = || "git.example.com".to_owned();
    for (text, expected) in [
        ("", UrlError::Empty),
        ("http://git.example.com/a", UrlError::Plain { host: host() }),
        (
            "git://git.example.com/a",
            UrlError::Scheme {
                scheme: "git".into(),
            },
        ),
        ("file://elsewhere/a", UrlError::File),
        ("https://git.example.com/", UrlError::NoPath),
        ("ssh://git.example.com", UrlError::NoPath),
        ("ssh://me:pw@git.example.com/a", UrlError::SshPassword),
        ("git@git.example.com:", UrlError::NoPath),
        (":a", UrlError::NoHost),
        ("https://", UrlError::Malformed(url::ParseError::EmptyHost)),
    ] {
        assert_eq!(shown(text), Err(expected), "{text}");
    }
}

#[test]
fn nothing_secret_is_printed_for_debugging() {
    let url: RemoteUrl = "https://me:s3cret@git.example.com/a".parse().unwrap();
    assert_eq!(format!("{url:?}"), "RemoteUrl(https://git.example.com/a)");
}
