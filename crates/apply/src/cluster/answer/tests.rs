use http::HeaderValue;

use super::*;

fn of(code: u16, headers: &[(&'static str, &'static str)], body: &str) -> Status {
    let headers = headers.iter().map(|(name, value)| {
        let name = http::HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    });
    let code = StatusCode::from_u16(code).unwrap();
    status(code, &headers.collect(), body.as_bytes())
}

fn seconds(status: &Status) -> Option<u32> {
    status.details.as_ref().map(|d| d.retry_after_seconds)
}

#[test]
fn a_status_stays_what_it_is() {
    let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":
            "NotFound","details":{"name":"a","retryAfterSeconds":1},"code":404}"#;
    let status = of(404, &[("retry-after", "3")], body);
    assert_eq!(
        (status.message.as_str(), status.reason.as_str()),
        ("no", "NotFound")
    );
    assert_eq!(seconds(&status), Some(3));
    assert_eq!(status.details.unwrap().name, "a");
}

#[test]
fn values_are_shown_without_go_syntax() {
    for (message, desired) in [
        (
            "failed: .data.port: expected string, got &value.valueUnstructured{Value:8080}",
            "failed: .data.port: expected string, got 8080",
        ),
        (
            "errors:\n  .a: expected list, got &value.valueUnstructured{Value:\"x}\"}\n  .b: expected string, got &value.valueUnstructured{Value:true}",
            "errors:\n  .a: expected list, got \"x}\"\n  .b: expected string, got true",
        ),
        (
            ".a: expected string, got &value.valueUnstructured{Value:map[string]interface {}{\"a\":1}}",
            ".a: expected string, got a map",
        ),
        (
            ".a: expected map, got &value.valueUnstructured{Value:[]interface {}{\"a\"}}, and more",
            ".a: expected map, got a list, and more",
        ),
        (
            ".x: expected boolean, got &{yes}\n.y: expected map, got &{[a]}; .z: expected list, got &{map[name:c]}",
            ".x: expected boolean, got yes\n.y: expected map, got a list; .z: expected list, got a map",
        ),
        (", got &value.valueUnstructured{Value:", ", got "),
        (", got &x", ", got &x"),
        ("no Go", "no Go"),
    ] {
        assert_eq!(in_words(message), desired);
    }
}

#[test]
fn other_errors_say_who_answered() {
    let busy = of(
        429,
        &[("retry-after", "1"), (FAIRNESS, "5")],
        "Too many requests, please try again later.\n",
    );
    assert!(busy.message.contains("priority and fairness"));
    assert_eq!(seconds(&busy), Some(1));

    let page = "<html>\r\n<head><title>502 Bad Gateway</title></head><body>…</body></html>";
    assert_eq!(
        of(502, &[], page).message,
        "the answer is 502 Bad Gateway: 502 Bad Gateway; something in front of the API server \
             answers in its place"
    );
    let no_path = of(404, &[], "404 page not found\n");
    assert_eq!(no_path.reason, "");
    assert_eq!(
        no_path.message,
        "the answer is 404 Not Found: 404 page not found"
    );
    // A JSON answer of another program is not a `Status`.
    let other = of(503, &[("retry-after", "soon")], r#"{"error": "down"}"#);
    assert_eq!(
        other.message,
        r#"the answer is 503 Service Unavailable: {"error": "down"}"#
    );
    assert_eq!((other.code, seconds(&other)), (503, None));
    assert_eq!(
        of(500, &[], &"a".repeat(5_000)).message.chars().count(),
        SHOWN + 41
    );
}
