use super::group::weights_of;
use super::is_refinable;
use crate::block::HifiBlock;
use crate::block::{QK, QK_K, TensorType};
use crate::dispatch::{self, RowsToEncode};
use crate::error::QuantError;
use crate::error_sums::error_sums;
use crate::feedback::{Hessian, ROWS, correlations};
use crate::isa::Isa;
use crate::rows::{Encoding, Source, quantize, search_rows};
use crate::testing::{importance, weights};

/// Rows of 7 blocks, a number that fills no vector: ordinary, sparse, constant, and of extreme scales.
fn rows() -> Vec<Vec<f32>> {
    let plain = weights(7 * QK_K, 41);
    let of = |f: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
        plain.iter().enumerate().map(|(i, &v)| f(i, v)).collect()
    };
    let mut rows = vec![
        plain.clone(),
        of(&|i, v| if i % 9 == 0 { v } else { 0.0 }),
        of(&|i, v| v * 10f32.powi((i / 32) as i32 % 50 - 25)),
        of(&|i, v| if i % 64 < 32 { v.abs() } else { -v.abs() }),
        of(&|_, v| v * 1e-41),
        of(&|_, v| v * 1e-20),
        of(&|_, v| v * 1e6),
        of(&|_, v| v * 1e36),
        vec![0.0; plain.len()],
        vec![-0.37; plain.len()],
        vec![0.37; plain.len()],
    ];
    rows.truncate(few_inputs().unwrap_or(rows.len()));
    rows
}

fn importances() -> Vec<Option<Vec<f32>>> {
    let some = importance(7 * QK_K, 42);
    let scaled = |factor: f32| some.iter().map(|w| w * factor).collect::<Vec<f32>>();
    let holes = some.iter().enumerate().map(|(i, &w)| if i % 3 == 0 { 0.0 } else { w });
    let mut importances = vec![
        None,
        Some(scaled(1e-30)),
        Some(scaled(1e30)),
        Some(holes.collect()),
        Some(vec![0.0; some.len()]),
        Some(some),
    ];
    importances.truncate(few_inputs().unwrap_or(importances.len()));
    importances
}

/// How many inputs of a list are tested when a tool makes everything fifty times slower.
fn few_inputs() -> Option<usize> {
    std::env::var("Q4HIFI_FEW_INPUTS").ok().map(|n| n.parse().expect("a number"))
}

fn refinable() -> impl Iterator<Item = TensorType> {
    TensorType::ALL.into_iter().filter(|&kind| is_refinable(kind))
}

/// A single row.
fn row_of<'a>(
    kind: TensorType,
    x: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
) -> RowsToEncode<'a> {
    RowsToEncode { kind, x, row_length: x.len(), importance, out }
}

/// Bytes of a row as ggml's encoder writes them, and refined.
fn encode(isa: Isa, kind: TensorType, x: &[f32], w: Option<&[f32]>) -> (Vec<u8>, Vec<u8>) {
    let mut plain = vec![0u8; kind.row_bytes(x.len()).unwrap()];
    dispatch::quantize_row(isa, kind, x, w, &mut plain);
    let mut refined = plain.clone();
    dispatch::refine_rows(isa, row_of(kind, x, w, &mut refined));
    (plain, refined)
}

/// The errors of a row's blocks, with the weights of refinement.
fn errors(kind: TensorType, x: &[f32], w: Option<&[f32]>, row: &[u8]) -> Vec<f64> {
    let mut decoded = vec![0f32; x.len()];
    dispatch::dequantize_row(Isa::Scalar, kind, row, &mut decoded);
    let decoded = decoded.as_chunks::<QK_K>().0;
    decoded.iter().enumerate().map(|(i, decoded)| error_of_block(x, w, i, decoded)).collect()
}

/// The error of block `i` of a row.
fn error_of_block(x: &[f32], w: Option<&[f32]>, i: usize, decoded: &[f32; QK_K]) -> f64 {
    let x = &x.as_chunks().0[i];
    error_sums(x, Some(&weights_of(x, w.map(|w| &w.as_chunks().0[i]))), decoded).error
}

#[test]
fn no_block_is_worse_and_most_are_better() {
    for kind in refinable() {
        for (number, x) in rows().iter().enumerate() {
            for w in importances() {
                let w = w.as_deref();
                let (plain, refined) = encode(Isa::best(), kind, x, w);
                let (plain, refined) = (errors(kind, x, w, &plain), errors(kind, x, w, &refined));
                for (plain, refined) in plain.iter().zip(&refined) {
                    let is_worse = refined > plain || (refined.is_nan() && !plain.is_nan());
                    assert!(!is_worse, "{kind:?} row {number}: {refined} after {plain}");
                }
                if number == 0 && w.is_none_or(|w| w[0] > 0.0) {
                    let (plain, refined): (f64, f64) = (plain.iter().sum(), refined.iter().sum());
                    assert!(refined < 0.98 * plain, "{kind:?}: {refined} after {plain}");
                }
            }
        }
    }
}

