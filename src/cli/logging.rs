//! Where log lines go: standard error, a file, or the system's log.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::request::Request;

/// The system's log listens here, whichever daemon it is.
const SYSLOG: &str = "/dev/log";

/// Facility "daemon" of syslog(3).
const FACILITY: u8 = 3 << 3;

/// Starts logging for a serving process. In the background there is no terminal to write to:
/// without a log file and without a system log, lines are dropped.
pub(super) fn init(request: &Request) -> Result<()> {
    let level = match request.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("BRFS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false);
    if let Some(path) = &request.log_file {
        lines.with_writer(Arc::new(open(path)?)).init();
    } else if request.foreground {
        lines.with_writer(std::io::stderr).init();
    } else if let Some(syslog) = Syslog::connect() {
        // The system's log puts time and severity before each line itself.
        lines
            .without_time()
            .with_level(false)
            .with_writer(syslog)
            .init();
    }
    // A bug must not pass unseen when standard error goes nowhere.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("bug in brfs, please report it: {panic}");
    }));
    Ok(())
}

fn open(path: &Path) -> Result<std::fs::File> {
    std::fs::File::options()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot open the log file {path:?}"))
}

struct Syslog(UnixDatagram);

impl Syslog {
    fn connect() -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SYSLOG).ok()?;
        // A system log that does not keep up must not stop reads.
        socket.set_nonblocking(true).ok()?;
        Some(Syslog(socket))
    }
}

/// One line on its way to the system's log.
struct Line<'a> {
    socket: &'a UnixDatagram,
    severity: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let header = format!(
            "<{}>brfs[{}]: ",
            FACILITY | self.severity,
            std::process::id()
        );
        let mut datagram = header.into_bytes();
        datagram.extend_from_slice(text.trim_ascii_end());
        self.socket.send(&datagram)?;
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            socket: &self.0,
            severity: 6,
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        let severity = match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        Line {
            socket: &self.0,
            severity,
        }
    }
}
