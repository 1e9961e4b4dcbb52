//! The operations on lanes that the refinement is written in.

use crate::block::iq4::{VALUES, nearest};

/// The most lanes.
pub(crate) const MOST_LANES: usize = 32;

/// f32 lanes. No operation fuses or reorders unless its name says so: lane by lane the results are the
/// same, bit for bit, for every implementor.
///
/// # Safety
///
/// Every function may be called only where the CPU has the implementor's ISA. Pointers need no
/// alignment, but room for [`Self::LANES`] elements.
pub(crate) trait Lanes: Copy {
    /// How many, at most [`MOST_LANES`].
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`
    unsafe fn min(self, other: Self) -> Self;
    /// `if self > other { self } else { other }`
    unsafe fn max(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `if self < other { this } else { that }`
    unsafe fn if_less(self, other: Self, this: Self, that: Self) -> Self;
    /// Turns groups of `length` numbers, a multiple of 4, into lanes:
    /// `to[i * LANES + l] = from[l * length + i]`.
    unsafe fn transpose(from: *const f32, length: usize, to: *mut f32);

    /// The nearest of IQ4's values ([`crate::block::iq4::VALUES`]); of NaN the last.
    unsafe fn nearest_iq4(self) -> Self;
    /// IQ4's value for the number in each lane.
    unsafe fn iq4_value(self) -> Self;

    /// The nearest whole number, ties to even, of a number within ±2²².
    #[inline(always)]
    unsafe fn nearest(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let magic = Self::splat(12_582_912.0);
            self.add(magic).sub(magic)
        }
    }
}

/// Lanes for every CPU.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const N: usize>([f32; N]);

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

impl<const N: usize> Lanes for Portable<N> {
    const LANES: usize = N;

    lane_by_lane! {
        nearest_iq4() => |a| f32::from(VALUES[usize::from(nearest(a))]);
        iq4_value() => |a| f32::from(VALUES[a as usize]);
        add(other) => |a, b| a + b;
        sub(other) => |a, b| a - b;
        mul(other) => |a, b| a * b;
        div(other) => |a, b| a / b;
        min(other) => |a, b| if a < b { a } else { b };
        max(other) => |a, b| if a > b { a } else { b };
        mul_add(factor, addend) => |a, b, c| a.mul_add(b, c);
        if_less(other, this, that) => |a, b, this, that| if a < b { this } else { that };
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { from.cast::<[f32; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[f32; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, length: usize, to: *mut f32) {
        for l in 0..N {
            for i in 0..length {
                // SAFETY: the caller gives room for N groups, here and there.
                unsafe { *to.add(i * N + l) = *from.add(l * length + i) };
            }
        }
    }
}
