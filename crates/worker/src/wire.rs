//! What passes between a worker and the process that asks it: frames of a head in JSON and bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    sync::Arc,
};

use muster_model::{
    ids::{AppName, ClusterName, ObjectId, Role},
    load::Roles,
    problem::Problem,
    tree::Entry,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::outcome::Facts;

/// The largest head and the largest bytes of a frame. A head has the places of all apps in all clusters.
const MAX_HEAD: u32 = 256 * 1024 * 1024;
const MAX_BYTES: u32 = 64 * 1024 * 1024;

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Once, before anything else.
    Begin {
        /// Bytes of memory that it may use.
        memory: u64,
        /// Bytes that all bundles together may have.
        bundles: u64,
    },
    /// A file is new or different. The frame's bytes are the file's, unless another with the same content was
    /// sent before.
    Put {
        path: String,
        entry: PutEntry,
        sent: bool,
    },
    /// A file is gone.
    Gone { path: String },
    /// Work on what is there now.
    Work(Box<Job>),
    /// Give up what is being worked on.
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

/// How to work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Milliseconds of processor time that an app may take.
    pub(crate) budget: u64,
    /// One app after the other, each told before it is begun.
    pub(crate) careful: bool,
    /// Apps that are left out, and what is told of them.
    pub(crate) refused: BTreeMap<AppName, Problem>,
    /// Roles to show instead of those that placement gives.
    pub(crate) role: Option<AsRole>,
}

/// A role that apps have in a cluster instead of the one that placement gives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AsRole {
    /// The cluster.
    pub cluster: ClusterName,
    /// The only app that is concerned.
    pub app: Option<String>,
    /// The role.
    pub role: Role,
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// What it is about to do is for this app, or for none.
    Begun(Option<AppName>),
    /// It can't go on for what this app makes it do.
    Stuck(AppName),
    /// The objects of a file, which the answer refers to. The frame's bytes are its lines.
    Part {
        id: u64,
        file: String,
        namespace: String,
    },
    /// All of it.
    Answer(Box<Answer>),
    /// It gave up, as it was told to.
    Stopped,
}

/// An [`crate::Outcome`], with what its reader has already named by number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) facts: Option<Facts>,
    pub(crate) broken: BTreeSet<AppName>,
    pub(crate) formerly: BTreeMap<AppName, AppName>,
    pub(crate) roles: Roles,
    pub(crate) problems: Vec<Problem>,
    /// Whether an app was given up since it took too long.
    pub(crate) slow: bool,
    /// Every bundle of this answer.
    pub(crate) bundles: Vec<AnswerBundle>,
    /// By app the indices in `bundles`, each with its clusters.
    pub(crate) places: BTreeMap<AppName, Vec<(usize, Vec<ClusterName>)>>,
}

/// A bundle in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AnswerBundle {
    /// The same number is the same bundle, in all answers of a worker.
    pub(crate) id: u64,
    /// Its first line and parts, unless the last answer had it.
    pub(crate) new: Option<(String, Vec<u64>)>,
}

/// A frame's bytes.
pub(crate) fn frame<T: Serialize>(head: &T, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 8];
    serde_json::to_writer(&mut frame, head)?;
    let too_large = |_| io::Error::other("this is too much for one frame");
    let head = u32::try_from(frame.len() - 8).map_err(too_large)?;
    let length = u32::try_from(bytes.len()).map_err(too_large)?;
    check(head, length)?;
    frame[..4].copy_from_slice(&head.to_le_bytes());
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(bytes);
    Ok(frame)
}

/// The lengths of head and bytes that a frame begins with.
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
