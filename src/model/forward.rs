//! The forward pass: tokens in, logits out.

use super::attention;
use super::collector::{Collector, Site};
use super::config::Config;
use super::error::ModelError;
use super::feed_forward::{Routes, hidden, mix};
use super::kv_cache::Sequence;
use super::ops::{NormHeads, add, apply, each_row, norm, rotate, softcapped};
use super::rope::Rope;
use super::weights::{Builder, FeedForward, Layer, Tensors};
use crate::isa::Isa;
use crate::matmul::Matrix;
use crate::simd::run_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Tokens that go through the layers together.
pub const BATCH: usize = 512;

/// A transformer's weights, ready to run. Any number of sequences may use it at the same time.
#[derive(Debug, Clone)]
pub struct Model<'a> {
    pub(super) config: Config,
    pub(super) tensors: Tensors<'a>,
    pub(super) rope: Rope,
    pub(super) local_rope: Option<Rope>,
    pub(super) isa: Isa,
    /// Buffers that later evaluations use again, one for each evaluation that runs at the same time.
    buffers: Arc<Mutex<Vec<Buffers>>>,
}

/// The tokens to evaluate, and where results go.
#[derive(Debug)]
pub struct Request<'a> {
    /// The tokens. They follow the tokens of the sequence.
    pub tokens: &'a [u32],
    /// Indices of the tokens whose logits are wanted.
    pub wanted: Range<usize>,
    /// Receives the logits, `[wanted tokens, n_vocab]`.
    pub logits: &'a mut [f32],
    /// Receives the inputs of all matrices.
    pub collector: Option<&'a mut Collector>,
    /// Checked before every layer. If it is set, the evaluation fails with [`ModelError::Cancelled`].
    pub cancelled: &'a AtomicBool,
}

/// The states of a text's tokens before each layer, and after the last one.
#[derive(Debug)]
pub struct Trace {
    tokens: usize,
    pub(super) states: Vec<Vec<f32>>,
}

impl Trace {
    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Intermediate values, one row per token.
#[derive(Debug, Default)]
struct Buffers {
    state: Vec<f32>,
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    mixed: Vec<f32>,
    /// Cosines and sines of all positions, for the global layers and for the layers with a window.
    angles: [[Vec<f32>; 2]; 2],
}

impl<'a> Model<'a> {
    /// The model of a complete builder. Fails if a tensor is missing.
    pub fn new(builder: Builder<'a>) -> Result<Self, ModelError> {
        let (config, tensors) = builder.finish()?;
        let rope = Rope::new(&config.rope);
        let local_rope = config.local.as_ref().map(|local| Rope::new(&local.rope));
        let isa = Isa::active()?;
        Ok(Self { config, tensors, rope, local_rope, isa, buffers: Arc::default() })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// An empty sequence.
    pub fn sequence(&self) -> Sequence {
        Sequence::new(&self.config)
    }

    /// An empty collector of sums over the inputs of the model's matrices.
    ///
    /// `expert_products` sums products for each expert whose inputs are its own (ffn_down), too.
    pub fn collector(&self, expert_products: bool) -> Collector {
        Collector::new(&self.config, expert_products)
    }

    /// Evaluates tokens and appends them to the sequence.
    ///
    /// It uses the threads of the current [`Team`](crate::team::Team), which is fast for single tokens, or of the
    /// current rayon pool. After an error, the sequence has its earlier tokens, and possibly whole batches of the new
    /// ones.
    pub fn evaluate(
        &self,
        sequence: &mut Sequence,
        request: Request<'_>,
    ) -> Result<(), ModelError> {
        let Request { tokens, wanted, logits, mut collector, cancelled } = request;
        let n_vocab = self.config.n_vocab;
        assert!(wanted.start <= wanted.end && wanted.end <= tokens.len());
        assert_eq!(logits.len(), wanted.len() * n_vocab);
        self.check_tokens(tokens)?;
        let mut buffers = self.take_buffers();
        let mut done = 0;
        for (i, tokens) in tokens.chunks(BATCH).enumerate() {
            let start = i * BATCH;
            let within = |at: usize| at.clamp(start, start + tokens.len()) - start;
            let wanted = within(wanted.start)..within(wanted.end);
            let out = &mut logits[done * n_vocab..][..wanted.len() * n_vocab];
            done += wanted.len();
            let collector = collector.as_deref_mut();
            let mut pass = Pass { model: self, sequence, buffers: &mut buffers, collector };
            pass.embed(tokens);
            pass.layers(0..self.config.n_layer, wanted.clone(), cancelled)?;
            pass.output(wanted, out)?;
            sequence.advance(tokens.len());
        }
        self.give_back(buffers);
        Ok(())
    }

    /// A model with one matrix replaced. Both models share all other matrices.
    pub fn replaced(
        &self,
        role: &str,
        layer: Option<usize>,
        matrix: Matrix<'a>,
    ) -> Result<Self, ModelError> {
        let mut model = self.clone();
        model.tensors.replace(&self.config, role, layer, matrix)?;
        Ok(model)
    }

    /// Evaluates a text of at most [`BATCH`] tokens, and returns its states at all layers.
    pub fn trace(&self, tokens: &[u32], cancelled: &AtomicBool) -> Result<Trace, ModelError> {
        assert!(tokens.len() <= BATCH);
        self.check_tokens(tokens)?;
        let mut buffers = self.take_buffers();
        let mut states = Vec::new();
        let (sequence, collector) = (&mut self.sequence(), None);
        let mut pass = Pass { model: self, sequence, buffers: &mut buffers, collector };
        pass.embed(tokens);
        for layer in 0..self.config.n_layer {
            states.push(pass.buffers.state.clone());
            pass.layers(layer..layer + 1, 0..tokens.len(), cancelled)?;
        }
        states.push(pass.buffers.state.clone());
        self.give_back(buffers);
        Ok(Trace { tokens: tokens.len(), states })
    }

    /// The logits of a traced text, `[tokens, n_vocab]`. The evaluation starts at `layer` with the states of the trace.
    ///
    /// The model of the trace may differ from this one, but not in the layers before `layer`. If `layer` is n_layer,
    /// only the output matrix is applied.
    pub fn resume(
        &self,
        trace: &Trace,
        layer: usize,
        logits: &mut [f32],
        cancelled: &AtomicBool,
    ) -> Result<(), ModelError> {
        let (all, n_layer) = (0..trace.tokens, self.config.n_layer);
        assert_eq!(trace.states.len(), n_layer + 1);
        assert_eq!(trace.states[layer].len(), trace.tokens * self.config.n_embd);
        assert_eq!(logits.len(), trace.tokens * self.config.n_vocab);
        let mut buffers = self.take_buffers();
        let (sequence, collector) = (&mut self.sequence(), None);
        let mut pass = Pass { model: self, sequence, buffers: &mut buffers, collector };
        pass.resize(trace.tokens);
        pass.buffers.state.copy_from_slice(&trace.states[layer]);
        pass.layers(layer..n_layer, all.clone(), cancelled)?;
        pass.output(all, logits)?;
        self.give_back(buffers);
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let n_vocab = self.config.n_vocab;
        match tokens.iter().find(|&&token| token as usize >= n_vocab) {
            None => Ok(()),
            Some(&token) => Err(ModelError::Token { token, n_vocab }),
        }
    }

    fn take_buffers(&self) -> Buffers {
        self.buffers.lock().expect("no panic holds the lock").pop().unwrap_or_default()
    }

    fn give_back(&self, buffers: Buffers) {
        self.buffers.lock().expect("no panic holds the lock").push(buffers);
    }
}

/// The evaluation of one batch.
struct Pass<'p, 'a> {
    model: &'p Model<'a>,
    sequence: &'p mut Sequence,
    buffers: &'p mut Buffers,
    collector: Option<&'p mut Collector>,
}

impl Pass<'_, '_> {
    /// Resizes the buffers for the batch, and computes the angles of its positions.
    fn resize(&mut self, tokens: usize) {
        self.buffers.resize(&self.model.config, tokens);
        self.set_angles(tokens);
    }

