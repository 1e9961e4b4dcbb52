//! What can be run on an instruction set.

use super::vector::Vector;

/// A computation over vectors, written once for every instruction set.
pub(crate) trait Kernel {
    /// What comes out of it.
    type Output;

    /// Implementations are `#[inline(always)]`, and so is all that they call, so that it is compiled for V's
    /// instruction set. V has 8 or 16 lanes.
    ///
    /// # Safety
    ///
    /// The CPU has V's instruction set.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// A loop over numbers, simple enough for the compiler to make vectors of, for every instruction set its own.
pub(crate) trait Loop {
    /// What comes out of it.
    type Output;

    /// Implementations are `#[inline(always)]`, and so is all that they call.
    fn run(self) -> Self::Output;
}
