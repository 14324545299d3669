//! What is missing of a row of RAID 5 or 6, worked out from the rest.
//!
//! Two sums over the data: P is the plain one (exclusive or), Q that of Reed and Solomon, over the field
//! of 256 elements with the polynomial x^8 + x^4 + x^3 + x^2 + 1, in which data `i` counts 2^i times.
//! Source: H. P. Anvin, "The mathematics of RAID-6"; Linux' `lib/raid6`.

/// Powers of 2, twice over so that sums of two exponents need no remainder.
const POWERS: [u8; 510] = powers();
const LOGARITHMS: [u8; 256] = logarithms();

const fn powers() -> [u8; 510] {
    let mut table = [0; 510];
    let mut value = 1u8;
    let mut at = 0;
    while at < 510 {
        table[at] = value;
        value = (value << 1) ^ if value & 0x80 == 0 { 0 } else { 0x1D };
        at += 1;
    }
    table
}

const fn logarithms() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 255 {
        table[POWERS[at] as usize] = at as u8;
        at += 1;
    }
    table
}

fn times(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let sum = usize::from(LOGARITHMS[usize::from(a)]) + usize::from(LOGARITHMS[usize::from(b)]);
    POWERS[sum]
}

/// 2 to the power of a column.
fn weight(column: usize) -> u8 {
    POWERS[column % 255]
}

/// One divided by what is not zero.
fn inverse(of: u8) -> u8 {
    POWERS[255 - usize::from(LOGARITHMS[usize::from(of)])]
}

/// Adds what a column of data has in P.
pub fn add(sum: &mut [u8], bytes: &[u8]) {
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= byte;
    }
}

/// Adds what a column of data has in Q.
pub fn add_weighted(sum: &mut [u8], column: usize, bytes: &[u8]) {
    let weight = weight(column);
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= times(weight, *byte);
    }
}

/// The data of a column from what it has in Q.
pub fn from_weighted(sum: &mut [u8], column: usize) {
    let inverse = inverse(weight(column));
    for sum in sum {
        *sum = times(inverse, *sum);
    }
}

/// The data of `column` from what it and the column `other` have in P and in Q; the result is in `plain`.
///
/// D + E = P and wD + vE = Q give D = (Q + vP) / (w + v). Columns are less than 255 apart, so w is not v.
pub fn from_both(plain: &mut [u8], weighted: &[u8], column: usize, other: usize) {
    let factor = weight(other);
    let inverse = inverse(weight(column) ^ factor);
    for (plain, weighted) in plain.iter_mut().zip(weighted) {
        *plain = times(inverse, *weighted ^ times(factor, *plain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(count: usize) -> Vec<Vec<u8>> {
        let byte = |column: usize, at: usize| (column * 89 + at * 31 + at * at) as u8;
        (0..count)
            .map(|column| (0..300).map(|at| byte(column, at)).collect())
            .collect()
    }

    fn sums<'a>(data: impl Iterator<Item = (usize, &'a Vec<u8>)>) -> (Vec<u8>, Vec<u8>) {
        let (mut p, mut q) = (vec![0; 300], vec![0; 300]);
        for (column, bytes) in data {
            add(&mut p, bytes);
            add_weighted(&mut q, column, bytes);
        }
        (p, q)
    }

    /// Multiplication as it is defined: bit by bit, without tables.
    fn slowly(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            product ^= if b & 1 == 1 { a } else { 0 };
            a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1D };
            b >>= 1;
        }
        product
    }

    #[test]
    fn products_are_those_of_the_field() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(times(a, b), slowly(a, b), "{a} times {b}");
            }
            assert!(a == 0 || times(a, inverse(a)) == 1, "{a}");
        }
    }

    #[test]
    fn any_one_or_two_columns_come_back() {
        let data = columns(7);
        let (p, q) = sums(data.iter().enumerate());
        for lost in 0..7 {
            let rest = data
                .iter()
                .enumerate()
                .filter(|(column, _)| *column != lost);
            let (mut plain, mut weighted) = sums(rest);
            add(&mut plain, &p);
            add(&mut weighted, &q);
            from_weighted(&mut weighted, lost);
            assert_eq!((&plain, &weighted), (&data[lost], &data[lost]));
            for other in (0..7).filter(|&other| other != lost) {
                let rest = data.iter().enumerate();
                let rest = rest.filter(|(column, _)| ![lost, other].contains(column));
                let (mut plain, mut weighted) = sums(rest);
                add(&mut plain, &p);
                add(&mut weighted, &q);
                from_both(&mut plain, &weighted, lost, other);
                assert_eq!(plain, data[lost], "{lost} without {other}");
            }
        }
    }
}
