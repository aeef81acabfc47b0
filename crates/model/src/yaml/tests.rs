//! Tests how the reader parses texts, and that written values are read back unchanged.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn json(text: &str) -> Value {
    parse(text).unwrap().remove(0).into_json()
}

#[test]
fn scalars_mean_what_kubernetes_means() {
    let text = "
mode: 0644
new: 0o17
hex: 0x1F
neg: -12
big: 18446744073709551615
float: 1.5
exp: 1e3
word: yes
off: off
zero: 0
version: 1.2.3
date: 2024-01-02
quoted: \"12\"
tagged: !!str 12
empty:
tilde: ~
ip: 10.0.0.1
leading: 0899
";
    assert_eq!(
        json(text),
        json!({
            "mode": 420, "new": 15, "hex": 31, "neg": -12, "big": 18_446_744_073_709_551_615_u64,
            "float": 1.5, "exp": 1000.0, "word": "yes", "off": "off", "zero": 0,
            "version": "1.2.3", "date": "2024-01-02", "quoted": "12", "tagged": "12",
            "empty": null, "tilde": null, "ip": "10.0.0.1", "leading": "0899",
        })
    );
}

#[test]
fn keys_become_strings_and_merges_merge() {
    let text = "base: &b {a: 1, b: 2}\nuse:\n  <<: *b\n  b: 3\n1: one\ntrue: t\n";
    assert_eq!(
        json(text),
        json!({"base": {"a": 1, "b": 2}, "use": {"a": 1, "b": 3}, "1": "one", "true": "t"})
    );
}

#[test]
fn errors_point_at_their_place() {
    let at = |text: &str| {
        let error = parse(text).unwrap_err();
        (error.at.line, error.at.col, error.message)
    };
    let (line, col, message) = at("a: 1\nb: 2\na: 3\n");
    assert_eq!((line, col), (3, 1));
    assert!(message.contains("first at 1:1"), "{message}");
    assert_eq!(at("a: [1, 2\nb: 3").0, 2);
    assert_eq!(at("x: *nothing\n").0, 1);
    assert!(at("x: .nan").2.contains("quote"));
}

#[test]
fn laughs_are_not_counted_to_a_billion() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert!(parse(&text).unwrap_err().message.contains("aliases expand"));
    // Few nodes with much text.
    let text = format!(
        "a: &a {}\nb:\n{}",
        "x".repeat(1 << 20),
        "- *a\n".repeat(8000)
    );
    let error = parse(&text).unwrap_err();
    assert_eq!(error.message, "aliases expand to over 16 MiB of text");
    assert_eq!(error.at.line, 18);
    // Each anchor stores a copy of the anchors inside it.
    let nested: String = (0..60).map(|i| format!("&a{i} [")).collect();
    let text = format!("{nested}{}{}", "x".repeat(1 << 20), "]".repeat(60));
    assert_eq!(parse(&text).unwrap_err().message, error.message);
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(
        parse(&"- ".repeat(5_000))
            .unwrap_err()
            .message
            .contains("nested deeper")
    );
}

#[test]
fn places_survive_several_documents() {
    let nodes = parse("a: 1\n---\n# comment\nb:\n  - c: 2\n").unwrap();
    let c = nodes[1].descend(["b", "0", "c"].into_iter());
    assert_eq!(c.at, Pos { line: 5, col: 8 });
    assert!(
        parse("# only a comment\n")
            .unwrap()
            .iter()
            .all(Node::is_null)
    );
}

#[test]
fn what_others_take_for_something_else_is_quoted() {
    let value = json!({"on": "off", "a": ["y", "0644", "1.5", "2024-01-02", "x: y", {"k": "v", "l": []}, [1, [2]]], "text": "one\n  two\n\nthree\n", "no": "line\nend", "n": null, "e": {}});
    insta::assert_snapshot!(to_yaml(&value));
}

fn refused(text: &str) -> String {
    let error = parse(text).unwrap_err();
    format!("{}: {}", error.at, error.message)
}