    /// Sets the states to the embeddings of the tokens.
    fn embed(&mut self, tokens: &[u32]) {
        self.resize(tokens.len());
        let Model { config, tensors, isa, .. } = self.model;
        each_row(&mut self.buffers.state, config.n_embd, |i, row| {
            tensors.token_embd.row(*isa, tokens[i] as usize, row);
            if config.embedding_scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= config.embedding_scale);
            }
        });
    }

    /// Runs some of the layers.
    fn layers(
        &mut self,
        layers: Range<usize>,
        wanted: Range<usize>,
        cancelled: &AtomicBool,
    ) -> Result<(), ModelError> {
        let Model { config, tensors, .. } = self.model;
        let all = 0..self.buffers.state.len() / config.n_embd;
        for i in layers {
            if cancelled.load(Ordering::Relaxed) {
                return Err(ModelError::Cancelled);
            }
            // after the last layer's keys and values, only the wanted tokens are needed
            let last = i + 1 == config.n_layer && self.collector.is_none();
            let active = if last { wanted.clone() } else { all.clone() };
            self.layer(i, &tensors.layers[i], active)?;
        }
        Ok(())
    }

    /// The logits of the wanted tokens, from the states after the last layer. A collector gets the states of all
    /// tokens.
    fn output(&mut self, wanted: Range<usize>, logits: &mut [f32]) -> Result<(), ModelError> {
        let Model { config, tensors, isa, .. } = self.model;
        let n = config.n_embd;
        let Buffers { state, normed, .. } = self.buffers;
        if let Some(collector) = self.collector.as_deref_mut() {
            let normed = &mut normed[..state.len()];
            norm(*isa, config, state, &tensors.output_norm, normed);
            collector.add(*isa, Site::Output, 0, normed, None);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let normed = &mut normed[..wanted.len() * n];
        norm(*isa, config, &state[wanted.start * n..], &tensors.output_norm, normed);
        apply(*isa, &tensors.output, normed, logits)?;
        if let Some(cap) = config.logit_softcap {
            each_row(logits, config.n_vocab, |_, row| {
                row.iter_mut().for_each(|logit| *logit = softcapped(*logit, cap));
            });
        }
        Ok(())
    }

    /// Computes the angles of the batch's positions, for all layers.
    fn set_angles(&mut self, tokens: usize) {
        let first = self.sequence.length();
        let ropes = [Some(&self.model.rope), self.model.local_rope.as_ref()];
        for (rope, angles) in ropes.into_iter().zip(&mut self.buffers.angles) {
            let Some(rope) = rope else { continue };
            let [cos, sin] = angles;
            cos.resize(tokens * rope.pairs(), 0.0);
            sin.resize(tokens * rope.pairs(), 0.0);
            rope.angles(first, cos, sin);
        }
    }

    /// Runs a layer. Only the states of the tokens `active` are updated.
    fn layer(
        &mut self,
        number: usize,
        layer: &Layer<'_>,
        active: Range<usize>,
    ) -> Result<(), ModelError> {
        let Model { config, isa, .. } = self.model;
        let isa = *isa;
        let n = config.n_embd;
        let first = self.sequence.length();
        let cache = &mut self.sequence.layers[number];
        let window = config.window(number);
        let Buffers { state, normed, query, key, value, attended, gate, up, mixed, angles } =
            self.buffers;
        let mut collect = |site, rows: &[f32], experts: Option<&[i32]>| {
            if let Some(collector) = self.collector.as_deref_mut() {
                collector.add(isa, site, number, rows, experts);
            }
        };
        let [cos, sin] = &angles[usize::from(window.is_some())];
        let heads = |rows: &mut [f32], width, first_row: usize, weight: Option<&[f32]>| {
            let pairs = cos.len() / (state.len() / n);
            each_row(rows, width, |i, row| {
                if let Some(weight) = weight {
                    run_loop(isa, NormHeads { row, weight, eps: config.norm_eps });
                }
                let at = (first_row + i) * pairs;
                rotate(isa, config, row, &cos[at..][..pairs], &sin[at..][..pairs]);
            });
        };

        norm(isa, config, state, &layer.attn_norm, normed);
        collect(Site::Attention, normed, None);
        apply(isa, &layer.key, normed, key)?;
        apply(isa, &layer.value, normed, value)?;
        heads(key, config.n_key(), 0, layer.key_norm.as_deref());
        cache.write(first, key, value);
        if active.is_empty() {
            return Ok(());
        }

        let query = &mut query[..active.len() * config.n_query()];
        let attended = &mut attended[..active.len() * config.n_query()];
        apply(isa, &layer.query, &normed[active.start * n..active.end * n], query)?;
        heads(query, config.n_query(), active.start, layer.query_norm.as_deref());
        let first = first + active.start;
        if let Some(temperature) = config.temperature {
            each_row(query, config.n_query(), |i, row| {
                let factor = temperature.factor(first + i);
                row.iter_mut().for_each(|x| *x *= factor);
            });
        }
        attention::attend(isa, config, cache, window, first, query, attended);
        collect(Site::AttnOutput, attended, None);

        let state = &mut state[active.start * n..active.end * n];
        let normed = &mut normed[..state.len()];
        apply(isa, &layer.attn_output, attended, normed)?;
        add(isa, config, state, normed, layer.attn_post_norm.as_deref());

        norm(isa, config, state, &layer.ffn_norm, normed);
        let gate = &mut gate[..active.len() * config.n_hidden()];
        let up = &mut up[..active.len() * config.n_hidden()];
        match &layer.feed_forward {
            FeedForward::Dense(network) => {
                collect(Site::Ffn, normed, None);
                hidden(isa, config, network, normed, gate, up)?;
                collect(Site::FfnDown, gate, None);
                apply(isa, &network.down, gate, normed)?;
                add(isa, config, state, normed, layer.ffn_post_norm.as_deref());
            }
            FeedForward::Mixture(mixture) => {
                let mixed = &mut mixed[..state.len()];
                collect(Site::Router, normed, None);
                let routes = Routes::new(mixture, normed)?;
                collect(Site::Ffn, normed, Some(&routes.experts));
                mix(isa, config, mixture, &routes, normed, [gate, up], mixed)?;
                collect(Site::FfnDown, gate, Some(&routes.sorted_experts()));
                add(isa, config, state, mixed, layer.ffn_post_norm.as_deref());
            }
        }
        Ok(())
    }
}

impl Buffers {
    fn resize(&mut self, config: &Config, tokens: usize) {
        for (buffer, width) in [
            (&mut self.state, config.n_embd),
            (&mut self.normed, config.n_embd),
            (&mut self.query, config.n_query()),
            (&mut self.key, config.n_key()),
            (&mut self.value, config.n_key()),
            (&mut self.attended, config.n_query()),
            (&mut self.gate, config.n_hidden()),
            (&mut self.up, config.n_hidden()),
            (&mut self.mixed, config.experts.map_or(0, |_| config.n_embd)),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
    }
}
