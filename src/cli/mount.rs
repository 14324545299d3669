//! `brfs mount`: what a person asks for, turned into one request for the process that serves it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::daemon;
use super::request::Request;
use super::size::parse_size;
use super::storage_args::StorageArgs;

/// Show a backup repository as files
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Goes to the background once the mount answers; `brfs umount MOUNTPOINT` \
                        takes it away again.\n\n\
                        Examples:\n  \
                        brfs mount /srv/backups /mnt/br\n  \
                        brfs mount some/disk.vhd /mnt/disk"
)]
pub(super) struct Args {
    /// The repository (a directory, an s3://, azure:// or file:// URL as Xen Orchestra shows it, or a
    /// single .vhd, .avhd or .alias.vhd, a file, a directory or a URL) and an existing directory to show
    /// it at. The
    /// repository can come from --repository-file or BRFS_REPOSITORY instead
    #[arg(value_names = ["REPOSITORY", "MOUNTPOINT"], num_args = 1..=2, required = true)]
    what_and_where: Vec<String>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    storage: StorageArgs,
    /// The same settings as in /etc/fstab: allow_other,uid=…,cache_size=…
    #[arg(short = 'o', value_name = "OPTION,…")]
    options: Vec<String>,
}

/// What can be said both as flags and as mount options.
#[derive(Debug, Default, Clone, PartialEq, Eq, clap::Args)]
pub(super) struct Settings {
    /// Memory for decoded blocks [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache_size: Option<u64>,
    /// Keep blocks of remote storage in this directory across mounts, as they are stored: still
    /// encrypted on encrypted repositories
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Most bytes to keep there [default: 20G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "cache_dir")]
    cache_dir_size: Option<u64>,
    /// Admit other users (only the mounting user has access otherwise)
    #[arg(long)]
    allow_other: bool,
    /// Owner of the files [default: the mounting user]
    #[arg(long)]
    uid: Option<u32>,
    /// Group of the files [default: the mounting user's]
    #[arg(long)]
    gid: Option<u32>,
    /// Show the owners and modes that guests gave their files, and enforce them (root only);
    /// without it, whoever may use the mount can read everything
    #[arg(long)]
    guest_owner: bool,
    /// Permission bits to take away, in octal
    #[arg(long, value_parser = parse_umask)]
    umask: Option<u16>,
    /// Log to this file (in the background, to the system's log otherwise)
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Look for new and removed backups this often where storage does not tell
    #[arg(long, value_name = "SECONDS")]
    refresh: Option<u64>,
    /// Show names that Windows can show, for mounts that Samba shares: `a:b` as `a%3Ab`
    #[arg(long)]
    windows_names: bool,
    #[arg(skip)]
    no_exec: bool,
}

/// Default of `--cache-size`.
const CACHE_BYTES: u64 = 256 << 20;
/// Default of `--cache-dir-size`.
const CACHE_DIR_BYTES: u64 = 20 << 30;

pub(super) fn run(args: Args, verbose: u8) -> Result<()> {
    let mut settings = args.settings;
    let mut storage = args.storage;
    for list in &args.options {
        settings.apply(list, &mut storage)?;
    }
    let (repository, mountpoint) = match args.what_and_where.as_slice() {
        [only] if !storage.is_told_elsewhere() => bail!(
            "the mount point is missing: brfs mount {only} MOUNTPOINT (or, if {only} is the mount \
             point, the repository: `brfs mount REPOSITORY {only}`)"
        ),
        [mountpoint] => (None, mountpoint),
        [repository, mountpoint] => (Some(repository.as_str()), mountpoint),
        _ => bail!("a mountpoint is needed"),
    };
    let mountpoint = Path::new(mountpoint);
    start(
        repository,
        mountpoint,
        None,
        settings,
        storage,
        args.foreground,
        verbose,
    )
}

/// Hands the request over to the serving process: see [`daemon`].
pub(super) fn start(
    repository: Option<&str>,
    mountpoint: &Path,
    source: Option<String>,
    settings: Settings,
    storage: StorageArgs,
    foreground: bool,
    verbose: u8,
) -> Result<()> {
    if settings.guest_owner && !rustix::process::geteuid().is_root() {
        bail!("--guest-owner is for root: nobody else could read what belongs to others");
    }
    let mut collected = storage.collect(repository)?;
    collected.ask_for_key(&storage)?;
    let request = Request {
        repository: collected,
        storage: storage.absolute()?,
        mountpoint: absolute(mountpoint)?,
        source,
        foreground,
        verbose,
        cache_bytes: settings.cache_size.unwrap_or(CACHE_BYTES),
        cache_dir: settings.cache_dir.as_deref().map(absolute).transpose()?,
        cache_dir_bytes: settings.cache_dir_size.unwrap_or(CACHE_DIR_BYTES),
        allow_other: settings.allow_other,
        uid: settings.uid,
        gid: settings.gid,
        umask: settings.umask.unwrap_or(0),
        no_exec: settings.no_exec,
        guest_owner: settings.guest_owner,
        windows_names: settings.windows_names,
        log_file: settings.log_file.as_deref().map(absolute).transpose()?,
        refresh_seconds: settings.refresh,
    };
    if foreground {
        daemon::become_server(&request)
    } else {
        daemon::start_server(&request)
    }
}

