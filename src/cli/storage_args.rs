//! The options that say where a repository is and how to get at it, shared by all subcommands.
//!
//! Secrets do not belong on a command line, where every user of the machine can read them: the
//! URL can come from a file or the environment, the key from a file, the environment, a command
//! or a prompt. A URL with secrets that was typed as an argument is accepted: `hide_secrets` takes
//! it off the command line before it comes here.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, isatty, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::codec::aead::Key;
use crate::config::{Location, StoreOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::repo::{OpenRepository, encryption_algorithm};

/// Where the repository is, and how to get at it.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Storage options")]
pub struct StorageArgs {
    /// Read the repository's path or URL from this file
    #[arg(long, value_name = "FILE")]
    pub repository_file: Option<PathBuf>,

    /// Read the encryption key from this file
    #[arg(long, value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,

    /// Take the encryption key from what this shell command prints
    #[arg(long, value_name = "COMMAND", conflicts_with = "encryption_key_file")]
    pub encryption_key_command: Option<String>,

    /// Trust the certificates in this PEM file as well
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Accept any TLS certificate: anybody on the way can then read and change everything
    #[arg(long)]
    pub allow_unauthorized: bool,

    /// S3: the server to talk to, as in `https://s3.example.org`
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,

    /// S3: the bucket's region
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// S3: take the credentials from this profile of the AWS configuration
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// S3: send no credentials (public buckets)
    #[arg(long, conflicts_with = "profile")]
    pub no_sign_request: bool,

    /// S3: put the bucket into the host's name instead of the path
    #[arg(long)]
    pub virtual_hosted_style: bool,

    /// Seconds a connection may stay silent before it counts as lost [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub idle_timeout: Option<u64>,

    /// Seconds for which a failing request is tried again before the reader gets an error
    /// [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub retry_budget: Option<u64>,
}

/// Where the repository is and its key, as text: what [`StorageArgs::collect`] has gathered and
/// what a serving process is told. Holds secrets.
#[derive(Clone, Serialize, Deserialize)]
pub struct CollectedSecrets {
    /// A path or URL.
    url: Zeroizing<String>,
    /// The encryption key, where a source besides the URL has given one.
    key: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for CollectedSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collected(…)")
    }
}

/// A location whose secrets have been collected: ready to be opened.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Where it is.
    pub location: Location,
    /// How to get at it.
    pub options: StoreOptions,
}

