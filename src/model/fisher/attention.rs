//! Attention with all scores of a head at once, forward and backward.

use super::products::{dot, put, take, times, transposed};
use crate::error::QuantError;
use crate::float::exp;
use crate::model::config::Config;
use crate::model::error::ModelError;
use rayon::prelude::*;

/// The attention of one layer.
pub(super) struct Attention<'a> {
    config: &'a Config,
    window: usize,
    tokens: usize,
}

/// The values of one head, one row per token.
pub(super) struct Head {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    weights: Vec<f32>,
}

impl<'a> Attention<'a> {
    pub(super) fn new(config: &'a Config, layer: usize, tokens: usize) -> Self {
        Self { config, window: config.window(layer).unwrap_or(tokens), tokens }
    }

    pub(super) fn forward(
        &self,
        query: &[f32],
        key: &[f32],
        value: &[f32],
    ) -> Result<Vec<f32>, ModelError> {
        let size = self.config.head_size;
        let heads: Vec<Vec<f32>> = (0..self.config.n_head)
            .into_par_iter()
            .map(|head| {
                let Head { value, weights, .. } = self.head(head, query, key, value)?;
                times(&transposed(&value, size), self.tokens, &weights)
            })
            .collect::<Result<_, QuantError>>()?;
        let mut out = vec![0f32; query.len()];
        for (head, attended) in heads.iter().enumerate() {
            put(&mut out, self.config.n_query(), head * size, size, attended);
        }
        Ok(out)
    }

    /// The gradients at queries, keys and values, from those at the outputs.
    pub(super) fn backward(
        &self,
        query: &[f32],
        key: &[f32],
        value: &[f32],
        attended: &[f32],
    ) -> Result<[Vec<f32>; 3], ModelError> {
        let (size, scale) = (self.config.head_size, self.config.attention_scale);
        let width = self.config.n_query();
        let heads: Vec<[Vec<f32>; 3]> = (0..self.config.n_head)
            .into_par_iter()
            .map(|number| {
                let head = self.head(number, query, key, value)?;
                let out = take(attended, width, number * size, size);
                let mut scores = times(&head.value, size, &out)?;
                for (score, weight) in
                    scores.chunks_exact_mut(self.tokens).zip(head.weights.chunks_exact(self.tokens))
                {
                    let mean = dot(score, weight) as f32;
                    for (score, &weight) in score.iter_mut().zip(weight) {
                        *score = (*score - mean) * weight * scale;
                    }
                }
                let back = transposed(&scores, self.tokens);
                let weights = transposed(&head.weights, self.tokens);
                Ok([
                    times(&transposed(&head.key, size), self.tokens, &scores)?,
                    times(&transposed(&head.query, size), self.tokens, &back)?,
                    times(&transposed(&out, size), self.tokens, &weights)?,
                ])
            })
            .collect::<Result<_, QuantError>>()?;
        let lengths = [query.len(), key.len(), value.len()];
        let mut gradients = lengths.map(|length| vec![0f32; length]);
        for (head, [at_query, at_key, at_value]) in heads.iter().enumerate() {
            let shared = head / self.config.query_heads_per_kv_head() * size;
            put(&mut gradients[0], width, head * size, size, at_query);
            put(&mut gradients[1], self.config.n_key(), shared, size, at_key);
            put(&mut gradients[2], self.config.n_key(), shared, size, at_value);
        }
        Ok(gradients)
    }

    /// A query head and what it sees, with the weights of the softmax.
    pub(super) fn head(
        &self,
        head: usize,
        query: &[f32],
        key: &[f32],
        value: &[f32],
    ) -> Result<Head, QuantError> {
        let (size, shared) = (self.config.head_size, head / self.config.query_heads_per_kv_head());
        let query = take(query, self.config.n_query(), head * size, size);
        let key = take(key, self.config.n_key(), shared * size, size);
        let value = take(value, self.config.n_key(), shared * size, size);
        let mut weights = times(&key, size, &query)?;
        for (t, row) in weights.chunks_exact_mut(self.tokens).enumerate() {
            let seen = (t + 1).saturating_sub(self.window)..t + 1;
            let greatest = row[seen.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (s, x) in row.iter_mut().enumerate() {
                let visible = seen.contains(&s);
                let score = (*x - greatest) * self.config.attention_scale;
                *x = if visible { exp(score) } else { 0.0 };
                sum += *x;
            }
            row.iter_mut().for_each(|x| *x /= sum);
        }
        Ok(Head { query, key, value, weights })
    }
}
