//! The few operations that the kernels are written in, and nothing an ISA lacks.
//!
//! A kernel is generic over [`Vector`] and `#[inline(always)]`; only the entry point of an ISA
//! carries `target_feature`, so everything is compiled for that ISA there. No operation fuses or
//! reorders: lane by lane each is the scalar one, bit for bit.

/// The most lanes that a vector has.
pub(crate) const MOST_LANES: usize = 32;

/// f32 lanes.
///
/// # Safety
///
/// Every function may be called only where the CPU has the implementor's ISA. Pointers need no
/// alignment, but room for [`Self::LANES`] elements.
pub(crate) trait Vector: Copy {
    /// Lanes of the vector, at most [`MOST_LANES`].
    const LANES: usize;

    /// A bit a lane.
    type Mask: Copy;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);

    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    unsafe fn abs(self) -> Self;

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
    /// Both.
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Either.
    unsafe fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Whether every lane is set.
    unsafe fn all(mask: Self::Mask) -> bool;

    /// [`crate::float::nearest_int`], then clamped, as numbers.
    unsafe fn nearest_int_clamped(self, low: i32, high: i32) -> Self;
    /// Writes the lanes, which are whole numbers 0 to 255, as bytes.
    unsafe fn store_bytes(self, to: *mut u8);

    /// Reads lane `l` from `from + l * stride`.
    #[inline(always)]
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self {
        let mut lanes = [0f32; MOST_LANES];
        for (l, lane) in lanes[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the caller gives room for every lane.
            *lane = unsafe { *from.add(l * stride) };
        }
        // SAFETY: `lanes` has room for the most lanes.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// Clamped to `low..=high`, which is within ±2²², then to the nearest whole number, ties to even.
    /// NaN gives `low`.
    #[inline(always)]
    unsafe fn nearest_in(self, low: i32, high: i32) -> Self {
        // SAFETY: as the caller's.
        unsafe {
            let magic = Self::splat(12_582_912.0);
            let clamped = self.max(Self::splat(low as f32)).min(Self::splat(high as f32));
            clamped.add(magic).sub(magic)
        }
    }
}

/// The operations that are one intrinsic in every ISA, as methods of an `impl Vector`.
macro_rules! forward_to_intrinsics {
    ($splat:ident, $load:ident, $store:ident, $sqrt:ident, { $($method:ident: $intrinsic:ident),* }) => {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's contract; so below.
            unsafe { Self($splat(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { Self($load(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe { $store(to, self.0) }
        }
        #[inline(always)]
        unsafe fn sqrt(self) -> Self {
            // SAFETY: as above.
            unsafe { Self($sqrt(self.0)) }
        }
        $(
            #[inline(always)]
            unsafe fn $method(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { Self($intrinsic(self.0, other.0)) }
            }
        )*
    };
}
pub(crate) use forward_to_intrinsics;
