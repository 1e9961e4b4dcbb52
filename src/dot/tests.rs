//! Kernels against the oracle, and the oracle against decoded weights.

use super::activations::{Column, SUM};
use super::scalar::{KBlock, KSums};
use super::{Activations, BlockQ8_1, BlockQ8K, Quantize, Rows};
use crate::block::{
    BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, BlockQ8_0, QK, QK_K, TensorType,
    blocks, bytes_of,
};
use crate::dispatch::{self, block_sums, dot_row, dot_rows, quantize_activations};
use crate::error::QuantError;
use crate::isa::Isa;
use crate::rows::{Encoding, Outliers, OutliersMut, Source};
use crate::testing::weights;

fn isas() -> impl Iterator<Item = Isa> {
    Isa::available()
}

/// Bytes of all values, reproducible.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// The dot product of decoded weights and activations, and the sum of its terms' magnitudes.
fn exact(w: &[f32], x: &[f32]) -> (f64, f64) {
    let terms = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
    (terms().sum(), terms().map(f64::abs).sum())
}

fn assert_near(got: f32, expected: f64, magnitude: f64, tolerance: f64, what: &str) {
    let error = (f64::from(got) - expected).abs();
    assert!(error <= tolerance * magnitude, "{what}: {got} for {expected}, magnitude {magnitude}");
}

fn scalar_sums(kind: TensorType, block: &[u8], y: &BlockQ8K) -> KSums {
    match kind {
        TensorType::Q2K => blocks::<BlockQ2K>(block)[0].sums(y),
        TensorType::Q3K => blocks::<BlockQ3K>(block)[0].sums(y),
        TensorType::Q4K => blocks::<BlockQ4K>(block)[0].sums(y),
        TensorType::Q5K => blocks::<BlockQ5K>(block)[0].sums(y),
        TensorType::IQ4XS => blocks::<BlockIQ4XS>(block)[0].sums(y),
        _ => blocks::<BlockQ6K>(block)[0].sums(y),
    }
}

/// Activations at the ends of their range, where sixteen-bit sums would overflow first.
fn extreme_activations() -> Vec<BlockQ8K> {
    let patterns: [fn(usize) -> f32; 5] = [
        |_| 127.0,
        |_| -127.0,
        |i| if i % 2 == 0 { 127.0 } else { -127.0 },
        |i| if i / 16 % 2 == 0 { 127.0 } else { -127.0 },
        |i| i as f32 - 127.0,
    ];
    let x: Vec<f32> = patterns.iter().flat_map(|p| (0..QK_K).map(|i| p(i).min(127.0))).collect();
    let mut y = vec![BlockQ8K::ZERO; patterns.len()];
    quantize_activations(Isa::Scalar, &x, &mut y);
    y
}

#[test]
fn every_isa_gives_the_same_integers() {
    let mut y = extreme_activations();
    y.extend(q8_k(&weights(8 * QK_K, 31)));
    for kind in TensorType::ALL.into_iter().filter(|kind| kind.block_weights() == QK_K) {
        let bytes = kind.block_bytes();
        let mut data = noise(64 * bytes, 32);
        data.extend(vec![0u8; bytes]);
        data.extend(vec![0xffu8; bytes]);
        data.extend(vec![0x80u8; bytes]);
        for block in data.chunks_exact(bytes) {
            for y in &y {
                let expected = scalar_sums(kind, block, y);
                for isa in isas() {
                    for sums in block_sums(isa, kind, block, y) {
                        assert_eq!(sums, expected, "{kind:?} {isa:?}");
                    }
                }
            }
        }
    }
}

fn q8_k(x: &[f32]) -> Vec<BlockQ8K> {
    let mut y = vec![BlockQ8K::ZERO; x.len() / QK_K];
    quantize_activations(Isa::Scalar, x, &mut y);
    y
}

#[test]
fn every_type_on_every_isa_is_the_product_of_decoded_weights() {
    for n in [QK_K, 3 * QK_K, 35 * QK_K] {
        let rows = 7;
        let (w, x) = (weights(rows * n, 33), weights(n, 34));
        let source = Source::from_f32(&w, n).unwrap();
        for kind in TensorType::ALL {
            let mut data = vec![0u8; rows * kind.row_bytes(n).unwrap()];
            crate::rows::quantize(source, kind, None, Encoding::Ggml, &mut data).unwrap();
            let mut decoded = vec![0f32; w.len()];
            crate::rows::dequantize(Source::new(kind, &data, n).unwrap(), &mut decoded).unwrap();
            check(
                Rows::Plain(kind, &data),
                |isa| dispatch::activations(isa, kind, &x),
                &decoded,
                n,
            );
        }
    }
}

