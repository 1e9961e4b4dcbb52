//! The codec's fast paths: the same bytes as the scalar versions in [`crate::block`], for the ISA
//! that the CPU has.
//!
//! The algorithms are written once over `vector::Vector`; a file an ISA holds its intrinsics, and
//! the entry points that compile the algorithms for it. Elsewhere than on x86-64, and where the crate
//! is compiled with `--cfg portable`, there is the scalar path alone.

mod dequantize;
mod isa;
pub(crate) mod multiply_half;
mod panel;
#[cfg(all(target_arch = "x86_64", not(portable)))]
mod x86;

pub use isa::Isa;

use crate::block::{Block, TensorType, blocks_mut, with_block};
use crate::dot::activations::Quantize;
use crate::dot::{Activations, Rows, scalar};
use crate::error_sums::{self, ErrorSums};
use crate::hifi::HifiBlock;
use crate::matmul::PANEL;
use crate::matmul::columns::{ColumnMut, PanelColumns};
use crate::matmul::outliers::{self, BATCH};
use crate::refine::lanes;
use crate::refine::{self, Inputs};
use multiply_half::Product;
use panel::Portable;

/// Calls the kernel of that name for the ISA, or where there is none evaluates `$portable`.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident($($argument:expr),*), $portable:expr) => {{
        debug_assert!($isa.is_available());
        match $isa {
            // SAFETY: the CPU has the ISA.
            #[cfg(all(target_arch = "x86_64", not(portable)))]
            Isa::Avx512 => unsafe { x86::avx512::$kernel($($argument),*) },
            // SAFETY: the CPU has the ISA.
            #[cfg(all(target_arch = "x86_64", not(portable)))]
            Isa::Avx2 => unsafe { x86::avx2::$kernel($($argument),*) },
            _ => $portable,
        }
    }};
}

/// How many rows [`quantize_rows`] is best given together.
pub(crate) fn rows_at_once(kind: TensorType, importance: Option<&[f32]>) -> usize {
    if weighs_by_row(kind, importance) { MOST_ROWS_AT_ONCE } else { 1 }
}

/// The most rows whose mean squares are added up together.
const MOST_ROWS_AT_ONCE: usize = 16;

/// Whether a fit's weights depend on the mean square of the row. That is a sum whose additions wait for
/// each other, so the sums of several rows are best made side by side.
fn weighs_by_row(kind: TensorType, importance: Option<&[f32]>) -> bool {
    use TensorType::{Q4_0, Q4_1, Q5_0, Q5_1};
    importance.is_some() && matches!(kind, Q4_0 | Q4_1 | Q5_0 | Q5_1)
}

/// Encodes rows of `row_length` weights as `kind`, each as [`Block::quantize_row`] does.
pub fn quantize_rows(
    isa: Isa,
    kind: TensorType,
    x: &[f32],
    row_length: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    with_block!(kind, B => {
        let out = blocks_mut::<B>(out);
        dispatch!(isa, quantize_rows(kind, x, row_length, importance, out), {
            let rows = x.chunks_exact(row_length);
            for (x, out) in rows.zip(out.chunks_exact_mut(row_length / B::WEIGHTS)) {
                B::quantize_row(x, importance, out);
            }
        });
    });
}

/// Makes the blocks `out` of rows `x` better where it can; see [`crate::refine`].
pub fn refine_rows(
    isa: Isa,
    kind: TensorType,
    x: &[f32],
    row_length: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    dispatch!(isa, refine_rows(kind, x, row_length, importance, out), {
        // SAFETY: every CPU has these lanes.
        unsafe { refine::refine_rows::<lanes::Portable<16>>(kind, x, row_length, importance, out) }
    })
}

