//! Whole matrices: lengths are checked here, once, and rows are spread over the threads of the
//! current rayon pool. What callers outside the crate use.
//!
//! Results do not depend on the number of threads: every row is computed alone, and sums over
//! rows are added up in their order.

use crate::block::{QK_K, TensorType};
use crate::error::QuantError;
use crate::error_sums::ErrorSums;
use crate::kernel::{self, Isa};
use crate::refine::cancel::ROWS;
use crate::refine::{Inputs, is_refinable};
use rayon::prelude::*;

/// Rows of one type, as they lie in a file.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    kind: TensorType,
    data: &'a [u8],
    row_length: usize,
    row_bytes: usize,
}

impl<'a> Source<'a> {
    /// Rows of `row_length` weights of type `kind`; `data` holds whole rows.
    pub fn new(kind: TensorType, data: &'a [u8], row_length: usize) -> Result<Self, QuantError> {
        let row_bytes = kind.row_bytes(row_length)?;
        if !data.len().is_multiple_of(row_bytes) {
            let expected = data.len().next_multiple_of(row_bytes);
            return Err(QuantError::BufferLength { what: "source", got: data.len(), expected });
        }
        Ok(Self { kind, data, row_length, row_bytes })
    }

    /// Rows of `row_length` numbers.
    pub fn from_f32(x: &'a [f32], row_length: usize) -> Result<Self, QuantError> {
        // SAFETY: an f32 is four bytes, every one of which may be read as u8.
        let bytes = unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) };
        Self::new(TensorType::F32, bytes, row_length)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.row_bytes
    }

    /// Weights in a row.
    pub fn row_length(&self) -> usize {
        self.row_length
    }

    pub(crate) fn kind(&self) -> TensorType {
        self.kind
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    pub(crate) fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Row `row` and those after it in numbers, `scratch` holding as many as are wanted: there, or where
    /// they lie already. Fails on NaN and infinity.
    fn finite<'s>(
        &self,
        isa: Isa,
        row: usize,
        scratch: &'s mut [f32],
    ) -> Result<&'s [f32], QuantError>
    where
        'a: 's,
    {
        let bytes = scratch.len() / self.row_length * self.row_bytes;
        let data = &self.data[row * self.row_bytes..][..bytes];
        let x = match self.numbers(data) {
            Some(x) => x,
            None => {
                kernel::dequantize_row(isa, self.kind, data, scratch);
                scratch
            }
        };
        if kernel::all_finite(isa, x) {
            return Ok(x);
        }
        let finite = x.iter().take_while(|v| v.is_finite()).count();
        Err(QuantError::NotFinite { position: row * self.row_length + finite })
    }

    /// `data` as the numbers that it is, if it is f32 as this machine has it.
    fn numbers<'d>(&self, data: &'d [u8]) -> Option<&'d [f32]> {
        if self.kind != TensorType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        // SAFETY: every four bytes are an f32.
        let (before, x, after) = unsafe { data.align_to() };
        (before.is_empty() && after.is_empty()).then_some(x)
    }
}

