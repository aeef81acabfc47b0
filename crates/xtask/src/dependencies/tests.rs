use super::*;

fn rules() -> Rules {
    toml::from_str(
        r#"
            [licenses]
            allow = ["MIT", "Apache-2.0 WITH LLVM-exception"]
            exceptions = [{ crate = "odd", allow = ["Zlib"] }]
            [bans]
            deny = [{ crate = "openssl", reason = "rustls is used" }]
            [sources]
            allow-registry = ["https://example.org/index"]
            "#,
    )
    .unwrap()
}

fn package(name: &str, license: Option<&str>, source: Option<&str>) -> Package {
    Package {
        id: name.into(),
        name: name.into(),
        version: "1.0.0".into(),
        license: license.map(Into::into),
        source: source.map(Into::into),
    }
}

#[test]
fn what_deny_toml_allows_is_no_problem() {
    let good = [
        package("ours", Some("MIT"), None),
        package(
            "either",
            Some("GPL-3.0-only/MIT"),
            Some("registry+https://example.org/index"),
        ),
        package("llvm", Some("Apache-2.0 WITH LLVM-exception"), None),
        package("odd", Some("MIT AND Zlib"), None),
    ];
    assert_eq!(check(&rules(), &good), Vec::<String>::new());
}

#[test]
fn each_thing_that_is_not_allowed_is_named() {
    let bad = [
        package("copyleft", Some("MIT AND GPL-3.0-only"), None),
        package("silent", None, None),
        package("zlib", Some("Zlib"), None),
        package("openssl", Some("MIT"), Some("git+https://example.org/fork")),
    ];
    assert_eq!(
        check(&rules(), &bad),
        [
            "copyleft 1.0.0: its licence `MIT AND GPL-3.0-only` is not allowed by deny.toml",
            "silent 1.0.0: it names no licence",
            "zlib 1.0.0: its licence `Zlib` is not allowed by deny.toml",
            "openssl 1.0.0 is banned: rustls is used",
            "openssl 1.0.0 comes from git+https://example.org/fork, which deny.toml does not allow",
        ]
    );
}
