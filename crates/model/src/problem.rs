//! Problems in a fleet repository. Each is shown with file, line, column, the text of the line and advice,
//! so that a newcomer can fix it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ids::AppName, yaml::Pos};

/// What a problem blocks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// The whole commit. The last good commit stays in force.
    Fleet,
    /// One app. Its last good bundle stays in force.
    App(AppName),
    /// Nothing. The problem is only a hint.
    Hint,
    /// Nothing in the repository: the hub itself has this problem, and a person must do something about it.
    Hub,
}

/// A problem in a fleet repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What the problem blocks.
    pub scope: Scope,
    /// The path of the file from the repository's root; empty for a problem that is in no single file.
    pub file: String,
    /// The position in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Pos>,
    /// A message that says what is wrong.
    pub message: String,
    /// The text of the line at that position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Advice on how to fix the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Problem {
    /// Creates a problem of a whole file.
    #[must_use]
    pub fn new(scope: Scope, file: &str, message: impl Into<String>) -> Self {
        let (file, message) = (file.to_owned(), message.into());
        Self {
            scope,
            file,
            at: None,
            message,
            line: None,
            help: None,
        }
    }

    /// Creates a problem of the hub itself, with advice.
    #[must_use]
    pub fn of_hub(message: impl Into<String>, help: &str) -> Self {
        Self::new(Scope::Hub, "", message).help(help)
    }

    /// Returns true if the problem blocks the commit or an app.
    #[must_use]
    pub fn blocks(&self) -> bool {
        matches!(self.scope, Scope::Fleet | Scope::App(_))
    }

    /// Returns the problem with a position in the text of its file.
    #[must_use]
    pub fn at(mut self, text: &str, at: Pos) -> Self {
        let line = text.lines().nth(at.line.saturating_sub(1) as usize);
        self.line = line.map(|line| line.chars().take(200).collect());
        self.at = Some(at);
        self
    }

    /// Returns the problem with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if let Some(at) = self.at {
                write!(f, ":{at}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)?;
        if let (Some(at), Some(line)) = (self.at, &self.line) {
            let number = at.line.to_string();
            let gutter = " ".repeat(number.len());
            // A tab before the column stays a tab, so that the caret is below its character.
            let before: String = line
                .chars()
                .take(at.col.saturating_sub(1) as usize)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            write!(
                f,
                "\n {gutter} |\n {number} | {line}\n {gutter} | {before}^"
            )?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n   = help: {help}")?;
        }
        Ok(())
    }
}

/// Returns the candidate that was probably meant, if one is similar enough.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    let allowed = (length / 3).max(1) + 1;
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            // At a distance of the longer word's length, the two words share nothing.
            *distance <= allowed && *distance < length.max(candidate.chars().count())
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Returns advice for an unknown word: the most similar candidate, or else a list of up to 12 candidates.
#[must_use]
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    match nearest(word, candidates.iter().copied()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if candidates.is_empty() => None,
        None => {
            let more = if candidates.len() > 12 { ", …" } else { "" };
            let known: Vec<_> = candidates.into_iter().take(12).collect();
            Some(format!("use one of: {}{more}", known.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests;
