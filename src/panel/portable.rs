//! Panels on every CPU: arrays, whose loops the compiler makes vectors of.

use super::vector::PanelVector;
use crate::block::QK;
use crate::float::{f16_to_f32, nearest_int};
use crate::simd;
use std::array::from_fn;

/// Lanes: with [`super::multiply::multiply`]'s tiles the fastest of 4, 8 and 16.
const LANES: usize = 8;

/// See [`PanelVector`], whose contract asks nothing of the CPU here.
pub(crate) struct Portable;

impl PanelVector for Portable {
    type Ints = [i32; LANES];
    type Floats = simd::Portable<LANES>;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Ints {
        from.cast::<Self::Ints>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self::Ints {
        [from.cast::<i32>().read_unaligned(); LANES]
    }

    #[inline(always)]
    unsafe fn dot(acc: Self::Ints, a: Self::Ints, b: Self::Ints, _: bool) -> Self::Ints {
        from_fn(|l| {
            // words, because CPUs multiply and add pairs of words in one instruction
            let low = |x: i32| [x as i16 & 0xff, (x >> 16) as i16 & 0xff];
            let high = |x: i32| [(x >> 8) as i16 & 0xff, (x >> 24) as i16 & 0xff];
            let low_signed = |x: i32| [i16::from(x as i8), i16::from((x >> 16) as i8)];
            let high_signed = |x: i32| [i16::from((x >> 8) as i8), i16::from((x >> 24) as i8)];
            let products = |a: [i16; 2], b: [i16; 2]| {
                i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1])
            };
            acc[l]
                .wrapping_add(products(low(a[l]), low_signed(b[l])))
                .wrapping_add(products(high(a[l]), high_signed(b[l])))
        })
    }

    #[inline(always)]
    unsafe fn total(ints: Self::Ints) -> i32 {
        ints.iter().fold(0, |sum, &int| sum.wrapping_add(int))
    }

    #[inline(always)]
    unsafe fn store_bytes(ints: Self::Ints, to: *mut u8) {
        to.cast::<[u8; LANES]>().write_unaligned(ints.map(|x| x as u8))
    }

    #[inline(always)]
    unsafe fn to_ints(floats: Self::Floats) -> Self::Ints {
        floats.0.map(nearest_int)
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        simd::Portable(ints.map(|x| x as f32))
    }

    #[inline(always)]
    unsafe fn max_abs(most: Self::Ints, b: Self::Floats) -> Self::Ints {
        from_fn(|l| most[l].max(b.0[l].abs().to_bits() as i32))
    }

    #[inline(always)]
    unsafe fn largest(most: Self::Ints) -> f32 {
        f32::from_bits(most.into_iter().fold(0, i32::max) as u32)
    }

    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], qs: &[u8; QK / 2]) -> [u8; QK] {
        from_fn(|i| table[usize::from(qs[i % (QK / 2)] >> (i / (QK / 2) * 4) & 0x0f)])
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut u8, to_stride: usize) {
        for row in 0..LANES {
            for cell in 0..LANES {
                let cell_from = from.add(row * stride + 4 * cell).cast::<[u8; 4]>();
                to.add(cell * to_stride + 4 * row).cast::<[u8; 4]>().write(*cell_from);
            }
        }
    }
}
