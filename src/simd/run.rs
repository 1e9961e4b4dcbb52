//! Running a computation on an instruction set: the only functions with `target_feature` that know nothing of
//! what they run.

use super::kernel::{Kernel, Loop};
#[cfg(all(target_arch = "x86_64", not(portable)))]
use super::{avx2, avx512};
use super::{portable::Portable, vector::Vector};
use crate::isa::Isa;

/// Runs a computation over the vectors of `isa`, which the CPU has.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx512 => unsafe { avx512::run(kernel) },
        // SAFETY: the CPU has the instruction set.
        #[cfg(all(target_arch = "x86_64", not(portable)))]
        Isa::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: every CPU has these lanes.
        _ => unsafe { kernel.run::<Portable<8>>() },
    }
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
