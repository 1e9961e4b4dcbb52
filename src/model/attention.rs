//! Attention: for every query, the mean of the values that it sees, weighted by the softmax of its products with the
//! keys.
//!
//! The cache is processed block by block. For each block, the queries of several tokens and of all heads that share
//! keys are multiplied by the keys, then a step of the softmax follows, then the products with the values. So the
//! cache is read once for all these queries, and scores are kept for one block only.

use super::config::Config;
use super::kv_cache::{BLOCK, LayerCache};
use super::ops::SoftmaxStep;
use crate::dispatch;
use crate::dot::half::HalfProduct;
use crate::isa::Isa;
use crate::simd::run_loop;
use crate::team;
use std::cell::RefCell;

/// Queries that are processed at once; each is a row of the products.
const ROWS: usize = 48;

/// A value below all scores.
const LEAST: f32 = -1e30;

/// Computes attention for the queries of tokens; the first token is at position `first`. `queries` and `out` have one
/// row per token. The cache already has the keys and values of these tokens.
pub(super) fn attend(
    isa: Isa,
    config: &Config,
    cache: &LayerCache,
    window: Option<usize>,
    first: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let width = config.n_query();
    let head_width = config.query_heads_per_kv_head() * config.head_size;
    let heads = Heads { isa, config, cache, window };
    let tokens = out.len() / width;
    if tokens == 1 {
        team::for_each_chunk(out, head_width, |head, out| {
            let queries = &queries[head * head_width..][..head_width];
            heads.attend(head, first, (0, head_width), queries, out);
        });
        return;
    }
    let most = (ROWS / config.query_heads_per_kv_head()).max(1);
    let step = tokens.div_ceil(4 * team::count()).min(most);
    team::for_each_chunk(out, step * width, |i, out| {
        let queries = &queries[i * step * width..][..out.len()];
        for head in 0..config.n_head_kv {
            heads.attend(head, first + i * step, (head * head_width, width), queries, out);
        }
    });
}

struct Heads<'a> {
    isa: Isa,
    config: &'a Config,
    cache: &'a LayerCache,
    window: Option<usize>,
}

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    weighted: Vec<f32>,
    /// Per row: the largest score so far, and the sum of the weights.
    state: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Heads<'_> {
    /// Computes attention for the query heads that use key head `head`. They begin at `offset` in each row of `width`
    /// values.
    fn attend(
        &self,
        head: usize,
        first: usize,
        (offset, width): (usize, usize),
        queries: &[f32],
        out: &mut [f32],
    ) {
        let size = self.config.head_size;
        let group = self.config.query_heads_per_kv_head();
        let head_width = group * size;
        let tokens = out.len() / width;
        SCRATCH.with_borrow_mut(|scratch| {
            let rows = tokens * group;
            let Scratch { queries: q, scores, weighted, state } = scratch;
            q.clear();
            for row in queries.chunks_exact(width) {
                let heads = &row[offset..][..head_width];
                q.extend(heads.iter().map(|q| q * self.config.attention_scale));
            }
            scores.resize(rows * BLOCK, 0.0);
            weighted.clear();
            weighted.resize(rows * size, 0.0);
            state.clear();
            state.resize(rows, (LEAST, 0.0));

            let seen_from =
                |position: usize| self.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let last = first + tokens - 1;
            for block in seen_from(first) / BLOCK..=last / BLOCK {
                let start = block * BLOCK;
                let filled = BLOCK.min(last + 1 - start);
                scores.fill(0.0);
                let b = self.cache.keys(block, head);
                let product = HalfProduct { a: q, stride: size, k: size, b, n: BLOCK, c: scores };
                dispatch::multiply_half(self.isa, product);
                let rows = scores.chunks_exact_mut(BLOCK).zip(weighted.chunks_exact_mut(size));
                for (row, ((scores, weighted), (greatest, sum))) in
                    rows.zip(state.iter_mut()).enumerate()
                {
                    let position = first + row / group;
                    let from = seen_from(position).saturating_sub(start).min(BLOCK);
                    let to = (position + 1).saturating_sub(start).clamp(from, BLOCK);
                    let visible = from..to;
                    run_loop(self.isa, SoftmaxStep { scores, visible, greatest, sum, weighted });
                }
                let b = self.cache.values(block, head);
                let product =
                    HalfProduct { a: scores, stride: BLOCK, k: filled, b, n: size, c: weighted };
                dispatch::multiply_half(self.isa, product);
            }
            let weighted = weighted.chunks_exact(head_width).zip(state.chunks_exact(group));
            for (out, (weighted, state)) in out.chunks_exact_mut(width).zip(weighted) {
                let heads = out[offset..][..head_width].chunks_exact_mut(size);
                for ((out, weighted), (_, sum)) in heads.zip(weighted.chunks_exact(size)).zip(state)
                {
                    let scale = 1.0 / sum;
                    for (out, x) in out.iter_mut().zip(weighted) {
                        *out = x * scale;
                    }
                }
            }
        });
    }
}
