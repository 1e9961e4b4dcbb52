//! How blocks are distributed over vectors.

use crate::simd::Vector;
use std::ops::Range;

/// Divides `count` blocks of `lanes` lanes each into ranges: of as many as two vectors hold, or one where the rest
/// fits into that. Says of each whether it takes two.
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
