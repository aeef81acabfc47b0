//! Measures how long the first builds take, with empty caches: the release build of `muster`, and the builds of the
//! programs that its demo runs.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Context;
use muster_testkit::{
    local::Component,
    scratch::Scratch,
    tools::{CACHE_VARIABLE, Program},
};

use crate::report::{Row, Section, root};

/// The name of the file that gets a build's output.
const LOG: &str = "build.log";

/// Measures each build once: they take long, and the caches are empty only once.
pub(crate) fn measure(_repeat: u32) -> anyhow::Result<Section> {
    let mut rows = Vec::new();
    let scratch = Scratch::temporary("bench-build")?;
    let target = scratch.path().join("target");
    eprintln!("building muster in an empty target folder");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["build", "--release", "--locked", "--package", "muster"])
        .env("CARGO_TARGET_DIR", &target);
    rows.extend(timed("muster", cargo, scratch.path())?);
    let size = fs::metadata(target.join("release/muster"))
        .context("the build made no `muster`")?
        .len();
    rows.push(Row::new(
        "muster: size",
        "MiB",
        vec![size as f64 / 1_048_576.0],
    ));
    fs::remove_dir_all(&target).context("can't remove the target folder")?;

    for program in Component::ALL.map(Component::program) {
        eprintln!("building {} with empty caches", program.name());
        rows.extend(timed(
            program.name(),
            builder(program, scratch.path())?,
            scratch.path(),
        )?);
    }
    let release = Command::new("rustc").arg("--version").output()?;
    let go = Command::new("go").arg("version").output()?;
    let notes = vec![
        format!(
            "Each build is measured once, one after the other, with empty caches, but with downloaded crates: {}; {}.",
            String::from_utf8_lossy(&release.stdout).trim(),
            String::from_utf8_lossy(&go.stdout).trim(),
        ),
        "The Go programs share one build cache, in this order, as in the demo's first run; the measured times include the download of their modules.".to_owned(),
    ];
    Ok(Section::new("build", "The first build", rows, notes))
}

/// Returns the command that builds a program into empty caches. The command runs this program again, because the
/// builder is a library.
fn builder(program: Program, caches: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["build-program", program.name()])
        .env(CACHE_VARIABLE, caches.join("programs"))
        .env("GOCACHE", caches.join("go-build"))
        .env("GOMODCACHE", caches.join("go-modules"))
        // By default, Go makes its module cache read-only, so the folder could not be removed.
        .env("GOFLAGS", "-modcacherw");
    Ok(command)
}

/// Builds the program with this name, unless the cache has it.
pub(crate) fn build_program(name: &str) -> anyhow::Result<()> {
    let mut programs = Component::ALL.map(Component::program).into_iter();
    let program = programs.find(|program| program.name() == name);
    program
        .with_context(|| format!("no cluster runs a program `{name}`"))?
        .build()
        .map(drop)
}

/// Runs a command to its end. Returns its time and the processor time of all its processes.
fn timed(what: &str, mut command: Command, folder: &Path) -> anyhow::Result<[Row; 2]> {
    let log = folder.join(LOG);
    let file = fs::File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
    let (before, began) = (children_seconds()?, Instant::now());
    let status = command
        .stdin(Stdio::null())
        .stderr(file.try_clone()?)
        .stdout(file)
        .status()
        .with_context(|| format!("can't build {what}"))?;
    let (after, took) = (children_seconds()?, began.elapsed().as_secs_f64());
    anyhow::ensure!(
        status.success(),
        "the build of {what} failed with {status}:\n{}",
        fs::read_to_string(&log).unwrap_or_default()
    );
    Ok([
        Row::new(format!("{what}: time"), "s", vec![took]),
        Row::new(format!("{what}: processor time"), "s", vec![after - before]),
    ])
}

/// Returns the processor time of all ended child processes and their descendants: `cutime` and `cstime` of
/// proc_pid_stat(5).
fn children_seconds() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("can't read /proc/self/stat")?;
    let (_, fields) = stat
        .rsplit_once(')')
        .context("an unknown form of /proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(13).take(2);
    let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
