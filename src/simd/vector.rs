//! The one vector trait: the few operations that the fast versions are written in.
//!
//! An algorithm is generic over [`Vector`] and `#[inline(always)]`; only the entry point of an instruction set
//! ([`super::run`]) carries `target_feature`, so everything is compiled for that instruction set there. No
//! operation fuses or reorders unless its name says so: lane by lane each is the scalar one, bit for bit.

use crate::float::ROUNDING;
#[cfg(any(test, all(target_arch = "x86_64", not(portable))))]
use std::mem::MaybeUninit;

/// The most lanes that a vector has.
pub(crate) const MOST_LANES: usize = 32;

/// A value for each lane of any vector.
pub(crate) type LaneArray = [f32; MOST_LANES];

/// Room for `N` vectors one after the other: element `i` of lane `l` is number `i * LANES + l`.
///
/// Aligned so that no vector straddles cache lines, which would cost a second access; not filled,
/// because zeros that are overwritten cost as much as some of the kernels' passes.
#[cfg(any(test, all(target_arch = "x86_64", not(portable))))] // where the fits are compiled
#[repr(C, align(64))]
pub(crate) struct InLanes<const N: usize>(MaybeUninit<[[f32; MOST_LANES]; N]>);

#[cfg(any(test, all(target_arch = "x86_64", not(portable))))]
impl<const N: usize> InLanes<N> {
    #[inline(always)]
    pub fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    #[inline(always)]
    pub fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// A computation over vectors, written once for every instruction set.
pub(crate) trait Kernel {
    /// What comes out of it.
    type Output;

    /// Implementations are `#[inline(always)]`, and so is all that they call, so that it is compiled for V's
    /// instruction set. V has 8 or 16 lanes, or 32 where [`Vector::call`] runs it on [`Vector::Wide`].
    ///
    /// # Safety
    ///
    /// The CPU has V's instruction set.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// A loop from a slice to another, simple enough for the compiler to make vectors of it.
///
/// The slices are arguments of their own: so the compiler knows that they do not overlap, which a kernel that
/// holds them would hide.
pub(crate) trait Transform {
    /// What is read.
    type From;
    /// What is written.
    type To;

    /// Implementations are `#[inline(always)]`, and so is all that they call.
    fn run(from: &[Self::From], to: &mut [Self::To]);
}

/// f32 lanes.
///
/// # Safety
///
/// What every function asks of its caller:
///
/// * the CPU has the implementor's instruction set;
/// * pointers lead to [`Self::LANES`] elements, or as many as the function says; they need no alignment.
#[cfg_attr(any(portable, not(target_arch = "x86_64")), allow(dead_code))] // the fits are not compiled there
pub(crate) trait Vector: Copy {
    /// Lanes of the vector, at most [`MOST_LANES`].
    const LANES: usize;

    /// A bit a lane.
    type Mask: Copy;

    /// The vector of at least sixteen lanes for long chains of operations: two side by side, so that the second works
    /// while the first waits.
    type Wide: Vector;

    /// Runs a computation over such vectors as a function of its own, for what is large and has several callers:
    /// everything else is inlined into each of them.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);

    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    unsafe fn abs(self) -> Self;
    /// Of a vector that is not negative: its magnitude with the sign of `sign`.
    unsafe fn with_sign_of(self, sign: Self) -> Self;
    /// The least lane.
    unsafe fn smallest(self) -> f32;
    /// The greatest lane.
    unsafe fn largest(self) -> f32;
    /// `self * factor + addend`, rounded once. ggml's own operations are never fused.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;

    /// `if self < other { self } else { other }`
    unsafe fn min(self, other: Self) -> Self;
    /// `if self > other { self } else { other }`
    unsafe fn max(self, other: Self) -> Self;
    /// `self < other`, false for NaN.
    unsafe fn lt(self, other: Self) -> Self::Mask;
    /// `self <= other`, false for NaN.
    unsafe fn le(self, other: Self) -> Self::Mask;
    /// `this` where the mask is set, `other` elsewhere.
    unsafe fn select(mask: Self::Mask, this: Self, other: Self) -> Self;
    /// `if self < other { this } else { that }`
    #[inline(always)]
    unsafe fn if_less(self, other: Self, this: Self, that: Self) -> Self {
        Self::select(self.lt(other), this, that)
    }
    /// Both.
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Either.
    unsafe fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Whether every lane is set.
    unsafe fn all(mask: Self::Mask) -> bool;
    /// Whether some lane is set.
    unsafe fn any(mask: Self::Mask) -> bool;
    /// Bit `l` is that of lane `l`.
    unsafe fn bits(mask: Self::Mask) -> u64;

    /// [`crate::float::nearest_int`], then clamped, as numbers.
    unsafe fn nearest_int_clamped(self, low: i32, high: i32) -> Self;
    /// f16 to f32, exact.
    unsafe fn load_half(from: *const u16) -> Self;
    /// Writes the low bytes of the lanes, cut off towards zero and at most `most`; what no i32 can hold
    /// becomes 0.
    unsafe fn store_bytes(self, most: i32, to: *mut u8);

    /// `table[lane]`, where the four lowest bits of a lane's representation say which.
    unsafe fn look_up(table: &[f32; 16], indices: Self) -> Self;

