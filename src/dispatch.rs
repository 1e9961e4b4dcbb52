//! Decides which version of a computation runs on an instruction set. This is the only file that refers to all
//! versions.
//!
//! A computation has a scalar version, the oracle. If it pays, it also has fast versions, which give the same bytes.
//! Computations that are only written over vectors, such as the refinement, run on any instruction set, and so do plain
//! loops. On CPUs other than x86-64, and with `--cfg portable`, the scalar versions run.

use crate::block::{self, DequantizeBlocks, HifiBlock, TensorType, blocks, with_block};
use crate::dot::half::{self, HalfProduct};
use crate::dot::{Activations, Quantize, Rows, scalar};
use crate::error::QuantError;
use crate::error_sums::{self, ErrorSums};
use crate::feedback::{ChooseQuants, Hessian};
use crate::fit;
pub use crate::fit::RowsToEncode;
use crate::isa::Isa;
use crate::panel::{self, ColumnMut, PANEL, PanelColumns};
use crate::refine::{RefineHifiRow, RefineRows};
use crate::simd::{Loop, run, run_loop, transform};
#[cfg(all(target_arch = "x86_64", not(portable)))]
use crate::{
    block::{BlockIQ4NL, BlockIQ4XS, LookUp},
    dot,
    dot::half_vector::MultiplyHalf,
    fit::vector,
    isa::has_vnni,
    simd::run_in_registers,
};

/// If the instruction set has vectors, runs the kernel and returns its result.
macro_rules! with_vectors {
    ($isa:expr, $kernel:expr) => {
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        if $isa != Isa::Scalar {
            return run_in_registers($isa, $kernel);
        }
        debug_assert!($isa == Isa::Scalar);
    };
}

/// Encodes rows as ggml does.
pub fn quantize_rows(isa: Isa, rows: RowsToEncode<'_>) {
    let RowsToEncode { kind, x, row_length, importance, out } = rows;
    with_block!(kind, B => {
        let out = block::blocks_mut::<B>(out);
        with_vectors!(isa, vector::QuantizeRows { x, row_length, importance, out });
        fit::quantize_rows::<B>(x, row_length, importance, out);
    });
}

/// Refines the blocks of rows: see the room `refine`.
pub fn refine_rows(isa: Isa, rows: RowsToEncode<'_>) {
    run(isa, RefineRows(rows));
}

/// Chooses the quants of `encoded` rows again, by error feedback: see [`crate::feedback`]. `x` are their weights.
pub(crate) fn choose_quants(
    isa: Isa,
    kind: TensorType,
    hessian: &Hessian,
    x: &[f32],
    encoded: &mut [u8],
) {
    run(isa, ChooseQuants { kind, hessian, x, encoded });
}

/// Decodes a row of `kind`.
pub fn dequantize_row(isa: Isa, kind: TensorType, row: &[u8], out: &mut [f32]) {
    match kind {
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        TensorType::IQ4NL if isa != Isa::Scalar => {
            run_in_registers(isa, LookUp::<BlockIQ4NL> { blocks: blocks(row), out });
        }
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        TensorType::IQ4XS if isa != Isa::Scalar => {
            run_in_registers(isa, LookUp::<BlockIQ4XS> { blocks: blocks(row), out });
        }
        _ => {
            with_block!(kind, B => transform::<DequantizeBlocks<B>>(isa, blocks(row), out))
        }
    }
}

/// Encodes the blocks of a row as Q4_HIFI.
pub(crate) fn encode_hifi_row(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    outliers: usize,
    out: &mut [HifiBlock],
) {
    let x = x.as_chunks().0;
    let importance = importance.map(|w| w.as_chunks().0);
    with_vectors!(isa, vector::EncodeHifiRow { x, importance, outliers, out });
    fit::encode_hifi_row(x, importance, outliers, out);
}

/// Refines the encoded `blocks` of a row `x`: see the room `refine`.
pub(crate) fn refine_hifi_row(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    blocks: &mut [HifiBlock],
) {
    let x = x.as_chunks().0;
    let importance = importance.map(|w| w.as_chunks().0);
    run(isa, RefineHifiRow { x, importance, blocks });
}

struct AllFinite<'a>(&'a [f32]);

impl Loop for AllFinite<'_> {
    type Output = bool;

    /// Checks every value, because vectors are faster than a loop that stops early.
    #[inline(always)]
    fn run(self) -> bool {
        self.0.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0) < f32::INFINITY.to_bits()
    }
}

/// Whether no value is NaN or infinite.
pub(crate) fn all_finite(isa: Isa, x: &[f32]) -> bool {
    run_loop(isa, AllFinite(x))
}

struct SumErrors<'a> {
    x: &'a [f32],
    importance: Option<&'a [f32]>,
    decoded: &'a [f32],
}

impl Loop for SumErrors<'_> {
    type Output = ErrorSums;

    #[inline(always)]
    fn run(self) -> ErrorSums {
        error_sums::error_sums(self.x, self.importance, self.decoded)
    }
}

/// The squared errors of a decoded row.
pub(crate) fn error_sums(
    isa: Isa,
    x: &[f32],
    importance: Option<&[f32]>,
    decoded: &[f32],
) -> ErrorSums {
    run_loop(isa, SumErrors { x, importance, decoded })
}

