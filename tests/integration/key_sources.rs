//! Where the encryption key comes from, through the program: a command, the environment, and the
//! question on a terminal, which shows nothing of the answer.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::seal::{KEY, seal};
use crate::support::brfs::BrfsMount;
use crate::support::catalogue;
use crate::support::mountpoint::can_mount;
use tempfile::TempDir;

const OTHER_KEY: &str = "abcdef0123456789abcdef0123456789";
const PROMPT: &str = "Encryption key of the repository: ";

fn seal_all(dir: &Path) {
    for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            seal_all(&path);
        } else {
            let content = fs::read(&path).unwrap();
            fs::write(&path, seal("aes-256-gcm", KEY, &content)).unwrap();
        }
    }
}

/// An encrypted repository of two VMs.
fn repository() -> TempDir {
    let dir = TempDir::new().unwrap();
    catalogue::write(dir.path(), catalogue::Options::new(2, 2));
    fs::write(dir.path().join("metadata.json"), br#"{"random":"x"}"#).unwrap();
    seal_all(dir.path());
    let json = br#"{"algorithm":"aes-256-gcm"}"#;
    fs::write(dir.path().join("encryption.json"), json).unwrap();
    dir
}

fn brfs(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brfs"));
    command.args(arguments).stdin(Stdio::null());
    // Without a terminal of its own, so that it cannot ask on that of whoever runs the tests.
    command.env_remove("BRFS_ENCRYPTION_KEY");
    let mut command = detached(command);
    command.envs(variables.iter().copied());
    command.output().unwrap()
}

fn detached(command: Command) -> Command {
    let mut detached = Command::new("setsid");
    detached.arg("--wait").arg(command.get_program());
    detached.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => detached.env(name, value),
            None => detached.env_remove(name),
        };
    }
    detached
}

fn shown(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_command_or_the_environment_gives_the_key() {
    let repository = repository();
    let at = repository.path().to_str().unwrap();
    let by_command = |command: &str| brfs(&["ls", at, "--encryption-key-command", command], &[]);
    let output = by_command(&format!("echo {KEY}; echo more"));
    assert!(shown(&output).contains("vm-0001"), "{}", shown(&output));
    for (command, said) in [
        (
            format!("echo {OTHER_KEY}"),
            "not the key that the backups were written with",
        ),
        ("echo short".into(), "exactly 32"),
        ("true".into(), "exactly 32"),
        (format!("echo {KEY}; exit 7"), "failed (exit status: 7)"),
        ("printf '\\377\\377'".into(), "not text"),
    ] {
        let output = by_command(&command);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let shown = shown(&output);
        assert!(shown.contains(said), "{command}: {shown}");
        assert!(
            !shown.contains(KEY) && !shown.contains(OTHER_KEY),
            "{shown}"
        );
    }
    let output = brfs(&["ls", at], &[("BRFS_ENCRYPTION_KEY", KEY)]);
    assert!(output.status.success(), "{}", shown(&output));
    let output = brfs(&["ls", at], &[]);
    assert_eq!(output.status.code(), Some(2));
    let shown = shown(&output);
    assert!(
        shown.contains("--encryption-key-file") && !shown.contains(PROMPT),
        "{shown}"
    );
}

#[test]
fn a_mount_runs_the_command_once_and_keeps_the_key_to_itself() {
    if !can_mount() {
        return;
    }
    let (repository, private) = (repository(), TempDir::new().unwrap());
    let runs = private.path().join("runs");
    let command = format!("echo ran >>{}; echo {KEY}", runs.display());
    let flags = ["--encryption-key-command", &command];
    let mount = BrfsMount::new(repository.path(), &flags);
    assert_eq!(fs::read_dir(mount.join("vms")).unwrap().count(), 2);
    assert_eq!(fs::read_to_string(&runs).unwrap(), "ran\n");
    // The process that serves it was told in another way.
    let at = mount.path().to_str().unwrap();
    let mut servers = 0;
    for process in fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()) {
        let read = |file| fs::read(process.join(file)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
        if line.starts_with("brfs\0serve\0") && line.contains(at) {
            servers += 1;
            let all = [line, String::from_utf8_lossy(&read("environ")).into_owned()].concat();
            assert!(!all.contains(KEY), "{all}");
        }
    }
    assert_eq!(servers, 1);
}

/// Runs a shell command on a terminal of its own; when it asks for the key, types `answer`. Gives
/// all that the terminal showed.
fn on_a_terminal(command: &str, answer: &str) -> String {
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", command, "/dev/null"])
        .env_remove("BRFS_ENCRYPTION_KEY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script of util-linux (apt package bsdutils)");
    let mut keyboard = script.stdin.take();
    let mut output = script.stdout.take().unwrap();
    let mut seen = String::new();
    let mut buf = [0; 1024];
    loop {
        let len = output.read(&mut buf).unwrap();
        if len == 0 {
            break;
        }
        seen.push_str(&String::from_utf8_lossy(&buf[..len]));
        if seen.contains(PROMPT)
            && let Some(mut keyboard) = keyboard.take()
        {
            // Asked, but echoing may not be off yet: what is typed too early is dropped.
            std::thread::sleep(std::time::Duration::from_millis(300));
            keyboard.write_all(answer.as_bytes()).unwrap();
            // Stays open: the end of the input would be typed as well.
            std::mem::forget(keyboard);
        }
    }
    script.wait().unwrap();
    seen
}

#[test]
fn the_question_on_a_terminal_shows_nothing_of_the_answer() {
    let repository = repository();
    let ls = |then: &str| {
        let program = env!("CARGO_BIN_EXE_brfs");
        format!("{program} ls {}; {then}", repository.path().display())
    };
    let seen = on_a_terminal(&ls("echo status $?; stty -a"), &format!("{KEY}\n"));
    assert!(
        seen.contains("vm-0001") && seen.contains("status 0"),
        "{seen}"
    );
    assert!(
        !seen.contains(KEY) && seen.matches(PROMPT).count() == 1,
        "{seen}"
    );
    // The terminal is as it was.
    assert!(
        seen.contains(" echo ") && !seen.contains("-echo "),
        "{seen}"
    );
    for (answer, said) in [
        (OTHER_KEY, "not the key that the backups were written with"),
        ("short", "exactly 32"),
        ("", "is encrypted with aes-256-gcm: give its key"),
    ] {
        let seen = on_a_terminal(&ls("echo status $?"), &format!("{answer}\n"));
        assert!(seen.contains(said) && seen.contains("status 2"), "{seen}");
        assert!(answer.is_empty() || !seen.contains(answer), "{seen}");
    }
    // Nothing is asked where a source is given, even a wrong one, or where nothing is encrypted.
    let clear = TempDir::new().unwrap();
    catalogue::write(clear.path(), catalogue::Options::new(1, 1));
    let program = env!("CARGO_BIN_EXE_brfs");
    let clear = format!("{program} ls {}", clear.path().display());
    for command in [
        format!("BRFS_ENCRYPTION_KEY={OTHER_KEY} {}", ls("true")),
        clear,
    ] {
        assert!(!on_a_terminal(&command, "").contains(PROMPT), "{command}");
    }
}
