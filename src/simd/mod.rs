//! Vectors of f32: one trait, an implementation for every instruction set, and the way to run a computation on one.
//!
//! Nothing here knows what is computed.
//!
//! What is written over vectors is `unsafe`, because it may run only where the CPU has the instruction set. An
//! `unsafe fn` lists all that it asks of its caller under "Safety", or has the one condition of [`Vector`]; what it
//! does relies on that, without saying so again.

#[cfg(all(target_arch = "x86_64", not(portable)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(portable)))]
mod avx512;
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) mod bytes_x86;
mod portable;
mod run;
mod twice;
mod vector;

pub(crate) use portable::Portable;
pub(crate) use run::{Loop, run, run_loop, transform};
pub(crate) use twice::Twice;
#[cfg(any(test, all(target_arch = "x86_64", not(portable))))]
pub(crate) use vector::InLanes;
pub(crate) use vector::{Kernel, LaneArray, MOST_LANES, Transform, Vector};
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) use {avx2::F32x8, avx512::F32x16, run::run_in_registers};