#[test]
fn without_ggmls_blocks_to_start_from_hardly_any_is_worse() {
    for kind in refinable() {
        let mut ordinary = 0.0;
        for (number, x) in rows().iter().enumerate() {
            for w in importances() {
                let w = w.as_deref();
                let (plain, refined) = encode(Isa::best(), kind, x, w);
                let mut found = vec![0xffu8; plain.len()];
                search_rows(Isa::best(), row_of(kind, x, w, &mut found));
                let [plain, refined, found] =
                    [&plain, &refined, &found].map(|row| errors(kind, x, w, row));
                let weights = errors_of_zeros(x, w);
                if number == 0 {
                    let sum = |of: &[f64]| of.iter().sum::<f64>();
                    if w.is_none() {
                        ordinary = sum(&plain) / sum(&weights);
                    }
                    assert!(sum(&found) <= 1.002 * sum(&refined), "{kind:?}");
                }
                for ((plain, found), weights) in plain.iter().zip(&found).zip(&weights) {
                    // blocks of one value, which ggml stores nearly as it is, may become ordinary ones
                    let most = 1.1 * plain + ordinary * weights;
                    let is_worse = *found > most || (found.is_nan() && !plain.is_nan());
                    assert!(!is_worse, "{kind:?} row {number}: {found} after {plain} of {weights}");
                }
            }
        }
    }
}

#[test]
fn every_isa_and_every_batch_of_rows_gives_the_same_bytes() {
    for kind in refinable() {
        for x in rows() {
            for w in importances() {
                let (plain, expected) = encode(Isa::Scalar, kind, &x, w.as_deref());
                for isa in Isa::available() {
                    assert!(encode(isa, kind, &x, w.as_deref()).1 == expected, "{kind:?} {isa:?}");
                    let twice = [x.as_slice(), &x].concat();
                    let mut out = plain.repeat(2);
                    let (row_length, importance) = (x.len(), w.as_deref());
                    let rows =
                        RowsToEncode { kind, x: &twice, row_length, importance, out: &mut out };
                    dispatch::refine_rows(isa, rows);
                    assert!(out == expected.repeat(2), "{kind:?} {isa:?} two rows");
                }
            }
        }
    }
}

#[test]
fn q4_hifi_is_never_worse_and_the_same_on_every_isa() {
    for x in rows() {
        for w in importances() {
            let w = w.as_deref();
            for outliers in [0, 1, 8, 32] {
                let encode = |isa| {
                    let mut blocks = vec![HifiBlock::ZERO; x.len() / QK_K];
                    dispatch::encode_hifi_row(isa, &x, w, outliers, &mut blocks);
                    let plain = blocks.clone();
                    dispatch::refine_hifi_row(isa, &x, w, &mut blocks);
                    (plain, blocks)
                };
                let (plain, expected) = encode(Isa::best());
                for (i, (plain, refined)) in plain.iter().zip(&expected).enumerate() {
                    let error = |b: &HifiBlock| error_of_block(&x, w, i, &b.decode());
                    let (plain, refined) = (error(plain), error(refined));
                    assert!(
                        refined <= plain || plain.is_nan(),
                        "{outliers}: {refined} after {plain}"
                    );
                }
                for isa in Isa::available() {
                    let text = |blocks: &[HifiBlock]| format!("{blocks:?}");
                    assert!(text(&encode(isa).1) == text(&expected), "{isa:?} {outliers}");
                }
            }
        }
    }
}

