//! `cargo xtask fuzz`: searches for untrusted inputs that make a parser panic or hang, guided by coverage. It uses
//! LLVM's fuzzer and the instrumentation of the stable compiler.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::Context;

use crate::{cargo, metadata::Metadata, prerequisites};

/// The folder of the corpora, with one folder for each target of `muster_fuzz::TARGETS`. A test in that crate checks
/// that every target has a corpus.
const CORPORA: &str = "crates/fuzz/corpora";
/// The compiler flags for LLVM's coverage. They are the flags of `cargo fuzz` without a sanitizer, which safe Rust does
/// not need.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// The time in seconds after which an input counts as a failure.
const LONGEST: u32 = 25;
/// The memory limit of one fuzzer, in megabytes.
const MEMORY: u32 = 3072;
/// The maximum size of an input, in bytes. Bugs that large inputs trigger are usually found with small ones, too.
const SIZE: u32 = 8192;

/// The default time for each target, in seconds.
pub(crate) const MINUTE: u32 = 60;

/// The settings of a fuzzing run.
pub(crate) struct Fuzz {
    /// The time for each target, in seconds.
    pub(crate) seconds: u32,
    /// The target to run. `None` means all targets.
    pub(crate) target: Option<String>,
    /// True if inputs that reach new code are added to the corpora in the repository.
    pub(crate) keep: bool,
}

struct Running {
    target: String,
    child: Child,
    log: PathBuf,
}

/// Fuzzes the selected targets. Returns true if no input failed.
pub(crate) fn run(fuzz: &Fuzz) -> anyhow::Result<bool> {
    prerequisites::check(&prerequisites::BUILD)?;
    prerequisites::check(&prerequisites::FUZZ)?;
    let metadata = Metadata::read()?;
    let corpora = metadata.workspace_root.join(CORPORA);
    let targets = targets(&corpora, fuzz.target.as_deref())?;
    let program = build(&metadata)?;
    let places = thread::available_parallelism().map_or(2, usize::from);
    let mut good = true;
    for some in targets.chunks(places) {
        let running: Vec<Running> = some
            .iter()
            .map(|target| start(&metadata, &program, &corpora, target, fuzz.seconds))
            .collect::<anyhow::Result<_>>()?;
        for one in running {
            good &= finish(one)?;
        }
    }
    if fuzz.keep {
        for target in &targets {
            keep(&metadata, &program, &corpora, target)?;
        }
    }
    Ok(good)
}

fn targets(corpora: &Path, only: Option<&str>) -> anyhow::Result<Vec<String>> {
    let entries =
        fs::read_dir(corpora).with_context(|| format!("can't list {}", corpora.display()))?;
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    names.sort();
    if let Some(only) = only {
        anyhow::ensure!(
            names.iter().any(|name| name == only),
            "there is no target {only}; the targets are {}",
            names.join(", ")
        );
        names.retain(|name| name == only);
    }
    Ok(names)
}

fn build(metadata: &Metadata) -> anyhow::Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output();
    let version = version.context("can't start rustc")?.stdout;
    let version = String::from_utf8_lossy(&version);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say which machine this is")?;
    let directory = metadata.target_directory.join("fuzz");
    // `--target` keeps cargo from instrumenting build scripts and macros.
    let status = cargo(metadata)
        .args(["build", "--profile", "fuzz", "--package", "muster-fuzz"])
        .args(["--features", "libfuzzer", "--target", host, "--target-dir"])
        .arg(&directory)
        .env("RUSTFLAGS", INSTRUMENTED)
        .status();
    anyhow::ensure!(
        status.context("can't start cargo")?.success(),
        "the fuzzer can't be built"
    );
    Ok(directory.join(host).join("fuzz/muster-fuzz"))
}

/// Returns the folder of the inputs that were found on this machine.
fn found(metadata: &Metadata, target: &str) -> PathBuf {
    metadata.target_directory.join("fuzz/found").join(target)
}

fn fuzzer(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    // With several threads, one input would reach different code from run to run.
    command
        .env("MUSTER_FUZZ_TARGET", target)
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null());
    command
}

fn start(
    metadata: &Metadata,
    program: &Path,
    corpora: &Path,
    target: &str,
    seconds: u32,
) -> anyhow::Result<Running> {
    let found = found(metadata, target);
    fs::create_dir_all(&found).with_context(|| format!("can't make {}", found.display()))?;
    let log = found.with_extension("log");
    let file = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
    let errors = file.try_clone().context("can't share a file")?;
    let child = fuzzer(program, target)
        .arg(&found)
        .arg(corpora.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={LONGEST}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-max_len={SIZE}"))
        .arg(format!("-artifact_prefix={}-", found.display()))
        .arg("-print_final_stats=1")
        .stdout(file)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("can't start {}", program.display()))?;
    Ok(Running {
        target: target.to_owned(),
        child,
        log,
    })
}

/// Waits for a fuzzer and prints its result. Returns true if no input failed.
fn finish(mut running: Running) -> anyhow::Result<bool> {
    let status = running.child.wait().context("can't wait for the fuzzer")?;
    let log = fs::read(&running.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let number = |name: &str| {
        let line = log.lines().find(|line| line.contains(name));
        line.and_then(|line| line.rsplit(' ').next())
            .unwrap_or("?")
            .to_owned()
    };
    let target = &running.target;
    if status.success() {
        println!(
            "{target}: {} inputs, {} new ones, nothing found",
            number("stat::number_of_executed_units"),
            number("stat::new_units_added"),
        );
        return Ok(true);
    }
    let lines: Vec<&str> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(60)..] {
        println!("{line}");
    }
    println!(
        "{target}: an input fails ({status}). The file after \"Test unit written to\" above contains it; once the bug \
         is fixed, add the file to the corpus: mv FILE {CORPORA}/{target}/"
    );
    Ok(false)
}

/// Adds the found inputs that reach new code to the corpus in the repository.
fn keep(metadata: &Metadata, program: &Path, corpora: &Path, target: &str) -> anyhow::Result<()> {
    let status = fuzzer(program, target)
        .arg("-merge=1")
        .arg(format!("-max_len={SIZE}"))
        .arg(corpora.join(target))
        .arg(found(metadata, target))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("can't start the fuzzer")?;
    anyhow::ensure!(
        status.success(),
        "can't add the found inputs to the corpus of {target}"
    );
    Ok(())
}
