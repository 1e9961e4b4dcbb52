//! What a model is, in numbers: everything that tells one architecture from another.

use super::error::ModelError;
use super::rope::RopeConfig;
use crate::dot::half::COLUMNS;

/// The shape of a model and the choices of its architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Layers.
    pub n_layer: usize,
    /// Numbers of a token's state.
    pub n_embd: usize,
    /// Numbers inside the feed-forward network.
    pub n_ff: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; each serves as many query heads.
    pub n_head_kv: usize,
    /// Numbers of a head.
    pub head_size: usize,
    /// What is added to the mean square in a norm.
    pub norm_eps: f32,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// What the products of queries and keys are multiplied by.
    pub attention_scale: f32,
    /// Whether queries and keys are normed, head by head.
    pub norm_heads: bool,
    /// Whether attention and feed-forward network are normed once more at their ends.
    pub post_norms: bool,
    /// Of the feed-forward network's gate.
    pub activation: Activation,
    /// Logits are bent to stay within ± this.
    pub logit_softcap: Option<f32>,
    /// Which numbers make a pair to be turned by a position.
    pub pairs: Pairs,
    /// Positions.
    pub rope: RopeConfig,
    /// Layers that see only what is near.
    pub local: Option<Local>,
    /// Queries grow with their positions.
    pub temperature: Option<Temperature>,
}

/// The nonlinearity of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Silu,
    Gelu,
}

/// Which numbers of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// 0 and 1, 2 and 3: Llama's.
    Neighbours,
    /// Each of the first half with its counterpart in the second: GPT-NeoX's.
    Halves,
}

/// Layers with a sliding window.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Tokens that such a layer sees, the token itself included.
    pub window: usize,
    /// Positions in these layers.
    pub rope: RopeConfig,
    /// For each layer whether it is one.
    pub layers: Vec<bool>,
}

/// A query at position p is multiplied by `1 + scale · ln(1 + ⌊p / interval⌋)`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct Temperature {
    pub scale: f32,
    pub interval: usize,
}

impl Temperature {
    /// What the query at a position is multiplied by.
    pub(super) fn factor(&self, position: usize) -> f32 {
        let steps = (position / self.interval + 1) as f64;
        1.0 + self.scale * steps.ln() as f32
    }
}

/// Larger than any model; with it no product of two overflows.
const MOST: usize = 1 << 28;

impl Config {
    /// Fails where the numbers contradict each other.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        let sizes = [
            ("n_vocab", self.n_vocab),
            ("n_layer", self.n_layer),
            ("n_embd", self.n_embd),
            ("n_ff", self.n_ff),
            ("n_head", self.n_head),
            ("n_head_kv", self.n_head_kv),
            ("head_size", self.head_size),
        ];
        for (name, size) in sizes {
            if size == 0 || size > MOST {
                return Err(ModelError::Config(format!("{name} is {size}")));
            }
        }
        if !self.n_head.is_multiple_of(self.n_head_kv) {
            let (n, kv) = (self.n_head, self.n_head_kv);
            return Err(ModelError::Config(format!(
                "{n} heads cannot share {kv} of keys and values"
            )));
        }
        if !self.head_size.is_multiple_of(COLUMNS) {
            let size = self.head_size;
            return Err(ModelError::Config(format!(
                "heads of {size}, not a multiple of {COLUMNS}"
            )));
        }
        for rope in
            [Some(&self.rope), self.local.as_ref().map(|local| &local.rope)].into_iter().flatten()
        {
            let dimensions = rope.dimensions;
            if dimensions > self.head_size || !dimensions.is_multiple_of(2) || dimensions == 0 {
                let size = self.head_size;
                return Err(ModelError::Config(format!(
                    "{dimensions} numbers to be turned in heads of {size}"
                )));
            }
            if !rope.factors.is_empty() && rope.factors.len() != dimensions / 2 {
                let n = rope.factors.len();
                return Err(ModelError::Config(format!(
                    "{n} factors for {} frequencies",
                    dimensions / 2
                )));
            }
        }
        match &self.local {
            Some(local) if local.layers.len() != self.n_layer || local.window == 0 => {
                Err(ModelError::Config(format!(
                    "a window of {} in {} layers of {}",
                    local.window,
                    local.layers.len(),
                    self.n_layer
                )))
            }
            _ => Ok(()),
        }
    }

    /// Query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }

    /// Numbers of a token's queries.
    pub(super) fn n_query(&self) -> usize {
        self.n_head * self.head_size
    }

    /// Numbers of a token's keys, and of its values.
    pub(super) fn n_key(&self) -> usize {
        self.n_head_kv * self.head_size
    }

    /// Whether the layer has the window.
    pub(super) fn window(&self, layer: usize) -> Option<usize> {
        self.local.as_ref().filter(|local| local.layers[layer]).map(|local| local.window)
    }
}
