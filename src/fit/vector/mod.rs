//! The encoders over vectors: the same bytes as the scalar ones beside this folder, from the same operations in the
//! same order. Every lane has a sub-block or a block of its own, so that the order of additions does not change.

mod affine;
mod encode;
mod hifi;
mod iq4;
mod k;
mod legacy;
mod legacy_plain;
mod moves;
mod q2_k;
mod q3_k;
mod q6_k;
mod signed;
mod weights;

pub(crate) use encode::QuantizeRows;
pub(crate) use hifi::EncodeHifiRow;
