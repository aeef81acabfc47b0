//! Reads a stream of objects: YAML documents, JSON lines, concatenated JSON, and lists of objects. It reads one
//! document at a time, and continues after a document that can't be read.

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
mod tests;
