//! The KV cache of a sequence: keys and values of all tokens so far, f16, in every layer.
//!
//! It consists of blocks of [`BLOCK`] tokens, so that memory grows with the text and nothing is moved. For every head,
//! a block has the keys dimension by dimension (head_size × BLOCK) and the values token by token (BLOCK × head_size).
//! Both are ready to be the right factor of a matrix product.

use super::config::Config;
use crate::float::f32_to_f16;

/// Tokens per block.
pub(super) const BLOCK: usize = 64;

/// The KV cache of one text. It is separate from the model, which several sequences may share.
#[derive(Debug)]
pub struct Sequence {
    pub(super) layers: Vec<LayerCache>,
    length: usize,
}

impl Sequence {
    /// An empty sequence for a model with this configuration.
    pub(super) fn new(config: &Config) -> Self {
        let layer = |i| LayerCache {
            blocks: Vec::new(),
            heads: config.n_head_kv,
            head_size: config.head_size,
            window: config.window(i),
        };
        Self { layers: (0..config.n_layer).map(layer).collect(), length: 0 }
    }

    /// The number of tokens that were evaluated.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Removes all tokens.
    pub fn reset(&mut self) {
        self.length = 0;
        for layer in &mut self.layers {
            layer.blocks.clear();
        }
    }

    /// Removes all but the first `length` tokens. Requires `length` ≤ [`Self::length`].
    ///
    /// Returns false, and changes nothing, if a layer with a sliding window has dropped tokens that the next token
    /// needs.
    pub fn truncate(&mut self, length: usize) -> bool {
        assert!(length <= self.length);
        let possible = length == 0 || self.layers.iter().all(|layer| layer.holds_seen(length));
        if possible {
            self.length = length;
            for layer in &mut self.layers {
                layer.blocks.truncate(length.div_ceil(BLOCK));
            }
        }
        possible
    }

    /// Counts tokens as evaluated. All layers have their keys and values.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
        for layer in &mut self.layers {
            layer.drop_unseen(self.length);
        }
    }
}

#[derive(Debug)]
pub(super) struct LayerCache {
    blocks: Vec<Box<[u16]>>,
    heads: usize,
    head_size: usize,
    window: Option<usize>,
}

impl LayerCache {
    /// Writes keys and values of tokens from position `first` on, and overwrites what was there.
    pub fn write(&mut self, first: usize, keys: &[f32], values: &[f32]) {
        let (size, width) = (self.head_size, self.heads * self.head_size);
        for (i, (key, value)) in
            keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate()
        {
            let (block, at) = ((first + i) / BLOCK, (first + i) % BLOCK);
            if block == self.blocks.len() {
                self.blocks.push(vec![0; 2 * width * BLOCK].into_boxed_slice());
            }
            let (to_keys, to_values) = self.blocks[block].split_at_mut(width * BLOCK);
            for (to, &key) in to_keys.iter_mut().skip(at).step_by(BLOCK).zip(key) {
                *to = f32_to_f16(key);
            }
            for (to, value) in
                to_values.chunks_exact_mut(BLOCK * size).zip(value.chunks_exact(size))
            {
                for (to, &value) in to[at * size..][..size].iter_mut().zip(value) {
                    *to = f32_to_f16(value);
                }
            }
        }
    }

    /// The keys of a head in a block, head_size × BLOCK.
    pub fn keys(&self, block: usize, head: usize) -> &[u16] {
        let n = self.head_size * BLOCK;
        &self.blocks[block][head * n..][..n]
    }

    /// The values of a head in a block, BLOCK × head_size.
    pub fn values(&self, block: usize, head: usize) -> &[u16] {
        let n = self.head_size * BLOCK;
        &self.blocks[block][(self.heads + head) * n..][..n]
    }

    /// The first block that a token at position `next` sees.
    fn first_seen(&self, next: usize) -> usize {
        self.window.map_or(0, |window| (next + 1).saturating_sub(window) / BLOCK)
    }

    /// Whether all earlier tokens that a token at position `next` sees are still stored.
    fn holds_seen(&self, next: usize) -> bool {
        self.blocks.get(self.first_seen(next)).is_none_or(|block| !block.is_empty())
    }

    /// Frees blocks that no token from position `next` on can see.
    fn drop_unseen(&mut self, next: usize) {
        let seen = self.first_seen(next);
        for block in self.blocks.iter_mut().take(seen).rev().take_while(|block| !block.is_empty()) {
            *block = Box::default();
        }
    }
}
