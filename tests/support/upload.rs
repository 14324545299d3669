//! Servers that hold repositories: `s3s-fs` over copies of them in every run, and another server
//! when `BRFS_TEST_S3_URL` names one (`scripts/ceph-rgw`, `scripts/azurite`).

use std::path::Path;
use std::process::Command;

use super::s3_server::{KEY_ID, S3Server};
use super::tempdir::TempDir;

/// The secret key of `s3s-fs` as a URL has it.
pub const SECRET_IN_URL: &str = "secret%2Fwith%2Bodd%3Dcharacters";

/// A server to upload to.
pub enum Server {
    /// In this process. Files below its root are objects.
    Own { root: TempDir, server: S3Server },
    /// Any other, and the command that uploads (`command URL DIRECTORY`).
    Other { url: String, upload: String },
}

impl Server {
    pub fn own() -> Self {
        let root = TempDir::new("upload");
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let server = S3Server::start(root.path());
        Server::Own { root, server }
    }

    /// The server that the environment names, if it does.
    pub fn other() -> Option<Self> {
        let set = |name| std::env::var(name).ok();
        let (url, upload) = (set("BRFS_TEST_S3_URL")?, set("BRFS_TEST_S3_UPLOAD")?);
        Some(Server::Other { url, upload })
    }

    /// Makes a repository available; gives XO's URL for it, secrets included.
    pub fn upload(&self, repository: &Path, name: &str) -> String {
        match self {
            Server::Own { root, server } => {
                let at = root.path().join("bucket").join(name);
                // Hard links where that is possible: nobody writes. (The server follows no others.)
                let copy = |how: &str| {
                    let mut copy = Command::new("cp");
                    copy.arg(how).arg(repository).arg(&at);
                    copy.stderr(std::process::Stdio::null());
                    copy.status().unwrap().success()
                };
                assert!(copy("-rl") || copy("-rT"), "copy of {name}");
                let address = server.address;
                format!("s3+http://{KEY_ID}:{SECRET_IN_URL}@{address}/bucket/{name}#us-east-1")
            }
            Server::Other { url, upload } => {
                let url = format!("{url}/{name}");
                let status = Command::new(upload).arg(&url).arg(repository).status();
                assert!(status.unwrap().success(), "upload of {name}");
                url
            }
        }
    }
}
