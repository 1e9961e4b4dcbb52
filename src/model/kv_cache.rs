//! What a sequence remembers: keys and values of all tokens so far, f16, in every layer.
//!
//! They lie in blocks of [`BLOCK`] tokens, so that memory grows with the text and nothing moves. A
//! block holds, for every head, its keys number by number (head_size × BLOCK) and its values token by
//! token (BLOCK × head_size): both are the right side of a matrix product as they lie.

use super::config::Config;
use crate::float::f32_to_f16;

/// Tokens of a block.
pub(super) const BLOCK: usize = 64;

/// The memory of one text, apart from the model that reads it.
#[derive(Debug)]
pub struct Sequence {
    pub(super) layers: Vec<LayerCache>,
    length: usize,
}

impl Sequence {
    /// An empty one, for a model of that shape.
    pub(super) fn new(config: &Config) -> Self {
        let layer = |i| LayerCache {
            blocks: Vec::new(),
            heads: config.n_head_kv,
            head_size: config.head_size,
            window: config.window(i),
        };
        Self { layers: (0..config.n_layer).map(layer).collect(), length: 0 }
    }

    /// Tokens that were evaluated.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Forgets all.
    pub fn reset(&mut self) {
        self.length = 0;
        for layer in &mut self.layers {
            layer.blocks.clear();
        }
    }

    /// Forgets all but the first `length` tokens, of which there are as many or more. False, and nothing
    /// changes, where a layer with a window has forgotten tokens that the next one would see.
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

    /// Counts tokens as evaluated, after which all layers hold them.
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
    /// Writes keys and values of tokens from position `first` on; what was there is lost.
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

    /// Whether all that a token at position `next` sees before it is there.
    fn holds_seen(&self, next: usize) -> bool {
        self.blocks.get(self.first_seen(next)).is_none_or(|block| !block.is_empty())
    }

    /// Gives back blocks that no token from position `next` on can see.
    fn drop_unseen(&mut self, next: usize) {
        let seen = self.first_seen(next);
        for block in self.blocks.iter_mut().take(seen).rev().take_while(|block| !block.is_empty()) {
            *block = Box::default();
        }
    }
}
