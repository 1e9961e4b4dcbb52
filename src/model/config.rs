//! The configuration of a model: its shape, and everything that differs between architectures.

use super::error::ModelError;
use super::rope::RopeConfig;
use crate::dot::half::COLUMNS;

/// The shape of a model and the choices of its architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Layers.
    pub n_layer: usize,
    /// Dimensions of a token's state.
    pub n_embd: usize,
    /// Hidden dimensions of a feed-forward network: that of a layer, or that of one expert.
    pub n_ff: usize,
    /// Experts in the place of a layer's feed-forward network.
    pub experts: Option<Experts>,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads. Each is used by `n_head / n_head_kv` query heads.
    pub n_head_kv: usize,
    /// Dimensions of a head.
    pub head_size: usize,
    /// Added to the mean square in a norm.
    pub norm_eps: f32,
    /// Token embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// Products of queries and keys are multiplied by this.
    pub attention_scale: f32,
    /// Whether queries and keys are normed, head by head.
    pub norm_heads: bool,
    /// Whether the outputs of attention and of the feed-forward network are normed, too.
    pub post_norms: bool,
    /// The activation function of the feed-forward network's gate.
    pub activation: Activation,
    /// Logits are soft-capped to ± this.
    pub logit_softcap: Option<f32>,
    /// Which dimensions of a head are rotated as a pair.
    pub pairs: Pairs,
    /// Rotary position embeddings.
    pub rope: RopeConfig,
    /// Layers with a sliding window.
    pub local: Option<Local>,
    /// Queries are multiplied by a factor that grows with their positions.
    pub temperature: Option<Temperature>,
}

/// A mixture of experts: feed-forward networks, of which each token uses some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that each token uses. Their weights are a softmax over the router's logits of these experts.
    pub used: usize,
}

/// The nonlinearity of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Silu,
    Gelu,
}

/// Which dimensions of a head are rotated as a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// 0 and 1, 2 and 3: Llama's.
    Neighbours,
    /// Dimension i of the first half and dimension i of the second half: GPT-NeoX's.
    Halves,
}

/// Layers with a sliding window.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Tokens that a token sees in such a layer, including itself.
    pub window: usize,
    /// Rotary position embeddings of these layers.
    pub rope: RopeConfig,
    /// For each layer, whether it has the window.
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
    /// The factor for the query at a position.
    pub(super) fn factor(&self, position: usize) -> f32 {
        let steps = (position / self.interval + 1) as f64;
        1.0 + self.scale * steps.ln() as f32
    }
}

/// Larger than any dimension of a model, and so small that no product of two dimensions overflows.
const MOST: usize = 1 << 28;

impl Config {
    /// Fails if fields contradict each other.
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
        if let Some(Experts { count, used }) = self.experts
            && (count == 0 || count > MOST || used == 0 || used > count)
        {
            return Err(ModelError::Config(format!("{used} experts are used of {count}")));
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
                    "{dimensions} rotary dimensions in heads of {size}"
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

    /// Query heads per key and value head.
    pub(super) fn query_heads_per_kv_head(&self) -> usize {
        self.n_head / self.n_head_kv
    }

    /// Dimensions of a token's queries, all heads together.
    pub(super) fn n_query(&self) -> usize {
        self.n_head * self.head_size
    }

    /// Dimensions of a token's keys, all heads together; the same for its values.
    pub(super) fn n_key(&self) -> usize {
        self.n_head_kv * self.head_size
    }

    /// Hidden dimensions that a token uses: those of all its experts together.
    pub(super) fn n_hidden(&self) -> usize {
        self.n_ff * self.experts.map_or(1, |experts| experts.used)
    }

    /// Whether the layer has the window.
    pub(super) fn window(&self, layer: usize) -> Option<usize> {
        self.local.as_ref().filter(|local| local.layers[layer]).map(|local| local.window)
    }
}
