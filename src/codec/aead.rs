//! Opening one encrypted part: `iv | ciphertext | tag`, as XO's encryptors write it.
//!
//! XO encrypts every file by itself with the repository's one key and a random iv, without
//! associated data: a part proves that somebody who holds the key wrote it, not that it belongs
//! under the name it was found under. `@xen-orchestra/fs`, `src/_encryptor.js`:
//!
//! | algorithm | iv | tag | since |
//! | --- | --- | --- | --- |
//! | `chacha20-poly1305` | 12 | 16 | 2025 |
//! | `aes-256-gcm` | 12 | 16 | late 2022 |
//! | `aes-256-cbc` | 16 | none, PKCS#7 padding | mid 2022 only |
//!
//! aws-lc-rs does all three: it is the provider that TLS to the object stores uses as well.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    self, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use bytes::{Bytes, BytesMut};
use zeroize::{Zeroize, Zeroizing};

use crate::buffers::Buffer;
use crate::error::{Error, ErrorKind, Result};

const KEY_LEN: usize = 32;
const AEAD_IV_LEN: usize = 12;
const AEAD_TAG_LEN: usize = 16;
const CBC_BLOCK_LEN: usize = 16;

/// A repository's encryption key: the 32 bytes of the string typed into XO. Wiped when dropped,
/// never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; KEY_LEN]>);

impl Key {
    /// Takes the key string as it is (the caller trims what its source adds, such as a newline).
    ///
    /// # Errors
    /// `WrongKey` unless it is exactly 32 bytes long, which XO insists on too.
    pub fn new(text: &str) -> Result<Self> {
        let mut bytes = [0; KEY_LEN];
        if text.len() != KEY_LEN {
            return Err(Error::new(
                ErrorKind::WrongKey,
                format!(
                    "the encryption key is {} bytes long; Xen Orchestra's keys are exactly \
                     {KEY_LEN} characters",
                    text.len()
                ),
            ));
        }
        bytes.copy_from_slice(text.as_bytes());
        let key = Key(Zeroizing::new(bytes));
        bytes.zeroize();
        Ok(key)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What `encryption.json` can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Parts are stored in clear.
    None,
    /// XO's default since 2025.
    ChaCha20Poly1305,
    /// XO's default from late 2022 to 2025.
    Aes256Gcm,
    /// A few weeks of 2022. It has no tag, so that changed bytes cannot be told from sound ones.
    Aes256Cbc,
}

impl Algorithm {
    /// The algorithm of that name in `encryption.json`.
    ///
    /// # Errors
    /// `Unsupported` for names that no version of XO is known to have written.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Algorithm::None),
            "chacha20-poly1305" => Ok(Algorithm::ChaCha20Poly1305),
            "aes-256-gcm" => Ok(Algorithm::Aes256Gcm),
            "aes-256-cbc" => Ok(Algorithm::Aes256Cbc),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the repository is encrypted with {other:?}, which this version cannot read"
                ),
            )),
        }
    }

    /// The name as `encryption.json` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::None => "none",
            Algorithm::ChaCha20Poly1305 => "chacha20-poly1305",
            Algorithm::Aes256Gcm => "aes-256-gcm",
            Algorithm::Aes256Cbc => "aes-256-cbc",
        }
    }

    /// How many bytes a stored part can be longer than its content, at most.
    pub fn max_overhead(self) -> u64 {
        let bytes = match self {
            Algorithm::None => 0,
            Algorithm::ChaCha20Poly1305 | Algorithm::Aes256Gcm => AEAD_IV_LEN + AEAD_TAG_LEN,
            Algorithm::Aes256Cbc => 2 * CBC_BLOCK_LEN,
        };
        bytes as u64
    }

    /// The length of the content of a stored part of `stored` bytes: exact, except for CBC, whose
    /// padding shows only after decryption (there it is the most that it can be). A part too
    /// short to be one counts as empty; opening it fails.
    pub fn content_len(self, stored: u64) -> u64 {
        stored.saturating_sub(self.least_overhead())
    }

    /// The stored length that [`Self::content_len`] was told, unless that was too short for a part.
    pub fn stored_len(self, content_len: u64) -> u64 {
        content_len.saturating_add(self.least_overhead())
    }

    fn least_overhead(self) -> u64 {
        match self {
            Algorithm::Aes256Cbc => CBC_BLOCK_LEN as u64 + 1,
            other => other.max_overhead(),
        }
    }
}

/// An algorithm with its key, ready to open parts from any thread.
pub struct Cipher {
    algorithm: Algorithm,
    keyed: Keyed,
}

enum Keyed {
    Aead(LessSafeKey),
    Cbc(Box<PaddedBlockDecryptingKey>),
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cipher({})", self.algorithm.as_str())
    }
}

