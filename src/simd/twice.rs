//! Two vectors as one vector with twice the lanes.
//!
//! In a chain of additions, each waits for the result before it. With two independent chains, the CPU works on the
//! second while the first waits.

use super::vector::{Kernel, Vector};

#[derive(Clone, Copy)]
pub(crate) struct Twice<V>(V, V);

/// Runs a computation on vectors with twice the lanes.
struct OnTwice<K>(K);

impl<K: Kernel> Kernel for OnTwice<K> {
    type Output = K::Output;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> K::Output {
        self.0.run::<Twice<V>>()
    }
}

/// A method that does the same with both halves.
macro_rules! both {
    ($($method:ident),*) => {$(
        #[inline(always)]
        unsafe fn $method(self, other: Self) -> Self {
            Self(self.0.$method(other.0), self.1.$method(other.1))
        }
    )*};
}

impl<V: Vector> Vector for Twice<V> {
    const LANES: usize = 2 * V::LANES;
    type Mask = (V::Mask, V::Mask);
    type Wide = Self;

    both!(add, sub, mul, div, min, max, with_sign_of);

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        V::call(OnTwice(kernel))
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(V::splat(value), V::splat(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(V::load(from), V::load(from.add(V::LANES)))
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self {
        Self(V::load_half(from), V::load_half(from.add(V::LANES)))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[f32; 16], indices: Self) -> Self {
        Self(V::look_up(table, indices.0), V::look_up(table, indices.1))
    }
    #[inline(always)]
    unsafe fn load_fours(from: *const f32, stride: usize) -> Self {
        let second = from.add(V::LANES / 4 * stride);
        Self(V::load_fours(from, stride), V::load_fours(second, stride))
    }
    #[inline(always)]
    unsafe fn transpose_fours([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        let first = V::transpose_fours([a.0, b.0, c.0, d.0]);
        let second = V::transpose_fours([a.1, b.1, c.1, d.1]);
        [
            Self(first[0], second[0]),
            Self(first[1], second[1]),
            Self(first[2], second[2]),
            Self(first[3], second[3]),
        ]
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        self.0.store(to);
        self.1.store(to.add(V::LANES));
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Self(self.0.sqrt(), self.1.sqrt())
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(self.0.mul_add(factor.0, addend.0), self.1.mul_add(factor.1, addend.1))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    unsafe fn smallest(self) -> f32 {
        self.0.min(self.1).smallest()
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.max(self.1).largest()
    }
    #[inline(always)]
    unsafe fn lt(self, other: Self) -> Self::Mask {
        (self.0.lt(other.0), self.1.lt(other.1))
    }
    #[inline(always)]
    unsafe fn le(self, other: Self) -> Self::Mask {
        (self.0.le(other.0), self.1.le(other.1))
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, this: Self, other: Self) -> Self {
        Self(V::select(mask.0, this.0, other.0), V::select(mask.1, this.1, other.1))
    }
    #[inline(always)]
    unsafe fn if_less(self, other: Self, this: Self, that: Self) -> Self {
        let first = self.0.if_less(other.0, this.0, that.0);
        Self(first, self.1.if_less(other.1, this.1, that.1))
    }
    #[inline(always)]
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::and(a.0, b.0), V::and(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::or(a.0, b.0), V::or(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        V::all(V::and(mask.0, mask.1))
    }
    #[inline(always)]
    unsafe fn any(mask: Self::Mask) -> bool {
        V::any(V::or(mask.0, mask.1))
    }
    #[inline(always)]
    unsafe fn bits(mask: Self::Mask) -> u64 {
        V::bits(mask.0) | V::bits(mask.1) << V::LANES
    }
    #[inline(always)]
    unsafe fn nearest_int_clamped(self, low: i32, high: i32) -> Self {
        Self(self.0.nearest_int_clamped(low, high), self.1.nearest_int_clamped(low, high))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, most: i32, to: *mut u8) {
        self.0.store_bytes(most, to);
        self.1.store_bytes(most, to.add(V::LANES));
    }
}
