//! Q4_HIFI's encoder, its two fits done for several blocks at a time.

use super::k_fit::{MOST_BLOCKS as BLOCKS, fit_blocks};
use super::vector::Vector;
use crate::block::k_fit::{KFit, without};
use crate::block::q4_k::RECIPE;
use crate::block::{BlockQ4K, QK_K};
use crate::hifi::{HifiBlock, largest_places};

/// See [`crate::kernel::encode_hifi_row`].
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn encode_blocks<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    outliers: usize,
    out: &mut [HifiBlock],
) {
    for (i, (x, out)) in x.chunks(BLOCKS).zip(out.chunks_mut(BLOCKS)).enumerate() {
        let importance = importance.map(|w| &w[BLOCKS * i..][..x.len()]);
        let mut plain = [KFit::EMPTY; BLOCKS];
        let mut refit = [KFit::EMPTY; BLOCKS];
        let mut places = [[0u8; crate::hifi::MAX_OUTLIERS]; BLOCKS];
        let mut rest = [[0f32; QK_K]; BLOCKS];
        for (l, x) in x.iter().enumerate() {
            places[l] = largest_places(x, outliers);
            rest[l] = without(x, &places[l][..outliers]);
        }
        let left_out = places.each_ref().map(|places| &places[..outliers]);
        // SAFETY: the caller's promise.
        unsafe {
            fit_blocks::<V>(&RECIPE, x, importance, &[], &mut plain[..x.len()]);
            let (rest, left_out) = (&rest[..x.len()], &left_out[..x.len()]);
            fit_blocks::<V>(&RECIPE, rest, importance, left_out, &mut refit[..x.len()]);
        }
        for (l, (x, out)) in x.iter().zip(out).enumerate() {
            let bases = [BlockQ4K::from_fit(&plain[l]), BlockQ4K::from_fit(&refit[l])];
            *out = HifiBlock::better(x, importance.map(|w| &w[l]), outliers, bases, places[l]);
        }
    }
}
