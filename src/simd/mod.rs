//! Vectors of f32: one trait, an implementation for every instruction set, and functions that run a computation on one.
//! The computations themselves are in other rooms.
//!
//! Code over vectors is `unsafe`, because it may run only if the CPU has the instruction set. An `unsafe fn` lists its
//! conditions under "Safety", or has the single condition of [`Vector`]. Its body relies on them without repeating
//! them.

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