#[test]
fn surrogate_pairs_of_json_are_one_character() {
    assert_eq!(
        json(r#"{"a": "\ud83d\ude80 \u00e9"}"#),
        json!({"a": "🚀 é"})
    );
    assert_eq!(json("a: \"x\\uD83D\\uDE80\"\n"), json!({"a": "x🚀"}));
    for half in [r#"a: "\ud83d""#, r#"a: "\ude80""#, r#"a: "\ud83dx""#] {
        assert!(refused(half).starts_with("1:"), "{half}");
    }
}

#[test]
fn tabs_separate_where_yaml_lets_them() {
    let text = "a:\tb\nc:  \t d\t\ne: \"one\n\t two\"\nf: [a,\t\"b\",\n\tc]\ng:\t{h:\ti}\t# note\nlist:\n-\tx\n";
    assert_eq!(
        json(text),
        json!({"a": "b", "c": "d", "e": "one two", "f": ["a", "b", "c"], "g": {"h": "i"}, "list": ["x"]})
    );
    // A tab is never indentation.
    assert!(refused("a:\n\tb: c\n").starts_with("2:"));
}

#[test]
fn a_byte_order_mark_may_begin_every_document() {
    let mark = '\u{feff}';
    let texts = [
        format!("{mark}a: 1\n---\n{mark}b: 2\n"),
        format!("{mark}a: 1\n{mark}---\nb: 2\n"),
        format!("a: 1\n...\n{mark}# note\n{mark}b: 2\n"),
        format!("{mark}---\r\n{mark}a: 1\r\n---\r\n\r\n{mark}b: 2\r\n"),
    ];
    for text in texts {
        let documents: Vec<Value> = parse(&text)
            .unwrap()
            .into_iter()
            .map(Node::into_json)
            .collect();
        assert_eq!(documents, [json!({"a": 1}), json!({"b": 2})], "{text:?}");
    }
    // Elsewhere the mark is an ordinary character.
    let text = format!("a: \"x{mark}y\"\nb: |\n  {mark}z\n");
    assert_eq!(json(&text), json!({"a": "x\u{feff}y", "b": "\u{feff}z\n"}));
}

#[test]
fn flow_lists_and_quoted_text_may_end_at_any_column() {
    let text = "spec:\n  args: [\n    \"one\",\n    two,\n  ]\n  map: {\n    a: 1,\n  }\n  text: \"one\ntwo\"\n  more: 'three\n\nfour'\n  next: 1\n";
    let wanted = json!({"spec": {
        "args": ["one", "two"], "map": {"a": 1}, "text": "one two", "more": "three\nfour", "next": 1,
    }});
    assert_eq!(json(text), wanted);
    assert_eq!(
        json("args: [\na,\n\"b\"\n]\nnext: {\na: 1\n}\n"),
        json!({"args": ["a", "b"], "next": {"a": 1}})
    );
    let node = parse(text).unwrap().remove(0);
    let next = node.descend(["spec", "next"].into_iter());
    assert_eq!(next.at, Pos { line: 14, col: 9 });
}

#[test]
fn addresses_in_brackets_are_text() {
    let text =
        "a: [2001:db8::, ::, x]\nb: [fd00::]\nc: [x: , y: 1, {z: }]\nd:\n- e:\n- [f:,\n  g::]\n";
    assert_eq!(
        json(text),
        json!({
            "a": ["2001:db8::", "::", "x"], "b": ["fd00::"],
            "c": [{"x": null}, {"y": 1}, {"z": null}], "d": [{"e": null}, ["f:", "g::"]],
        })
    );
}

#[test]
fn tags_are_understood_or_refused() {
    let text = "a: !!binary aGVsbG8=\nb: !!binary |\n  aGVs\n  bG8=\nc: !!map {x: !!seq [1]}\nd: ! 1\ne: ! [1]\nf: !!int \"0x1F\"\ng: !!str {}\n";
    assert_eq!(refused(text), "9:10: the tag `!!str` is not supported");
    let text = text.replace("g: !!str {}\n", "");
    assert_eq!(
        json(&text),
        json!({"a": "hello", "b": "hello", "c": {"x": [1]}, "d": "1", "e": [1], "f": 31})
    );
    for (text, why) in [
        (
            "a: !reference [a, b]",
            "the tag `!reference` is not supported",
        ),
        ("a: !vault text", "the tag `!vault` is not supported"),
        ("a: !!set {x, y}", "the tag `!!set` is not supported"),
        (
            "a: !!timestamp 2024-01-02",
            "the tag `!!timestamp` is not supported",
        ),
        ("a: !!int 1.5", "the tag `!!int` is not supported"),
        ("a: !!binary .", "`!!binary` is not base64"),
        (
            "a: !!binary /w==",
            "`!!binary` holds bytes that are not text",
        ),
    ] {
        assert!(refused(text).contains(why), "{text}: {}", refused(text));
    }
}

#[test]
fn aliases_end_with_their_document() {
    assert!(refused("a: &x 1\n---\nb: *x\n").starts_with("3:4"));
    assert_eq!(json("a: &x 1\nb: *x\n"), json!({"a": 1, "b": 1}));
}

#[test]
fn number_keys_are_those_of_kubernetes() {
    let text =
        "1.10: a\n1000000.0: b\n123456.0: c\n0.00001: d\n1e3: e\n0x1F: f\n012: g\n-0: h\ntrue: i\n";
    assert_eq!(
        json(text),
        json!({"1.1": "a", "1e+06": "b", "123456": "c", "1e-05": "d", "1000": "e", "31": "f",
            "10": "g", "0": "h", "true": "i"})
    );
}

#[test]
fn numbers_that_would_be_printed_otherwise_keep_their_text() {
    let rewritten = |text: &str| match &parse_written(&format!("a: {text}\n")).unwrap()[0]
        .get("a")
        .unwrap()
        .value
    {
        Yaml::Rewritten(number) => {
            assert_eq!(number.text, text);
            assert!(number.value.is_number());
            true
        }
        Yaml::Scalar(_) => false,
        other => panic!("{other:?}"),
    };
    for text in [
        "1.10",
        "1234567e8",
        "0123456",
        "0644",
        "1e3",
        "0x1F",
        "0o17",
        ".5",
        "5.",
        "+1",
        "-0",
        "1.00",
        "18446744073709551616",
        "-9223372036854775809",
        "0.1000000000000000055",
        "1e-7",
        "0.0000001",
        "1E3",
        "123456789012345678901234567890",
        "100000000000000000.0",
    ] {
        assert!(rewritten(text), "{text}");
    }
    for text in [
        "0",
        "1",
        "-1",
        "8080",
        "1.5",
        "1.0",
        "-0.5",
        "0.25",
        "9223372036854775807",
        "18446744073709551615",
        "1_000",
        "1.2.3",
        "0899",
        "2024-01-02",
        "\"1.10\"",
        "1e3x",
        "0b11",
    ] {
        assert!(!rewritten(text), "{text}");
    }
    let node = parse_written("1.10: &a 0644\n0x1F: *a\nm: {<<: {1.0: 2}}\n")
        .unwrap()
        .remove(0);
    assert_eq!(node.get("1.10").unwrap().at, Pos { line: 1, col: 10 });
    assert!(matches!(
        node.get("0x1F").unwrap().value,
        Yaml::Rewritten(_)
    ));
    assert!(node.get("m").unwrap().get("1.0").is_some());
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,8}",
        "[a \n-]{0,12}",
        "[-+0-9.xoe_~:# ]{1,6}",
        "[\t\r\n a]{0,4}"
    ];
    let leaf = prop_oneof![
        text.prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,3}|on|[0-9]{1,2}|\\PC{0,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[ a0:\\-\\[\\]{}&*!|>'\"%@`#,?\n\t]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn what_is_written_is_read_back_whole(value in any_value()) {
        prop_assert_eq!(json(&to_yaml(&value)), value);
    }

    #[test]
    fn what_is_written_is_read_back(words in proptest::collection::vec("\\PC{0,12}|[-+0-9.xoe_~]{1,6}|yes|on|null|true", 0..6), n in any::<i64>()) {
        let value = json!({"words": words, "n": n});
        prop_assert_eq!(json(&to_yaml(&value)), value);
    }
}
