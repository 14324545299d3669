//! XO's repository URLs, taken apart the way XO does it.
//!
//! `s3://KEY:SECRET@host/bucket/dir?options#region`: key and secret are percent-encoded, the path
//! is not, option values are JSON. Source of the rules: `packages/xo-remote-parser` and
//! `@xen-orchestra/fs` (`s3.js`, `_guessAwsRegion.js`). What XO leaves out of a URL, the usual AWS
//! tools say shorter: `s3://bucket/dir`.

use crate::codec::percent::percent_decode;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

/// An S3 repository's place, with the credentials that its URL may hold. `Debug` hides them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    /// `https://host[:port]`; absent for `s3://bucket/dir`.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// The directory within the bucket: no slash at either end, empty for the bucket itself.
    pub dir: String,
    /// Key id and secret, when the URL holds them.
    pub credentials: Option<(String, Secret)>,
    /// The region after `#`, or the one that the host's name gives away.
    pub region: Option<String>,
    /// `allowUnauthorized` of the options.
    pub allow_unauthorized: bool,
    /// `encryptionKey` of the options.
    pub encryption_key: Option<Secret>,
}

impl S3Location {
    /// Parses what follows `s3://` or `s3+http://`.
    ///
    /// # Errors
    /// `Invalid`, without quoting the text: a malformed URL may have its secret anywhere.
    pub fn parse(scheme: &str, rest: &str) -> Result<Self> {
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let options = UrlOptions::parse(query);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let protocol = if scheme == "s3+http" { "http" } else { "https" };

        let (host, credentials, path) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(host), parse_user(user)?, path.to_owned()),
            // XO always writes credentials; http without a host would mean nothing.
            None if protocol == "http" && !has_odd_port(authority) && !names_a_host(path) => {
                (Some(authority), None, path.to_owned())
            }
            None if authority.contains(':') || names_a_host(path) => {
                return Err(invalid(
                    "the S3 URL has no host, or its secret holds characters that must be \
                     percent-encoded (/ as %2F, + as %2B, @ as %40)",
                ));
            }
            None => (None, None, format!("{authority}/{path}")),
        };
        if let Some(host) = host {
            let plausible = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
            if host.is_empty() || !host.chars().all(plausible) {
                return Err(invalid("the S3 URL has no valid host name"));
            }
        }
        let mut parts = path.split('/').filter(|p| !p.is_empty() && *p != ".");
        let bucket = parts.next().unwrap_or("").to_owned();
        if bucket.is_empty() {
            return Err(invalid(
                "the S3 URL names no bucket: it should look like s3://KEY:SECRET@host/bucket/dir \
                 or s3://bucket/dir",
            ));
        }
        let parts: Vec<&str> = parts.collect();
        if parts.contains(&"..") {
            return Err(invalid("the S3 URL's path holds .."));
        }
        let region = match fragment {
            "" => host.and_then(region_of_host),
            region => Some(region.to_owned()),
        };
        Ok(S3Location {
            endpoint: host.map(|h| format!("{protocol}://{}", h.to_ascii_lowercase())),
            bucket,
            dir: parts.join("/"),
            credentials,
            region,
            allow_unauthorized: options.allow_unauthorized,
            encryption_key: options.encryption_key,
        })
    }
}

/// An Azure repository's place, with the key that its URL may hold. `Debug` hides it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureLocation {
    /// `http[s]://host[:port]`.
    pub endpoint: String,
    /// The storage account.
    pub account: String,
    /// The account's key, or a shared access signature (`sv=…&sig=…`).
    pub credentials: Option<Secret>,
    /// Azurite: the account is in the path, not the host.
    pub account_in_path: bool,
    /// The container.
    pub container: String,
    /// The directory within the container, without slashes at its ends.
    pub dir: String,
    /// `allowUnauthorized` of the options.
    pub allow_unauthorized: bool,
    /// `encryptionKey` of the options.
    pub encryption_key: Option<Secret>,
}

impl AzureLocation {
    /// Parses what follows `azure://`, `azurite://` or `azurite+http://`:
    /// `ACCOUNT:KEY@host/container/dir?options`.
    ///
    /// # Errors
    /// `Invalid`, without quoting the text.
    pub fn parse(scheme: &str, rest: &str) -> Result<Self> {
        // The host, container and options are written as in S3 URLs.
        let like_s3 = match scheme {
            "azurite+http" => "s3+http",
            _ => "s3",
        };
        let wrong = "the Azure URL is malformed: it should look like \
                     azure://ACCOUNT:KEY@ACCOUNT.blob.core.windows.net/container/dir, with the key \
                     percent-encoded";
        let parsed = S3Location::parse(like_s3, rest).map_err(|_| invalid(wrong))?;
        let (Some(endpoint), Some((account, secret))) = (parsed.endpoint, parsed.credentials)
        else {
            return Err(invalid(wrong));
        };
        Ok(AzureLocation {
            endpoint,
            account,
            credentials: (!secret.expose().is_empty()).then_some(secret),
            account_in_path: scheme.starts_with("azurite"),
            container: parsed.bucket,
            dir: parsed.dir,
            allow_unauthorized: parsed.allow_unauthorized,
            encryption_key: parsed.encryption_key,
        })
    }
}