/// Lets the errors of the `encoded` rows `x` cancel; see [`refine::cancel`].
pub(crate) fn cancel(isa: Isa, kind: TensorType, inputs: &Inputs, x: &[f32], encoded: &mut [u8]) {
    dispatch!(isa, cancel(kind, inputs, x, encoded), {
        // SAFETY: every CPU has these lanes.
        unsafe { refine::cancel::cancel::<lanes::Portable<16>>(kind, inputs, x, encoded) }
    })
}

/// Encodes a row; see [`quantize_rows`].
pub fn quantize_row(
    isa: Isa,
    kind: TensorType,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    quantize_rows(isa, kind, x, x.len(), importance, out);
}

/// Decodes a row of `kind`.
pub fn dequantize_row(isa: Isa, kind: TensorType, row: &[u8], out: &mut [f32]) {
    dispatch!(isa, dequantize_row(kind, row, out), dequantize::dequantize_row(kind, row, out))
}

/// Encodes the blocks of a row as Q4_HIFI, as [`HifiBlock::encode`] does.
pub(crate) fn encode_hifi_row(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    outliers: usize,
    out: &mut [HifiBlock],
) {
    let x = x.as_chunks().0;
    let importance = importance.map(|w| w.as_chunks().0);
    dispatch!(isa, encode_hifi_blocks(x, importance, outliers, out), {
        for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
            *out = HifiBlock::encode(x, importance.map(|w| &w[i]), outliers);
        }
    })
}

/// Makes the encoded blocks `out` of a row `x` better where it can; see [`crate::refine`].
pub(crate) fn refine_hifi_row(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [HifiBlock],
) {
    let x = x.as_chunks().0;
    let importance = importance.map(|w| w.as_chunks().0);
    dispatch!(isa, refine_hifi_row(x, importance, out), {
        // SAFETY: every CPU has these lanes.
        unsafe { refine::hifi::refine_hifi_row::<lanes::Portable<8>>(x, importance, out) }
    })
}

/// Whether no number is NaN or infinite.
pub(crate) fn all_finite(isa: Isa, x: &[f32]) -> bool {
    dispatch!(isa, all_finite(x), dequantize::all_finite(x))
}

/// How far a decoded row is from `x`.
pub(crate) fn error_sums(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    decoded: &[f32],
) -> ErrorSums {
    dispatch!(
        isa,
        error_sums(x, importance, decoded),
        error_sums::error_sums(x, importance, decoded)
    )
}

/// Multiplies `out.len()` rows by a column of activations.
///
/// A row's product depends on the row, the activations and the ISA alone. Panics where the lengths
/// or the activations' form do not fit the rows.
pub fn dot_rows(isa: Isa, rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    debug_assert!(isa.is_available());
    rows.check(activations, out.len());
    if out.is_empty() {
        return;
    }
    match isa {
        // SAFETY: the CPU has the ISA, and VNNI.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 if x86::has_vnni() => unsafe {
            x86::dot::avx512::dot_rows_vnni(rows, activations, out);
        },
        // SAFETY: the CPU has the ISA.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { x86::dot::avx512::dot_rows(rows, activations, out) },
        // SAFETY: the CPU has the ISA.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { x86::dot::avx2::dot_rows(rows, activations, out) },
        _ => scalar::dot_rows(rows, activations, out),
    }
}

/// Multiplies one row by a column of activations; see [`dot_rows`].
pub fn dot_row(isa: Isa, row: Rows<'_>, activations: &Activations) -> f32 {
    let mut out = [0f32];
    dot_rows(isa, row, activations, &mut out);
    out[0]
}

/// Encodes activations: the same bytes on every ISA.
pub fn quantize_activations<B: Quantize>(isa: Isa, x: &[f32], out: &mut [B]) {
    dispatch!(isa, quantize_activations(x, out), B::encode(x, out))
}

/// The most columns that a panel's tile has, and a multiple of the others' number.
pub(crate) const MOST_COLUMNS: usize = 12;

