//! An f32 matrix times an f16 matrix: the two matrix products of attention, whose cache is f16.

use crate::float::{f16_to_f32, mul_add};

/// Adds the product of `a` and `b` to `c`.
///
/// A row of `a` has `k` values and begins every `stride` values. `b` is k × n, and `c` has n values per row. n is a
/// multiple of [`COLUMNS`].
#[derive(Debug)]
pub(crate) struct HalfProduct<'a> {
    pub a: &'a [f32],
    pub stride: usize,
    pub k: usize,
    pub b: &'a [u16],
    pub n: usize,
    pub c: &'a mut [f32],
}

/// The width of `b` is a multiple of this.
pub(crate) const COLUMNS: usize = 16;

impl HalfProduct<'_> {
    pub(crate) fn check(&self) {
        let rows = self.c.len() / self.n;
        assert_eq!(self.c.len(), rows * self.n);
        assert!(self.n.is_multiple_of(COLUMNS) && self.k <= self.stride);
        assert!(self.b.len() >= self.k * self.n && self.a.len() >= rows * self.stride);
    }
}

/// The scalar version: the oracle of the kernels, bit for bit.
pub(crate) fn multiply_half(product: HalfProduct<'_>) {
    let HalfProduct { a, stride, k, b, n, c } = product;
    for (a, c) in a.chunks_exact(stride).zip(c.chunks_exact_mut(n)) {
        for (i, c) in c.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
            let mut sums = [0f32; COLUMNS];
            for (&a, b) in a[..k].iter().zip(b.chunks_exact(n)) {
                for (sum, &b) in sums.iter_mut().zip(&b[i * COLUMNS..]) {
                    *sum = mul_add(a, f16_to_f32(b), *sum);
                }
            }
            for (c, sum) in c.iter_mut().zip(sums) {
                *c += sum;
            }
        }
    }
}
