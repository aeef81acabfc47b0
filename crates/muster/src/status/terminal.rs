//! Text layout: colours, folding at a width, tables without borders, and the words for numbers and times.

use anstyle::{AnsiColor, Style};
use comfy_table::{
    Attribute, Color, ColumnConstraint, ContentArrangement, Table, presets::NOTHING,
};
use jiff::Timestamp;

use super::document::State;

/// The properties of the output that text is laid out for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// True if colours and symbols are used.
    pub(crate) styled: bool,
    /// The width in columns; `None` if it is unlimited.
    pub(crate) width: Option<usize>,
    /// The time that ages are relative to.
    pub(crate) now: Option<Timestamp>,
}

impl Terminal {
    /// Returns the properties of standard output. Ages are relative to `now`.
    pub(crate) fn of_stdout(now: Option<Timestamp>) -> Self {
        use std::io::IsTerminal as _;
        let terminal = std::io::stdout().is_terminal();
        let size = terminal_size::terminal_size_of(std::io::stdout()).filter(|_| terminal);
        Self {
            styled: terminal,
            width: size.map(|(width, _)| usize::from(width.0).max(40)),
            now,
        }
    }

    /// Returns text in a style, or unchanged if the output is not styled.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.styled && !text.is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// Folds text at the width. Its first line begins with `first`, the others with `rest`.
    pub(crate) fn fold(self, first: &str, rest: &str, text: &str) -> String {
        let Some(width) = self.width else {
            return format!("{first}{text}\n");
        };
        let options = textwrap::Options::new(width)
            .initial_indent(first)
            .subsequent_indent(rest)
            .word_separator(textwrap::WordSeparator::AsciiSpace)
            .word_splitter(textwrap::WordSplitter::NoHyphenation)
            .wrap_algorithm(textwrap::WrapAlgorithm::FirstFit);
        format!("{}\n", textwrap::fill(text, options))
    }

    /// Returns how long ago a time was, such as `5 min`.
    pub(crate) fn age(self, then: Option<Timestamp>) -> Option<String> {
        let seconds = self.now?.as_second() - then?.as_second();
        Some(length(seconds))
    }
}

/// Formats a length of time in its largest unit.
pub(crate) fn length(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7_199 => format!("{} min", s / 60),
        s @ 7_200..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

/// The meaning that the style of a text conveys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// An important name.
    Strong,
    /// A minor detail.
    Faint,
    Good,
    /// In progress.
    Busy,
    /// Something to check.
    Warning,
    Bad,
}

impl Tone {
    pub(crate) fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Faint => Style::new().dimmed(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Busy => AnsiColor::Cyan.on_default(),
            Self::Warning => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
        }
    }

    fn dress(self, cell: comfy_table::Cell) -> comfy_table::Cell {
        match self {
            Self::Plain => cell,
            Self::Strong => cell.add_attribute(Attribute::Bold),
            Self::Faint => cell.add_attribute(Attribute::Dim),
            Self::Good => cell.fg(Color::DarkGreen),
            Self::Busy => cell.fg(Color::DarkCyan),
            Self::Warning => cell.fg(Color::DarkYellow),
            Self::Bad => cell.fg(Color::DarkRed),
        }
    }
}

impl State {
    pub(crate) fn tone(self) -> Tone {
        match self {
            Self::Synced => Tone::Good,
            Self::Progressing => Tone::Busy,
            Self::Unjoined | Self::Offline | Self::Pending => Tone::Warning,
            Self::Failing => Tone::Bad,
        }
    }

    pub(crate) fn mark(self) -> char {
        match self {
            Self::Synced => '✓',
            Self::Progressing => '↻',
            Self::Unjoined | Self::Offline => '○',
            Self::Pending => '?',
            Self::Failing => '✗',
        }
    }
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(tone: Tone, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { text, tone }
    }

    /// Returns a cell with the text, or a dash if there is none.
    pub(crate) fn or_dash(text: Option<&str>) -> Self {
        match text.filter(|text| !text.is_empty()) {
            Some(text) => text.into(),
            None => Self::new(Tone::Faint, "-"),
        }
    }

