//! The programs of the system that building and testing need. What only some tests need (nginx,
//! sshd) says so itself.

use std::process::{Command, Stdio};

/// A program, what it is for, and Debian's package of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    name: &'static str,
    version_flag: &'static str,
    purpose: &'static str,
    install: &'static str,
}

/// What building everything and running it needs.
pub(crate) const BUILD: [Program; 5] = [
    Program {
        name: "cc",
        version_flag: "--version",
        purpose: "compiles the C parts (SQLite, libgit2, zstd)",
        install: "apt-get install gcc libc6-dev",
    },
    Program {
        name: "make",
        version_flag: "--version",
        purpose: "builds the OpenSSL inside libgit2",
        install: "apt-get install make",
    },
    Program {
        name: "perl",
        version_flag: "--version",
        purpose: "configures the OpenSSL inside libgit2",
        install: "apt-get install perl",
    },
    Program {
        name: "git",
        version_flag: "--version",
        purpose: "makes the repositories of the demo and the tests",
        install: "apt-get install git",
    },
    Program {
        name: "go",
        version_flag: "version",
        purpose: "builds the local clusters; 1.26 or newer",
        install: "see https://go.dev/dl/",
    },
];

/// What fuzzing needs beside that.
pub(crate) const FUZZ: [Program; 1] = [Program {
    name: "c++",
    version_flag: "--version",
    purpose: "compiles the fuzzer",
    install: "apt-get install g++",
}];

/// Names all that is missing at once.
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
    let mut text = "these programs are needed and don't work here:".to_owned();
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
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_named_with_what_to_do() {
        let ghost = Program {
            name: "no-such-program",
            version_flag: "--version",
            purpose: "haunts",
            install: "apt-get install ghost",
        };
        let shell = Program {
            name: "true",
            ..ghost
        };
        assert_eq!(
            check(&[ghost, shell]).unwrap_err().to_string(),
            "these programs are needed and don't work here:\n  \
             no-such-program haunts; to install it: apt-get install ghost"
        );
        assert!(check(&[shell]).is_ok());
    }
}
