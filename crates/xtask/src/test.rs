//! `cargo xtask test`: runs every check and every test, one part after the other, and shows all output.
//! The other parts still run after one has failed.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, IsTerminal, Write},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{
    arrows, cargo, dependencies,
    fuzz::{self, Fuzz},
    metadata::Metadata,
    prerequisites, report,
};

/// The maximum number of tests that run at the same time. Some tests start whole control planes of 400 MB,
/// so a machine with many cores must not start one for each core.
const MAX_THREADS: usize = 8;

/// The numbers of tests that passed and failed. A failed check counts as a failed test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

/// The parts that ran, with their times and results.
#[derive(Debug, Default)]
struct Run {
    count: Count,
    times: Vec<(Duration, String)>,
    failures: Vec<String>,
}

/// Runs everything, or only the tests that the filter matches. Returns true if nothing failed.
pub(crate) fn run(filter: Option<&str>) -> anyhow::Result<bool> {
    prerequisites::check(&prerequisites::BUILD)?;
    let metadata = Metadata::read()?;
    let members = metadata.members();
    let package = filter.and_then(|filter| {
        let named = |member: &&&str| **member == filter || **member == format!("muster-{filter}");
        members.iter().find(named).copied()
    });
    let mut run = Run::default();
    if filter.is_none() {
        run.command(
            "formatting",
            cargo(&metadata).args(["fmt", "--all", "--check"]),
        )?;
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        run.command("lints", cargo(&metadata).args(clippy))?;
        run.check("dependencies between crates", || {
            Ok(arrows::check(&metadata))
        })?;
        run.check("licences, sources and bans", dependencies::check_workspace)?;
    }
    if package.is_none_or(|package| package != "xtask") {
        let tools = [
            "run",
            "--package",
            "muster-testkit",
            "--example",
            "build-tools",
        ];
        run.command("building the local clusters", cargo(&metadata).args(tools))?;
    }
    if package.is_none_or(|package| package == "muster-e2e")
        && filter.is_none_or(|_| package.is_some())
    {
        for (part, example) in [
            ("building the nodes of kind clusters", "node-image"),
            ("building muster's image", "images"),
        ] {
            let run_example = ["run", "--package", "muster-testkit", "--example", example];
            run.command(part, cargo(&metadata).args(run_example))?;
        }
    }
    let scope: Vec<&str> = match package {
        Some(package) => vec!["--package", package],
        None => vec!["--workspace"],
    };
    let mut build = cargo(&metadata);
    build.arg("test").args(&scope).arg("--no-run");
    if run.command("building the tests", &mut build)? {
        let mut tests = cargo(&metadata);
        tests
            .arg("test")
            .args(&scope)
            .arg("--no-fail-fast")
            .arg("--");
        let threads = thread::available_parallelism().map_or(2, usize::from);
        tests.arg(format!("--test-threads={}", threads.min(MAX_THREADS)));
        tests.args(filter.filter(|_| package.is_none()));
        run.tests(&mut tests)?;
    }
    if filter.is_none() {
        run.check("fuzzing, a minute for each target", || {
            let good = fuzz::run(&Fuzz {
                seconds: fuzz::MINUTE,
                target: None,
                keep: false,
            })?;
            Ok((!good)
                .then(|| "see above".to_owned())
                .into_iter()
                .collect())
        })?;
    }
    Ok(run.finish())
}

impl Run {
    fn begin(&self, part: &str) {
        println!("\n== {part}");
    }

    fn end(&mut self, part: &str, started: Instant, good: bool) {
        self.times.push((started.elapsed(), part.to_owned()));
        if !good {
            self.count.failed += 1;
            self.failures.push(part.to_owned());
        }
    }

    /// Runs a command and counts its failure. Returns true if the command succeeded.
    fn command(&mut self, part: &str, command: &mut Command) -> anyhow::Result<bool> {
        self.begin(part);
        let started = Instant::now();
        let status = command.status();
        let good = status
            .with_context(|| format!("can't start {command:?}"))?
            .success();
        self.end(part, started, good);
        Ok(good)
    }