/// Rows of floats may have any length.
#[test]
fn numbers_need_no_whole_vectors() {
    for n in [1, 7, 8, 17, 63, 130] {
        let (w, x) = (weights(2 * n, 35), weights(n, 36));
        for kind in [TensorType::F32, TensorType::F16, TensorType::BF16] {
            let mut data = vec![0u8; 2 * kind.row_bytes(n).unwrap()];
            dispatch::quantize_row(Isa::Scalar, kind, &w, None, &mut data);
            let mut decoded = vec![0f32; w.len()];
            dispatch::dequantize_row(Isa::Scalar, kind, &data, &mut decoded);
            check(
                Rows::Plain(kind, &data),
                |isa| dispatch::activations(isa, kind, &x),
                &decoded,
                n,
            );
        }
    }
}

#[test]
fn outliers_of_any_number_are_added() {
    for (n, rows) in [(QK_K, 7), (6 * QK_K, 6), (35 * QK_K, 5)] {
        let (w, x) = (weights(rows * n, 37), weights(n, 38));
        let source = Source::from_f32(&w, n).unwrap();
        for outliers in [0, 1, 3, 4, 5, 7, 8, 10, 12, 16, 24, 31, 32] {
            let count = rows * n / QK_K * outliers;
            let mut base = vec![0u8; rows * TensorType::Q4K.row_bytes(n).unwrap()];
            let (mut index, mut residual) = (vec![0u8; count], vec![0u8; 2 * count]);
            let parts = OutliersMut { outliers, index: &mut index, residual: &mut residual };
            crate::rows::quantize_hifi(source, None, Encoding::Ggml, &mut base, parts).unwrap();
            let parts = Outliers { outliers, index: &index, residual: &residual };
            let blocks = Source::new(TensorType::Q4K, &base, n).unwrap();
            let mut decoded = vec![0f32; w.len()];
            crate::rows::dequantize_hifi(blocks, parts, &mut decoded).unwrap();
            let rows = Rows::Hifi { base: &base, index: &index, residual: &residual };
            check(rows, |isa| dispatch::hifi_activations(isa, &x, outliers), &decoded, n);
        }
    }
}

/// Every ISA against the scalar version, bit for bit, and that against the decoded weights.
fn check(
    rows: Rows<'_>,
    activations: impl Fn(Isa) -> Result<Activations, QuantError>,
    decoded: &[f32],
    n: usize,
) {
    let mut oracle = vec![0f32; decoded.len() / n];
    let scalar = activations(Isa::Scalar).unwrap();
    dot_rows(Isa::Scalar, rows, &scalar, &mut oracle);
    let has_f16_sums = matches!(scalar.column, Column::Q8_1(_));
    let tolerance = if has_f16_sums { 1e-3 } else { 1e-6 };
    for isa in isas() {
        let mut out = vec![f32::NAN; oracle.len()];
        dot_rows(isa, rows, &activations(isa).unwrap(), &mut out);
        for ((row, &got), &expected) in decoded.chunks_exact(n).zip(&out).zip(&oracle) {
            let (product, magnitude) = exact(row, &scalar.values());
            assert_near(expected, product, magnitude, tolerance, "scalar");
            assert_eq!(got.to_bits(), expected.to_bits(), "{isa:?} {n}: {got} for {expected}");
        }
        for (i, product) in out.iter().enumerate() {
            let one = dot_row(isa, row(rows, i, out.len()), &activations(isa).unwrap());
            assert_eq!(one.to_bits(), product.to_bits(), "a row does not depend on its neighbours");
        }
    }
}