/// Multiplies `out.len()` rows by a column of activations.
///
/// The product of a row depends only on the row and the activations. Panics if the length or the form of the
/// activations does not fit the rows.
pub fn dot_rows(isa: Isa, rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    debug_assert!(isa.is_available());
    rows.check(activations, out.len());
    if out.is_empty() {
        return;
    }
    match isa {
        // SAFETY: the CPU has the instruction set, and VNNI.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 if has_vnni() => unsafe {
            dot::x86::avx512::dot_rows_vnni(rows, activations, out);
        },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { dot::x86::avx512::dot_rows(rows, activations, out) },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { dot::x86::avx2::dot_rows(rows, activations, out) },
        _ => scalar::dot_rows(rows, activations, out),
    }
}

/// Multiplies one row by a column of activations; see [`dot_rows`].
#[cfg(test)]
pub(crate) fn dot_row(isa: Isa, row: Rows<'_>, activations: &Activations) -> f32 {
    let mut out = [0f32];
    dot_rows(isa, row, activations, &mut out);
    out[0]
}

struct QuantizeActivations<'a, B> {
    x: &'a [f32],
    out: &'a mut [B],
}

impl<B: Quantize> Loop for QuantizeActivations<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        B::encode(self.x, self.out);
    }
}

/// Quantizes activations: the same bytes on every instruction set.
pub fn quantize_activations<B: Quantize>(isa: Isa, x: &[f32], out: &mut [B]) {
    run_loop(isa, QuantizeActivations { x, out });
}

struct NewActivations<'a>(TensorType, &'a [f32]);

impl Loop for NewActivations<'_> {
    type Output = Result<Activations, QuantError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        Activations::new(self.0, self.1)
    }
}

/// [`Activations::new`].
pub fn activations(isa: Isa, kind: TensorType, x: &[f32]) -> Result<Activations, QuantError> {
    run_loop(isa, NewActivations(kind, x))
}

struct HifiActivations<'a>(&'a [f32], usize);

impl Loop for HifiActivations<'_> {
    type Output = Result<Activations, QuantError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        Activations::for_hifi(self.0, self.1)
    }
}

/// [`Activations::for_hifi`].
pub fn hifi_activations(isa: Isa, x: &[f32], outliers: usize) -> Result<Activations, QuantError> {
    run_loop(isa, HifiActivations(x, outliers))
}

/// Adds the products of at most [`PANEL`] rows of `kind` and every column to `acc`, which has [`PANEL`] sums per
/// column. The length of `acc` is the number of columns, rounded up to a multiple of [`panel::MOST_COLUMNS`].
pub(crate) fn multiply_panel(
    isa: Isa,
    kind: TensorType,
    rows: &[u8],
    columns: PanelColumns<'_>,
    acc: &mut [[f32; PANEL]],
) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the instruction set, and VNNI.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 if has_vnni() => unsafe {
            panel::avx512::multiply_vnni(kind, rows, columns, acc);
        },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { panel::avx512::multiply(kind, rows, columns, acc) },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { panel::avx2::multiply(kind, rows, columns, acc) },
        // SAFETY: every CPU has these lanes.
        _ => unsafe { panel::multiply::<panel::Portable, 2, 4>(kind, rows, columns, acc) },
    }
}

/// Quantizes a column for panels.
pub(crate) fn quantize_column(isa: Isa, x: &[f32], out: ColumnMut<'_>) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { panel::avx512::quantize_column(x, out) },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { panel::avx2::quantize_column(x, out) },
        // SAFETY: every CPU has these lanes.
        _ => unsafe { panel::quantize_column::<panel::Portable>(x, out) },
    }
}

/// Multiplies an f32 matrix by an f16 matrix.
pub(crate) fn multiply_half(isa: Isa, product: HalfProduct<'_>) {
    product.check();
    with_vectors!(isa, MultiplyHalf(product));
    half::multiply_half(product);
}

/// The integer sums of a K-quant block's dot product, from every kernel for the instruction set.
#[cfg(test)]
pub(crate) fn block_sums(
    isa: Isa,
    kind: TensorType,
    block: &[u8],
    y: &crate::dot::BlockQ8K,
) -> Vec<scalar::KSums> {
    match isa {
        // SAFETY: the CPU has the instruction set, and VNNI where that is used.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe {
            let mut sums = vec![dot::x86::avx512::block_sums(kind, block, y)];
            if has_vnni() {
                sums.push(dot::x86::avx512::block_sums_vnni(kind, block, y));
            }
            sums
        },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { vec![dot::x86::avx2::block_sums(kind, block, y)] },
        _ => {
            let _ = (kind, block, y); // used by no portable kernel
            Vec::new()
        }
    }
}

/// Encodes a row; see [`quantize_rows`].
#[cfg(test)]
pub(crate) fn quantize_row(
    isa: Isa,
    kind: TensorType,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    quantize_rows(isa, RowsToEncode { kind, x, row_length: x.len(), importance, out });
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
        Isa::available()
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

    /// Rows that are encoded together give the bytes of single rows, whether or not they fill vectors.
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
                    let (x, importance, out) = (&x[..], w, &mut out[..]);
                    quantize_rows(isa, RowsToEncode { kind, x, row_length, importance, out });
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
                multiply_half(isa, HalfProduct { a: &a, stride, k, b: &b, n, c: &mut c });
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
