//! Reads a stream of objects: YAML documents, JSON lines, concatenated JSON, and lists of objects. The stream
//! is read one document at a time, and the documents after one that can't be read are still read.

use std::io::{self, BufRead as _, BufReader, Read};

use muster_model::yaml;
use serde_json::Value;

/// The size of the read buffer in bytes.
const BUFFER: usize = 1 << 16;

/// One document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    /// The document's position in the stream, from 1.
    pub(super) number: usize,
    /// The line where the document begins, from 1.
    pub(super) line: usize,
    /// The content, or why it can't be read.
    pub(super) value: Result<Value, Unreadable>,
}

/// The reason why a document can't be read, and the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The line in the stream, from 1.
    pub(super) line: usize,
    /// The column, from 1.
    pub(super) column: usize,
    pub(super) message: String,
}

/// The documents of a stream.
pub(super) struct Documents<R> {
    input: BufReader<R>,
    /// The unread part of the current line.
    rest: Vec<u8>,
    /// The number of the current line, from 1.
    line: usize,
    /// The number of documents so far.
    number: usize,
}

impl<R: Read> Documents<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(BUFFER, input),
            rest: Vec::new(),
            line: 0,
            number: 0,
        }
    }

    /// Returns the next document, or `None` at the end. Calls `wait` before a read that may block.
    ///
    /// # Errors
    /// The stream can't be read.
    pub(super) fn next(&mut self, mut wait: impl FnMut()) -> io::Result<Option<Document>> {
        loop {
            if self.rest.is_empty() && !self.read_line(&mut wait)? {
                return Ok(None);
            }
            if let Some(after) = separator(&self.rest) {
                self.rest.drain(..after);
                continue;
            }
            match self.rest.trim_ascii_start().first() {
                None | Some(b'#') => self.rest.clear(),
                // A YAML directive.
                Some(b'%') => self.rest.clear(),
                Some(first) => {
                    let is_json = matches!(first, b'{' | b'[');
                    let line = self.line;
                    let value = if is_json {
                        self.json(&mut wait)?
                    } else {
                        self.yaml(&mut wait)?
                    };
                    // The document holds only comments.
                    if value == Ok(Value::Null) {
                        continue;
                    }
                    self.number += 1;
                    let number = self.number;
                    return Ok(Some(Document {
                        number,
                        line,
                        value,
                    }));
                }
            }
        }
    }

    /// Reads the next line and discards the rest of the current one. Returns false at the end.
    fn read_line(&mut self, wait: &mut impl FnMut()) -> io::Result<bool> {
        self.rest.clear();
        if !self.input.buffer().contains(&b'\n') {
            wait();
        }
        let read = self.input.read_until(b'\n', &mut self.rest)?;
        self.line += 1;
        if self.line == 1 && self.rest.starts_with("\u{feff}".as_bytes()) {
            self.rest.drain(..'\u{feff}'.len_utf8());
        }
        Ok(read > 0)
    }

    /// Reads a document that begins like JSON. It ends with its closing bracket.
    fn json(&mut self, wait: &mut impl FnMut()) -> io::Result<Result<Value, Unreadable>> {
        let line = self.line;
        let mut text = Vec::new();
        let mut brackets = Brackets::default();
        loop {
            if let Some(end) = brackets.end_in(&self.rest) {
                text.extend(self.rest.drain(..end));
                break;
            }
            text.append(&mut self.rest);
            // A JSON string can't span lines. Inside an object, a `{` at the beginning of a line is treated as the
            // start of a new document. In both cases the current document is incomplete.
            let ended =
                brackets.in_text || !self.read_line(wait)? || separator(&self.rest).is_some();
            if ended || (brackets.in_object() && self.rest.starts_with(b"{")) {
                return Ok(Err(Unreadable {
                    line,
                    column: 1,
                    message: "the JSON that begins here does not end".to_owned(),
                }));
            }
        }
        Ok(serde_json::from_slice(&text).or_else(|error| {
            // It may be a YAML flow mapping, which looks like JSON.
            read_yaml(&text, line).map_err(|_| Unreadable {
                line: line + error.line().saturating_sub(1),
                column: error.column().max(1),
                message: format!("not valid JSON: {}", without_place(&error)),
            })
        }))
    }

    /// Reads a YAML document up to the next separator.
    fn yaml(&mut self, wait: &mut impl FnMut()) -> io::Result<Result<Value, Unreadable>> {
        let line = self.line;
        let mut text = std::mem::take(&mut self.rest);
        while self.read_line(wait)? && separator(&self.rest).is_none() {
            text.append(&mut self.rest);
        }
        Ok(read_yaml(&text, line))
    }
}

/// Returns the offset after `---` or `...`, if the line begins with one of them.
fn separator(line: &[u8]) -> Option<usize> {
    let rest = line
        .strip_prefix(b"---")
        .or_else(|| line.strip_prefix(b"..."))?;
    let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
    ends.then_some(3)
}

fn read_yaml(text: &[u8], line: usize) -> Result<Value, Unreadable> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        Unreadable {
            line: line + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1,
            message: "not UTF-8".to_owned(),
        }
    })?;
    let mut documents = yaml::parse(text).map_err(|error| Unreadable {
        line: line + error.at.line as usize - 1,
        column: error.at.col as usize,
        message: error.message,
    })?;
    match documents.len() {
        0 => Ok(Value::Null),
        _ => Ok(documents.swap_remove(0).into_json()),
    }
}

/// Returns the message of a JSON error without its place, which is reported separately.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text[..end].to_owned()
}

/// The brackets of a JSON text that are open.
#[derive(Default)]
struct Brackets {
    open: Vec<u8>,
    in_text: bool,
    escaped: bool,
}

impl Brackets {
    fn in_object(&self) -> bool {
        self.open.last() == Some(&b'{')
    }

    /// Returns the offset after the outermost closing bracket, if these bytes contain it.
    fn end_in(&mut self, bytes: &[u8]) -> Option<usize> {
        for (place, byte) in bytes.iter().enumerate() {
            if self.in_text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_text = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' => self.open.push(*byte),
                b'}' | b']' => {
                    self.open.pop();
                    if self.open.is_empty() {
                        return Some(place + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
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
}
