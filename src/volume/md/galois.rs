//! Arithmetic on bytes as RAID 6 does it: the field of 256 elements whose sum is `xor` and whose product is
//! taken modulo x^8 + x^4 + x^3 + x^2 + 1, with the generator 2.
//!
//! Source: H. P. Anvin, "The mathematics of RAID-6".

/// The product of two bytes.
pub const fn product(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut sum) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            sum ^= a;
        }
        let carry = a & 0x80 != 0;
        a <<= 1;
        if carry {
            a ^= 0x1D;
        }
        b >>= 1;
    }
    sum
}

/// A power of the generator.
pub fn power(exponent: u32) -> u8 {
    // The generator's powers repeat after 255.
    (0..exponent % 255).fold(1, |power, _| product(power, 2))
}

/// What gives 1 with `byte`; 0 for 0.
pub fn inverse(byte: u8) -> u8 {
    // byte^254.
    (0..253).fold(byte, |power, _| product(power, byte))
}

/// Adds `bytes` times `factor` to `sum`, byte by byte.
pub fn add_scaled(sum: &mut [u8], bytes: &[u8], factor: u8) {
    if factor == 1 {
        for (sum, byte) in sum.iter_mut().zip(bytes) {
            *sum ^= *byte;
        }
        return;
    }
    let table: [u8; 256] = std::array::from_fn(|byte| product(byte as u8, factor));
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= table[usize::from(*byte)];
    }
}

/// Multiplies all bytes with `factor`.
pub fn scale(bytes: &mut [u8], factor: u8) {
    let table: [u8; 256] = std::array::from_fn(|byte| product(byte as u8, factor));
    for byte in bytes {
        *byte = table[usize::from(*byte)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_field_with_this_generator() {
        for byte in 1..=255u8 {
            assert_eq!(product(byte, inverse(byte)), 1);
            assert_eq!(product(byte, 1), byte);
        }
        let mut powers: Vec<u8> = (0..255).map(power).collect();
        powers.sort_unstable();
        powers.dedup();
        assert_eq!(powers.len(), 255);
        // Anvin's paper: 2^8 = x^4 + x^3 + x^2 + 1.
        assert_eq!((power(8), power(255), inverse(0)), (0x1D, 1, 0));
    }
}
