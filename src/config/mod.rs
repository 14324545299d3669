//! Where a repository is, as a person says it: a path or one of XO's repository URLs.

mod options;
mod url;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use options::StoreOptions;
pub use url::{AzureLocation, S3Location};

use crate::codec::aead::Key;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{CachedStore, CountingStore, LocalStore, Store};

/// A parsed repository location. `Debug` and `Display` never show secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A local directory, or a bare `.vhd` / `.alias.vhd` file.
    Local(PathBuf),
    /// A bucket, or a directory in one.
    S3(Box<S3Location>),
    /// An Azure Blob container, or a directory in one.
    Azure(Box<AzureLocation>),
}

impl Location {
    /// Parses a plain path, `file://…`, or another URL that XO knows. A key among the options of
    /// a `file://` URL is dropped; [`Location::parse_with_key`] returns it.
    ///
    /// # Errors
    /// `Invalid` for malformed URLs, `Unsupported` for shares that the system must mount first.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with_key(text).map(|(location, _)| location)
    }

    /// Like [`Location::parse`], with the encryption key that XO keeps in a repository's URL.
    ///
    /// # Errors
    /// As `parse`; `WrongKey` when the key is not 32 bytes long.
    pub fn parse_with_key(text: &str) -> Result<(Self, Option<Key>)> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok((Location::Local(PathBuf::from(text)), None));
        };
        // Schemes are the same in upper case.
        let lower = scheme.to_ascii_lowercase();
        let (location, key) = match lower.as_str() {
            "file" => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                // XO's first version forgot the leading slash; its parser still puts it back.
                let path = format!("/{}", path.trim_start_matches('/'));
                let key = url::UrlOptions::parse(query).encryption_key;
                (Location::Local(PathBuf::from(path)), key)
            }
            "s3" | "s3+http" => {
                let location = S3Location::parse(&lower, rest)?;
                let key = location.encryption_key.clone();
                (Location::S3(Box::new(location)), key)
            }
            "azure" | "azurite" | "azurite+http" => {
                let location = AzureLocation::parse(&lower, rest)?;
                let key = location.encryption_key.clone();
                (Location::Azure(Box::new(location)), key)
            }
            "nfs" | "smb" => {
                let message = format!(
                    "brfs does not mount {scheme}:// shares itself: mount the share first, then \
                     give its directory"
                );
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            // A path may hold "://" too; a scheme looks like one.
            _ if scheme.is_empty() || !scheme.bytes().all(is_scheme_byte) => {
                return Ok((Location::Local(PathBuf::from(text)), None));
            }
            _ => {
                let message = format!("{scheme}:// repositories are not supported");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        };
        let key = key.map(|k| Key::new(k.expose())).transpose()?;
        Ok((location, key))
    }

    /// Opens the repository's storage, decrypted where it is encrypted. For S3 this starts the
    /// threads that talk to the server: do it after any `fork`.
    ///
    /// # Errors
    /// Whatever keeps the storage from being reached.
    pub fn open(&self, options: &StoreOptions) -> Result<Arc<dyn Store>> {
        let store = self.connect(options)?;
        Ok(match &options.disk_cache {
            // Below decryption, so that it never holds what is encrypted elsewhere in clear.
            Some(cache) if store.traits().remote => {
                Arc::new(CachedStore::new(store, cache, options.stats.clone())?)
            }
            _ => store,
        })
    }

    /// Opens the storage as it is, encrypted or not.
    ///
    /// # Errors
    /// Whatever keeps the storage from being reached.
    pub fn connect(&self, options: &StoreOptions) -> Result<Arc<dyn Store>> {
        match self {
            Location::Local(path) => {
                let store = Arc::new(LocalStore::open(path)?);
                Ok(Arc::new(CountingStore::new(store, options.stats.clone())))
            }
            Location::S3(location) => connect_s3(location, options),
            Location::Azure(location) => connect_azure(location, options),
        }
    }
}

fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
}

#[cfg(not(feature = "s3"))]
fn connect_s3(_: &S3Location, _: &StoreOptions) -> Result<Arc<dyn Store>> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "this brfs was built without S3 support",
    ))
}

#[cfg(not(feature = "s3"))]
fn connect_azure(_: &AzureLocation, _: &StoreOptions) -> Result<Arc<dyn Store>> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "this brfs was built without Azure support",
    ))
}

#[cfg(feature = "s3")]
fn connect_azure(location: &AzureLocation, options: &StoreOptions) -> Result<Arc<dyn Store>> {
    use std::time::Duration;

    use crate::store::azure::{AzureConfig, AzureCredentials, AzureStore};

    let credentials = match &location.credentials {
        Some(secret) if !options.no_sign_request => match secret.expose().contains("sig=") {
            true => AzureCredentials::Sas(secret.clone()),
            false => AzureCredentials::Key(secret.clone()),
        },
        _ => AzureCredentials::Anonymous,
    };
    let endpoint = options.endpoint_url.as_ref();
    let config = AzureConfig {
        endpoint: endpoint.unwrap_or(&location.endpoint).clone(),
        account: location.account.clone(),
        account_in_path: location.account_in_path,
        credentials,
        container: location.container.clone(),
        dir: location.dir.clone(),
        ca_file: options.ca_file.clone(),
        allow_unauthorized: options.allow_unauthorized || location.allow_unauthorized,
        idle_timeout: options.idle_timeout,
        retry_budget: options.retry_budget,
        first_delay: Duration::from_millis(200),
        max_parallelism: options.max_parallelism,
        stats: options.stats.clone(),
    };
    Ok(Arc::new(AzureStore::open(config)?))
}

