//! Dot products of rows with one column of activations, one thread, operands in L2: every format
//! on every ISA, and the activations' quantization.
//!
//! `cargo bench --bench dot -- 1536/avx512` runs a part.

#![allow(missing_docs)]

mod support;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use q4hifi::block::{BlockQ8_0, QK, QK_K, TensorType};
use q4hifi::dot::activations::Quantize;
use q4hifi::dot::{Activations, BlockQ8K, Rows};
use q4hifi::hifi;
use q4hifi::kernel::{Isa, dot_rows, quantize_activations};
use q4hifi::rows::{Source, dequantize, quantize};
use std::hint::black_box;
use support::{ROW, ROWS, weights};

/// Widths of a 1.5 B model: of a layer, and of its feed-forward part.
const LENGTHS: [usize; 2] = [ROW, 8960];

fn exact(w: &[f32], x: &[f32]) -> (f64, f64) {
    let terms = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
    (terms().sum(), terms().map(f64::abs).sum())
}

/// Times `rows`, whose weights are `decoded`.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    isa: Isa,
    rows: Rows<'_>,
    activations: &Activations,
    decoded: &[f32],
) {
    let n = activations.len();
    let mut out = vec![0f32; decoded.len() / n];
    let (expected, magnitude) = exact(&decoded[decoded.len() - n..], &activations.values());
    group.throughput(Throughput::Elements(decoded.len() as u64));
    group.bench_function(format!("{n}/{}/{name}", isa.name()), |b| {
        b.iter(|| {
            dot_rows(isa, black_box(rows), black_box(activations), &mut out);
            let error = (f64::from(out[out.len() - 1]) - expected).abs();
            // the f16 sum of Q8_1 is the coarsest part
            assert!(error < 1e-4 * magnitude, "{name} {error} of {magnitude}");
        });
    });
}

fn dots(c: &mut Criterion) {
    let mut group = c.benchmark_group("dot");
    for n in LENGTHS {
        let (w, x) = (weights(n * ROWS), weights(n));
        let source = Source::from_f32(&w, n).expect("whole rows");
        let mut decoded = vec![0f32; w.len()];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for kind in TensorType::ALL {
                let mut data = vec![0u8; ROWS * kind.row_bytes(n).expect("whole blocks")];
                quantize(source, kind, None, &mut data).expect("finite");
                dequantize(Source::new(kind, &data, n).expect("rows"), &mut decoded).expect("rows");
                let activations = Activations::new(isa, kind, &x).expect("whole blocks");
                let rows = Rows::Plain(kind, &data);
                bench(&mut group, kind.name(), isa, rows, &activations, &decoded);
            }
            for outliers in [8, 16] {
                let count = w.len() / QK_K * outliers;
                let mut base = vec![0u8; w.len() / QK_K * TensorType::Q4K.block_bytes()];
                let (mut index, mut residual) = (vec![0u8; count], vec![0u8; 2 * count]);
                let parts = hifi::rows::OutliersMut {
                    outliers,
                    index: &mut index,
                    residual: &mut residual,
                };
                hifi::rows::quantize(source, None, &mut base, parts).expect("finite");
                let parts = hifi::rows::Outliers { outliers, index: &index, residual: &residual };
                let blocks = Source::new(TensorType::Q4K, &base, n).expect("whole rows");
                hifi::rows::dequantize(blocks, parts, &mut decoded).expect("rows");
                let activations = Activations::for_hifi(isa, &x, outliers).expect("whole blocks");
                let rows = Rows::Hifi { base: &base, index: &index, residual: &residual };
                let name = format!("Q4_HIFI-{outliers}");
                bench(&mut group, &name, isa, rows, &activations, &decoded);
            }
        }
    }
    group.finish();
}

fn bench_activations<B: Quantize>(c: &mut Criterion, name: &str, zero: B) {
    let x = weights(LENGTHS[1]);
    let mut out = vec![zero; x.len() / B::NUMBERS];
    let mut group = c.benchmark_group("activations");
    group.throughput(Throughput::Elements(x.len() as u64));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        group.bench_function(format!("{name}/{}", isa.name()), |b| {
            b.iter(|| quantize_activations(isa, black_box(&x), &mut out));
        });
    }
    group.finish();
}

fn activations(c: &mut Criterion) {
    assert_eq!((BlockQ8K::NUMBERS, BlockQ8_0::NUMBERS), (QK_K, QK));
    bench_activations(c, "Q8_K", BlockQ8K::ZERO);
    bench_activations(c, "Q8_0", BlockQ8_0::ZERO);
}

criterion_group!(all, dots, activations);
criterion_main!(all);
