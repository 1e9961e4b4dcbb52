//! Matrices times activations on all threads of the machine: every format on every ISA, one column
//! and many. A multiply-add counts as one element.
//!
//! `cargo bench --bench matmul -- 256/avx512` runs a part.

#![allow(missing_docs)]

mod support;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use q4hifi::block::{QK_K, TensorType};
use q4hifi::isa::Isa;
use q4hifi::matmul::Matrix;
use q4hifi::rows::{self, Encoding, Outliers, OutliersMut, Source};
use std::hint::black_box;
use support::weights;

/// The down projection of a 1.5 B model.
const ROWS: usize = 1536;
const LENGTH: usize = 8960;
const COLUMNS: [usize; 3] = [1, 16, 256];

/// Times `matrix`, whose last row is `last`.
fn bench(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, matrix: Matrix<'_>, last: &[f32]) {
    for columns in COLUMNS {
        let x = weights(LENGTH * columns);
        let mut out = vec![0f32; ROWS * columns];
        let terms = || last.iter().zip(&x[x.len() - LENGTH..]).map(|(w, x)| f64::from(w * x));
        let (expected, magnitude): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
        group.throughput(Throughput::Elements((ROWS * LENGTH * columns) as u64));
        for isa in Isa::available() {
            if isa == Isa::Scalar && columns > 16 {
                continue; // too slow to wait for
            }
            group.bench_function(format!("{columns}/{}/{name}", isa.name()), |b| {
                b.iter(|| {
                    matrix.matmul_with(isa, black_box(&x), &mut out).expect("lengths fit");
                    let error = (f64::from(out[out.len() - 1]) - expected).abs();
                    // eight bits of the activations
                    assert!(error < 5e-3 * magnitude, "{name} {error} of {magnitude}");
                });
            });
        }
    }
}

fn matmul(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul");
    group.sample_size(10);
    let w = weights(ROWS * LENGTH);
    let source = Source::from_f32(&w, LENGTH).expect("whole rows");
    let last_of = |data: &[u8], kind: TensorType| {
        let mut last = vec![0f32; LENGTH];
        let row =
            Source::new(kind, &data[data.len() / ROWS * (ROWS - 1)..], LENGTH).expect("a row");
        rows::dequantize(row, &mut last).expect("a row");
        last
    };
    for kind in TensorType::ALL {
        let mut data = vec![0u8; ROWS * kind.row_bytes(LENGTH).expect("whole blocks")];
        rows::quantize(source, kind, None, Encoding::Ggml, &mut data).expect("finite");
        let matrix = Matrix::new(Source::new(kind, &data, LENGTH).expect("rows"));
        bench(&mut group, kind.name(), matrix, &last_of(&data, kind));
    }
    for outliers in [8, 16] {
        let count = w.len() / QK_K * outliers;
        let mut base = vec![0u8; w.len() / QK_K * TensorType::Q4K.block_bytes()];
        let (mut index, mut residual) = (vec![0u8; count], vec![0u8; 2 * count]);
        let parts = OutliersMut { outliers, index: &mut index, residual: &mut residual };
        rows::quantize_hifi(source, None, Encoding::Ggml, &mut base, parts).expect("finite");
        let parts = Outliers { outliers, index: &index, residual: &residual };
        let blocks = Source::new(TensorType::Q4K, &base, LENGTH).expect("rows");
        let mut decoded = vec![0f32; w.len()];
        rows::dequantize_hifi(blocks, parts, &mut decoded).expect("rows");
        let matrix = Matrix::hifi(&base, LENGTH, parts).expect("as many");
        bench(&mut group, &format!("Q4_HIFI-{outliers}"), matrix, &decoded[w.len() - LENGTH..]);
    }
    group.finish();
}

criterion_group!(all, matmul);
criterion_main!(all);
