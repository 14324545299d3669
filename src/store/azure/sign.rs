//! Azure's Shared Key signatures: an HMAC over the request's method, headers and resource.

use aws_lc_rs::hmac;
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
        format!("SharedKey {account}:{}", encode(tag.as_ref()))
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(data: &[u8]) -> String {
    let mut text = String::new();
    for chunk in data.chunks(3) {
        let at = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for n in 0..4 {
            let index = (bits >> (18 - 6 * n)) & 63;
            text.push(match n <= chunk.len() {
                true => char::from(ALPHABET[index as usize]),
                false => '=',
            });
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=');
    let mut data = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.as_bytes().chunks(4) {
        if chunk.len() == 1 {
            return None;
        }
        let mut bits = 0u32;
        for n in 0..4 {
            let digit = match chunk.get(n) {
                Some(byte) => ALPHABET.iter().position(|a| a == byte)?,
                None => 0,
            };
            bits = bits << 6 | digit as u32;
        }
        data.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    Some(data)
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
            assert_eq!(encode(plain.as_bytes()), text);
            assert_eq!(decode(text).unwrap(), plain.as_bytes());
        }
        assert!(decode("Z").is_none() && decode("Zg!=").is_none());
        assert!(!format!("{:?}", SigningKey::new("c2VjcmV0").unwrap()).contains("secret"));
    }
}
