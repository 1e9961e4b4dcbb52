//! Decoding, one thread: every type.

#![allow(missing_docs)]

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use q4hifi::block::TensorType;
use q4hifi::rows::{Encoding, Source, dequantize, quantize};
use std::hint::black_box;
use support::{ROW, ROWS, weights};

fn benches(c: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    let x = weights(ROW * ROWS);
    let source = Source::from_f32(&x, ROW).expect("whole rows");
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut group = c.benchmark_group("dequantize");
    group.throughput(Throughput::Elements(x.len() as u64));
    for kind in TensorType::ALL {
        let mut data = vec![0u8; ROWS * kind.row_bytes(ROW).expect("whole blocks")];
        quantize(source, kind, None, Encoding::Ggml, &mut data).expect("finite");
        let data = Source::new(kind, &data, ROW).expect("whole rows");
        let mut out = vec![0f32; x.len()];
        group.bench_function(kind.name(), |b| {
            b.iter(|| {
                pool.install(|| dequantize(black_box(data), &mut out)).expect("the lengths fit");
                assert!((out[77] - x[77]).abs() < largest / 8.0, "{kind:?}");
            });
        });
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
