//! Encoding rows with the kernel of each type.

use super::k::{MOST_BLOCKS, fit_blocks};
use super::{iq4, legacy, legacy_plain, q2_k, q3_k, q6_k};
use crate::block::{
    BlockBF16, BlockF16, BlockF32, BlockIQ4NL, BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ4_0,
    BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, Bytes, KFit, QK,
    QK_K, q4_0, q4_1, q5_0, q5_1,
};
use crate::fit::encode::{Encode, MOST_ROWS_AT_ONCE};
use crate::fit::k::{KParameters, Q4_K, Q5_K};
use crate::fit::legacy::mean_square;
use crate::simd::{Kernel, Vector};

/// Encodes rows of `row_length` weights, each as [`Encode::quantize_row`] does.
pub(crate) struct QuantizeRows<'a, B> {
    pub x: &'a [f32],
    pub row_length: usize,
    pub importance: Option<&'a [f32]>,
    pub out: &'a mut [B],
}

impl<B: EncodeVector> Kernel for QuantizeRows<'_, B> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        quantize_rows::<V, B>(self.x, self.row_length, self.importance, self.out)
    }
}

/// # Safety
///
/// The CPU has V's instruction set.
#[inline(always)]
unsafe fn quantize_rows<V: Vector, B: EncodeVector>(
    x: &[f32],
    row_length: usize,
    importance: Option<&[f32]>,
    out: &mut [B],
) {
    let row_blocks = row_length / B::WEIGHTS;
    let batches = x
        .chunks(row_length * MOST_ROWS_AT_ONCE)
        .zip(out.chunks_mut(row_blocks * MOST_ROWS_AT_ONCE));
    for (x, out) in batches {
        let mut mean_squares = [0f32; MOST_ROWS_AT_ONCE];
        if B::WEIGHS_BY_ROW && importance.is_some() {
            fill_mean_squares::<V>(x, row_length, &mut mean_squares);
        }
        let rows = x.chunks_exact(row_length).zip(out.chunks_exact_mut(row_blocks));
        for ((x, out), mean_square) in rows.zip(mean_squares) {
            B::encode_row::<V>(x, importance, mean_square, out);
        }
    }
}

/// Each row's mean square, with its sum added up in order. If there are enough rows, there is one per lane, because
/// the additions of a single sum wait for each other.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn fill_mean_squares<V: Vector>(
    x: &[f32],
    row_length: usize,
    mean_squares: &mut [f32; MOST_ROWS_AT_ONCE],
) {
    for (x, out) in x.chunks(row_length * V::LANES).zip(mean_squares.chunks_mut(V::LANES)) {
        if x.len() < row_length * V::LANES {
            for (x, out) in x.chunks_exact(row_length).zip(out) {
                *out = mean_square(x);
            }
            continue;
        }
        // x has LANES rows, out LANES elements.
        let mut sum = V::splat(0.0);
        for i in (0..row_length).step_by(4) {
            for v in V::load_transposed(x.as_ptr().add(i), row_length) {
                sum = sum.add(v.mul(v));
            }
        }
        sum.div(V::splat(row_length as f32)).store(out.as_mut_ptr());
    }
}

/// A type whose rows a kernel encodes.
pub(crate) trait EncodeVector: Encode {
    /// Encodes a row. `mean_square` is only used by legacy types with importance.
    ///
    /// Types without a kernel use the scalar version, a simple loop that the compiler vectorizes.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    #[inline(always)]
    unsafe fn encode_row<V: Vector>(
        x: &[f32],
        importance: Option<&[f32]>,
        _mean_square: f32,
        out: &mut [Self],
    ) {
        Self::quantize_row(x, importance, out);
    }
}

impl EncodeVector for BlockF32 {}
impl EncodeVector for BlockF16 {}
impl EncodeVector for BlockBF16 {}

