//! YAML with positions. One reader for fleet documents, values and rendered manifests, so that every
//! error can point at its line and column and all three agree on what a scalar means.
//!
//! It reads YAML 1.2's core schema with the three habits of Kubernetes' own reader that real
//! manifests rely on: `0644` is octal (YAML 1.1), keys that are numbers or booleans become strings,
//! and `<<` merges. Unlike that reader it refuses duplicate keys, and leaves `yes`, `no`, `on` and
//! `off` the strings that their authors meant.

use std::{borrow::Cow, collections::HashMap, fmt};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

/// How deep a document may nest.
const MAX_DEPTH: usize = 128;
/// How many nodes aliases may copy into one file: ten times what a large real file needs, and far
/// below what a "billion laughs" wants.
const MAX_ALIASED_NODES: usize = 100_000;

/// A place in a text: line and column, both from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pos {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub col: u32,
}

impl From<&Marker> for Pos {
    fn from(mark: &Marker) -> Self {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            line: number(mark.line()),
            col: number(mark.col() + 1),
        }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.col)
    }
}

/// Why a text is not the YAML that is read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// Where.
    pub at: Pos,
    /// What is wrong.
    pub message: String,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where its text begins.
    pub at: Pos,
    /// What it is.
    pub value: Yaml,
}

/// The kinds of value.
#[derive(Debug, Clone, PartialEq)]
pub enum Yaml {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in the order of the text; each key with its place.
    Map(Vec<(String, Pos, Node)>),
}

impl Node {
    /// The value under a key, if this is a map that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Yaml::Map(entries) => entries
                .iter()
                .find(|(k, ..)| k == key)
                .map(|(.., node)| node),
            _ => None,
        }
    }

    /// Where a key itself stands, if this is a map that has it.
    #[must_use]
    pub fn key_at(&self, key: &str) -> Option<Pos> {
        match &self.value {
            Yaml::Map(entries) => entries
                .iter()
                .find(|(k, ..)| k == key)
                .map(|(_, at, _)| *at),
            _ => None,
        }
    }

    /// The string, if this is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Yaml::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether this is nothing at all.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.value, Yaml::Scalar(Value::Null))
    }

    /// The node at a path of keys and indices, or the deepest one on the way there.
    #[must_use]
    pub fn descend<'a>(&self, path: impl Iterator<Item = &'a str>) -> &Node {
        let mut node = self;
        for part in path {
            let next = match &node.value {
                Yaml::Seq(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => node.get(part),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// The value without its places.
    #[must_use]
    pub fn into_json(self) -> Value {
        match self.value {
            Yaml::Scalar(value) => value,
            Yaml::Seq(items) => Value::Array(items.into_iter().map(Node::into_json).collect()),
            Yaml::Map(entries) => Value::Object(
                entries
                    .into_iter()
                    .map(|(k, _, v)| (k, v.into_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Yaml::Scalar(_) => 0,
            Yaml::Seq(items) => items.iter().map(Node::count).sum(),
            Yaml::Map(entries) => entries.iter().map(|(.., node)| node.count()).sum(),
        }
    }
}

/// Reads every document of a text.
///
/// # Errors
/// The first place where the text is not YAML that can be read.
pub fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    let mut reader = Reader {
        // A byte order mark is allowed by YAML and refused by the parser.
        events: Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)),
        anchors: HashMap::new(),
        aliased: 0,
    };
    let mut documents = Vec::new();
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok(documents),
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            event => documents.push(reader.node(event, &span, 0)?),
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        match self.events.next() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(scan_error(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, YamlError> {
        let at = Pos::from(&span.start);
        let fail = |message: String| Err(YamlError { at, message });
        if depth > MAX_DEPTH {
            return fail(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())
                    .map_err(|message| YamlError { at, message })?;
                (Yaml::Scalar(value), anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, &span, depth + 1)?);
                }
                (Yaml::Seq(items), anchor)
            }
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return fail("this alias refers to nothing above it".into());
                };
                self.aliased += node.count();
                if self.aliased > MAX_ALIASED_NODES {
                    return fail(format!("aliases expand to over {MAX_ALIASED_NODES} nodes"));
                }
                (node.value.clone(), 0)
            }
            other => return fail(format!("unexpected {other:?}")),
        };
        let node = Node { at, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Yaml, YamlError> {
        let mut entries: Vec<(String, Pos, Node)> = Vec::new();
        let mut index = Index::default();
        let mut merges = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let plain_merge =
                matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, &span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, &span, depth + 1)?;
            if plain_merge {
                merges.push(value);
                continue;
            }
            let at = key.at;
            let key = match key.value {
                Yaml::Scalar(Value::String(text)) => text,
                Yaml::Scalar(Value::Null) => "null".to_owned(),
                Yaml::Scalar(other) => other.to_string(),
                Yaml::Seq(_) | Yaml::Map(_) => {
                    let message = "a map or list can't be a key; `{{ }}` works only in templates, and is a map in a map elsewhere".to_owned();
                    return Err(YamlError { at, message });
                }
            };
            if let Some(first) = index.find(&entries, &key) {
                let message = format!("the key {key:?} stands twice in this map, first at {first}");
                return Err(YamlError { at, message });
            }
            entries.push((key, at, value));
        }
        for merge in merges {
            let sources = match merge.value {
                Yaml::Seq(items) => items,
                value => vec![Node {
                    at: merge.at,
                    value,
                }],
            };
            for source in sources {
                let Yaml::Map(inherited) = source.value else {
                    let message = "`<<` merges a map or a list of maps".to_owned();
                    return Err(YamlError {
                        at: source.at,
                        message,
                    });
                };
                for (key, at, node) in inherited {
                    if index.find(&entries, &key).is_none() {
                        entries.push((key, at, node));
                    }
                }
            }
        }
        Ok(Yaml::Map(entries))
    }
}

