//! `muster status --watch`: follows the status, and reconnects if the hub goes away.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Zoned};
use muster_proto::v1;
use muster_runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tonic::Code;

use super::{
    document::{Document, Filter},
    report,
    terminal::{Terminal, Tone, length},
};
use crate::{
    admin::said,
    client::Client,
    output::{Output, print},
};

/// The pause before connecting again to a hub that went away.
const RETRY: Duration = Duration::from_secs(1);

/// An event from the watch of the hub's status.
enum News {
    Status(Box<v1::Status>),
    /// The connection is lost, with the reason.
    Lost(String),
    /// The hub refused the request. A retry would not help.
    Refused(tonic::Status),
}

/// Returns true if the same call may succeed later.
pub(crate) fn passes(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

/// Follows the status until the hub refuses the request or the receiver is dropped.
async fn follow(mut client: Client, request: v1::StatusRequest, news: mpsc::Sender<News>) {
    loop {
        let why = match client.watch_status(request.clone()).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(status)) => {
                            if news.send(News::Status(Box::new(status))).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break "the hub stopped".to_owned(),
                        Err(status) if passes(&status) => break "connection lost".to_owned(),
                        Err(status) => {
                            // This fails only if the receiver is dropped.
                            let _ = news.send(News::Refused(status)).await;
                            return;
                        }
                    }
                }
            }
            Err(status) if passes(&status) => "no connection".to_owned(),
            Err(status) => {
                // This fails only if the receiver is dropped.
                let _ = news.send(News::Refused(status)).await;
                return;
            }
        };
        if news.send(News::Lost(why)).await.is_err() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Runs `muster status --watch` until Ctrl-C. Returns false if something was not in sync at the end.
pub(crate) async fn watch(
    client: Client,
    filter: &Filter,
    output: Output,
    first: Document,
) -> anyhow::Result<bool> {
    let stop = Shutdown::on_signals()?;
    let (sender, news) = mpsc::channel(1);
    let following = tokio::spawn(follow(client, filter.request(), sender));
    let mut watch = Watch {
        filter,
        news,
        stop,
        last: first,
        heard: Instant::now(),
        lost: None,
    };
    let ended = if output == Output::Table && std::io::stdout().is_terminal() {
        watch.on_screen().await
    } else {
        watch.in_lines(output).await
    };
    following.abort();
    ended.map(|()| watch.last.synced && watch.lost.is_none())
}

struct Watch<'a> {
    filter: &'a Filter,
    news: mpsc::Receiver<News>,
    stop: Shutdown,
    last: Document,
    /// When `last` was received.
    heard: Instant,
    /// The time when the connection was lost, and the reason; `None` while connected.
    lost: Option<(Instant, String)>,
}