/// Adds the products of at most [`PANEL`] rows of `kind` and every column to `acc`, [`PANEL`] sums
/// a column; their number is that of the columns, rounded up to a multiple of [`MOST_COLUMNS`].
pub(crate) fn multiply_panel(
    isa: Isa,
    kind: TensorType,
    rows: &[u8],
    columns: PanelColumns<'_>,
    acc: &mut [[f32; PANEL]],
) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the ISA, and VNNI.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 if x86::has_vnni() => unsafe {
            x86::panel::avx512::multiply_vnni(kind, rows, columns, acc);
        },
        // SAFETY: the CPU has the ISA.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { x86::panel::avx512::multiply(kind, rows, columns, acc) },
        // SAFETY: the CPU has the ISA.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { x86::panel::avx2::multiply(kind, rows, columns, acc) },
        // SAFETY: every CPU has these lanes.
        _ => unsafe { panel::multiply::<Portable, 2, 4>(kind, rows, columns, acc) },
    }
}

/// Quantizes a column for panels.
pub(crate) fn quantize_column(isa: Isa, x: &[f32], out: ColumnMut<'_>) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the ISA.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { x86::panel::avx512::quantize_column(x, out) },
        // SAFETY: the CPU has the ISA.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { x86::panel::avx2::quantize_column(x, out) },
        // SAFETY: every CPU has these lanes.
        _ => unsafe { panel::quantize_column::<Portable>(x, out) },
    }
}

/// See [`outliers::add_outlier_products`].
pub(crate) fn add_outlier_products(
    isa: Isa,
    index: &[u8],
    residual: &[f32],
    x: &[[f32; BATCH]],
    sums: &mut [[f32; BATCH]],
) {
    dispatch!(
        isa,
        add_outlier_products(index, residual, x, sums),
        outliers::add_outlier_products(index, residual, x, sums)
    )
}

/// A loop over numbers, simple enough for the compiler to make vectors of, for every ISA its own.
pub(crate) trait Loop {
    /// What comes out of it.
    type Output;