/// The serving process stands in `/`, so paths must not depend on the current directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{path:?}"))
}

fn parse_umask(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err(format!("{text:?} is not an octal mask such as 027")),
    }
}

impl Settings {
    /// Adds the settings of a comma-separated list, in which those that only other programs care
    /// about are passed over.
    pub(super) fn apply(&mut self, list: &str, storage: &mut StorageArgs) -> Result<()> {
        for option in list.split(',').filter(|o| !o.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let wrong = |why: String| anyhow::anyhow!("mount option {option:?}: {why}");
            let number = || -> Result<u64> {
                value
                    .unwrap_or("")
                    .parse()
                    .map_err(|_| wrong("needs a number".to_owned()))
            };
            let text = || -> Result<String> {
                let text = value.filter(|v| !v.is_empty());
                Ok(text
                    .ok_or_else(|| wrong("needs a value".to_owned()))?
                    .to_owned())
            };
            let id = || -> Result<u32> { Ok(u32::try_from(number()?)?) };
            match name {
                "guest_owner" => self.guest_owner = true,
                "windows_names" => self.windows_names = true,
                "allow_other" => self.allow_other = true,
                "uid" => self.uid = Some(id()?),
                "gid" => self.gid = Some(id()?),
                "umask" => self.umask = Some(parse_umask(value.unwrap_or("")).map_err(wrong)?),
                "cache_size" => {
                    self.cache_size = Some(parse_size(value.unwrap_or("")).map_err(wrong)?);
                }
                "cache_dir" => self.cache_dir = Some(text()?.into()),
                "cache_dir_size" => {
                    self.cache_dir_size = Some(parse_size(value.unwrap_or("")).map_err(wrong)?);
                }
                "refresh" => self.refresh = Some(number()?),
                "log_file" => self.log_file = Some(text()?.into()),
                "repository_file" => storage.repository_file = Some(text()?.into()),
                "encryption_key_file" => storage.encryption_key_file = Some(text()?.into()),
                "ca_file" => storage.ca_file = Some(text()?.into()),
                "endpoint_url" => storage.endpoint_url = Some(text()?),
                "region" => storage.region = Some(text()?),
                "profile" => storage.profile = Some(text()?),
                "allow_unauthorized" => storage.allow_unauthorized = true,
                "no_sign_request" => storage.no_sign_request = true,
                "virtual_hosted_style" => storage.virtual_hosted_style = true,
                "noexec" => self.no_exec = true,
                "exec" => self.no_exec = false,
                // What a mount is anyway, and what mount(8) and systemd read for themselves.
                "ro" | "nosuid" | "nodev" | "defaults" | "auto" | "noauto" | "nofail"
                | "_netdev" | "user" | "users" | "nouser" | "owner" | "group" | "async"
                | "noatime" | "relatime" | "nodiratime" | "comment" => {}
                name if name.starts_with("x-") || name.starts_with("X-") => {}
                "rw" | "suid" | "dev" => bail!(wrong(
                    "brfs mounts are read-only, without devices and set-user-ID programs"
                        .to_owned()
                )),
                _ => bail!(wrong("no such option".to_owned())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_say_what_flags_say() {
        let mut settings = Settings::default();
        settings
            .apply(
                "defaults,_netdev,x-systemd.automount,allow_other,uid=7,umask=027,,cache_size=1G",
                &mut StorageArgs::default(),
            )
            .unwrap();
        let expected = Settings {
            allow_other: true,
            uid: Some(7),
            umask: Some(0o27),
            cache_size: Some(1 << 30),
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn options_of_the_documentation_are_options() {
        let text = include_str!("../../docs/COMMANDS.md");
        let (_, section) = text.split_once("# Mount options").unwrap();
        let (section, _) = section.split_once("\n# ").unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        let mut count = 0;
        for option in cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
            let (name, kind) = option.split_once('=').unwrap_or((option, ""));
            let value = match kind {
                "" => "",
                "N" | "OCTAL" | "SECONDS" => "=7",
                "SIZE" => "=1G",
                _ => "=/x",
            };
            let storage = &mut StorageArgs::default();
            let applied = Settings::default().apply(&format!("{name}{value}"), storage);
            applied.unwrap_or_else(|e| panic!("{option}: {e}"));
            count += 1;
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn unknown_and_impossible_mount_options_are_refused() {
        for list in ["rw", "uid=", "umask=9", "nonsense", "log_file", "uid=-1"] {
            let storage = &mut StorageArgs::default();
            assert!(Settings::default().apply(list, storage).is_err(), "{list}");
        }
    }
}