    fn check(
        &mut self,
        part: &str,
        check: impl FnOnce() -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<()> {
        self.begin(part);
        let started = Instant::now();
        let problems = check()?;
        let good = report(part, &problems);
        self.end(part, started, good);
        Ok(())
    }

    /// Runs `cargo test`, prints its output as it arrives, and reads counts and times from that output.
    fn tests(&mut self, command: &mut Command) -> anyhow::Result<()> {
        self.begin("tests");
        let (reader, writer) = io::pipe().context("can't create a pipe")?;
        let errors = writer.try_clone().context("can't share a pipe")?;
        let colour = if io::stdout().is_terminal() {
            "always"
        } else {
            "never"
        };
        command
            .env("CARGO_TERM_COLOR", colour)
            .stdout(writer)
            .stderr(errors);
        let mut child = command.spawn().context("can't start `cargo test`")?;
        // The command still holds this process's copies of the pipe's write end, so reading would never end.
        command.stdout(io::stdout()).stderr(io::stderr());
        let mut tally = Tally::default();
        let mut started = Instant::now();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.context("can't read the output of the tests")?;
            let line = String::from_utf8_lossy(&line);
            writeln!(io::stdout(), "{line}").context("can't print")?;
            match tally.line(&line) {
                Some(Event::Started) => started = Instant::now(),
                Some(Event::Ended(suite)) => self.times.push((started.elapsed(), suite)),
                None => {}
            }
        }
        let status = child.wait().context("can't wait for `cargo test`")?;
        tally.end(status.success());
        self.count.passed += tally.count.passed;
        self.count.failed += tally.count.failed;
        self.failures.extend(tally.failures);
        Ok(())
    }

    /// Prints the times, the failures and the totals. Returns true if nothing failed.
    fn finish(mut self) -> bool {
        self.times.sort_by(|a, b| b.cmp(a));
        println!("\n== times");
        for (time, part) in &self.times {
            println!("{:>8.1} s  {part}", time.as_secs_f64());
        }
        if !self.failures.is_empty() {
            println!("\n== failed");
            for failure in &self.failures {
                println!("{failure}");
            }
        }
        let Count { passed, failed } = self.count;
        println!("\n{passed} passed, {failed} failed");
        failed == 0
    }
}

/// A parser of the output of `cargo test`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    count: Count,
    /// The test program that is running, until its result is printed.
    suite: Option<String>,
    /// The crate whose unit tests ran last.
    crate_name: String,
    failures: Vec<String>,
    /// The failures that were already recorded. `cargo test` prints the name of a failed test twice.
    named: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Started,
    /// The name of the test program that ended.
    Ended(String),
}

impl Tally {
    fn line(&mut self, line: &str) -> Option<Event> {
        let line = plain(line);
        let line = line.trim();
        let suite = line
            .strip_prefix("Running ")
            .filter(|rest| rest.ends_with(')'))
            .map(|rest| self.suite_name(rest))
            .or_else(|| {
                line.strip_prefix("Doc-tests ")
                    .map(|name| format!("{name}: examples"))
            });
        if let Some(suite) = suite {
            self.lost();
            self.suite = Some(suite);
            return Some(Event::Started);
        }
        if let Some(rest) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let part = rest
                    .split([';', '.'])
                    .find_map(|part| part.trim().strip_suffix(word));
                part.and_then(|number| number.trim().parse::<u64>().ok())
                    .unwrap_or(0)
            };
            self.count.passed += number("passed");
            self.count.failed += number("failed");
            return self.suite.take().map(Event::Ended);
        }
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|r| r.strip_suffix(" ... FAILED"))
            .map(str::trim_end)
        {
            let suite = self.suite.as_deref().unwrap_or("tests");
            let failure = format!("{suite}: {name}");
            if self.named.insert(failure.clone()) {
                self.failures.push(failure);
            }
        }
        None
    }

    /// Converts `unittests src/lib.rs (target/debug/deps/muster_model-0123)` to `muster_model: src/lib.rs`.
    /// Integration tests have the same file names in all crates, so they get the name of the crate whose unit
    /// tests ran before them.
    fn suite_name(&mut self, rest: &str) -> String {
        let (what, program) = rest.split_once(" (").unwrap_or((rest, ""));
        let program = program.trim_end_matches(')').rsplit('/').next();
        let program = program.unwrap_or_default();
        let program = program.rsplit_once('-').map_or(program, |(name, _)| name);
        match what.strip_prefix("unittests ") {
            Some(file) => {
                self.crate_name = program.to_owned();
                format!("{program}: {file}")
            }
            None if self.crate_name.is_empty() => format!("{program}: {what}"),
            None => format!("{}: {what}", self.crate_name),
        }
    }

    /// Counts a failure if the current program printed no result. It then crashed or was killed, which no
    /// test reports.
    fn lost(&mut self) {
        if let Some(suite) = self.suite.take() {
            self.count.failed += 1;
            self.failures
                .push(format!("{suite}: ended without a result"));
        }
    }

    fn end(&mut self, good: bool) {
        self.lost();
        if !good && self.count.failed == 0 {
            self.count.failed += 1;
            self.failures.push("cargo test".to_owned());
        }
    }
}

/// Removes the colour codes from a line.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut parts = line.split('\u{1b}');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

#[cfg(test)]
mod tests;