impl StorageArgs {
    /// Finds the repository (`argument`, else `--repository-file`, else `BRFS_REPOSITORY`) and its
    /// key. Does not touch the storage. Paths become absolute.
    ///
    /// # Errors
    /// `Invalid` when no repository is named or a source cannot be read.
    pub fn collect(&self, argument: Option<&str>) -> Result<CollectedSecrets> {
        let text = match (argument, &self.repository_file) {
            (Some(text), None) => {
                let hidden = std::env::var(super::redact_args::HIDDEN_URL).ok();
                Zeroizing::new(super::redact_args::revealed(text, hidden))
            }
            (None, Some(file)) => first_line(file)?,
            (None, None) => from_env("BRFS_REPOSITORY").ok_or_else(|| {
                invalid(
                    "no repository given: name its directory or URL, or use --repository-file or \
                     BRFS_REPOSITORY"
                        .into(),
                )
            })?,
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "the repository is given both as an argument and by --repository-file".into(),
                ));
            }
        };
        let url =
            match Location::parse(&text)? {
                Location::Local(path) if !text.contains("://") => {
                    let path = std::path::absolute(&path)
                        .map_err(|e| Error::from_io(e, "cannot be made absolute"))?;
                    let path = path.into_os_string().into_string();
                    Zeroizing::new(path.map_err(|_| {
                        invalid("only repository paths in UTF-8 are supported".into())
                    })?)
                }
                _ => text,
            };
        let key = self.key()?;
        Ok(CollectedSecrets { url, key })
    }

    /// Whether something else than an argument tells the repository.
    pub(super) fn is_told_elsewhere(&self) -> bool {
        self.repository_file.is_some() || std::env::var_os("BRFS_REPOSITORY").is_some()
    }

    /// [`Self::collect`] and [`Self::repository`] in one.
    ///
    /// # Errors
    /// As both.
    pub fn resolve(&self, argument: Option<&str>) -> Result<Repository> {
        self.repository(&self.collect(argument)?)
    }

    /// What was collected, with these options.
    ///
    /// # Errors
    /// `Invalid` for URLs that cannot be one, `WrongKey` for keys that cannot be one.
    pub fn repository(&self, collected: &CollectedSecrets) -> Result<Repository> {
        let (location, key_of_url) = Location::parse_with_key(&collected.url)?;
        let key = match &collected.key {
            Some(text) => Some(Key::new(text)?),
            None => key_of_url,
        };
        let defaults = StoreOptions::default();
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        let options = StoreOptions {
            encryption_key: key,
            ca_file: self.ca_file.clone(),
            allow_unauthorized: self.allow_unauthorized,
            endpoint_url: self.endpoint_url.clone(),
            region: self.region.clone(),
            profile: self.profile.clone(),
            no_sign_request: self.no_sign_request,
            virtual_hosted_style: self.virtual_hosted_style,
            idle_timeout: seconds(self.idle_timeout, defaults.idle_timeout),
            retry_budget: seconds(self.retry_budget, defaults.retry_budget),
            ..defaults
        };
        Ok(Repository { location, options })
    }

    /// The same options for a process in another directory.
    ///
    /// # Errors
    /// When the current directory is not known.
    pub fn absolute(mut self) -> Result<Self> {
        if let Some(file) = &self.ca_file {
            let absolute = std::path::absolute(file);
            self.ca_file =
                Some(absolute.map_err(|e| Error::from_io(e, "cannot be made absolute"))?);
        }
        Ok(self)
    }

    /// The key from the first of its sources that is given: file, command, environment.
    fn key(&self) -> Result<Option<Zeroizing<String>>> {
        if let Some(file) = &self.encryption_key_file {
            first_line(file).map(Some)
        } else if let Some(command) = &self.encryption_key_command {
            output_of(command).map(Some)
        } else {
            Ok(from_env("BRFS_ENCRYPTION_KEY"))
        }
    }
}

impl CollectedSecrets {
    /// Asks for the key on the terminal when the repository turns out to be encrypted and no
    /// source has given one. Looks at the storage only when there is a terminal to ask on.
    ///
    /// # Errors
    /// Whatever keeps the storage from being reached.
    pub fn ask_for_key(&mut self, args: &StorageArgs) -> Result<()> {
        let repository = args.repository(self)?;
        if repository.options.encryption_key.is_some() || !has_terminal() {
            return Ok(());
        }
        // Of a single image, the repository's that it lies in.
        let single = super::single::single_disk(&repository.location)
            .ok()
            .flatten();
        let location = single.map_or(repository.location, |single| single.root);
        let store = location.connect(&repository.options)?;
        if encryption_algorithm(store.as_ref())?.is_some() {
            self.key = prompt_for_key()?;
        }
        Ok(())
    }
}

impl Repository {
    /// Opens the repository.
    ///
    /// # Errors
    /// As [`Location::open`] and [`OpenRepository::new`].
    pub fn open(&self) -> Result<OpenRepository> {
        let store = self.location.open(&self.options)?;
        OpenRepository::new(store, self.options.encryption_key.clone())
    }
}

/// The first line without its end: editors add newlines, keys and URLs have none.
fn first_line(file: &Path) -> Result<Zeroizing<String>> {
    let failed = |e| Error::from_io(e, "cannot be read").with_object(file.display());
    let opened = File::open(file).map_err(failed)?;
    let mut line = Zeroizing::new(String::with_capacity(4096));
    BufReader::new(opened)
        .read_line(&mut line)
        .map_err(failed)?;
    if line.is_empty() {
        return Err(invalid("is empty".into()).with_object(file.display()));
    }
    Ok(trimmed(line))
}

