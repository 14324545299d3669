//! What the S3 client does when a server misbehaves, row by row: each test names the provider
//! or the fault it was seen at. All servers are loopback ones (`support/s3_faults.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use brfs::error::{Error, ErrorKind};
use brfs::secret::Secret;
use brfs::store::s3::{S3Config, S3Credentials, S3Store};
use brfs::store::{EntryKind, Store, StorePath, StoreStats, Validity};

use crate::fault_server::{Bucket, Delivery, FaultServer, Lists, Reply, Seen};

const SECRET: &str = "very+secret/key=";
const BLOCK: &[u8] = &[0x42; 100_000];

fn config(server: &FaultServer) -> S3Config {
    S3Config {
        endpoint: Some(format!("http://{}", server.address)),
        region: Some("us-east-1".into()),
        bucket: "bucket".into(),
        dir: "dir".into(),
        credentials: S3Credentials::Keys {
            id: "AKIATEST".into(),
            secret: Secret::new(SECRET.into()),
        },
        virtual_hosted_style: false,
        ca_file: None,
        allow_unauthorized: false,
        idle_timeout: Duration::from_millis(400),
        retry_budget: Duration::from_secs(20),
        first_delay: Duration::from_millis(40),
        max_parallelism: 16,
        stats: Arc::default(),
    }
}

fn store(server: &FaultServer) -> S3Store {
    S3Store::open(config(server)).unwrap()
}

/// A store that gives up soon.
fn hasty(server: &FaultServer) -> S3Store {
    let config = S3Config {
        retry_budget: Duration::from_millis(900),
        ..config(server)
    };
    S3Store::open(config).unwrap()
}

/// A call of a program that needs several requests waits no longer than for one of them.
#[test]
fn retry_budget_is_that_of_a_call() {
    let silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let bucket = bucket();
    let fails = silent.clone();
    let server = FaultServer::start(move |seen| {
        let sound = bucket.answer(seen);
        match fails.load(Ordering::Relaxed) {
            true => sound.delivered(Delivery::Reset),
            false => sound,
        }
    });
    let store = hasty(&server);
    let path = StorePath::new("block").unwrap();
    store.head(&path).unwrap();
    silent.store(true, Ordering::Relaxed);
    let attempts = |times: usize| -> Vec<usize> {
        let one = |_| {
            let before = server.seen().len();
            store.head(&path).unwrap_err();
            server.seen().len() - before
        };
        (0..times).map(one).collect()
    };
    let within_a_call = brfs::call::on_call(|| attempts(3));
    assert!(within_a_call[0] > 1, "{within_a_call:?}");
    assert_eq!(within_a_call[1..], [1, 1]);
    // The next call has a budget of its own.
    let next = brfs::call::on_call(|| attempts(1));
    assert!(next[0] > 1, "{next:?}");
}

fn bucket() -> Bucket {
    Bucket::new(
        "bucket",
        &[
            ("dir/encryption.json", b"{}"),
            ("dir/block", BLOCK),
            ("dir/empty", b""),
            ("dir/vm/a.json", b"{}"),
        ],
    )
}

/// Answers soundly, except to the first `times` requests that `which` picks.
fn faulty(
    times: usize,
    which: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    fault: impl Fn(Reply) -> Reply + Send + Sync + 'static,
) -> FaultServer {
    let bucket = bucket();
    let count = AtomicUsize::new(0);
    FaultServer::start(move |seen| {
        let sound = bucket.answer(seen);
        if which(seen) && count.fetch_add(1, Ordering::Relaxed) < times {
            fault(sound)
        } else {
            sound
        }
    })
}

const ALWAYS: usize = usize::MAX;

fn any(_: &Seen) -> bool {
    true
}

fn path(text: &str) -> StorePath {
    StorePath::new(text).unwrap()
}

fn read_block(store: &S3Store) -> Result<(), Error> {
    let (data, meta) = store.read(&path("block"), 1 << 20, Validity::Ask)?;
    assert_eq!(data, BLOCK);
    assert_eq!(meta.len_bytes, BLOCK.len() as u64);
    Ok(())
}

fn names(store: &S3Store, dir: &str) -> Vec<String> {
    let mut names: Vec<String> = store
        .list(&path(dir))
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect();
    names.sort();
    names
}

fn no_secrets(error: &Error) {
    let mut text = format!("{error:?} {error}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!("{error:?}"));
        source = error.source();
    }
    assert!(!text.contains(SECRET), "{text}");
}

// --- sound servers ------------------------------------------------------------------------

