//! A Git repository as the hub sees it: mirrored into the hub's state directory, watched, and read
//! as immutable snapshots straight from the object store. There is no work tree.
//!
//! [`RemoteConfig`] says where the repository is and how to log in. [`Mirror`] stores a verified copy of
//! one reference. [`Watcher`] refreshes the mirror and publishes a [`RepoView`]. [`read_dir`] returns the
//! same kind of tree for a plain directory.

mod address;
mod cause;
mod connection;
mod directory;
mod error;
mod https;
mod known_hosts;
mod local;
mod mirror;
mod packet;
mod remote;
mod snapshot;
mod ssh;
mod view;
mod watch;

pub use address::{RemoteUrl, UrlError};
pub use cause::Cause;
pub use connection::{ConnectionError, Limits};
pub use directory::read_dir;
pub use error::Error;
pub use known_hosts::HostKeyError;
pub use mirror::{Change, Mirror, Refreshed};
pub use remote::{Auth, Reference, RemoteConfig};
pub use snapshot::TooBig;
pub use view::{Problem, RepoState, RepoView, Tip};
pub use watch::{WatchConfig, Watcher};
