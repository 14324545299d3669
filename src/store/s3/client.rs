//! The SDK's client, set up to make single, plain attempts, and what the store's requests share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, ConfigBag, Intercept, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents, StalledStreamProtectionConfig,
};

use super::config::{S3Config, S3Credentials};
use crate::error::Result;
use crate::store::Request;
use crate::store::remote::fault::{Fault, RetryAction};
use crate::store::remote::http::Http;
use crate::store::remote::limit::RequestClass;
use crate::store::remote::retry::{Attempt, RetryPolicy, Transport};
use crate::sync::lock;

/// Everything that requests of one store share.
pub(super) struct Client {
    pub(super) config: S3Config,
    pub(super) transport: Transport,
    builder: Builder,
    connection: Mutex<Arc<Connection>>,
    bucket_seen: AtomicBool,
    lists_v1: AtomicBool,
}

/// One SDK client: they are bound to a region.
pub(super) struct Connection {
    pub(super) sdk: aws_sdk_s3::Client,
    region: String,
}

/// Where requests go that are signed for a region nobody named.
const DEFAULT_REGION: &str = "us-east-1";

impl Client {
    /// Sets the client up. No request is sent, except to find credentials and region where the
    /// usual AWS sources are to be asked (files, environment, instance metadata).
    pub(super) async fn new(config: S3Config) -> Result<Self> {
        let patience = RetryPolicy {
            idle_timeout: config.idle_timeout,
            retry_budget: config.retry_budget,
            first_delay: config.first_delay,
        };
        let transport = Transport::new(
            config.ca_file.as_deref(),
            config.allow_unauthorized,
            patience,
            config.max_parallelism,
            config.stats.clone(),
        )?;
        let (builder, region) = builder(&config, &transport.http).await;
        let connection = connect(&builder, region, config.endpoint.clone());
        Ok(Client {
            config,
            transport,
            builder,
            connection: Mutex::new(Arc::new(connection)),
            bucket_seen: AtomicBool::new(false),
            lists_v1: AtomicBool::new(false),
        })
    }

    pub(super) fn connection(&self) -> Arc<Connection> {
        lock(&self.connection).clone()
    }

    /// Sends a request over the connection of the bucket's region, see [`Transport::run`].
    pub(super) async fn run<T, F, Fut>(
        &self,
        kind: Request,
        lane: RequestClass,
        attempt: F,
    ) -> Result<T>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Attempt<T>>,
    {
        let used = Mutex::new(self.connection());
        let attempt = || {
            let connection = self.connection();
            *lock(&used) = connection.clone();
            attempt(connection)
        };
        let recover = |fault: &Fault| match &fault.next {
            RetryAction::Region(region) => {
                let used = lock(&used);
                self.move_to(&used, region)
            }
            _ => {
                tracing::warn!("{}; using the server's", fault.error.message());
                true
            }
        };
        self.transport.run(kind, lane, attempt, recover).await
    }

    /// Follows a server that names another region, and tells. False when `used` was already
    /// there: then the answer makes no sense.
    fn move_to(&self, used: &Connection, region: &str) -> bool {
        if used.region == region {
            return false;
        }
        let mut connection = lock(&self.connection);
        // Another request may have moved already.
        if connection.region != region {
            tracing::warn!(
                bucket = self.config.bucket,
                from = connection.region,
                to = region,
                "the bucket is in another region than it was said to be; using that one (name it \
                 with #{region} at the end of the URL, or --region)"
            );
            let endpoint = self.config.endpoint.as_deref();
            let endpoint = endpoint.map(|e| endpoint_in(e, &connection.region, region));
            *connection = Arc::new(connect(&self.builder, region.to_owned(), endpoint));
        }
        true
    }

    /// Whether an answer has shown that the bucket exists. Until then, a bare "404" can mean that
    /// the bucket's name is wrong.
    pub(super) fn bucket_was_seen(&self) -> bool {
        self.bucket_seen.load(Ordering::Relaxed)
    }

    /// Whether the server was found not to know `ListObjectsV2`.
    pub(super) fn lists_v1(&self) -> bool {
        self.lists_v1.load(Ordering::Relaxed)
    }

    pub(super) fn set_lists_v1(&self) {
        self.lists_v1.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_bucket_seen(&self) {
        self.bucket_seen.store(true, Ordering::Relaxed);
    }
}

/// Amazon's regional hosts name their region; other servers keep their name.
fn endpoint_in(endpoint: &str, from: &str, to: &str) -> String {
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    if host.ends_with(".amazonaws.com") {
        let _ = from;
        return format!("{scheme}://s3.{to}.amazonaws.com");
    }
    endpoint.to_owned()
}

fn connect(builder: &Builder, region: String, endpoint: Option<String>) -> Connection {
    let mut builder = builder.clone().region(Region::new(region.clone()));
    if endpoint.is_some() {
        builder.set_endpoint_url(endpoint);
    }
    Connection {
        sdk: aws_sdk_s3::Client::from_conf(builder.build()),
        region,
    }
}

async fn builder(config: &S3Config, http: &Http) -> (Builder, String) {
    let version = BehaviorVersion::v2026_01_12();
    let mut region = config.region.clone();
    let mut builder = match &config.credentials {
        S3Credentials::Keys { id, secret } => {
            let keys = Credentials::new(id, secret.expose(), None, None, "brfs");
            Builder::new().credentials_provider(keys)
        }
        S3Credentials::Anonymous => Builder::new().allow_no_auth(),
        S3Credentials::Chain { profile } => {
            let mut loader = aws_config::defaults(version).http_client(http.clone());
            if let Some(profile) = profile {
                loader = loader.profile_name(profile);
            }
            // A server of one's own has no use for a region: do not go looking for one.
            let known = region.clone().or_else(|| {
                let elsewhere = config.endpoint.is_some();
                elsewhere.then(|| DEFAULT_REGION.to_owned())
            });
            if let Some(known) = known {
                loader = loader.region(Region::new(known));
            }
            let shared = loader.load().await;
            region = shared.region().map(|r| r.as_ref().to_owned());
            Builder::from(&shared)
        }
    };
    builder = builder
        .behavior_version(version)
        .http_client(http.clone())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .force_path_style(!config.virtual_hosted_style)
        .disable_s3_express_session_auth(true)
        .interceptor(PlainRequests);
    (builder, region.unwrap_or_else(|| DEFAULT_REGION.to_owned()))
}

/// Takes out of requests, before they are signed, what only AWS's own servers understand.
#[derive(Debug)]
struct PlainRequests;

impl Intercept for PlainRequests {
    fn name(&self) -> &'static str {
        "PlainRequests"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_sdk_s3::error::BoxError> {
        let request = context.request_mut();
        request.headers_mut().remove("x-amz-user-agent");
        // `x-id=GetObject` tells AWS's logs what the method and path already say.
        let uri = request.uri().to_owned();
        if let Some((path, query)) = uri.split_once('?') {
            let kept: Vec<&str> = query
                .split('&')
                .filter(|pair| !pair.starts_with("x-id="))
                .collect();
            let uri = match kept.is_empty() {
                true => path.to_owned(),
                false => format!("{path}?{}", kept.join("&")),
            };
            request.set_uri(uri)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_amazon_hosts_change_with_the_region() {
        let moved = |endpoint| endpoint_in(endpoint, "us-east-1", "eu-west-3");
        assert_eq!(
            moved("https://s3.us-east-1.amazonaws.com"),
            "https://s3.eu-west-3.amazonaws.com"
        );
        assert_eq!(moved("https://s3.gra.ovh.net"), "https://s3.gra.ovh.net");
    }
}
