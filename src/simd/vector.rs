//! The vector trait: the operations of which the fast versions consist.
//!
//! An algorithm is generic over [`Vector`] and `#[inline(always)]`. Only the entry point of an instruction set
//! ([`super::run`]) has `target_feature`, so all code is compiled for the instruction set there. No operation fuses or
//! reorders unless its name says so: in each lane, the result is bit for bit that of the scalar operation.

use crate::float::ROUNDING;
#[cfg(any(test, all(target_arch = "x86_64", not(portable))))]
use std::mem::MaybeUninit;

/// The largest number of lanes of a vector.
pub(crate) const MOST_LANES: usize = 32;

/// A value for each lane of any vector.
pub(crate) type LaneArray = [f32; MOST_LANES];

/// Room for `N` vectors: element `i` of lane `l` has index `i * LANES + l`.
///
/// It is aligned, so that no vector is in two cache lines, which would cost a second access. It is not initialized,
/// because writing zeros would take as much time as some kernels need.
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
    /// The result.
    type Output;

    /// Runs the computation. Implementations are `#[inline(always)]`, and so are all functions that they call, so that
    /// they are compiled for V's instruction set. V has 8 or 16 lanes, or 32 if [`Vector::call`] runs it on
    /// [`Vector::Wide`].
    ///
    /// # Safety
    ///
    /// The CPU has V's instruction set.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// A loop from one slice to another that is so simple that the compiler vectorizes it.
///
/// The slices are separate function arguments. So the compiler knows that they do not overlap. It would not know this
/// of slices in the fields of a kernel.
pub(crate) trait Transform {
    /// Elements of the slice that is read.
    type From;
    /// Elements of the slice that is written.
    type To;

    /// Runs the loop. Implementations are `#[inline(always)]`, and so are all functions that they call.
    fn run(from: &[Self::From], to: &mut [Self::To]);
}

/// f32 lanes.
///
/// # Safety
///
/// Conditions of every function:
///
/// * the CPU has the implementor's instruction set;
/// * pointers lead to [`Self::LANES`] elements, or as many as the function says; they need no alignment.
#[cfg_attr(any(portable, not(target_arch = "x86_64")), allow(dead_code))] // the fits are not compiled there
pub(crate) trait Vector: Copy {
    /// Lanes of the vector, at most [`MOST_LANES`].
    const LANES: usize;

    /// A mask with one bit per lane.
    type Mask: Copy;

    /// The vector of at least sixteen lanes for long chains of operations: two side by side, so that the second works
    /// while the first waits.
    type Wide: Vector;

    /// Runs a computation over such vectors as a separate function. It is for large computations with several callers,
    /// because all other code is inlined into each caller.
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
    /// `self` with the sign of `sign`; `self` must not be negative.
    unsafe fn with_sign_of(self, sign: Self) -> Self;
    /// The smallest lane.
    unsafe fn smallest(self) -> f32;
    /// The largest lane.
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
    /// Lanes that are set in both masks.
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Lanes that are set in at least one mask.
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
    /// Truncates the lanes towards zero, takes at most `most`, and writes the low bytes. Values outside of i32 become
    /// 0.
    unsafe fn store_bytes(self, most: i32, to: *mut u8);

    /// `table[i]` for each lane, where i is the four lowest bits of the lane's representation.
    unsafe fn look_up(table: &[f32; 16], indices: Self) -> Self;

    /// Reads four values from each of `from`, `from + stride`, and so on, into four lanes each.
    unsafe fn load_fours(from: *const f32, stride: usize) -> Self;
    /// Lane `4 k + j` of vector `i` of the result is lane `4 k + i` of vector `j`.
    unsafe fn transpose_fours(vectors: [Self; 4]) -> [Self; 4];

    /// Reads four values from each of `from`, `from + stride`, and so on, one such address per lane. Vector `i` has the
    /// values at offset `i`.
    #[inline(always)]
    unsafe fn load_transposed(from: *const f32, stride: usize) -> [Self; 4] {
        // the caller gives four values per lane.
        Self::transpose_fours([
            Self::load_fours(from, 4 * stride),
            Self::load_fours(from.add(stride), 4 * stride),
            Self::load_fours(from.add(2 * stride), 4 * stride),
            Self::load_fours(from.add(3 * stride), 4 * stride),
        ])
    }

    /// Transposes groups into lanes: `to[i * LANES + l] = from[l * length + i]`. `length`, a multiple of 4, is the
    /// length of a group.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, length: usize, to: *mut f32) {
        for i in (0..length).step_by(4) {
            // the caller gives LANES groups, and room for as many.
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

    /// Clamped to `low..=high`, which is within ±2²², then rounded to the nearest integer, ties to even.
    /// NaN gives `low`.
    #[inline(always)]
    unsafe fn nearest_in(self, low: i32, high: i32) -> Self {
        self.max(Self::splat(low as f32)).min(Self::splat(high as f32)).nearest()
    }

    /// `self / divisor` as [`Self::nearest_int_clamped`] has it.
    ///
    /// The product with the inverse has a relative error of at most 2⁻²¹. If it is small and farther than that from a
    /// tie, it rounds to the same integer as the quotient. Division takes much longer.
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

    /// The nearest integer, ties to even; for values within ±2²².
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
