//! Who looks over the reading and rendering of apps. Both are pure; what they may cost is decided by the
//! process that runs them.

use crate::{ids::AppName, problem::Problem};

/// Is told of each piece of an app's work, on the thread that does it, and may refuse it.
pub trait Overseer: Sync {
    /// Before a piece of work.
    ///
    /// # Errors
    /// The app's problem, where nothing more is to be done for it.
    fn begin(&self, app: &AppName) -> Result<(), Box<Problem>>;

    /// After a piece of work that was begun.
    fn end(&self, app: &AppName);
}

/// Lets everything pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Overseer for Unwatched {
    fn begin(&self, _: &AppName) -> Result<(), Box<Problem>> {
        Ok(())
    }

    fn end(&self, _: &AppName) {}
}