#[test]
fn a_sound_server_is_read_listed_and_opened() {
    let server = faulty(0, any, |r| r);
    let store = store(&server);
    read_block(&store).unwrap();
    assert_eq!(
        names(&store, ""),
        ["block", "empty", "encryption.json", "vm"]
    );
    let listed = store.list(&StorePath::root()).unwrap();
    let block = listed.iter().find(|e| e.name == "block").unwrap();
    let head = store.head(&path("block")).unwrap();
    // Told alike by LIST, HEAD and GET, so that caches can compare them.
    assert_eq!(block.meta, Some(head));
    assert_eq!(
        store
            .read(&path("block"), 1 << 20, Validity::Ask)
            .unwrap()
            .1,
        head
    );
    assert_eq!(
        store
            .read(&path("empty"), 0, Validity::Ask)
            .unwrap()
            .0
            .len(),
        0
    );
    let vm = listed.iter().find(|e| e.name == "vm").unwrap();
    assert_eq!(vm.kind, EntryKind::Dir);
    let file = store.open(&path("block"), None).unwrap();
    let mut buf = [0; 1000];
    file.read_exact_at(&mut buf, 99_000).unwrap();
    assert_eq!(buf[..], BLOCK[..1000]);
    let error = file.read_exact_at(&mut buf, 99_001).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        store.head(&path("none")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        store.list(&path("none")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let error = store.read(&path("none"), 9, Validity::Ask).unwrap_err();
    assert_eq!(
        (error.kind(), error.object()),
        (ErrorKind::NotFound, Some("none"))
    );
    let error = store
        .read(&path("block"), 99_999, Validity::Ask)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        store.describe(),
        format!("s3://{}/bucket/dir", server.address)
    );
}

#[test]
fn ontap_only_three_operations_and_no_needless_header_are_sent() {
    let server = faulty(0, any, |r| r);
    let store = store(&server);
    read_block(&store).unwrap();
    names(&store, "");
    let mut buf = [0; 10];
    let file = store.open(&path("block"), None).unwrap();
    file.read_exact_at(&mut buf, 0).unwrap();
    let known = [
        "host",
        "user-agent",
        "authorization",
        "x-amz-date",
        "x-amz-content-sha256",
        "range",
    ];
    for seen in server.seen() {
        for (name, _) in &seen.headers {
            assert!(known.contains(&name.as_str()), "{name} in {seen:?}");
        }
        let query = seen.target.split_once('?').map_or("", |(_, q)| q);
        let query: Vec<&str> = query
            .split('&')
            .map(|p| p.split('=').next().unwrap())
            .collect();
        for name in &query {
            let listing = ["list-type", "delimiter", "prefix"].contains(name);
            assert!(
                name.is_empty() || seen.is_list() && listing,
                "{}",
                seen.target
            );
        }
        assert!(matches!(seen.method.as_str(), "GET" | "HEAD"));
        assert!(seen.header("user-agent").unwrap().starts_with("brfs/"));
    }
}

#[test]
fn ceph_keys_with_plus_spaces_and_unicode_and_opaque_tokens() {
    let odd = [
        "a+b c.json",
        "é ü/x",
        "100%25 &<>\"'=?#.vhd",
        "日本語",
        "~(tilde)!*",
    ];
    let keys: Vec<String> = odd.iter().map(|k| format!("my dir/+é%2B/{k}")).collect();
    let mut bucket = Bucket::new("bucket", &[]);
    for key in &keys {
        bucket.objects.insert(key.clone(), key.as_bytes().to_vec());
    }
    bucket.page = 2;
    let server = FaultServer::start(move |seen| bucket.answer(seen));
    let config = S3Config {
        dir: "my dir/+é%2B".into(),
        ..config(&server)
    };
    let store = S3Store::open(config).unwrap();
    let mut expected = [
        "a+b c.json",
        "é ü",
        "100%25 &<>\"'=?#.vhd",
        "日本語",
        "~(tilde)!*",
    ];
    expected.sort();
    assert_eq!(names(&store, ""), expected);
    for name in odd {
        let (data, _) = store.read(&path(name), 999, Validity::Ask).unwrap();
        assert_eq!(data, format!("my dir/+é%2B/{name}").as_bytes());
        assert!(store.head(&path(name)).is_ok());
    }
}

#[test]
fn url_encoded_listings_are_decoded_although_not_asked_for() {
    let xml = "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false\
               </IsTruncated><Contents><Key>dir/a%2Bb+c%C3%A9</Key><Size>1</Size></Contents>\
               </ListBucketResult>";
    let server = FaultServer::start(move |_| Reply::new(200, xml));
    assert_eq!(names(&store(&server), ""), ["a+b cé"]);
}

// --- AWS, Spaces: throttling, failures, resets --------------------------------------------

#[test]
fn slow_down_is_waited_out_on_new_connections_with_less_at_once() {
    let server = faulty(3, any, |_| Reply::error(503, "SlowDown"));
    let config = config(&server);
    let stats: Arc<StoreStats> = config.stats.clone();
    let store = S3Store::open(config).unwrap();
    read_block(&store).unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 4);
    let connections: std::collections::HashSet<_> = seen.iter().map(|s| s.connection).collect();
    assert!(connections.len() > 1, "{connections:?}");
    let counted = stats.snapshot();
    assert_eq!((counted.retries, counted.throttled), (3, 3));
    assert_eq!(counted.get.requests, 4);
    let lowest = store.traits().parallelism;
    assert!(lowest <= 4, "{lowest}");
    for _ in 0..60 {
        read_block(&store).unwrap();
    }
    assert!(store.traits().parallelism > lowest);
}

