//! The hidden command `serve`: the process that stands behind a mount, from start to end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::daemon::Outcome;
use super::output::{escape, told};
use super::request::Request;
use super::{logging, open_view};
use crate::fuse::{self, MountOptions, Unmounter};
use crate::store::notice;
use crate::sync::lock;

/// Serve a mount: run by `brfs mount`, not by people
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where: shown in the process list; the request on standard input counts
    mountpoint: PathBuf,
}

/// How long programs that still use the mount have to finish after a signal to end.
const GRACE: Duration = Duration::from_secs(5);

pub(super) fn run(args: &Args) -> Result<()> {
    let request: Request = serde_json::from_reader(std::io::stdin().lock())
        .context("`brfs serve` is run by `brfs mount`, with a request on its standard input")?;
    debug_assert_eq!(args.mountpoint, request.mountpoint);
    if request.foreground {
        return serve(&request, |warnings| {
            for warning in warnings {
                eprintln!("brfs: warning: {}", escape(warning));
            }
            Ok(())
        });
    }
    // Not a group leader, because it was spawned, so this cannot fail; the terminal's signals are
    // for others from here on.
    rustix::process::setsid().context("cannot leave the terminal")?;
    // Until the mount is there, somebody waits at a terminal.
    let started = Arc::new(AtomicBool::new(false));
    let listens = Arc::clone(&started);
    notice::listen(move |text| {
        if !listens.load(Ordering::Relaxed) {
            tell(&Outcome::Waiting(text.to_owned())).ok();
        }
    });
    let outcome = serve(&request, |warnings| {
        let warnings = warnings.to_vec();
        started.store(true, Ordering::Relaxed);
        tell(&Outcome::Ready { warnings })?;
        leave()
    });
    if let Err(error) = &outcome {
        // Too late when the mount was ready, and then nobody listens; the log has it.
        let why = told(error);
        tracing::error!("{why}");
        tell(&Outcome::Failed(why)).ok();
        // Already told: not once more on standard error.
        std::process::exit(1);
    }
    Ok(())
}

/// Mounts, calls `ready` with what should be said of it, and serves until the mount is gone.
fn serve(request: &Request, ready: impl FnOnce(&[String]) -> Result<()>) -> Result<()> {
    logging::init(request)?;
    raise_open_files_limit();
    let ending = Ending::watch()?;
    let view = open_view::open(request)?;
    let options = MountOptions {
        source: request.source.clone().unwrap_or(view.source),
        allow_other: request.allow_other,
        uid: request.uid,
        gid: request.gid,
        umask: request.umask,
        // Otherwise who is admitted may read everything, and owners are not the guest's.
        acls: request.allow_other && request.guest_owner,
        no_exec: request.no_exec,
        session_threads: None,
    };
    for warning in &view.warnings {
        tracing::warn!("{}", escape(warning));
    }
    let mounted = fuse::mount(view.root, &request.mountpoint, &options)?;
    tracing::info!("mounted at {}", mounted.mountpoint().display());
    // When nobody is left to be told (the starting process was killed), nobody knows of the mount
    // either: leaving here unmounts.
    ready(&view.warnings)?;
    ending.mounted(mounted.unmounter());
    mounted.wait().context("the mount broke")?;
    tracing::info!("unmounted");
    Ok(())
}

fn tell(outcome: &Outcome) -> Result<()> {
    let mut output = std::io::stdout().lock();
    serde_json::to_writer(&mut output, outcome)?;
    output.write_all(b"\n")?;
    output.flush()?;
    Ok(())
}

/// Lets go of the directory and the files that the starting process came with, so that whoever
/// reads its output or unmounts its directory does not wait for the mount to end.
fn leave() -> Result<()> {
    std::env::set_current_dir("/")?;
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Chains have many files; the hard limit is what the administrator allows.
fn raise_open_files_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(
            "the limit of open files stays at {:?}: {error}",
            limit.current
        );
    }
}

/// Ends the mount when the process is told to end.
struct Ending(Arc<Mutex<Stage>>);

enum Stage {
    Starting,
    /// A signal came before the mount was there.
    Asked,
    Mounted(Unmounter),
}

impl Ending {
    fn watch() -> Result<Self> {
        let stage = Arc::new(Mutex::new(Stage::Starting));
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let seen = Arc::clone(&stage);
        std::thread::Builder::new()
            .name("brfs-signals".to_owned())
            .spawn(move || {
                let mut asked = false;
                for _ in signals.forever() {
                    // Whoever asks twice does not want to wait.
                    if std::mem::replace(&mut asked, true) {
                        std::process::exit(1);
                    }
                    let seen = Arc::clone(&seen);
                    std::thread::spawn(move || {
                        end(&seen);
                        std::thread::sleep(GRACE);
                        tracing::warn!("ending although programs still use the mount");
                        std::process::exit(0);
                    });
                }
            })?;
        Ok(Ending(stage))
    }

    /// The mount is there: unmounts it right away if that was asked for already.
    fn mounted(&self, unmounter: Unmounter) {
        let mut stage = lock(&self.0);
        let asked = matches!(*stage, Stage::Asked);
        *stage = Stage::Mounted(unmounter);
        drop(stage);
        if asked {
            end(&self.0);
        }
    }
}

fn end(stage: &Mutex<Stage>) {
    let mut stage = lock(stage);
    let unmounter = match &*stage {
        Stage::Mounted(unmounter) => unmounter.clone(),
        _ => {
            *stage = Stage::Asked;
            return;
        }
    };
    drop(stage);
    // At once also when programs still use it: they have a moment to finish.
    match unmounter.unmount() {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            "nothing to unmount: the mount has left its directory, or another is mounted over it"
        ),
        Err(error) => tracing::error!("{error}"),
    }
}
