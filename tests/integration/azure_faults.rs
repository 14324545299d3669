//! What the Azure client does when the server misbehaves. Connections, retries and the checks on
//! bodies and ranges are shared with S3 and tested there (`s3_faults.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use brfs::error::ErrorKind;
use brfs::secret::Secret;
use brfs::store::azure::{AzureConfig, AzureCredentials, AzureStore};
use brfs::store::{Store, StorePath, Validity};

use crate::fault_server::{Delivery, FaultServer, Reply, Seen};

const KEY: &str = "c2VjcmV0IGtleQ==";

fn store_with(server: &FaultServer, credentials: AzureCredentials) -> AzureStore {
    AzureStore::open(AzureConfig {
        endpoint: format!("http://{}", server.address),
        account: "account".into(),
        account_in_path: false,
        credentials,
        container: "container".into(),
        dir: "dir".into(),
        ca_file: None,
        allow_unauthorized: false,
        idle_timeout: Duration::from_millis(400),
        retry_budget: Duration::from_millis(1500),
        first_delay: Duration::from_millis(20),
        max_parallelism: 8,
        stats: Arc::default(),
    })
    .unwrap()
}

fn store(server: &FaultServer) -> AzureStore {
    store_with(server, AzureCredentials::Key(Secret::new(KEY.into())))
}

fn path(text: &str) -> StorePath {
    StorePath::new(text).unwrap()
}

fn blob() -> Reply {
    Reply::new(200, "content").header("etag", "\"0x1\"")
}

fn refusal(status: u16, code: &str) -> Reply {
    Reply::new(status, "").header("x-ms-error-code", code)
}

fn page(name: &str, next: &str) -> Reply {
    Reply::new(
        200,
        format!(
            "<EnumerationResults><Blobs><Blob><Name>dir/{name}</Name><Properties><Etag>0x1</Etag>\
             <Content-Length>7</Content-Length></Properties></Blob></Blobs>\
             <NextMarker>{next}</NextMarker></EnumerationResults>"
        ),
    )
}

#[test]
fn a_busy_server_is_waited_for() {
    let count = AtomicUsize::new(0);
    let server = FaultServer::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => refusal(503, "ServerBusy"),
        1 => refusal(500, "OperationTimedOut"),
        2 => blob().delivered(Delivery::Cut(3)),
        3 => blob().delivered(Delivery::Stall(3)),
        _ => blob(),
    });
    assert_eq!(
        store(&server).read(&path("a"), 9, Validity::Ask).unwrap().0,
        "content"
    );
    assert_eq!(server.seen().len(), 5);
}

#[test]
fn refusals_say_what_is_wrong_and_are_final() {
    for (status, code, kind, word) in [
        (404, "BlobNotFound", ErrorKind::NotFound, "not there"),
        (404, "ContainerNotFound", ErrorKind::Invalid, "container"),
        (
            403,
            "AuthenticationFailed",
            ErrorKind::Denied,
            "key or the SAS",
        ),
        (
            403,
            "AuthorizationPermissionMismatch",
            ErrorKind::Denied,
            "read (r)",
        ),
        (409, "BlobArchived", ErrorKind::Unsupported, "Archive"),
        (412, "ConditionNotMet", ErrorKind::Changed, "replaced"),
    ] {
        let server = FaultServer::start(move |_| refusal(status, code));
        for error in [
            store(&server)
                .read(&path("a"), 9, Validity::Ask)
                .unwrap_err(),
            store(&server).head(&path("a")).unwrap_err(),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(server.seen().len(), 2);
    }
    let server = FaultServer::start(|_| Reply::new(404, "<html>nginx</html>"));
    for error in [
        store(&server)
            .read(&path("a"), 9, Validity::Ask)
            .unwrap_err(),
        store(&server).head(&path("a")).unwrap_err(),
    ] {
        assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}

#[test]
fn listings_resume_at_the_page_and_are_never_partial() {
    for delivery in [
        Delivery::Reset,
        Delivery::Cut(60),
        Delivery::CutUnannounced(150),
        Delivery::Stall(9),
    ] {
        let again = delivery.clone();
        let answer = |seen: &Seen| match seen.query("marker").as_deref() {
            None => page("a", "next +&amp;é"),
            Some("next +&é") => page("b", ""),
            other => panic!("{other:?}"),
        };
        let count = AtomicUsize::new(0);
        let server = FaultServer::start(move |seen| {
            let late = seen.query("marker").is_some();
            if late && count.fetch_add(1, Ordering::Relaxed) < 2 {
                return answer(seen).delivered(delivery.clone());
            }
            answer(seen)
        });
        assert_eq!(store(&server).list(&StorePath::root()).unwrap().len(), 2);
        assert_eq!(server.seen().len(), 4);
        let server = FaultServer::start(move |seen| match seen.query("marker") {
            None => answer(seen),
            Some(_) => answer(seen).delivered(again.clone()),
        });
        assert!(store(&server).list(&StorePath::root()).is_err());
    }
}

#[test]
fn repeated_markers_are_detected() {
    let server = FaultServer::start(|_| page("a", "same"));
    let error = store(&server).list(&StorePath::root()).unwrap_err();
    assert!(error.to_string().contains("repeats itself"), "{error}");
}

#[test]
fn blobs_that_change_between_two_ranges_are_noticed() {
    let server = FaultServer::start(|seen| match seen.method.as_str() {
        "HEAD" => blob(),
        _ => Reply::new(206, "on")
            .header("etag", "\"0x2\"")
            .header("content-range", "bytes 1-2/7"),
    });
    let file = store(&server);
    let file = file.open(&path("a"), None).unwrap();
    let error = file.read_exact_at(&mut [0; 2], 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
}

#[test]
fn shared_access_signatures_are_sent_and_never_shown() {
    let server = FaultServer::start(|_| refusal(403, "AuthenticationFailed"));
    let sas = "?sv=2022-11-02&sp=rl&sig=abc%2Bdef%3D";
    let store = store_with(&server, AzureCredentials::Sas(Secret::new(sas.into())));
    let error = store.read(&path("a"), 9, Validity::Ask).unwrap_err();
    let seen = &server.seen()[0];
    assert_eq!(seen.query("sig").unwrap(), "abc+def=");
    assert!(seen.header("authorization").is_none());
    for text in [format!("{error:?}"), format!("{store:?}"), store.describe()] {
        assert!(!text.contains("abc"), "{text}");
    }
}
