use super::*;

#[test]
fn spans_are_what_people_write() {
    for (text, seconds) in [
        ("0s", 0),
        ("30s", 30),
        ("15m", 900),
        ("1h30m", 5_400),
        ("7d", 604_800),
    ] {
        assert_eq!(
            text.parse::<Span>().unwrap().duration,
            Duration::from_secs(seconds)
        );
    }
    for text in [
        "",
        "5",
        "m",
        "5 m",
        "-1s",
        "1y",
        "99999999999999999999d",
        "18446744073709551615d",
    ] {
        assert!(text.parse::<Span>().is_err(), "{text}");
    }
}

#[test]
fn schemas_refuse_what_they_do_not_know() {
    for kind in Kind::ALL {
        let schema = kind.schema();
        assert_eq!(schema["additionalProperties"], json!(false), "{kind}");
        assert!(!schema.to_string().contains("$ref"), "{kind}");
    }
    insta::assert_json_snapshot!("app-schema", Kind::App.schema());
}
