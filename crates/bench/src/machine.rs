//! Describes the machine that figures are measured on, reads the memory of this process, and finds the programs to
//! measure.

use std::{fs, path::PathBuf};

/// Returns the processor, the number of cores and the memory of this machine in one line.
pub(crate) fn describe() -> String {
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
        .map_or("?".into(), |kib| format!("{:.0}", kib as f64 / 1_048_576.0));
    format!("{cpu}, {cores} cores, {memory} GiB of memory, Linux")
}

/// Returns this process's peak resident memory so far, in MiB (`VmHWM`).
pub(crate) fn peak_memory_mib() -> f64 {
    field("/proc/self/status", "VmHWM")
        .and_then(|text| text.trim_end_matches(" kB").parse::<f64>().ok())
        .map_or(f64::NAN, |kib| kib / 1024.0)
}

/// Returns the path of the `muster` binary in the same build folder as this program.
pub(crate) fn muster() -> anyhow::Result<PathBuf> {
    beside("muster")
}

/// Returns the path of another program in the same build folder.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(
        program.exists(),
        "{} is missing; run `cargo xtask bench`",
        program.display()
    );
    Ok(program)
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