impl Cipher {
    /// Sets up the key schedule.
    ///
    /// # Errors
    /// `Invalid` for [`Algorithm::None`], which has nothing to open.
    pub fn new(algorithm: Algorithm, key: &Key) -> Result<Self> {
        // A 32-byte key fits all three algorithms: a failure could only be the library's.
        let refused = |_| Error::new(ErrorKind::Io, "the cryptographic library refused the key");
        let aead = |kind| {
            let key = UnboundKey::new(kind, &key.0[..]).map_err(refused)?;
            Ok(Keyed::Aead(LessSafeKey::new(key)))
        };
        let keyed = match algorithm {
            Algorithm::None => {
                return Err(Error::new(ErrorKind::Invalid, "nothing is encrypted here"));
            }
            Algorithm::ChaCha20Poly1305 => aead(&CHACHA20_POLY1305)?,
            Algorithm::Aes256Gcm => aead(&AES_256_GCM)?,
            Algorithm::Aes256Cbc => {
                let key = UnboundCipherKey::new(&AES_256, &key.0[..]).map_err(refused)?;
                Keyed::Cbc(Box::new(
                    PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(refused)?,
                ))
            }
        };
        Ok(Cipher { algorithm, keyed })
    }

    /// The algorithm this was made for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Decrypts a whole part. Nothing is returned unless the tag matches (CBC has none: there only
    /// the padding is checked).
    ///
    /// # Errors
    /// `Corrupt` when the part is too short or does not authenticate. The caller names the object.
    pub fn open(&self, part: Bytes) -> Result<Bytes> {
        // A part that nobody else holds is decrypted where it is.
        let mut part = match (part.try_into_mut(), &self.keyed) {
            (Ok(part), _) => part,
            (Err(part), Keyed::Aead(key)) => return open_elsewhere(key, &part),
            (Err(part), Keyed::Cbc(_)) => BytesMut::from(&part[..]),
        };
        let stored_len = part.len();
        let (start, len) = match &self.keyed {
            Keyed::Aead(key) => {
                let short = || too_short(stored_len, AEAD_IV_LEN + AEAD_TAG_LEN);
                let (iv, rest) = part.split_at_mut_checked(AEAD_IV_LEN).ok_or_else(short)?;
                if rest.len() < AEAD_TAG_LEN {
                    return Err(short());
                }
                let nonce = Nonce::try_assume_unique_for_key(iv).map_err(|_| short())?;
                let plain = key
                    .open_in_place(nonce, Aad::empty(), rest)
                    .map_err(|_| not_authentic())?;
                (AEAD_IV_LEN, plain.len())
            }
            Keyed::Cbc(key) => {
                let iv_len = cipher::AES_CBC_IV_LEN;
                let short = || too_short(stored_len, iv_len + CBC_BLOCK_LEN);
                let (iv, rest) = part.split_at_mut_checked(iv_len).ok_or_else(short)?;
                if rest.is_empty() {
                    return Err(short());
                }
                let bad = || {
                    Error::corrupt(
                        "does not decrypt: it was damaged or cut short, or written with another \
                         key",
                    )
                };
                if rest.len() % CBC_BLOCK_LEN != 0 {
                    return Err(bad());
                }
                let iv: &[u8; CBC_BLOCK_LEN] = (&*iv).try_into().map_err(|_| short())?;
                let context = DecryptionContext::Iv128(iv.into());
                let plain = key.decrypt(rest, context).map_err(|_| bad())?;
                (iv_len, plain.len())
            }
        };
        Ok(part.freeze().slice(start..start + len))
    }
}

/// Opens a part into a buffer of its own.
fn open_elsewhere(key: &LessSafeKey, part: &[u8]) -> Result<Bytes> {
    let short = || too_short(part.len(), AEAD_IV_LEN + AEAD_TAG_LEN);
    let (iv, rest) = part.split_at_checked(AEAD_IV_LEN).ok_or_else(short)?;
    let len = rest.len().checked_sub(AEAD_TAG_LEN).ok_or_else(short)?;
    let (sealed, tag) = rest.split_at(len);
    let nonce = Nonce::try_assume_unique_for_key(iv).map_err(|_| short())?;
    let mut plain = Buffer::new(len);
    key.open_separate_gather(nonce, Aad::empty(), sealed, tag, &mut plain)
        .map_err(|_| not_authentic())?;
    Ok(plain.into_bytes())
}

fn not_authentic() -> Error {
    Error::corrupt(
        "does not authenticate: it was damaged, changed or cut short, or written with another key",
    )
}

