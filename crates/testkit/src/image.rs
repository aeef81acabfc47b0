//! Builds container images from files, without a Dockerfile, a daemon or a network. An image has one layer, and the
//! same files always give the same bytes.
//!
//! The archive is an OCI image layout that also contains Docker's `manifest.json`, so that `docker load`, `kind load
//! image-archive`, `ctr images import`, `skopeo` and `crane` can read it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The content of a file in an image.
#[derive(Debug, Clone)]
pub enum Content {
    /// The content of this file on this machine.
    Copy(PathBuf),
    /// The bytes of the file.
    Bytes(Vec<u8>),
    /// A symbolic link to this path.
    Link(String),
}

/// A file in an image.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path from the root, without a leading slash.
    pub path: String,
    /// The file's permissions.
    pub mode: u32,
    /// The file's content.
    pub content: Content,
}

impl Entry {
    /// Returns an entry for a program that is copied from this machine.
    pub fn program(path: &str, from: &Path) -> Self {
        Self {
            path: path.to_owned(),
            mode: 0o755,
            content: Content::Copy(from.to_owned()),
        }
    }

    /// Returns an entry for a symbolic link.
    pub fn link(path: &str, to: &str) -> Self {
        Self {
            path: path.to_owned(),
            mode: 0o777,
            content: Content::Link(to.to_owned()),
        }
    }
}

/// A container image.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// The image's names, such as `ghcr.io/muster-fleet/muster:0.1.0`.
    pub tags: Vec<String>,
    /// The image's files. Their folders are created as needed.
    pub files: Vec<Entry>,
    /// Empty folders, each with its permissions.
    pub folders: Vec<(String, u32)>,
    /// The program to run, with its first arguments.
    pub entrypoint: Vec<String>,
    /// The environment variables, as `NAME=value`.
    pub environment: Vec<String>,
    /// The user and group that run the program, such as `65532:65532`; empty for root.
    pub user: String,
    /// The labels' names and values, such as `org.opencontainers.image.source`.
    pub labels: Vec<(String, String)>,
}

impl Image {
    /// Writes the archive atomically and returns the image's digest.
    ///
    /// # Errors
    /// Fails if a file can't be read or the archive can't be written.
    pub fn write(&self, archive: &Path) -> anyhow::Result<String> {
        let failed = || format!("cannot write the image {}", archive.display());
        let folder = archive.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).with_context(failed)?;
        let layer = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
        let digest = self.layer(layer.as_file()).with_context(failed)?;
        let size = layer.as_file().metadata().with_context(failed)?.len();

        let config = serde_json::to_vec(&self.config(&digest))?;
        let config_digest = sha256(&config);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config_digest}"), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{digest}"), "size": size,
            }],
        }))?;
        let manifest_digest = sha256(&manifest);
        let named: Vec<Value> = self
            .tags
            .iter()
            .map(|tag| {
                json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": format!("sha256:{manifest_digest}"), "size": manifest.len(),
                    "annotations": {
                        "io.containerd.image.name": tag,
                        "org.opencontainers.image.ref.name": tag,
                    },
                })
            })
            .collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": named,
        });
        let blob = |digest: &str| format!("blobs/sha256/{digest}");
        let docker = json!([{
            "Config": blob(&config_digest), "RepoTags": self.tags, "Layers": [blob(&digest)],
        }]);

        let whole = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
        let mut tar = Builder::new(BufWriter::new(whole.as_file()));
        put_bytes(
            &mut tar,
            "oci-layout",
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        put_bytes(&mut tar, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
        put_bytes(
            &mut tar,
            "manifest.json",
            0o644,
            &serde_json::to_vec(&docker)?,
        )?;
        put_bytes(&mut tar, &blob(&config_digest), 0o644, &config)?;
        put_bytes(&mut tar, &blob(&manifest_digest), 0o644, &manifest)?;
        put_file(&mut tar, &blob(&digest), 0o644, layer.path())?;
        finish(tar).with_context(failed)?;
        // A temporary file is readable only by its owner; the image must be readable by all.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        whole
            .as_file()
            .set_permissions(readable)
            .with_context(failed)?;
        whole.persist(archive).with_context(failed)?;
        Ok(format!("sha256:{manifest_digest}"))
    }

    /// Writes the layer and returns its digest.
    fn layer(&self, file: &File) -> anyhow::Result<String> {
        let mut tar = Builder::new(Hashing {
            hash: Sha256::new(),
            file: BufWriter::new(file),
        });
        let mut folders = BTreeSet::new();
        for path in self.files.iter().map(|file| file.path.as_str()) {
            let parents = path
                .match_indices('/')
                .map(|(at, _)| (path[..at].to_owned(), 0o755));
            folders.extend(parents);
        }
        folders.extend(self.folders.iter().cloned());
        for (path, mode) in &folders {
            let mut header = header(EntryType::Directory, *mode, 0);
            tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        let mut files: Vec<&Entry> = self.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        for file in files {
            match &file.content {
                Content::Copy(from) => put_file(&mut tar, &file.path, file.mode, from)?,
                Content::Bytes(bytes) => put_bytes(&mut tar, &file.path, file.mode, bytes)?,
                Content::Link(to) => {
                    let mut header = header(EntryType::Symlink, file.mode, 0);
                    tar.append_link(&mut header, &file.path, to)?;
                }
            }
        }
        let mut hashing = tar.into_inner()?;
        hashing.file.flush()?;
        Ok(hex(&hashing.hash.finalize()))
    }

    fn config(&self, layer: &str) -> Value {
        let labels: serde_json::Map<String, Value> = self
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().into()))
            .collect();
        json!({
            "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint, "Env": self.environment, "User": self.user,
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "muster"}],
        })
    }
}

/// A writer that hashes everything that is written through it.
struct Hashing<W> {
    hash: Sha256,
    file: W,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns a tar header without owner and time, because these would make two builds differ.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn put_bytes(
    tar: &mut Builder<impl Write>,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> anyhow::Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
        .with_context(|| format!("cannot put {path} into an archive"))
}

fn put_file(
    tar: &mut Builder<impl Write>,
    path: &str,
    mode: u32,
    from: &Path,
) -> anyhow::Result<()> {
    let failed = || format!("cannot put {} into an archive", from.display());
    let file = File::open(from).with_context(failed)?;
    let mut header = header(
        EntryType::Regular,
        mode,
        file.metadata().with_context(failed)?.len(),
    );
    tar.append_data(&mut header, path, file)
        .with_context(failed)
}

fn finish(tar: Builder<impl Write>) -> anyhow::Result<()> {
    tar.into_inner()?.flush()?;
    Ok(())
}