/// Whether what should be `host[:port]` is rather the start of a key and its secret.
fn has_odd_port(authority: &str) -> bool {
    let port = authority
        .rsplit_once(':')
        .filter(|_| !authority.ends_with(']'));
    port.is_some_and(|(_, port)| port.parse::<u16>().is_err())
}

/// Whether the bucket would have an `@`, which buckets cannot have: the rest of a secret does.
fn names_a_host(path: &str) -> bool {
    path.split('/')
        .find(|p| !p.is_empty())
        .is_some_and(|bucket| bucket.contains('@'))
}

/// `s3.eu-west-3.amazonaws.com` names its region, as XO guesses it.
fn region_of_host(host: &str) -> Option<String> {
    let region = host
        .strip_prefix("s3.")?
        .strip_suffix(".amazonaws.com")
        .filter(|r| !r.is_empty() && !r.contains('.'))?;
    Some(region.to_owned())
}

fn parse_user(user: &str) -> Result<Option<(String, Secret)>> {
    if user.is_empty() {
        return Ok(None);
    }
    let (id, secret) = user
        .split_once(':')
        .ok_or_else(|| invalid("the S3 URL has an access key without a secret key"))?;
    let id = percent_decode(id, false);
    let secret = percent_decode(secret, false);
    match (id, secret) {
        (Some(id), Some(secret)) if !id.is_empty() => Ok(Some((id, Secret::new(secret)))),
        _ => Err(invalid(
            "the keys in the S3 URL are not properly percent-encoded",
        )),
    }
}

/// The options that mean something to a reader; XO's others are about writing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UrlOptions {
    pub allow_unauthorized: bool,
    pub encryption_key: Option<Secret>,
}

impl UrlOptions {
    /// Reads `name=JSON&…`. A value that is not JSON counts as text, an empty one as false.
    pub fn parse(query: &str) -> Self {
        let mut options = UrlOptions::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(value) = percent_decode(value, true) else {
                continue;
            };
            match name {
                "allowUnauthorized" => options.allow_unauthorized = value == "true",
                "encryptionKey" => {
                    // XO takes an empty key, and `null`, for none.
                    let text = match serde_json::from_str::<Option<String>>(&value) {
                        Ok(text) => text.unwrap_or_default(),
                        Err(_) => value,
                    };
                    options.encryption_key = (!text.is_empty()).then(|| Secret::new(text));
                }
                _ => {}
            }
        }
        options
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(rest: &str) -> S3Location {
        S3Location::parse("s3", rest).unwrap()
    }

    fn keys(location: &S3Location) -> (&str, &str) {
        let (id, secret) = location.credentials.as_ref().unwrap();
        (id, secret.expose())
    }

    #[test]
    fn xo_urls_give_host_bucket_dir_and_decoded_keys() {
        let l = s3(
            "AKIAS:XSuBupZ0mJlu%2B@s3-us-west-2.amazonaws.com/test-bucket/dir?\
                    allowUnauthorized=false",
        );
        assert_eq!(
            l.endpoint.as_deref(),
            Some("https://s3-us-west-2.amazonaws.com")
        );
        assert_eq!((l.bucket.as_str(), l.dir.as_str()), ("test-bucket", "dir"));
        assert_eq!(keys(&l), ("AKIAS", "XSuBupZ0mJlu+"));
        assert_eq!((l.region, l.allow_unauthorized), (None, false));
    }

    #[test]
    fn every_reserved_character_can_stand_in_a_key() {
        let l = s3("a%40b%2Fc%2Bd%3Ae%3D:e%40d%2Fc%2Bb%3Aa%3Ds%20@h.example/b");
        assert_eq!(keys(&l), ("a@b/c+d:e=", "e@d/c+b:a=s "));
        assert_eq!(l.dir, "");
    }

    #[test]
    fn http_region_and_options() {
        let l = S3Location::parse(
            "s3+http",
            "Administrator:password@192.168.100.225:9000/bucket/dir?compressionType=%22brotli%22\
             &allowUnauthorized=true&encryptionKey=%220123456789abcdef0123456789abcde%2B%22#reg1",
        )
        .unwrap();
        assert_eq!(l.endpoint.as_deref(), Some("http://192.168.100.225:9000"));
        assert_eq!(l.region.as_deref(), Some("reg1"));
        assert!(l.allow_unauthorized);
        let key = l.encryption_key.unwrap();
        assert_eq!(key.expose(), "0123456789abcdef0123456789abcde+");
    }

