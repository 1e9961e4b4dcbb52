//! An f32 matrix times an f16 matrix. The result is computed in tiles that fit into registers. The rows of a tile share
//! the f32 conversion of `b`.

use super::half::{COLUMNS, HalfProduct};
use crate::simd::{Kernel, Vector};

/// Rows of a tile.
const ROWS: usize = 6;

/// The vector version of [`super::half::multiply_half`].
pub(crate) struct MultiplyHalf<'a>(pub HalfProduct<'a>);

impl Kernel for MultiplyHalf<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // dispatch has checked the product.
        if V::LANES == 16 { multiply_half::<V, 4>(self.0) } else { multiply_half::<V, 2>(self.0) }
    }
}

/// # Safety
///
/// The CPU has V's ISA, and the product was checked.
#[inline(always)]
unsafe fn multiply_half<V: Vector, const WIDTH: usize>(product: HalfProduct<'_>) {
    let HalfProduct { a, stride, k, b, n, c } = product;
    let (a, b, rows) = (a.as_ptr(), b.as_ptr(), c.len() / n);
    let c = c.as_mut_ptr();
    let mut row = 0;
    while row < rows {
        let tall = ROWS.min(rows - row);
        let mut column = 0;
        while column < n {
            let wide = if column + WIDTH * V::LANES <= n { WIDTH } else { COLUMNS / V::LANES };
            // the tile is within `c`; its rows are within `a`, and its columns within `b`.
            let tile = Tile {
                a: a.add(row * stride),
                stride,
                k,
                b: b.add(column),
                n,
                c: c.add(row * n + column),
            };
            if wide == WIDTH {
                tile.rows::<V, WIDTH>(tall);
            } else if V::LANES == COLUMNS {
                tile.rows::<V, 1>(tall);
            } else {
                tile.rows::<V, 2>(tall);
            }
            column += wide * V::LANES;
        }
        row += tall;
    }
}

#[derive(Clone, Copy)]
struct Tile {
    a: *const f32,
    stride: usize,
    k: usize,
    b: *const u16,
    n: usize,
    c: *mut f32,
}

impl Tile {
    /// # Safety
    ///
    /// The CPU has V's ISA; the pointers lead to `rows` rows of `W` vectors.
    #[inline(always)]
    unsafe fn rows<V: Vector, const W: usize>(self, rows: usize) {
        match rows {
            1 => self.add::<V, 1, W>(),
            2 => self.add::<V, 2, W>(),
            3 => self.add::<V, 3, W>(),
            4 => self.add::<V, 4, W>(),
            5 => self.add::<V, 5, W>(),
            _ => self.add::<V, ROWS, W>(),
        }
    }

    /// # Safety
    ///
    /// The CPU has V's ISA; the pointers lead to `R` rows of `W` vectors.
    #[inline(always)]
    unsafe fn add<V: Vector, const R: usize, const W: usize>(self) {
        let mut acc = [[V::splat(0.0); W]; R];
        for k in 0..self.k {
            let mut b = [V::splat(0.0); W];
            for (w, b) in b.iter_mut().enumerate() {
                *b = V::load_half(self.b.add(k * self.n + w * V::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let a = V::splat(*self.a.add(r * self.stride + k));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = a.mul_add(b, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (w, acc) in acc.iter().enumerate() {
                let c = self.c.add(r * self.n + w * V::LANES);
                V::load(c).add(*acc).store(c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::half::multiply_half as multiply_plain;
    use super::*;
    use crate::simd::Portable;
    use crate::testing::weights;

    /// On arrays in place of vectors; with vectors, see the tests of `dispatch`.
    #[test]
    fn arrays_give_the_plain_product() {
        let (a, b) = (weights(7 * 32, 61), weights(30 * 48, 62));
        let b: Vec<u16> = b.into_iter().map(crate::float::f32_to_f16).collect();
        let (mut expected, mut found) = (weights(7 * 48, 63), weights(7 * 48, 63));
        multiply_plain(HalfProduct { a: &a, stride: 32, k: 30, b: &b, n: 48, c: &mut expected });
        let product = HalfProduct { a: &a, stride: 32, k: 30, b: &b, n: 48, c: &mut found };
        product.check();
        // SAFETY: every CPU has these lanes, and the product was checked.
        unsafe { MultiplyHalf(product).run::<Portable<8>>() };
        assert_eq!(found, expected);
    }
}
