//! The writing side of XO's encryption, for tests only: brfs itself never encrypts.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};

pub const KEY: &str = "0123456789abcdef0123456789abcdef";

/// Seals one part under the algorithm's name in `encryption.json`.
pub fn seal(algorithm: &str, key: &str, content: &[u8]) -> Vec<u8> {
    let mut iv = [0u8; 16];
    aws_lc_rs::rand::fill(&mut iv).expect("random bytes");
    let mut data = content.to_vec();
    let kind = match algorithm {
        "none" => return data,
        "chacha20-poly1305" => &CHACHA20_POLY1305,
        "aes-256-gcm" => &AES_256_GCM,
        "aes-256-cbc" => {
            let key = UnboundCipherKey::new(&AES_256, key.as_bytes()).expect("key");
            let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).expect("key");
            key.less_safe_encrypt(&mut data, EncryptionContext::Iv128((&iv).into()))
                .expect("encrypt");
            return [&iv[..], &data].concat();
        }
        other => panic!("{other}"),
    };
    let key = LessSafeKey::new(UnboundKey::new(kind, key.as_bytes()).expect("key"));
    let iv: [u8; 12] = iv[..12].try_into().expect("12 bytes");
    let nonce = Nonce::assume_unique_for_key(iv);
    key.seal_in_place_append_tag(nonce, Aad::empty(), &mut data)
        .expect("encrypt");
    [&iv[..], &data].concat()
}