#[test]
fn waits_between_attempts_grow() {
    let server = faulty(4, any, |_| Reply::error(500, "InternalError"));
    read_block(&store(&server)).unwrap();
    let seen = server.seen();
    let waits: Vec<Duration> = seen.windows(2).map(|w| w[1].at - w[0].at).collect();
    assert!(waits[0] >= Duration::from_millis(20), "{waits:?}");
    assert!(waits[3] > waits[0], "{waits:?}");
}

#[test]
fn resets_and_gateway_failures_are_tried_again() {
    for fault in [
        Reply::new(200, "").delivered(Delivery::Reset),
        Reply::new(502, "<html>Bad Gateway</html>"),
        Reply::new(504, ""),
        Reply::new(500, ""),
    ] {
        let server = faulty(2, any, move |_| fault.clone());
        read_block(&store(&server)).unwrap();
        assert_eq!(
            store(&server).head(&path("block")).unwrap().len_bytes,
            100_000
        );
    }
}

#[test]
fn a_storage_that_stays_down_is_an_error_that_may_pass() {
    let server = faulty(ALWAYS, any, |_| Reply::error(503, "SlowDown"));
    let store = hasty(&server);
    let error = read_block(&store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("tried"), "{error}");
    let error = store.list(&StorePath::root()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
}

#[test]
fn listings_go_on_while_readers_of_data_wait() {
    let server = faulty(ALWAYS, |s| !s.is_list(), |_| Reply::error(503, "SlowDown"));
    let config = S3Config {
        retry_budget: Duration::from_secs(3),
        ..config(&server)
    };
    let store = Arc::new(S3Store::open(config).unwrap());
    let readers: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || read_block(&store).unwrap_err().kind())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    assert_eq!(names(&store, "vm"), ["a.json"]);
    assert!(start.elapsed() < Duration::from_millis(900));
    for reader in readers {
        assert_eq!(reader.join().unwrap(), ErrorKind::Transient);
    }
}

#[test]
fn an_unreachable_server_is_reported_soon() {
    let server = faulty(0, any, |r| r);
    let config = S3Config {
        endpoint: Some("http://127.0.0.1:9".into()),
        retry_budget: Duration::from_secs(1),
        ..config(&server)
    };
    let error = read_block(&S3Store::open(config).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

// --- MinIO: Retry-After, slow listings ----------------------------------------------------

#[test]
fn minio_retry_after_is_honoured() {
    let server = faulty(1, any, |_| {
        Reply::error(503, "SlowDownRead").header("retry-after", "1")
    });
    read_block(&store(&server)).unwrap();
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1));
}