#[cfg(feature = "s3")]
fn connect_s3(location: &S3Location, options: &StoreOptions) -> Result<Arc<dyn Store>> {
    use std::time::Duration;

    use crate::store::s3::{S3Config, S3Credentials, S3Store};

    let credentials = match &location.credentials {
        _ if options.no_sign_request => S3Credentials::Anonymous,
        Some((id, secret)) if options.profile.is_none() => S3Credentials::Keys {
            id: id.clone(),
            secret: secret.clone(),
        },
        _ => S3Credentials::Chain {
            profile: options.profile.clone(),
        },
    };
    let config = S3Config {
        endpoint: options
            .endpoint_url
            .clone()
            .or_else(|| location.endpoint.clone()),
        region: options.region.clone().or_else(|| location.region.clone()),
        bucket: location.bucket.clone(),
        dir: location.dir.clone(),
        credentials,
        virtual_hosted_style: options.virtual_hosted_style,
        ca_file: options.ca_file.clone(),
        allow_unauthorized: options.allow_unauthorized || location.allow_unauthorized,
        idle_timeout: options.idle_timeout,
        retry_budget: options.retry_budget,
        first_delay: Duration::from_millis(200),
        max_parallelism: options.max_parallelism,
        stats: options.stats.clone(),
    };
    Ok(Arc::new(S3Store::open(config)?))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Local(path) => path.display().fmt(f),
            Location::S3(s3) => {
                let endpoint = s3.endpoint.as_deref().unwrap_or("");
                let (scheme, host) = match endpoint.split_once("://") {
                    Some(("http", host)) => ("s3+http", format!("{host}/")),
                    Some((_, host)) => ("s3", format!("{host}/")),
                    None => ("s3", String::new()),
                };
                write!(f, "{scheme}://{host}{}", s3.bucket)?;
                if !s3.dir.is_empty() {
                    write!(f, "/{}", s3.dir)?;
                }
                Ok(())
            }
            Location::Azure(azure) => {
                let (scheme, host) = match azure.endpoint.split_once("://") {
                    Some(("http", host)) => ("azurite+http", host),
                    Some((_, host)) if azure.account_in_path => ("azurite", host),
                    Some((_, host)) => ("azure", host),
                    None => ("azure", ""),
                };
                write!(f, "{scheme}://{host}/{}", azure.container)?;
                if !azure.dir.is_empty() {
                    write!(f, "/{}", azure.dir)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_urls_and_paths_are_local() {
        let local = |text| match Location::parse(text).unwrap() {
            Location::Local(path) => path.to_str().unwrap().to_owned(),
            other => panic!("{other}"),
        };
        assert_eq!(local("file:///srv/br?useVhdDirectory=true"), "/srv/br");
        assert_eq!(local("file://srv/br"), "/srv/br");
        assert_eq!(local("relative/dir"), "relative/dir");
        assert_eq!(local("odd dir/a://b"), "odd dir/a://b");
    }

    #[test]
    fn keys_in_urls_are_found_and_checked() {
        let url = "file:///srv/br?encryptionKey=%220123456789abcdef0123456789abcdef%22";
        let (location, key) = Location::parse_with_key(url).unwrap();
        assert_eq!(location.to_string(), "/srv/br");
        assert!(key.is_some());
        let error = Location::parse_with_key("file:///x?encryptionKey=%22short%22").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert!(!error.to_string().contains("short"));
    }

    #[test]
    fn shown_without_secrets() {
        let url = "s3+http://AKIA:sesame@h.example:9000/bucket/dir?encryptionKey=%22\
                   0123456789abcdef0123456789abcdef%22#r";
        let location = Location::parse(url).unwrap();
        assert_eq!(location.to_string(), "s3+http://h.example:9000/bucket/dir");
        for text in [format!("{location:?}"), location.to_string()] {
            assert!(!text.contains("sesame") && !text.contains("0123456789abcdef"));
        }
        let plain = Location::parse("s3://bucket").unwrap();
        assert_eq!(plain.to_string(), "s3://bucket");
    }

    #[test]
    fn schemes_may_be_in_upper_case() {
        for (text, shown) in [
            ("S3+HTTP://a:b@h.example/c", "s3+http://h.example/c"),
            ("S3://a:b@h.example/c", "s3://h.example/c"),
            (
                "Azurite+HTTP://a:b@h.example/c",
                "azurite+http://h.example/c",
            ),
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), shown);
        }
        let file = Location::parse("FILE:///srv/br").unwrap();
        assert_eq!(file, Location::Local("/srv/br".into()));
    }

    #[test]
    fn unmountable_and_unknown_schemes_say_what_to_do() {
        let error = Location::parse("nfs://10.0.0.1:/srv").unwrap_err();
        assert!(error.to_string().contains("mount the share first"));
        let error = Location::parse("ftp://host/dir").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
