use super::matrix::{MANY, Matrix};
use crate::block::{QK_K, TensorType};
use crate::error::QuantError;
use crate::isa::Isa;
use crate::panel::PANEL;
use crate::rows::{self, Encoding, Outliers, OutliersMut, Source};
use crate::testing::weights;

fn available() -> impl Iterator<Item = Isa> {
    Isa::available()
}

/// `Σ w·x` and `Σ |w·x|` in f64.
fn exact(w: &[f32], x: &[f32]) -> (f64, f64) {
    let terms = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
    (terms().sum(), terms().map(f64::abs).sum())
}

/// The products on every ISA, which are the same bit for bit.
fn products(matrix: Matrix<'_>, x: &[f32], case: &str) -> Vec<f32> {
    let run = |isa| {
        let mut out = vec![f32::NAN; x.len() / matrix.row_length() * matrix.rows()];
        matrix.matmul_with(isa, x, &mut out).unwrap();
        out
    };
    let expected = run(Isa::Scalar);
    for isa in available() {
        let same = run(isa).iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{case} {isa:?}");
    }
    expected
}

/// Every product against f64; `tolerance` of the sum of the products' magnitudes covers what
/// quantizing the activations costs.
fn check(case: &str, w: &[f32], x: &[f32], out: &[f32], rows: usize, tolerance: f64) {
    let n = w.len() / rows;
    for (c, (x, out)) in x.chunks_exact(n).zip(out.chunks_exact(rows)).enumerate() {
        for (r, (w, &out)) in w.chunks_exact(n).zip(out).enumerate() {
            let (sum, magnitude) = exact(w, x);
            let error = (f64::from(out) - sum).abs();
            assert!(error <= tolerance * magnitude, "{case} row {r} column {c}: {out} for {sum}");
        }
    }
}

fn encode(w: &[f32], n: usize, kind: TensorType) -> Vec<u8> {
    let mut data = vec![0; w.len() / n * kind.row_bytes(n).unwrap()];
    rows::quantize(Source::from_f32(w, n).unwrap(), kind, None, Encoding::Ggml, &mut data).unwrap();
    data
}

/// Values that eight bits hold exactly, times powers of two. Quantizing them is exact, because every group of 32 has a
/// 127.
fn exact_activations(n: usize, seed: u64) -> Vec<f32> {
    let mut x: Vec<f32> =
        weights(n, seed).iter().map(|v| (v * 900.0).round().clamp(-127.0, 127.0)).collect();
    for (i, group) in x.chunks_mut(32).enumerate() {
        group[i % 32] = 127.0;
        let scale = 2f32.powi((i / 8 % 3) as i32 - 5);
        group.iter_mut().for_each(|v| *v *= scale);
    }
    x
}

#[test]
fn every_type_isa_and_number_of_columns() {
    for (kind, n) in TensorType::ALL.into_iter().flat_map(|kind| {
        let lengths = if kind.block_weights() == QK_K { [256, 512] } else { [160, 352] };
        lengths.map(|n| (kind, n))
    }) {
        for rows in [1, PANEL - 1, PANEL + 17] {
            let data = encode(&weights(rows * n, 61), n, kind);
            let source = Source::new(kind, &data, n).unwrap();
            let mut w = vec![0f32; rows * n];
            rows::dequantize(source, &mut w).unwrap();
            for columns in [1, 2, 7, 8, 13, 25] {
                let case = format!("{kind:?} {rows} x {n}, {columns} columns");
                let x = exact_activations(columns * n, 62);
                let out = products(Matrix::new(source), &x, &case);
                // the sums of Q8_1, which few columns are quantized to, are f16
                let coarse = matches!(kind, TensorType::Q4_1 | TensorType::Q5_1) && columns < MANY;
                check(&case, &w, &x, &out, rows, if coarse { 5e-4 } else { 1e-6 });
            }
        }
    }
}

