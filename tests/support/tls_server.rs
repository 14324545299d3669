//! The misbehaving server behind TLS, with a certificate of an authority of our own.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::fault_server::{FaultServer, Reply, Seen};

pub fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> FaultServer {
    let config = config();
    FaultServer::start_over(script, move |stream| session(&config, stream))
}

/// The server's side of TLS over a connection.
pub fn session(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    let session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    Ok(StreamOwned::new(session, stream))
}

pub fn config() -> Arc<ServerConfig> {
    let certificate = include_bytes!("tls/server.pem");
    let key = include_bytes!("tls/server.key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate).unwrap()],
            PrivateKeyDer::from_pem_slice(key).unwrap(),
        )
        .unwrap();
    Arc::new(config)
}
