//! The products of rows of any type.

use super::k_rows::KRows;
use super::nibble_rows;
use super::outliers::Outliers;
use super::plain::{legacy_rows, number_rows};
#[cfg(test)]
use super::rows;
use super::vector::DotVector;
#[cfg(test)]
use crate::block::{BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ5K, BlockQ6K, TensorType};
use crate::block::{BlockQ4K, by_family};
use crate::dot::activations::{Activations, Column};
use crate::dot::rows::Rows;
#[cfg(test)]
use crate::dot::{
    activations::{BlockQ8K, HalfOrder},
    scalar::KSums,
};

/// The integer sums of one block, for the tests.
///
/// # Safety
///
/// The CPU has V's ISA.
#[cfg(test)]
#[inline(always)]
pub(super) unsafe fn block_sums<V: DotVector>(
    kind: TensorType,
    block: &[u8],
    y: &BlockQ8K,
) -> KSums {
    match kind {
        TensorType::Q4K => nibble_rows::block_sums::<V, BlockQ4K>(block, y),
        TensorType::Q5K => nibble_rows::block_sums::<V, BlockQ5K>(block, y),
        TensorType::IQ4XS => rows::block_sums::<V, BlockIQ4XS>(block, &HalfOrder::new(y)),
        TensorType::Q2K => rows::block_sums::<V, BlockQ2K>(block, y),
        TensorType::Q3K => rows::block_sums::<V, BlockQ3K>(block, y),
        TensorType::Q6K => rows::block_sums::<V, BlockQ6K>(block, y),
        _ => unreachable!("{kind:?} has no blocks of 256 quants"),
    }
}

/// See [`crate::dispatch::dot_rows`]; the lengths have been checked.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(super) unsafe fn dot_rows<V: DotVector>(
    rows: Rows<'_>,
    activations: &Activations,
    out: &mut [f32],
) {
    let Activations { column, scales_and_sums, nibble_order: k, .. } = activations;
    match rows {
        Rows::Hifi { base, index, residual } => {
            let sparse = activations.sparse.as_ref().expect("checked at the border");
            let outliers = Some(Outliers { index, residual, sparse });
            match sparse.outliers {
                4 => nibble_rows::dot_rows::<V, BlockQ4K, 4>(base, outliers, k, out),
                8 => nibble_rows::dot_rows::<V, BlockQ4K, 8>(base, outliers, k, out),
                16 => nibble_rows::dot_rows::<V, BlockQ4K, 16>(base, outliers, k, out),
                32 => nibble_rows::dot_rows::<V, BlockQ4K, 32>(base, outliers, k, out),
                _ => nibble_rows::dot_rows::<V, BlockQ4K, 0>(base, outliers, k, out),
            }
        }
        Rows::Plain(kind, data) => by_family!(kind,
            float: B => {
                let Column::F32(x) = column else { unreachable!("checked at the border") };
                number_rows::<V, B>(data, x, out);
            },
            small: B => match column {
                Column::Q8_0(y) => legacy_rows::<V, B, _>(data, y, scales_and_sums, out),
                Column::Q8_1(y) => legacy_rows::<V, B, _>(data, y, scales_and_sums, out),
                _ => unreachable!("checked at the border"),
            },
            k: B => B::dot_rows::<V>(data, activations, out)
        ),
    }
}
