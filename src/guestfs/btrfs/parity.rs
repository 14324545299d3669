//! What is missing of a row of RAID 5 or 6, worked out from the rest.
//!
//! Two sums over the data: P is the plain one (exclusive or), Q that of Reed and Solomon, over the field
//! of 256 elements with the polynomial x^8 + x^4 + x^3 + x^2 + 1, in which data `i` counts 2^i times.
//! Source: H. P. Anvin, "The mathematics of RAID-6"; Linux' `lib/raid6`.

use crate::volume::md::galois::{add_scaled, inverse, power, scale};

/// How often a column of data counts in Q.
fn weight(column: usize) -> u8 {
    // The same again after 255.
    let exponent = u8::try_from(column % 255).unwrap_or_default();
    power(u32::from(exponent))
}

/// Adds what a column of data has in P.
pub(super) fn add(sum: &mut [u8], bytes: &[u8]) {
    add_scaled(sum, bytes, 1);
}

/// Adds what a column of data has in Q.
pub(super) fn add_weighted(sum: &mut [u8], column: usize, bytes: &[u8]) {
    add_scaled(sum, bytes, weight(column));
}

/// The data of a column from what it has in Q.
pub(super) fn from_weighted(sum: &mut [u8], column: usize) {
    scale(sum, inverse(weight(column)));
}

/// The data of `column` from what it and the column `other` have in P and in Q; the result is in `plain`.
///
/// D + E = P and wD + vE = Q give D = (Q + vP) / (w + v). Columns 255 apart have the same weight: what comes out
/// is not the data then, and no checksum holds.
pub(super) fn from_both(plain: &mut [u8], weighted: &[u8], column: usize, other: usize) {
    let (w, v) = (weight(column), weight(other));
    scale(plain, v);
    add(plain, weighted);
    scale(plain, inverse(w ^ v));
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
