//! Fisher information of every matrix: how errors in its weights change the predictions.
//!
//! For small errors E in the weights, the KL divergence of the predictions is ½ Σ F E². F is the mean square of
//! ∂ log p(y) / ∂ weight, where the tokens y are drawn from the predictions. One backward pass from such tokens gives F
//! for all matrices.
//!
//! The gradient of a matrix at one token is the outer product g xᵀ of the gradient at its output and its input. The
//! gradients of all tokens are added before they are squared, because the error in a weight is the same at all tokens.
//! For row o, this gives Fₒ = Σ F = gₒᵀ K gₒ, where gₒ has one value per token and K has the products of all pairs of
//! inputs. So no gradient of the size of the matrix is needed. Within a row, F is divided among the columns in
//! proportion to Σ |g|² x².
//!
//! The result for a matrix is Σₒ Fₒ Σᵢ cᵢ w², divided among its columns. Here cᵢ is the share of column i in Fₒ. If
//! the relative squared error r = Σᵢ cᵢ E² / Σᵢ cᵢ w² is the same in every row, the KL divergence is r / 2 times this
//! result.
//!
//! For a stack of experts, the results of all experts are added. Which experts a token uses is taken as fixed.

mod attention;
mod backward;
mod feed_forward;
mod gradients;
mod layer;
mod products;
#[cfg(test)]
mod tests;

use super::error::ModelError;
use super::forward::Model;
use backward::Backward;
pub use backward::Fisher;
use layer::LayerWork;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

impl Model<'_> {
    /// The Fisher information from one token drawn at each of the positions `scored` of a text.
    ///
    /// The text has at most [`BATCH`](super::BATCH) tokens. `seed` is the seed of the draws.
    pub fn fisher(
        &self,
        tokens: &[u32],
        scored: Range<usize>,
        seed: u32,
        cancelled: &AtomicBool,
    ) -> Result<Fisher, ModelError> {
        assert!(scored.start < scored.end && scored.end <= tokens.len());
        let trace = self.trace(tokens, cancelled)?;
        let (config, tensors, isa) = (&self.config, &self.tensors, self.isa);
        let mut back = Backward { isa, config, found: Fisher::default() };

        let states = trace.states.last().expect("a state that leaves the last layer");
        let wanted = scored.start * config.n_embd..scored.end * config.n_embd;
        let mut gradient = vec![0f32; states.len()];
        gradient[wanted.clone()].copy_from_slice(&back.output(self, &states[wanted], seed)?);

        for (number, layer) in tensors.layers.iter().enumerate().rev() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(ModelError::Cancelled);
            }
            let [cos, sin] = self.angles(number, tokens.len());
            let work = LayerWork { number, layer, cos: &cos, sin: &sin };
            let forward = work.forward(isa, config, &trace.states[number])?;
            work.backward(&mut back, &forward, &mut gradient)?;
        }
        gradient.iter_mut().for_each(|g| *g *= config.embedding_scale);
        back.embeddings(&tensors.token_embd, tokens, &gradient)?;
        Ok(back.found)
    }

    /// Cosines and sines for all positions of a layer.
    fn angles(&self, layer: usize, tokens: usize) -> [Vec<f32>; 2] {
        let local = self.config.window(layer).and(self.local_rope.as_ref());
        let rope = local.unwrap_or(&self.rope);
        let mut cos = vec![0f32; tokens * rope.pairs()];
        let mut sin = cos.clone();
        rope.angles(0, &mut cos, &mut sin);
        [cos, sin]
    }
}
