//! Logging to standard error, as text or JSON, filtered by `MUSTER_LOG`.

use std::{
    env,
    error::Error,
    fmt,
    io::{self, IsTerminal},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::{format::Writer, time::FormatTime},
};

/// The environment variable with the log filter, for example `debug` or `info,muster_git=trace`.
pub const VARIABLE: &str = "MUSTER_LOG";

const DEFAULT: &str = "info";

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text lines for people, with colours and short times on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The error for a text that is not a log format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log format: use text or json")]
pub struct InvalidLogFormat(String);

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;
    fn from_str(text: &str) -> Result<Self, InvalidLogFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(InvalidLogFormat(text.to_owned())),
        }
    }
}

/// The reason why logging can't start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The variable does not hold a valid filter.
    #[error("{VARIABLE}={value:?} can't be understood: try debug, or info,muster_git=trace")]
    Filter {
        /// The value of the variable.
        value: String,
        /// The parse error.
        source: ParseError,
    },
    /// Logging has started already.
    #[error("logging was started twice")]
    Twice {
        /// The error of the logging library.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Starts logging for this process. Call it once, before anything else.
///
/// # Errors
/// If [`VARIABLE`] does not hold a valid filter, or if logging has started already.
pub fn init(format: LogFormat) -> Result<(), LogError> {
    let value = env::var(VARIABLE).ok().filter(|value| !value.is_empty());
    let value = value.unwrap_or_else(|| DEFAULT.to_owned());
    let filter = EnvFilter::builder()
        .parse(&value)
        .map_err(|source| LogError::Filter { value, source })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let terminal = io::stderr().is_terminal();
    match format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Text if terminal => {
            let colours = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            log.with_ansi(colours).with_timer(TimeOfDay).try_init()
        }
        LogFormat::Text => log.with_ansi(false).try_init(),
    }
    .map_err(|source| LogError::Twice { source })
}

/// Formats the time of day in UTC, to the millisecond. A terminal does not need the date.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (seconds, millis) = (now.as_secs() % 86_400, now.subsec_millis());
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(w, "{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// Displays an error and its chain of sources in one line: `error: source: source of the source`.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
