//! Metrics of this process under their usual Prometheus names. They are read from `/proc` at each scrape, and left out
//! on systems without `/proc`.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// Returns the memory that this process can use, in bytes: the limit of its container, or the memory of the machine.
#[must_use]
pub fn memory() -> u64 {
    let machine = rustix::system::sysinfo();
    let machine = machine
        .totalram
        .saturating_mul(u64::from(machine.mem_unit.max(1)));
    container_memory().map_or(machine, |limit| limit.min(machine))
}

/// Returns the memory limit of this container, in bytes, or `None` without a limit or a container. With cgroup v1, a
/// missing limit is a very large number instead.
#[must_use]
pub fn container_memory() -> Option<u64> {
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let text = limits
        .iter()
        .find_map(|file| fs::read_to_string(file).ok())?;
    text.trim().parse().ok()
}

/// The ticks per second in which Linux reports times to programs, whatever the kernel's own tick rate is.
const TICKS: f64 = 100.0;

/// Adds the metrics of this process to a registry. Callers register their own metrics with a prefix of their own
/// (`registry.sub_registry_with_prefix`).
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        let memory = "Memory of the process that is in RAM";
        gauge(
            "process_resident_memory",
            memory,
            Some(&Unit::Bytes),
            resident_bytes(),
        )?;
        gauge(
            "process_open_fds",
            "Open file descriptors",
            None,
            open_files(),
        )?;
        let stat = Stat::read();
        let start = "Start of the process as Unix time";
        let started = stat.as_ref().and_then(Stat::started);
        gauge("process_start_time", start, Some(&Unit::Seconds), started)?;
        if let Some(stat) = stat {
            let help = "CPU time that the process has used";
            let used = ConstCounter::new(stat.cpu_ticks / TICKS);
            let (unit, kind) = (Some(&Unit::Seconds), used.metric_type());
            used.encode(encoder.encode_descriptor("process_cpu", help, unit, kind)?)?;
        }
        Ok(())
    }
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0)
}

fn open_files() -> Option<f64> {
    // One of the files is the open folder itself.
    fs::read_dir("/proc/self/fd")
        .ok()
        .map(|files| (files.count() - 1) as f64)
}

/// The fields that are read from `/proc/self/stat`, in ticks.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    started_after_boot: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// Parses the text of `/proc/self/stat`. Its second field is the command's name in brackets, which can contain any
    /// character.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = fields.split(' ').collect();
        // The first element is field 3 in proc(5).
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            started_after_boot: field(22)?,
        })
    }

    /// Returns the start time of the process as Unix time in seconds.
    fn started(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(booted.trim().parse::<f64>().ok()? + self.started_after_boot / TICKS)
    }
}

#[cfg(test)]
mod tests;