    /// Returns a cell with words for a state, and its mark if the terminal is styled.
    pub(crate) fn state(terminal: Terminal, state: State, words: &str) -> Self {
        let text = if terminal.styled {
            format!("{} {words}", state.mark())
        } else {
            words.to_owned()
        };
        Self::new(state.tone(), text)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// A table without borders.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grid {
    header: Vec<String>,
    rows: Vec<Vec<Cell>>,
    /// The columns that may be left out if the table is too wide, in this order.
    spare: Vec<&'static str>,
}

/// The number of spaces between two columns.
const GAP: usize = 2;
/// The minimum width of a folded column.
const FOLDED: usize = 24;

impl Grid {
    pub(crate) fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self {
            header: header.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn spare(mut self, columns: &[&'static str]) -> Self {
        self.spare = columns.to_vec();
        self
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the width of the table if nothing is folded.
    pub(crate) fn natural_width(&self) -> usize {
        self.width_of_first(self.header.len())
    }

    /// Returns the width of the first columns.
    fn width_of_first(&self, columns: usize) -> usize {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let texts = cells.map(|cell| cell.text.as_str());
            texts
                .chain(self.header.get(column).map(String::as_str))
                .map(textwrap::core::display_width)
                .max()
                .unwrap_or_default()
        };
        let widths: usize = (0..columns).map(width).sum();
        widths + GAP * columns.saturating_sub(1)
    }

    fn leave_out(&mut self, column: &str) {
        if let Some(index) = self.header.iter().position(|name| name == column) {
            self.header.remove(index);
            for row in &mut self.rows {
                row.remove(index);
            }
        }
    }

    /// Removes the last column and returns its cells.
    fn take_last(&mut self) -> Vec<Cell> {
        self.header.pop();
        self.rows.iter_mut().filter_map(Vec::pop).collect()
    }

    /// Returns the table as text. If it is too wide, the last column is folded. If that column would become too
    /// narrow, its texts are put below their rows.
    pub(crate) fn draw(mut self, terminal: Terminal) -> String {
        let width = terminal.width.unwrap_or(usize::MAX);
        for column in std::mem::take(&mut self.spare) {
            if self.natural_width() <= width {
                break;
            }
            self.leave_out(column);
        }
        let before_last = self.header.len().saturating_sub(1);
        let fits = self.natural_width() <= width;
        let folds = !fits && self.width_of_first(before_last) + GAP + FOLDED <= width;
        let below = if fits || folds {
            Vec::new()
        } else {
            self.take_last()
        };
        let mut table = self.table(terminal);
        if folds {
            // The gap after the last column may exceed the width.
            let width = u16::try_from(width + GAP).unwrap_or(u16::MAX);
            table
                .set_width(width)
                .set_content_arrangement(ContentArrangement::Dynamic);
            for column in table.column_iter_mut().take(before_last) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        // If texts are put below, each row is one line, and the header is the first line.
        let below = std::iter::once(None).chain(below.iter().map(Some));
        let below = below.chain(std::iter::repeat(None));
        let mut text = String::new();
        for (line, cell) in table.lines().zip(below) {
            text.push_str(line.trim_end());
            text.push('\n');
            if let Some(cell) = cell.filter(|cell| !cell.text.is_empty()) {
                let cell = terminal.paint(cell.tone.style(), &cell.text);
                text.push_str(&terminal.fold("    ", "    ", &cell));
            }
        }
        text
    }

    fn table(self, terminal: Terminal) -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING).force_no_tty();
        if terminal.styled {
            table.enforce_styling();
            table.style_text_only();
        }
        let dressed = |cell: Cell| cell.tone.dress(comfy_table::Cell::new(cell.text));
        let header = self.header.into_iter();
        let header = header.map(|name| dressed(Cell::new(Tone::Faint, name)));
        table.set_header(header.collect::<Vec<_>>());
        for row in self.rows {
            table.add_row(row.into_iter().map(dressed).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP as u16));
        }
        table
    }
}

/// Returns a number with its noun, such as `1 cluster` or `4 clusters`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Joins names, such as `a, b and 12 more`.
pub(crate) fn names<'a>(names: impl IntoIterator<Item = &'a str>, most: usize) -> String {
    let all: Vec<&str> = names.into_iter().collect();
    if all.len() <= most + 1 {
        return all.join(", ");
    }
    format!("{} and {} more", all[..most].join(", "), all.len() - most)
}

/// Returns untrusted text in one line, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let text: String = text.chars().map(crate::problems::harmless).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the short form of a commit.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..8).unwrap_or(commit)
}
