//! Objects: their state, their content, ranges of it.

use std::time::Instant;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::client::result::SdkError;
use bytes::Bytes;

use super::client::{Client, Connection};
use super::fault::Operation;
use crate::error::{ErrorKind, Result};
use crate::store::remote::fault::Fault;
use crate::store::remote::limit::RequestClass;
use crate::store::remote::object::{ResponseHeaders, length, meta, take_range, take_whole};
use crate::store::remote::retry::Attempt;
use crate::store::{Meta, Request};

impl Client {
    /// The state of an object.
    pub(super) async fn head_object(&self, key: &str) -> Result<Meta> {
        self.run(
            Request::Head,
            RequestClass::Names,
            |connection| async move {
                match self.try_head(&connection, key).await {
                    Err(fault) if self.needs_explanation(&fault) => {
                        self.explain(&connection, key, fault).await
                    }
                    other => other,
                }
            },
        )
        .await
    }

    async fn try_head(&self, connection: &Connection, key: &str) -> Attempt<Meta> {
        let request = connection.sdk.head_object();
        let request = request.bucket(&self.config.bucket).key(key);
        let output = request
            .send()
            .await
            .map_err(|e| Fault::of(Operation::Head, e))?;
        self.set_bucket_seen();
        let len = length(output.content_length())?;
        Ok((meta(len, output.e_tag(), output.last_modified()), 0))
    }

    /// Answers to HEAD have no body, so that errors come without a code: "404" can mean that the
    /// key or that the bucket is not there (or that a proxy has no idea), "400" and "403" can mean
    /// nearly anything.
    fn needs_explanation(&self, fault: &Fault) -> bool {
        let settled =
            fault.error.kind() == ErrorKind::NotFound && fault.from_s3 && self.bucket_was_seen();
        fault.unexplained && !settled
    }

    /// Asks for the first byte instead, which either tells what is wrong or is as good as a HEAD.
    async fn explain(&self, connection: &Connection, key: &str, unclear: Fault) -> Attempt<Meta> {
        let started = Instant::now();
        let result = self.try_range(connection, key, 0, 1, None).await;
        let stats = &self.config.stats;
        stats.record(Request::GetRange, 0, started.elapsed(), result.is_ok());
        match result {
            Ok(((_, meta), _)) => Ok((meta, 0)),
            // An empty object has no first byte.
            Err(fault) if fault.error.kind() == ErrorKind::Corrupt => Err(unclear),
            Err(fault) => Err(fault),
        }
    }

    /// A whole object of at most `max_len` bytes.
    pub(super) async fn get_object(&self, key: &str, max_len: u64) -> Result<(Bytes, Meta)> {
        self.run(Request::Get, RequestClass::Data, |connection| async move {
            let output = self.send_get(&connection, key, None).await?;
            let (told, body) = told(output);
            take_whole(told, body, max_len).await
        })
        .await
    }

    /// The bytes `start..start + len` of the object that was opened as `opened`.
    pub(super) async fn get_range(
        &self,
        key: &str,
        start: u64,
        len: u64,
        opened: Meta,
    ) -> Result<Bytes> {
        let ranged = |connection| async move {
            let connection: std::sync::Arc<Connection> = connection;
            let (found, bytes) = self
                .try_range(&connection, key, start, len, Some(opened))
                .await?;
            Ok((found.0, bytes))
        };
        self.run(Request::GetRange, RequestClass::Data, ranged)
            .await
    }

    async fn try_range(
        &self,
        connection: &Connection,
        key: &str,
        start: u64,
        len: u64,
        opened: Option<Meta>,
    ) -> Attempt<(Bytes, Meta)> {
        let range = format!("bytes={start}-{}", start + len - 1);
        let output = self.send_get(connection, key, Some(range)).await?;
        let (told, body) = told(output);
        take_range(told, body, start, len, opened).await
    }

    async fn send_get(
        &self,
        connection: &Connection,
        key: &str,
        range: Option<String>,
    ) -> Result<GetObjectOutput, Fault> {
        let request = connection.sdk.get_object();
        let request = request.bucket(&self.config.bucket).key(key);
        match request.set_range(range).send().await {
            Ok(output) => {
                self.set_bucket_seen();
                Ok(output)
            }
            Err(error) => {
                let no_key =
                    matches!(&error, SdkError::ServiceError(e) if e.err().is_no_such_key());
                if no_key {
                    self.set_bucket_seen();
                }
                Err(Fault::of(Operation::Get, error))
            }
        }
    }
}

fn told(output: GetObjectOutput) -> (ResponseHeaders, ByteStream) {
    let told = ResponseHeaders {
        length: output.content_length,
        content_range: output.content_range,
        etag: output.e_tag,
        modified: output.last_modified,
    };
    (told, output.body)
}
