//! Starting the process that serves a mount.
//!
//! It is always this program, run anew with the hidden command `serve`: a process with threads
//! cannot fork safely, and the arguments of the first one may hold secrets that would stand in the
//! process list as long as the mount lasts. The request reaches it as a file without a name on its
//! standard input; in the background it tells on its standard output how mounting went.

use std::io::{BufRead, BufReader, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::output::escape;
use super::redact_args::HIDDEN_URL;
use super::request::Request;
use crate::fuse;

/// What the serving process says, a line for each, before it closes its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It waits, and for what; more will come.
    Waiting(String),
    /// It is mounted and served, though these things are wrong with it.
    Ready { warnings: Vec<String> },
    /// It does not, and the process ends.
    Failed(String),
}

/// Starts the server in the background; returns once its mount answers.
pub(super) fn start_server(request: &Request) -> Result<()> {
    let mut child = server(request)?
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the background process")?;
    let output = child.stdout.take().context("no output to listen to")?;
    let mut output = BufReader::new(output);
    let said = loop {
        let mut line = String::new();
        output
            .read_line(&mut line)
            .context("cannot listen to the background process")?;
        match serde_json::from_str(&line) {
            Ok(Outcome::Waiting(why)) => eprintln!("brfs: {}", escape(&why)),
            other => break other,
        }
    };
    match said {
        Ok(Outcome::Waiting(_)) | Err(_) => {
            let status = child.wait()?;
            bail!("the background process ended before the mount answered ({status})");
        }
        Ok(Outcome::Ready { warnings }) => {
            fuse::check_answers(&request.mountpoint).inspect_err(|_| {
                // It unmounts what is its own.
                if let Ok(pid) = i32::try_from(child.id())
                    && let Some(pid) = Pid::from_raw(pid)
                {
                    kill_process(pid, Signal::TERM).ok();
                }
            })?;
            for warning in warnings {
                eprintln!("brfs: warning: {}", escape(&warning));
            }
        }
        Ok(Outcome::Failed(why)) => {
            child.wait().ok();
            bail!(why);
        }
    }
    Ok(())
}

/// Turns this process into the server, in the foreground. Returns only when that fails.
pub(super) fn become_server(request: &Request) -> Result<()> {
    Err(server(request)?.exec()).context("cannot start again as the serving process")
}

/// How the C library keeps memory that was freed. The brotli decoder allocates some five megabytes
/// for each block; taken from the system anew, with a page fault for every four kilobytes, they cost
/// as much time as half of the decoding. So each of a few heaps keeps that much. More heaps, as the
/// library makes by itself for many threads, would keep more than all caches together. (What brfs
/// keeps itself is in `buffers` and not on these heaps.)
const HEAPS: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "4"),
    ("MALLOC_MMAP_THRESHOLD_", "8388608"),
    ("MALLOC_TRIM_THRESHOLD_", "8388608"),
];

fn server(request: &Request) -> Result<Command> {
    let input = rustix::fs::memfd_create("brfs-request", MemfdFlags::CLOEXEC)
        .context("cannot make a file in memory")?;
    let mut input = std::fs::File::from(input);
    input.write_all(&serde_json::to_vec(request)?)?;
    input.rewind()?;
    let mut command = Command::new(program());
    command
        .arg0("brfs")
        .arg("serve")
        .arg(&request.mountpoint)
        // The request holds what these told; a child's environment is one more place to look.
        .env_remove(HIDDEN_URL)
        .env_remove("BRFS_REPOSITORY")
        .env_remove("BRFS_ENCRYPTION_KEY")
        .envs(HEAPS)
        .stdin(input);
    Ok(command)
}

/// This program by its own name, so that the process list shows `brfs`; by the kernel's reference
/// to it when the file was replaced or removed meanwhile.
fn program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.exists() => path,
        _ => PathBuf::from("/proc/self/exe"),
    }
}