impl Watch<'_> {
    /// Handles an event. Returns true if there is a new document.
    fn take(&mut self, news: Option<News>) -> anyhow::Result<bool> {
        match news {
            Some(News::Status(status)) => {
                self.last = Document::of(*status, self.filter);
                self.heard = Instant::now();
                self.lost = None;
                Ok(true)
            }
            Some(News::Lost(why)) => {
                let since = self
                    .lost
                    .take()
                    .map_or_else(Instant::now, |(since, _)| since);
                self.lost = Some((since, why));
                Ok(false)
            }
            Some(News::Refused(status)) => Err(said(status)),
            None => anyhow::bail!("the watch of the status has ended"),
        }
    }

    /// Prints one line, or one document, for each change.
    async fn in_lines(&mut self, output: Output) -> anyhow::Result<()> {
        let mut said = String::new();
        let mut lost = false;
        loop {
            let new = tokio::select! {
                () = self.stop.begun() => return Ok(()),
                news = self.news.recv() => self.take(news)?,
            };
            if let Some((_, why)) = self.lost.as_ref().filter(|_| !lost) {
                anstream::eprintln!("note: the hub is unreachable ({why}); retrying every second");
            } else if lost && self.lost.is_none() {
                anstream::eprintln!("note: the hub is reachable again");
            }
            lost = self.lost.is_some();
            if !new {
                continue;
            }
            match output {
                Output::Json => print(&format!("{}\n", super::value(&self.last)?)),
                Output::Yaml => {
                    print("---\n");
                    output.document(&super::value(&self.last)?);
                }
                Output::Table => {
                    let now = report::summary(&self.last);
                    if now != said {
                        let time = self.last.now.map_or_else(String::new, |t| format!("{t} "));
                        print(&format!("{time}{now}\n"));
                        said = now;
                    }
                }
            }
        }
    }

    /// Draws the report in place, again at each change and every second.
    async fn on_screen(&mut self) -> anyhow::Result<()> {
        let _screen = Screen::enter()?;
        let mut resized =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = self.stop.begun() => return Ok(()),
                news = self.news.recv() => { self.take(news)?; }
                _ = resized.recv() => {}
                _ = second.tick() => {}
            }
            let height = terminal_size::terminal_size_of(std::io::stdout())
                .map_or(24, |(_, height)| usize::from(height.0));
            draw(&self.frame(height))?;
        }
    }

    fn frame(&self, height: usize) -> String {
        let passed = SignedDuration::try_from(self.heard.elapsed()).unwrap_or_default();
        let now = self.last.now.and_then(|now| now.checked_add(passed).ok());
        let terminal = Terminal::of_stdout(now);
        let time = Zoned::now().strftime("%H:%M:%S");
        let title = format!("muster status, {time} (Ctrl-C to quit)");
        let lost = self.lost.as_ref().map(|(since, why)| Lost {
            seconds: i64::try_from(since.elapsed().as_secs()).unwrap_or(i64::MAX),
            why,
        });
        frame(&self.last, terminal, &title, lost.as_ref(), height)
    }
}

/// A lost connection to the hub.
pub(crate) struct Lost<'a> {
    pub(crate) seconds: i64,
    pub(crate) why: &'a str,
}

/// Returns one screen of the report. Lines that do not fit are counted instead of shown.
pub(crate) fn frame(
    document: &Document,
    terminal: Terminal,
    title: &str,
    lost: Option<&Lost<'_>>,
    height: usize,
) -> String {
    let mut text = terminal.fold("", "", &terminal.paint(Tone::Faint.style(), title));
    if let Some(Lost { seconds, why }) = lost {
        let mark = terminal.paint(Tone::Bad.style().bold(), "✗");
        let title = terminal.paint(Tone::Strong.style(), "the hub has been unreachable");
        let age = length(*seconds);
        let sentence =
            format!("{title} for {age} ({why}); retrying every second. Its last status:");
        text.push_str(&terminal.fold(&format!("{mark} "), "  ", &sentence));
    }
    text.push('\n');
    text.push_str(&report::render(document, terminal));
    let lines = text.lines().count();
    if lines < height {
        return text;
    }
    let shown = height.saturating_sub(2);
    let more = format!("… {} more lines", lines - shown);
    let mut cut: String = text
        .lines()
        .take(shown)
        .flat_map(|line| [line, "\n"])
        .collect();
    cut.push_str(&terminal.paint(Tone::Faint.style(), &more));
    cut.push('\n');
    cut
}

/// Draws a frame over the previous one.
fn draw(frame: &str) -> std::io::Result<()> {
    use anstream::{AutoStream, ColorChoice};
    let frame = match AutoStream::choice(&std::io::stdout()) {
        ColorChoice::Never => anstream::adapter::strip_str(frame).to_string(),
        ColorChoice::Auto | ColorChoice::Always | ColorChoice::AlwaysAnsi => frame.to_owned(),
    };
    let mut text = String::from("\x1b[H");
    for line in frame.lines() {
        text.push_str(line);
        text.push_str("\x1b[K\r\n");
    }
    text.push_str("\x1b[J");
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Shows the terminal's alternate screen, without cursor and line wrapping, until this is dropped.
struct Screen;

impl Screen {
    fn enter() -> std::io::Result<Self> {
        let screen = Self;
        let mut out = std::io::stdout().lock();
        out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[?7l")?;
        out.flush()?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = std::io::stdout().lock();
        // If the terminal is gone, there is nowhere to report that.
        let _ = out.write_all(b"\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = out.flush();
    }
}
