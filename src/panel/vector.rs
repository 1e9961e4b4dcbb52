//! The operations of an instruction set that panels need, in addition to vectors of f32.

use crate::block::QK;
use crate::simd::Vector;

/// Vectors of integers that have as many lanes as those of f32.
///
/// # Safety
///
/// Conditions of every function:
///
/// * the CPU has the implementor's instruction set;
/// * pointers lead to a vector's bytes, or to as many as the function says; they need no alignment.
pub(crate) trait PanelVector {
    /// i32 lanes, or four bytes each.
    type Ints: Copy;
    /// f32 lanes.
    type Floats: Vector;
    /// Lanes.
    const LANES: usize = Self::Floats::LANES;

    unsafe fn splat(value: i32) -> Self::Ints;
    unsafe fn load(from: *const u8) -> Self::Ints;
    /// Four bytes to every lane.
    unsafe fn broadcast(from: *const u8) -> Self::Ints;
    /// `acc` plus the products of four unsigned and four signed bytes. The unsigned ones have the eighth bit only
    /// if `wide`.
    unsafe fn dot(acc: Self::Ints, a: Self::Ints, b: Self::Ints, wide: bool) -> Self::Ints;

    /// The lanes' sum.
    unsafe fn total(ints: Self::Ints) -> i32;
    /// Writes the lanes, which are in -128..128, as bytes.
    unsafe fn store_bytes(ints: Self::Ints, to: *mut u8);

    /// To the nearest, ties to even.
    unsafe fn to_ints(floats: Self::Floats) -> Self::Ints;
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats;
    /// `max(most, |b|)`, compared as bits: magnitudes compare like their bits, and NaN is the largest.
    unsafe fn max_abs(most: Self::Ints, b: Self::Floats) -> Self::Ints;
    /// The largest lane.
    unsafe fn largest(most: Self::Ints) -> f32;

    /// f16 to f32, exact.
    unsafe fn half(bits: u16) -> f32;
    /// The table's values for 32 quants of four bits: those of the low nibbles, then those of the high ones.
    unsafe fn look_up(table: &[u8; 16], qs: &[u8; QK / 2]) -> [u8; QK];

    /// Writes a square of [`Self::LANES`] by as many cells of four bytes with rows and columns
    /// exchanged. `stride` and `to_stride` are the bytes from one row to the next.
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut u8, to_stride: usize);
}

/// The methods of [`PanelVector`] that AVX2 and AVX-512 have under other names alone.
#[cfg(all(target_arch = "x86_64", not(portable)))]
macro_rules! forward_to_intrinsics {
    ($splat:ident, $load:ident, $to_ints:ident) => {
        #[inline(always)]
        unsafe fn splat(value: i32) -> Self::Ints {
            $splat(value)
        }
        #[inline(always)]
        unsafe fn load(from: *const u8) -> Self::Ints {
            $load(from.cast())
        }
        #[inline(always)]
        unsafe fn broadcast(from: *const u8) -> Self::Ints {
            $splat(from.cast::<i32>().read_unaligned())
        }
        #[inline(always)]
        unsafe fn to_ints(floats: Self::Floats) -> Self::Ints {
            $to_ints(floats.0)
        }
        #[inline(always)]
        unsafe fn half(bits: u16) -> f32 {
            crate::simd::bytes_x86::f16_to_f32(bits)
        }
        #[inline(always)]
        unsafe fn look_up(table: &[u8; 16], qs: &[u8; QK / 2]) -> [u8; QK] {
            crate::simd::bytes_x86::look_up_bytes(table, qs)
        }
    };
}

/// [`PanelVector::dot`] without VNNI: AVX2 and AVX-512 have it under other names alone.
#[cfg(all(target_arch = "x86_64", not(portable)))]
macro_rules! dot_without_vnni {
    ($ints:ty, $splat:ident, $add:ident, $and:ident, $left:ident, $right:ident, $unsigned_right:ident,
        $multiply_words:ident, $multiply_bytes:ident
    ) => {
        #[inline(always)]
        unsafe fn dot_without_vnni(acc: $ints, a: $ints, b: $ints, wide: bool) -> $ints {
            if !wide {
                return $add(acc, $multiply_words($multiply_bytes(a, b), $splat(1)));
            }
            // products of two bytes with eight bits each do not fit 16 bits with their sum
            let even = $multiply_words($and(a, $splat(0xff)), $right::<8>($left::<8>(b)));
            let odd = $multiply_words($unsigned_right::<8>(a), $right::<8>(b));
            $add(acc, $add(even, odd))
        }
    };
}

/// The first steps of [`PanelVector::transpose`], within parts of 128 bits: AVX2 and AVX-512 have them under other
/// names alone.
#[cfg(all(target_arch = "x86_64", not(portable)))]
macro_rules! transpose_parts {
    ($ints:ty, $low_32:ident, $high_32:ident, $low_64:ident, $high_64:ident) => {
        #[inline(always)]
        unsafe fn transpose_parts(v: &mut [$ints]) {
            // squares of 2 and of 4 cells
            for [a, b] in v.as_chunks_mut().0 {
                (*a, *b) = ($low_32(*a, *b), $high_32(*a, *b));
            }
            for v in v.as_chunks_mut().0 {
                let [a, b, c, d] = *v;
                *v = [$low_64(a, c), $high_64(a, c), $low_64(b, d), $high_64(b, d)];
            }
        }
    };
}

#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(super) use {dot_without_vnni, forward_to_intrinsics, transpose_parts};
