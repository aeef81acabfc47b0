//! `cargo xtask fuzz`: searches for inputs that break what reads the words of others, guided by coverage. The
//! fuzzer is LLVM's, the instrumentation the stable compiler's own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::Context;

use crate::{cargo, metadata::Metadata, prerequisites};

/// As in `muster_fuzz::TARGETS`, which a test there compares with the corpora.
const CORPORA: &str = "crates/fuzz/corpora";
/// What LLVM's coverage needs (the flags of `cargo fuzz` without a sanitizer: safe Rust needs none).
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer than this many seconds is a failure.
const LONGEST: u32 = 25;
/// Megabytes of memory of one fuzzer.
const MEMORY: u32 = 3072;
/// Bytes of an input: what is wrong with a large one is wrong with a small one.
const SIZE: u32 = 8192;

/// Seconds for each target where nothing else is said.
pub(crate) const MINUTE: u32 = 60;

/// How fuzzing is done.
pub(crate) struct Fuzz {
    /// For each target.
    pub(crate) seconds: u32,
    /// The only one; all where there is none.
    pub(crate) target: Option<String>,
    /// Whether inputs that reach something new are kept in the repository.
    pub(crate) keep: bool,
}

struct Running {
    target: String,
    child: Child,
    log: PathBuf,
}

/// Fuzzes every target; true when nothing was found.
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
            "there is no target {only}; there are {}",
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
    // With a target that is named, build scripts and macros are not instrumented.
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

/// What was found so far on this machine.
fn found(metadata: &Metadata, target: &str) -> PathBuf {
    metadata.target_directory.join("fuzz/found").join(target)
}

fn fuzzer(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    // The fuzzer counts what one thread reaches.
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

/// Waits for a fuzzer and says what came of it.
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
        "{target}: an input breaks it ({status}). It is in the file after \"Test unit written to\" above; once it \
         is mended, keep it: mv FILE {CORPORA}/{target}/"
    );
    Ok(false)
}

/// Adds what reaches something new to the corpus in the repository.
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
    anyhow::ensure!(status.success(), "what {target} found can't be kept");
    Ok(())
}
