//! Hooks around the reading and rendering of apps. Reading and rendering are pure functions. The process that
//! calls them uses these hooks to limit the cost of each app.

use crate::{ids::AppName, problem::Problem};

/// Observes each piece of work for an app, on the thread that does the work, and may refuse it.
pub trait Overseer: Sync {
    /// Called before a piece of work.
    ///
    /// # Errors
    /// Returns a problem of the app if no more work may be done for it.
    fn begin(&self, app: &AppName) -> Result<(), Box<Problem>>;

    /// Called after a piece of work for which [`Self::begin`] returned `Ok`.
    fn end(&self, app: &AppName);
}

/// An [`Overseer`] that allows everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Overseer for Unwatched {
    fn begin(&self, _: &AppName) -> Result<(), Box<Problem>> {
        Ok(())
    }

    fn end(&self, _: &AppName) {}
}
