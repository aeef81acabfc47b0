use proptest::prelude::*;
use serde_json::json;

use super::*;

fn read(text: &str) -> Vec<Document> {
    let mut documents = Documents::new(text.as_bytes());
    std::iter::from_fn(|| documents.next(|| {}).unwrap()).collect()
}

/// Returns each document as its line and value, or as the place and reason of its error.
fn told(text: &str) -> Vec<String> {
    let documents = read(text).into_iter().enumerate().map(|(place, document)| {
        assert_eq!(document.number, place + 1);
        match document.value {
            Ok(value) => format!("{}: {value}", document.line),
            Err(error) => format!(
                "{}: {}:{} {}",
                document.line, error.line, error.column, error.message
            ),
        }
    });
    documents.collect()
}

#[test]
fn yaml_and_json_in_one_stream() {
    let text = "\u{feff}# a comment\n%YAML 1.2\n---\na: 1\n---\n# nothing\n---\nb:\n  - 2 # two\n...\n{\"c\": 3}\n{\"d\":\n  4} {\"e\": 5}\n\n[6,\n7]\n--- {f: 8}\n---\n--- \"text\"\n";
    assert_eq!(
        told(text),
        [
            r#"4: {"a":1}"#,
            r#"8: {"b":[2]}"#,
            r#"11: {"c":3}"#,
            r#"12: {"d":4}"#,
            r#"13: {"e":5}"#,
            "15: [6,7]",
            r#"17: {"f":8}"#,
            r#"19: "text""#,
        ]
    );
    assert!(told("").is_empty());
    assert!(told("---\n# only a comment\n---\n").is_empty());
}

#[test]
fn what_cannot_be_read_stops_nothing() {
    let text = "{\"a\": 1\n{\"b\": 2}\n{\"c\": \"open}\n{\"d\": \"\\x\"}\n---\ne: [1\n---\nf: 6\n---\ng: 1\ng: 2\n---\n{\"h\": 8";
    assert_eq!(
        told(text),
        [
            "1: 1:1 the JSON that begins here does not end",
            r#"2: {"b":2}"#,
            "3: 3:1 the JSON that begins here does not end",
            "4: 4:9 not valid JSON: invalid escape",
            "6: 6:4 not valid YAML, here or in a line above: unclosed bracket '['",
            r#"8: {"f":6}"#,
            "10: 11:1 duplicate key \"g\" in this map, first at 1:1",
            "13: 13:1 the JSON that begins here does not end",
        ]
    );
}

#[test]
fn an_answer_does_not_wait_for_what_comes_later() {
    // A reader that gives one line at a time.
    struct Lines(Vec<&'static str>);
    impl Read for Lines {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(line) = self.0.pop() else {
                return Ok(0);
            };
            buffer[..line.len()].copy_from_slice(line.as_bytes());
            Ok(line.len())
        }
    }
    let mut documents = Documents::new(Lines(vec!["{\"b\": 2}\n", "{\"a\": 1}\n"]));
    let mut waits = 0;
    for begin in 1..=2 {
        let document = documents.next(|| waits += 1).unwrap().unwrap();
        assert_eq!((document.number, waits), (begin, begin));
    }
    assert_eq!(documents.next(|| waits += 1).unwrap(), None);
}

proptest! {
    #[test]
    fn any_text_is_read_to_its_end(text in "([ a0:\\-\\[\\]{}&*!|>'\"%@`#,?\n\t]{0,40}(\n---\n)?){0,4}") {
        read(&text);
    }

    #[test]
    fn json_is_read_back_however_it_is_laid_out(
        values in proptest::collection::vec(("\\PC{0,8}|[{}\\[\\]\"\\\\\n]{0,8}", any::<i64>(), any::<bool>()), 0..5),
    ) {
        let objects: Vec<_> = values.iter().map(|(text, number, _)| json!({"a": text, "b": [number, {text: text}]})).collect();
        let text: String = objects.iter().zip(&values).map(|(object, (_, _, is_pretty))| {
            if *is_pretty { format!("{object:#} ") } else { format!("{object}\n") }
        }).collect();
        let read: Vec<_> = read(&text).into_iter().map(|document| document.value.unwrap()).collect();
        prop_assert_eq!(read, objects);
    }
}
