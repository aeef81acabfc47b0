//! Checks that the system has the programs that building and testing need. Tests that need other
//! programs, such as nginx or sshd, report a missing program themselves.

use std::process::{Command, Stdio};

/// A program, its purpose, and how to install it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    name: &'static str,
    version_flag: &'static str,
    purpose: &'static str,
    install: &'static str,
}

/// The programs that are needed to build and run everything.
pub(crate) const BUILD: [Program; 4] = [
    Program {
        name: "cc",
        version_flag: "--version",
        purpose: "compiles the C parts (SQLite, libgit2, zstd)",
        install: "apt-get install gcc libc6-dev",
    },
    Program {
        name: "make",
        version_flag: "--version",
        purpose: "builds jemalloc",
        install: "apt-get install make",
    },
    Program {
        name: "git",
        version_flag: "--version",
        purpose: "creates the repositories of the demo and the tests",
        install: "apt-get install git",
    },
    Program {
        name: "go",
        version_flag: "version",
        purpose: "builds the local clusters; 1.26 or newer",
        install: "see https://go.dev/dl/",
    },
];

/// The additional programs that fuzzing needs.
pub(crate) const FUZZ: [Program; 1] = [Program {
    name: "c++",
    version_flag: "--version",
    purpose: "compiles the fuzzer",
    install: "apt-get install g++",
}];

/// Fails if programs are missing, with an error that names all of them.
pub(crate) fn check(programs: &[Program]) -> anyhow::Result<()> {
    let works = |program: &Program| {
        Command::new(program.name)
            .arg(program.version_flag)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let missing: Vec<&Program> = programs.iter().filter(|p| !works(p)).collect();
    anyhow::ensure!(missing.is_empty(), "{}", explain(&missing));
    Ok(())
}

fn explain(missing: &[&Program]) -> String {
    let mut text = "these programs are needed but don't work here:".to_owned();
    for program in missing {
        let Program {
            name,
            purpose,
            install,
            ..
        } = program;
        text.push_str(&format!("\n  {name:5} {purpose}; to install it: {install}"));
    }
    text
}

#[cfg(test)]
mod tests;
