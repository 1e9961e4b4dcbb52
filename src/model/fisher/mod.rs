//! What errors in the weights do to the predictions: the Fisher information of every matrix.
//!
//! For small errors E in the weights the divergence of the predictions is ½ Σ F E², where F is the mean
//! square of ∂ log p(y) / ∂ weight, with tokens y drawn from the predictions themselves. One pass backward
//! from tokens that are drawn so tells it of all matrices.
//!
//! A token's gradient of a matrix is an outer product g xᵀ of the gradient at its output and its input, and
//! those of all tokens add up before the square is taken: an error is the same at all of them. With K the
//! products of all pairs of inputs, row o has Σ F = gₒᵀ K gₒ, and no gradient as large as the matrix is made.
//! Within the rows F is taken to be spread over the columns as Σ |g|² x² is.
//!
//! What is kept of a matrix is Σₒ Fₒ Σᵢ cᵢ w², c being the columns' shares, in these shares: half of it is the
//! divergence by errors as large as the weights, where Σ cᵢ E² is as large a part of Σ cᵢ w² in every row.

mod attention;
mod gradients;
mod layer;
mod products;
#[cfg(test)]
mod tests;

use super::config::Config;
use super::error::ModelError;
use super::forward::{Model, apply, norm, softcapped};
use super::sampling::{Sampler, Sampling};
use super::weights::{Linear, Role};
use crate::kernel::Isa;
use crate::matmul::Matrix;
use gradients::{gradient_of_logits, norm_backward};
use layer::LayerWork;
use products::{dot, information, multiply_turned, pairs, row_sums, spread, times, turned};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The information of one text.
#[derive(Debug, Clone, Default)]
pub struct Fisher {
    found: Vec<(Role, Option<usize>, Vec<f64>)>,
}

impl Fisher {
    /// Σₒ Fₒ Σᵢ cᵢ w² of a matrix, over all tokens that were drawn, in the shares c of its columns; None
    /// where the role has no matrix. An output that is token_embd has its part apart.
    pub fn of(&self, role: Role, layer: Option<usize>) -> Option<&[f64]> {
        let found = self.found.iter().find(|found| (found.0, found.1) == (role, layer));
        found.map(|found| &found.2[..])
    }
}

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

/// The way back, and what was found on it.
struct Backward<'a> {
    isa: Isa,
    config: &'a Config,
    found: Fisher,
}

impl Backward<'_> {
    fn add(&mut self, role: Role, layer: Option<usize>, information: f64, shares: Vec<f64>) {
        let information = information.max(0.0); // of a matrix that does nothing, rounding may leave less
        let columns = shares.into_iter().map(|share| share * information).collect();
        self.found.found.push((role, layer, columns));
    }

    /// Draws a token at each of the states that leave the last layer; returns the gradient of their
    /// log-probabilities at these states.
    fn output(
        &mut self,
        model: &Model<'_>,
        states: &[f32],
        seed: u32,
    ) -> Result<Vec<f32>, ModelError> {
        let (config, isa) = (self.config, self.isa);
        let Linear { matrix, .. } = &model.tensors.output;
        let mut normed = vec![0f32; states.len()];
        norm(isa, config, states, &model.tensors.output_norm, &mut normed);
        let mut logits = vec![0f32; states.len() / config.n_embd * config.n_vocab];
        apply(isa, &model.tensors.output, &normed, &mut logits)?;
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed };
        let mut sampler = Sampler::new(sampling);
        let bend = config.logit_softcap;
        for row in logits.chunks_exact_mut(config.n_vocab) {
            if let Some(cap) = bend {
                row.iter_mut().for_each(|logit| *logit = softcapped(*logit, cap));
            }
            let Some(drawn) = sampler.sample(row) else { return Err(ModelError::NotFinite) };
            gradient_of_logits(row, drawn as usize, bend);
        }
        let inputs = Inputs::new(&normed, config.n_embd)?;
        self.matrix(Role::Output, None, matrix, &inputs, &logits)?;
        let mut gradient = multiply_turned(isa, matrix, &logits)?;
        norm_backward(config.norm_eps, states, &model.tensors.output_norm, &mut gradient);
        Ok(gradient)
    }

    /// Notes the information of a matrix that made of the inputs outputs with that gradient.
    fn matrix(
        &mut self,
        role: Role,
        layer: Option<usize>,
        matrix: &Matrix<'_>,
        inputs: &Inputs<'_>,
        gradient: &[f32],
    ) -> Result<(), ModelError> {
        let shares = spread(inputs.rows, matrix.row_length(), gradient, matrix.rows());
        let energies = row_sums(self.isa, matrix, &shares);
        self.add(role, layer, information(&inputs.pairs, gradient, &energies)?, shares);
        Ok(())
    }

    /// The same of a matrix of a layer; returns the gradient at the inputs.
    fn linear(
        &mut self,
        role: Role,
        layer: usize,
        linear: &Linear<'_>,
        inputs: &Inputs<'_>,
        gradient: &[f32],
    ) -> Result<Vec<f32>, ModelError> {
        self.matrix(role, Some(layer), &linear.matrix, inputs, gradient)?;
        Ok(multiply_turned(self.isa, &linear.matrix, gradient)?)
    }

    /// The same of the embeddings: each is its token's own.
    fn embeddings(
        &mut self,
        table: &Matrix<'_>,
        tokens: &[u32],
        gradient: &[f32],
    ) -> Result<(), ModelError> {
        let same = tokens.iter().flat_map(|a| tokens.iter().map(move |b| (a == b) as u8 as f32));
        let same: Vec<f32> = same.collect();
        let width = table.row_length();
        let ones = vec![1f32; tokens.len()];
        let shares = spread(gradient, width, &ones, 1);
        let sums = times(&same, tokens.len(), &turned(gradient, width))?;
        let mut row = vec![0f32; width];
        let mut information = 0.0;
        for (t, &token) in tokens.iter().enumerate() {
            table.row(self.isa, token as usize, &mut row);
            let energy: f64 =
                row.iter().zip(&shares).map(|(&w, c)| c * f64::from(w) * f64::from(w)).sum();
            let sums: Vec<f32> = (0..width).map(|i| sums[i * tokens.len() + t]).collect();
            information += energy * dot(&gradient[t * width..][..width], &sums);
        }
        self.add(Role::TokenEmbd, None, information, shares);
        Ok(())
    }
}

/// What entered a matrix, a row of `n` numbers a token.
struct Inputs<'a> {
    rows: &'a [f32],
    pairs: Vec<f32>,
}

impl<'a> Inputs<'a> {
    fn new(rows: &'a [f32], n: usize) -> Result<Self, ModelError> {
        Ok(Self { rows, pairs: pairs(rows, n)? })
    }
}
