//! Reads YAML with positions. Fleet documents, values and rendered manifests use this one reader, so that
//! every error has a line and column, and a scalar means the same in all three.
//!
//! The reader implements YAML 1.2's core schema, with three behaviours of Kubernetes' own reader that real
//! manifests rely on: `0644` is octal (YAML 1.1), keys that are numbers or booleans become strings,
//! and `<<` merges maps. Unlike Kubernetes' reader, it refuses duplicate keys, and reads `yes`, `no`, `on`
//! and `off` as strings.

mod scalar;
#[cfg(test)]
mod tests;
mod write;

use std::{borrow::Cow, collections::HashMap, fmt, ops::Range};

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, ScanError, StrInput};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

pub use scalar::printed;
pub use write::to_yaml;

/// The maximum nesting depth of a document.
const MAX_DEPTH: usize = 128;
/// The maximum number of nodes that aliases may copy in one file. It is ten times what a large real file
/// needs, and far below what a "billion laughs" attack needs.
const MAX_ALIASED_NODES: usize = 100_000;
/// The maximum number of bytes of text that aliases may copy in one file. The file itself has up to 8 MiB.
const MAX_ALIASED_BYTES: usize = 16 * 1024 * 1024;

/// A position in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pos {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
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

/// The error for a text that this reader can't read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// The position of the error.
    pub at: Pos,
    /// A message that says what is wrong.
    pub message: String,
}

/// A value and its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The position where the text of the value begins.
    pub at: Pos,
    /// The value.
    pub value: Yaml,
}

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub enum Yaml {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    /// A number that templates would print differently from how it is written, such as `1.10`. Only
    /// [`parse_written`] makes these; for [`parse`] every number is a scalar.
    Rewritten(Box<Rewritten>),
    /// A list.
    Seq(Vec<Node>),
    /// A map in the order of the text. Each key has its position.
    Map(Vec<(String, Pos, Node)>),
}

/// A number whose digits change when it is printed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewritten {
    /// The number.
    pub value: Value,
    /// The text of the number in the file.
    pub text: String,
    /// The text that templates would print instead.
    pub printed: String,
}

impl Rewritten {
    /// Returns a spelling of the number that templates print unchanged, if there is one.
    #[must_use]
    pub fn plain(&self) -> Option<String> {
        let text = self.value.to_string();
        let same = matches!(&self.value, Value::Number(number) if printed(number, &text).is_none());
        same.then_some(text)
    }
}

impl Node {
    /// Returns the value of a key, if this is a map that has the key.
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

    /// Returns the position of a key, if this is a map that has the key.
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

    /// Returns the text, if this is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Yaml::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns true if this is null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.value, Yaml::Scalar(Value::Null))
    }

    /// Returns the node at a path of keys and indices, or the deepest existing node on that path.
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

    /// Returns the value without positions.
    #[must_use]
    pub fn into_json(self) -> Value {
        match self.value {
            Yaml::Scalar(value) => value,
            Yaml::Rewritten(number) => number.value,
            Yaml::Seq(items) => Value::Array(items.into_iter().map(Node::into_json).collect()),
            Yaml::Map(entries) => Value::Object(
                entries
                    .into_iter()
                    .map(|(k, _, v)| (k, v.into_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    fn size(&self) -> Size {
        let mut size = Size { nodes: 1, bytes: 0 };
        match &self.value {
            Yaml::Scalar(Value::String(text)) => size.bytes = text.len(),
            Yaml::Scalar(_) | Yaml::Rewritten(_) => {}
            Yaml::Seq(items) => items.iter().for_each(|item| size.add(item.size())),
            Yaml::Map(entries) => entries.iter().for_each(|(key, _, node)| {
                size.bytes += key.len();
                size.add(node.size());
            }),
        }
        size
    }
}

/// Reads every document of a text, with keys and numbers as Kubernetes reads them.
///
/// # Errors
/// Returns the position and reason of the first error in the text.
pub fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    Reader::new(&without_marks(text), false).documents()
}

/// Reads every document of a text with values that templates may print. A number that would be printed
/// differently from how it is written becomes a [`Yaml::Rewritten`], and a key that is a number keeps its
/// text.
///
/// # Errors
/// Returns the position and reason of the first error in the text.
pub fn parse_written(text: &str) -> Result<Vec<Node>, YamlError> {
    Reader::new(&without_marks(text), true).documents()
}

/// Removes byte order marks where YAML allows them: at the beginning of the text and of each document. The
/// parser handles only the first one.
fn without_marks(text: &str) -> Cow<'_, str> {
    const MARK: char = '\u{feff}';
    let text = text.strip_prefix(MARK).unwrap_or(text);
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut between_documents = true;
    for line in text.split_inclusive('\n') {
        let bare = line.strip_prefix(MARK).unwrap_or(line);
        let begins = bare.starts_with("---");
        out.push_str(if between_documents || begins {
            bare
        } else {
            line
        });
        let content = bare.trim();
        between_documents = match content {
            "---" | "..." => true,
            _ => between_documents && (content.is_empty() || content.starts_with('#')),
        };
    }
    Cow::Owned(out)
}

/// The size of a node and everything below it, in nodes and in bytes of text.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.bytes += other.bytes;
    }
}

