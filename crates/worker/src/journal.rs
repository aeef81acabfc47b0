//! A journal of the commit and app in progress, written to disk before the work starts. If the work crashes the whole
//! process, the next process knows which commit and app it was.

use std::{fs, io, path::PathBuf};

use muster_model::ids::AppName;
use serde::{Deserialize, Serialize};

use crate::verdicts::Verdicts;

/// The journal and its file.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Option<PathBuf>,
    page: Page,
}

/// The content of the journal file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Page {
    /// The work in progress. `None` when no work is in progress.
    working: Option<Working>,
    /// The commit that an earlier process was working on when it ended.
    ended_over: Option<String>,
    /// The app that the earlier process was working on when it ended. A process can be killed for a reason that is
    /// not the app's fault, so an app is blamed only after two processes in a row.
    suspect: Option<AppName>,
    /// The app that two processes were working on when they ended.
    guilty: Option<AppName>,
    /// The apps that are left out.
    verdicts: Verdicts,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Working {
    commit: String,
    /// The app in progress, if apps are processed one at a time.
    app: Option<AppName>,
}

impl Page {
    /// Converts the page that an earlier process wrote into the page of the current process.
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
    /// Opens the journal that an earlier process left. A file that can't be read counts as an empty journal.
    pub(crate) fn open(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|file| fs::read(file).ok());
        let page = text.and_then(|text| serde_json::from_slice::<Page>(&text).ok());
        Self {
            file,
            page: page.unwrap_or_default().later(),
        }
    }

    /// Returns true if an earlier process ended while it worked on this commit.
    pub(crate) fn ended_over(&self, commit: &str) -> bool {
        self.page.ended_over.as_deref() == Some(commit)
    }

    /// Returns the app of this commit that two processes were working on when they ended, and forgets it.
    pub(crate) fn guilty(&mut self, commit: &str) -> Option<AppName> {
        let known = self.ended_over(commit);
        self.page.guilty.take().filter(|_| known)
    }

    /// Returns the apps that are left out.
    pub(crate) fn verdicts(&mut self) -> &mut Verdicts {
        &mut self.page.verdicts
    }

    /// Records that work on this commit and app is about to start.
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

    /// Records that the work is finished or was cancelled on purpose. Keeps only the verdicts.
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
            tracing::warn!(file = %file.display(), %error, "can't write the journal of the commit in progress");
        }
    }
}

#[cfg(test)]
mod tests;