/// Finds keys of a map that is being read: few by looking through them, many by a table.
#[derive(Default)]
struct Index(HashMap<String, Pos>);

impl Index {
    const FEW: usize = 16;

    /// Where a key stands among the entries so far, which only grow.
    fn find(&mut self, entries: &[(String, Pos, Node)], key: &str) -> Option<Pos> {
        if entries.len() <= Self::FEW {
            let mut entries = entries.iter();
            return entries.find(|(k, ..)| k == key).map(|(_, at, _)| *at);
        }
        let known = self.0.len();
        self.0
            .extend(entries[known..].iter().map(|(k, at, _)| (k.clone(), *at)));
        self.0.get(key).copied()
    }
}

fn scan_error(error: &ScanError) -> YamlError {
    YamlError {
        at: Pos::from(error.marker()),
        message: format!("not valid YAML, here or in a line above: {}", error.info()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let string = || Ok(Value::String(text.to_owned()));
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain {
            plain(text)
        } else {
            string()
        };
    };
    let wanted = if tag.is_yaml_core_schema() {
        tag.suffix.as_str()
    } else {
        ""
    };
    match (wanted, plain(text)?) {
        ("str" | "binary", _) | ("", _) if tag.handle == "!" && tag.suffix.is_empty() => string(),
        ("str" | "binary", _) => string(),
        ("null", value @ Value::Null)
        | ("bool", value @ Value::Bool(_))
        | ("int" | "float", value @ Value::Number(_)) => Ok(value),
        _ => Err(format!(
            "the tag `{}{}` is not understood here",
            tag.handle, tag.suffix
        )),
    }
}

/// A plain scalar's value.
fn plain(text: &str) -> Result<Value, String> {
    let Some(first) = text.bytes().next() else {
        return Ok(Value::Null);
    };
    // Most plain scalars are words; look closer only at what can begin something else.
    Ok(match first {
        b'~' | b'n' | b'N' if matches!(text, "~" | "null" | "Null" | "NULL") => Value::Null,
        b't' | b'T' if matches!(text, "true" | "True" | "TRUE") => Value::Bool(true),
        b'f' | b'F' if matches!(text, "false" | "False" | "FALSE") => Value::Bool(false),
        b'0'..=b'9' | b'-' | b'+' | b'.' => match number(text)? {
            Some(number) => Value::Number(number),
            None => Value::String(text.to_owned()),
        },
        _ => Value::String(text.to_owned()),
    })
}

fn number(text: &str) -> Result<Option<Number>, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return Err(format!(
            "{text} has no place in a Kubernetes object; quote it if it is text"
        ));
    }
    let radix = |digits: &str, radix| {
        let plausible = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_alphanumeric());
        plausible
            .then(|| i64::from_str_radix(digits, radix).ok())
            .flatten()
    };
    let prefixed = match digits.as_bytes() {
        [b'0', b'x', ..] => Some(radix(&digits[2..], 16)),
        [b'0', b'o', ..] => Some(radix(&digits[2..], 8)),
        [b'0', rest @ ..] if !rest.is_empty() && rest.iter().all(u8::is_ascii_digit) => {
            Some(radix(&digits[1..], 8))
        }
        _ => None,
    };
    if let Some(value) = prefixed {
        return Ok(value.map(|value| Number::from(if negative { -value } else { value })));
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty() {
        let unsigned = Cow::from(text.strip_prefix('+').unwrap_or(text));
        if let Ok(value) = unsigned.parse::<i64>() {
            return Ok(Some(value.into()));
        }
        if let Ok(value) = unsigned.parse::<u64>() {
            return Ok(Some(value.into()));
        }
    }
    // Rust's own reader of floats also takes words such as "infinity", and YAML's needs a digit.
    let float = digits.bytes().any(|b| b.is_ascii_digit())
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    Ok(if float {
        text.parse::<f64>().ok().and_then(Number::from_f64)
    } else {
        None
    })
}

/// A JSON value as block YAML, without a line break at its end: the `toyaml` filter of templates and
/// the command line's YAML output.
///
/// Written here, since other readers must see the same text: what any YAML 1.1 reader (kubectl's, for
/// one) would take for a boolean, number or date is quoted, which no emitter at hand does throughout.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    emit(value, 0, &mut out);
    // A document that is a map or list begins with a line break, like one below a key.
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
                // A map's first key stands beside the dash.
                if matches!(item, Value::Object(map) if !map.is_empty()) {
                    out.replace_range(begin..begin + indent + 3, " ");
                }
            }
        }
        Value::String(text) if is_block(text) => {
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

/// Whether a text of several lines reads well, and back, as a literal block.
fn is_block(text: &str) -> bool {
    let plain = |c: char| {
        c == '\n'
            || (!c.is_control() && !matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}'))
    };
    text.trim_end_matches('\n').contains('\n')
        && !text.starts_with([' ', '\n'])
        && !text.ends_with("\n\n")
        && text.chars().all(plain)
}

/// A string in one line: as it is where no reader could take it for anything else, quoted otherwise.
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
        Cow::Owned(Value::from(text).to_string())
    }
}

#[cfg(test)]
mod tests {
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
}