#[test]
fn outliers_are_added_whatever_their_number() {
    let (rows, n) = (PANEL + 9, 3 * QK_K);
    let w = weights(rows * n, 63);
    for outliers in [0, 1, 8, 16, 32] {
        let count = w.len() / QK_K * outliers;
        let mut base = vec![0; w.len() / QK_K * TensorType::Q4K.block_bytes()];
        let (mut index, mut residual) = (vec![0u8; count], vec![0u8; 2 * count]);
        let parts = OutliersMut { outliers, index: &mut index, residual: &mut residual };
        let source = Source::from_f32(&w, n).unwrap();
        rows::quantize_hifi(source, None, Encoding::Ggml, &mut base, parts).unwrap();
        let parts = Outliers { outliers, index: &index, residual: &residual };
        let mut decoded = vec![0f32; w.len()];
        let blocks = Source::new(TensorType::Q4K, &base, n).unwrap();
        rows::dequantize_hifi(blocks, parts, &mut decoded).unwrap();
        let matrix = Matrix::hifi(&base, n, parts).unwrap();
        for columns in [1, 3, MANY, 37] {
            let x = exact_activations(columns * n, 64);
            let case = format!("{outliers} outliers, {columns} columns");
            let out = products(matrix, &x, &case);
            check(&case, &decoded, &x, &out, rows, 1e-6);
            let some = 5..rows - 2;
            let of_some = products(matrix.of_rows(some.clone()), &x, &case);
            for (part, whole) in of_some.chunks_exact(some.len()).zip(out.chunks_exact(rows)) {
                assert_eq!(part, &whole[some.clone()], "{case}, some rows");
            }
        }
    }
}

/// With ordinary activations, products are as precise as eight bits allow.
#[test]
fn activations_are_rounded_to_eight_bits() {
    let (rows, n) = (PANEL, 2 * QK_K);
    let data = encode(&weights(rows * n, 65), n, TensorType::Q4K);
    let source = Source::new(TensorType::Q4K, &data, n).unwrap();
    let mut w = vec![0f32; rows * n];
    rows::dequantize(source, &mut w).unwrap();
    for columns in [1, 12] {
        let x = weights(columns * n, 66);
        let out = products(Matrix::new(source), &x, "as they come");
        check(&format!("{columns} columns"), &w, &x, &out, rows, 6e-3);
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let (rows, n) = (3, QK_K);
    let data = encode(&weights(rows * n, 67), n, TensorType::Q4K);
    let matrix = Matrix::new(Source::new(TensorType::Q4K, &data, n).unwrap());
    for (columns, bad) in [(1, f32::NAN), (1, f32::INFINITY), (9, f32::NAN), (9, f32::INFINITY)] {
        let mut x = weights(columns * n, 68);
        x[(columns - 1) * n + 77] = bad;
        for isa in available() {
            let mut out = vec![0f32; columns * rows];
            matrix.matmul_with(isa, &x, &mut out).unwrap();
            let (fine, spoilt) = out.split_at((columns - 1) * rows);
            assert!(fine.iter().all(|v| v.is_finite()), "{isa:?}");
            assert!(spoilt.iter().all(|v| v.is_nan()), "{isa:?} {bad}: {spoilt:?}");
        }
    }
}

/// Activations so small that the inverse of their scale would be infinite.
#[test]
fn tiny_activations_are_zeros_on_every_isa() {
    let (rows, n) = (5, QK_K);
    for kind in [TensorType::Q4K, TensorType::Q8_0, TensorType::Q6K] {
        let data = encode(&weights(rows * n, 72), n, kind);
        let matrix = Matrix::new(Source::new(kind, &data, n).unwrap());
        for columns in [1, 9] {
            let x: Vec<f32> = weights(columns * n, 73).iter().map(|x| x * 1e-37).collect();
            let out = products(matrix, &x, "tiny");
            assert!(out.iter().all(|x| x.abs() < 1e-34), "{kind:?} {columns}: {out:?}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let (rows, n) = (5 * PANEL + 3, 2 * QK_K);
    let data = encode(&weights(rows * n, 69), n, TensorType::Q4K);
    let matrix = Matrix::new(Source::new(TensorType::Q4K, &data, n).unwrap());
    for columns in [1, 3, 20] {
        let x = weights(columns * n, 70);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0f32; columns * rows];
            pool.install(|| matrix.matmul(&x, &mut out)).unwrap();
            out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        assert_eq!(run(1), run(3), "{columns} columns");
    }
}

#[test]
fn lengths_are_checked() {
    let (rows, n) = (2, QK_K);
    let data = encode(&weights(rows * n, 71), n, TensorType::Q4K);
    let source = Source::new(TensorType::Q4K, &data, n).unwrap();
    let matrix = Matrix::new(source);
    for (x, out, what) in
        [(n + 1, rows, "activations"), (n, rows + 1, "output"), (2 * n, rows, "output")]
    {
        let error = matrix.matmul(&vec![0.0; x], &mut vec![0.0; out]).unwrap_err();
        assert!(matches!(error, QuantError::BufferLength { what: w, .. } if w == what), "{error}");
    }
    assert_eq!(matrix.matmul(&[], &mut []), Ok(()));
    let parts = Outliers { outliers: 8, index: &[0; 15], residual: &[0; 32] };
    assert!(Matrix::hifi(&data, n, parts).is_err());
}
