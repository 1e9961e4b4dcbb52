//! Vectors for every CPU: arrays, whose loops the compiler can vectorize.

use super::vector::{Kernel, Vector};
use crate::float::{f16_to_f32, mul_add, nearest_int};
use std::array::from_fn;

/// `N` lanes.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const N: usize>(pub [f32; N]);

/// Methods that compute each lane from those of `self` and others.
macro_rules! lane_by_lane {
    ($($method:ident($($other:ident),*) => |$a:ident $(, $b:ident)*| $result:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $method(self, $($other: Self),*) -> Self {
            let mut lanes = self.0;
            for l in 0..N {
                let ($a, $($b,)*) = (self.0[l], $($other.0[l],)*);
                lanes[l] = $result;
            }
            Self(lanes)
        }
    )*};
}

/// The CPU needs nothing; pointers are as [`Vector`] asks.
impl<const N: usize> Vector for Portable<N> {
    const LANES: usize = N;
    type Mask = [bool; N];
    type Wide = Portable<16>;

    lane_by_lane! {
        add(other) => |a, b| a + b;
        sub(other) => |a, b| a - b;
        mul(other) => |a, b| a * b;
        div(other) => |a, b| a / b;
        min(other) => |a, b| if a < b { a } else { b };
        max(other) => |a, b| if a > b { a } else { b };
        if_less(other, this, that) => |a, b, this, that| if a < b { this } else { that };
        sqrt() => |a| a.sqrt();
        abs() => |a| a.abs();
        with_sign_of(sign) => |a, b| a.copysign(b);
    }

    /// Not inlined, because it is long on CPUs without an instruction for it.
    #[cfg_attr(not(any(target_feature = "fma", target_arch = "aarch64")), inline(never))]
    #[cfg_attr(any(target_feature = "fma", target_arch = "aarch64"), inline(always))]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(from_fn(|l| mul_add(self.0[l], factor.0[l], addend.0[l])))
    }
    #[inline(never)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(from.cast::<[f32; N]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self {
        Self(from.cast::<[u16; N]>().read_unaligned().map(f16_to_f32))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        to.cast::<[f32; N]>().write_unaligned(self.0)
    }
    #[inline(always)]
    unsafe fn smallest(self) -> f32 {
        self.0.into_iter().fold(self.0[0], |a, b| if b < a { b } else { a })
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(self.0[0], |a, b| if b > a { b } else { a })
    }
    #[inline(always)]
    unsafe fn lt(self, other: Self) -> Self::Mask {
        from_fn(|l| self.0[l] < other.0[l])
    }
    #[inline(always)]
    unsafe fn le(self, other: Self) -> Self::Mask {
        from_fn(|l| self.0[l] <= other.0[l])
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, this: Self, other: Self) -> Self {
        Self(from_fn(|l| if mask[l] { this.0[l] } else { other.0[l] }))
    }
    #[inline(always)]
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        from_fn(|l| a[l] & b[l])
    }
    #[inline(always)]
    unsafe fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        from_fn(|l| a[l] | b[l])
    }
    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        mask == [true; N]
    }
    #[inline(always)]
    unsafe fn any(mask: Self::Mask) -> bool {
        mask != [false; N]
    }
    #[inline(always)]
    unsafe fn bits(mask: Self::Mask) -> u64 {
        mask.into_iter().rev().fold(0, |bits, bit| bits << 1 | u64::from(bit))
    }
    #[inline(always)]
    unsafe fn nearest_int_clamped(self, low: i32, high: i32) -> Self {
        Self(self.0.map(|v| nearest_int(v).clamp(low, high) as f32))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, most: i32, to: *mut u8) {
        let byte = |v: f32| {
            let in_range = (-2_147_483_648.0..2_147_483_648.0).contains(&v);
            (if in_range { v as i32 } else { i32::MIN }).min(most) as u8
        };
        to.cast::<[u8; N]>().write_unaligned(self.0.map(byte))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[f32; 16], indices: Self) -> Self {
        Self(indices.0.map(|index| table[index.to_bits() as usize % 16]))
    }
    #[inline(always)]
    unsafe fn load_fours(from: *const f32, stride: usize) -> Self {
        Self(from_fn(|l| *from.add(l / 4 * stride + l % 4)))
    }
    #[inline(always)]
    unsafe fn transpose_fours(vectors: [Self; 4]) -> [Self; 4] {
        from_fn(|i| Self(from_fn(|l| vectors[l % 4].0[l / 4 * 4 + i])))
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, length: usize, to: *mut f32) {
        for l in 0..N {
            for i in 0..length {
                *to.add(i * N + l) = *from.add(l * length + i);
            }
        }
    }
}