/// The function that encodes a row, for each type. `V` is the vector.
macro_rules! kernels {
    ($($block:ident: |$x:ident, $importance:ident, $mean_square:pat_param, $out:ident| $encode:expr;)*) => {
        $(impl EncodeVector for $block {
            #[inline(always)]
            unsafe fn encode_row<V: Vector>(
                $x: &[f32],
                $importance: Option<&[f32]>,
                $mean_square: f32,
                $out: &mut [Self],
            ) {
                $encode
            }
        })*
    };
}

kernels! {
    BlockQ2K: |x, w, _, out| q2_k::quantize::<V>(in_blocks(x), w.map(in_blocks), out);
    BlockQ3K: |x, w, _, out| q3_k::quantize::<V>(in_blocks(x), w.map(in_blocks), out);
    BlockQ4K: |x, w, _, out| quantize_k_row::<V, _>(&Q4_K, x, w, out, Self::from_fit);
    BlockQ5K: |x, w, _, out| quantize_k_row::<V, _>(&Q5_K, x, w, out, Self::from_fit);
    BlockQ6K: |x, w, _, out| q6_k::quantize::<V>(in_blocks(x), w.map(in_blocks), out);
    BlockQ4_0: |x, w, m, out| symmetric::<V, _>(x, w, m, q4_0::HALF, out, Self::new);
    BlockQ5_0: |x, w, m, out| symmetric::<V, _>(x, w, m, q5_0::HALF, out, Self::new);
    BlockQ4_1: |x, w, m, out| affine::<V, _>(x, w, m, q4_1::LEVELS, out, Self::new);
    BlockQ5_1: |x, w, m, out| affine::<V, _>(x, w, m, q5_1::LEVELS, out, Self::new);
    BlockQ8_0: |x, _w, _, out| legacy_plain::quantize_q8_0::<V>(x, out);
    BlockIQ4NL: |x, w, _, out| iq4::quantize_nl::<V>(in_blocks(x), w.map(in_blocks), out);
    BlockIQ4XS: |x, w, _, out| iq4::quantize_xs::<V>(in_blocks(x), w.map(in_blocks), out);
}

/// A row's weights or their importance, block by block.
#[inline(always)]
fn in_blocks<const N: usize>(x: &[f32]) -> &[[f32; N]] {
    x.as_chunks().0
}

/// A legacy type without minima, with or without importance.
#[inline(always)]
unsafe fn symmetric<V: Vector, B>(
    x: &[f32],
    importance: Option<&[f32]>,
    mean_square: f32,
    half: i8,
    out: &mut [B],
    store: fn(f32, &[u8; QK]) -> B,
) {
    match importance {
        Some(w) => legacy::quantize_symmetric::<V, B>(x, w, mean_square, half, out, store),
        None => legacy_plain::quantize_symmetric::<V, B>(x, half, out, store),
    }
}

/// A legacy type with minima, with or without importance.
#[inline(always)]
unsafe fn affine<V: Vector, B>(
    x: &[f32],
    importance: Option<&[f32]>,
    mean_square: f32,
    levels: i8,
    out: &mut [B],
    store: fn(f32, f32, &[u8; QK]) -> B,
) {
    match importance {
        Some(w) => legacy::quantize_affine::<V, B>(x, w, mean_square, levels, out, store),
        None => legacy_plain::quantize_affine::<V, B>(x, levels, out, store),
    }
}

#[inline(always)]
unsafe fn quantize_k_row<V: Vector, B: Bytes>(
    parameters: &KParameters,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [B],
    pack: impl Fn(&KFit) -> B,
) {
    let x = x.as_chunks::<QK_K>().0;
    let mut fits = [KFit::EMPTY; MOST_BLOCKS];
    for (i, (x, out)) in x.chunks(MOST_BLOCKS).zip(out.chunks_mut(MOST_BLOCKS)).enumerate() {
        let importance = importance.map(|w| &w.as_chunks().0[MOST_BLOCKS * i..][..x.len()]);
        fit_blocks::<V>(parameters, x, importance, &mut fits[..x.len()]);
        for (out, fit) in out.iter_mut().zip(&fits) {
            *out = pack(fit);
        }
    }
}
