//! The proxies of the environment: asked for `http://` servers, tunnelled through for `https://` ones,
//! left alone where `NO_PROXY` says so. The servers' names are known to nobody but the proxies.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use crate::fault_server::{Bucket, FaultServer, Reply, Seen};

/// `name:p@ss`
const AUTH: &str = "Basic bmFtZTpwQHNz";

fn bucket() -> Bucket {
    Bucket::new("bucket", &[("dir/xo-vm-backups/x/readme", b"x")])
}

/// `brfs ls` with these variables in its environment and no others.
fn ls(url: &str, variables: &[(&str, String)], flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brfs"));
    command.env_clear().arg("ls").arg(url).args(flags);
    command.args(["--retry-budget", "3"]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A proxy for `http://storage.test:9000`, which is the bucket itself.
fn proxy(auth: Option<&'static str>) -> FaultServer {
    let bucket = bucket();
    FaultServer::start(move |seen| {
        if auth.is_some() && seen.header("proxy-authorization") != auth {
            return Reply::new(407, "who are you?");
        }
        let Some(target) = seen.target.strip_prefix("http://storage.test:9000") else {
            return Reply::new(400, "this is a proxy");
        };
        let target = target.to_owned();
        bucket.answer(&Seen {
            target,
            ..seen.clone()
        })
    })
}

#[test]
fn plain_servers_are_asked_of_the_proxy() {
    let url = "s3+http://AKIA:sesame@storage.test:9000/bucket/dir#us-east-1";
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let proxy = proxy(None);
        let output = ls(url, &[(name, format!("http://{}", proxy.address))], &[]);
        assert!(output.status.success(), "{name}: {}", said(&output));
        // Signed for the server, not for the proxy.
        let seen = proxy.seen();
        assert!(
            seen.iter()
                .all(|s| s.header("host") == Some("storage.test:9000"))
        );
    }
    let proxy = proxy(Some(AUTH));
    let with_password = format!("http://name:p%40ss@{}", proxy.address);
    let output = ls(url, &[("HTTP_PROXY", with_password)], &[]);
    assert!(output.status.success(), "{}", said(&output));
    let without = format!("http://{}", proxy.address);
    let output = ls(url, &[("HTTP_PROXY", without)], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("asks for a name and password"),
        "{}",
        said(&output)
    );
}

#[test]
fn azure_goes_the_same_way() {
    let proxy = FaultServer::start(|_| Reply::error(403, "AuthenticationFailed"));
    let key = "Zm9yIHRlc3Rz";
    let url = format!("azurite+http://account:{key}@storage.test:10000/container/dir");
    let output = ls(
        &url,
        &[("HTTP_PROXY", format!("http://{}", proxy.address))],
        &[],
    );
    assert!(
        said(&output).contains("AuthenticationFailed"),
        "{}",
        said(&output)
    );
    let target = &proxy.seen()[0].target;
    assert!(
        target.starts_with("http://storage.test:10000/account/container?"),
        "{target}"
    );
}

/// A proxy that connects whoever asks by CONNECT to one server; keeps what it was asked.
fn tunnel(to: SocketAddr, auth: Option<&'static str>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    // Ends with the process.
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let log = log.clone();
            std::thread::spawn(move || connect(client, to, auth, &log));
        }
    });
    (address, asked)
}

fn connect(
    client: TcpStream,
    to: SocketAddr,
    auth: Option<&str>,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    log.lock().unwrap().push(head.clone());
    let mut client = client;
    if auth.is_some_and(|auth| !head.contains(auth)) {
        client.write_all(b"HTTP/1.1 407 Who are you\r\n\r\n").ok()?;
        return None;
    }
    let server = TcpStream::connect(to).ok()?;
    client
        .write_all(b"HTTP/1.1 200 Here you are\r\n\r\n")
        .ok()?;
    let (mut from_server, mut to_client) = (server.try_clone().ok()?, client);
    std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
    std::io::copy(&mut reader, &mut &server).ok()?;
    server.shutdown(std::net::Shutdown::Write).ok()
}

#[test]
fn tls_servers_are_tunnelled_to() {
    let bucket = bucket();
    let server = crate::tls_server::start(move |seen| bucket.answer(seen));
    let url = "s3://AKIA:sesame@storage.test:9443/bucket/dir#us-east-1";
    let (proxy, asked) = tunnel(server.address, Some(AUTH));
    let with_password = format!("http://name:p%40ss@{proxy}");
    let output = ls(
        url,
        &[("HTTPS_PROXY", with_password)],
        &["--allow-unauthorized"],
    );
    assert!(output.status.success(), "{}", said(&output));
    let asked = asked.lock().unwrap().clone();
    assert!(
        asked[0].starts_with("CONNECT storage.test:9443 HTTP/1.1\r\n"),
        "{asked:?}"
    );
    // The proxy sees names and ports, nothing else; the server does not hear of the proxy.
    assert!(
        server
            .seen()
            .iter()
            .all(|s| s.header("proxy-authorization").is_none())
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|s| s.target.starts_with("/bucket"))
    );

    let without = format!("http://{proxy}");
    let output = ls(url, &[("HTTPS_PROXY", without)], &[]);
    let said = said(&output);
    assert!(
        said.contains(&proxy.to_string()) && said.contains("name and password"),
        "{said}"
    );
    // A certificate is checked through a tunnel as it is without one.
    let (proxy, _) = tunnel(server.address, None);
    let output = ls(url, &[("HTTPS_PROXY", format!("http://{proxy}"))], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("certificate is not trusted"), "{said}");
}

#[test]
fn what_is_near_or_excepted_is_reached_without() {
    let bucket = bucket();
    let server = FaultServer::start(move |seen| bucket.answer(seen));
    let proxy = FaultServer::start(|_| Reply::new(400, "no"));
    let at_proxy = ("HTTP_PROXY", format!("http://{}", proxy.address));
    let url = format!(
        "s3+http://AKIA:sesame@{}/bucket/dir#us-east-1",
        server.address
    );
    let output = ls(&url, std::slice::from_ref(&at_proxy), &[]);
    assert!(output.status.success(), "{}", said(&output));
    for excepted in ["storage.test", ".test", "a.example, storage.test", "*"] {
        let url = "s3+http://AKIA:sesame@storage.test:1/bucket/dir#us-east-1";
        let output = ls(url, &[at_proxy.clone(), ("NO_PROXY", excepted.into())], &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(!said(&output).contains("proxy"), "{}", said(&output));
    }
    assert_eq!(proxy.seen().len(), 0);
}

#[test]
fn a_proxy_that_cannot_help_is_named_without_its_password() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (scheme, variable, proxy) in [
        ("s3", "HTTPS_PROXY", format!("http://name:sesame@{gone}")),
        (
            "s3+http",
            "HTTP_PROXY",
            format!("http://name:sesame@{gone}"),
        ),
        ("s3", "HTTPS_PROXY", format!("socks5://name:sesame@{gone}")),
    ] {
        let url = format!("{scheme}://AKIA:x@storage.test:9/bucket/dir#us-east-1");
        let output = ls(&url, &[(variable, proxy)], &["-vv"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("proxy") && said.contains(&gone.to_string()),
            "{said}"
        );
        assert!(!said.contains("sesame"), "{said}");
    }
}
