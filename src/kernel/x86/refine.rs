//! The vectors as lanes of [`crate::refine`].

use super::iq4::{FLOATS, nearest_value};
use super::vector::Vector;
use crate::refine::lanes::Lanes;

/// Methods of the same name and arguments.
macro_rules! forward {
    ($($method:ident($($other:ident),*)),*) => {$(
        #[inline(always)]
        unsafe fn $method(self, $($other: Self),*) -> Self {
            // SAFETY: the trait's contract; so below.
            unsafe { Vector::$method(self, $($other),*) }
        }
    )*};
}

impl<V: Vector> Lanes for V {
    const LANES: usize = <V as Vector>::LANES;

    forward!(add(other), sub(other), mul(other), div(other), min(other), max(other));
    forward!(mul_add(factor, addend));

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as above.
        unsafe { Vector::splat(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { Vector::load(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { Vector::store(self, to) }
    }
    #[inline(always)]
    unsafe fn if_less(self, other: Self, this: Self, that: Self) -> Self {
        // SAFETY: as above.
        unsafe { V::select(self.lt(other), this, that) }
    }
    #[inline(always)]
    unsafe fn nearest_iq4(self) -> Self {
        // SAFETY: as above.
        unsafe { nearest_value(self) }
    }
    #[inline(always)]
    unsafe fn iq4_value(self) -> Self {
        // SAFETY: as above; what is added leaves the number in the lowest bits.
        unsafe { Vector::look_up(&FLOATS, Vector::add(self, Vector::splat(8_388_608.0))) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, length: usize, to: *mut f32) {
        // SAFETY: as above.
        unsafe { <V as Vector>::transpose(from, length, to) }
    }
}
