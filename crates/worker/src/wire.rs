//! The protocol between a worker and its parent process. Each frame has a head in JSON, followed by raw bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    sync::Arc,
};

use muster_model::{
    fleet_record::FleetRecord,
    ids::{AppName, ClusterName, ObjectId, Role},
    load::Roles,
    problem::Problem,
    tree::Entry,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::outcome::Facts;

/// The maximum size of a frame's head, in bytes. The head of an answer lists all apps in all clusters.
const MAX_HEAD: u32 = 256 * 1024 * 1024;
/// The maximum size of a frame's raw bytes.
const MAX_BYTES: u32 = 64 * 1024 * 1024;

/// A message to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Sets the limits. Sent once, before any other message.
    Begin {
        /// The memory that the worker may use, in bytes.
        memory: u64,
        /// The maximum size of all bundles together, in bytes.
        bundles: u64,
    },
    /// Adds or replaces a file. The frame's bytes are the file's content. They are empty if `sent` is true, because the
    /// content was already sent with another file.
    Put {
        path: String,
        entry: PutEntry,
        sent: bool,
    },
    /// Removes a file.
    Gone { path: String },
    /// Starts a job on the current files.
    Work(Box<Job>),
    /// Cancels the current job.
    Stop,
}

/// An [`Entry`] without its bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PutEntry {
    File(ObjectId),
    TooLarge(u64),
    Symlink(String),
    Submodule,
}

impl PutEntry {
    pub(crate) fn split(entry: &Entry) -> (Self, &[u8]) {
        match entry {
            Entry::File { id, bytes } => (Self::File(*id), bytes),
            Entry::TooLarge { size } => (Self::TooLarge(*size), &[]),
            Entry::Symlink { target } => (Self::Symlink(target.clone()), &[]),
            Entry::Submodule => (Self::Submodule, &[]),
        }
    }

    pub(crate) fn join(self, bytes: Arc<[u8]>) -> Entry {
        match self {
            Self::File(id) => Entry::File { id, bytes },
            Self::TooLarge(size) => Entry::TooLarge { size },
            Self::Symlink(target) => Entry::Symlink { target },
            Self::Submodule => Entry::Submodule,
        }
    }
}

/// The settings of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The processor time that each app may take, in milliseconds.
    pub(crate) budget: u64,
    /// True if apps are processed one at a time, each reported with [`Tell::Begun`] before it starts.
    pub(crate) careful: bool,
    /// The apps that are left out, each with the problem to report.
    pub(crate) refused: BTreeMap<AppName, Problem>,
    /// A role to use instead of the one that placement gives.
    pub(crate) role: Option<AsRole>,
    pub(crate) writers: Writers,
}

/// The writers of all apps before the commit that is being processed, and whether apps may get their first one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Writers {
    /// The fleet record.
    pub record: FleetRecord,
    /// The reason why no app may get its first writer now, if there is one.
    pub frozen: Option<String>,
}

/// A role that apps get in one cluster, instead of the role that placement gives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AsRole {
    /// The cluster.
    pub cluster: ClusterName,
    /// The app that gets the role. `None` means all apps.
    pub app: Option<String>,
    /// The role.
    pub role: Role,
}

/// A message from a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// The app that the worker is about to process. `None` when a piece of work has ended.
    Begun(Option<AppName>),
    /// The app whose piece of work takes too long. The worker exits after this message.
    Stuck(AppName),
    /// The objects of one file, which the answer refers to by `id`. The frame's bytes hold the objects' lines.
    Part {
        id: u64,
        file: String,
        namespace: String,
    },
    /// The complete answer to a job.
    Answer(Box<Answer>),
    /// The worker cancelled the job, as requested.
    Stopped,
}

/// An encoded [`crate::Outcome`]. Bundles and parts that the reader already has are referenced by number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) facts: Option<Facts>,
    pub(crate) broken: BTreeSet<AppName>,
    pub(crate) formerly: BTreeMap<AppName, AppName>,
    pub(crate) roles: Roles,
    pub(crate) record: FleetRecord,
    pub(crate) problems: Vec<Problem>,
    /// True if work on an app was cancelled because it took too long.
    pub(crate) slow: bool,
    /// The bundles of this answer.
    pub(crate) bundles: Vec<AnswerBundle>,
    /// For each app, the indices into `bundles`, each with the clusters that use the bundle.
    pub(crate) places: BTreeMap<AppName, Vec<(usize, Vec<ClusterName>)>>,
}

/// A bundle in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AnswerBundle {
    /// The number of the bundle. The same number means the same bundle in all answers of a worker.
    pub(crate) id: u64,
    /// The first line and the parts of the bundle. `None` if the reader already has the bundle.
    pub(crate) new: Option<(String, Vec<u64>)>,
}

/// Encodes a frame.
pub(crate) fn frame<T: Serialize>(head: &T, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 8];
    serde_json::to_writer(&mut frame, head)?;
    let too_large = |_| io::Error::other("the content is too large for one frame");
    let head = u32::try_from(frame.len() - 8).map_err(too_large)?;
    let length = u32::try_from(bytes.len()).map_err(too_large)?;
    check(head, length)?;
    frame[..4].copy_from_slice(&head.to_le_bytes());
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(bytes);
    Ok(frame)
}

/// Decodes the lengths of the head and of the raw bytes from the start of a frame.
pub(crate) fn lengths(start: [u8; 8]) -> io::Result<(usize, usize)> {
    let [a, b, c, d, e, f, g, h] = start;
    let (head, bytes) = (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    );
    check(head, bytes)?;
    Ok((head as usize, bytes as usize))
}

fn check(head: u32, bytes: u32) -> io::Result<()> {
    if head > MAX_HEAD || bytes > MAX_BYTES {
        return Err(io::Error::other("a frame is too large"));
    }
    Ok(())
}

pub(crate) fn write<T: Serialize>(to: &mut impl Write, head: &T, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&frame(head, bytes)?)
}

pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut start = [0; 8];
    from.read_exact(&mut start)?;
    let (head, bytes) = lengths(start)?;
    let mut content = vec![0; head + bytes];
    from.read_exact(&mut content)?;
    let bytes = content.split_off(head);
    Ok((serde_json::from_slice(&content)?, bytes))
}