    /// Implementations are `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// Runs a loop, compiled for the ISA.
pub(crate) fn run<T: Loop>(isa: Isa, work: T) -> T::Output {
    dispatch!(isa, run(work), work.run())
}

/// Multiplies by numbers of half precision.
pub(crate) fn multiply_half(isa: Isa, product: Product<'_>) {
    product.check();
    dispatch!(isa, multiply_half(product), multiply_half::multiply_half(product))
}

/// The integers of a K-quant block's dot product, by every kernel that there is for the ISA.
#[cfg(test)]
pub(crate) fn block_sums(
    isa: Isa,
    kind: TensorType,
    block: &[u8],
    y: &crate::dot::BlockQ8K,
) -> Vec<scalar::KSums> {
    match isa {
        // SAFETY: the CPU has the ISA, and VNNI where that is used.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe {
            let mut sums = vec![x86::dot::avx512::block_sums(kind, block, y)];
            if x86::has_vnni() {
                sums.push(x86::dot::avx512::block_sums_vnni(kind, block, y));
            }
            sums
        },
        // SAFETY: the CPU has the ISA.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { vec![x86::dot::avx2::block_sums(kind, block, y)] },
        _ => {
            let _ = (kind, block, y); // used by no portable kernel
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{importance, weights};

    /// Rows that reach every path: ordinary, flat, sparse, tiny, and too large for the fast rounding.
    fn rows() -> Vec<Vec<f32>> {
        let plain = weights(15 * 256, 21);
        let scaled = |factor: f32| plain.iter().map(|v| v * factor).collect::<Vec<f32>>();
        let mixed =
            plain.iter().enumerate().map(|(i, v)| v * 10f32.powi((i / 32) as i32 % 50 - 25));
        let sparse = plain.iter().enumerate().map(|(i, &v)| if i % 9 == 0 { v } else { 0.0 });
        vec![
            mixed.collect(),
            sparse.collect(),
            vec![0.0; plain.len()],
            vec![-0.37; plain.len()],
            scaled(1e-41),
            scaled(1e-20),
            scaled(1e36),
            plain.clone(),
        ]
    }

    fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    #[test]
    fn every_isa_gives_the_scalar_bytes() {
        let w = importance(15 * 256, 22);
        for (number, x) in rows().iter().enumerate() {
            for (kind, w) in
                TensorType::ALL.into_iter().flat_map(|kind| [(kind, None), (kind, Some(&w[..]))])
            {
                let encode = |isa| {
                    let mut out = vec![0u8; kind.row_bytes(x.len()).unwrap()];
                    quantize_row(isa, kind, x, w, &mut out);
                    out
                };
                let expected = encode(Isa::Scalar);
                let decode = |isa| {
                    let mut out = vec![0f32; x.len()];
                    dequantize_row(isa, kind, &expected, &mut out);
                    out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                for isa in available() {
                    let case = format!("{kind:?} {isa:?} row {number} {}", w.is_some());
                    assert!(encode(isa) == expected, "{case}");
                    assert!(decode(isa) == decode(Isa::Scalar), "decoding {case}");
                }
            }
        }
    }

    /// Rows given together are encoded as each alone, whether or not they fill vectors.
    #[test]
    fn rows_do_not_depend_on_their_neighbours() {
        let x = rows().concat();
        for kind in TensorType::ALL {
            let row_length = kind.block_weights().max(32) * 3;
            let w = importance(row_length, 27);
            let row_bytes = kind.row_bytes(row_length).unwrap();
            for w in [None, Some(&w[..])] {
                let mut expected = vec![0u8; x.len() / row_length * row_bytes];
                for (x, out) in x.chunks(row_length).zip(expected.chunks_mut(row_bytes)) {
                    quantize_row(Isa::Scalar, kind, x, w, out);
                }
                for isa in available() {
                    let mut out = vec![0u8; expected.len()];
                    quantize_rows(isa, kind, &x, row_length, w, &mut out);
                    assert!(out == expected, "{kind:?} {isa:?} {}", w.is_some());
                }
            }
        }
    }

    #[test]
    fn every_isa_chooses_the_same_outliers() {
        let w = importance(15 * 256, 23);
        for x in rows() {
            for (outliers, w) in [(0, None), (8, None), (8, Some(&w[..])), (32, Some(&w[..]))] {
                let encode = |isa| {
                    let mut out = vec![HifiBlock::ZERO; 15];
                    encode_hifi_row(isa, &x, w, outliers, &mut out);
                    out.into_iter().map(|b| format!("{b:?}")).collect::<Vec<String>>()
                };
                for isa in available() {
                    assert_eq!(encode(isa), encode(Isa::Scalar), "{isa:?} {outliers}");
                }
            }
        }
    }

    /// Shapes that reach full tiles, narrow ones and rows that are left over.
    #[test]
    fn every_isa_multiplies_by_halves() {
        for (rows, stride, k, n) in
            [(1, 64, 64, 64), (6, 128, 128, 64), (9, 64, 37, 80), (14, 16, 16, 48)]
        {
            let a = weights(rows * stride, 31);
            let b: Vec<u16> =
                weights(k * n, 32).into_iter().map(crate::float::f32_to_f16).collect();
            let product = |isa| {
                let mut c = weights(rows * n, 33);
                multiply_half(isa, Product { a: &a, stride, k, b: &b, n, c: &mut c });
                c
            };
            let expected = product(Isa::Scalar);
            for isa in available() {
                assert!(product(isa) == expected, "{isa:?} {rows} {k} {n}");
            }
        }
    }

    #[test]
    fn every_isa_adds_up_the_same_error() {
        let (x, y, w) = (weights(1003, 24), weights(1003, 25), importance(1003, 26));
        for w in [None, Some(&w[..])] {
            for isa in available() {
                assert_eq!(error_sums(isa, &x, w, &y), error_sums(Isa::Scalar, &x, w, &y));
            }
        }
    }
}