#[test]
fn a_retry_after_beyond_the_budget_is_not_slept_through() {
    let server = faulty(1, any, |_| {
        Reply::error(503, "SlowDown").header("retry-after", "3600")
    });
    let start = Instant::now();
    let error = read_block(&store(&server)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn minio_slow_pages_succeed_as_long_as_something_comes() {
    // Longer in all than the idle time-out of 400 ms.
    let pause = Duration::from_millis(200);
    let server = faulty(ALWAYS, any, move |r| {
        r.delivered(Delivery::Trickle(5, pause))
    });
    let config = config(&server);
    let stats = config.stats.clone();
    let store = S3Store::open(config).unwrap();
    assert_eq!(names(&store, "vm"), ["a.json"]);
    read_block(&store).unwrap();
    assert_eq!(stats.snapshot().retries, 0);
}

#[test]
fn patience_grows_for_a_server_that_thinks_longer_than_the_idle_time_out() {
    let late = Duration::from_millis(1000);
    let server = faulty(ALWAYS, Seen::is_list, move |r| {
        r.delivered(Delivery::Late(late))
    });
    assert_eq!(names(&store(&server), "vm"), ["a.json"]);
}

// --- Backblaze B2: listings that break off ------------------------------------------------

fn paged(fault: impl Fn(&Seen, usize, Reply) -> Reply + Send + Sync + 'static) -> FaultServer {
    let mut bucket = Bucket::new("bucket", &[]);
    for n in 0..10 {
        bucket.objects.insert(format!("dir/{n}"), vec![]);
    }
    bucket.page = 3;
    let second = AtomicUsize::new(0);
    FaultServer::start(move |seen| {
        let sound = bucket.answer(seen);
        match seen.query("continuation-token").as_deref() {
            Some("1/+ =&é?3") => fault(seen, second.fetch_add(1, Ordering::Relaxed), sound),
            _ => sound,
        }
    })
}

#[test]
fn b2_listing_resumes_at_the_page_that_failed() {
    for delivery in [
        Delivery::Reset,
        Delivery::Cut(150),
        Delivery::CutUnannounced(250),
        Delivery::Stall(100),
        Delivery::Silence,
    ] {
        let server = paged(move |_, n, r| match n {
            0 | 1 => r.delivered(delivery.clone()),
            _ => r,
        });
        assert_eq!(names(&store(&server), "").len(), 10);
        let first_page = |s: &&Seen| s.query("continuation-token").is_none();
        assert_eq!(server.seen().iter().filter(first_page).count(), 1);
        assert_eq!(server.seen().len(), 6);
    }
}

#[test]
fn b2_a_partial_listing_is_an_error() {
    for delivery in [
        Delivery::Reset,
        Delivery::Cut(150),
        Delivery::CutUnannounced(250),
        Delivery::CutUnannounced(0),
        Delivery::Stall(100),
    ] {
        let server = paged(move |_, _, r| r.delivered(delivery.clone()));
        let error = hasty(&server).list(&StorePath::root()).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Transient | ErrorKind::Io),
            "{error}"
        );
    }
    // Every possible place to break off, where nothing announces the length.
    for cut in (0..600).step_by(29) {
        let server = paged(move |_, n, r| match n {
            0 => r.delivered(Delivery::CutUnannounced(cut)),
            _ => r,
        });
        assert_eq!(names(&store(&server), "").len(), 10, "{cut}");
    }
}

