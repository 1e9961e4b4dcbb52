//! Running any computation on an instruction set, compiled with its `target_feature`.

use super::portable::Portable;
use super::vector::{Kernel, Transform, Vector};
#[cfg(all(target_arch = "x86_64", not(portable)))]
use super::{avx2, avx512};
use crate::isa::Isa;

/// Runs a computation over the vectors of `isa`, which the CPU has.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 | Isa::Avx2 => run_in_registers(isa, kernel),
        // SAFETY: every CPU has these lanes.
        _ => unsafe { kernel.run::<Portable<8>>() },
    }
}

/// The same for computations that have a separate scalar version: `isa` is not [`Isa::Scalar`], so that nothing is
/// compiled for portable vectors.
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) fn run_in_registers<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the instruction set.
        Isa::Avx512 => unsafe { avx512::run(kernel) },
        // SAFETY: the CPU has the instruction set.
        Isa::Avx2 => unsafe { avx2::run(kernel) },
        Isa::Scalar => unreachable!("no vector registers"),
    }
}

/// A loop that is so simple that the compiler vectorizes it. It is compiled for each instruction set.
pub(crate) trait Loop {
    /// The result.
    type Output;

    /// Runs the loop. Implementations are `#[inline(always)]`, and so are all functions that they call.
    fn run(self) -> Self::Output;
}

/// Runs a loop, compiled for `isa`, which the CPU has.
pub(crate) fn run_loop<L: Loop>(isa: Isa, work: L) -> L::Output {
    run(isa, WithoutVectors(work))
}

struct WithoutVectors<L>(L);

impl<L: Loop> Kernel for WithoutVectors<L> {
    type Output = L::Output;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> L::Output {
        self.0.run()
    }
}

/// Runs a loop from a slice to another, compiled for `isa`, which the CPU has.
pub(crate) fn transform<T: Transform>(isa: Isa, from: &[T::From], to: &mut [T::To]) {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { avx512::transform::<T>(from, to) },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { avx2::transform::<T>(from, to) },
        _ => T::run(from, to),
    }
}
