//! How blocks are distributed over vectors.

use crate::block::QK;
use crate::simd::{MOST_LANES, Vector};
use std::ops::Range;

/// Divides `count` blocks of `lanes` lanes each into ranges. A range fills two vectors; the last ones fill one vector
/// if that is enough. The bool of a range is true if it needs two vectors.
#[inline(always)]
pub(super) fn ranges<V: Vector>(
    count: usize,
    lanes: usize,
) -> impl Iterator<Item = (Range<usize>, bool)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = count - start;
        let is_twice = rest * lanes > V::LANES;
        let held = if is_twice { 2 * V::LANES } else { V::LANES } / lanes;
        let range = start..start + rest.min(held);
        start = range.end;
        (rest > 0).then_some((range, is_twice))
    })
}

/// The address of a full vector of blocks. Too few blocks are first copied to `copy`, where other blocks follow.
#[inline(always)]
pub(super) fn filled<V: Vector>(
    blocks: &[[f32; QK]],
    copy: &mut [[f32; QK]; MOST_LANES],
) -> *const f32 {
    if blocks.len() == V::LANES {
        return blocks.as_ptr().cast();
    }
    copy[..blocks.len()].copy_from_slice(blocks);
    copy.as_ptr().cast()
}
