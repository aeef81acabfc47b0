//! The clients that apply objects.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Request, header};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde::Deserialize;
use serde_json::{Value, json};

use super::objects;
use crate::{fanout::memory, peers::output};

/// Applies objects with bare PATCH requests, `at_a_time` of them in parallel. Namespaces go first.
pub(super) async fn bare(
    client: &Client,
    sets: &[Vec<Value>],
    at_a_time: usize,
) -> anyhow::Result<Duration> {
    let (mut namespaces, mut others) = (Vec::new(), Vec::new());
    for object in sets.iter().flatten() {
        let stage = if object["kind"] == "Namespace" {
            &mut namespaces
        } else {
            &mut others
        };
        stage.push((objects::path(object)?, object.to_string()));
    }
    let start = Instant::now();
    for stage in [namespaces, others] {
        stream::iter(stage)
            .map(Ok::<_, anyhow::Error>)
            .try_for_each_concurrent(at_a_time, |(path, body)| async move {
                let request = Request::patch(format!("{path}?fieldManager=bare&force=true"))
                    .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
                    .header(header::ACCEPT, "application/json")
                    .body(Body::from(body.into_bytes()))?;
                let answer = client.send(request).await?;
                let status = answer.status();
                let content = answer.into_body().collect().await?.to_bytes();
                ensure!(
                    status.is_success(),
                    "{path}: {}",
                    String::from_utf8_lossy(&content)
                );
                Ok(())
            })
            .await?;
    }
    Ok(start.elapsed())
}

/// Removes Muster's label from objects. An agent normally has its cluster to itself; a process that starts later
/// would otherwise list and read the objects of an earlier one.
pub(super) async fn disown(client: &Client, sets: &[Vec<Value>]) -> anyhow::Result<()> {
    let patch = json!({"metadata": {"labels": {muster_apply::APP_LABEL: null}}}).to_string();
    for object in sets.iter().flatten() {
        let request = Request::patch(objects::path(object)?)
            .header(header::CONTENT_TYPE, "application/merge-patch+json")
            .body(patch.clone().into_bytes())?;
        client.request::<Value>(request).await?;
    }
    Ok(())
}

/// `kubectl apply --server-side`, run as a process for each apply.
pub(super) struct Kubectl {
    pub(super) program: PathBuf,
    pub(super) kubeconfig: PathBuf,
    /// The folder where kubectl caches the API discovery.
    pub(super) cache: PathBuf,
}

impl Kubectl {
    fn run(&self, args: &[&str]) -> anyhow::Result<Duration> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut all = vec![
            format!("--kubeconfig={}", path(&self.kubeconfig)),
            format!("--cache-dir={}", path(&self.cache)),
        ];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let start = Instant::now();
        output(&self.program, &all)?;
        Ok(start.elapsed())
    }

    /// Fills the discovery cache.
    pub(super) fn warm_up(&self) -> anyhow::Result<()> {
        self.run(&["get", "namespaces"]).map(drop)
    }

    pub(super) fn apply(&self, file: &Path) -> anyhow::Result<Duration> {
        self.run(&["apply", "--server-side", "-f", &file.to_string_lossy()])
    }
}

/// A long-lived process. For each line of its input it applies what the line names, and then prints one line.
pub(super) struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Answer {
    seconds: f64,
}

impl Worker {
    pub(super) fn start(program: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start {}", program.display()))?;
        let input = child
            .stdin
            .take()
            .context("the process has no standard input")?;
        let output = child
            .stdout
            .take()
            .context("the process has no standard output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Sends one line and returns how long the apply took, as measured by the process.
    pub(super) fn apply(&mut self, line: &str) -> anyhow::Result<Duration> {
        writeln!(self.input, "{line}")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "the process that applies has failed");
        let answer: Answer = serde_json::from_str(&answer)?;
        Ok(Duration::from_secs_f64(answer.seconds))
    }

    /// Returns the current and the peak resident memory, in bytes.
    pub(super) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        memory(self.child.id())
    }

    /// Closes the input of the process and waits until it exits.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        let Self {
            mut child, input, ..
        } = self;
        drop(input);
        let status = child.wait()?;
        ensure!(status.success(), "the process that applies ended: {status}");
        Ok(())
    }
}

/// Writes the objects as a `List` for kubectl, as a JSON array for Flux's package, and as bundles for Muster:
/// `NAME.list.json`, `NAME.json` and `NAME/APP.bundle`.
pub(super) fn write(folder: &Path, name: &str, sets: &[Vec<Value>]) -> anyhow::Result<Files> {
    let all: Vec<&Value> = sets.iter().flatten().collect();
    let files = Files {
        list: folder.join(format!("{name}.list.json")),
        plain: folder.join(format!("{name}.json")),
        bundles: folder.join(name),
    };
    fs::write(&files.plain, serde_json::to_vec(&all)?)?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": all});
    fs::write(&files.list, list.to_string())?;
    fs::create_dir_all(&files.bundles)?;
    for (index, set) in sets.iter().enumerate() {
        let app = format!("app-{index}");
        let bundle = objects::bundle(&app, set)?;
        fs::write(files.bundles.join(format!("{app}.bundle")), bundle.encode())?;
    }
    Ok(files)
}

/// The paths of the files that [`write()`] creates.
pub(super) struct Files {
    pub(super) list: PathBuf,
    pub(super) plain: PathBuf,
    pub(super) bundles: PathBuf,
}