/// Row `i` of `n`.
fn row(rows: Rows<'_>, i: usize, n: usize) -> Rows<'_> {
    fn part(data: &[u8], i: usize, n: usize) -> &[u8] {
        &data[i * (data.len() / n)..][..data.len() / n]
    }
    match rows {
        Rows::Plain(kind, data) => Rows::Plain(kind, part(data, i, n)),
        Rows::Hifi { base, index, residual } => Rows::Hifi {
            base: part(base, i, n),
            index: part(index, i, n),
            residual: part(residual, i, n),
        },
    }
}

fn assert_same_bytes<B: Quantize>(x: &[f32]) -> Vec<B> {
    let encode = |isa| {
        let mut out = vec![B::ZERO; x.len() / B::NUMBERS];
        quantize_activations(isa, x, &mut out);
        out
    };
    let expected = encode(Isa::Scalar);
    for isa in isas() {
        assert!(bytes_of(&encode(isa)) == bytes_of(&expected), "{isa:?}");
    }
    expected
}

#[test]
fn activations_have_the_same_bytes_on_every_isa() {
    let mut x = weights(40 * QK_K, 39);
    x[..QK_K].fill(0.0);
    x[QK_K..2 * QK_K].fill(1e-38);
    x[2 * QK_K..3 * QK_K].fill(-1e38);
    x[4 * QK_K] = f32::NAN;
    x[5 * QK_K] = f32::INFINITY;
    assert_same_bytes::<BlockQ8K>(&x);
    assert_same_bytes::<BlockQ8_0>(&x);
    assert_same_bytes::<BlockQ8_1>(&x);
}

#[test]
fn the_first_of_the_largest_becomes_minus_127() {
    let mut x = [0f32; QK_K];
    (x[70], x[71], x[40]) = (-2.0, 2.0, 1.0);
    let y = assert_same_bytes::<BlockQ8K>(&x)[0];
    let q = |i: usize| y.qs[i] as i8;
    assert_eq!((q(70), q(71), q(40)), (-127, 127, 64), "63.5 goes to the even number");
    assert_eq!(y.scale(), 2.0 / 127.0);
    for (sum, qs) in y.bsums.iter().zip(y.qs.as_chunks::<SUM>().0) {
        let expected: i16 = qs.iter().map(|&q| i16::from(q as i8)).sum();
        assert_eq!(i16::from_le_bytes(*sum), expected);
    }
}

#[test]
fn ties_of_q8_0_go_to_the_even_number() {
    let mut x = [0f32; QK];
    (x[0], x[1], x[2], x[3]) = (127.0, 0.5, 1.5, -2.5);
    let y = assert_same_bytes::<BlockQ8_0>(&x)[0];
    assert_eq!(y.qs[..4], [127, 0, 2, -2i8 as u8]);
    let y = assert_same_bytes::<BlockQ8_1>(&x)[0];
    assert_eq!(crate::float::f16_to_f32(u16::from_le_bytes(y.s)), 127.0);
}

/// NaN and infinity do not become finite products.
#[test]
fn broken_activations_give_nan() {
    for broken in [f32::NAN, f32::INFINITY] {
        let mut x = weights(QK_K, 40);
        x[9] = broken;
        for kind in [TensorType::Q4K, TensorType::Q4_0, TensorType::IQ4XS, TensorType::F32] {
            let mut row = vec![0u8; kind.row_bytes(QK_K).unwrap()];
            dispatch::quantize_row(Isa::Scalar, kind, &weights(QK_K, 41), None, &mut row);
            for isa in isas() {
                let y = dispatch::activations(isa, kind, &x).unwrap();
                let product = dot_row(isa, Rows::Plain(kind, &row), &y);
                assert!(!product.is_finite(), "{kind:?} {isa:?} {broken}: {product}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "bytes of 1 rows of 256 weights")]
fn a_short_row_is_refused() {
    let y = Activations::new(TensorType::Q4K, &[0.5; QK_K]).unwrap();
    dot_row(Isa::Scalar, Rows::Plain(TensorType::Q4K, &[0; 143]), &y);
}

#[test]
#[should_panic(expected = "activations for another type than Q8_0")]
fn activations_of_another_form_are_refused() {
    let y = Activations::new(TensorType::Q4K, &[0.5; QK_K]).unwrap();
    dot_row(Isa::Scalar, Rows::Plain(TensorType::Q8_0, &[0; 34 * 8]), &y);
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    assert!(Activations::new(TensorType::Q4K, &[0.5; 100]).is_err());
    assert!(Activations::new(TensorType::F32, &[]).is_err());
    assert!(Activations::for_hifi(&[0.5; QK_K], 33).is_err());
}
