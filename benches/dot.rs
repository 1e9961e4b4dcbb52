//! Dot products of rows with one column of activations, one thread, operands in L2: every format
//! on every ISA, and the activations' quantization.
//!
//! `cargo bench --bench dot -- 1536/avx512` runs a part.

#![allow(missing_docs)]

#[path = "support/matrix.rs"]
mod matrix;
mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use matrix::{Format, LENGTHS, Matrix, assert_near};
use q4hifi::block::{BlockQ8_0, QK, QK_K, TensorType};
use q4hifi::dispatch::quantize_activations;
use q4hifi::dot::{BlockQ8K, Quantize};
use q4hifi::isa::Isa;
use std::hint::black_box;
use support::{ROWS, weights};

fn dots(c: &mut Criterion) {
    let plain = TensorType::ALL.into_iter().map(Format::Plain);
    let formats: Vec<Format> = plain.chain([4, 8, 16, 32].map(Format::Hifi)).collect();
    let mut group = c.benchmark_group("dot");
    for n in LENGTHS {
        let x = weights(n);
        for matrix in formats.iter().map(|&format| Matrix::new(format, n)) {
            let name = matrix.format.name();
            let mut out = vec![0f32; ROWS];
            group.throughput(Throughput::Elements((ROWS * n) as u64));
            for isa in Isa::available() {
                let y = matrix.format.activations(isa, &x);
                group.bench_function(format!("{n}/{}/{name}", isa.name()), |b| {
                    b.iter(|| matrix.dot(isa, black_box(&y), black_box(&mut out)));
                });
                matrix.dot(isa, &y, &mut out);
                assert_near(&out, &matrix.exact(&y), &name);
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
    for isa in Isa::available() {
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
