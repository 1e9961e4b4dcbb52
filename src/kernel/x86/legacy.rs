//! The legacy types' fits under importance, every lane a block of the row.

use super::fit_affine::{GROUP, fit_affine};
use super::fit_signed::fit_signed;
use super::vector::{InLanes, MOST_LANES as MOST, Vector};
use crate::block::QK;
use crate::block::legacy::mean_square;
use crate::fit::{self, Search};

/// Blocks of a row side by side: element i of lane l's block is `x[i * LANES + l]`.
struct Lanes {
    x: InLanes<GROUP>,
    w: InLanes<GROUP>,
    numbers: [[u8; QK]; MOST],
}

impl Lanes {
    const EMPTY: Self = Self { x: InLanes::ZERO, w: InLanes::ZERO, numbers: [[0; QK]; MOST] };

    /// Loads up to LANES blocks, with the weights importance · √(mean square of the row + x²).
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    #[inline(always)]
    unsafe fn load<V: Vector>(&mut self, x: &[f32], importance: &[f32], mean_square: f32) {
        let mut whole = [[0f32; GROUP * MOST]; 2]; // the row's last vector may not be full
        whole[0][..x.len()].copy_from_slice(x);
        whole[1][..x.len()].copy_from_slice(importance);
        // SAFETY: the caller's promise; the arrays have room for the most lanes.
        unsafe {
            V::transpose(whole[0].as_ptr(), GROUP, self.x.as_mut_ptr());
            V::transpose(whole[1].as_ptr(), GROUP, self.w.as_mut_ptr());
            let mean_square = V::splat(mean_square);
            for i in 0..GROUP {
                let v = V::load(self.x.as_ptr().add(i * V::LANES));
                let w = V::load(self.w.as_ptr().add(i * V::LANES));
                let w = w.mul(mean_square.add(v.mul(v)).sqrt());
                w.store(self.w.as_mut_ptr().add(i * V::LANES));
            }
        }
    }

    /// Rounds `(x - min) · inverse` to a number, clamps it and adds `offset`.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    #[inline(always)]
    unsafe fn round<V: Vector>(&mut self, inverse: V, min: V, range: (i32, i32), offset: V) {
        for i in 0..GROUP {
            let mut bytes = [0u8; MOST];
            // SAFETY: the caller's promise; the arrays have room for the most lanes.
            unsafe {
                let v = V::load(self.x.as_ptr().add(i * V::LANES));
                let q = inverse.mul(v.sub(min)).nearest_in(range.0, range.1);
                q.add(offset).store_bytes(bytes.as_mut_ptr());
            }
            for (numbers, byte) in self.numbers.iter_mut().zip(bytes) {
                numbers[i] = byte;
            }
        }
    }
}

/// The vector version of [`crate::block::legacy::quantize_symmetric`] with importance.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_symmetric<V: Vector, B>(
    x: &[f32],
    importance: &[f32],
    half: i8,
    out: &mut [B],
    store: impl Fn(f32, &[u8; QK]) -> B,
) {
    let mean_square = mean_square(x);
    let half = i32::from(half);
    let mut lanes = Lanes::EMPTY;
    let pieces = x.chunks(QK * V::LANES).zip(importance.chunks(QK * V::LANES));
    for ((x, importance), out) in pieces.zip(out.chunks_mut(V::LANES)) {
        let mut scales = [0f32; MOST];
        // SAFETY: the caller's promise; the arrays have room for the most lanes.
        unsafe {
            lanes.load::<V>(x, importance, mean_square);
            let fits = fit_signed::<V>(lanes.x.as_ptr(), lanes.w.as_ptr(), GROUP, half);
            fits.scale.store(scales.as_mut_ptr());
            let zero = V::splat(0.0);
            let offset = V::select(fits.is_zero, zero, V::splat(half as f32));
            lanes.round::<V>(fits.inverse, zero, (-half, half - 1), offset);
        }
        for (out, (numbers, scale)) in out.iter_mut().zip(lanes.numbers.iter().zip(scales)) {
            *out = store(scale, numbers);
        }
    }
}

/// The vector version of [`crate::block::legacy::quantize_affine`] with importance.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_affine<V: Vector, B>(
    x: &[f32],
    importance: &[f32],
    levels: i8,
    out: &mut [B],
    store: impl Fn(f32, f32, &[u8; QK]) -> B,
) {
    let mean_square = mean_square(x);
    let levels = i32::from(levels);
    let mut lanes = Lanes::EMPTY;
    let pieces = x.chunks(QK * V::LANES).zip(importance.chunks(QK * V::LANES));
    for ((x, importance), out) in pieces.zip(out.chunks_mut(V::LANES)) {
        let (mut scales, mut mins) = ([0f32; MOST], [0f32; MOST]);
        // SAFETY: the caller's promise; the arrays have room for the most lanes.
        let done = unsafe {
            lanes.load::<V>(x, importance, mean_square);
            let fits = fit_affine::<V>(lanes.x.as_ptr(), lanes.w.as_ptr(), levels, Search::FINE);
            fits.map(|fits| {
                fits.scale.store(scales.as_mut_ptr());
                fits.min.store(mins.as_mut_ptr());
                lanes.round::<V>(fits.grid_inverse, fits.grid_min, (0, levels), V::splat(0.0));
            })
        };
        if done.is_none() {
            for l in 0..out.len() {
                let column = |a: &InLanes<GROUP>| {
                    std::array::from_fn::<f32, QK, _>(|i| a.0.as_flattened()[i * V::LANES + l])
                };
                let (x, w) = (column(&lanes.x), column(&lanes.w));
                let fit = fit::fit_affine(&x, &w, levels, Search::FINE, &mut lanes.numbers[l]);
                (scales[l], mins[l]) = (fit.scale, fit.min);
            }
        }
        for (l, out) in out.iter_mut().enumerate() {
            *out = store(scales[l], -mins[l], &lanes.numbers[l]);
        }
    }
}
