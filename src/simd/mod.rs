//! Vectors of f32: one trait, an implementation for every instruction set, and the way to run a computation on one.
//!
//! Nothing here knows what is computed.

#[cfg(all(target_arch = "x86_64", not(portable)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(portable)))]
mod avx512;
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) mod bytes_x86;
mod kernel;
mod portable;
mod run;
mod twice;
mod vector;

pub(crate) use kernel::{Kernel, Loop};
pub(crate) use run::{run, run_loop};
pub(crate) use twice::Twice;
#[cfg_attr(any(portable, not(target_arch = "x86_64")), allow(unused_imports))]
pub(crate) use vector::{InLanes, MOST_LANES, Vector};
