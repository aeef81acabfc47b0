//! What is being worked on, written down before it is begun: where the whole process ends over it, the next
//! one knows.

use std::{fs, io, path::PathBuf};

use muster_model::ids::AppName;
use serde::{Deserialize, Serialize};

use crate::verdicts::Verdicts;

/// The file.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Option<PathBuf>,
    page: Page,
}

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Page {
    /// What is being worked on, until that has ended well or badly.
    working: Option<Working>,
    /// The commit that an earlier process ended over.
    ended_over: Option<String>,
    /// The app that it was working on. A process that is killed for another reason while it works is no fault
    /// of an app, so it takes two in a row.
    suspect: Option<AppName>,
    /// The app that two processes ended over.
    guilty: Option<AppName>,
    /// Apps that are left out.
    verdicts: Verdicts,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Working {
    commit: String,
    /// Where apps are worked on one after the other: the one that is its turn.
    app: Option<AppName>,
}

impl Page {
    /// As it is for the process that comes after the one that wrote it.
    fn later(mut self) -> Self {
        let Some(Working { commit, app }) = self.working.take() else {
            return self;
        };
        let same = self.ended_over.as_ref() == Some(&commit);
        if same && app.is_some() && app == self.suspect {
            self.guilty = app;
        } else if app.is_some() || !same {
            self.suspect = app;
        }
        self.ended_over = Some(commit);
        self
    }
}

impl Journal {
    /// What an earlier process left. A file that can't be read is no reason to do nothing.
    pub(crate) fn open(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|file| fs::read(file).ok());
        let page = text.and_then(|text| serde_json::from_slice::<Page>(&text).ok());
        Self {
            file,
            page: page.unwrap_or_default().later(),
        }
    }

    /// Whether an earlier process ended over this commit.
    pub(crate) fn ended_over(&self, commit: &str) -> bool {
        self.page.ended_over.as_deref() == Some(commit)
    }

    /// The app of this commit that too many processes ended over.
    pub(crate) fn guilty(&mut self, commit: &str) -> Option<AppName> {
        let known = self.ended_over(commit);
        self.page.guilty.take().filter(|_| known)
    }

    /// Apps that are left out.
    pub(crate) fn verdicts(&mut self) -> &mut Verdicts {
        &mut self.page.verdicts
    }

    /// Writes down what is begun.
    pub(crate) fn begin(&mut self, commit: &str, app: Option<&AppName>) {
        let working = Some(Working {
            commit: commit.to_owned(),
            app: app.cloned(),
        });
        if self.page.working != working {
            self.page.working = working;
            self.write();
        }
    }

    /// It is done, or was given up in good order.
    pub(crate) fn end(&mut self) {
        let verdicts = std::mem::take(&mut self.page.verdicts);
        self.page = Page {
            verdicts,
            ..Page::default()
        };
        self.write();
    }

    fn write(&self) {
        let Some(file) = &self.file else {
            return;
        };
        let written = serde_json::to_vec(&self.page)
            .map_err(io::Error::other)
            .and_then(|text| {
                let new = file.with_extension("new");
                fs::write(&new, text)?;
                fs::rename(&new, file)
            });
        if let Err(error) = written {
            tracing::warn!(file = %file.display(), %error, "what is being worked on can't be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The journal of the process that comes after this one was killed.
    fn killed(journal: Journal) -> Journal {
        Journal {
            file: None,
            page: journal.page.later(),
        }
    }

    #[test]
    fn an_app_is_guilty_when_two_processes_in_a_row_end_over_it() {
        let (api, web): (AppName, AppName) = ("api".parse().unwrap(), "web".parse().unwrap());
        let mut journal = Journal::open(None);
        journal.begin("one", None);
        let mut journal = killed(journal);
        assert!(journal.ended_over("one") && !journal.ended_over("two"));
        assert_eq!(journal.guilty("one"), None);
        // Carefully from now on.
        for turn in [None, Some(&api), Some(&web)] {
            journal.begin("one", turn);
        }
        let mut journal = killed(journal);
        assert_eq!(journal.guilty("one"), None, "once may be chance");
        // Killed for another reason before it came to an app.
        journal.begin("one", None);
        let mut journal = killed(journal);
        for turn in [None, Some(&api), None, Some(&web)] {
            journal.begin("one", turn);
        }
        let mut journal = killed(journal);
        assert_eq!(journal.guilty("one"), Some(web));
        journal.begin("two", None);
        journal.end();
        assert!(!killed(journal).ended_over("two"));
    }
}