#[test]
fn servers_without_list_objects_v2_are_paged_by_version_1() {
    for lists in [Lists::V1, Lists::V1WithoutNextMarker, Lists::V1Only] {
        let mut bucket = Bucket::new("bucket", &[]);
        for n in 0..10 {
            bucket.objects.insert(format!("dir/file+{n} &é"), vec![]);
            bucket.objects.insert(format!("dir/vm{n}/a/b"), vec![]);
            bucket.objects.insert(format!("dir/vm{n}/c"), vec![]);
        }
        bucket.page = 3;
        bucket.lists = lists;
        let sound = bucket.clone();
        let server = FaultServer::start(move |seen| sound.answer(seen));
        let storage = store(&server);
        let mut expected: Vec<String> = (0..10).map(|n| format!("file+{n} &é")).collect();
        expected.extend((0..10).map(|n| format!("vm{n}")));
        for _ in 0..2 {
            assert_eq!(names(&storage, ""), expected, "{lists:?}");
        }
        assert_eq!(names(&storage, "vm7"), ["a", "c"]);
        // It is found out once.
        let asked = server.seen();
        let asked: Vec<bool> = asked.iter().map(Seen::is_list).collect();
        assert!(asked[0] && !asked[1..].contains(&true), "{asked:?}");

        // A page that cannot be had is an error, whatever came before it.
        let count = AtomicUsize::new(0);
        let server = FaultServer::start(move |seen| match seen.query("marker") {
            Some(_) if count.fetch_add(1, Ordering::Relaxed) > 2 => {
                Reply::error(500, "InternalError")
            }
            _ => bucket.answer(seen),
        });
        let error = hasty(&server).list(&StorePath::root()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    }
}

#[test]
fn one_page_of_a_server_without_list_objects_v2_is_taken_as_it_is() {
    let mut bucket = bucket();
    bucket.lists = Lists::V1;
    let server = FaultServer::start(move |seen| bucket.answer(seen));
    let storage = store(&server);
    assert_eq!(
        names(&storage, ""),
        ["block", "empty", "encryption.json", "vm"]
    );
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_server_that_repeats_a_marker_or_lists_nothing_at_all_is_left() {
    let xml = "<ListBucketResult><Marker></Marker><IsTruncated>true</IsTruncated>\
               <NextMarker>dir/a</NextMarker><Contents><Key>dir/a</Key><Size>1</Size></Contents>\
               </ListBucketResult>";
    let server = FaultServer::start(move |_| Reply::new(200, xml));
    let error = store(&server).list(&StorePath::root()).unwrap_err();
    assert!(error.to_string().contains("repeats itself"), "{error}");
    // More, and no name to go on from.
    let xml = "<ListBucketResult><Marker/><IsTruncated>true</IsTruncated></ListBucketResult>";
    let server = FaultServer::start(move |_| Reply::new(200, xml));
    let error = hasty(&server).list(&StorePath::root()).unwrap_err();
    assert!(error.to_string().contains("where to go on"), "{error}");

    let mut bucket = bucket();
    bucket.lists = Lists::Neither;
    let server = FaultServer::start(move |seen| bucket.answer(seen));
    let error = store(&server).list(&StorePath::root()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error
            .to_string()
            .contains("does not implement ListObjects ("),
        "{error}"
    );
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn ceph_truncated_without_a_token_is_an_error() {
    let xml = "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>dir/a</Key>\
               <Size>1</Size></Contents></ListBucketResult>";
    let server = FaultServer::start(move |_| Reply::new(200, xml));
    let error = hasty(&server).list(&StorePath::root()).unwrap_err();
    assert!(error.to_string().contains("where to go on"), "{error}");
}

#[test]
fn ceph_repeated_tokens_are_detected() {
    let xml = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>same\
               </NextContinuationToken><Contents><Key>dir/a</Key><Size>1</Size></Contents>\
               </ListBucketResult>";
    let server = FaultServer::start(move |_| Reply::new(200, xml));
    let error = store(&server).list(&StorePath::root()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("repeats itself"), "{error}");
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn a_listing_of_something_else_is_an_error() {
    for (status, body) in [
        (
            200,
            "<ListBucketResult><Contents><Key>other/a</Key><Size>1</Size></Contents>\
               <IsTruncated>false</IsTruncated></ListBucketResult>",
        ),
        (
            200,
            "<ListBucketResult><Contents><Key>dir/a</Key></Contents></ListBucketResult>",
        ),
        (200, "<html>Welcome to the captive portal</html>"),
        (200, "<Error><Code>InternalError</Code></Error>"),
        (200, ""),
        (204, ""),
    ] {
        let server = FaultServer::start(move |_| Reply::new(status, body));
        let error = hasty(&server).list(&StorePath::root()).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Io | ErrorKind::Transient),
            "{body}: {error}"
        );
    }
}

#[test]
fn answers_that_never_end_do_not_fill_the_memory() {
    let page = vec![b' '; 33 << 20];
    let server = FaultServer::start(move |_| Reply::new(200, page.clone()));
    let error = store(&server).list(&StorePath::root()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("longer than"), "{error}");
    // A length that is a lie.
    let server = faulty(ALWAYS, any, |r| {
        r.header("content-length", "900000000000000")
            .delivered(Delivery::Cut(10))
    });
    let error = hasty(&server)
        .read(&path("block"), u64::MAX, Validity::Ask)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
}

#[test]
fn a_proxys_404_to_a_head_is_not_believed() {
    // The bucket is known to be there; then something else answers in its place.
    let bucket = bucket();
    let server = FaultServer::start(move |seen| match seen.number {
        0 => bucket.answer(seen),
        _ => Reply::new(404, "<html>no such page</html>"),
    });
    let store = hasty(&server);
    read_block(&store).unwrap();
    let error = store.head(&path("block")).unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
}

// --- OVH and all: regions, keys, buckets, permissions -------------------------------------

fn scope_region(seen: &Seen) -> String {
    let authorization = seen.header("authorization").unwrap();
    authorization.split('/').nth(2).unwrap().to_owned()
}

#[test]
fn ovh_a_wrong_region_is_followed_once() {
    type Redirect = fn() -> Reply;
    let redirects: [Redirect; 3] = [
        || Reply::error_with(400, "AuthorizationHeaderMalformed", "<Region>gra</Region>"),
        || Reply::error(301, "PermanentRedirect").header("x-amz-bucket-region", "gra"),
        || Reply::new(400, "").header("x-amz-bucket-region", "gra"),
    ];
    for redirect in redirects {
        let server = faulty(ALWAYS, |s| scope_region(s) != "gra", move |_| redirect());
        let store = store(&server);
        assert!(store.head(&path("block")).is_ok());
        read_block(&store).unwrap();
        assert_eq!(names(&store, "vm"), ["a.json"]);
        let mut regions: Vec<String> = server.seen().iter().map(scope_region).collect();
        assert_eq!(regions[regions.len() - 3..], ["gra", "gra", "gra"]);
        // A HEAD cannot tell of the region: a GET is asked before we move, and then once.
        regions.dedup();
        assert_eq!(regions, ["us-east-1", "gra"]);
    }
}

#[test]
fn servers_that_send_us_in_circles_are_left() {
    let server = FaultServer::start(|seen| {
        let to = if scope_region(seen) == "a" { "b" } else { "a" };
        Reply::error_with(
            400,
            "AuthorizationHeaderMalformed",
            &format!("<Region>{to}</Region>"),
        )
    });
    let error = read_block(&store(&server)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("region"), "{error}");
    assert!(server.seen().len() <= 3);
    let server = FaultServer::start(|_| {
        Reply::error_with(
            301,
            "PermanentRedirect",
            "<Endpoint>b.s3.example</Endpoint>",
        )
    });
    let error = read_block(&store(&server)).unwrap_err();
    assert!(error.to_string().contains("b.s3.example"), "{error}");
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn refusals_say_what_is_wrong_and_are_final() {
    let cases = [
        (403, "InvalidAccessKeyId", ErrorKind::Denied, "access key"),
        (
            403,
            "SignatureDoesNotMatch",
            ErrorKind::Denied,
            "secret key",
        ),
        (403, "AccessDenied", ErrorKind::Denied, "s3:GetObject"),
        (404, "NoSuchBucket", ErrorKind::Invalid, "bucket"),
        (501, "NotImplemented", ErrorKind::Io, "NotImplemented"),
        (400, "InvalidRequest", ErrorKind::Io, "InvalidRequest"),
    ];
    for (status, code, kind, word) in cases {
        let server = faulty(ALWAYS, any, move |_| Reply::error(status, code));
        let error = read_block(&store(&server)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(server.seen().len(), 1);
        no_secrets(&error);
        // A HEAD cannot tell why: a GET is asked, and says the same.
        let error = store(&server).head(&path("block")).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let server = faulty(ALWAYS, any, |_| Reply::error(403, "AccessDenied"));
    let error = store(&server).list(&StorePath::root()).unwrap_err();
    assert!(error.to_string().contains("s3:ListBucket"), "{error}");
}

#[test]
fn a_404_that_is_not_from_s3_is_not_taken_for_a_missing_object() {
    let server = faulty(ALWAYS, any, |_| Reply::new(404, "<html>nginx</html>"));
    let error = hasty(&server)
        .read(&path("encryption.json"), 99, Validity::Ask)
        .unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = hasty(&server).head(&path("encryption.json")).unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = hasty(&server).list(&StorePath::root()).unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn head_without_permission_is_replaced_by_a_get() {
    let server = faulty(ALWAYS, |s| s.method == "HEAD", |_| Reply::new(403, ""));
    let meta = store(&server).head(&path("block")).unwrap();
    assert_eq!(meta.len_bytes, 100_000);
}

#[test]
fn credentials_that_cannot_be_found_are_named() {
    let server = faulty(0, any, |r| r);
    let config = S3Config {
        credentials: S3Credentials::Chain {
            profile: Some("no-such-profile-for-brfs".into()),
        },
        ..config(&server)
    };
    let error = read_block(&S3Store::open(config).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("AWS credentials"), "{error}");
    assert!(server.seen().is_empty());
}

#[test]
fn unsigned_requests_carry_no_credentials() {
    let server = faulty(0, any, |r| r);
    let config = S3Config {
        credentials: S3Credentials::Anonymous,
        ..config(&server)
    };
    let store = S3Store::open(config).unwrap();
    read_block(&store).unwrap();
    assert_eq!(names(&store, "vm"), ["a.json"]);
    assert!(
        server
            .seen()
            .iter()
            .all(|s| s.header("authorization").is_none())
    );
}

// --- Wasabi: 400 without a word, throttling under other names -----------------------------

#[test]
fn wasabi_empty_and_odd_400s_are_tried_again_but_not_for_ever() {
    for body in ["", "<html>oops</html>", "\u{0}\u{1}"] {
        let server = faulty(2, any, move |_| Reply::new(400, body));
        read_block(&store(&server)).unwrap();
    }
    let server = faulty(ALWAYS, any, |_| Reply::new(400, ""));
    let error = read_block(&store(&server)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(server.seen().len(), 7);
}

#[test]
fn wasabi_throttling_comes_as_400_and_429() {
    for fault in [
        Reply::error(400, "RequestLimitExceeded"),
        Reply::error(400, "SlowDown"),
        Reply::new(429, "too many requests"),
        Reply::error(429, "TooManyRequests"),
    ] {
        let server = faulty(2, any, move |_| fault.clone());
        let config = config(&server);
        let stats = config.stats.clone();
        read_block(&S3Store::open(config).unwrap()).unwrap();
        assert_eq!(stats.snapshot().throttled, 2);
    }
}

// --- any provider -------------------------------------------------------------------------

#[test]
fn a_wrong_clock_is_corrected_by_the_servers() {
    let server_time = SystemTime::now() + Duration::from_secs(7 * 3600);
    let date = aws_smithy_types::DateTime::from(server_time);
    let http = date
        .fmt(aws_smithy_types::date_time::Format::HttpDate)
        .unwrap();
    let day_and_hour = |date: &aws_smithy_types::DateTime| {
        let text = date
            .fmt(aws_smithy_types::date_time::Format::DateTime)
            .unwrap();
        text[..13].replace('-', "")
    };
    let expected = day_and_hour(&date);
    let next_hour = day_and_hour(&aws_smithy_types::DateTime::from(
        server_time + Duration::from_secs(60),
    ));
    let sound = move |s: &Seen| {
        let date = s.header("x-amz-date").unwrap();
        date.starts_with(&expected) || date.starts_with(&next_hour)
    };
    let server = faulty(
        ALWAYS,
        move |s| !sound(s),
        move |_| Reply::error(403, "RequestTimeTooSkewed").header("date", &http),
    );
    let store = store(&server);
    read_block(&store).unwrap();
    read_block(&store).unwrap();
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn truncated_bodies_are_never_taken_for_whole_ones() {
    let cuts = [
        Delivery::Cut(0),
        Delivery::Cut(99_999),
        Delivery::Stall(50_000),
    ];
    for delivery in cuts {
        let again = delivery.clone();
        let server = faulty(2, any, move |r| r.delivered(delivery.clone()));
        read_block(&store(&server)).unwrap();
        let server = faulty(ALWAYS, any, move |r| r.delivered(again.clone()));
        let error = read_block(&hasty(&server)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
    }
    // Nothing announces the length: the end cannot be believed, wherever it is.
    for cut in [0, 50_000, 100_000] {
        let server = faulty(ALWAYS, any, move |r| {
            r.delivered(Delivery::CutUnannounced(cut))
        });
        assert!(read_block(&hasty(&server)).is_err());
    }
}

#[test]
fn a_part_in_place_of_the_whole_is_refused() {
    let server = faulty(ALWAYS, any, |_| {
        Reply::new(206, &BLOCK[..10]).header("content-range", "bytes 0-9/100000")
    });
    assert!(read_block(&hasty(&server)).is_err());
}

fn ranged(server: &FaultServer) -> Result<Vec<u8>, Error> {
    let store = hasty(server);
    let file = store.open(&path("block"), None)?;
    let mut buf = vec![0; 1000];
    file.read_exact_at(&mut buf, 500)?;
    Ok(buf)
}

fn is_ranged(seen: &Seen) -> bool {
    seen.header("range").is_some()
}

#[test]
fn a_file_opened_as_listed_is_read_without_asking_and_refused_when_it_was_replaced() {
    let replaced = Arc::new(AtomicUsize::new(0));
    let (old, now) = (bucket(), replaced.clone());
    let mut new = bucket();
    new.objects
        .insert("dir/block".into(), vec![0x43; BLOCK.len()]);
    let server = FaultServer::start(move |seen| match now.load(Ordering::Relaxed) {
        0 => old.answer(seen),
        _ => new.answer(seen),
    });
    let store = store(&server);
    let entries = store.list(&StorePath::root()).unwrap();
    let listed = entries.iter().find(|e| e.name == "block").unwrap().meta;
    let path = StorePath::new("block").unwrap();
    let file = store.open(&path, listed.as_ref()).unwrap();
    let read = || store.read_range(&path, &*file, 500, 1000);
    assert_eq!(read().unwrap(), BLOCK[500..1500]);
    assert!(server.seen().iter().all(|seen| seen.method == "GET"));
    assert_eq!(server.seen().len(), 2);
    replaced.store(1, Ordering::Relaxed);
    assert_eq!(read().unwrap_err().kind(), ErrorKind::Changed);
}

#[test]
fn wrong_content_ranges_are_refused() {
    for wrong in [
        "bytes 0-999/100000",
        "bytes 500-1498/100000",
        "bytes 500-1499/99999",
        "bytes 500-1499/*",
        "bytes 500-1499",
        "rows 500-1499/100000",
        "",
    ] {
        let server = faulty(ALWAYS, is_ranged, move |r| r.header("content-range", wrong));
        assert!(ranged(&server).is_err(), "{wrong}");
        let server = faulty(1, is_ranged, move |r| r.header("content-range", wrong));
        assert_eq!(ranged(&server).unwrap(), BLOCK[500..1500]);
    }
    // Right by its own account, but short.
    let server = faulty(ALWAYS, is_ranged, |mut r| {
        r.body.truncate(999);
        r
    });
    assert!(ranged(&server).is_err());
}

#[test]
fn a_server_that_ignores_range_is_cut_to_size_or_refused() {
    let mut whole = bucket();
    let data: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    whole.objects.insert("dir/block".into(), data.clone());
    let server = FaultServer::start(move |seen| {
        let mut plain = seen.clone();
        plain.headers.retain(|(name, _)| name != "range");
        whole.answer(&plain)
    });
    assert_eq!(ranged(&server).unwrap(), data[500..1500]);
    let server = faulty(ALWAYS, is_ranged, |r| {
        let etag = r.headers.iter().find(|(n, _)| n == "etag").unwrap();
        Reply::new(200, &BLOCK[..5000]).header("etag", &etag.1)
    });
    assert!(ranged(&server).is_err());
}

#[test]
fn an_object_that_changes_between_two_ranges_is_noticed() {
    let server = faulty(ALWAYS, is_ranged, |r| r.header("etag", "\"another\""));
    assert_eq!(ranged(&server).unwrap_err().kind(), ErrorKind::Changed);
    let server = faulty(ALWAYS, is_ranged, |_| Reply::error(404, "NoSuchKey"));
    assert_eq!(ranged(&server).unwrap_err().kind(), ErrorKind::NotFound);
    let server = faulty(ALWAYS, is_ranged, |_| Reply::error(416, "InvalidRange"));
    assert_eq!(ranged(&server).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn an_object_whose_etag_says_nothing_is_told_by_its_time_and_not_pinned() {
    for later in [false, true] {
        let bucket = bucket();
        let server = FaultServer::start(move |seen| {
            let etag = "\"00000000000000000000000000000000-1\"";
            let reply = bucket.answer(seen).header("etag", etag);
            match later && is_ranged(seen) {
                true => reply.header("last-modified", "Fri, 20 Nov 2026 10:00:01 GMT"),
                false => reply,
            }
        });
        let file = hasty(&server).open(&path("block"), None).unwrap();
        assert!(!file.is_pinned());
        let read = file.read_bytes_at(500, 1000).map_err(|e| e.kind());
        match later {
            false => assert_eq!(read.unwrap(), BLOCK[500..1500]),
            true => assert_eq!(read, Err(ErrorKind::Changed)),
        }
    }
}

#[test]
fn connections_that_stall_for_ever_are_left() {
    for delivery in [
        Delivery::Silence,
        Delivery::Stall(0),
        Delivery::Stall(60_000),
    ] {
        let server = faulty(1, any, move |r| r.delivered(delivery.clone()));
        let start = Instant::now();
        read_block(&store(&server)).unwrap();
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(5));
    }
    let server = faulty(ALWAYS, any, |r| r.delivered(Delivery::Silence));
    let error = read_block(&hasty(&server)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("does not answer"), "{error}");
}

#[test]
fn archived_objects_are_named_with_their_class_and_not_tried_again() {
    let server = faulty(ALWAYS, any, |_| {
        Reply::error_with(
            403,
            "InvalidObjectState",
            "<StorageClass>DEEP_ARCHIVE</StorageClass>",
        )
    });
    let error = store(&server)
        .read(&path("vm/a.json"), 99, Validity::Ask)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.object(), Some("vm/a.json"));
    assert!(error.to_string().contains("DEEP_ARCHIVE"), "{error}");
    assert_eq!(server.seen().len(), 1);
}

// --- TLS ----------------------------------------------------------------------------------

fn tls_server() -> FaultServer {
    let bucket = bucket();
    crate::tls_server::start(move |seen| bucket.answer(seen))
}

fn tls_config(server: &FaultServer) -> S3Config {
    S3Config {
        endpoint: Some(format!("https://localhost:{}", server.address.port())),
        ..config(server)
    }
}

#[test]
fn untrusted_certificates_are_refused_at_once_unless_told_otherwise() {
    let server = tls_server();
    let start = Instant::now();
    let store = S3Store::open(tls_config(&server)).unwrap();
    let error = read_block(&store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("--ca-file"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(server.seen().is_empty());

    let config = S3Config {
        allow_unauthorized: true,
        ..tls_config(&server)
    };
    read_block(&S3Store::open(config).unwrap()).unwrap();

    let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/tls/ca.pem");
    let config = S3Config {
        ca_file: Some(ca.into()),
        ..tls_config(&server)
    };
    read_block(&S3Store::open(config).unwrap()).unwrap();
}

#[test]
fn ca_files_that_are_none_are_refused() {
    let server = faulty(0, any, |r| r);
    for file in ["Cargo.toml", "no-such-file"] {
        let file = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let config = S3Config {
            ca_file: Some(file.into()),
            ..config(&server)
        };
        assert_eq!(
            S3Store::open(config).unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }
}

#[test]
fn a_plain_server_on_an_https_url_is_explained() {
    let server = faulty(0, any, |r| r);
    let config = S3Config {
        retry_budget: Duration::from_secs(1),
        ..tls_config(&server)
    };
    let error = read_block(&S3Store::open(config).unwrap()).unwrap_err();
    assert!(error.to_string().contains("s3+http"), "{error}");
}
