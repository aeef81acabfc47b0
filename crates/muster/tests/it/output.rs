//! What commands do if their output can't be written.

use std::{
    fs::File,
    process::{Command, Stdio},
};

use anyhow::Context as _;

/// Runs a command with this standard output, and returns its errors and exit code as one text.
fn told(arguments: &[&str], stdout: impl Into<Stdio>) -> anyhow::Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(arguments)
        .stdout(stdout)
        .output()?;
    let code = output.status.code();
    let code = code.context("the command was ended by a signal")?;
    Ok(format!("{}exit {code}", String::from_utf8(output.stderr)?))
}

#[test]
fn output_on_a_full_disk_is_an_error_and_a_reader_that_is_gone_is_none() -> anyhow::Result<()> {
    let objects = tempfile::NamedTempFile::new()?;
    std::fs::write(&objects, "apiVersion: v1\nkind: ConfigMap\n")?;
    let file = objects.path().to_str().context("the path is not UTF-8")?;
    for arguments in [
        &["schema", "Fleet"][..],
        &["health", "-o", "json", "-f", file],
    ] {
        let full = File::options().write(true).open("/dev/full")?;
        assert_eq!(
            told(arguments, full)?,
            "error: can't write to standard output: No space left on device (os error 28)\nexit 1"
        );
        // The pipe's reader is gone before anything is written.
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        assert_eq!(told(arguments, writer)?, "exit 0");
    }
    Ok(())
}
