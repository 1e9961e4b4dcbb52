//! The functions that compile the algorithms for an ISA.

/// One function for each entry of [`super`], for the CPU features `$features` and the vector `$vector`,
/// `$width` of which are a tile of [`super::multiply_half`], and `$refined` those of [`crate::refine`].
///
/// Everything that they call is `#[inline(always)]`, so that it is compiled with the features too.
macro_rules! entry_points {
    ($features:literal, $vector:ident, $width:literal, $refined:ty) => {
        use super::quantize::Encode;
        use crate::block::{QK_K, TensorType};
        use crate::dot::activations::Quantize;
        use crate::error_sums::ErrorSums;
        use crate::hifi::HifiBlock;
        use crate::kernel::Loop;
        use crate::kernel::multiply_half::Product;
        use crate::matmul::outliers::BATCH;
        use crate::refine::Inputs;

        /// See [`crate::kernel::quantize_rows`].
        ///
        /// # Safety
        ///
        /// The CPU has the ISA; so below.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn quantize_rows<B: Encode>(
            kind: TensorType,
            x: &[f32],
            row_length: usize,
            importance: Option<&[f32]>,
            out: &mut [B],
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                super::quantize::quantize_rows::<$vector, B>(kind, x, row_length, importance, out);
            }
        }

        /// See [`crate::kernel::refine_rows`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn refine_rows(
            kind: TensorType,
            x: &[f32],
            row_length: usize,
            importance: Option<&[f32]>,
            out: &mut [u8],
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                crate::refine::refine_rows::<$refined>(kind, x, row_length, importance, out);
            }
        }

        /// See [`crate::kernel::cancel`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn cancel(
            kind: TensorType,
            inputs: &Inputs,
            x: &[f32],
            encoded: &mut [u8],
        ) {
            // SAFETY: the caller's promise.
            unsafe { crate::refine::cancel::cancel::<$refined>(kind, inputs, x, encoded) }
        }

        /// See [`crate::kernel::refine_hifi_row`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn refine_hifi_row(
            x: &[[f32; QK_K]],
            importance: Option<&[[f32; QK_K]]>,
            out: &mut [HifiBlock],
        ) {
            // SAFETY: the caller's promise.
            unsafe { crate::refine::hifi::refine_hifi_row::<$refined>(x, importance, out) }
        }

        /// See [`crate::kernel::encode_hifi_row`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn encode_hifi_blocks(
            x: &[[f32; QK_K]],
            importance: Option<&[[f32; QK_K]]>,
            outliers: usize,
            out: &mut [HifiBlock],
        ) {
            // SAFETY: the caller's promise.
            unsafe { super::hifi::encode_blocks::<$vector>(x, importance, outliers, out) }
        }

        /// See [`crate::kernel::dequantize_row`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn dequantize_row(kind: TensorType, row: &[u8], out: &mut [f32]) {
            // SAFETY: the caller's promise.
            unsafe { super::dequantize::dequantize_row(kind, row, out) }
        }

        /// See [`crate::kernel::all_finite`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn all_finite(x: &[f32]) -> bool {
            crate::kernel::dequantize::all_finite(x)
        }

        /// See [`crate::kernel::error_sums`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn error_sums(
            x: &[f32],
            importance: Option<&[f32]>,
            decoded: &[f32],
        ) -> ErrorSums {
            crate::error_sums::error_sums(x, importance, decoded)
        }

        /// See [`crate::kernel::quantize_activations`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn quantize_activations<B: Quantize>(x: &[f32], out: &mut [B]) {
            B::encode(x, out);
        }

        /// See [`crate::kernel::add_outlier_products`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn add_outlier_products(
            index: &[u8],
            residual: &[f32],
            x: &[[f32; BATCH]],
            sums: &mut [[f32; BATCH]],
        ) {
            crate::matmul::outliers::add_outlier_products(index, residual, x, sums);
        }

        /// See [`crate::kernel::multiply_half`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn multiply_half(product: Product<'_>) {
            // SAFETY: the caller's promise.
            unsafe { super::multiply_half::multiply_half::<$vector, $width>(product) }
        }

        /// See [`crate::kernel::run`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn run<T: Loop>(work: T) -> T::Output {
            work.run()
        }
    };
}
pub(crate) use entry_points;
