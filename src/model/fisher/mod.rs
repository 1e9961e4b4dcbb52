//! What errors in the weights do to the predictions: the Fisher information of every matrix.
//!
//! For small errors E in the weights the divergence of the predictions is ½ Σ F E², where F is the mean
//! square of ∂ log p(y) / ∂ weight, with tokens y drawn from the predictions themselves. One backward pass
//! from tokens drawn in this way gives F for all matrices.
//!
//! A token's gradient of a matrix is an outer product g xᵀ of the gradient at its output and its input, and
//! those of all tokens add up before the square is taken: an error is the same at all of them. With K the
//! products of all pairs of inputs, row o has Σ F = gₒᵀ K gₒ, and no gradient as large as the matrix is made.
//! Within the rows F is taken to be spread over the columns as Σ |g|² x² is.
//!
//! What is kept of a matrix is Σₒ Fₒ Σᵢ cᵢ w², c being the columns' shares, in these shares: half of it is the
//! divergence by errors as large as the weights, where Σ cᵢ E² is as large a part of Σ cᵢ w² in every row.

mod attention;
mod backward;
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
    /// The information that tokens drawn at the positions `scored` of a text of at most
    /// [`BATCH`](super::BATCH) tokens hold; `seed` is that of the draw.
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

    /// Cosines and sines of a layer's positions.
    fn angles(&self, layer: usize, tokens: usize) -> [Vec<f32>; 2] {
        let local = self.config.window(layer).and(self.local_rope.as_ref());
        let rope = local.unwrap_or(&self.rope);
        let mut cos = vec![0f32; tokens * rope.pairs()];
        let mut sin = cos.clone();
        rope.angles(0, &mut cos, &mut sin);
        [cos, sin]
    }
}