    /// Reads four numbers from each of `from`, `from + stride`, …: four lanes each.
    unsafe fn load_fours(from: *const f32, stride: usize) -> Self;
    /// Lane `4 k + j` of vector `i` of the result is lane `4 k + i` of vector `j`.
    unsafe fn transpose_fours(vectors: [Self; 4]) -> [Self; 4];

    /// Four numbers from each of `from`, `from + stride`, …, a lane each: vector `i` has those at `i`.
    #[inline(always)]
    unsafe fn load_transposed(from: *const f32, stride: usize) -> [Self; 4] {
        // the caller gives room for four numbers a lane.
        Self::transpose_fours([
            Self::load_fours(from, 4 * stride),
            Self::load_fours(from.add(stride), 4 * stride),
            Self::load_fours(from.add(2 * stride), 4 * stride),
            Self::load_fours(from.add(3 * stride), 4 * stride),
        ])
    }

    /// Turns groups into lanes: `to[i * LANES + l] = from[l * length + i]`, where `length`, a multiple
    /// of 4, is that of a group.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, length: usize, to: *mut f32) {
        for i in (0..length).step_by(4) {
            // the caller gives room for LANES groups, here and there.
            let [a, b, c, d] = Self::load_transposed(from.add(i), length);
            a.store(to.add(i * Self::LANES));
            b.store(to.add((i + 1) * Self::LANES));
            c.store(to.add((i + 2) * Self::LANES));
            d.store(to.add((i + 3) * Self::LANES));
        }
    }

    /// The lanes, and zeros.
    #[inline(always)]
    unsafe fn to_array(self) -> LaneArray {
        let mut array = [0.0; MOST_LANES];
        self.store(array.as_mut_ptr());
        array
    }

    /// Clamped to `low..=high`, which is within ±2²², then to the nearest whole number, ties to even.
    /// NaN gives `low`.
    #[inline(always)]
    unsafe fn nearest_in(self, low: i32, high: i32) -> Self {
        self.max(Self::splat(low as f32)).min(Self::splat(high as f32)).nearest()
    }

    /// `self / divisor` as [`Self::nearest_int_clamped`] has it.
    ///
    /// A product with the inverse is within 2⁻²¹ of the quotient, relatively. Where it is small and
    /// farther from a tie than that, both round to the same number, and dividing takes far longer.
    #[inline(always)]
    unsafe fn nearest_quotient(self, divisor: f32, low: i32, high: i32) -> Self {
        let product = self.mul(Self::splat(1.0 / divisor));
        let nearest = product.nearest();
        let clear = product.sub(nearest).abs().lt(Self::splat(0.499));
        let small = product.abs().lt(Self::splat(1000.0));
        if Self::all(Self::and(clear, small)) {
            nearest.max(Self::splat(low as f32)).min(Self::splat(high as f32))
        } else {
            self.div(Self::splat(divisor)).nearest_int_clamped(low, high)
        }
    }

    /// The nearest whole number, ties to even, of a number within ±2²².
    #[inline(always)]
    unsafe fn nearest(self) -> Self {
        let magic = Self::splat(ROUNDING);
        self.add(magic).sub(magic)
    }
}

/// The methods of an `impl Vector` that AVX2 and AVX-512 have under other names alone.
#[cfg(all(target_arch = "x86_64", not(portable)))]
macro_rules! forward_to_intrinsics {
    (
        splat: $splat:ident,
        load: $load:ident,
        store: $store:ident,
        sqrt: $sqrt:ident,
        operations: { $($method:ident: $intrinsic:ident),* },
        fused: $fused:ident,
        unpack: $unpack_low:ident, $unpack_high:ident, $shuffle:ident,
        integers: $bits:ident, $to_floats:ident, $splat_int:ident, $and:ident, $sub:ident, $min:ident, $max:ident
    ) => {
        #[inline(always)]
        unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
            run(kernel)
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self($splat(value))
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self($load(from))
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            $store(to, self.0)
        }
        #[inline(always)]
        unsafe fn sqrt(self) -> Self {
            Self($sqrt(self.0))
        }
        $(
            #[inline(always)]
            unsafe fn $method(self, other: Self) -> Self {
                Self($intrinsic(self.0, other.0))
            }
        )*
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self($fused(self.0, factor.0, addend.0))
        }
        #[inline(always)]
        unsafe fn transpose_fours([a, b, c, d]: [Self; 4]) -> [Self; 4] {
            let ab = ($unpack_low(a.0, b.0), $unpack_high(a.0, b.0));
            let cd = ($unpack_low(c.0, d.0), $unpack_high(c.0, d.0));
            [
                Self($shuffle::<0b01_00_01_00>(ab.0, cd.0)),
                Self($shuffle::<0b11_10_11_10>(ab.0, cd.0)),
                Self($shuffle::<0b01_00_01_00>(ab.1, cd.1)),
                Self($shuffle::<0b11_10_11_10>(ab.1, cd.1)),
            ]
        }
        #[inline(always)]
        unsafe fn nearest_int_clamped(self, low: i32, high: i32) -> Self {
            let bits = $bits(self.add(Self::splat(crate::float::ROUNDING)).0);
            let whole = $sub($and(bits, $splat_int(0x007f_ffff)), $splat_int(0x0040_0000));
            Self($to_floats($max($min(whole, $splat_int(high)), $splat_int(low))))
        }
    };
}
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(super) use forward_to_intrinsics;
