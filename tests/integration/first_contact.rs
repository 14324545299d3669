//! What a person is told, through each command, when the storage cannot be used: one line that says
//! what to do, soon, and exit status 2.

use std::process::Command;

use crate::fault_server::{Bucket, Delivery, FaultServer, Reply};

/// Runs `ls`, `info` and `mount`; all have to fail, and to say the same in one line.
fn refused(url: &str, flags: &[&str], said: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let commands = [
        vec!["ls", url],
        vec!["info", url, "vm"],
        vec!["mount", url, at],
    ];
    std::thread::scope(|scope| {
        for arguments in &commands {
            scope.spawn(move || refused_by(arguments, flags, said));
        }
    });
}

fn refused_by(arguments: &[&str], flags: &[&str], said: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brfs"));
    command.args(arguments).args(flags);
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command.stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    // (Warnings of regions and the like come before it.)
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("brfs: "), "{arguments:?}: {errors}");
    for said in said {
        assert!(
            last.contains(said),
            "{arguments:?}: {said:?} not in {errors}"
        );
    }
    assert!(!errors.contains("sesame"), "{errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

fn url(server: &FaultServer) -> String {
    format!(
        "s3+http://AKIA:sesame@{}/bucket/dir#us-east-1",
        server.address
    )
}

fn bucket() -> Bucket {
    Bucket::new(
        "bucket",
        &[("dir/encryption.json", b"{\"algorithm\":\"none\"}")],
    )
}

#[test]
fn refusals_name_the_repository_and_say_what_to_do() {
    let cases: [(Reply, &str); 6] = [
        (
            Reply::error(403, "SignatureDoesNotMatch"),
            "the secret key is wrong",
        ),
        (
            Reply::error(403, "InvalidAccessKeyId"),
            "does not know the access key",
        ),
        (
            Reply::error(404, "NoSuchBucket"),
            "check its name and the endpoint",
        ),
        (
            Reply::error(403, "AccessDenied"),
            "need s3:ListBucket on the bucket",
        ),
        (
            Reply::error(301, "PermanentRedirect"),
            "check endpoint and region",
        ),
        (
            Reply::error_with(400, "AuthorizationHeaderMalformed", "<Region>r-9</Region>"),
            "write #r-9 at the end of the URL, or --region r-9",
        ),
    ];
    for (reply, said) in cases {
        let server = FaultServer::start(move |_| reply.clone());
        let name = format!("brfs: s3://{}/bucket/dir: ", server.address);
        refused(&url(&server), &[], &[&name, said]);
    }
}

#[test]
fn a_directory_that_is_not_there_is_said_to_be_so() {
    let bucket = bucket();
    let server = FaultServer::start(move |seen| bucket.answer(seen));
    let url = url(&server).replace("/dir", "/other");
    refused(&url, &[], &["/bucket/other: there is nothing of this name"]);
}

#[test]
fn objects_that_may_be_listed_but_not_read() {
    let bucket = bucket();
    let server = FaultServer::start(move |seen| match seen.is_list() {
        true => bucket.answer(seen),
        false => Reply::error(403, "AccessDenied"),
    });
    refused(
        &url(&server),
        &[],
        &["encryption.json", "need s3:GetObject on the objects"],
    );
}

#[test]
fn what_is_no_s3_server_is_not_waited_for() {
    let page = "<html>Welcome</html>";
    for (status, said) in [
        (200, "not that of an S3 server"),
        (404, "not come from an S3 server"),
    ] {
        let server = FaultServer::start(move |_| Reply::new(status, page));
        refused(&url(&server), &[], &[said, "check the endpoint"]);
    }
    let bucket = bucket();
    let tls = crate::tls_server::start(move |seen| bucket.answer(seen));
    refused(&url(&tls), &[], &["is it an s3:// one"]);
    let https = url(&tls)
        .replace("s3+http://", "s3://")
        .replace("127.0.0.1", "localhost");
    refused(&https, &[], &["certificate is not trusted", "--ca-file"]);
    let plain = FaultServer::start(move |_| Reply::new(200, page));
    let https = url(&plain).replace("s3+http://", "s3://");
    refused(&https, &[], &["is it an s3+http:// one"]);
}

/// However long the budget is: what never answered is not waited for as what did.
#[test]
fn a_server_that_never_answered_is_given_up_with_the_reason() {
    // Nobody listens there: it takes root, and is for a protocol long forgotten.
    let gone = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let at = |address| format!("s3+http://AKIA:sesame@{address}/bucket/dir#us-east-1");
    let lost = FaultServer::start(|_| Reply::new(200, "").delivered(Delivery::Reset));
    let silent = FaultServer::start(|_| Reply::new(200, "").delivered(Delivery::Silence));
    let cases = [
        (at(gone), "the server cannot be reached: Connection refused"),
        (at(lost.address), "the connection was lost"),
        (at(silent.address), "nothing came for"),
    ];
    std::thread::scope(|scope| {
        for (url, said) in cases {
            let flags = ["--retry-budget=100000", "--idle-timeout=2"];
            scope.spawn(move || refused(&url, &flags, &[said, "(tried "]));
        }
    });
}

#[test]
fn who_waits_for_long_is_told_why() {
    let bucket = Bucket::new("bucket", &[("dir/xo-vm-backups/x/y", b"")]);
    let server = FaultServer::start(move |seen| {
        let answer = bucket.answer(seen);
        answer.delivered(Delivery::Late(std::time::Duration::from_secs(4)))
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_brfs"));
    command.args(["ls", &url(&server)]);
    command.stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("brfs: storage has not answered for 3 s"),
        "{errors}"
    );
}
