//! The encoders over vectors. They give the same bytes as the scalar encoders in `fit`, because they have the same
//! operations in the same order. Every lane has one sub-block or one block, so the order of additions is the same.

mod affine;
mod encode;
mod hifi;
mod iq4;
mod k;
mod legacy;
mod legacy_plain;
mod moves;
mod q2_k;
mod q3_k;
mod q6_k;
mod ranges;
mod signed;
mod weights;

pub(crate) use encode::QuantizeRows;
pub(crate) use hifi::EncodeHifiRow;

#[cfg(test)]
mod tests {
    use super::encode::EncodeVector;
    use super::*;
    use crate::block::{BlockQ4_0, BlockQ6K, HifiBlock, blocks_mut};
    use crate::fit;
    use crate::simd::{Kernel, Portable};
    use crate::testing::{importance, weights};

    /// On arrays in place of vectors, so that what is written over vectors is tested on every CPU. Two types:
    /// all of them would take the compiler minutes.
    #[test]
    fn arrays_give_the_bytes_of_the_scalar_encoders() {
        check::<BlockQ4_0>();
        check::<BlockQ6K>();
    }

    fn check<B: EncodeVector>() {
        let (x, w) = (weights(5 * 256, 51), importance(5 * 256, 52));
        let row_length = x.len();
        for importance in [None, Some(&w[..])] {
            let mut expected = vec![0u8; row_length / B::WEIGHTS * B::BYTES];
            let mut found = expected.clone();
            let out = blocks_mut::<B>(&mut expected);
            fit::quantize_rows::<B>(&x, row_length, importance, out);
            let out = blocks_mut::<B>(&mut found);
            let encoder = QuantizeRows { x: &x, row_length, importance, out };
            // SAFETY: every CPU has these lanes.
            unsafe { encoder.run::<Portable<8>>() };
            assert!(found == expected, "{}", importance.is_some());
        }
    }

    #[test]
    fn arrays_choose_the_outliers_of_the_scalar_encoder() {
        let (x, w) = (weights(5 * 256, 53), importance(5 * 256, 54));
        let x = x.as_chunks().0;
        for importance in [None, Some(w.as_chunks().0)] {
            let mut expected = vec![HifiBlock::ZERO; 5];
            let mut found = expected.clone();
            fit::encode_hifi_row(x, importance, 8, &mut expected);
            // SAFETY: every CPU has these lanes.
            unsafe {
                EncodeHifiRow { x, importance, outliers: 8, out: &mut found }.run::<Portable<8>>()
            };
            assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        }
    }
}
