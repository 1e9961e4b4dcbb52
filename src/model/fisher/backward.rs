//! The backward pass through the matrices, and the Fisher information that it collects.

use super::gradients::{gradient_of_logits, norm_backward};
use super::products::{
    dot, information, multiply_transposed, pairs, row_sums, spread, times, transposed,
};
use crate::isa::Isa;
use crate::matmul::Matrix;
use crate::model::config::Config;
use crate::model::error::ModelError;
use crate::model::forward::Model;
use crate::model::ops::{apply, norm, softcapped};
use crate::model::role::Role;
use crate::model::sampling::{Sampler, Sampling};
use crate::model::weights::Linear;

/// The Fisher information of one text.
#[derive(Debug, Clone, Default)]
pub struct Fisher {
    found: Vec<(Role, Option<usize>, Vec<f64>)>,
}

impl Fisher {
    /// Σₒ Fₒ Σᵢ cᵢ w² of a matrix over all drawn tokens, divided among its columns. None if the role
    /// has no matrix. If the output matrix is token_embd, the parts of both roles are separate.
    pub fn of(&self, role: Role, layer: Option<usize>) -> Option<&[f64]> {
        let found = self.found.iter().find(|found| (found.0, found.1) == (role, layer));
        found.map(|found| &found.2[..])
    }
}

/// The backward pass, and its results so far.
pub(super) struct Backward<'a> {
    pub(super) isa: Isa,
    pub(super) config: &'a Config,
    pub(super) found: Fisher,
}

impl Backward<'_> {
    fn add(&mut self, role: Role, layer: Option<usize>, information: f64, shares: Vec<f64>) {
        let information = information.max(0.0); // rounding may make an information of 0 negative
        let columns = shares.into_iter().map(|share| share * information);
        // the experts of a stack have one result
        let found = &mut self.found.found;
        match found.iter_mut().rev().find(|found| (found.0, found.1) == (role, layer)) {
            Some((_, _, sums)) => sums.iter_mut().zip(columns).for_each(|(sum, x)| *sum += x),
            None => found.push((role, layer, columns.collect())),
        }
    }

    /// Draws a token for each state after the last layer. Returns the gradient of their log-probabilities at these
    /// states.
    pub(super) fn output(
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
        let inputs = MatrixInputs::new(&normed, config.n_embd)?;
        self.matrix(Role::Output, None, matrix, &inputs, &logits)?;
        let mut gradient = multiply_transposed(isa, matrix, &logits)?;
        norm_backward(config.norm_eps, states, &model.tensors.output_norm, &mut gradient);
        Ok(gradient)
    }

    /// Adds the information of a matrix, from its `inputs` and the `gradient` at its outputs.
    fn matrix(
        &mut self,
        role: Role,
        layer: Option<usize>,
        matrix: &Matrix<'_>,
        inputs: &MatrixInputs<'_>,
        gradient: &[f32],
    ) -> Result<(), ModelError> {
        let shares = spread(inputs.rows, matrix.row_length(), gradient, matrix.rows());
        let energies = row_sums(self.isa, matrix, &shares);
        self.add(role, layer, information(&inputs.pairs, gradient, &energies)?, shares);
        Ok(())
    }

    /// The same for a matrix of a layer. Returns the gradient at the inputs.
    pub(super) fn linear(
        &mut self,
        role: Role,
        layer: usize,
        linear: &Linear<'_>,
        inputs: &MatrixInputs<'_>,
        gradient: &[f32],
    ) -> Result<Vec<f32>, ModelError> {
        self.matrix(role, Some(layer), &linear.matrix, inputs, gradient)?;
        Ok(multiply_transposed(self.isa, &linear.matrix, gradient)?)
    }

    /// The same for the embeddings: the gradient at an embedding is the sum over its token's positions.
    pub(super) fn embeddings(
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
        let sums = times(&same, tokens.len(), &transposed(gradient, width))?;
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

/// The inputs of a matrix, one row of `n` values per token.
pub(super) struct MatrixInputs<'a> {
    rows: &'a [f32],
    pairs: Vec<f32>,
}

impl<'a> MatrixInputs<'a> {
    pub(super) fn new(rows: &'a [f32], n: usize) -> Result<Self, ModelError> {
        Ok(Self { rows, pairs: pairs(rows, n)? })
    }
}
