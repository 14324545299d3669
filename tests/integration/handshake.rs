//! Servers that take a connection and then say nothing, before TLS is agreed on.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use brfs::secret::Secret;
use brfs::store::s3::{S3Config, S3Credentials, S3Store};
use brfs::store::{Store, StorePath, Validity};

use crate::fault_server::{Bucket, Delivery, FaultServer};

/// Answers, to `slow` late, but for the second connection: that one ends in silence, and that it was
/// closed from the other side is told.
fn second_one_mute(idle: Duration, closed: mpsc::Sender<()>) -> FaultServer {
    let bucket = Bucket::new("bucket", &[("slow", b"1"), ("quick", b"2")]);
    let script = move |seen: &crate::fault_server::Seen| {
        let reply = bucket.answer(seen);
        match seen.path().ends_with("slow") {
            true => reply.delivered(Delivery::Late(idle / 2)),
            false => reply,
        }
    };
    let config = crate::tls_server::config();
    let connections = AtomicUsize::new(0);
    let closed = Mutex::new(closed);
    FaultServer::start_over(script, move |mut stream| {
        if connections.fetch_add(1, Ordering::Relaxed) == 1 {
            let mut hello = [0; 1024];
            while stream.read(&mut hello).is_ok_and(|n| n > 0) {}
            closed.lock().unwrap().send(()).ok();
            return Err(std::io::Error::other("closed"));
        }
        crate::tls_server::session(&config, stream)
    })
}

#[test]
fn a_connection_that_nobody_waits_for_any_more_is_given_up_in_its_handshake() {
    let idle = Duration::from_secs(4);
    let (sender, closed) = mpsc::channel();
    let server = second_one_mute(idle, sender);
    let store = S3Store::open(S3Config {
        endpoint: Some(format!("https://{}", server.address)),
        region: Some("us-east-1".into()),
        bucket: "bucket".into(),
        dir: String::new(),
        credentials: S3Credentials::Keys {
            id: "AKIATEST".into(),
            secret: Secret::new("secret".into()),
        },
        virtual_hosted_style: false,
        ca_file: None,
        allow_unauthorized: true,
        idle_timeout: idle,
        retry_budget: Duration::from_secs(20),
        first_delay: Duration::from_millis(40),
        max_parallelism: 16,
        stats: Arc::default(),
    });
    let store = store.unwrap();
    let read = |name| {
        store
            .read(&StorePath::new(name).unwrap(), 10, Validity::Ask)
            .unwrap()
            .0
    };
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(read("slow"), &b"1"[..]));
        while server.seen().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Begins a connection of its own, and is sent over the first one when that is free.
        assert_eq!(read("quick"), &b"2"[..]);
    });
    assert!(server.seen().iter().all(|seen| seen.connection == 0));
    // The store is still there: nothing but the time-out closes it.
    let given_up = closed.recv_timeout(Duration::from_secs(30));
    given_up.expect("the connection stays open for ever");
    drop(store);
}
