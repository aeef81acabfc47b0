//! Checks the key of an SSH host against OpenSSH's `known_hosts` files (sshd(8), "SSH_KNOWN_HOSTS FILE
//! FORMAT"). An unknown host is never accepted.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use ring::{digest, hmac};

/// The reason why an SSH host is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// No file has a key of this type for the host.
    #[error(
        "its {kind} key with fingerprint {fingerprint} is not known; compare the fingerprint with \
         the host's published one, and if it is right add this line to {file}: {line}"
    )]
    Unknown {
        /// The key's type.
        kind: String,
        /// The SHA-256 fingerprint of the key, as `ssh-keygen -l` shows it.
        fingerprint: String,
        /// The file to add the line to.
        file: PathBuf,
        /// The line that makes the host known.
        line: String,
    },
    /// The files have another key for the host.
    #[error(
        "its {kind} key with fingerprint {fingerprint} is not the one in {file} line {number}: \
         either the host has a new key or somebody intercepts the connection; ask the host's \
         operator, then replace that line"
    )]
    Changed {
        /// The key's type.
        kind: String,
        /// The SHA-256 fingerprint of the key that the host presented.
        fingerprint: String,
        /// The file with the known key.
        file: PathBuf,
        /// The number of the line, counted from 1.
        number: usize,
    },
    /// The key is marked as revoked.
    #[error("its key with fingerprint {fingerprint} is revoked in {file} line {number}")]
    Revoked {
        /// The SHA-256 fingerprint of the key.
        fingerprint: String,
        /// The file.
        file: PathBuf,
        /// The number of the line, counted from 1.
        number: usize,
    },
    /// A file can't be read.
    #[error("{file} can't be read")]
    File {
        /// The file.
        file: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The host presented no key.
    #[error("it showed no key")]
    NoKey,
}

/// Returns the default `known_hosts` files. Files that do not exist count as empty.
fn default_files() -> Vec<PathBuf> {
    let home = std::env::home_dir().map(|home| home.join(".ssh/known_hosts"));
    home.into_iter()
        .chain([PathBuf::from("/etc/ssh/ssh_known_hosts")])
        .collect()
}

/// What the known_hosts files say of one host.
#[derive(Debug)]
pub(crate) struct KnownHosts {
    host: String,
    port: u16,
    texts: Texts,
    /// The file that a missing key belongs in.
    add_to: PathBuf,
}

impl KnownHosts {
    /// Reads this file, or else the default ones.
    pub(crate) fn read(file: Option<&Path>, host: &str, port: u16) -> Result<Self, HostKeyError> {
        let (files, texts) = read(file)?;
        Ok(Self {
            host: host.to_owned(),
            port,
            texts,
            add_to: files.into_iter().next().unwrap_or_default(),
        })
    }

    /// Accepts the host only if a file has exactly this key for it.
    pub(crate) fn check(&self, key: &[u8]) -> Result<(), HostKeyError> {
        decide(&self.texts, &self.add_to, &self.host, self.port, key)
    }

    /// Returns the types of the keys that are known for the host, so that it can be asked for one of them.
    pub(crate) fn kinds(&self) -> Vec<&str> {
        let name = name(&self.host, self.port);
        let lines = self.texts.iter().flat_map(|(_, text)| text.lines());
        let known = lines.filter_map(|line| {
            let mut words = line.split_whitespace();
            let (hosts, kind) = (words.next()?, words.next()?);
            let plain = !hosts.starts_with(['#', '@']);
            (plain && covers(hosts, &name)).then_some(kind)
        });
        known.collect()
    }
}

/// Files with known hosts, with their content.
type Texts = Vec<(PathBuf, String)>;

/// Returns the names of the files, and the content of those that exist.
fn read(file: Option<&Path>) -> Result<(Vec<PathBuf>, Texts), HostKeyError> {
    let files = file.map_or_else(default_files, |file| vec![file.to_owned()]);
    let mut texts = Vec::new();
    for path in &files {
        match std::fs::read(path) {
            // A comment may be in any encoding.
            Ok(bytes) => texts.push((path.clone(), String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(HostKeyError::File {
                    file: path.clone(),
                    source,
                });
            }
        }
    }
    Ok((files, texts))
}

/// Returns the name of a host as known_hosts files write it.
fn name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 {
        host
    } else {
        format!("[{host}]:{port}")
    }
}

fn decide(
    files: &[(PathBuf, String)],
    add_to: &Path,
    host: &str,
    port: u16,
    key: &[u8],
) -> Result<(), HostKeyError> {
    let name = name(host, port);
    let kind = kind(key).ok_or(HostKeyError::NoKey)?;
    let hash = digest::digest(&digest::SHA256, key);
    let fingerprint = format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(hash));
    let encoded = BASE64_STANDARD.encode(key);

    let mut known = false;
    let mut other = None;
    for (file, text) in files {
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split_whitespace().peekable();
            let marker = words.next_if(|word| word.starts_with('@'));
            let (Some(hosts), Some(line_kind), Some(line_key)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if hosts.starts_with('#') || line_kind != kind || !covers(hosts, &name) {
                continue;
            }
            match marker {
                Some("@revoked") if line_key == encoded => {
                    let file = file.clone();
                    return Err(HostKeyError::Revoked {
                        fingerprint,
                        file,
                        number,
                    });
                }
                // `@cert-authority` lines are for host certificates, which Muster does not support.
                Some(_) => {}
                None if line_key == encoded => known = true,
                None => other = other.or(Some((file.clone(), number))),
            }
        }
    }
    match other {
        _ if known => Ok(()),
        Some((file, number)) => Err(HostKeyError::Changed {
            kind: kind.to_owned(),
            fingerprint,
            file,
            number,
        }),
        None => Err(HostKeyError::Unknown {
            line: format!("{name} {kind} {encoded}"),
            kind: kind.to_owned(),
            fingerprint,
            file: add_to.to_owned(),
        }),
    }
}

/// Returns the key's type, which is its first field (RFC 4253, section 6.6).
fn kind(key: &[u8]) -> Option<&str> {
    let (length, rest) = key.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

fn covers(hosts: &str, name: &str) -> bool {
    if let Some(hashed) = hosts.strip_prefix("|1|") {
        return hashed_is(hashed, name).unwrap_or(false);
    }
    let mut covered = false;
    for pattern in hosts.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern, name) => return false,
            Some(_) => {}
            None => covered |= matches(pattern, name),
        }
    }
    covered
}

/// Returns true if the hashed host `salt|hash`, an HMAC-SHA1, is this name. Returns `None` if it is malformed.
fn hashed_is(hashed: &str, name: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let salt = BASE64_STANDARD.decode(salt).ok()?;
    let hash = BASE64_STANDARD.decode(hash).ok()?;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    Some(hmac::verify(&key, name.as_bytes(), &hash).is_ok())
}

/// Matches a name against a pattern, in which `*` matches any text and `?` one character. It backtracks only to the
/// last `*`, so that no pattern takes exponential time.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.as_bytes());
    let pattern = pattern.as_bytes();
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests;
