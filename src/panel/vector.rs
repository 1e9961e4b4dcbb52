//! What the panels need of an instruction set.

use crate::block::QK;

/// What an ISA has to offer.
///
/// # Safety
///
/// Every function may be called only where the CPU has the implementor's ISA, with pointers to as
/// many bytes as it needs; they need no alignment.
pub(crate) trait PanelVector {
    /// i32 lanes, or four bytes each.
    type Ints: Copy;
    /// As many f32 lanes.
    type Floats: Copy;
    /// Lanes.
    const LANES: usize;

    unsafe fn splat(value: i32) -> Self::Ints;
    unsafe fn load(from: *const u8) -> Self::Ints;
    /// Four bytes to every lane.
    unsafe fn broadcast(from: *const u8) -> Self::Ints;
    /// `acc` plus the products of four unsigned and four signed bytes. The unsigned ones have the eighth bit only
    /// where `wide`.
    unsafe fn dot(acc: Self::Ints, a: Self::Ints, b: Self::Ints, wide: bool) -> Self::Ints;

    /// The lanes' sum.
    unsafe fn total(ints: Self::Ints) -> i32;
    /// Writes the lanes, which are in -128..128, as bytes.
    unsafe fn store_bytes(ints: Self::Ints, to: *mut u8);

    /// To the nearest, ties to even.
    unsafe fn to_ints(floats: Self::Floats) -> Self::Ints;
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats;
    unsafe fn splat_f32(value: f32) -> Self::Floats;
    unsafe fn load_f32(from: *const f32) -> Self::Floats;
    unsafe fn store_f32(floats: Self::Floats, to: *mut f32);
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `max(most, |b|)` of the bits, which order as the magnitudes do, NaN the largest.
    unsafe fn max_abs(most: Self::Ints, b: Self::Floats) -> Self::Ints;
    /// The largest lane.
    unsafe fn largest(most: Self::Ints) -> f32;
    /// `acc + a · b`
    unsafe fn fma(a: Self::Floats, b: Self::Floats, acc: Self::Floats) -> Self::Floats;

    /// f16 to f32, exact.
    unsafe fn half(bits: u16) -> f32;
    /// What the table has for 32 quants of four bits: the low ones, then the high ones.
    unsafe fn look_up(table: &[u8; 16], qs: &[u8; QK / 2]) -> [u8; QK];
    /// Asks for the cache line of an address, which need not be valid.
    unsafe fn prefetch(at: *const u8);

    /// Writes a square of [`Self::LANES`] by as many cells of four bytes with rows and columns
    /// exchanged. `stride` and `to_stride` are the bytes from one row to the next.
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut u8, to_stride: usize);
}
