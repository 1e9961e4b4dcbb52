//! Whole matrices of one type.

use super::encoding::Encoding;
use super::source::{Source, per_row, per_rows};
use crate::block::{QK_K, TensorType};
use crate::check::{check_importance, expect_length};
use crate::dispatch::{self, RowsToEncode};
use crate::error::QuantError;
use crate::error_sums::ErrorSums;
use crate::feedback::ROWS;
use crate::fit;
use crate::isa::Isa;
use crate::refine::is_refinable;
use rayon::prelude::*;

/// Encodes rows as `kind` into `out`, with the `importance` of each column if it is given. Returns the errors.
pub fn quantize(
    source: Source<'_>,
    kind: TensorType,
    importance: Option<&[f32]>,
    encoding: Encoding<'_>,
    out: &mut [u8],
) -> Result<ErrorSums, QuantError> {
    let row_length = source.row_length();
    let row_bytes = kind.row_bytes(row_length)?;
    expect_length("output", out.len(), source.rows() * row_bytes)?;
    check_importance(importance, row_length)?;
    encoding.check(row_length)?;
    let isa = Isa::active()?;
    let at_once = match encoding {
        Encoding::Ggml | Encoding::Refined => fit::rows_at_once(kind, importance),
        Encoding::ErrorFeedback(_) => ROWS,
    };
    let out = out.par_chunks_mut(at_once * row_bytes);
    per_rows(isa, source, at_once, out, |x, decoded, out, sums| {
        let mut rows = RowsToEncode { kind, x, row_length, importance, out };
        match encoding {
            Encoding::ErrorFeedback(_) if is_refinable(kind) => search_rows(isa, rows.reborrow()),
            _ => dispatch::quantize_rows(isa, rows.reborrow()),
        }
        match encoding {
            Encoding::Ggml => {}
            Encoding::Refined => dispatch::refine_rows(isa, rows.reborrow()),
            Encoding::ErrorFeedback(hessian) => {
                dispatch::choose_quants(isa, kind, hessian, x, rows.out);
            }
        }
        let out = rows.out;
        let rows = x.chunks_exact(row_length).zip(out.chunks_exact(row_bytes));
        for ((x, out), sums) in rows.zip(sums) {
            dispatch::dequantize_row(isa, kind, out, decoded);
            *sums = dispatch::error_sums(isa, x, importance, decoded);
        }
    })
}

/// Refines without ggml's blocks as a start, which saves time and makes few blocks worse. If the search finds no block,
/// for example because all importances are 0, the block is ggml's.
pub(crate) fn search_rows(isa: Isa, mut rows: RowsToEncode<'_>) {
    rows.out.fill(0); // blocks that decode to zeros, which any other block improves
    dispatch::refine_rows(isa, rows.reborrow());
    let RowsToEncode { kind, x, row_length, importance, out } = rows;
    let block_bytes = out.len() / (x.len() / QK_K);
    let columns = (0..row_length).step_by(QK_K).cycle();
    let blocks = x.chunks_exact(QK_K).zip(out.chunks_exact_mut(block_bytes));
    for ((x, out), column) in blocks.zip(columns) {
        if out.iter().all(|&byte| byte == 0) {
            let importance = importance.map(|w| &w[column..][..QK_K]);
            let block = RowsToEncode { kind, x, row_length: QK_K, importance, out };
            dispatch::quantize_rows(isa, block);
        }
    }
}

/// Decodes rows into `out`.
pub fn dequantize(source: Source<'_>, out: &mut [f32]) -> Result<(), QuantError> {
    expect_length("output", out.len(), source.rows() * source.row_length())?;
    let isa = Isa::active()?;
    out.par_chunks_exact_mut(source.row_length())
        .zip(source.data().par_chunks_exact(source.row_bytes()))
        .for_each(|(out, row)| dispatch::dequantize_row(isa, source.kind(), row, out));
    Ok(())
}

/// Squared errors of `decoded` weights, times the `weights` of their columns. These may differ from the importance with
/// which the rows were encoded.
pub fn errors(
    source: Source<'_>,
    decoded: &[f32],
    weights: Option<&[f32]>,
) -> Result<ErrorSums, QuantError> {
    expect_length("decoded", decoded.len(), source.rows() * source.row_length())?;
    check_importance(weights, source.row_length())?;
    let isa = Isa::active()?;
    per_row(isa, source, decoded.par_chunks_exact(source.row_length()), |x, _, decoded| {
        dispatch::error_sums(isa, x, weights, decoded)
    })
}

/// Fails on the first weight that decodes to NaN or infinity.
pub fn check_finite(source: Source<'_>) -> Result<(), QuantError> {
    let isa = Isa::active()?;
    (0..source.rows())
        .into_par_iter()
        .map_init(
            || vec![0f32; source.row_length()],
            |row, i| source.finite(isa, i, row).map(|_| ()),
        )
        .find_map_first(Result::err)
        .map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{importance, weights};

    fn encode(x: &[f32], row: usize, kind: TensorType, w: Option<&[f32]>) -> (Vec<u8>, ErrorSums) {
        let mut out = vec![0u8; x.len() / row * kind.row_bytes(row).unwrap()];
        let sums =
            quantize(Source::from_f32(x, row).unwrap(), kind, w, Encoding::Ggml, &mut out).unwrap();
        (out, sums)
    }

    /// More bits, less error: each type's error on bell-shaped weights is where it should be.
    #[test]
    fn errors_are_those_of_the_types() {
        let x = weights(16 * 512, 1);
        for kind in TensorType::ALL {
            let most = match kind {
                TensorType::F32 => 0.0,
                TensorType::F16 => 1e-7,
                TensorType::BF16 => 3e-6,
                TensorType::Q8_0 => 1e-4,
                TensorType::Q6K => 8e-4,
                TensorType::Q5K => 3e-3,
                TensorType::Q5_1 => 4e-3,
                TensorType::Q5_0 => 6e-3,
                TensorType::IQ4NL => 1.1e-2,
                TensorType::Q4K | TensorType::IQ4XS => 1.2e-2,
                TensorType::Q4_1 => 1.6e-2,
                TensorType::Q4_0 => 2.4e-2,
                TensorType::Q3K => 5e-2,
                TensorType::Q2K => 2e-1,
            };
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
            ("output", quantize(source, TensorType::Q4K, None, Encoding::Ggml, &mut [0; 287])),
            (
                "importance",
                quantize(source, TensorType::Q4K, Some(&[1.0; 255]), Encoding::Ggml, &mut [0; 288]),
            ),
        ] {
            assert!(
                matches!(result, Err(QuantError::BufferLength { what: w, .. }) if w == what),
                "{result:?}"
            );
        }
    }

    #[test]
    fn the_first_weight_that_is_not_finite_is_named() {
        let mut x = weights(4 * 256, 5);
        (x[700], x[300]) = (f32::NAN, f32::INFINITY);
        let source = Source::from_f32(&x, 256).unwrap();
        let error = Err(QuantError::NotFinite { position: 300 });
        assert_eq!(quantize(source, TensorType::Q6K, None, Encoding::Ggml, &mut [0; 840]), error);
        assert_eq!(check_finite(source), Err(QuantError::NotFinite { position: 300 }));
        let bad = [1.0, -1.0].repeat(128);
        let source = Source::from_f32(&x[..256], 256).unwrap();
        assert_eq!(
            quantize(source, TensorType::Q6K, Some(&bad), Encoding::Ggml, &mut [0; 210]),
            Err(QuantError::BadImportance { position: 1 })
        );
    }
}