/// Weights are in proportion to the importance and grow with the weight, whatever the scale of either.
#[test]
fn large_weights_count_for_more() {
    let x: [f32; QK_K] = std::array::from_fn(|i| if i % 2 == 0 { 1.0 } else { -3.0 });
    let importance: [f32; QK_K] = std::array::from_fn(|i| if i < 128 { 1.0 } else { 2.0 });
    // of a mean square of 5
    let ratio = (19f32 / 11.0).sqrt();
    for (scale, more) in [(1.0, 1.0), (1e-10, 1e30), (1e10, 1e-30)] {
        let w = weights_of(&x.map(|x| x * scale), Some(&importance.map(|w| w * more)));
        for (i, expected) in [(1, ratio), (128, 2.0), (129, 2.0 * ratio)] {
            assert!((w[i] / w[0] / expected - 1.0).abs() < 1e-5, "{i}: {w:?}");
        }
        assert!((w.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    // squares that vanish: importances alone; nothing matters: nothing
    let alike = weights_of(&x.map(|x| x * 1e-30), None);
    assert!(alike.iter().all(|w| (w * 256.0 - 1.0).abs() < 1e-5), "{alike:?}");
    assert_eq!(weights_of(&x, Some(&[0.0; QK_K])), [0.0; QK_K]);
}

/// The errors of blocks of zeros.
fn errors_of_zeros(x: &[f32], w: Option<&[f32]>) -> Vec<f64> {
    errors(TensorType::F32, x, w, &vec![0; size_of_val(x)])
}

/// A block of values that the type can say comes out without error.
#[test]
fn what_can_be_stored_exactly_is() {
    for kind in refinable() {
        let (row, _) = encode(Isa::best(), kind, &weights(4 * QK_K, 43), None);
        let mut x = vec![0f32; 4 * QK_K];
        dispatch::dequantize_row(Isa::Scalar, kind, &row, &mut x);
        let (plain, refined) = encode(Isa::best(), kind, &x, None);
        let sum = |row: &[u8]| errors(kind, &x, None, row).iter().sum::<f64>();
        assert!(sum(&refined) <= 0.5 * sum(&plain), "{kind:?}: {} {}", sum(&refined), sum(&plain));
    }
}

/// The types with quants, to which error feedback applies.
fn with_quants() -> impl Iterator<Item = TensorType> {
    TensorType::ALL.into_iter().filter(|kind| kind.block_weights() > 1)
}

/// Columns of a row: few, because sanitizers are slow.
const COLUMNS: usize = 2 * QK_K;

/// A row's length and importance. For types with blocks of 32, the length is not a multiple of 256.
fn columns(kind: TensorType) -> (usize, Vec<f32>) {
    let n = if kind.block_weights() == QK { COLUMNS - 5 * QK } else { COLUMNS };
    (n, importance(n, 42))
}

/// H of inputs whose variance is to one half in six directions, and the [`Hessian`] of it.
fn correlated(importance: &[f32]) -> (Vec<f64>, Hessian) {
    let n = importance.len();
    let directions = weights(n * 6, 43);
    let squares = directions.chunks_exact(6).map(|u| u.iter().map(|u| u * u).sum::<f32>());
    let u: Vec<f64> = (directions.chunks_exact(6).zip(squares).zip(importance))
        .flat_map(|((u, square), w)| {
            u.iter().map(move |u| f64::from(u * (0.5 * w / square).sqrt()))
        })
        .collect();
    let dot = |i: usize, j: usize| (0..6).map(|k| u[i * 6 + k] * u[j * 6 + k]).sum::<f64>();
    let entry = |i: usize, j: usize| if i == j { f64::from(importance[i]) } else { dot(i, j) };
    let h: Vec<f64> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
    let products: Vec<f32> = (0..n)
        .flat_map(|i| (i + 1..n).map(move |j| (i, j)))
        .map(|(i, j)| h[i * n + j] as f32)
        .collect();
    let known = correlations::correlations(&products, importance);
    let inputs = Hessian::new(importance, &known, 1e6).unwrap();
    (h, inputs)
}

/// The cost of a row's errors, eᵀ H e.
fn cost(h: &[f64], errors: &[f32]) -> f64 {
    let rows = h.chunks_exact(errors.len()).zip(errors);
    let along = |row: &[f64]| row.iter().zip(errors).map(|(h, &e)| h * f64::from(e)).sum::<f64>();
    rows.map(|(row, &e)| f64::from(e) * along(row)).sum()
}

fn canceled(isa: Isa, kind: TensorType, x: &[f32], inputs: &Hessian, encoded: &[u8]) -> Vec<u8> {
    let mut out = encoded.to_vec();
    dispatch::choose_quants(isa, kind, inputs, x, &mut out);
    out
}

#[test]
fn errors_cancel_and_scales_stay() {
    for kind in with_quants() {
        let (n, w) = columns(kind);
        let (x, (h, inputs)) = (weights(n, 41), correlated(&w));
        let (_, before) = encode(Isa::best(), kind, &x, Some(&w));
        let after = canceled(Isa::best(), kind, &x, &inputs, &before);
        let decoded = |row: &[u8]| {
            let mut errors = vec![0f32; x.len()];
            dispatch::dequantize_row(Isa::Scalar, kind, row, &mut errors);
            errors.iter().zip(&x).map(|(y, x)| y - x).collect::<Vec<f32>>()
        };
        let (old, new) = (decoded(&before), decoded(&after));
        let (costs, own) = (
            cost(&h, &new) / cost(&h, &old),
            new.iter().map(|e| e * e).sum::<f32>() / old.iter().map(|e| e * e).sum::<f32>(),
        );
        // less from ggml's blocks, whose scales were found one by one
        let (most, growth) = if is_refinable(kind) { (0.7, 1.3) } else { (0.8, 1.6) };
        assert!(costs < most, "{kind:?}: {costs}");
        assert!((1.0..growth).contains(&own), "{kind:?}: errors of {own}");
        let changed = old.iter().zip(&new).filter(|(a, b)| a != b).count();
        assert!((x.len() / 100..x.len() / 4).contains(&changed), "{kind:?}: {changed} changes");
    }
}

/// And rows do not meet: together they come to what each comes to alone.
#[test]
fn errors_cancel_in_the_same_way_on_every_isa() {
    let rows = rows();
    for kind in with_quants() {
        let (n, w) = columns(kind);
        let (_, inputs) = correlated(&w);
        let one = |x: &Vec<f32>| {
            let x = x[..n].to_vec();
            let (_, encoded) = encode(Isa::Scalar, kind, &x, Some(&w));
            let alone = canceled(Isa::Scalar, kind, &x, &inputs, &encoded);
            (x, encoded, alone)
        };
        let different: Vec<_> = rows.iter().map(one).collect();
        let many = || different.iter().cycle().take(ROWS + 3);
        let x: Vec<f32> = many().flat_map(|(x, ..)| x.clone()).collect();
        let encoded: Vec<u8> = many().flat_map(|(_, encoded, _)| encoded.clone()).collect();
        let alone: Vec<u8> = many().flat_map(|(.., alone)| alone.clone()).collect();
        for isa in Isa::available() {
            assert!(canceled(isa, kind, &x, &inputs, &encoded) == alone, "{kind:?} {isa:?}");
        }
    }
}

#[test]
fn without_correlations_quants_are_the_nearest() {
    for kind in with_quants() {
        let (n, w) = columns(kind);
        let (x, none) = (weights(n, 41), vec![0i8; correlations::pairs(n)]);
        for known in [&[], &none[..]] {
            let inputs = Hessian::new(&w, known, 1e6).unwrap();
            let (_, before) = encode(Isa::best(), kind, &x, Some(&w));
            let after = canceled(Isa::best(), kind, &x, &inputs, &before);
            // ggml rounds by scales that are not yet those of the block
            assert!(after == before || !is_refinable(kind), "{kind:?}");
            let (before, after) = (errors(kind, &x, None, &before), errors(kind, &x, None, &after));
            assert!(before.iter().zip(&after).all(|(before, after)| after <= before), "{kind:?}");
        }
    }
}

/// Correlations that no inputs can have, as in a damaged file, make no quants but legal ones.
#[test]
fn correlations_may_be_anything() {
    let (x, w) = (weights(QK_K, 41), importance(QK_K, 42));
    let bytes: Vec<i8> =
        weights(correlations::pairs(QK_K), 44).iter().map(|v| (v * 1e4) as i8).collect();
    for (known, w) in [(&bytes[..], &w[..]), (&vec![-128; bytes.len()][..], &[0.0; QK_K])] {
        let inputs = Hessian::new(w, known, 1e6).unwrap();
        let (_, mut row) = encode(Isa::best(), TensorType::Q4K, &x, None);
        dispatch::choose_quants(Isa::best(), TensorType::Q4K, &inputs, &x, &mut row);
        assert!(errors(TensorType::Q4K, &x, None, &row)[0].is_finite());
    }
}

#[test]
fn inputs_are_checked() {
    let w = importance(256, 1);
    let short =
        QuantError::BufferLength { what: "correlations", got: 257, expected: 256 * 255 / 2 };
    assert_eq!(Hessian::new(&w, &[0; 257], 1.0).unwrap_err(), short);
    assert_eq!(
        Hessian::new(&[-1.0], &[], 1.0).unwrap_err(),
        QuantError::BadImportance { position: 0 }
    );
    let source = Source::from_f32(&[0.0; 512], 512).unwrap();
    let inputs = Hessian::new(&w, &[], 0.0).unwrap();
    let refined =
        quantize(source, TensorType::Q4K, None, Encoding::ErrorFeedback(&inputs), &mut [0; 288]);
    assert!(matches!(refined, Err(QuantError::BufferLength { got: 256, expected: 512, .. })));
}
