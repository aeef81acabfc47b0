//! Writes JSON values as block YAML.

use std::borrow::Cow;

use serde_json::Value;

/// Returns a JSON value as block YAML, without a line break at the end. The `toyaml` filter of templates and
/// the YAML output of the command line use it.
///
/// It quotes every string that a YAML 1.1 reader, such as kubectl's, would read as a boolean, number or
/// date. No available emitter does so in all cases.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    emit(value, 0, &mut out);
    // `emit` begins a map or list with a line break, as it must below a key. A document needs none.
    out.strip_prefix('\n')
        .unwrap_or(&out)
        .trim_start_matches(' ')
        .to_owned()
}

/// Writes what follows a key or a dash: ` scalar`, or a line break and an indented block.
fn emit(value: &Value, indent: usize, out: &mut String) {
    let line = |out: &mut String| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent));
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                line(out);
                out.push_str(&word(key));
                out.push(':');
                emit(value, indent + 2, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                line(out);
                out.push('-');
                let begin = out.len();
                emit(item, indent + 2, out);
                // The first key of a map is on the same line as the dash.
                if matches!(item, Value::Object(map) if !map.is_empty()) {
                    out.replace_range(begin..begin + indent + 3, " ");
                }
            }
        }
        Value::String(text) if is_block(text) && (indent > 0 || !has_marks(text)) => {
            out.push_str(if text.ends_with('\n') { " |" } else { " |-" });
            for part in text.lines() {
                if part.is_empty() {
                    out.push('\n');
                } else {
                    line(out);
                    out.push_str(part);
                }
            }
        }
        Value::String(text) => {
            out.push(' ');
            out.push_str(&word(text));
        }
        other => {
            out.push(' ');
            out.push_str(&other.to_string());
        }
    }
}

/// Returns true if a text of several lines is readable as a literal block, and is read back unchanged.
fn is_block(text: &str) -> bool {
    let plain = |c: char| {
        c == '\n'
            || (!c.is_control()
                && !matches!(
                    c,
                    '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
                ))
    };
    text.trim_end_matches('\n').contains('\n')
        && !text.starts_with([' ', '\n'])
        && !text.ends_with("\n\n")
        && text.chars().all(plain)
}

/// Returns true if a line of the text would be a document marker if it were not indented.
fn has_marks(text: &str) -> bool {
    let mark = |line: &str| line.starts_with("---") || line.starts_with("...");
    text.lines().any(mark)
}

/// Returns a string on one line. It is quoted unless every reader takes the plain text for a string.
fn word(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 11] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf",
    ];
    let first = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '/');
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '.' | '-' | ' ');
    let plain = text.starts_with(first)
        && text.chars().all(inner)
        && !text.ends_with(' ')
        && !WORDS.iter().any(|word| word.eq_ignore_ascii_case(text));
    if plain {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(quoted(text))
    }
}

/// Returns a string in double quotes. Besides what JSON escapes, it escapes characters that YAML 1.2 does not
/// allow (`c-printable`) or that YAML 1.1 takes for line breaks.
fn quoted(text: &str) -> String {
    let json = Value::from(text).to_string();
    let strange = |c: char| {
        matches!(
            c,
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
    };
    if !json.contains(strange) {
        return json;
    }
    let mut quoted = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        match strange(c) {
            // The code points of all these characters have at most four hexadecimal digits.
            true => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => quoted.push(c),
        }
    }
    quoted
}