    #[test]
    fn the_path_is_taken_as_it_is() {
        let l = s3("a:b@h.example/bucket//my dir/é+x%20y/");
        assert_eq!(l.dir, "my dir/é+x%20y");
        assert!(S3Location::parse("s3", "a:b@h.example/bucket/../x").is_err());
    }

    #[test]
    fn regions_are_guessed_from_amazon_hosts_only() {
        let region = |host: &str| s3(&format!("a:b@{host}/bucket")).region;
        assert_eq!(
            region("s3.eu-west-3.amazonaws.com").as_deref(),
            Some("eu-west-3")
        );
        assert_eq!(region("s3.gra.io.cloud.ovh.net"), None);
        assert_eq!(
            s3("a:b@s3.eu-west-3.amazonaws.com/b#x").region.unwrap(),
            "x"
        );
        assert_eq!(s3("a:b@h.example/b#").region, None);
    }

    #[test]
    fn plain_bucket_urls_leave_the_rest_to_the_aws_configuration() {
        let l = s3("bucket/some/dir");
        assert_eq!(
            (
                l.endpoint,
                l.credentials,
                l.region,
                l.bucket.as_str(),
                l.dir.as_str()
            ),
            (None, None, None, "bucket", "some/dir")
        );
    }

    #[test]
    fn azure_urls_name_account_key_and_container() {
        let rest = "name:%2Fkey%3D%3D@name.blob.core.windows.net/xodev/new folder/bob";
        let l = AzureLocation::parse("azure", rest).unwrap();
        assert_eq!(l.endpoint, "https://name.blob.core.windows.net");
        assert_eq!(
            (l.container.as_str(), l.dir.as_str()),
            ("xodev", "new folder/bob")
        );
        assert_eq!((l.account.as_str(), l.account_in_path), ("name", false));
        assert_eq!(l.credentials.unwrap().expose(), "/key==");
        let l = AzureLocation::parse("azurite+http", "dev:k@127.0.0.1:10000/c").unwrap();
        assert_eq!(l.endpoint, "http://127.0.0.1:10000");
        assert!(l.account_in_path);
        assert!(AzureLocation::parse("azure", "container/dir").is_err());
    }

    #[test]
    fn malformed_urls_are_refused_without_quoting_their_secrets() {
        for bad in [
            "AKIA:sec/ret@host/bucket",
            "AKIA:secret@/bucket",
            "AKIA:secret@host",
            "AKIA:secret@host/",
            "secret@host/bucket",
            "AKIA:secret%2@host/bucket",
            "AKIA:secret@ho st/bucket",
            "",
        ] {
            let error = S3Location::parse("s3", bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(!format!("{error:?}").contains("secret@"), "{error}");
            assert!(!format!("{error:?}").contains("sec/ret"), "{error}");
        }
    }

    #[test]
    fn a_slash_in_a_secret_gets_its_hint_over_http_too() {
        for bad in [
            "AKIA:sec/ret@host/bucket",
            "AKIA:12/ret@host:9000/bucket",
            "AKIA:se/cr/et@host/bucket",
        ] {
            for scheme in ["s3", "s3+http"] {
                let error = S3Location::parse(scheme, bad).unwrap_err();
                assert!(
                    error.message().contains("/ as %2F"),
                    "{scheme} {bad}: {error}"
                );
            }
        }
        for sound in [
            "host:9000/bucket/a@b",
            "[::1]:9000/bucket",
            "[::1]/bucket",
            "host/bucket",
        ] {
            let location = S3Location::parse("s3+http", sound).unwrap();
            assert_eq!(location.bucket, "bucket", "{sound}");
        }
    }

    #[test]
    fn an_empty_encryption_key_is_none() {
        let key = |query: &str| {
            let key = s3(&format!("a:b@h.example/bucket?{query}")).encryption_key;
            key.map(|key| key.expose().to_owned())
        };
        for none in [
            "encryptionKey=%22%22",
            "encryptionKey=null",
            "encryptionKey=",
            "encryptionKey",
            "",
        ] {
            assert_eq!(key(none), None, "{none}");
        }
        assert_eq!(
            key("encryptionKey=%22nullnull%22").as_deref(),
            Some("nullnull")
        );
        assert_eq!(key("encryptionKey=plain").as_deref(), Some("plain"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let l = s3("AKIA:sesame@h.example/b?encryptionKey=%22opensesame%22");
        assert!(!format!("{l:?}").contains("sesame"));
    }
}