struct Reader<'a> {
    text: &'a str,
    events: Parser<'a, StrInput<'a>>,
    /// The byte range of the latest event in the text.
    read: Range<usize>,
    /// The byte range of the latest key in the text.
    key: Range<usize>,
    anchors: HashMap<usize, Node>,
    /// The size of everything that anchors and aliases have copied.
    copied: Size,
    /// True if numbers keep their text.
    written: bool,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, written: bool) -> Self {
        let mut options = Options::default();
        options.set_emit_comments(false);
        Self {
            text,
            events: Parser::new_from_str_with_options(text, options),
            read: 0..0,
            key: 0..0,
            anchors: HashMap::new(),
            copied: Size::default(),
            written,
        }
    }

    fn documents(mut self) -> Result<Vec<Node>, YamlError> {
        let mut documents = Vec::new();
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(documents),
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) => self.anchors.clear(),
                event => documents.push(self.node(event, at, 0)?),
            }
        }
    }

    #[inline]
    fn next(&mut self) -> Result<(Event<'a>, Pos), YamlError> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.read = span.byte_range().unwrap_or_default();
                Ok((event, Pos::from(&span.start)))
            }
            Some(Err(error)) => Err(scan_error(&error)),
            None => Ok((Event::StreamEnd, Pos { line: 1, col: 1 })),
        }
    }

    fn node(&mut self, event: Event<'a>, at: Pos, depth: usize) -> Result<Node, YamlError> {
        let fail = |message: String| Err(YamlError { at, message });
        if depth > MAX_DEPTH {
            return fail(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar::value(&text, style, tag.as_deref())
                    .map_err(|message| YamlError { at, message })?;
                let value = match (value, self.written) {
                    (Value::Number(number), true) => number_as_written(number, text),
                    (value, _) => Yaml::Scalar(value),
                };
                (value, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                scalar::check_collection(tag.as_deref(), "seq")
                    .map_err(|message| YamlError { at, message })?;
                let mut items = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    let item = self.node(event, at, depth + 1)?;
                    items.push(self.address(item));
                }
                (Yaml::Seq(items), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                scalar::check_collection(tag.as_deref(), "map")
                    .map_err(|message| YamlError { at, message })?;
                (self.map(depth)?, anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return fail("this alias has no anchor above it".into());
                };
                self.copied.add(node.size());
                self.check_copied(at)?;
                (node.value.clone(), 0)
            }
            other => return fail(format!("unexpected {other:?}")),
        };
        let node = Node { at, value };
        if anchor > 0 {
            // Count nested anchors, too: each anchor stores a copy of those inside it.
            self.copied.add(node.size());
            self.check_copied(at)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn check_copied(&self, at: Pos) -> Result<(), YamlError> {
        let message = if self.copied.nodes > MAX_ALIASED_NODES {
            format!("aliases expand to over {MAX_ALIASED_NODES} nodes")
        } else if self.copied.bytes > MAX_ALIASED_BYTES {
            let mib = MAX_ALIASED_BYTES / 1_048_576;
            format!("aliases expand to over {mib} MiB of text")
        } else {
            return Ok(());
        };
        Err(YamlError { at, message })
    }

    /// Restores text that ends with a colon in a flow list, as in `[2001:db8::, ::]`. The parser reads such
    /// an item as a map with a key and no value; Kubernetes' reader reads it as text.
    fn address(&self, item: Node) -> Node {
        let Yaml::Map(entries) = &item.value else {
            return item;
        };
        let [(_, at, value)] = entries.as_slice() else {
            return item;
        };
        // A map with braces begins before its first key.
        if !value.is_null() || *at != item.at {
            return item;
        }
        let key = self.text.get(self.key.clone()).unwrap_or_default();
        let rest = self.text.get(self.key.end..).unwrap_or_default();
        let in_brackets = rest.starts_with(':') && rest[1..].starts_with([',', ']', '[', '{', '}']);
        if !in_brackets || key.starts_with(['"', '\'', '&', '*', '!', '?']) {
            return item;
        }
        let value = Yaml::Scalar(Value::String(format!("{key}:")));
        Node { value, ..item }
    }

    /// Returns the text of a key, or `None` for the merge key `<<`.
    fn key_of(
        &mut self,
        event: Event<'a>,
        at: Pos,
        depth: usize,
    ) -> Result<Option<String>, YamlError> {
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<" => Ok(None),
            // Fast path for nearly every key.
            Event::Scalar(text, ScalarStyle::Plain, 0, None) if scalar::is_word(&text) => {
                Ok(Some(text.into_owned()))
            }
            event => Ok(Some(match self.node(event, at, depth + 1)?.value {
                Yaml::Scalar(Value::String(text)) => text,
                Yaml::Rewritten(number) => number.text,
                Yaml::Scalar(Value::Number(number)) if !self.written => scalar::key(&number),
                Yaml::Scalar(other) => other.to_string(),
                Yaml::Seq(_) | Yaml::Map(_) => {
                    let message = "a map or list can't be a key; `{{ }}` works only in templates; elsewhere it is a map inside a map".to_owned();
                    return Err(YamlError { at, message });
                }
            })),
        }
    }

    fn map(&mut self, depth: usize) -> Result<Yaml, YamlError> {
        let mut entries: Vec<(String, Pos, Node)> = Vec::new();
        let mut index = Index::default();
        let mut merges = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let range = self.read.clone();
            let key = self.key_of(event, at, depth)?;
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            self.key = range;
            let Some(key) = key else {
                merges.push(value);
                continue;
            };
            if let Some(first) = index.find(&entries, &key) {
                let message = format!("duplicate key {key:?} in this map, first at {first}");
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

fn number_as_written(number: Number, text: Cow<'_, str>) -> Yaml {
    match printed(&number, &text) {
        None => Yaml::Scalar(Value::Number(number)),
        Some(printed) => Yaml::Rewritten(Box::new(Rewritten {
            value: Value::Number(number),
            text: text.into_owned(),
            printed,
        })),
    }
}

/// Finds keys of a map that is being read: by a linear search in a small map, by a hash table in a large one.
#[derive(Default)]
struct Index(HashMap<String, Pos>);

impl Index {
    const FEW: usize = 16;

    /// Returns the position of a key among the entries read so far. Entries are only ever added.
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