/// Encodes rows as `kind` into `out`, under the `importance` of each column if given.
pub fn quantize(
    source: Source<'_>,
    kind: TensorType,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<ErrorSums, QuantError> {
    quantize_with(source, kind, importance, false, None, out)
}

/// As [`quantize`], with blocks of less error where [`crate::refine`] finds them; where more is known of the
/// `inputs` of the rows, their errors are made to cancel, though each may then be larger.
pub fn quantize_refined(
    source: Source<'_>,
    kind: TensorType,
    importance: Option<&[f32]>,
    inputs: Option<&Inputs>,
    out: &mut [u8],
) -> Result<ErrorSums, QuantError> {
    quantize_with(source, kind, importance, true, inputs, out)
}

fn quantize_with(
    source: Source<'_>,
    kind: TensorType,
    importance: Option<&[f32]>,
    refine: bool,
    inputs: Option<&Inputs>,
    out: &mut [u8],
) -> Result<ErrorSums, QuantError> {
    let row_bytes = kind.row_bytes(source.row_length)?;
    expect_length("output", out.len(), source.rows() * row_bytes)?;
    check_importance(importance, source.row_length)?;
    if let Some(inputs) = inputs {
        inputs.check(source.row_length)?;
    }
    let isa = Isa::active()?;
    let row_length = source.row_length;
    let at_once = inputs.map_or(kernel::rows_at_once(kind, importance), |_| ROWS);
    let out = out.par_chunks_mut(at_once * row_bytes);
    per_rows(isa, source, at_once, out, |x, decoded, out, sums| {
        if inputs.is_some() && is_refinable(kind) {
            search_rows(isa, kind, x, row_length, importance, out);
        } else {
            kernel::quantize_rows(isa, kind, x, row_length, importance, out);
            if refine {
                kernel::refine_rows(isa, kind, x, row_length, importance, out);
            }
        }
        if let Some(inputs) = inputs {
            kernel::cancel(isa, kind, inputs, x, out);
        }
        let rows = x.chunks_exact(row_length).zip(out.chunks_exact(row_bytes));
        for ((x, out), sums) in rows.zip(sums) {
            kernel::dequantize_row(isa, kind, out, decoded);
            *sums = kernel::error_sums(isa, x, importance, decoded);
        }
    })
}

/// Encodes rows as [`crate::refine`] finds blocks without ggml's to start from, which saves that fit. Hardly a
/// block is worse for it. Where none is found, as where nothing has any importance, the block is ggml's.
pub(crate) fn search_rows(
    isa: Isa,
    kind: TensorType,
    x: &[f32],
    row_length: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    out.fill(0); // blocks that decode to zeros
    kernel::refine_rows(isa, kind, x, row_length, importance, out);
    let block_bytes = out.len() / (x.len() / QK_K);
    let places = (0..row_length).step_by(QK_K).cycle();
    let blocks = x.chunks_exact(QK_K).zip(out.chunks_exact_mut(block_bytes));
    for ((x, out), place) in blocks.zip(places) {
        if out.iter().all(|&byte| byte == 0) {
            let importance = importance.map(|w| &w[place..][..QK_K]);
            kernel::quantize_rows(isa, kind, x, QK_K, importance, out);
        }
    }
}

/// Decodes rows into `out`.
pub fn dequantize(source: Source<'_>, out: &mut [f32]) -> Result<(), QuantError> {
    expect_length("output", out.len(), source.rows() * source.row_length)?;
    let isa = Isa::active()?;
    out.par_chunks_exact_mut(source.row_length)
        .zip(source.data.par_chunks_exact(source.row_bytes))
        .for_each(|(out, row)| kernel::dequantize_row(isa, source.kind, row, out));
    Ok(())
}

/// How far `decoded` weights are from rows, under the `weights` of each column, which need not be those
/// under which they were encoded.
pub fn errors(
    source: Source<'_>,
    decoded: &[f32],
    weights: Option<&[f32]>,
) -> Result<ErrorSums, QuantError> {
    expect_length("decoded", decoded.len(), source.rows() * source.row_length)?;
    check_importance(weights, source.row_length)?;
    let isa = Isa::active()?;
    per_row(isa, source, decoded.par_chunks_exact(source.row_length), |x, _, decoded| {
        kernel::error_sums(isa, x, weights, decoded)
    })
}

/// Fails on the first weight that decodes to NaN or infinity.
pub fn check_finite(source: Source<'_>) -> Result<(), QuantError> {
    let isa = Isa::active()?;
    (0..source.rows())
        .into_par_iter()
        .map_init(|| vec![0f32; source.row_length], |row, i| source.finite(isa, i, row).map(|_| ()))
        .find_map_first(Result::err)
        .map_or(Ok(()), Err)
}

/// Gives every row of `source` to `encode` with a scratch row and its place in `out`, and adds up what
/// comes back. The error reported is that of the first row that has one.
pub(crate) fn per_row<O: Send>(
    isa: Isa,
    source: Source<'_>,
    out: impl IndexedParallelIterator<Item = O>,
    encode: impl Fn(&[f32], &mut [f32], O) -> ErrorSums + Sync,
) -> Result<ErrorSums, QuantError> {
    per_rows(isa, source, 1, out, |x, decoded, out, sums| sums[0] = encode(x, decoded, out))
}

/// As [`per_row`], `at_once` rows at a time, fewer at the end; the scratch row is still one, and
/// `encode` writes the sums of each row.
pub(crate) fn per_rows<O: Send>(
    isa: Isa,
    source: Source<'_>,
    at_once: usize,
    out: impl IndexedParallelIterator<Item = O>,
    encode: impl Fn(&[f32], &mut [f32], O, &mut [ErrorSums]) + Sync,
) -> Result<ErrorSums, QuantError> {
    let mut sums = vec![ErrorSums::default(); source.rows()];
    let scratch = || (vec![0f32; at_once * source.row_length], vec![0f32; source.row_length]);
    out.zip(sums.par_chunks_mut(at_once))
        .enumerate()
        .map_init(scratch, |(x, decoded), (i, (out, sums))| {
            let x = &mut x[..sums.len() * source.row_length];
            encode(source.finite(isa, i * at_once, x)?, decoded, out, sums);
            Ok(())
        })
        .find_map_first(Result::err)
        .map_or(Ok(()), Err)?;
    Ok(sums.into_iter().sum())
}

pub(crate) fn expect_length(
    what: &'static str,
    got: usize,
    expected: usize,
) -> Result<(), QuantError> {
    if got == expected { Ok(()) } else { Err(QuantError::BufferLength { what, got, expected }) }
}

pub(crate) fn check_importance(
    importance: Option<&[f32]>,
    row_length: usize,
) -> Result<(), QuantError> {
    let Some(importance) = importance else { return Ok(()) };
    expect_length("importance", importance.len(), row_length)?;
    match importance.iter().position(|w| !w.is_finite() || *w < 0.0) {
        None => Ok(()),
        Some(position) => Err(QuantError::BadImportance { position }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{importance, weights};

    fn encode(x: &[f32], row: usize, kind: TensorType, w: Option<&[f32]>) -> (Vec<u8>, ErrorSums) {
        let mut out = vec![0u8; x.len() / row * kind.row_bytes(row).unwrap()];
        let sums = quantize(Source::from_f32(x, row).unwrap(), kind, w, &mut out).unwrap();
        (out, sums)
    }

    /// More bits, less error: each type's error on bell-shaped weights is where it should be.
    #[test]
    fn errors_are_those_of_the_types() {
        let x = weights(16 * 512, 1);
        for (kind, most) in [
            (TensorType::F32, 0.0),
            (TensorType::F16, 1e-7),
            (TensorType::BF16, 3e-6),
            (TensorType::Q8_0, 1e-4),
            (TensorType::Q6K, 8e-4),
            (TensorType::Q5K, 3e-3),
            (TensorType::Q5_1, 4e-3),
            (TensorType::Q5_0, 6e-3),
            (TensorType::IQ4NL, 1.1e-2),
            (TensorType::Q4K, 1.2e-2),
            (TensorType::IQ4XS, 1.2e-2),
            (TensorType::Q4_1, 1.6e-2),
            (TensorType::Q4_0, 2.4e-2),
            (TensorType::Q3K, 5e-2),
            (TensorType::Q2K, 2e-1),
        ] {
            let (data, sums) = encode(&x, 512, kind, None);
            assert!(sums.relative() <= most, "{kind:?}: {}", sums.relative());
            let mut back = vec![0f32; x.len()];
            dequantize(Source::new(kind, &data, 512).unwrap(), &mut back).unwrap();
            let recomputed: f64 = x.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!((recomputed - sums.error).abs() <= 1e-6 * sums.error, "{kind:?}");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let (x, w) = (weights(64 * 256, 2), importance(256, 3));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| encode(&x, 256, TensorType::Q4K, Some(&w)))
        };
        assert_eq!(run(1), run(4));
    }

    #[test]
    fn errors_are_the_encoders_under_its_weights_and_others_under_others() {
        let (x, w) = (weights(8 * 256, 6), importance(256, 7));
        let source = Source::from_f32(&x, 256).unwrap();
        let (data, sums) = encode(&x, 256, TensorType::Q4K, Some(&w));
        let mut back = vec![0f32; x.len()];
        dequantize(Source::new(TensorType::Q4K, &data, 256).unwrap(), &mut back).unwrap();
        assert_eq!(errors(source, &back, Some(&w)), Ok(sums));
        let plain: f64 = x.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        assert!((errors(source, &back, None).unwrap().error / plain - 1.0).abs() < 1e-6);
        assert!(errors(source, &back[1..], None).is_err());
        assert!(errors(source, &back, Some(&w[1..])).is_err());
    }

    #[test]
    fn lengths_are_checked() {
        let x = weights(512, 4);
        let row_length = QuantError::RowLength { row_length: 100, block: 256, name: "Q4_K" };
        assert_eq!(TensorType::Q4K.row_bytes(100), Err(row_length));
        assert!(Source::from_f32(&x, 300).is_err());
        assert!(TensorType::Q4K.row_bytes(0).is_err());
        let source = Source::from_f32(&x, 256).unwrap();
        for (what, result) in [
            ("output", quantize(source, TensorType::Q4K, None, &mut [0; 287])),
            ("importance", quantize(source, TensorType::Q4K, Some(&[1.0; 255]), &mut [0; 288])),
        ] {
            assert!(
                matches!(result, Err(QuantError::BufferLength { what: w, .. }) if w == what),
                "{result:?}"
            );
        }
    }

    #[test]
    fn what_is_not_finite_is_told_with_its_first_place() {
        let mut x = weights(4 * 256, 5);
        (x[700], x[300]) = (f32::NAN, f32::INFINITY);
        let source = Source::from_f32(&x, 256).unwrap();
        let error = Err(QuantError::NotFinite { position: 300 });
        assert_eq!(quantize(source, TensorType::Q6K, None, &mut [0; 840]), error);
        assert_eq!(check_finite(source), Err(QuantError::NotFinite { position: 300 }));
        let bad = [1.0, -1.0].repeat(128);
        let source = Source::from_f32(&x[..256], 256).unwrap();
        assert_eq!(
            quantize(source, TensorType::Q6K, Some(&bad), &mut [0; 210]),
            Err(QuantError::BadImportance { position: 1 })
        );
    }
}
