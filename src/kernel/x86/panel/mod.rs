//! The panels' operations on x86-64.

pub(in crate::kernel) mod avx2;
pub(in crate::kernel) mod avx512;