fn too_short(found: usize, needed: usize) -> Error {
    Error::corrupt(format!(
        "is {found} bytes long; an encrypted part has at least {needed}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::cipher::{EncryptionContext, PaddedBlockEncryptingKey};

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn seal(algorithm: Algorithm, content: &[u8]) -> Vec<u8> {
        let mut data = content.to_vec();
        match algorithm {
            Algorithm::Aes256Cbc => {
                let key = UnboundCipherKey::new(&AES_256, KEY.as_bytes()).unwrap();
                let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).unwrap();
                let iv = [7u8; 16];
                key.less_safe_encrypt(&mut data, EncryptionContext::Iv128((&iv).into()))
                    .unwrap();
                [&iv[..], &data].concat()
            }
            _ => {
                let kind = if algorithm == Algorithm::Aes256Gcm {
                    &AES_256_GCM
                } else {
                    &CHACHA20_POLY1305
                };
                let key = LessSafeKey::new(UnboundKey::new(kind, KEY.as_bytes()).unwrap());
                let iv = [7u8; 12];
                let nonce = Nonce::assume_unique_for_key(iv);
                key.seal_in_place_append_tag(nonce, Aad::empty(), &mut data)
                    .unwrap();
                [&iv[..], &data].concat()
            }
        }
    }

    const ALL: [Algorithm; 3] = [
        Algorithm::ChaCha20Poly1305,
        Algorithm::Aes256Gcm,
        Algorithm::Aes256Cbc,
    ];

    /// Opens a part that others hold as well, and one that nobody does: the same must come of it.
    fn open(cipher: &Cipher, part: &[u8]) -> Result<Bytes> {
        let shared = Bytes::copy_from_slice(part);
        let others = shared.clone();
        let elsewhere = cipher.open(shared);
        assert_eq!(others, part);
        let in_place = cipher.open(Bytes::copy_from_slice(part));
        match (&elsewhere, &in_place) {
            (Ok(a), Ok(b)) => assert_eq!(a, b),
            (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind()),
            (a, b) => panic!("{a:?} and {b:?}"),
        }
        elsewhere
    }

    #[test]
    fn every_algorithm_opens_what_it_sealed_at_awkward_lengths() {
        for algorithm in ALL {
            let cipher = Cipher::new(algorithm, &Key::new(KEY).unwrap()).unwrap();
            for len in [0usize, 1, 15, 16, 17, 512, 100_003] {
                let content: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let sealed = seal(algorithm, &content);
                let stored = sealed.len() as u64;
                assert!(stored <= len as u64 + algorithm.max_overhead());
                assert!(algorithm.content_len(stored) >= len as u64);
                assert_eq!(algorithm.stored_len(algorithm.content_len(stored)), stored);
                assert_eq!(open(&cipher, &sealed).unwrap(), content);
            }
        }
    }

    #[test]
    fn any_flipped_bit_or_cut_is_corrupt_with_a_tag() {
        for algorithm in [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm] {
            let cipher = Cipher::new(algorithm, &Key::new(KEY).unwrap()).unwrap();
            let sealed = seal(algorithm, b"sixty-four bytes or so of some disk block");
            for bit in 0..sealed.len() * 8 {
                let mut bad = sealed.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let error = open(&cipher, &bad).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
            for len in 0..sealed.len() {
                let error = open(&cipher, &sealed[..len]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
    }

    #[test]
    fn cbc_refuses_cut_parts_and_bad_padding() {
        let cipher = Cipher::new(Algorithm::Aes256Cbc, &Key::new(KEY).unwrap()).unwrap();
        let sealed = seal(Algorithm::Aes256Cbc, &[0xAA; 31]);
        for len in (0..sealed.len()).filter(|n| n % 16 != 0 || *n < 32) {
            let cut = Bytes::copy_from_slice(&sealed[..len]);
            assert_eq!(cipher.open(cut).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let mut bad = sealed;
        let last_but_one_block = bad.len() - 17;
        bad[last_but_one_block] ^= 0x80;
        assert_eq!(
            cipher.open(Bytes::from(bad)).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }

    #[test]
    fn keys_are_32_bytes_and_never_shown() {
        assert!(Key::new("short").is_err());
        assert!(Key::new(&KEY[1..]).is_err());
        let key = Key::new(KEY).unwrap();
        let cipher = Cipher::new(Algorithm::Aes256Gcm, &key).unwrap();
        for text in [format!("{key:?}"), format!("{cipher:?}")] {
            assert!(!text.contains("0123"), "{text}");
            assert!(!text.contains("48, 49"), "{text}");
        }
        let error = Key::new(&format!("{KEY}x")).unwrap_err();
        assert!(!format!("{error:?}").contains("0123"));
    }

    #[test]
    fn unknown_algorithms_are_named() {
        let error = Algorithm::parse("aes-512-xyz").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("aes-512-xyz"));
        for algorithm in ALL {
            assert_eq!(Algorithm::parse(algorithm.as_str()).unwrap(), algorithm);
        }
    }
}
