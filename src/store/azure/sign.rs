//! Azure's Shared Key signatures: an HMAC over the request's method, headers and resource.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// An account's key, ready to sign. `Debug` is aws-lc's, which shows the algorithm only.
#[derive(Debug)]
pub(super) struct SigningKey(hmac::Key);

impl SigningKey {
    /// # Errors
    /// `Invalid` when the key is not base64.
    pub(super) fn new(base64: &str) -> Result<Self> {
        let key = decode(base64).map(Zeroizing::new).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "the Azure account's key is not base64")
        })?;
        Ok(SigningKey(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The `Authorization` header of a GET or HEAD without a body.
    ///
    /// `path` is the one of the URL, encoded; `query` is decoded and sorted by name; `headers`
    /// are those that start with `x-ms-`, sorted by name.
    pub(super) fn authorization(
        &self,
        account: &str,
        method: &str,
        range: Option<&str>,
        headers: &[(&str, &str)],
        path: &str,
        query: &[(&str, &str)],
    ) -> String {
        // Between method and range: encoding, language, length, MD5, type, date and the four
        // conditions, none of which is ever sent.
        let range = range.unwrap_or("");
        let mut text = format!("{method}{}{range}\n", "\n".repeat(11));
        for (name, value) in headers {
            text.push_str(&format!("{name}:{value}\n"));
        }
        text.push_str(&format!("/{account}{path}"));
        for (name, value) in query {
            text.push_str(&format!("\n{name}:{value}"));
        }
        let tag = hmac::sign(&self.0, text.as_bytes());
        format!("SharedKey {account}:{}", BASE64.encode(tag))
    }
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// As people paste it: with or without `=` at the end.
fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.trim().trim_end_matches('=')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{7ff}\u{7fe}>?", "37/fvj4/"),
        ] {
            assert_eq!(BASE64.encode(plain), text);
            assert_eq!(decode(text).unwrap(), plain.as_bytes());
        }
        assert!(decode("Z").is_none() && decode("Zg!=").is_none());
        for pasted in ["Zg", " Zg==\n", "Zg=", "Zh=="] {
            assert_eq!(decode(pasted).unwrap(), b"f", "{pasted:?}");
        }
        assert!(!format!("{:?}", SigningKey::new("c2VjcmV0").unwrap()).contains("secret"));
    }
}
