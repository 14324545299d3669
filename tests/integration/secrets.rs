//! What is logged, at the most talkative level and by all libraries, holds no secret; nor does the
//! list of processes, while a command runs that was given one.

use std::io::Write;
use std::sync::{Arc, Mutex};

use brfs::config::{Location, StoreOptions};
use brfs::store::{StorePath, Validity};

use crate::fault_server::{Bucket, Delivery, FaultServer, Reply};

const SECRET: &str = "theSecretAccessKey";
const TOKEN: &str = "theSessionToken";
const KEY: &str = "0123456789abcdef0123456789abcdef";

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The environment of a process cannot be changed safely: this test starts itself again.
#[test]
fn logs_hold_no_secrets_at_any_level() {
    if std::env::var_os("BRFS_TEST_CHILD").is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "logs_hold_no_secrets_at_any_level",
                "--nocapture",
            ])
            .env("BRFS_TEST_CHILD", "1")
            .env("AWS_ACCESS_KEY_ID", "AKIAENV")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_SESSION_TOKEN", TOKEN)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let captured = Captured::default();
    let writer = captured.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();

    let bucket = Bucket::new("bucket", &[("dir/a", b"content")]);
    let server = FaultServer::start(move |seen| bucket.answer(seen));
    let from_url = format!(
        "s3+http://AKIAURL:{SECRET}@{}/bucket/dir?encryptionKey=%22{KEY}%22#us-east-1",
        server.address
    );
    let from_environment = format!("s3+http://@{}/bucket/dir", server.address);
    for url in [from_url, from_environment] {
        let (location, key) = Location::parse_with_key(&url).unwrap();
        let options = StoreOptions {
            encryption_key: key,
            region: Some("us-east-1".into()),
            ..StoreOptions::default()
        };
        tracing::info!(?location, ?options, "opened");
        let store = location.open(&options).unwrap();
        tracing::info!(?store, "opened");
        let path = StorePath::new("a").unwrap();
        assert_eq!(store.read(&path, 9, Validity::Ask).unwrap().0, "content");
        assert!(store.list(&StorePath::root()).is_ok());
        assert!(
            store
                .read(&StorePath::new("none").unwrap(), 9, Validity::Ask)
                .is_err()
        );
    }
    let sent_token =
        |seen: &crate::fault_server::Seen| seen.header("x-amz-security-token") == Some(TOKEN);
    assert!(server.seen().iter().any(sent_token));

    let log = String::from_utf8_lossy(&captured.0.lock().unwrap()).into_owned();
    // The libraries did talk.
    assert!(log.contains("opened") && log.contains("aws_smithy_runtime"));
    for secret in [SECRET, TOKEN, KEY] {
        let line = log.lines().find(|l| l.contains(secret));
        assert!(line.is_none(), "{secret} in {line:?}");
    }
}

/// Ends the process, whatever the test comes to.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_process_list_holds_no_secrets_while_a_command_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().to_str().unwrap();
    let server = FaultServer::start(|_| Reply::new(200, "").delivered(Delivery::Silence));
    let address = server.address;
    let sources = [
        (
            format!("s3+http://AKIAURL:{SECRET}@{address}/bucket/dir#us-east-1"),
            format!("s3+http://{address}/bucket/dir"),
        ),
        (
            format!("s3+http://{address}/bucket/dir?encryptionKey=%22{KEY}%22"),
            format!("s3+http://{address}/bucket/dir"),
        ),
        (
            format!("azurite+http://account:{SECRET}@{address}/container/dir"),
            format!("azurite+http://{address}/container/dir"),
        ),
    ];
    for (n, (url, shown)) in sources.iter().enumerate() {
        for arguments in [
            vec!["ls", url, "vm"],
            vec!["-v", "info", "--", url, "vm"],
            // (Its background process gives up soon after the test.)
            vec!["mount", "--retry-budget=1", "-o", "ro", url, mountpoint],
            vec!["mount", "--foreground", url, mountpoint],
        ] {
            let before = server.seen().len();
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_brfs"));
            command.args(&arguments).stderr(std::process::Stdio::null());
            command.env("AWS_ACCESS_KEY_ID", "AKIAENV");
            command.env("AWS_SECRET_ACCESS_KEY", "other");
            let running = Running(command.spawn().unwrap());
            // Once it asks its server, it is what it stays until it is answered: never.
            while server.seen().len() == before {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let mut lines = Vec::new();
            for process in std::fs::read_dir("/proc").unwrap().flatten() {
                let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                lines.push(String::from_utf8_lossy(&line).into_owned());
            }
            let of_process = format!("/proc/{}/cmdline", running.0.id());
            let own = String::from_utf8(std::fs::read(of_process).unwrap()).unwrap();
            // It is called as it was, with the place's name where the URL was.
            if !arguments.contains(&"--foreground") {
                assert!(own.contains(shown.as_str()), "{n} {arguments:?}: {own}");
            }
            for line in lines.iter().filter(|l| l.contains("brfs")) {
                assert!(!line.contains(SECRET) && !line.contains(KEY), "{line}");
            }
        }
    }
}