fn trimmed(mut line: Zeroizing<String>) -> Zeroizing<String> {
    let len = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(len);
    line
}

fn from_env(name: &str) -> Option<Zeroizing<String>> {
    let text = Zeroizing::new(std::env::var(name).ok()?);
    (!text.is_empty()).then_some(text)
}

fn output_of(command: &str) -> Result<Zeroizing<String>> {
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Error::from_io(e, "cannot run the command that gives the encryption key"))?;
    let text = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(invalid(format!(
            "the command that gives the encryption key failed ({})",
            output.status
        )));
    }
    let text =
        std::str::from_utf8(&text).map_err(|_| invalid("the encryption key is not text".into()))?;
    let line = text.lines().next().unwrap_or("").to_owned();
    Ok(Zeroizing::new(line))
}

fn terminal() -> Option<File> {
    let terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .ok()?;
    isatty(&terminal).then_some(terminal)
}

fn has_terminal() -> bool {
    terminal().is_some()
}

/// Asks on the terminal, if there is one, without showing what is typed.
fn prompt_for_key() -> Result<Option<Zeroizing<String>>> {
    let Some(mut terminal) = terminal() else {
        return Ok(None);
    };
    let failed = |e: std::io::Error| Error::from_io(e, "cannot ask for the encryption key");
    terminal
        .write_all(b"Encryption key of the repository: ")
        .map_err(failed)?;
    let before = tcgetattr(&terminal).map_err(|e| failed(e.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|e| failed(e.into()))?;
    let mut line = Zeroizing::new(String::with_capacity(4096));
    let read = BufReader::new(&terminal).read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Flush, &before).map_err(|e| failed(e.into()))?;
    read.map_err(failed)?;
    let line = trimmed(line);
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(line))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        storage: StorageArgs,
        repository: Option<String>,
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn resolve(args: &[&str]) -> Result<Repository> {
        let cli = Cli::try_parse_from([&["brfs"], args].concat()).unwrap();
        cli.storage.resolve(cli.repository.as_deref())
    }

    fn file(name: &str, content: &str) -> PathBuf {
        let name = format!("brfs-args-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn urls_and_keys_come_from_files_and_commands() {
        let url = file("url", "s3://AKIA:sesame@h.example/bucket/dir#r1\r\nignored");
        let key = file("key", &format!("{KEY}\n"));
        let (url_arg, key_arg) = (url.to_str().unwrap(), key.to_str().unwrap());
        let found = resolve(&[
            "--repository-file",
            url_arg,
            "--encryption-key-file",
            key_arg,
            "--allow-unauthorized",
        ])
        .unwrap();
        assert_eq!(found.location.to_string(), "s3://h.example/bucket/dir");
        assert!(found.options.allow_unauthorized);
        assert!(found.options.encryption_key.is_some());
        let shown = format!("{found:?}");
        assert!(!shown.contains("sesame") && !shown.contains(KEY), "{shown}");
        let command = format!("cat {key_arg}");
        let found = resolve(&["--encryption-key-command", &command, "/srv/br"]).unwrap();
        assert!(found.options.encryption_key.is_some());
        for file in [url, key] {
            std::fs::remove_file(file).unwrap();
        }
    }

    #[test]
    fn bad_sources_are_refused_without_showing_them() {
        let error = resolve(&["--encryption-key-command", "exit 3", "/srv"]).unwrap_err();
        assert!(error.to_string().contains("failed"), "{error}");
        let error = resolve(&["--encryption-key-command", "echo short", "/srv"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert!(!error.to_string().contains("short"));
        let error = resolve(&["--repository-file", "/nowhere/at/all"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let error = resolve(&["--repository-file", "x", "y"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn keys_in_urls_are_used_unless_another_is_given() {
        let url = format!("file:///srv/br?encryptionKey=%22{KEY}%22");
        assert!(resolve(&[&url]).unwrap().options.encryption_key.is_some());
        assert!(resolve(&["/srv"]).unwrap().options.encryption_key.is_none());
    }
}
