//! Encoding, one thread: every type, with and without importance, and Q4_HIFI.
//!
//! `cargo bench --bench quantize -- Q4_K` runs a part.

#![allow(missing_docs)]

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use q4hifi::block::TensorType;
use q4hifi::rows::{Encoding, OutliersMut, Source, quantize, quantize_hifi};
use std::hint::black_box;
use support::{ROW, ROWS, weights};

/// Importances over a few orders of magnitude.
fn importance(n: usize) -> Vec<f32> {
    weights(n).into_iter().map(|v| (60.0 * v).exp()).collect()
}

fn benches(c: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    let (x, w) = (weights(ROW * ROWS), importance(ROW));
    let source = Source::from_f32(&x, ROW).expect("whole rows");
    let mut group = c.benchmark_group("quantize");
    group.throughput(Throughput::Elements(x.len() as u64));
    for kind in TensorType::ALL {
        let most = match kind {
            TensorType::Q2K => 0.2,
            TensorType::Q3K => 0.06,
            _ => 0.03,
        };
        for (name, w) in [("plain", None), ("importance", Some(w.as_slice()))] {
            let mut out = vec![0u8; ROWS * kind.row_bytes(ROW).expect("whole blocks")];
            group.bench_function(format!("{}/{name}", kind.name()), |b| {
                b.iter(|| {
                    let sums = pool
                        .install(|| quantize(black_box(source), kind, w, Encoding::Ggml, &mut out));
                    assert!(sums.expect("finite").relative() < most, "{kind:?}");
                });
            });
        }
    }
    for outliers in [8, 16] {
        for (name, w) in [("plain", None), ("importance", Some(w.as_slice()))] {
            let n = ROWS * (ROW / 256) * outliers;
            let (mut index, mut residual) = (vec![0u8; n], vec![0u8; 2 * n]);
            let mut base = vec![0u8; ROWS * TensorType::Q4K.row_bytes(ROW).expect("whole blocks")];
            group.bench_function(format!("Q4_HIFI-{outliers}/{name}"), |b| {
                b.iter(|| {
                    let parts =
                        OutliersMut { outliers, index: &mut index, residual: &mut residual };
                    let sums = pool.install(|| {
                        quantize_hifi(black_box(source), w, Encoding::Ggml, &mut base, parts)
                    });
                    assert!(sums.expect("finite").relative() < 0.02, "Q4_HIFI");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
